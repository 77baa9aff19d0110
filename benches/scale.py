"""How long an extract takes on one machine and on a cluster of 1, 2 and 3 executors, whether the tables are the same, and what faults do
to both: the tables of docs/scaling.md.

    scale.py WORK --imagedex PROGRAM [--count N] [--vgg16 N] [--executors N N] [--port PORT]

Pictures are drawn (32 x 32 PNG, no two alike) and go through a small encoder of 512 numbers: what is measured is the cluster, not the
model. --vgg16 adds the same with the real model over so many of them. Each executor has one thread, so that as many as there are cores
share nothing but memory and disk; all run on this machine. A table is compared as what `features export` writes, byte by byte.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from memory import draw, encoder


class Cluster:
    """A scheduler and executors, each a process of its own."""

    def __init__(self, program, folder, port, executors):
        self.program, self.folder, self.port, self.processes = program, folder, port, []
        self.start_scheduler()
        for i in range(1, executors + 1):
            self.start_executor(i)

    @property
    def address(self):
        return f"df://127.0.0.1:{self.port}"

    def start_scheduler(self):
        self.start("scheduler", ["scheduler", "--port", str(self.port), "--executor-timeout", "15"], "scheduler at")

    def start_executor(self, i):
        port = str(self.port + i)
        executor = ["executor", self.address, "--port", port, "--threads", "1", "--work", str(self.folder)]
        self.start(f"executor-{i}", executor, "connected to")

    def start(self, name, arguments, ready):
        log = self.folder / f"{name}.log"
        with open(log, "w") as out:
            process = subprocess.Popen([self.program, "cluster", *arguments], stdout=out, stderr=out)
        self.processes.append(process)
        while ready not in log.read_text():
            if process.poll() is not None:
                sys.exit(f"{name} ended with {process.returncode}:\n{log.read_text()}")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def table_of(program, pipeline):
    """SHA-256 of all vectors, and of all else that the table holds."""
    out = pipeline.parent / "table.npy"
    subprocess.run([program, "features", "export", str(out), str(pipeline)], check=True, stdout=subprocess.DEVNULL)
    files = sorted(pipeline.parent.glob("table*"))
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    for file in files:
        file.unlink()
    return sums


class Bench:
    def __init__(self, program, folder, count, card, port):
        self.program, self.folder, self.port, self.count = program, folder, port, count
        # As by default, or so many that there are some for each executor: whole batches, which the model takes eight pictures at a time.
        self.part = min(256, 8 * max(1, count // 192))
        shutil.rmtree(folder, ignore_errors=True)
        for i in range(count):
            draw(folder / "gallery" / f"{i // 500:03}" / f"{i:06}.png", i)
        model = f'[model]\ncard = "{card}"\npooling = "model"\n' if card else ""
        self.pipeline = folder / "pipeline.toml"
        self.pipeline.write_text(f'work = "work"\n[input]\ngallery = "gallery"\n{model}')

    def extract(self, *settings):
        """Seconds of an extract from nothing, and its process."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        changes = [text for setting in settings for text in ("--set", setting)]
        start = time.perf_counter()
        with open(self.folder / "log", "w") as log:
            return start, subprocess.Popen([self.program, "extract", str(self.pipeline), *changes], stdout=log, stderr=log)

    def extract_on(self, cluster):
        return self.extract(f'extract.on="{cluster.address}"', f"extract.part={self.part}")

    def ended(self, started):
        start, process = started
        code = process.wait()
        seconds = time.perf_counter() - start
        if code:
            sys.exit(f"extract ended with {code}:\n{(self.folder / 'log').read_text()[-3000:]}")
        return seconds

    def rows(self, executors):
        """(What, seconds, whether the table is the first one's.)"""
        truth = None
        for threads in sorted({1, os.cpu_count()}):
            seconds = self.ended(self.extract(f"runtime.threads={threads}"))
            table = table_of(self.program, self.pipeline)
            truth = truth or table
            yield f"one process, {threads} thread{'s' if threads > 1 else ''}", seconds, table == truth
        for number in executors:
            with Cluster(self.program, self.folder, self.port, number) as cluster:
                seconds = self.ended(self.extract_on(cluster))
                yield f"{number} executor{'s' if number > 1 else ''}, 1 thread each", seconds, table_of(self.program, self.pipeline) == truth
        most = max(executors)
        for what, fault in FAULTS:
            with Cluster(self.program, self.folder, self.port, most) as cluster:
                started = self.extract_on(cluster)
                log = self.folder / "executor-1.log"
                while "pictures in" not in log.read_text() and started[1].poll() is None:
                    time.sleep(0.01)
                if started[1].poll() is not None:
                    sys.exit(f"the run ended before {what}: take more pictures")
                fault(cluster)
                yield f"{most} executors, {what}", self.ended(started), table_of(self.program, self.pipeline) == truth


def replace_all(cluster):
    """Kills all executors; then one comes."""
    for executor in cluster.processes[1:]:
        executor.kill()
        executor.wait()
    cluster.start_executor(len(cluster.processes))


def restart(cluster):
    cluster.processes[0].kill()
    cluster.processes[0].wait()
    cluster.start_scheduler()


FAULTS = [
    ("one killed on the way", lambda cluster: cluster.processes[1].kill()),
    ("one stopped on the way", lambda cluster: cluster.processes[1].send_signal(signal.SIGSTOP)),
    ("all killed on the way, and one new one", replace_all),
    ("the scheduler killed on the way, and started again", restart),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--imagedex", required=True)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--vgg16", type=int, default=0)
    parser.add_argument("--executors", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--port", type=int, default=26_050)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    work, program = args.work.resolve(), os.path.abspath(args.imagedex)
    sets = [(f"{args.count:,} pictures, matrix of 512", args.count, encoder(work))]
    if args.vgg16:
        sets.append((f"{args.vgg16:,} pictures, VGG16", args.vgg16, None))
    differ = False
    for name, count, card in sets:
        bench = Bench(program, work / f"pictures-{count}", count, card, args.port)
        print(f"\n| {name}, parts of {bench.part} | seconds | pictures/s | the same table |\n|---|---|---|---|", flush=True)
        for what, seconds, same in bench.rows(args.executors):
            differ |= not same
            print(f"| {what} | {seconds:.1f} | {count / seconds:,.0f} | {'yes' if same else 'NO'} |", flush=True)
        shutil.rmtree(bench.folder)
    if differ:
        sys.exit("tables differ")


if __name__ == "__main__":
    main()
