"""What a feature table of very many files costs to open: a simulation of the log that 1e9 pictures leave before they are compacted.

    many_files.py TABLE SCRATCH IMAGEDEX FILES [FILES ...]

Takes a file of a real table, gives it as many further names as are asked for (hard links: nothing is copied), and writes a Delta log
that has them all, a commit for each hundred. Then `imagedex sql` counts the rows, for which the log is enough, and looks for two keys: one
that the log's least and greatest ids rule out everywhere, and one that every file may hold. The last is what a commit asks of pictures
that do not come in the order of their ids. The rows are the same over and over; only the log and the number of files are a large table's.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

A_COMMIT = 100


def many(table, folder, files):
    first = sorted(Path(table, "_delta_log").glob("*.json"))
    actions = [json.loads(line) for path in first for line in open(path)]
    made = [action for action in actions if "protocol" in action or "metaData" in action]
    add = next(action["add"] for action in actions if "add" in action)
    log = folder / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("".join(json.dumps(action) + "\n" for action in made))
    original = folder / "part-0.parquet"
    original.write_bytes(Path(table, add["path"]).read_bytes())
    for version, start in enumerate(range(0, files, A_COMMIT), 1):
        lines = []
        for number in range(start, min(files, start + A_COMMIT)):
            name = f"part-{number}.parquet"
            if number:
                # A file may have so many names only.
                if number % 50_000 == 0:
                    original = folder / name
                    original.write_bytes((folder / "part-0.parquet").read_bytes())
                else:
                    os.link(original, folder / name)
            lines.append(json.dumps({"add": add | {"path": name}}))
        (log / f"{version:020}.json").write_text("\n".join(lines) + "\n")
    stats = json.loads(add["stats"])
    return stats["numRecords"], stats["minValues"]["id"]


def main():
    table, scratch, imagedex, *counts = sys.argv[1:]
    print("| files | rows | processor seconds: count | a key no file can hold | a key each may hold | peak MB of all so far |")
    print("|---:|---:|---:|---:|---:|---:|")
    for files in map(int, counts):
        folder = Path(scratch, f"many-{files}")
        rows, least = many(table, folder / "features", files)
        pipeline = folder / "many.toml"
        pipeline.write_text('work = "work"\n[input]\ngallery = "gallery"\n[features]\ntable = "features"\n')
        (folder / "gallery").mkdir()
        # Just behind the least id: between it and the greatest, and no picture's.
        asked = [("", rows * files), ("WHERE id = '~'", 0), (f"WHERE id = '{least}~'", 0)]
        used = [run(imagedex, pipeline, f"SELECT count(*) AS n FROM features {where}", n) for where, n in asked]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000
        print(f"| {files:,} | {rows * files:,} | " + " | ".join(f"{seconds:.1f}" for seconds in used) + f" | {peak:,} |", flush=True)


def run(imagedex, pipeline, query, expected):
    """Processor seconds of a query whose answer is known."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([imagedex, "sql", query, str(pipeline), "--format", "csv"], capture_output=True, text=True)
    if said.returncode or said.stdout.split() != ["n", str(expected)]:
        sys.exit(f"{query}: {said.returncode} {said.stdout[-200:]} {said.stderr[-400:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
