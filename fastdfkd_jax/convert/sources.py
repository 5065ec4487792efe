"""Reads checkpoints without extra entries, and determines the spec from the entries and the user's options."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from fastdfkd_jax.cli.parser import require_unit_scale
from fastdfkd_jax.convert import choosing, graph, guess, naming, weight_files
from fastdfkd_jax.convert.choosing import ALL, Choice
from fastdfkd_jax.convert.messages import LongError
from fastdfkd_jax.errors import UserError, listed, shortened
from fastdfkd_jax.models import NetworkSpec, is_registered, task_of, usual_image_size
from fastdfkd_jax.storage import limits

_USUAL = (
    "CIFAR-10 --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010; "
    "ImageNet --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
)


Say = Callable[[str], object]


class Source(NamedTuple):
    """A checkpoint as read, with its own names.

    Attributes:
      path: the file, or the folder of a recorded graph.
      state: f32 arrays and int64 counters.
      metadata: the metadata that `save_network` stored; {} for a file of another origin.
      taken: the keys that led to the weights in the file, '' if they were bare.
    """

    path: Path
    state: dict[str, np.ndarray]
    metadata: dict[str, Any]
    taken: str = ""


def read_source(
    path: str | os.PathLike[str], choice: Choice = ALL, known: Collection[str] = (), say: Say = logging.warning
) -> Source:
    """Reads a checkpoint of any kind and drops entries that are not part of a network (`choosing.trim`).

    Args:
      path: the file.
      choice: selects the weights among its entries.
      known: names of the network's entries, if known.
      say: called with one line for each alternative in the file and each kind of dropped entry.
    """
    path = Path(path)
    content = weight_files.read(path, choice)
    try:
        state, notes = choosing.trim(content.state, choice, known, content.taken)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for note in (*content.notes, *notes):
        say(f"{shortened(str(path), 80)}: {note}")
    return Source(path, state, content.metadata, content.taken)


def not_normalised(path: Path) -> UserError:
    """Returns the error for a checkpoint without a normalisation."""
    return UserError(
        f"{path} does not say how its images are normalised: give --mean and --std (for instance {_USUAL})"
    )


def find_spec(
    source: Source,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    needs_normalization: bool = True,
) -> NetworkSpec:
    """Returns the spec of a checkpoint: from the arguments, else from stored metadata, else from its entries.

    Args:
      source: the checkpoint.
      arch, num_classes, image_size, mean, std: the values that the caller knows.
      needs_normalization: whether it is an error if mean and std are neither given nor stored.

    Raises:
      UserError: something required is unknown, or the number of classes differs.
    """
    said, names = source.metadata, [field.name for field in dataclasses.fields(NetworkSpec)]
    stored: dict[str, Any] = {name: said[name] for name in names if name in said}
    if arch is None and str(stored.get("arch", "")).startswith(f"{graph.ARCH}:"):
        raise UserError(f"{source.path} has the weights of a recorded graph: name its folder with --arch")
    counts = {"num_classes": guess.guess_classes, "channels": guess.guess_channels}
    if is_registered(arch or stored.get("arch", "")):  # only its author knows its layers' names
        told = {"num_classes": num_classes, "channels": None if mean is None else len(mean)}
        stored = {name: value for name, value in told.items() if value} | stored
        counts = {name: count for name, count in counts.items() if name not in stored}
    counted = {name: count(source.state) for name, count in counts.items()}
    found = (stored | counted)["num_classes"]
    if num_classes not in (None, found):
        raise UserError(f"{source.path} has {found} classes, expected {num_classes}: check --num-classes")
    given = {"arch": arch, "image_size": image_size, "mean": mean, "std": std}
    fields = stored | {key: value for key, value in given.items() if value is not None}
    fields.setdefault("arch", None)
    fields["arch"] = fields["arch"] or _told_arch(source)
    fields.setdefault("image_size", usual_image_size(fields["arch"]))
    fields |= counted | {"task": task_of(fields["arch"])}
    if not ("mean" in fields and "std" in fields):
        if needs_normalization:
            raise not_normalised(source.path)
        fields |= dict.fromkeys(("mean", "std"), (0.5,) * fields["channels"])
    fields |= {key: tuple(map(float, fields[key])) for key in ("mean", "std")}
    spec = NetworkSpec(**fields)
    check_spec(spec)
    return spec


def _told_arch(source: Source) -> str:
    try:
        arch = guess.guess_arch(source.state)
    except UserError as error:
        starts = guess.networks_under(source.state)
        if len(starts) < 2:
            raise error.within(source.path) if isinstance(error, LongError) else error from error
        raise UserError(
            f"{source.path} holds several networks, under {listed(starts)}: choose one with --prefix {starts[0]}"
        ) from error
    if task_of(arch) == "segmentation" and any(naming.DEEPLAB_HEAD[0] in name for name in source.state):
        # With another stride the same weights give other outputs; torchvision's is always 8, the port's either.
        told = "%s does not record its output stride; 8 is assumed: for 16, give the architecture %s_os16"
        logging.warning(told, source.path, arch)
    return arch


def check_spec(spec: NetworkSpec) -> None:
    """Refuses a size or a normalisation with which no network can run."""
    if spec.image_size < 8:
        raise UserError(f"--image-size must be at least 8, found {spec.image_size}")
    if spec.image_size > (most := math.isqrt(limits.max_pixels())):
        raise UserError(
            f"--image-size must be at most {most:,}, found {spec.image_size:,}; {limits.PIXELS_VARIABLE} raises it"
        )
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != spec.channels:
            raise UserError(f"--{name} has {len(values)} numbers, expected {spec.channels}: give one for each channel")
    if not np.isfinite(spec.mean).all() or not all(value > 0 for value in spec.std):
        raise UserError(f"--mean and --std must be finite, and --std positive, found {spec.mean} and {spec.std}")
    require_unit_scale(spec.mean, spec.std)
