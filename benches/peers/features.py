"""Feature files: h5py, pyarrow and lance beside our feature table, in turns: writing, reading, size.

    features.py --ours COMMAND [--rows N] [--rounds N]

Rows are a name, a class and 512 numbers, of which one in five is zero. Ours has eight more columns (hashes, sizes, norm, fingerprint, time), and is a
table: a log, checksums, and files that are on the disk when a write returns (fsync). The others return when the system's cache has it,
"on disk" adds the flush. Reading is from the system's cache, into one array of numbers and lists of names.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from turns import Side, load, machine, ratio, serve, spread, take_turns

DIM = 512


def vectors(rows):
    random = np.random.default_rng(0)
    found = random.gamma(1.0, 0.04, (rows, DIM)).astype(np.float32)
    found[random.random((rows, DIM)) < 0.2] = 0
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_h5py(path, numbers, names, labels, kind="f4"):
    import h5py

    with h5py.File(path, "w") as file:
        file["features"] = numbers.astype(kind)
        file["names"], file["labels"] = np.array(names, "S"), np.array(labels, "S")


def read_h5py(path):
    import h5py

    with h5py.File(path) as file:
        return file["features"][:], file["names"][:].tolist(), file["labels"][:].tolist()


def write_h5py_float64(path, numbers, names, labels):
    """As the original program does."""
    write_h5py(path, numbers, names, labels, "f8")


def table(numbers, names, labels):
    import pyarrow as pa

    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), DIM)
    return pa.table({"id": names, "label": labels, "embedding": lists})


def read_table(found):
    numbers = found["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    return numbers, found["id"].to_pylist(), found["label"].to_pylist()


def write_pyarrow(path, *columns):
    import pyarrow.parquet as pq

    # For numbers that hardly repeat, a dictionary costs time and space.
    pq.write_table(table(*columns), path, use_dictionary=["id", "label"], compression="lz4")


def read_pyarrow(path):
    import pyarrow.parquet as pq

    return read_table(pq.read_table(path))


def write_lance(path, *columns):
    import lance

    lance.write_dataset(table(*columns), path)


def read_lance(path):
    import lance

    return read_table(lance.dataset(path).to_table())


WAYS = {
    "h5py": ("h5py, float32", write_h5py, read_h5py),
    "h5py64": ("h5py, float64 as the original", write_h5py_float64, read_h5py),
    "pyarrow": ("pyarrow, Parquet, lz4", write_pyarrow, read_pyarrow),
    "lance": ("lance", write_lance, read_lance),
}


def work(way, numbers, folder):
    numbers = np.fromfile(numbers, np.float32).reshape(-1, DIM)
    names = [f"class{row // 1000}/{row:06}.jpg" for row in range(len(numbers))]
    labels = [f"class{row // 1000}" for row in range(len(numbers))]
    path = Path(folder) / way
    _, write, read = WAYS[way]

    def clear():
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        return 0

    def write_all():
        write(str(path), numbers, names, labels)
        return len(numbers)

    def flush():
        for file in files(path):
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        return 0

    def read_all():
        found = read(str(path))
        assert np.array_equal(found[0][-1], numbers[-1]) and len(found[1]) == len(found[2]) == len(numbers)
        return len(found[0])

    serve(clear=clear, write=write_all, flush=flush, read=read_all, size=lambda: sum(file.stat().st_size for file in files(path)))


def files(path):
    return [file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


class Writer:
    """A side that begins each write with nothing there, which is not counted; the flush is added."""

    def __init__(self, side):
        self.side = side

    def turn(self, task):
        self.side.turn("clear")
        written, flushed = self.side.turn("write"), self.side.turn("flush")
        return written | {"seconds": written["seconds"] + flushed["seconds"], "cached": written["seconds"]}


def main():
    if sys.argv[1:2] == ["--work"]:
        return work(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vectors(args.rows).tofile(f"{folder}/numbers")
        ours = Side([*shlex.split(args.ours), "store", f"{folder}/numbers", folder])
        ways, sizes = {"imagedex write": (ours, "write"), "imagedex read": (ours, "read")}, {}
        sides = {"imagedex": ours}
        for way in WAYS:
            sides[way] = Side([sys.executable, __file__, "--work", way, f"{folder}/numbers", folder])
            ways |= {f"{way} write": (Writer(sides[way]), "write"), f"{way} read": (sides[way], "read")}
            # A reader may come first in a round.
            sides[way].turn("write")
        ours.turn("write")
        results = take_turns(ways, args.rounds)
        sizes = {way: side.turn("size")["found"] for way, side in sides.items()}
    print(f"{args.rows:,} rows of {DIM} numbers, {args.rounds} rounds in turns; thousand rows/s, median (least to most); {machine()}; {load()}.\n")
    print("| way | write, on disk | write, in cache | read | MB | imagedex to this: write | read | in core-ms: write | read |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for way in sides:
        wrote, read = results[f"{way} write"], results[f"{way} read"]
        rate = lambda answers, key="seconds": spread(args.rows / one[key] / 1e3 for one in answers)
        cached = rate(wrote, "cached") if "cached" in wrote[0] else "-"
        name = WAYS[way][0] if way in WAYS else "imagedex, Delta table"
        ratios = [
            f"{ratio(results[f'imagedex {task}'], answers, measure):.2f}"
            for measure in ("seconds", "core_seconds")
            for task, answers in (("write", wrote), ("read", read))
        ]
        print(f"| {name} | {rate(wrote)} | {cached} | {rate(read)} | {sizes[way] / 1e6:.0f} | {' | '.join(ratios)} |")
    print()


if __name__ == "__main__":
    main()
