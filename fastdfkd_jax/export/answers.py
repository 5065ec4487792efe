"""Labels exported images with the teacher's predictions instead of the target classes."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import convert, data
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.batches import padded
from fastdfkd_jax.export.images import Batch
from fastdfkd_jax.models import Forms, Network
from fastdfkd_jax.storage import limits
from fastdfkd_jax.storage.digest import digest

_BATCH = 256  # images per teacher pass
_OTHERWISE = "use --label asked, which keeps the requested classes"


@dataclasses.dataclass
class Agreement:
    """Counts of images whose prediction is the target class, updated as they are read.

    Attributes:
      asked: images with a target class.
      agreed: images among them that the teacher assigns to this class.
    """

    asked: int = 0
    agreed: int = 0


def load_classifier(workdir: Path) -> tuple[Network, Any] | None:
    """Loads a run's teacher from the run's config.json; returns None for a segmentation teacher.

    Args:
      workdir: workdir of the run; its teacher's relative path is relative to the current folder, as it was for the run.

    Returns:
      The network and its variables.

    Raises:
      UserError: there is no config.json, or its teacher cannot be read or has other weights now.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"expected the run's config.json in {workdir}, which names the teacher, found none: {_OTHERWISE}"
        )
    try:
        record = limits.read_json(path, "record")
        given: dict[str, Any] = record["config"]["teacher"]
        place: str = given["checkpoint"] or given["graph"]
        precision, expected = record["config"]["precision"], record["identity"]["teacher weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the record of a run, so its teacher is unknown: {_OTHERWISE}") from error
    file = data.digits.TEACHER_PATH if place == "digits" else expanded(place)
    try:
        network, variables = convert.load_described(file, given, Forms(jnp.dtype(precision), "xla"))
    except UserError as error:
        reason = textwrap.shorten(str(error), 120, placeholder="...")
        raise UserError(
            f"the run's teacher {place} cannot be loaded ({reason}): restore it, or {_OTHERWISE}"
        ) from error
    if digest(variables) != expected:
        raise UserError(f"{place} no longer has the weights of the run's teacher: restore them, or {_OTHERWISE}")
    return None if network.spec.gives_maps else (network, variables)


def labelled(batches: Iterable[Batch], network: Network, variables: Any, agreement: Agreement) -> Iterator[Batch]:
    """Yields the batches, with every image labelled by the class that the teacher finds likeliest.

    Args:
      batches: batches with images u8[N, H, W, C] and target classes as labels i32[N], -1 for none.
      network, variables: a classification teacher.
      agreement: counts its predictions.

    Raises:
      UserError: the teacher takes images of another shape.
    """
    answer = _answers(network)
    for batch in batches:
        found, expected = batch.images.shape[1:], network.spec.input_shape
        if found != expected:
            sizes = ["x".join(map(str, shape)) for shape in (expected, found)]
            raise UserError(f"expected images of {sizes[0]}, as the teacher takes, found {sizes[1]}: {_OTHERWISE}")
        labels = answer(variables, batch.images)
        asked = batch.labels >= 0
        agreement.asked += int(asked.sum())
        agreement.agreed += int((labels == batch.labels)[asked].sum())
        yield batch._replace(labels=labels)


def _answers(network: Network) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Builds `answer(variables, images) -> i32[N]`, compiled once for batches of one size; the last is padded."""
    spec = network.spec
    split = parallel.batch_splitter(parallel.devices(parallel.batch_devices(0, (_BATCH,))))

    def likeliest(variables: Any, images: jax.Array) -> jax.Array:
        shown = augment.normalize_bytes(split(images), spec.mean, spec.std)
        return network.apply(variables, shown).logits.argmax(-1).astype(jnp.int32)

    step = parallel.jit(likeliest)

    def answer(variables: Any, images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return np.concatenate([np.asarray(step(variables, padded(part, _BATCH))) for part in parts])[: len(images)]

    return answer
