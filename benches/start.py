"""How long a command takes that has next to nothing to do: the table "Start" of docs/benchmarks.md.

    start.py WORK --imagedex PROGRAM --picture FILE [--rounds N]

Whole commands, from `exec` to exit. `extract` of one picture begins without a table, so the picture has been found, hashed, decoded,
embedded and committed with its checksums when it ends; the first round, which fills the caches of the system, does not count.
`extract`, nothing changed: of one picture that is stored, which needs no model.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from turns import load, machine, spread  # noqa: E402

SETTINGS = [("cpu", "fp32"), ("cpu", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]


def seconds(*command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--imagedex", required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    (args.work / "gallery").mkdir(parents=True)
    shutil.copy(args.picture, args.work / "gallery")
    program = os.path.abspath(args.imagedex)
    pipeline = args.work / "pipeline.toml"
    pipeline.write_text('work = "work"\n[input]\ngallery = "gallery"\n')
    first, again = {way: [] for way in SETTINGS}, []
    for turn in range(args.rounds + 1):
        for provider, precision in SETTINGS:
            shutil.rmtree(args.work / "work", ignore_errors=True)
            command = [program, "extract", str(pipeline)]
            command += ["--set", f"model.provider={provider}", "--set", f"model.precision={precision}"]
            found = seconds(*command), seconds(*command)
            if turn > 0:
                first[provider, precision].append(found[0])
                again.append(found[1])
    print(f"One picture, {args.rounds} rounds in turns; {machine()}; {load()}.\n")
    print("| command | provider | precision | seconds |\n|---|---|---|---:|")
    for (provider, precision), times in first.items():
        print(f"| `extract` | `{provider}` | `{precision}` | {spread(times, 2)} |")
    print(f"| `extract`, nothing changed | | | {spread(again, 2)} |")


if __name__ == "__main__":
    main()
