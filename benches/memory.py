"""What each command takes: memory at most, as the operating system counts it (peak resident memory), for the table of
docs/memory.md, and time, for that of docs/benchmarks.md.

    memory.py WORK --imagedex PROGRAM [--counts N N] [--url URL] [--vgg16 N] [--only COMMAND COMMAND]

Pictures are drawn (32 x 32 PNG, no two alike) and go through a small encoder of 512 numbers, so that 100,000 take minutes and the
figures show the pipeline, not the model. --vgg16 adds a column with the real model over so many of them, --url a load into that
Elasticsearch. The last column says what one more picture costs in memory, between the two largest counts; in time, between each
two: where these are alike, the cost of a picture does not grow with their number.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
DIM = 512
QUERIES = 100
CLASS = 500


def field(number, value):
    """A field of a protobuf message: an integer, text, bytes."""

    def varint(value):
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes(out) + bytes([value])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def encoder(folder):
    """An ONNX model beside its card: the pixels times a matrix of numbers from 0 to 1."""
    weights = np.random.default_rng(0).random((SIDE * SIDE * 3, DIM), dtype=np.float32)

    def node(kind, inputs, output, attribute=b""):
        return field(1, b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind) + attribute)

    def integer(name, value):
        return field(5, field(1, name) + field(3, value) + field(20, 2))

    def tensor(name, kind, dimensions):
        sizes = b"".join(field(1, field(2, "n") if size is None else field(1, size)) for size in dimensions)
        return field(1, name) + field(2, field(1, field(1, kind) + field(2, sizes)))

    initializer = b"".join(field(1, size) for size in weights.shape) + field(2, 1) + field(8, "w") + field(9, weights.tobytes())
    graph = (
        node("Cast", ["rgb"], "float", integer("to", 1))
        + node("Flatten", ["float"], "flat", integer("axis", 1))
        + node("MatMul", ["flat", "w"], "vector")
        + field(2, "encoder")
        + field(5, initializer)
        + field(11, tensor("rgb", 2, [None, SIDE, SIDE, 3]))
        + field(12, tensor("vector", 1, [None, DIM]))
    )
    model = field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))
    (folder / "encoder.onnx").write_bytes(model)
    card = folder / "encoder.toml"
    card.write_text(
        "name = 'encoder'\ndescription = 'a matrix'\nlicence = 'MIT'\nsource = 'benches/memory.py'\ninput = 'rgb'\noutput = 'vector'\n"
        f"side = {SIDE}\ndim = {DIM}\nnon_negative = true\nresize = 'bilinear'\n"
        f"[[file]]\nfile = 'encoder.onnx'\nformat = 'fp32'\nsha256 = '{hashlib.sha256(model).hexdigest()}'\n"
    )
    return card


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


class Bench:
    def __init__(self, program, folder, count, card, url):
        self.program, self.folder, self.url = program, folder, url
        shutil.rmtree(folder, ignore_errors=True)
        self.pictures = [folder / "gallery" / f"{i // CLASS:03}" / f"{i:06}.png" for i in range(count)]
        for i, path in enumerate(self.pictures):
            draw(path, i)
        for i in range(QUERIES):
            draw(folder / "queries" / f"{i * count // QUERIES // CLASS:03}" / f"{i:06}.png", 10_000_000 + i)
        self.pipeline = folder / "pipeline.toml"
        model = f'[model]\ncard = "{card}"\npooling = "model"\n' if card else ""
        server = f'[load.elasticsearch]\nurl = "{url}"\nalias = "memory-{count}"\n' if url else ""
        self.pipeline.write_text(f'work = "work"\n[input]\ngallery = "gallery"\nqueries = "queries"\n{model}{server}')

    def taken(self, *command):
        """Bytes that the command took at most, it and what it started, and seconds."""
        start = time.perf_counter()
        with open(self.folder / "log", "w") as log:
            child = subprocess.Popen([self.program, *map(str, command)], stdout=log, stderr=log)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{(self.folder / 'log').read_text()[-2000:]}")
        return usage.ru_maxrss * 1024, time.perf_counter() - start

    def change(self):
        """Of a hundred pictures one is drawn anew, one has another name, one is gone."""
        for i, path in enumerate(self.pictures):
            match i % 100:
                case 10:
                    draw(path, 20_000_000 + i)
                case 40:
                    path.rename(path.with_name(f"renamed-{path.name}"))
                case 70:
                    path.unlink()

    def rows(self, only):
        """What each command took; of all, or `only` of those."""
        for name, run in self.commands():
            if not only or name in only or name == "extract":
                yield name, run()

    def commands(self):
        at = self.pipeline
        yield "extract", lambda: self.taken("extract", at)
        yield "extract, nothing changed", lambda: self.taken("extract", at)
        yield "load, flat", lambda: self.taken("load", at)
        for ending in ["h5", "npy", "csv", "parquet"]:
            out = self.folder / f"features.{ending}"
            yield f"features export, .{ending}", lambda: self.taken("features", "export", out, at)
            out.unlink(missing_ok=True)
        yield "sql, count(*) by label", lambda: self.taken("sql", "SELECT label, count(*) FROM features GROUP BY label", at)
        yield "search", lambda: self.taken("search", self.pictures[0], "--pipeline", at)
        yield f"evaluate, {QUERIES} queries", lambda: self.taken("evaluate", at)
        yield "report", lambda: self.taken("report", at)
        self.change()
        yield "extract, 1 % changed, 1 % renamed, 1 % gone", lambda: self.taken("extract", at)
        for engine in ["hnsw", *(["elasticsearch"] if self.url else [])]:
            # One graph: each metric has its own, and takes as long again.
            yield f"load, {engine}", lambda: self.taken("load", at, "--set", f"load.engine={engine}", "--set", "evaluate.metrics=[\"cosine\"]")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--imagedex", required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 60_000, 100_000])
    parser.add_argument("--url", default="")
    parser.add_argument("--vgg16", type=int)
    parser.add_argument("--only", nargs="+", default=[], help="commands as the table calls them; `extract` is always done")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    work, program = args.work.resolve(), os.path.abspath(args.imagedex)
    card = encoder(work)
    runs = [(f"{count:,}", count, card) for count in args.counts]
    if args.vgg16:
        runs.append((f"VGG16, {args.vgg16:,}", args.vgg16, None))
    columns = {}
    for name, count, card in runs:
        columns[name] = {}
        bench = Bench(program, work / name.replace(", ", "-"), count, card, args.url)
        for command, (peak, seconds) in bench.rows(args.only):
            print(f"{name}: {command}: {peak / 1e6:.0f} MB, {seconds:.2f} s", file=sys.stderr, flush=True)
            columns[name][command] = peak, seconds
        shutil.rmtree(bench.folder)
    small = [(name, count) for name, count, card in runs if card]
    steps = list(zip(small, small[1:]))

    def slope(command, what, step):
        (smaller, few), (larger, many) = step
        return (columns[larger][command][what] - columns[smaller][command][what]) / (many - few)

    last = steps[-1:]
    print(f"| {' | '.join(['peak resident memory, MB', *columns] + ['bytes a picture'] * len(last))} |")
    print(f"|---|{'---:|' * (len(columns) + len(last))}")
    for command in columns[small[-1][0]]:
        cells = [f"{column[command][0] / 1e6:.0f}" for column in columns.values()]
        cells += [f"{slope(command, 0, step):,.0f}" for step in last]
        print(f"| {command} | {' | '.join(cells)} |")

    between = [f"µs a picture, {smaller} to {larger}" for (smaller, _), (larger, _) in steps]
    print(f"\n| {' | '.join(['seconds', *columns, *between])} |\n|---|{'---:|' * (len(columns) + len(steps))}")
    for command in columns[small[-1][0]]:
        cells = [f"{column[command][1]:.2f}" for column in columns.values()]
        cells += [f"{slope(command, 1, step) * 1e6:,.0f}" for step in steps]
        print(f"| {command} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
