"""Exact search in 200,000 x 512 vectors with numpy, FAISS and usearch: what benches/search.rs does with `flat`.

One line for each library, metric and number of queries at once: queries a second, of the fastest round in two seconds. Each at its best
settings: numpy by BLAS and argpartition (L1 in blocks), FAISS with its BLAS threshold at 20 and OpenMP threads that wait passively,
usearch with all cores. `exact_search.py table` makes a table of such lines on standard input, of several turns.
"""

import os
import sys
import time

if sys.argv[1:] == ["table"]:
    fastest = {}
    for line in sys.stdin:
        name, metric, count, rate = line.split()
        key = (metric, int(count), name)
        fastest[key] = max(float(rate), fastest.get(key, 0.0))
    names = ["flat", "numpy", "faiss", "usearch"]
    print("| queries/s, fastest turn | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for metric, count in sorted({key[:2] for key in fastest}):
        cells = (f"{fastest[metric, count, name]:.1f}" if (metric, count, name) in fastest else "-" for name in names)
        print(f"| {metric}, {count} at once | " + " | ".join(cells) + " |")
    sys.exit()

os.environ["OMP_WAIT_POLICY"] = "passive"

import faiss
import numpy as np
from usearch.index import MetricKind, search

ROWS, DIM, K, SECONDS = 200_000, 512, 10, 2.0

faiss.cvar.distance_compute_blas_threshold = 20
random = np.random.default_rng(1)
rows = np.maximum(random.random((ROWS, DIM), dtype=np.float32) - 0.5, 0)
asked = np.maximum(random.random((64, DIM), dtype=np.float32) - 0.5, 0)
norms = np.linalg.norm(rows, axis=1)
squares = norms**2
unit = rows / norms[:, None]


def nearest(scores):
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    return np.take_along_axis(best, np.argsort(np.take_along_axis(scores, best, axis=1), axis=1), axis=1)


def numpy_search(metric, queries):
    if metric == "l1":
        blocks = [np.abs(rows[start : start + 500, None] - queries[None]).sum(axis=2) for start in range(0, ROWS, 500)]
        return nearest(-np.concatenate(blocks).T)
    scores = queries @ rows.T
    if metric == "cosine":
        scores /= norms
    elif metric == "l2":
        scores = 2 * scores - squares
    return nearest(scores)


def faiss_index(metric):
    kind = {"cosine": faiss.METRIC_INNER_PRODUCT, "dot_product": faiss.METRIC_INNER_PRODUCT, "l1": faiss.METRIC_L1, "l2": faiss.METRIC_L2}
    index = faiss.IndexFlat(DIM, kind[metric])
    index.add(unit if metric == "cosine" else rows)
    return index


USEARCH = {"cosine": MetricKind.Cos, "dot_product": MetricKind.IP, "l2": MetricKind.L2sq}

for metric in ["cosine", "dot_product", "l1", "l2"]:
    index = faiss_index(metric)
    ways = {"numpy": lambda queries: numpy_search(metric, queries), "faiss": lambda queries: index.search(queries, K)}
    if metric in USEARCH:
        ways["usearch"] = lambda queries: search(rows, queries, K, USEARCH[metric], exact=True, threads=os.cpu_count())
    for name, way in ways.items():
        for count in [1, 64]:
            # A batch by L1 takes numpy a minute: it is no choice, and one query says so.
            if (name, metric, count) == ("numpy", "l1", 64):
                continue
            started, fastest = time.perf_counter(), float("inf")
            while time.perf_counter() - started < SECONDS:
                round_started = time.perf_counter()
                way(asked[:count])
                fastest = min(fastest, time.perf_counter() - round_started)
            print(f"{name} {metric} {count} {count / fastest:.1f}", flush=True)
