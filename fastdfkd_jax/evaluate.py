"""What a network reaches on labelled images, as a function and as a command.

python -m fastdfkd_jax.evaluate CHECKPOINT --data tfds:cifar10 --data-dir DIR --split test --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import augment, convert, data, parallel, scores
from fastdfkd_jax.arguments import OneLineParser, numbers
from fastdfkd_jax.command import run_command
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables

_IMAGES, _MAPS = 256, 16  # in a step, unless it is said
# Measurements in percent, as they are printed.
_SHARES = {"accuracy": "accuracy", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}


def make_evaluator(network: Network, batch_size: int = 256) -> Callable[[Variables, Dataset], dict[str, Any]]:
    """Builds `evaluate(variables, dataset) -> measurements`, which compiles once for all data sets of one size.

    Args:
      network: images are normalised by its spec.
      batch_size: images a step; the last step is padded to it.

    Returns:
      A function that gives what the score of the network's task reads (`scores.of_task`), and `count` (images). It
      raises UserError when the data set does not fit the network (`data.require`).
    """
    spec, score = network.spec, scores.of_task(network.spec)
    split = parallel.batch_splitter(parallel.devices(parallel.batch_devices(0, (batch_size,))))

    # Defined here, so that the compiled function is this evaluator's own and its traces can be counted.
    def sums_of_batch(variables, images, labels):
        inputs = augment.normalize(split(images).astype(jnp.float32) / 255, spec.mean, spec.std)
        return score.sums(network.apply(variables, inputs).logits, labels)

    step = parallel.jit(sums_of_batch)

    def evaluate(variables: Variables, dataset: Dataset) -> dict[str, Any]:
        data.require(dataset, spec)
        total = len(dataset.labels)
        variables = parallel.copy(variables)  # those of a run may be bound to other devices than a batch here
        sums = []
        for start in range(0, total, batch_size):
            rows = slice(start, start + batch_size)
            images, labels = dataset.images[rows], dataset.labels[rows].astype(np.int32)
            padding = (0, batch_size - len(labels))
            images = np.pad(images, (padding, *[(0, 0)] * (images.ndim - 1)))
            labels = np.pad(labels, (padding, *[(0, 0)] * (labels.ndim - 1)), constant_values=-1)
            sums.append(step(variables, images, labels))
        # Added on the host in float64: a float32 sum of many batches would lose digits.
        whole = jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *jax.device_get(sums))
        return {**score.read(whole, data.count_classes(dataset)), "count": total}

    return evaluate


def evaluate_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads what the command line names and measures it.

    Returns:
      `make_evaluator`'s measurements with the checkpoint, architecture, data and split they belong to.

    Raises:
      UserError: the checkpoint or the data cannot be used.
    """
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"expected a batch size of at least 1, got {arguments.batch_size}")
    network, variables = convert.load_network(
        arguments.checkpoint,
        arch=arguments.arch,
        num_classes=arguments.num_classes,
        image_size=arguments.image_size,
        mean=arguments.mean,
        std=arguments.std,
    )
    size = arguments.image_size or (network.spec.image_size if arguments.crop else None)
    sizes: dict[str, Any] = {"crop": arguments.crop, "short_side": arguments.short_side}
    if not network.spec.gives_maps:  # one that does takes images of any size, and so may they be
        sizes["image_size"] = size
    chosen = {"data_dir": arguments.data_dir, "class_names": arguments.class_names}
    dataset = data.load(arguments.data, arguments.split, **chosen, **sizes)
    dataset = data.in_channels(dataset, network.spec.channels)
    batch_size = arguments.batch_size or (_MAPS if network.spec.gives_maps else _IMAGES)
    measurements = make_evaluator(network, min(batch_size, len(dataset.labels)))(variables, dataset)
    if "iou" in measurements:
        iou = measurements["iou"]
        measurements["iou"] = {data.class_title(dataset, number): value for number, value in enumerate(iou)}
    return {
        "checkpoint": arguments.checkpoint,
        "arch": network.spec.arch,
        "data": arguments.data,
        "split": arguments.split,
        **measurements,
    }


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m fastdfkd_jax.evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="torch file, .safetensors or Keras's model.json")
    parser.add_argument("--data", required=True, help=f"one of {', '.join(data.SOURCES)}")
    parser.add_argument("--data-dir", help=f"where the data lie (default: {data.DEFAULT_DATA_DIR})")
    parser.add_argument("--split", default="test", help="NAME or NAME[start:stop] (default: %(default)s)")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="the network's classes in order, one a line, where DATA has a part of them",
    )
    parser.add_argument("--arch", help="architecture, where the checkpoint does not tell")
    parser.add_argument("--num-classes", type=int, help="classes that the checkpoint must have")
    parser.add_argument("--image-size", type=int, help="side in pixels, of the network and of images")
    parser.add_argument("--crop", type=float, default=0.0, help="part of a picture's shorter side; ImageNet's is 0.875")
    parser.add_argument("--short-side", type=int, help="shorter side to which images with masks are brought")
    parser.add_argument("--mean", type=numbers, help="of images in [0, 1], by channel: 0.485,0.456,0.406")
    parser.add_argument("--std", type=numbers, help="likewise")
    parser.add_argument("--batch-size", type=int, help=f"images a step (default: {_IMAGES}, or {_MAPS} with maps)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses, measures and prints; `argv` begins with the program's name."""
    arguments = _parser().parse_args(argv[1:])
    parallel.split_cpu(0)
    result = evaluate_checkpoint(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    shares = {name: title for name, title in _SHARES.items() if name in result}
    measured = ", ".join(f"{title} {result[name]:.2f} %" for name, title in shares.items())
    print(
        f"{result['arch']} on {result['data']} {result['split']}: {measured}, loss {result['loss']:.4f} nats, "
        f"{result['count']} images"
    )
    for name, iou in result.get("iou", {}).items():
        print(f"  {name}: {'not there' if iou is None else f'IoU {iou:.2f} %'}")


if __name__ == "__main__":
    run_command(main)
