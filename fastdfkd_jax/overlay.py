"""Draws the predictions of segmentation networks as colours over pictures.

    fastdfkd overlay CHECKPOINT... --data camvid:DIR --split val --short-side 120 --out overlay.png

Each picture is followed by its labels, if the data have maps, and then by each network's prediction, in the order of
the checkpoints. The colour of each class is printed. To see predictions on synthesised images, first run `python -m
fastdfkd_jax.export WORKDIR --to DIR --format folder`, then give `--data folder:DIR --split "train[:6]"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import convert, data
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import PROGRAM, OneLineParser, numbers
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError, listed
from fastdfkd_jax.models import Network
from fastdfkd_jax.storage import image_grid

_BATCH = 8


def palette(classes: int) -> np.ndarray:
    """Returns Pascal VOC's colours, uint8[classes, 3], without its first, black, which marks unlabelled pixels."""
    colours = np.zeros((classes, 3), np.uint8)
    for number in range(1, classes + 1):
        for bit in range(8):
            for channel in range(3):
                colours[number - 1, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return colours


def painted(images: np.ndarray, maps: np.ndarray, classes: int, opacity: float = 0.6) -> np.ndarray:
    """Returns pictures uint8[N, H, W, 3] under the colours of int[N, H, W]; pixels without a class are black."""
    colours = np.vstack([palette(classes), np.zeros((1, 3), np.uint8)])
    chosen = colours[np.where((maps >= 0) & (maps < classes), maps, classes)]
    return np.rint((1 - opacity) * images + opacity * chosen).astype(np.uint8)


def predict(network: Network, variables: Any, images: np.ndarray) -> np.ndarray:
    """Returns the likeliest class of every pixel, i32[N, H, W], for images uint8[N, H, W, C]."""
    spec = network.spec

    @jax.jit
    def likeliest(variables: Any, images: jax.Array) -> jax.Array:
        shown = augment.normalize_bytes(images, spec.mean, spec.std)
        return network.apply(variables, shown).logits.argmax(-1).astype(jnp.int32)

    parts = [likeliest(variables, images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    return np.concatenate([np.asarray(part) for part in parts])


def rows(images: np.ndarray, maps: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Returns pictures and coloured maps side by side, uint8[N * (1 + maps), H, W, 3]."""
    coloured = np.repeat(images, 3, -1) if images.shape[-1] == 1 else images
    columns = [coloured, *(painted(coloured, map_, classes) for map_ in maps)]
    return np.stack(columns, 1).reshape(-1, *coloured.shape[1:])


def main(argv: Sequence[str]) -> None:
    """Parses the command line, predicts and writes the PNG; `argv` begins with the program's name."""
    parser = OneLineParser(prog=f"{PROGRAM} overlay", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="networks for segmentation with the same number of classes")
    parser.add_argument("--data", required=True, help=f"pictures, of {', '.join(data.SOURCES)}")
    parser.add_argument("--data-dir", help="base of relative folders (default: current folder)")
    parser.add_argument("--split", default="val[:6]", help="NAME or NAME[start:stop] (default: %(default)s)")
    parser.add_argument("--short-side", type=int, help="shorter side in pixels that pictures with maps are resized to")
    parser.add_argument("--image-size", type=int, help="side in pixels that pictures without maps are resized to")
    parser.add_argument(
        "--crop", type=float, default=0.0, help="share of the shorter side kept of pictures without maps; 1 for all"
    )
    parser.add_argument("--arch", help="architecture, if the checkpoints do not record it")
    parser.add_argument("--mean", type=numbers, help="mean per channel of images in [0, 1]: 0.5,0.5,0.5")
    parser.add_argument("--std", type=numbers, help="standard deviation per channel of images in [0, 1]")
    parser.add_argument("--across", type=int, default=1, help="pictures per row (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="PNG file to write")
    chosen = parser.parse_args(argv[1:])
    if chosen.across < 1:
        raise UserError(f"expected at least 1 picture across, found {chosen.across}")
    parallel.split_cpu(0)
    known = {"arch": chosen.arch, "mean": chosen.mean, "std": chosen.std}
    networks = [convert.load_network(path, **known) for path in chosen.checkpoints]
    size = chosen.image_size or (networks[0][0].spec.image_size if chosen.crop else None)
    sizes: dict[str, Any] = {"short_side": chosen.short_side, "image_size": size, "crop": chosen.crop}
    dataset = data.load(chosen.data, chosen.split, data_dir=chosen.data_dir, **sizes)
    maps = [dataset.labels] if dataset.labels.ndim == 3 else []
    if not maps:  # void labels, so that the same checks apply to unlabelled pictures
        dataset = data.Dataset(dataset.images, np.full(dataset.images.shape[:3], data.VOID, np.uint8))
    for (network, _), path in zip(networks, chosen.checkpoints, strict=True):
        if not network.spec.gives_maps:
            raise UserError(f"{path} holds {network.spec.arch}, a classifier: expected a network for segmentation")
        data.require(dataset, network.spec)
    if len(counts := sorted({network.spec.num_classes for network, _ in networks})) > 1:
        raise UserError(
            f"expected networks with the same number of classes, found {listed(list(map(str, counts)))}: leave some out"
        )
    beside = "its labels and " if maps else ""
    maps += [predict(network, variables, dataset.images) for network, variables in networks]
    classes = networks[0][0].spec.num_classes
    pictures = rows(dataset.images, maps, classes)
    image_grid.write_grid(chosen.out, pictures, chosen.across * (1 + len(maps)), scale=1, rows=len(dataset.images))
    print(f"{chosen.out}: {len(dataset.images)} pictures, each with {beside}{len(networks)} predictions")
    for number, colour in enumerate(palette(classes)):
        print(f"  #{bytes(colour).hex()} {data.class_title(dataset, number)}")


if __name__ == "__main__":
    run_command(main)
