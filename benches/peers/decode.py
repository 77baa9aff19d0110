"""One thread, from a file's bytes in memory to 224 x 224 pixels: Pillow, OpenCV, libjpeg-turbo, torchvision beside imagedex, in turns.

    decode.py PICTURES --ours COMMAND [--count N] [--rounds N] [--pytorch PYTHON]

The nearest pixel is taken, as Keras' `load_img` does. "Scaled" ways leave the work of the full size out: the decoder gives a half, a quarter
or an eighth of the picture where that is large enough. Their pixels are other pixels. Only JPEG files count.
"""

import argparse
import io
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from embed import SIDE, some_of
from turns import Side, load, machine, ratio, serve, spread, take_turns


def pillow(files, scaled=False):
    import numpy as np
    from PIL import Image

    for file in files:
        image = Image.open(io.BytesIO(file))
        if scaled:
            image.draft("RGB", (SIDE, SIDE))
        np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))


def opencv(files):
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    for file in files:
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def turbo(files, scaled=False):
    import numpy as np
    import simplejpeg

    smallest = {"min_width": SIDE, "min_height": SIDE} if scaled else {}
    for file in files:
        image = simplejpeg.decode_jpeg(file, "RGB", **smallest)
        rows, columns = (((np.arange(SIDE) + 0.5) * size / SIDE).astype(int) for size in image.shape[:2])
        image[rows[:, None], columns]


def torchvision(files):
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)
    for file in files:
        image = decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), mode=ImageReadMode.RGB)
        torch.nn.functional.interpolate(image[None], (SIDE, SIDE), mode="nearest")


NAMES = {
    "imagedex": "imagedex (mozjpeg, as libjpeg-turbo)",
    "image": "crate `image` (zune-jpeg)",
    "pillow": "Pillow",
    "opencv": "OpenCV",
    "turbo": "simplejpeg (libjpeg-turbo), numpy",
    "torchvision": "torchvision",
    "pillow_scaled": "Pillow, `draft`: scaled",
    "turbo_scaled": "simplejpeg: scaled",
}


def work(list):
    files = [Path(path).read_bytes() for path in Path(list).read_text().splitlines()]
    task = lambda way, **options: lambda: way(files, **options) or len(files)
    serve(
        pillow=task(pillow),
        opencv=task(opencv),
        turbo=task(turbo),
        torchvision=task(torchvision),
        pillow_scaled=task(pillow, scaled=True),
        turbo_scaled=task(turbo, scaled=True),
    )


def main():
    if sys.argv[1:2] == ["--work"]:
        return work(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--ours", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pytorch", help="the Python that has torchvision")
    args = parser.parse_args()
    paths = [path for path in some_of(args.pictures, 10**9) if Path(path).read_bytes()[:3] == b"\xff\xd8\xff"]
    paths = [paths[i * len(paths) // args.count] for i in range(min(args.count, len(paths)))]
    if not paths:
        raise SystemExit(f"no JPEG files in {args.pictures}: decoding is left out")
    with tempfile.NamedTemporaryFile("w") as list:
        list.write("\n".join(paths))
        list.flush()
        pythons = {None: Side([sys.executable, __file__, "--work", list.name])}
        if args.pytorch:
            pythons["torchvision"] = Side([args.pytorch, __file__, "--work", list.name])
        ours = Side([*shlex.split(args.ours), "decode", list.name])
        ways = {}
        for way in NAMES:
            if way in ("imagedex", "image"):
                ways[way] = (ours, way)
            elif way != "torchvision" or args.pytorch:
                ways[way] = (pythons.get(way, pythons[None]), way)
        results = take_turns(ways, args.rounds)
    megapixels = sum(size(path) for path in paths) / len(paths) / 1e6
    print(f"{len(paths)} JPEG files of {megapixels:.2f} megapixels, one thread, {args.rounds} rounds in turns; median (least to most); ", end="")
    print(f"{machine()}; {load()}.\n\n| way | pictures/s | core-ms a picture | imagedex to this | the same in core-ms |\n|---|---:|---:|---:|---:|")
    for way, answers in results.items():
        rates = spread((len(paths) / one["seconds"] for one in answers), 0)
        core_ms = statistics.median(one["core_seconds"] for one in answers) / len(paths) * 1e3
        ours = results["imagedex"]
        ratios = f"{ratio(ours, answers):.2f} | {ratio(ours, answers, 'core_seconds'):.2f}"
        print(f"| {NAMES[way]} | {rates} | {core_ms:.2f} | {ratios} |")
    print()


def size(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.width * image.height


if __name__ == "__main__":
    main()
