"""PyTorch's outputs with a checkpoint's weights: from our twin, the user's module, or a recorded file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import naming, record, torch_modules
from fastdfkd_jax.convert.naming import Naming
from fastdfkd_jax.errors import UserError, listed, shortened
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.storage import limits, npz

Arrays = dict[str, np.ndarray]

_BATCH = 2
_ANOTHER = "give a reference of this network"
_NEEDED = ("images", "labels", "logits", "gradient/cross_entropy", "gradient/batch_norm")


def from_twin(ours: Mapping[str, np.ndarray], spec: NetworkSpec) -> Arrays:
    """Runs our PyTorch twin of the architecture (`record.record`) on weights under our names."""
    return record.record(torch_modules.of_twin(ours, spec), _images(spec))


def from_factory(target: str, ours: Mapping[str, np.ndarray], names: Naming, spec: NetworkSpec) -> Arrays:
    """Runs the user's own module on the same weights (`torch_modules.of_factory`)."""
    module = torch_modules.of_factory(target, ours, names)
    with torch_modules.faults_of(target):
        return record.record(module, _images(spec), classes=spec.num_classes)


def from_file(path: str) -> Arrays:
    """Reads a file that `record.py` wrote.

    Raises:
      UserError: the file is missing, damaged, too large or of another kind.
    """
    file = expanded(path)
    try:
        with npz.opened(file, "reference") as archive:
            limits.require_bytes(archive.declared_bytes, file)
            arrays = dict(archive)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no reference {path}: record one with convert/record.py") from error
    except Exception as error:  # a damaged archive can raise almost anything, from zlib.error to MemoryError
        raise UserError(
            f"{path} is not an .npz that convert/record.py wrote, or is damaged: record it again"
        ) from error
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        raise UserError(
            f"{path} is not an .npz that convert/record.py wrote (it has no {listed(missing)}): record it again"
        )
    if fault := _fault(arrays):
        raise UserError(f"{path} is not an .npz that convert/record.py wrote ({fault}): record it again")
    return arrays


def _fault(arrays: Arrays) -> str | None:
    """Describes the first array whose type or shape does not fit a recording."""
    images, labels, logits = arrays["images"], arrays["labels"], arrays["logits"]
    floats = [name for name in arrays if name != "labels" and not name.startswith("state/")]
    if wrong := [name for name in floats if not np.issubdtype(arrays[name].dtype, np.floating)]:
        return f"{shortened(wrong[0], 60)} has the type {arrays[wrong[0]].dtype}, expected floating-point numbers"
    if images.ndim != 4 or logits.ndim not in (2, 4) or not 0 < len(logits) == len(images):
        return f"images have shape {images.shape[:8]} and logits {logits.shape[:8]}, expected one row for each image"
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != logits.shape[:1] + logits.shape[2:]:
        return f"labels are {labels.dtype} of shape {labels.shape[:8]}, expected one whole number a row"
    if labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        return f"labels lie in {labels.min()}..{labels.max()}, expected classes of {logits.shape[1]}"
    if wrong := [name for name in arrays if name.startswith("moments/") and not _is_moment(name, arrays[name])]:
        return f"{shortened(wrong[0], 60)} is neither a mean nor a variance"
    return None


def _is_moment(name: str, array: np.ndarray) -> bool:
    return name.count("/") >= 2 and name.endswith(("/mean", "/var")) and array.ndim == 1 and array.size > 0


def in_our_names(arrays: Arrays, network: Network, title: str) -> Arrays:
    """Returns a reference with its moments and state under our names.

    Raises:
      UserError: its image size, classes or BatchNorms differ from the network's.
    """
    _check_sizes(arrays, network.spec, title)
    entries = naming.expected_entries(network)
    state = [name.removeprefix("state/") for name in arrays if name.startswith("state/")]
    theirs = naming.find_naming(state, entries)
    result = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind in ("moments", "state"):
            module, _, moment = rest.rpartition("/") if kind == "moments" else (rest, "", "")
            name = "/".join(filter(None, (kind, _owner(theirs.to_ours(module), network), moment)))
        result[name] = array
    found = {name.split("/")[1] for name in result if name.startswith("moments/")}
    wanted = set(naming.batch_norm_names(entries))
    if found != wanted:
        lacks, adds = (listed(sorted(names)) or "none" for names in (wanted - found, found - wanted))
        raise UserError(f"{title} is of another network (BatchNorms missing: {lacks}; added: {adds}): {_ANOTHER}")
    return result


def _owner(module: str, network: Network) -> str:
    """Returns the network's name of a BatchNorm that has two names."""
    suffix = ".running_mean"
    ties = network.others.ties if network.others else {}
    return ties.get(module + suffix, module + suffix).removesuffix(suffix)


def _check_sizes(arrays: Arrays, spec: NetworkSpec, title: str) -> None:
    height, width, channels = spec.input_shape
    found, logits = arrays["images"].shape, arrays["logits"].shape
    if found[1:] != (channels, height, width):
        size = "x".join(map(str, found[1:]))
        raise UserError(f"{title} has images of {size}, expected {channels}x{height}x{width}: check --image-size")
    if logits[1] != spec.num_classes:
        raise UserError(f"{title} has {logits[1]} classes, expected {spec.num_classes}: {_ANOTHER}")


def _images(spec: NetworkSpec) -> np.ndarray:
    return record.fixed_images((_BATCH, spec.channels, spec.image_size, spec.image_size))
