"""Checkpoints as read, less what is no part of a network, and the spec that their entries and the user tell."""

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
from fastdfkd_jax.convert.messages import LongError, listed
from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.models import NetworkSpec, is_registered, task_of, usual_image_size
from fastdfkd_jax.storage import limits

_USUAL = (
    "CIFAR-10 --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010; "
    "ImageNet --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
)


Say = Callable[[str], object]


class Source(NamedTuple):
    """A checkpoint as read, by its own names.

    Attributes:
      path: the file, or the folder of a recorded graph.
      state: f32 arrays and int64 counters.
      metadata: what `save_network` stored beside them; {} for a file of another origin.
      taken: the keys that led to the weights in the file, '' where they were bare.
    """

    path: Path
    state: dict[str, np.ndarray]
    metadata: dict[str, Any]
    taken: str = ""


def read_source(
    path: str | os.PathLike[str], choice: Choice = ALL, known: Collection[str] = (), say: Say = logging.warning
) -> Source:
    """Reads a checkpoint of any kind and drops the entries that are no part of a network (`choosing.trim`).

    Args:
      path: the file.
      choice: which of its entries are the weights.
      known: names of the network's entries where they are known.
      say: is told, in a line each, what else the file holds and what was dropped.
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
    """The mistake of a checkpoint without a normalisation."""
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
    """The spec of a checkpoint: what is given, else what is stored in it, else what its entries tell.

    Args:
      source: the checkpoint.
      arch, num_classes, image_size, mean, std: what the caller knows.
      needs_normalization: whether a mean and std that are neither given nor stored are an error.

    Raises:
      UserError: something needed is not known, or the number of classes is another one.
    """
    said, names = source.metadata, [field.name for field in dataclasses.fields(NetworkSpec)]
    stored: dict[str, Any] = {name: said[name] for name in names if name in said}
    if arch is None and str(stored.get("arch", "")).startswith(f"{graph.ARCH}:"):
        raise UserError(f"{source.path} has the weights of a recorded graph: name its folder with --arch")
    counts = {"num_classes": guess.guess_classes, "channels": guess.guess_channels}
    if is_registered(arch or stored.get("arch", "")):  # what its layers are called only its author knows
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
        # Another stride is another function of the same weights; torchvision's is always 8, the port's is either.
        told = "%s does not tell its output stride, which is taken for 8: a network of 16 is of architecture %s_os16"
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
            raise UserError(f"--{name} has {len(values)} numbers, expected {spec.channels}: one for each input channel")
    if not np.isfinite(spec.mean).all() or not all(value > 0 for value in spec.std):
        raise UserError(f"--mean and --std must be finite and std positive, found {spec.mean} and {spec.std}")
    require_unit_scale(spec.mean, spec.std)
