"""How well near duplicates are told from like pictures: the table of docs/metrics.md.

    near_duplicates.py FOLDER WORK --imagedex PROGRAM

Every picture below FOLDER is a gallery picture, and a query once more in each of three forms: saved again as JPEG of quality 60 and 30,
and at half its size. Features are int8's. Prints, for limits around those that imagedex uses, which share of the queries finds its
original, and how many pairs of different pictures look the same.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

FORMS = {
    "JPEG, quality 60": lambda image: (image, 60),
    "JPEG, quality 30": lambda image: (image, 30),
    "half as wide and high": lambda image: (image.resize((image.width // 2, image.height // 2), Image.LANCZOS), 85),
}
LIMITS = [(6, 0.93), (8, 0.90), (8, 0.92), (8, 0.94), (8, 0.96), (10, 0.94)]


def save_again(source, target, form):
    for path in sorted(source.rglob("*.jpg")):
        image, quality = form(Image.open(path).convert("RGB"))
        out = target / path.relative_to(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        image.save(out, quality=quality)


def features(program, source, queries, work):
    pipeline = work / "pipeline.toml"
    pipeline.write_text(
        f'work = "{work}/run"\n[input]\ngallery = "{source}"\nqueries = "{queries}"\nlabel = "none"\nmax_failures = 0\n'
        '[model]\nprecision = "int8"\nprovider = "openvino"\n'
    )
    out = work / "features.parquet"
    subprocess.run([program, "extract", pipeline], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([program, "features", "export", out, pipeline], check=True, stdout=subprocess.DEVNULL)
    rows = pq.read_table(out).sort_by([("split", "ascending"), ("id", "ascending")])
    gallery = np.array(rows["split"].to_pylist()) == "gallery"
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    hashes = rows["dhash"].to_numpy().view(np.uint64)
    ids = np.array(rows["id"].to_pylist())
    assert (ids[gallery] == ids[~gallery]).all()
    bits = np.bitwise_count(hashes[~gallery][:, None] ^ hashes[gallery][None, :])
    return vectors[~gallery] @ vectors[gallery].T, bits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--imagedex", required=True)
    args = parser.parse_args()
    print("| saved again as | bits | cosine | found | false pairs |\n|---|---:|---:|---:|---:|")
    for i, (name, form) in enumerate(FORMS.items()):
        work = (args.work / str(i)).resolve()
        save_again(args.folder, work / "queries", form)
        cosine, bits = features(args.imagedex, args.folder.resolve(), work / "queries", work)
        same = np.eye(len(cosine), dtype=bool)
        for most, least in LIMITS:
            near = (bits <= most) & (cosine >= least)
            print(f"| {name} | {most} | {least:.2f} | {near[same].mean():.1%} | {near[~same].sum()} |")


if __name__ == "__main__":
    main()
