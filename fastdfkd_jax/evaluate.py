"""Accuracy of a classifier on labelled images, as a function and as a command.

python -m fastdfkd_jax.evaluate CHECKPOINT --data tfds:cifar10 --data-dir DIR --split test --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastdfkd_jax import augment, configuration, convert, data, parallel
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables

Array = jax.Array
_TOP = 5


def batch_sums(network: Network, variables: Variables, images: Array, labels: Array, count: Array) -> Array:
    """Correct first guesses, labels among the first five, and summed cross-entropy of a padded batch.

    A row with a logit that is not finite counts as wrong, whatever `argmax` makes of it.

    Args:
      network: bound before compilation.
      variables: of the network.
      images: u8[B, H, W, C].
      labels: i32[B].
      count: i32[]; rows from here on are padding.

    Returns:
      f32[3]; the second is meaningless with five classes or fewer.
    """
    spec = network.spec
    inputs = augment.normalize(images.astype(jnp.float32) / 255, spec.mean, spec.std)
    logits = network.apply(variables, inputs).logits
    valid = jnp.arange(len(labels)) < count
    first = lax.top_k(logits, min(_TOP, spec.num_classes))[1] == labels[:, None]
    hits = jnp.stack([first[:, 0], first.any(1)]) & valid & jnp.isfinite(logits).all(1)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return jnp.append(hits.sum(1), jnp.where(valid, loss, 0).sum())


def make_evaluator(network: Network, batch_size: int = 256) -> Callable[[Variables, Dataset], dict[str, float]]:
    """Builds `evaluate(variables, dataset) -> measurements`, which compiles once for all data sets.

    Args:
      network: images are normalised by its spec.
      batch_size: images a step; the last step is padded to it.

    Returns:
      A function that gives `accuracy` and, with more than five classes, `top5` in percent, `loss` (mean
      cross-entropy in nats) and `count` (images). It raises UserError when the data set does not fit the
      network (`data.require`).
    """

    split = parallel.batch_splitter(parallel.devices(parallel.batch_devices(0, (batch_size,))))

    # Defined here, so that the compiled function is this evaluator's own and its traces can be counted.
    def sums_of_batch(variables, images, labels, count):
        return batch_sums(network, variables, split(images), labels, count)

    step = parallel.jit(sums_of_batch)

    def evaluate(variables: Variables, dataset: Dataset) -> dict[str, float]:
        data.require(dataset, network.spec)
        total = len(dataset.labels)
        variables = parallel.copy(variables)  # those of a run may be bound to other devices than a batch here
        sums = []
        for start in range(0, total, batch_size):
            rows = slice(start, start + batch_size)
            images, labels = dataset.images[rows], dataset.labels[rows]
            padding = batch_size - len(labels)
            images = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
            sums.append(step(variables, images, np.pad(labels, (0, padding)), np.int32(len(labels))))
        # Added on the host in float64: a float32 sum of many batches would lose digits.
        first, top5, loss = np.asarray(jax.device_get(sums), np.float64).sum(0).tolist()
        measurements = {"accuracy": 100 * first / total}
        if network.spec.num_classes > _TOP:
            measurements["top5"] = 100 * top5 / total
        return {**measurements, "loss": loss / total, "count": total}

    return evaluate


def evaluate_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads what the command line names and measures it.

    Returns:
      `make_evaluator`'s measurements with the checkpoint, architecture, data and split they belong to.

    Raises:
      UserError: the checkpoint or the data cannot be used.
    """
    if arguments.batch_size < 1:
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
    dataset = data.load(
        arguments.data, arguments.split, data_dir=arguments.data_dir, image_size=size, crop=arguments.crop
    )
    measurements = make_evaluator(network, arguments.batch_size)(variables, dataset)
    return {
        "checkpoint": arguments.checkpoint,
        "arch": network.spec.arch,
        "data": arguments.data,
        "split": arguments.split,
        **measurements,
    }


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(item) for item in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="python -m fastdfkd_jax.evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="torch file, .safetensors or Keras's model.json")
    parser.add_argument("--data", required=True, help=f"one of {', '.join(data.SOURCES)}")
    parser.add_argument("--data-dir", help=f"where the data lie (default: {data.DEFAULT_DATA_DIR})")
    parser.add_argument("--split", default="test", help="NAME or NAME[start:stop] (default: %(default)s)")
    parser.add_argument("--arch", help="architecture, where the checkpoint does not tell")
    parser.add_argument("--num-classes", type=int, help="classes that the checkpoint must have")
    parser.add_argument("--image-size", type=int, help="side in pixels, of the network and of images")
    parser.add_argument("--crop", type=float, default=0.0, help="part of a picture's shorter side; ImageNet's is 0.875")
    parser.add_argument("--mean", type=_numbers, help="of images in [0, 1], by channel: 0.485,0.456,0.406")
    parser.add_argument("--std", type=_numbers, help="likewise")
    parser.add_argument("--batch-size", type=int, default=256, help="images a step (default: %(default)s)")
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
    top5 = f", top-5 {result['top5']:.2f} %" if "top5" in result else ""
    print(
        f"{result['arch']} on {result['data']} {result['split']}: accuracy {result['accuracy']:.2f} %{top5}, "
        f"loss {result['loss']:.4f} nats, {result['count']} images"
    )


if __name__ == "__main__":
    configuration.run_command(main)
