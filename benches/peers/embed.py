"""Files to vectors: the original's loop and its successors beside imagedex, on the same pictures, in turns.

    embed.py PICTURES --models FOLDER --ours COMMAND [--count N] [--rounds N] [--pytorch PYTHON]

PICTURES is a folder; every so-many-th picture below it is taken, until there are N. All have the same weights: the peers take them out of
vgg16-max-fp32.onnx in FOLDER. All decode with Pillow in threads of their own while the model works, except the original's loop, and each has
the batch that it is fastest with. Starting, loading and compiling are outside the figures. A last table has the parts of our own
pipeline, measured alone in the same rounds: with nothing lost between them, cores / (decode + model) pictures a second come out.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from turns import CORES, Side, load, machine, ratio, serve, spread, take_turns

SIDE, DIM = 224, 512


def pixels(path):
    """What Keras' `load_img(path, target_size=(224, 224))` makes of a file, uint8."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))


def batches(paths, size):
    """Decoded in threads, two batches ahead of whoever takes them."""
    with ThreadPoolExecutor(CORES) as pool:
        waiting = []
        for start in range(0, len(paths), size):
            waiting.append([pool.submit(pixels, path) for path in paths[start : start + size]])
            if len(waiting) > 2:
                yield np.stack([one.result() for one in waiting.pop(0)])
        for batch in waiting:
            yield np.stack([one.result() for one in batch])


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def weights(models):
    """(kernel OIHW for RGB, bias) of the 13 convolutions, and the means of RGB."""
    import onnx

    graph = onnx.load(models / "vgg16-max-fp32.onnx").graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    names = [f"block{block}_conv{conv}" for block in range(1, 6) for conv in range(1, 4 if block > 2 else 3)]
    return [(values[f"{name}_kernel"], values[f"{name}_bias"]) for name in names], values["mean"].ravel()


def keras_model(models):
    import keras

    model = keras.applications.VGG16(weights=None, input_shape=(SIDE, SIDE, 3), pooling="max", include_top=False)
    layers = [layer for layer in model.layers if "conv" in layer.name]
    for number, (layer, (kernel, bias)) in enumerate(zip(layers, weights(models)[0])):
        kernel = kernel.transpose(2, 3, 1, 0)
        # Keras' preprocessing turns RGB into BGR.
        layer.set_weights([kernel[:, :, ::-1] if number == 0 else kernel, bias])
    return model


def keras_loop(models, paths):
    """The original program, line by line."""
    from keras.applications.vgg16 import preprocess_input
    from keras.preprocessing import image

    model = keras_model(models)

    def run():
        found = []
        for path in paths:
            picture = image.img_to_array(image.load_img(path, target_size=(SIDE, SIDE)))
            feature = model.predict(preprocess_input(np.expand_dims(picture, axis=0)), verbose=0)
            found.append(feature[0] / np.linalg.norm(feature[0]))
        return np.array(found)

    return run


def keras_batched(models, paths):
    import tensorflow as tf
    from keras.applications.vgg16 import preprocess_input

    model = keras_model(models)
    call = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    return lambda: unit(
        np.concatenate([call(tf.constant(preprocess_input(batch.astype(np.float32)))).numpy() for batch in batches(paths, 16)])
    )


def onnxruntime_fp32(models, paths):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(models / "vgg16-max-fp32.onnx", options, providers=["CPUExecutionProvider"])
    return lambda: np.concatenate([session.run(["embedding"], {"images": batch})[0] for batch in batches(paths, 16)])


def openvino(precision):
    def open_with(models, paths):
        import openvino as ov

        core = ov.Core()
        model = core.read_model(models / f"vgg16-max-{'int8' if precision == 'int8' else 'fp32'}.onnx")
        model.reshape([8, SIDE, SIDE, 3])
        hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        compiled = core.compile_model(model, "CPU", hints)
        queue = ov.AsyncInferQueue(compiled)

        def run():
            found = np.zeros((len(paths), DIM), np.float32)

            def store(request, rows):
                found[rows] = request.get_tensor("embedding").data[: rows.stop - rows.start]

            queue.set_callback(store)
            start = 0
            for batch in batches(paths, 8):
                rows = slice(start, start + len(batch))
                queue.start_async({"images": np.pad(batch, ((0, 8 - len(batch)), (0, 0), (0, 0), (0, 0)))}, rows)
                start = rows.stop
            queue.wait_all()
            return found

        return run

    return open_with


def pytorch(precision):
    def open_with(models, paths):
        import torch

        torch.set_num_threads(CORES)
        layers, number = [], 0
        kernels, means = weights(models)
        for block in range(1, 6):
            for _ in range(3 if block > 2 else 2):
                kernel, bias = kernels[number]
                layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                layer.weight.data, layer.bias.data = torch.from_numpy(kernel.copy()), torch.from_numpy(bias.copy())
                layers += [layer, torch.nn.ReLU(inplace=True)]
                number += 1
            layers.append(torch.nn.MaxPool2d(2))
        model = torch.nn.Sequential(*layers, torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten())
        model = model.eval().to(memory_format=torch.channels_last)
        means = torch.from_numpy(means.copy())

        @torch.inference_mode()
        def run():
            found = []
            for batch in batches(paths, 16):
                # A batch of pictures, row by row, is channels-last already.
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    found.append(model((torch.from_numpy(batch).float() - means).permute(0, 3, 1, 2)).float().numpy())
            return unit(np.concatenate(found))

        return run

    return open_with


PEERS = {
    "keras-loop": (keras_loop, "the original's loop: Keras `predict`, one picture at a time", "fp32"),
    "keras": (keras_batched, "Keras, `tf.function`, batches of 16", "fp32"),
    "onnxruntime": (onnxruntime_fp32, "ONNX Runtime, Python, CPU provider, batches of 16", "fp32"),
    "openvino-fp32": (openvino("fp32"), "OpenVINO, Python, throughput mode, batches of 8", "fp32"),
    "openvino-bf16": (openvino("bf16"), "OpenVINO, Python, throughput mode, batches of 8", "bf16"),
    "openvino-int8": (openvino("int8"), "OpenVINO, Python, throughput mode, our int8 file", "int8"),
    "pytorch-fp32": (pytorch("fp32"), "PyTorch, channels-last, batches of 16", "fp32"),
    "pytorch-bf16": (pytorch("bf16"), "PyTorch, channels-last, autocast, batches of 16", "bf16"),
}
OURS = [("fp32", "openvino"), ("bf16", "openvino"), ("int8", "openvino"), ("int8", "cpu")]


def work(peer, models, list):
    run = PEERS[peer][0](Path(models), Path(list).read_text().splitlines())

    def vectors(file):
        found = run()
        found.astype("<f4").tofile(file)
        return len(found)

    serve(run=lambda: len(run()), vectors=vectors)


def some_of(folder, count):
    endings = {".jpg", ".jpeg", ".png"}
    paths = sorted(path.resolve() for path in Path(folder).rglob("*") if path.suffix.lower() in endings)
    if not paths:
        raise SystemExit(f"no pictures in {folder}")
    return [str(paths[i * len(paths) // count]) for i in range(min(count, len(paths)))]


def compare(args):
    paths = some_of(args.pictures, args.count)
    with tempfile.TemporaryDirectory() as folder:
        list = f"{folder}/list"
        Path(list).write_text("\n".join(paths))
        sides, names, precisions = {}, {}, {}
        for peer, (_, name, precision) in PEERS.items():
            python = args.pytorch if peer.startswith("pytorch") else sys.executable
            if python:
                sides[peer] = Side([python, __file__, "--work", peer, args.models, list])
                names[peer], precisions[peer] = name, precision
        for precision, provider in OURS:
            way = f"imagedex-{precision}-{provider}"
            sides[way] = Side([*shlex.split(args.ours), "embed", list, precision, provider])
            names[way], precisions[way] = f"imagedex, provider `{provider}`", precision
        vectors = {}
        for way, side in sides.items():
            side.turn(f"vectors {folder}/{way}")
            vectors[way] = np.fromfile(f"{folder}/{way}", "<f4").reshape(-1, DIM)
        ways = {way: (side, "run") for way, side in sides.items()}
        ours = [way for way in sides if way.startswith("imagedex") and "fp32" not in way]
        parts = {(way, part): (sides[way], part) for way in ours for part in ("decode", "model")}
        results = take_turns(ways | {" ".join(key): turn for key, turn in parts.items()}, args.rounds)
        for side in sides.values():
            side.end()
    table(results, names, precisions, vectors, len(paths), args)
    parts_table(results, ours, len(paths))


def table(results, names, precisions, vectors, count, args):
    print(f"{count} pictures, {args.rounds} rounds in turns; median (least to most); {machine()}; {load()}.\n")
    best = results["imagedex-int8-openvino"]
    print("| way | precision | pictures/s | core-ms a picture | imagedex int8 to this | the same in core-ms | cosine to fp32, mean and least |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for way, name in names.items():
        answers = results[way]
        rates = spread(count / answer["seconds"] for answer in answers)
        core_ms = statistics.median(answer["core_seconds"] for answer in answers) / count * 1e3
        cosines = (vectors[way].astype(np.float64) * vectors["imagedex-fp32-openvino"]).sum(axis=1)
        print(
            f"| {name} | {precisions[way]} | {rates} | {core_ms:.0f} | {ratio(best, answers):.2f} | "
            f"{ratio(best, answers, 'core_seconds'):.2f} | "
            f"{min(cosines.mean(), 1):.6f}, {min(cosines.min(), 1):.6f} |"
        )
    if not args.pytorch:
        print("\nPyTorch was left out: `make bench-peers PYTORCH=1` has it.")
    print()


def parts_table(results, ours, count):
    print("| imagedex | decode, core-ms | model, core-ms | parts allow, /s | reached, /s | reached |\n|---|---:|---:|---:|---:|---:|")
    for way in ours:
        seconds = lambda task: [answer["seconds"] for answer in results[task]]
        # Decoding runs on one thread here, the model on all.
        rounds = zip(seconds(f"{way} decode"), seconds(f"{way} model"), seconds(way))
        shares = [(decode, model * CORES, count * CORES / (decode + model * CORES), count / run) for decode, model, run in rounds]
        decode, model, allowed, reached = (statistics.median(column) for column in zip(*shares))
        share = statistics.median(one[3] / one[2] for one in shares)
        print(
            f"| {way.removeprefix('imagedex-')} | {decode / count * 1e3:.2f} | {model / count * 1e3:.2f} | {allowed:.1f} | "
            f"{reached:.1f} | {share * 100:.0f} % |"
        )
    print()


def main():
    if sys.argv[1:2] == ["--work"]:
        return work(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--models", required=True)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pytorch", help="the Python that has it")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
