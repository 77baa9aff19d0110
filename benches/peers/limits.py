"""What the machine allows: its rate of matrix products in each precision, its memory bandwidth, and how near imagedex comes, in turns.

    limits.py PICTURES --ours COMMAND [--count N] [--rounds N]

Products of 2048 x 2048 matrices, four in a row, by OpenVINO, whose kernels imagedex uses; fp32 also by numpy's BLAS. VGG16 without its top is
15.35 thousand million multiply-adds a picture: at that rate, and with decoding, no more pictures a second come out than "allowed".
A convolution can beat it only by doing fewer multiplications (Winograd).
"""

import argparse
import shlex
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from embed import SIDE, some_of
from turns import CORES, Side, load, machine, serve, spread, take_turns

EDGE, CHAIN = 2048, 4
GEMM = 2 * EDGE**3 * CHAIN
# Of floats: more than any cache holds.
ROWS, COLUMNS = 200_000, 512


LIMITS = [
    ("blas", "fp32 products, numpy's BLAS", "GFLOP/s"),
    ("fp32", "fp32 products, OpenVINO", "GFLOP/s"),
    ("bf16", "bf16 products, OpenVINO", "GFLOP/s"),
    ("int8", "int8 products, OpenVINO", "GOP/s"),
    ("read", "reading memory: numpy, matrix by vector", "GB/s"),
    ("copy", "copying, both ways counted", "GB/s"),
]


def vgg16():
    """Multiplications and additions of the 13 convolutions."""
    total, side, channels = 0, SIDE, 3
    for block, width in enumerate([64, 128, 256, 512, 512]):
        for _ in range(3 if block > 1 else 2):
            total += 2 * side**2 * 9 * channels * width
            channels = width
        side //= 2
    return total


def product(precision):
    import openvino as ov
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    least, most = np.float32(0), np.float32(255)
    given = op.parameter([EDGE, EDGE], np.float32)
    found = given
    for _ in range(CHAIN):
        matrix = random.integers(-127, 128, (EDGE, EDGE)).astype(np.float32)
        if precision == "int8":
            found = op.fake_quantize(found, least, most, least, most, 256)
            matrix = op.fake_quantize(op.constant(matrix), -most / 2, most / 2, -most / 2, most / 2, 255)
        found = op.relu(op.matmul(found, matrix, False, True))
        if precision == "int8":
            # Back into the range that the next one quantises.
            found = op.multiply(found, np.float32(1e-4))
    compiled = ov.Core().compile_model(
        ov.Model([found], [given]),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"},
    )
    request = compiled.create_infer_request()
    ones = random.integers(0, 256, (EDGE, EDGE)).astype(np.float32)
    return lambda: request.infer({0: ones}, share_inputs=True) and GEMM


def work():
    # Made and thrown away once: a square matrix by BLAS, and what does not fit into caches.
    square = np.ones((EDGE, EDGE), np.float32)
    many, other = np.ones((ROWS, COLUMNS), np.float32), np.ones((ROWS, COLUMNS), np.float32)
    one = np.ones(COLUMNS, np.float32)
    pool = ThreadPoolExecutor(CORES)
    parts = [slice(ROWS * i // CORES, ROWS * (i + 1) // CORES) for i in range(CORES)]

    def blas():
        for _ in range(CHAIN):
            square @ square
        return GEMM

    def read():
        for _ in range(5):
            many @ one
        return 5 * many.nbytes

    def copy():
        for _ in range(3):
            list(pool.map(lambda part: np.copyto(other[part], many[part]), parts))
        return 3 * 2 * many.nbytes

    products = {precision: product(precision) for precision in ("fp32", "bf16", "int8")}
    serve(blas=blas, read=read, copy=copy, **products)


def main():
    if sys.argv[1:2] == ["--work"]:
        return work()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--ours", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    paths = some_of(args.pictures, args.count)
    with tempfile.TemporaryDirectory() as folder:
        Path(f"{folder}/list").write_text("\n".join(paths))
        side = Side([sys.executable, __file__, "--work"])
        ways = {name: (side, name) for name in ("blas", "fp32", "bf16", "int8", "read", "copy")}
        for precision in ("fp32", "bf16", "int8"):
            ours = Side([*shlex.split(args.ours), "embed", f"{folder}/list", precision, "openvino"])
            ways |= {f"{precision} run": (ours, "run"), f"{precision} decode": (ours, "decode")}
        results = take_turns(ways, args.rounds)
    rates = lambda way, cores=1, measure="seconds": [cores * answer["found"] / answer[measure] / 1e9 for answer in results[way]]
    # What all cores would do if nobody else had them.
    undisturbed = lambda way: statistics.median(rates(way, CORES, "core_seconds"))
    print(f"{args.rounds} rounds in turns; median (least to most); {machine()}; {load()}.\n")
    print("| limit | measured | cores x rate by core-seconds | |\n|---|---:|---:|---|")
    for way, name, unit in LIMITS:
        print(f"| {name} | {spread(rates(way), 0)} | {undisturbed(way):,.0f} | {unit} |")
    print(f"\nVGG16 is {vgg16() / 1e9:.1f} GFLOP a picture; {len(paths)} pictures. All by core-seconds, the rate included.\n")
    print("| precision | model at that rate, core-ms | decode, core-ms | allowed, /s | files to vectors, core-ms | reached |")
    print("|---|---:|---:|---:|---:|---:|")
    for precision in ("fp32", "bf16", "int8"):
        rate = max(undisturbed(way) for way in ([precision, "blas"] if precision == "fp32" else [precision]))
        each = lambda task: statistics.median(answer["core_seconds"] for answer in results[f"{precision} {task}"]) / len(paths) * 1e3
        model, decode, run = vgg16() / 1e6 / rate * CORES, each("decode"), each("run")
        allowed = CORES * 1e3 / (model + decode)
        print(f"| {precision} | {model:.1f} | {decode:.2f} | {allowed:.1f} | {run:.1f} | {(model + decode) / run * 100:.0f} % |")
    print()


if __name__ == "__main__":
    main()
