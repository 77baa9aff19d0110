"""Checks intervals and tests against scipy, on the draws that docs/metrics.md describes.

Reads a JSON object a line: values `a` and `b` of the same queries, and what imagedex made of them. Prints, for each, how far every
figure is from scipy's.
"""

import json
import sys

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
MASK = (1 << 128) - 1
STATE, STREAM = 2_718_281_828_459_045, 3_141_592_653_589_793


def numbers(count):
    """The first numbers of the stream: PCG64, its state set as the Rust crate rand_pcg sets it."""
    increment = (STREAM << 1 | 1) & MASK
    state = ((STATE + increment) * MULTIPLIER + increment) & MASK
    generator = np.random.PCG64()
    generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": increment},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return generator.random_raw(count)


def indices(n, draws):
    """Rows of each bootstrap draw, [draws, n]: number * n / 2^64, in halves that fit 64 bits."""
    raw, n64 = numbers(n * draws), np.uint64(n)
    high, low = raw >> np.uint64(32), raw & np.uint64(0xFFFFFFFF)
    return ((high * n64 + (low * n64 >> np.uint64(32))) >> np.uint64(32)).astype(np.int64).reshape(draws, n)


def flips(n, draws):
    """Whether each difference changes its sign in each draw, [draws, n]: a bit each, from the lowest."""
    words = -(-n // 64)
    raw = numbers(words * draws).reshape(draws, words, 1)
    return (raw >> np.arange(64, dtype=np.uint64) & np.uint64(1)).reshape(draws, words * 64)[:, :n].astype(bool)


class Replay(np.random.Generator):
    """Hands scipy our draws where it asks for random ones."""

    def __init__(self, n, draws):
        super().__init__(np.random.PCG64())
        self.n, self.draws = n, draws

    def integers(self, low, high=None, size=None, **_):
        assert (low, high, tuple(size)) == (0, self.n, (self.draws, self.n)), (low, high, size)
        return indices(self.n, self.draws)

    def permuted(self, x, axis=None, **_):
        assert x.shape == (self.draws, self.n, 2) and axis == -1, (x.shape, axis)
        flip = flips(self.n, self.draws)[:, :, None]
        return np.where(flip, x[:, :, ::-1], x)


def mean_difference(a, b, axis):
    return np.mean(a - b, axis=axis)


def interval_of(values, draws):
    if np.ptp(values) == 0:
        return values[0], values[0]
    found = bootstrap(
        (values,), np.mean, n_resamples=draws, method="BCa", rng=Replay(len(values), draws), vectorized=True
    ).confidence_interval
    return found.low, found.high


def check(case):
    a, b, draws = np.array(case["a"]), np.array(case["b"]), case["draws"]
    comparison = case["comparison"]
    if comparison["a"] == "b":
        a_first, b_first = b, a
    else:
        a_first, b_first = a, b
    differences = a_first - b_first
    low, high = interval_of(a, draws)
    off = {"low": low - case["interval"]["low"], "high": high - case["interval"]["high"]}
    off["difference"] = differences.mean() - comparison["difference"]
    # scipy flips what we flip only if it subtracts in the same order.
    low, high = interval_of(a - b, draws)
    low, high = (low, high) if comparison["a"] == "a" else (-high, -low)
    off["difference low"] = low - comparison["interval"]["low"]
    off["difference high"] = high - comparison["interval"]["high"]
    off["wins"] = int((differences > 0).sum()) - comparison["wins"]
    off["losses"] = int((differences < 0).sum()) - comparison["losses"]
    # Few queries that differ: all signs, which scipy tries where there are no more of them than draws.
    differing = np.flatnonzero(a != b)
    if len(differing) <= 13:
        a, b = a[differing], b[differing]
    if len(differing) < 2:
        p = 1.0
    else:
        p = permutation_test(
            (a, b),
            mean_difference,
            permutation_type="samples",
            n_resamples=draws,
            batch=draws,
            rng=Replay(len(a), draws),
            vectorized=True,
        ).pvalue
    off["p"] = p - comparison["p"]
    if case["wilson"]:
        found = binomtest(int(np.sum(case["a"])), len(case["a"])).proportion_ci(method="wilson")
        off["wilson low"] = found.low - case["wilson"]["low"]
        off["wilson high"] = found.high - case["wilson"]["high"]
    return {name: abs(float(value)) for name, value in off.items()}


def by_class(values, classes):
    return np.mean([np.mean(values[classes == one]) for one in np.unique(classes)])


def check_classes(case):
    values, classes, draws = np.array(case["values"]), np.array(case["classes"]), case["draws"]
    found = bootstrap(
        (values, classes),
        by_class,
        n_resamples=draws,
        method="BCa",
        rng=Replay(len(values), draws),
        vectorized=False,
        paired=True,
    ).confidence_interval
    interval = case["interval"]
    return {"class low": abs(found.low - interval["low"]), "class high": abs(found.high - interval["high"])}


for line in sys.stdin:
    case = json.loads(line)
    print(json.dumps(check_classes(case) if "classes" in case else check(case)), flush=True)
