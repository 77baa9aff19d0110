"""Computes every measure anew from TREC files, with ir_measures (trec_eval's own code), and says how far ours are from it.

Arguments: report folders, with summary.json, per_query.parquet and trec/. Prints a JSON object for each metric of each mode: what
was compared, the greatest difference of a query and of a mean, and the hits that stand elsewhere.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import ir_measures
import pyarrow.parquet as pq
from ir_measures import AP, RR, P, R, Rprec, Success, nDCG, pytrec_eval


def measures_at(ks):
    """Column of per_query.parquet and path in summary.json → what ir_measures calls it."""
    names = {("ap", "map"): AP, ("r_precision", "r_precision"): Rprec, ("rr", "mrr"): RR}
    for k in ks:
        for column, key, measure in (("hit", "hit", Success), ("p", "precision", P), ("r", "recall", R), ("ndcg", "ndcg", nDCG)):
            names[f"{column}_at_{k}", (k, key)] = measure @ k
    return names


def ap_at_r(qrels, run):
    """AP cut at each query's own number of relevant pictures."""
    relevant = defaultdict(list)
    for qrel in qrels:
        relevant[qrel.query_id].append(qrel)
    values = {}
    for depth in {len(of_query) for of_query in relevant.values()}:
        some = [qrel for of_query in relevant.values() if len(of_query) == depth for qrel in of_query]
        for found in pytrec_eval.iter_calc([AP @ depth], some, run):
            if len(relevant[found.query_id]) == depth:
                values[found.query_id] = found.value
    return values


def mean_of(micro, key):
    if isinstance(key, tuple):
        k, name = key
        return next(at for at in micro["at"] if at["k"] == k)[name]
    return micro[key]


def compare(folder, evaluation, mode, metric, rows):
    """One run file against the rows of per_query.parquet and the means of summary.json."""
    system = f'{re.sub("[^A-Za-z0-9_-]", "-", evaluation["engine"])}.{metric["metric"]}'
    qrels_file, run_file = folder / f"trec/{mode}.qrels", folder / f"trec/{system}.{mode}.run"
    evaluated = {row["query"]: row for row in rows if row["state"] == "evaluated"}
    result = {"run": run_file.name, "queries": len(evaluated), "left_out": len(rows) - len(evaluated)}
    if not evaluated:
        assert metric["micro"] is None and not qrels_file.exists() and not run_file.exists(), run_file
        return result
    qrels = list(ir_measures.read_trec_qrels(str(qrels_file)))
    run = list(ir_measures.read_trec_run(str(run_file)))
    judged = defaultdict(int)
    for qrel in qrels:
        judged[unquote(qrel.query_id)] += qrel.relevance
    assert judged == {query: row["relevant"] for query, row in evaluated.items()}, run_file
    found = defaultdict(list)
    for doc in run:
        found[unquote(doc.query_id)].append(doc)
    assert found.keys() <= evaluated.keys(), run_file
    # As trec_eval sorts them: by score, then by id descending.
    misplaced = 0
    for query, row in evaluated.items():
        ordered = sorted(sorted(found.get(query, []), key=lambda doc: doc.doc_id, reverse=True), key=lambda doc: -doc.score)
        top = [unquote(doc.doc_id) for doc in ordered[: len(row["top_ids"])]]
        misplaced += sum(a != b for a, b in zip(top, row["top_ids"], strict=True))

    names = measures_at(evaluation["ks"])
    columns = {measure: column for (column, _), measure in names.items()}
    differences = []
    for value in pytrec_eval.iter_calc(names.values(), qrels, run):
        differences.append(abs(value.value - evaluated[unquote(value.query_id)][columns[value.measure]]))
    theirs = ap_at_r(qrels, run)
    differences += [abs(value - evaluated[unquote(query)]["ap_at_r"]) for query, value in theirs.items()]
    assert len(differences) == len(evaluated) * (len(names) + 1), run_file

    means = pytrec_eval.calc_aggregate(names.values(), qrels, run)
    of_means = [abs(means[measure] - mean_of(metric["micro"], key)) for (_, key), measure in names.items()]
    of_means.append(abs(sum(theirs.values()) / len(evaluated) - metric["micro"]["map_at_r"]))
    return result | {
        "unanswered": len(evaluated.keys() - found.keys()),
        "values": len(differences),
        "worst_query": max(differences),
        "worst_mean": max(of_means),
        "misplaced": misplaced,
    }


for folder in map(Path, sys.argv[1:]):
    summary = json.loads((folder / "summary.json").read_text())
    rows = defaultdict(list)
    for row in pq.read_table(folder / "per_query.parquet").to_pylist():
        rows[row["engine"], row["mode"], row["metric"]].append(row)
    for evaluation in summary["evaluations"]:
        for mode in evaluation["modes"]:
            for metric in mode["metrics"]:
                of_metric = rows[evaluation["engine"], mode["mode"], metric["metric"]]
                print(json.dumps(compare(folder, evaluation, mode["mode"], metric, of_metric)))
