"""A whole run, measured: extract, load into Elasticsearch, evaluate and report over a gallery and its queries; and the extract once more on
a cluster of this machine. Prints Markdown: time of each stage, memory, disk, whether both tables are the same, and what was found.

    whole.py WORK --imagedex PROGRAM --gallery FOLDER --queries FOLDER --url URL [--executors N] [--port PORT] [--set KEY=VALUE ...]

All begins with nothing but pictures, model and an Elasticsearch. Memory is the most that was resident of a
process; of Elasticsearch it holds heap and files that it maps. Disk is what is there when the run has ended.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scale import Cluster, table_of
from sizing import Server, machine

# A ranking holds a hundred hits: of 50,000 for each query the server would be asked for all.
PIPELINE = """\
work = "work"
[input]
gallery = {gallery}
queries = {queries}
[model]
precision = "int8"
provider = "openvino"
resize = "bilinear"
[load]
engine = ["flat", "elasticsearch"]
[load.elasticsearch]
url = {url}
alias = "whole"
keep = 0
knn = {{ index_options = "int8_hnsw", oversample = 3 }}
[evaluate]
depth = 100
"""


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def peak(pid):
    """Most megabytes that a living process had resident."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def run(args, command, pipeline, settings):
    """What a command took, by row of the table."""
    folder = pipeline.parent
    shutil.rmtree(folder / "work", ignore_errors=True)
    start = time.perf_counter()
    changes = [text for setting in [*args.set, *settings] for text in ("--set", setting)]
    with open(folder / "log", "w") as log:
        child = subprocess.Popen([args.imagedex, command, str(pipeline), *changes], stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command} ended with {child.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
    took = {"the whole command, s": time.perf_counter() - start}
    record = json.loads((folder / "work/run.json").read_text())
    took |= {f"{stage['stage']}, s": stage["seconds"] for stage in record["stages"] if ":" not in stage["stage"] or "load" in stage["stage"]}
    took["memory of imagedex, MB"] = usage.ru_maxrss * 1024 / 1e6
    took["feature table, MB"] = megabytes(folder / "work/features")
    return took


def elasticsearch(server):
    """What the server takes, by row of the table."""
    server.core_ms()
    stats = server.ask("GET", "/whole/_stats/store")["_all"]["primaries"]["store"]["size_in_bytes"]
    return {"memory of Elasticsearch, MB": peak(server.process), "index, MB": stats / 1e6}


def found(summary):
    timings = {(timing["engine"], timing["metric"]): timing for timing in summary["measured"]["search"]}
    print("\n| engine, metric | P@1 | MAP of 100 | engine recall@10 | p50 ms | queries/s in batches |\n|---|---:|---:|---:|---:|---:|")
    pairs = [(each["engine"], metric) for each in summary["evaluations"] for metric in each["modes"][0]["metrics"]]
    for engine, metric in pairs:
        recall = next(entry for entry in metric["engine_recall"] if entry["k"] == 10)
        first = next(entry for entry in metric["micro"]["at"] if entry["k"] == 1)
        timing = timings[engine, metric["metric"]]
        print(f"| {engine}, {metric['metric']} | {first['precision']:.4f} | {metric['micro']['map']:.4f} | {recall['mean']:.4f} "
              f"| {timing['p50_ms']:.2f} | {timing['queries_per_second_batched']:,.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--imagedex", required=True, type=os.path.abspath)
    parser.add_argument("--gallery", required=True, type=os.path.abspath)
    parser.add_argument("--queries", required=True, type=os.path.abspath)
    parser.add_argument("--url", required=True)
    parser.add_argument("--executors", type=int, default=os.cpu_count())
    parser.add_argument("--port", type=int, default=26_150)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    work = args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pipeline = work / "whole.toml"
    texts = {name: json.dumps(getattr(args, name)) for name in ("gallery", "queries", "url")}
    pipeline.write_text(PIPELINE.format(**texts))
    server = Server(args.url)
    alone = run(args, "run", pipeline, []) | elasticsearch(server)
    alone["report, MB"] = megabytes(work / "work/report")
    summary = json.loads((work / "work/report/summary.json").read_text())
    table = table_of(args.imagedex, pipeline)
    with Cluster(args.imagedex, work, args.port, args.executors) as cluster:
        spread = run(args, "extract", pipeline, [f'extract.on="{cluster.address}"'])
        spread["memory of each executor, MB"] = max(peak(process.pid) for process in cluster.processes[1:])
        spread["memory of the scheduler, MB"] = peak(cluster.processes[0].pid)
    same = table == table_of(args.imagedex, pipeline)
    stored = summary["books"]["stored"]
    print(f"{stored:,} pictures; {machine()}; load average {os.getloadavg()[0]:.1f}.\n")
    print(f"| | `run`, one process, {os.cpu_count()} threads | `extract`, {args.executors} executors, 1 thread each |\n|---|---:|---:|")
    for row in dict.fromkeys([*alone, *spread]):
        cells = (f"{took[row]:,.1f}" if row in took else "" for took in (alone, spread))
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"| its table is the first one's | | {'yes' if same else 'NO'} |")
    found(summary)
    if not same:
        sys.exit("tables differ")


if __name__ == "__main__":
    main()
