"""Sides of a comparison, each a process of its own that works when it is told to and sleeps otherwise.

Nothing of one library (threads that spin, memory, caches) is then in another's way, and what disturbs the machine for a while
disturbs all of them: `take_turns` goes round the sides again and again, each time beginning with another one.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

CORES = os.cpu_count()
# Threads of one side that wait must not take the cores of the side whose turn it is.
QUIET = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


class Side:
    """A process that answers each line, a task, with a line of JSON: seconds, core_seconds, found."""

    def __init__(self, command):
        self.command, self.errors = command, tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={"OMP_NUM_THREADS": str(CORES)} | os.environ | QUIET,
        )
        self.answer("ready")

    def turn(self, task):
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return json.loads(self.answer("{"))

    def answer(self, beginning):
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(self.command)} ended: {said}")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def serve(**tasks):
    """The other end of a `Side`. A task is called with the words that follow its name, and returns what it found, a number."""
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print where they like.
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, *words = line.split()
        started, busy = time.perf_counter(), core_seconds()
        found = tasks[name](*words)
        answer = {"seconds": time.perf_counter() - started, "core_seconds": core_seconds() - busy, "found": found}
        print(json.dumps(answer), file=answers, flush=True)


def core_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def take_turns(ways, rounds):
    """`ways`: name -> (side, task). One turn each that does not count, then `rounds` that do: name -> list of answers."""
    names = list(ways)
    results = {name: [] for name in names}
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            side, task = ways[name]
            answer = side.turn(task)
            print(json.dumps({"way": name, "turn": turn} | answer), file=sys.stderr, flush=True)
            if turn > 0:
                results[name].append(answer)
    return results


def spread(numbers, digits=1):
    """Median (least to most)."""
    numbers = list(numbers)
    return f"{statistics.median(numbers):,.{digits}f} ({min(numbers):,.{digits}f} to {max(numbers):,.{digits}f})"


def ratio(ours, other, measure="seconds"):
    """How often as fast ours is: median of the ratios within each round. Core-seconds bear it when other programs run."""
    return statistics.median(b[measure] / a[measure] for a, b in zip(ours, other))


# What decides which kernels a library can choose.
WIDE = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "avx_vnni", "asimddp", "bf16", "i8mm", "sve"]


def machine():
    info = open("/proc/cpuinfo").read().splitlines()
    value = lambda key: next((line.split(":")[1].strip() for line in info if line.startswith(key)), "")
    has = set((value("flags") or value("Features")).split())
    name = value("model name") or platform.machine()
    return f"{CORES} cores of {name}; {' '.join(flag for flag in WIDE if flag in has)}; Python {platform.python_version()}"


def load():
    """What else the machine is doing, for the reader to judge by."""
    return f"load average {os.getloadavg()[0]:.1f}"
