"""A large evaluation: `imagedex evaluate` beside numpy and scipy doing the same, in one run.

    evaluate.py FEATURES.parquet --imagedex PROGRAM [--gallery N] [--queries N] [--peer-queries N] [--trec-queries N]

FEATURES is what `imagedex features export` wrote of the sample pictures; gallery and queries are drawn from it again, as in es_load.py.
Ours is the whole command: it reads the feature table, ranks the whole gallery for every query and metric, and makes intervals, tests,
leakage, thresholds and all reports. The peer computes scores, whole rankings, MAP and P@1, with BLAS for cosine, dot product and L2 and
scipy's cdist for L1, over fewer queries if asked; its time is given for all of them, in proportion. Both must find the same MAP.
The third way is the one most often written down: scipy's cdist (a product of matrices for the dot product, which cdist lacks), the whole
ranking of each query as a dictionary, and pytrec_eval, over fewer queries still.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytrec_eval
from es_load import draw, machine, matrix
from scipy.spatial.distance import cdist

METRICS = ["cosine", "dot_product", "l1", "l2"]


def as_split(rows, split, prefix):
    columns = {"split": pa.array([split] * len(rows)), "id": pa.array([f"{prefix}{i:06}.jpg" for i in range(len(rows))])}
    for name, column in columns.items():
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(position, rows.schema.field(position), column.cast(rows.schema.field(position).type))
    return rows


def peer(gallery, queries, labels, query_labels):
    """Mean of average precision and of P@1 by metric; seconds."""
    found, seconds = {}, {}
    norms = np.linalg.norm(gallery, axis=1)
    for metric in METRICS:
        started = time.perf_counter()
        aps, firsts = [], []
        for start in range(0, len(queries), 100):
            chunk = queries[start : start + 100]
            if metric == "l1":
                nearness = -cdist(chunk, gallery, "cityblock")
            else:
                nearness = chunk @ gallery.T
                if metric == "cosine":
                    nearness = nearness / norms / np.linalg.norm(chunk, axis=1)[:, None]
                elif metric == "l2":
                    nearness = 2 * nearness - norms**2
            order = np.argsort(-nearness, axis=1, kind="stable")
            right = labels[order] == query_labels[start : start + 100, None]
            precision = right.cumsum(axis=1) / np.arange(1, len(gallery) + 1)
            aps.extend((precision * right).sum(axis=1) / right.sum(axis=1))
            firsts.extend(right[:, 0])
        found[metric], seconds[metric] = (np.mean(aps), np.mean(firsts)), time.perf_counter() - started
    return found, seconds


def trec(gallery, queries, labels, query_labels, names):
    """The same by cdist and pytrec_eval."""
    found, seconds = {}, {}
    kinds = {"cosine": "cosine", "l1": "cityblock", "l2": "euclidean"}
    for metric in METRICS:
        started = time.perf_counter()
        qrels = {
            f"q{row}": {name: 1 for name, label in zip(names, labels) if label == wanted} for row, wanted in enumerate(query_labels)
        }
        nearness = -cdist(queries, gallery, kinds[metric]) if metric in kinds else queries @ gallery.T
        run = {f"q{row}": dict(zip(names, scores.tolist())) for row, scores in enumerate(nearness)}
        judged = pytrec_eval.RelevanceEvaluator(qrels, {"map", "P.1"}).evaluate(run).values()
        found[metric] = tuple(np.mean([one[measure] for one in judged]) for measure in ("map", "P_1"))
        seconds[metric] = time.perf_counter() - started
    return found, seconds


def ours(program, rows, folder):
    pq.write_table(rows, f"{folder}/vectors.parquet")
    subprocess.run(
        [program, "features", "import", f"{folder}/vectors.parquet", "--table", f"{folder}/features"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    pipeline = Path(folder) / "evaluate.toml"
    pipeline.write_text(
        f'work = "{folder}/work"\n[input]\ngallery = "gallery"\nqueries = "queries"\n[features]\ntable = "{folder}/features"\n'
    )
    started = time.perf_counter()
    process = subprocess.Popen([program, "evaluate", pipeline], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"imagedex evaluate ended with {status}")
    summary = json.loads(Path(f"{folder}/work/report/summary.json").read_text())
    mode = summary["evaluations"][0]["modes"][0]
    found = {row["metric"]: (row["micro"]["map"], row["micro"]["at"][0]["precision"]) for row in mode["metrics"]}
    return found, seconds, usage.ru_maxrss / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--imagedex", required=True)
    parser.add_argument("--gallery", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--peer-queries", type=int, default=500)
    parser.add_argument("--trec-queries", type=int, default=20)
    args = parser.parse_args()
    exported = pq.read_table(args.source)
    gallery = as_split(draw(exported, args.gallery), "gallery", "g")
    asked = exported.filter(pc.equal(exported["split"], "query"))
    position = asked.schema.get_field_index("split")
    asked = asked.set_column(position, "split", pa.array(["gallery"] * len(asked)).cast(asked.schema.field(position).type))
    queries = as_split(draw(asked, args.queries), "query", "q")
    with tempfile.TemporaryDirectory() as folder:
        found, seconds, gigabytes = ours(args.imagedex, pa.concat_tables([gallery, queries]), folder)
        part = queries.slice(0, args.peer_queries)
        same, _, _ = ours(args.imagedex, pa.concat_tables([gallery, part]), tempfile.mkdtemp(dir=folder))
    labels = [np.array(rows["label"].to_pylist()) for rows in (gallery, part)]
    peers, peer_seconds = peer(matrix(gallery), matrix(part), *labels)
    peer_gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    few = min(args.trec_queries, args.peer_queries)
    asked = matrix(part)[:few]
    by_trec, trec_seconds = trec(matrix(gallery), asked, labels[0], labels[1][:few], gallery["id"].to_pylist())
    by_numpy, _ = peer(matrix(gallery), asked, labels[0], labels[1][:few])
    for metric in METRICS:
        # Ties and float32 put some pictures in another order.
        if not np.allclose(by_numpy[metric], by_trec[metric], atol=1e-4):
            raise SystemExit(f"{metric}: numpy finds MAP and P@1 {by_numpy[metric]}, pytrec_eval {by_trec[metric]}")
        if not np.allclose(peers[metric], same[metric], atol=2e-5):
            raise SystemExit(f"{metric}: numpy finds MAP and P@1 {peers[metric]}, imagedex {same[metric]}")
    whole = sum(peer_seconds.values()) * args.queries / args.peer_queries
    by_dictionaries = sum(trec_seconds.values()) * args.queries / few
    print(f"{args.queries:,} queries in {args.gallery:,} pictures of 512 numbers, {len(METRICS)} metrics; {machine()}.\n")
    print("| | seconds | GB at most | imagedex to this |\n|---|---:|---:|---:|")
    print(f"| imagedex evaluate, with all reports | {seconds:.0f} | {gigabytes:.1f} | 1.0 |")
    print(
        f"| numpy {np.__version__} and scipy: MAP and P@1 of {args.peer_queries:,} queries, in proportion | {whole:.0f} | "
        f"{peer_gigabytes:.1f} | {whole / seconds:.1f} |"
    )
    print(
        f"| scipy cdist and pytrec_eval: MAP and P@1 of {few} queries, in proportion | {by_dictionaries:.0f} | - | "
        f"{by_dictionaries / seconds:.1f} |"
    )
    print(f"\nMAP of the {args.peer_queries:,} queries agrees: " + ", ".join(f"{m} {same[m][0]:.4f}" for m in METRICS))


if __name__ == "__main__":
    main()
