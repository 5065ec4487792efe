"""Measures a network on labelled images, and its agreement with its teacher on any pictures.

fastdfkd evaluate CHECKPOINT --data tfds:cifar10 --data-dir DIR --split test --json
fastdfkd evaluate STUDENT --teacher TEACHER --probe PICTURES
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from fastdfkd_jax import convert, data
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import PROGRAM, OneLineParser, numbers
from fastdfkd_jax.convert.deploy import onnx_files
from fastdfkd_jax.data import probe
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.agreement import Agreement
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables

_IMAGES, _MAPS = 256, 16  # default images per step, for classifiers and for segmentation
# Measurements in percent, with their printed names.
_SHARES = {"accuracy": "accuracy", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
_AGREEMENTS = {"agreement": "the labelled images", "agreement_probe": "the pictures of --probe"}


def evaluate_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads the networks and data that the command line names, and measures the network.

    Returns:
      The checkpoint and architecture. With labelled images, also `make_evaluator`'s measurements and their data and
      split. With a teacher, the percentage of images for which both predict the same class: `agreement` on the
      labelled images, `agreement_probe` on the pictures of a folder.

    Raises:
      UserError: a checkpoint or the data cannot be used, or there is nothing to measure.
    """
    if not arguments.data and not arguments.probe:
        raise UserError("expected --data SOURCE for labelled images, or --teacher and --probe for other pictures")
    if arguments.probe and not arguments.teacher:
        raise UserError("expected --teacher with --probe: agreement is measured between two networks")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"expected a batch size of at least 1, found {arguments.batch_size}")
    network, variables = _load(arguments)
    result = {"checkpoint": arguments.checkpoint, "arch": network.spec.arch}
    dataset = None
    if arguments.data:
        dataset = _labelled(arguments, network)
        result |= {
            "data": arguments.data,
            "split": arguments.split,
            **_measured(arguments, network, variables, dataset),
        }
    if arguments.teacher:
        result |= _agreement(arguments, network, variables, dataset)
    return result


def _load(arguments: argparse.Namespace) -> tuple[Network, Variables]:
    told = {name: getattr(arguments, name) for name in ("arch", "num_classes", "image_size", "mean", "std")}
    if not _is_onnx(arguments):
        return convert.load_network(arguments.checkpoint, **told)
    if arguments.teacher:  # whose normalisation they may be
        told |= {"mean": None, "std": None}
    if given := [name.replace("_", "-") for name, value in told.items() if value is not None]:
        raise UserError(f"{arguments.checkpoint} knows its --{given[0]}: leave it out")
    return onnx_files.load_network(arguments.checkpoint)


def _is_onnx(arguments: argparse.Namespace) -> bool:
    return arguments.checkpoint.lower().endswith(onnx_files.SUFFIX)


def _labelled(arguments: argparse.Namespace, network: Network) -> data.Dataset:
    size = arguments.image_size or (network.spec.image_size if arguments.crop else None)
    sizes: dict[str, Any] = {"crop": arguments.crop, "short_side": arguments.short_side}
    if not network.spec.gives_maps:  # segmentation networks take images of any size
        sizes["image_size"] = size
    chosen = {"data_dir": arguments.data_dir, "class_names": arguments.class_names}
    dataset = data.load(arguments.data, arguments.split, **chosen, **sizes)
    return data.in_channels(dataset, network.spec.channels)


def _measured(
    arguments: argparse.Namespace, network: Network, variables: Variables, dataset: data.Dataset
) -> dict[str, Any]:
    batch_size = arguments.batch_size or (_MAPS if network.spec.gives_maps else _IMAGES)
    evaluate = make_evaluator(network, min(batch_size, len(dataset.labels)), compiled=not _is_onnx(arguments))
    measurements = evaluate(variables, dataset)
    if "iou" in measurements:
        iou = measurements["iou"]
        measurements["iou"] = {data.class_title(dataset, number): value for number, value in enumerate(iou)}
    return measurements


def _agreement(
    arguments: argparse.Namespace, network: Network, variables: Variables, dataset: data.Dataset | None
) -> dict[str, float]:
    spec = network.spec
    if arguments.teacher.lower().endswith(onnx_files.SUFFIX):
        raise UserError(f"expected a checkpoint as --teacher, found {arguments.teacher}: only the network may be ONNX")
    teacher, teacher_vars = convert.load_network(
        arguments.teacher,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        mean=arguments.mean,
        std=arguments.std,
    )
    if teacher.spec.input_shape != spec.input_shape or teacher.spec.task != spec.task:
        raise UserError(
            f"expected a teacher for {_input(network)} in {arguments.teacher}, found one for {_input(teacher)}: "
            "give the network's own teacher"
        )
    images = {} if dataset is None else {"agreement": dataset.images}
    if arguments.probe:
        images["agreement_probe"] = probe.read(arguments.probe, spec.input_shape, arguments.crop)
    agreement = Agreement(teacher, network, compiled=not _is_onnx(arguments))
    return {name: 100 * agreement(teacher_vars, variables, values) for name, values in images.items()}


def _input(network: Network) -> str:
    return f"{network.spec.task} of {'x'.join(map(str, network.spec.input_shape))}"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=f"{PROGRAM} evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="torch file, .safetensors, Keras's model.json, or our .onnx")
    parser.add_argument("--data", help=f"labelled images, one of {', '.join(data.SOURCES)}")
    parser.add_argument("--data-dir", help=f"folder of the data (default: {data.DEFAULT_DATA_DIR})")
    parser.add_argument("--split", default="test", help="NAME or NAME[start:stop] (default: %(default)s)")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="the network's classes in order, one per line, if DATA has only some of them",
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="checkpoint of another network: how often do both predict the same class?"
    )
    parser.add_argument("--probe", metavar="DIR", help="pictures without labels for this comparison, of any size")
    parser.add_argument("--arch", help="architecture, if the checkpoint does not record it")
    parser.add_argument("--num-classes", type=int, help="number of classes that the checkpoint must have")
    parser.add_argument("--image-size", type=int, help="side of the network's input and of the images, in pixels")
    parser.add_argument(
        "--crop", type=float, default=0.0, help="share of a picture's shorter side kept (ImageNet: 0.875)"
    )
    parser.add_argument("--short-side", type=int, help="shorter side in pixels that images with masks are resized to")
    parser.add_argument("--mean", type=numbers, help="mean per channel of images in [0, 1]: 0.485,0.456,0.406")
    parser.add_argument("--std", type=numbers, help="standard deviation per channel of images in [0, 1]")
    parser.add_argument("--batch-size", type=int, help=f"images per step (default: {_IMAGES}; segmentation: {_MAPS})")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures and prints; `argv` begins with the program's name."""
    arguments = _parser().parse_args(argv[1:])
    parallel.split_cpu(0)
    result = evaluate_checkpoint(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    for line in _lines(result):
        print(line)


def _lines(result: dict[str, Any]) -> list[str]:
    """Returns the result as text."""
    lines = []
    if "data" in result:
        shares = {name: title for name, title in _SHARES.items() if name in result}
        measured = ", ".join(f"{title} {result[name]:.2f} %" for name, title in shares.items())
        of = f"{result['arch']} on {result['data']} {result['split']}"
        lines.append(f"{of}: {measured}, loss {result['loss']:.4f} nats, {result['count']} images")
    for name, iou in result.get("iou", {}).items():
        lines.append(f"  {name}: {'not there' if iou is None else f'IoU {iou:.2f} %'}")
    for name, images in _AGREEMENTS.items():
        if name in result:
            lines.append(f"agreement with the teacher on {images}: {result[name]:.2f} %")
    return lines


if __name__ == "__main__":
    run_command(main)
