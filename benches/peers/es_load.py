"""Loading Elasticsearch: `imagedex load` beside the usual ways with elasticsearch-py, on one server, in turns.

    es_load.py vectors FEATURES.parquet OUT.parquet [--count N]
    es_load.py compare OUT.parquet --url URL --imagedex PROGRAM [--repeats N]
    es_load.py latency FEATURES.parquet --url URL --imagedex PROGRAM [--counts N N]

The first makes N rows out of a feature export: rows drawn again, their non-zero dimensions moved by 5 %, at length 1 as before.
The second prints a JSON object for each load, and a Markdown table. "Load" counts from the first document to the last one
acknowledged, as the program itself says it; "searchable" until it is refreshed and counted, for the others from the first
document on, for ours as the whole command: from process start, with preflight, lock, reading the feature table and verification.
Ours sends nine fields where the others send three, and beside a graph the exact vectors too.
The third loads galleries of these sizes, made in the same way, and prints how long single searches take: the four exact metrics, and
the graph with its engine recall, as `imagedex evaluate` measures them with the export's queries.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from elasticsearch import Elasticsearch
from elasticsearch import __versionstr__ as client_version
from elasticsearch.helpers import bulk, pack_dense_vector, parallel_bulk


def make_vectors(source, out, count):
    """Writes `count` rows in the form of `source`, which `imagedex features export` wrote."""
    pq.write_table(draw(pq.read_table(source), count), out)


def draw(rows, count):
    random = np.random.default_rng(0)
    rows = rows.filter(pc.equal(rows["split"], "gallery"))
    rows = rows.take(random.integers(0, len(rows), count))
    vectors = matrix(rows)
    vectors = vectors * random.normal(1, 0.05, vectors.shape).clip(0.5, 1.5).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kind = rows.schema.field("embedding").type
    flat = pa.array(vectors.ravel(), pa.float32())
    if pa.types.is_fixed_size_list(kind):
        embedding = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    else:
        offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
        embedding = pa.ListArray.from_arrays(offsets, flat)
    columns = {"embedding": embedding.cast(kind), "id": pa.array([f"{row:06}.jpg" for row in range(count)])}
    for name, column in columns.items():
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(position, rows.schema.field(position), column)
    return rows


def latency(source, url, program, counts):
    exported = pq.read_table(source)
    queries = exported.filter(pc.equal(exported["split"], "query"))
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(pa.concat_tables([draw(exported, count), queries]), f"{folder}/vectors.parquet")
            ours = Ours(program, url, f"{folder}/vectors.parquet", folder)
            pipeline = Path(folder) / "latency.toml"
            pipeline.write_text(
                f'work = "{folder}/work"\n[input]\ngallery = "gallery"\nqueries = "queries"\n'
                f'[features]\ntable = "{folder}/features"\n[evaluate]\nk = [10]\n'
                f'[load]\nengine = "elasticsearch"\n[load.elasticsearch]\nurl = "{url}"\nalias = "ours"\nincremental = false\n'
                'knn = { index_options = "int8_hnsw" }\n'
            )
            ours.call("evaluate", pipeline)
            summary = json.loads(Path(f"{folder}/work/report/summary.json").read_text())
            recalls = {
                (evaluation["engine"], metric["metric"]): metric["engine_recall"][-1]["mean"]
                for evaluation in summary["evaluations"]
                for metric in evaluation["modes"][0]["metrics"]
            }
            for timing in summary["measured"]["search"]:
                print(json.dumps({"documents": count} | timing), file=sys.stderr, flush=True)
                rows.append((count, timing, recalls[timing["engine"], timing["metric"]]))
            ours.client.indices.delete(index=",".join(ours.client.indices.get(index="ours-*")))
    print(f"{len(queries)} queries of 512 dimensions, k = 10, one after another; {machine()}.\n")
    print("| documents | engine, metric | engine recall@10 | p50 ms | p95 ms | p99 ms | queries/s in batches |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for count, timing, recall in rows:
        times = " | ".join(f"{timing[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        print(
            f"| {count:,} | {timing['engine']}, {timing['metric']} | {recall:.4f} | {times} | "
            f"{timing['queries_per_second_batched']:.0f} |"
        )


def machine():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"client and server on one machine ({os.cpu_count()} x {names[0] if names else platform.machine()})"


def matrix(rows):
    """The vectors, [n, dim]."""
    flat = rows["embedding"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(rows), -1)


class Peers:
    """The usual ways, each with an index of its own."""

    def __init__(self, url, rows):
        self.client = Elasticsearch(url, request_timeout=300)
        self.ids, self.labels = rows["id"].to_pylist(), rows["label"].to_pylist()
        self.vectors = matrix(rows)

    def actions(self, encode):
        for id, label, vector in zip(self.ids, self.labels, self.vectors):
            yield {"_index": "peer", "_id": id, "id": id, "label": label, "embedding": encode(vector)}

    def create(self, knn):
        exact = {"type": "dense_vector", "dims": self.vectors.shape[1], "index": False}
        graph = exact | {"index": True, "similarity": "cosine", "index_options": {"type": "int8_hnsw"}}
        properties = {"id": {"type": "keyword"}, "label": {"type": "keyword"}, "embedding": graph if knn else exact}
        self.client.indices.delete(index="peer", ignore_unavailable=True)
        self.client.indices.create(
            index="peer",
            mappings={"dynamic": "strict", "properties": properties},
            settings={"number_of_shards": 1, "number_of_replicas": 0},
        )

    def load(self, send, knn):
        self.create(knn)
        started = time.perf_counter()
        send(self)
        loaded = time.perf_counter() - started
        self.client.indices.refresh(index="peer")
        found = self.client.count(index="peer")["count"]
        searchable = time.perf_counter() - started
        if found != len(self.ids):
            raise SystemExit(f"{found} documents of {len(self.ids)} arrived")
        self.client.indices.delete(index="peer")
        return loaded, searchable

    def bulk_arrays(self):
        bulk(self.client, self.actions(np.ndarray.tolist), chunk_size=1000)

    def parallel_arrays(self):
        self.parallel(np.ndarray.tolist)

    def parallel_base64(self):
        self.parallel(pack_dense_vector)

    def parallel(self, encode):
        for done, item in parallel_bulk(self.client, self.actions(encode), thread_count=4, chunk_size=500):
            if not done:
                raise SystemExit(f"refused: {item}")


class Ours:
    """`imagedex load`, the whole command."""

    def __init__(self, program, url, vectors, folder):
        self.program, self.url, self.folder = program, url, folder
        self.client = Elasticsearch(url, request_timeout=300)
        self.expected = pq.read_metadata(vectors).num_rows
        self.call("features", "import", vectors, "--table", f"{folder}/features")

    def call(self, *arguments):
        said = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True)
        if said.returncode != 0:
            raise SystemExit(f"imagedex {arguments[0]} ended with {said.returncode}: {said.stderr}")
        return said.stderr

    def load(self, knn):
        pipeline = Path(self.folder) / ("graph.toml" if knn else "exact.toml")
        graph = 'knn = { index_options = "int8_hnsw" }\n' if knn else ""
        pipeline.write_text(
            f'[input]\ngallery = "gallery"\nqueries = "queries"\n[features]\ntable = "{self.folder}/features"\n'
            f'[load]\nengine = "elasticsearch"\n[load.elasticsearch]\nurl = "{self.url}"\nalias = "ours"\n'
            f"incremental = false\n{graph}"
        )
        started = time.perf_counter()
        said = self.call("load", pipeline)
        searchable = time.perf_counter() - started
        loaded = float(re.search(r" MB in ([0-9.]+) s", said).group(1))
        found = self.client.count(index="ours-*")["count"]
        if found != self.expected:
            raise SystemExit(f"{found} documents of {self.expected} arrived")
        # Not promoted, it would be found complete by the next load.
        self.client.indices.delete(index=",".join(self.client.indices.get(index="ours-*")))
        return loaded, searchable


def compare(vectors, url, program, repeats):
    rows = pq.read_table(vectors)
    count = len(rows)
    peers = Peers(url, rows)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(program, url, vectors, folder)
        ways = {
            "imagedex load": ours.load,
            "helpers.bulk, 1,000 arrays": lambda knn: peers.load(Peers.bulk_arrays, knn),
            "parallel_bulk, 4 x 500 arrays": lambda knn: peers.load(Peers.parallel_arrays, knn),
            "parallel_bulk, 4 x 500 base64": lambda knn: peers.load(Peers.parallel_base64, knn),
        }
        # A server that has just started is slow for whoever comes first: each way has one load that does not count.
        for load in ways.values():
            load(False)
        for repeat in range(repeats):
            for knn in (False, True):
                # Another one goes first each time.
                names = list(ways)[repeat % len(ways) :] + list(ways)[: repeat % len(ways)]
                for name in names:
                    loaded, searchable = ways[name](knn)
                    field = "int8_hnsw" if knn else "index:false"
                    result = {"way": name, "field": field, "repeat": repeat, "documents": count}
                    result |= {"load_s": round(loaded, 3), "searchable_s": round(searchable, 3)}
                    print(json.dumps(result), file=sys.stderr, flush=True)
                    results.setdefault((field, name), []).append((count / loaded, count / searchable))
    table(results, list(ways), count, repeats, peers.client.info()["version"]["number"])


def table(results, names, count, repeats, server):
    print(
        f"{count:,} documents of 512 dimensions into Elasticsearch {server} with OpenSearch's Painless compiler; "
        f"{machine()}; elasticsearch-py {client_version}, Python {platform.python_version()}; "
        f"{repeats} repeats in turns. Documents/s: median (least to most). Ratio: imagedex to this way.\n"
    )
    print("| field | way | load | searchable | ratio of load | ratio of searchable |\n|---|---|---:|---:|---:|---:|")
    for field in ("index:false", "int8_hnsw"):
        best = [statistics.median(rates) for rates in zip(*results[field, names[0]])]
        for name in names:
            columns = list(zip(*results[field, name]))
            medians = [statistics.median(rates) for rates in columns]
            cells = [f"{median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})" for median, rates in zip(medians, columns)]
            cells += [f"{ours / median:.1f}" for ours, median in zip(best, medians)]
            print(f"| `{field}` | {name} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    vectors = commands.add_parser("vectors")
    vectors.add_argument("source")
    vectors.add_argument("out")
    vectors.add_argument("--count", type=int, default=20_000)
    comparison = commands.add_parser("compare")
    comparison.add_argument("vectors")
    comparison.add_argument("--url", required=True)
    comparison.add_argument("--imagedex", required=True)
    comparison.add_argument("--repeats", type=int, default=5)
    searches = commands.add_parser("latency")
    searches.add_argument("source")
    searches.add_argument("--url", required=True)
    searches.add_argument("--imagedex", required=True)
    searches.add_argument("--counts", type=int, nargs="+", default=[10_000, 60_000])
    args = parser.parse_args()
    if args.command == "latency":
        latency(args.source, args.url, args.imagedex, args.counts)
    elif args.command == "vectors":
        make_vectors(args.source, args.out, args.count)
    else:
        compare(args.vectors, args.url, args.imagedex, args.repeats)


if __name__ == "__main__":
    main()
