"""What Elasticsearch takes for each index option: the figures of docs/sizing.tsv, which `imagedex plan` calculates with.

    sizing.py pictures CIFAR FOLDER [--gallery N]
    sizing.py measure FEATURES.parquet LOG.jsonl --url URL --imagedex PROGRAM [--counts N N] [--growth N N] [--options NAME NAME]
    sizing.py write LOG.jsonl docs/sizing.tsv

The first lists some of the CIFAR pictures in a manifest, and writes a pipeline that embeds them. The second loads so many pictures
with each index option through `imagedex load` and appends what it measured to the log, a line for each figure; what the log has
already is not measured again. The third puts the log's figures in place of the earlier ones in the
table and prints them as Markdown.

Pictures are those of a feature export as far as they go; beyond, each is a mixture of two of one class (`mixed`), so that their
numbers are alike in kind without being copies. Queries are the export's. Time of the server is processor time of its whole process,
which other programs on the machine do not add to; milliseconds of the clock do depend on them, and the load average stands beside.
"""

import argparse
import datetime
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

K = 10
# Not `bbq_disk`: the server refuses it under its free licence.
OPTIONS = ["hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "flat", "int8_flat", "int4_flat", "bbq_flat"]
GROWTH = ["int8_hnsw", "bbq_hnsw", "hnsw", "int4_hnsw"]
SHARDS = 4
CANDIDATES = [10, 50, 100, 200, 500, 1000]
RESCORED = [(100, 2), (100, 3), (100, 5), (500, 3)]
FEW = [(10, 0), (100, 0), (500, 0), (100, 3)]
COMMAND = "make bench-es-sizing"
COLUMNS = ["figure", "option", "setting", "documents", "value", "unit", "source"]


class Server:
    """Elasticsearch over one connection, and what its process has used."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        self.connection = self.process = None

    def ask(self, method, path, body=None):
        if body is not None and not isinstance(body, str):
            body = json.dumps(body)
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, self.port, timeout=3600)
        headers = {"Content-Type": "application/json"} if body else {}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {text[:600].decode()}")
        return json.loads(text) if text else {}

    def core_ms(self):
        """Processor time of the server's process so far, all threads, in milliseconds. From the system: the server's own word is
        up to a second old."""
        if self.process is None:
            (node,) = self.ask("GET", "/_nodes/process")["nodes"].values()
            self.process = node["process"]["id"]
        # A thread that has ended is in none of the tasks, but in the sum: hundredths of a second.
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")

    def settled(self):
        """Waits until nothing is merged any more."""
        quiet = 0
        while quiet < 3:
            (node,) = self.ask("GET", "/_nodes/stats/indices/merge")["nodes"].values()
            quiet = quiet + 1 if node["indices"]["merges"]["current"] == 0 else 0
            time.sleep(0.5)


class Refused(Exception):
    pass


class Log:
    """The figures measured so far."""

    def __init__(self, path):
        self.path = path
        self.rows = [json.loads(line) for line in open(path)] if os.path.exists(path) else []

    def has(self, **wanted):
        return any(all(row.get(key) == value for key, value in wanted.items()) for row in self.rows)

    def add(self, figure, option, setting, documents, value, unit):
        row = {"figure": figure, "option": option, "setting": setting, "documents": documents, "value": value, "unit": unit}
        row |= {"source": f"{COMMAND}, {datetime.date.today()}, {machine()}", "load": round(os.getloadavg()[0], 1)}
        self.rows.append(row)
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{figure} {option} {setting} {documents}: {value:.6g} {unit}", file=sys.stderr, flush=True)


def machine():
    about = dict(line.split(":", 1) for line in open("/proc/cpuinfo").read().split("\n\n")[0].splitlines())
    about = {key.strip(): value.strip() for key, value in about.items()}
    # The name of a virtual machine's processor may be no more than this; the family tells which it is.
    zen = " Zen 5" if about.get("vendor_id") == "AuthenticAMD" and about.get("cpu family") == "26" else ""
    return f"{os.cpu_count()} cores of {about.get('model name', 'a processor')}{zen}"


def matrix(rows):
    """The vectors, [n, dim]."""
    flat = rows["embedding"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(rows), -1)


def gallery(exported, count):
    """`count` rows: those of the gallery, and mixtures of two of one class where they are too few."""
    random = np.random.default_rng(0)
    rows = exported.filter(pc.equal(exported["split"], "gallery"))
    real = matrix(rows)
    order = random.permutation(len(rows))[:count]
    rows, kept = rows.take(order), real[order]
    if count > len(rows):
        labels = np.array(rows["label"].to_pylist())
        first = random.integers(0, len(rows), count - len(rows))
        second = np.empty_like(first)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            here = labels[first] == label
            second[here] = random.choice(own, here.sum())
        share = random.uniform(0.5, 0.9, (len(first), 1)).astype(np.float32)
        mixed = share * kept[first] + (1 - share) * kept[second]
        mixed *= random.normal(1, 0.1, mixed.shape).clip(0.5, 1.5).astype(np.float32)
        rows = pa.concat_tables([rows, rows.take(first)])
        kept = np.concatenate([kept, mixed])
    kept = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    kind = rows.schema.field("embedding").type
    flat = pa.array(kept.ravel(), pa.float32())
    if pa.types.is_fixed_size_list(kind):
        column = pa.FixedSizeListArray.from_arrays(flat, kept.shape[1])
    else:
        column = pa.ListArray.from_arrays(np.arange(0, kept.size + 1, kept.shape[1], dtype=np.int32), flat)
    columns = {"embedding": column.cast(kind), "id": pa.array([f"{row:07}.jpg" for row in range(count)])}
    for name, column in columns.items():
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(position, rows.schema.field(position), column)
    return rows


class Bench:
    """One number of pictures: their table, their vectors, and the true neighbours of each query."""

    def __init__(self, args, log, folder, exported, count):
        self.args, self.log, self.folder, self.count = args, log, folder, count
        self.server = Server(args.url)
        rows = gallery(exported, count)
        self.real = count <= pc.sum(pc.equal(exported["split"], "gallery")).as_py()
        file = f"{folder}/vectors.parquet"
        pq.write_table(rows, file)
        self.imagedex("features", "import", file, "--table", f"{folder}/features")
        os.unlink(file)
        parts = sum(path.stat().st_size for path in Path(folder, "features").rglob("*") if path.is_file())
        if not log.has(figure="table.bytes", documents=count):
            log.add("table.bytes", "-", "-", count, parts / count, "B/picture")
        self.vectors = matrix(rows).astype(np.float64)
        queries = matrix(exported.filter(pc.equal(exported["split"], "query")))[: args.queries]
        self.queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        scores = self.queries.astype(np.float64) @ self.vectors.T
        # The score of each query's tenth neighbour: whatever is as close counts as found.
        self.tenth = np.partition(scores, count - K, axis=1)[:, count - K]

    def imagedex(self, *arguments):
        said = subprocess.run([self.args.imagedex, *map(str, arguments)], capture_output=True, text=True)
        if said.returncode != 0:
            raise Refused(f"imagedex {arguments[0]} ended with {said.returncode}: {said.stderr[-600:]}")

    def clear(self):
        for index in self.server.ask("GET", "/sizing-*?expand_wildcards=all"):
            self.server.ask("DELETE", f"/{index}")

    def load(self, option, shards):
        """Loads an index and merges each shard to one segment; its name. The figures of a single shard are logged."""
        self.clear()
        pipeline = Path(self.folder) / "sizing.toml"
        knn = f'knn = {{ index_options = "{option}" }}\n' if option else ""
        pipeline.write_text(
            f'work = "{self.folder}/work"\n[input]\ngallery = "gallery"\n[features]\ntable = "{self.folder}/features"\n'
            f'[load]\nengine = "elasticsearch"\n[load.elasticsearch]\nurl = "{self.args.url}"\nalias = "sizing"\n'
            f"incremental = false\nshards = {shards}\n{knn}"
        )
        self.server.settled()
        before = self.server.core_ms()
        self.imagedex("load", pipeline)
        (index,) = self.server.ask("GET", "/sizing-*")
        self.server.ask("POST", f"/{index}/_flush?force=true")
        self.server.settled()
        loaded = self.server.core_ms()
        segments = self.segments(index)
        self.released(index)
        if option and shards == 1:
            # As the segments are that a plan counts; all other searches are timed after the merge.
            self.approximate(index, option, "unmerged", [(100, 0), (100, 3)])
        waited = self.server.core_ms()
        self.server.ask("POST", f"/{index}/_forcemerge?max_num_segments=1")
        self.server.settled()
        merged = self.server.core_ms()
        self.server.ask("POST", f"/{index}/_refresh")
        if shards == 1:
            name, store = option or "none", sum(segment["size_in_bytes"] for segment in segments)
            self.log.add("load.cpu", name, "until merges rest", self.count, (loaded - before) / self.count, "core-ms/document")
            self.log.add("merge.cpu", name, "to one segment", self.count, (merged - waited) / self.count, "core-ms/document")
            self.log.add("disk.loaded", name, "primary, before that merge", self.count, store / self.count, "B/document")
            self.log.add("load.segments", name, "before that merge", self.count, len(segments), "segments")
        return index

    def released(self, index):
        """Waits until merges may drop what the server keeps beside each document: what was sent, for a copy of the shard to catch up.
        It looks every 30 s whether a copy could still ask for it."""
        for _ in range(180):
            shards = self.server.ask("GET", f"/{index}/_stats?level=shards")["indices"][index]["shards"].values()
            copies = [copy for shard in shards for copy in shard]
            leases = [lease["retaining_seq_no"] > copy["seq_no"]["max_seq_no"] for copy in copies for lease in copy["retention_leases"]["leases"]]
            if all(leases):
                return
            time.sleep(0.5)
        print("the server still keeps what was sent", file=sys.stderr, flush=True)

    def segments(self, index):
        """The segments that are searched. Files of those that were merged away stay on the disk a while, and do not count."""
        shards = self.server.ask("GET", f"/{index}/_segments")["indices"][index]["shards"].values()
        return [segment for shard in shards for segment in shard[0]["segments"].values() if segment["search"]]

    def sizes(self, index, option):
        name = option or "none"
        self.server.ask("POST", f"/{index}/_flush?force=true")
        store = sum(segment["size_in_bytes"] for segment in self.segments(index))
        whole = self.server.ask("GET", f"/{index}/_stats/dense_vector")["_all"]["primaries"]
        usage = self.server.ask("POST", f"/{index}/_disk_usage?run_expensive_tasks=true")[index]
        self.log.add("disk.store", name, "primary", self.count, store / self.count, "B/document")
        fields = {field: size["total_in_bytes"] for field, size in usage["fields"].items()}
        exact, knn = fields.pop("embedding", 0), fields.pop("embedding_knn", 0)
        self.log.add("disk.exact", name, "field embedding", self.count, exact / self.count, "B/document")
        source = fields.get("_source", 0)
        self.log.add("disk.source", name, "field _source", self.count, source / self.count, "B/document")
        self.log.add("disk.other", name, "all else", self.count, (store - exact - knn - source) / self.count, "B/document")
        if option:
            self.log.add("disk.knn", name, "field embedding_knn", self.count, knn / self.count, "B/document")
            heap = whole["dense_vector"].get("off_heap", {})
            for key, size in heap.items():
                if key.startswith("total_v"):
                    part = key.removeprefix("total_").removesuffix("_size_bytes")
                    self.log.add(f"offheap.{part}", name, "beside the heap", self.count, size / self.count, "B/document")

    def warm(self, index, bodies):
        """The server compiles what it runs often, over some thousand queries: none of them shall count."""
        for _ in range(10):
            for one in bodies:
                self.server.ask("POST", f"/{index}/_search", one)

    def scan(self, query, metric, among):
        """`script_score`, as imagedex asks it, among the documents of a query."""
        scripts = {"cosine": "cosineSimilarity(params.q, 'embedding') + 1.0", "l1": "1 / (1 + l1norm(params.q, 'embedding'))"}
        script = {"source": "doc['embedding'].size() == 0 ? 0 : " + scripts[metric], "params": {"q": query.tolist()}}
        return body({"query": {"script_score": {"query": among, "script": script}}})

    def search(self, index, bodies):
        """Core-milliseconds of the server a query, and what was found: the best of three rounds, since the server's own housekeeping
        and its compiler run beside them."""
        rounds = []
        for _ in range(3):
            before = self.server.core_ms()
            answers = [self.server.ask("POST", f"/{index}/_search", one)["hits"]["hits"] for one in bodies]
            used = (self.server.core_ms() - before) / len(bodies)
            rounds.append((used, [[int(hit["sort"][1][:7]) for hit in hits] for hits in answers]))
        return min(rounds, key=lambda measured: measured[0])

    def recall(self, found):
        """The share of the ten nearest that were found, by distance: ties with the tenth count."""
        hits = 0
        for query, tenth, rows in zip(self.queries.astype(np.float64), self.tenth, found):
            scores = self.vectors[list(dict.fromkeys(rows))] @ query
            hits += min(K, int((scores >= tenth - 1e-6).sum()))
        return hits / (K * len(found))

    def add(self, prefix, option, setting, index, bodies):
        used, found = self.search(index, bodies)
        self.log.add(f"{prefix}.cpu", option, setting, self.count, used, "core-ms/query")
        # Mixtures lie among one another otherwise than pictures do: what is found of them is not told as if they were.
        name = "recall" if self.real else "recall_mixed"
        self.log.add(f"{prefix}.{name}", option, setting, self.count, self.recall(found), "of 10")

    def exact(self, index):
        # What any query costs, however many documents there are: to be read, parsed, and answered.
        few = {"terms": {"id": [f"{row:07}.jpg" for row in range(K)]}}
        bodies = [self.scan(query, "cosine", few) for query in self.queries]
        self.warm(index, bodies)
        used, _ = self.search(index, bodies)
        self.log.add("query.cpu", "-", "ten documents", self.count, used, "core-ms/query")
        for metric in ("cosine", "l1"):
            bodies = [self.scan(query, metric, {"match_all": {}}) for query in self.queries[: max(20, min(100, 2_000_000 // self.count))]]
            self.warm(index, bodies[:10])
            used, _ = self.search(index, bodies)
            self.log.add("scan.cpu", metric, "script_score", self.count, used, "core-ms/query")

    def approximate(self, index, option, prefix="knn", settings=None):
        if settings is None:
            settings = [(candidates, 0) for candidates in CANDIDATES] + RESCORED
        # Vectors as they are need no rescoring.
        if option in ("hnsw", "flat"):
            settings = [pair for pair in settings if pair[1] == 0]
        # No graph: all vectors are looked at, however many candidates are asked for.
        if option.endswith("flat"):
            settings = [pair for pair in settings if pair[0] == 100]
        self.warm(index, self.knn(option, *settings[0])[::2] + self.knn(option, *settings[-1])[::2])
        for candidates, oversample in settings:
            setting = f"candidates={candidates}" + (f",oversample={oversample}" if oversample else "")
            self.add(prefix, option, setting, index, self.knn(option, candidates, oversample))

    def knn(self, option, candidates, oversample):
        """A search for each query."""
        bodies = []
        for query in self.queries:
            knn = {"field": "embedding_knn", "query_vector": query.tolist(), "k": K, "num_candidates": candidates}
            # Left out, the binary ones would be rescored by the server's default.
            if option not in ("hnsw", "flat"):
                knn["rescore_vector"] = {"oversample": oversample}
            bodies.append(body({"knn": knn}))
        return bodies


def body(search):
    return json.dumps({"size": K, "_source": False, "track_total_hits": False, "sort": [{"_score": "desc"}, {"id": "asc"}]} | search)


def pictures(args):
    """The manifest and the pipeline of pictures to embed, drawn anew the same way each time."""
    random = np.random.default_rng(0)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split"]
    for split, part, count in (("gallery", "gallery", args.gallery), ("query", "queries", args.queries)):
        files = sorted(Path(args.cifar, part).resolve().glob("*/*"))
        chosen = random.choice(len(files), min(count, len(files)), replace=False)
        lines += [f"{files[i]},{files[i].parent.name},{split}" for i in sorted(chosen)]
    (folder / "pictures.csv").write_text("\n".join(lines) + "\n")
    (folder / "sizing.toml").write_text(
        'work = "work"\n[input]\ngallery = "pictures.csv"\noutside = true\n'
        '[model]\nprecision = "int8"\nprovider = "openvino"\nresize = "bilinear"\n'
    )


def measure(args):
    exported = pq.read_table(args.source)
    log = Log(args.log)
    version = Server(args.url).ask("GET", "/")["version"]["number"]
    real = pc.equal(exported["split"], "gallery")
    print(f"Elasticsearch {version}; {pc.sum(real).as_py():,} pictures and {args.queries} queries that are real", file=sys.stderr)
    for count in sorted(args.counts + args.growth):
        full = count in args.counts
        options = [option for option in args.options if full or option in GROWTH]
        # A word of the log says that an index was measured to the end.
        left = [option for option in [None, *options] if not log.has(figure="done", option=option or "none", documents=count)]
        largest = count == max(args.counts + args.growth)
        sharded = [option for option in GROWTH if largest and not log.has(figure="done", option=f"{option} x {SHARDS}", documents=count)]
        if not left and not sharded:
            continue
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            bench = Bench(args, log, folder, exported, count)
            # Not told: the server has not compiled yet what loads.
            bench.load(GROWTH[0], 2)
            for option in left:
                try:
                    index = bench.load(option, 1)
                    bench.sizes(index, option)
                    if option:
                        bench.approximate(index, option, settings=None if full else FEW)
                    else:
                        bench.exact(index)
                    log.add("done", option or "none", "-", count, 1, "-")
                except Refused as refusal:
                    # An option that this server does not have, or keeps for another licence.
                    print(f"{option} at {count}: {refusal}", file=sys.stderr, flush=True)
            for option in sharded:
                index = bench.load(option, SHARDS)
                bench.approximate(index, option, f"shards{SHARDS}", FEW)
                log.add("done", f"{option} x {SHARDS}", "-", count, 1, "-")
            bench.clear()


def write(args):
    """Replaces the rows of our command in the table; those that other commands measured stay."""
    measured = [row for row in Log(args.log).rows if row["figure"] != "done"]
    latest = {(row["figure"], row["option"], row["setting"], row["documents"]): row for row in measured}
    comments, kept = [], []
    if os.path.exists(args.table):
        for line in open(args.table):
            if line.startswith("#"):
                comments.append(line)
            elif COMMAND not in line and not line.startswith("figure\t"):
                kept.append(line)
    with open(args.table, "w") as out:
        out.writelines(comments)
        out.write("\t".join(COLUMNS) + "\n")
        out.writelines(kept)
        for key in sorted(latest):
            row = latest[key] | {"value": f"{latest[key]['value']:.6g}"}
            out.write("\t".join(str(row[column]) for column in COLUMNS) + "\n")
    tables(latest)


def tables(rows):
    """The figures as Markdown."""
    loads = [row["load"] for row in rows.values()]
    print(f"{next(iter(rows.values()))['source']}; load average {min(loads)} to {max(loads)}.")

    def cell(form, figure, option, setting, documents):
        row = rows.get((figure, option, setting, documents))
        return format(row["value"], form) if row else ""

    def table(head, body):
        print("\n| " + " | ".join(head) + " |\n|---:|---|" + "---:|" * (len(head) - 2))
        for count in sorted({key[3] for key in rows}):
            for option in ["none", *OPTIONS]:
                cells = [cell(form, figure, option, setting, count) for form, figure, setting in body]
                if any(cells):
                    print(f"| {count:,} | `{option}` | " + " | ".join(cells) + " |")

    heap = "beside the heap"
    table(
        ["documents", "index option", "disk, B/document", "exact field", "kNN field", "`_source`", "all else", "in memory: vectors as they are", "quantised",
         "binary", "graph", "load, core-ms/document", "merging to one segment"],
        [(",.0f", "disk.store", "primary"), (",.0f", "disk.exact", "field embedding"), (",.0f", "disk.knn", "field embedding_knn"),
         (",.0f", "disk.source", "field _source"), (",.0f", "disk.other", "all else"), (",.0f", "offheap.vec", heap), (",.0f", "offheap.veq", heap),
         (",.0f", "offheap.veb", heap), (",.0f", "offheap.vex", heap), (".2f", "load.cpu", "until merges rest"), (".2f", "merge.cpu", "to one segment")],
    )
    print("\n| documents | exact search | core-ms a query |\n|---:|---|---:|")
    for (figure, metric, setting, count), row in sorted(rows.items(), key=lambda item: (item[0][3], item[0][1])):
        if figure in ("scan.cpu", "query.cpu"):
            print(f"| {count:,} | {metric if figure == 'scan.cpu' else setting} | {row['value']:.2f} |")
    pairs = [(candidates, 0) for candidates in CANDIDATES] + RESCORED
    names = [f"{candidates} x {oversample}" if oversample else str(candidates) for candidates, oversample in pairs]
    settings = [f"candidates={candidates}" + (f",oversample={oversample}" if oversample else "") for candidates, oversample in pairs]
    for figure, form, title in (("knn.recall", ".3f", "engine recall@10"), ("knn.recall_mixed", ".3f", "engine recall@10 among mixtures"),
                                ("knn.cpu", ".2f", "core-ms a query"), ("unmerged.cpu", ".2f", "core-ms a query, before the merge"),
                                (f"shards{SHARDS}.cpu", ".2f", f"core-ms a query, {SHARDS} shards"),
                                (f"shards{SHARDS}.recall_mixed", ".3f", f"engine recall@10 among mixtures, {SHARDS} shards")):
        table([f"{title}; documents", "index option", *names], [(form, figure, setting) for setting in settings])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("pictures")
    listing.add_argument("cifar")
    listing.add_argument("folder")
    listing.add_argument("--gallery", type=int, default=20_000)
    listing.add_argument("--queries", type=int, default=200)
    measuring = commands.add_parser("measure")
    measuring.add_argument("source")
    measuring.add_argument("log")
    measuring.add_argument("--url", required=True)
    measuring.add_argument("--imagedex", required=True)
    measuring.add_argument("--counts", type=int, nargs="+", default=[20_000])
    measuring.add_argument("--growth", type=int, nargs="*", default=[100_000], help=f"larger ones, of {', '.join(GROWTH)} alone")
    measuring.add_argument("--options", nargs="+", default=OPTIONS)
    measuring.add_argument("--queries", type=int, default=200)
    measuring.add_argument("--scratch", help="folder for the tables; default: the system's")
    writing = commands.add_parser("write")
    writing.add_argument("log")
    writing.add_argument("table")
    args = parser.parse_args()
    {"pictures": pictures, "measure": measure, "write": write}[args.command](args)


if __name__ == "__main__":
    main()
