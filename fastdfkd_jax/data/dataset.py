"""The type of data sets, the checks that all sources share, and the grammar of splits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastdfkd_jax.errors import UserError, listed, shortened
from fastdfkd_jax.storage import limits

if TYPE_CHECKING:
    from fastdfkd_jax.models import NetworkSpec

# The label of a pixel without a class, as in most sets of masks.
VOID = 255
_SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")

# Usual names of the three splits, ignoring case, punctuation, digits and words such as "set".
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}
_SET = re.compile(r"(?<=.)(set|sets|data|dataset|images|imgs|split|folder)$")


class Dataset(NamedTuple):
    """Labelled images in memory.

    Attributes:
      images: uint8[N, H, W, C].
      labels: int32[N], class indices from 0; for maps uint8[N, H, W], with `VOID` for pixels without a class
        (uint8 needs a quarter of int32's memory and suffices for all data sets here).
      class_names: a name for every class, or None if the source has none.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None = None


class Split(NamedTuple):
    """A split such as 'train[:5000]' or 'test[20%:]'.

    Attributes:
      name: name of the whole split.
      start, stop: bounds as written, in examples or percent; None if omitted.
    """

    name: str
    start: str | None
    stop: str | None


def parse_split(split: str) -> Split:
    """Parses `NAME` or `NAME[start:stop]`, with bounds in examples or in percent, in TFDS's syntax.

    Raises:
      UserError: the text has neither form.
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"expected a split such as test, train[:5000] or train[10%:], found {split!r}")
    return Split(*match.groups())


def kind_of(name: str) -> str | None:
    """Returns 'train', 'val' or 'test' for a usual name ('Training_Set', 'valid', 'test2017'), else None."""
    letters = re.sub(r"[^a-z]", "", name.casefold())
    forms = (letters, _SET.sub("", letters))
    return next((kind for kind, names in SPLIT_NAMES.items() if any(form in names for form in forms)), None)


def rows(split: Split, count: int) -> slice:
    """Returns the rows between a split's bounds, out of the `count` rows of the whole split.

    Raises:
      UserError: there are none.
    """

    def position(bound: str | None) -> int | None:
        if bound is None or not bound.endswith("%"):
            return None if bound is None else int(bound)
        return round(count * int(bound[:-1]) / 100)

    chosen = slice(position(split.start), position(split.stop))
    if not range(count)[chosen]:
        bounds = f"[{split.start or ''}:{split.stop or ''}]"
        raise UserError(f"split {split.name}{bounds} has no examples: {split.name} has {count}, choose other bounds")
    return chosen


def take(dataset: Dataset, split: Split) -> Dataset:
    """Returns the examples between a split's bounds, in their stored order.

    Raises:
      UserError: there are none.
    """
    chosen = rows(split, len(dataset.labels))
    return dataset._replace(images=dataset.images[chosen], labels=dataset.labels[chosen])


def unknown_split(split: str, source: str, available: Sequence[str]) -> UserError:
    """Returns the error for a split that a source does not have."""
    return UserError(f"{shortened(source, 100)} has no split {split!r}: expected one of {listed(available, 6, 20)}")


def read_names(path: Path) -> tuple[str, ...]:
    """Reads the names of classes from a UTF-8 text file with one per line.

    Raises:
      UserError: the file is missing or not text, or a line is empty.
    """
    try:
        limits.require_bytes(limits.require_regular(path, "file of class names"), path)
        names = tuple(name.strip() for name in path.read_text(encoding="utf-8-sig").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {path}: save it as UTF-8 text") from error
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names):
        raise UserError(
            f"expected a name on each line of {path}, found {'an empty line' if names else 'nothing'}: restore the file"
        )
    return names


def renumbered(dataset: Dataset, names: Sequence[str], source: str) -> Dataset:
    """Numbers the classes of a data set by their positions in `names`, which may contain more names.

    Args:
      dataset: a data set with class names.
      names: names of a network's classes, in the order of its outputs.
      source: the data set's source, for messages.

    Raises:
      UserError: the data set has maps or no names, or a class is missing from `names` or occurs twice.
    """
    own = dataset.class_names
    if own is None or dataset.labels.ndim != 1:
        raise UserError(f"{source} has no class names to look up in the given list: leave that out")
    index = {name: i for i, name in enumerate(names)}
    if len(index) != len(names):
        twice = next(name for i, name in enumerate(names) if index[name] != i)
        raise UserError(f"expected every class name once, found {twice!r} twice: give one line to each class")
    used = np.unique(dataset.labels)
    if strange := [own[number] for number in used if own[number] not in index]:
        raise UserError(
            f"expected the classes of {shortened(source, 50)} among the {len(names)} class names, which begin with "
            f"{shortened(names[0], 24)!r}, found {len(strange)} others ({listed(strange, 2, 24)}): write the names as "
            "the data set has them"
        )
    places = np.zeros(len(own), np.int32)
    places[used] = [index[own[number]] for number in used]
    return dataset._replace(labels=places[dataset.labels], class_names=tuple(names))


def in_channels(dataset: Dataset, channels: int) -> Dataset:
    """Repeats grey images for a network with colour input; returns any other data set unchanged."""
    if dataset.images.shape[-1] != 1 or channels != 3:
        return dataset
    return dataset._replace(images=np.repeat(dataset.images, 3, axis=-1))


_OTHER_DATA = "give the data set that the network was trained for"
_CROP = "give a crop (--crop, config.data.crop)"


def collected(images: Iterable[np.ndarray], count: int, where: str) -> list[np.ndarray]:
    """Decodes images one by one, after checking on the first that all of them fit into memory.

    Args:
      images: uint8[H, W] or uint8[H, W, C], `count` of them.
      count: number of images.
      where: the place they come from, for the message.

      Raises:
        UserError: they would take too much memory.
    """
    found: list[np.ndarray] = []
    for image in images:
        if not found:
            limits.require_bytes(2 * count * image.nbytes, where)  # the images separately and stacked
        found.append(image)
    return found


def stack(images: Sequence[np.ndarray], where: str, remedy: str = _CROP) -> np.ndarray:
    """Stacks uint8[H, W] and uint8[H, W, C] images to uint8[N, H, W, C].

    Grey images among colour images become colour images; if all are grey, they keep one channel.

    Args:
      images: at least one image.
      where: the place they came from, for the message.
      remedy: advice for mixed sizes, for the message.

    Raises:
      UserError: the sizes are mixed.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:3])
        raise UserError(f"expected images of one size in {where}, found {len(sizes)} sizes ({found} ...): {remedy}")
    channels = max(image.shape[2] if image.ndim == 3 else 1 for image in images)
    limits.require_bytes(len(images) * math.prod(next(iter(sizes))) * channels, where)
    stacked = np.empty((len(images), *next(iter(sizes)), channels), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[:] = image if image.ndim == 3 else image[..., None]
    return stacked


def require(dataset: Dataset, spec: NetworkSpec, square: int = 0) -> Dataset:
    """Checks that a network can be evaluated on a data set.

    A segmentation network takes images of any size, unless it was recorded with one. It may have more outputs than
    classes, for example one for void.

    Args:
      dataset: the data set for evaluation or training.
      spec: the network's spec.
      square: side in pixels of the square cut from images with maps before the network sees them; 0 for whole images.

    Returns:
      The data set.

    Raises:
      UserError: the task, the images' shape or the classes do not match the spec.
    """
    maps, gives_maps = dataset.labels.ndim == 3, spec.gives_maps
    if maps != gives_maps:
        one, each = "one class for every image", "a class for every pixel"
        raise UserError(
            f"the {spec.arch} network gives {each if gives_maps else one}, the data set has "
            f"{each if maps else one}: {_OTHER_DATA}"
        )
    height, width, channels = dataset.images.shape[1:]
    if maps and channels != spec.channels:
        raise UserError(
            f"the {spec.arch} network expects {spec.channels} channels, the data set has {channels}: {_OTHER_DATA}"
        )
    if maps:
        _require_sides(spec, height, width, square)
    found, expected = f"{height}x{width}x{channels}", "x".join(map(str, spec.input_shape))
    if not maps and found != expected:
        raise UserError(
            f"the {spec.arch} network expects images of {expected}, the data set has {found}: {_OTHER_DATA}"
        )
    classes, named = count_classes(dataset), dataset.class_names is not None
    if classes > spec.num_classes or (named and classes != spec.num_classes and not maps):
        raise UserError(
            f"the {spec.arch} network has {spec.num_classes} classes, the data set {classes}: {_OTHER_DATA}"
        )
    return dataset


def _require_sides(spec: NetworkSpec, height: int, width: int, square: int) -> None:
    """Checks that the images' sides and classes fit a network for maps."""
    if spec.num_classes > VOID:
        raise UserError(
            f"expected at most {VOID} classes, as {VOID} is void in maps, found {spec.num_classes} of {spec.arch}: "
            "give another network"
        )
    if square > min(height, width):
        raise UserError(
            f"expected squares of at most {min(height, width)} pixels from {height}x{width}, found {square}: lower "
            "kd.square"
        )
    shown = (square, square) if square else (height, width)
    if spec.arch.startswith(("graph:", "onnx:")) and shown != spec.input_shape[:2]:
        found, expected = ("x".join(map(str, sides)) for sides in (shown, spec.input_shape[:2]))
        raise UserError(f"{spec.arch} takes images of {expected}, the data set has {found}: {_OTHER_DATA}")


def class_title(dataset: Dataset, number: int) -> str:
    """Returns a class's name, or its number if it has none; a network may have more outputs than classes."""
    names = dataset.class_names or ()
    return names[number] if number < len(names) else f"class {number}"


def count_classes(dataset: Dataset) -> int:
    """Returns the number of named classes, or the number implied by the largest label."""
    labels = dataset.labels
    if dataset.class_names is not None:
        return len(dataset.class_names)
    # 255 is void in maps, but may be one of a thousand classes of images.
    return int(labels.max() if labels.ndim == 1 else labels.max(where=labels != VOID, initial=0)) + 1
