"""A checkpoint's weights in a PyTorch module: our twin of the architecture, or the user's own module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from fastdfkd_jax.convert import naming, record
from fastdfkd_jax.convert.messages import LongError
from fastdfkd_jax.convert.naming import Naming
from fastdfkd_jax.convert.torch_twins import classifiers
from fastdfkd_jax.convert.weight_files import import_torch
from fastdfkd_jax.errors import one_line, shortened
from fastdfkd_jax.models import NetworkSpec


def of_twin(ours: Mapping[str, np.ndarray], spec: NetworkSpec) -> Any:
    """Returns our PyTorch twin of the architecture with weights under our names.

    Raises:
      UserError: torch is not installed, or there is no twin.
    """
    module = classifiers.twin(spec)
    module.load_state_dict(_tensors(ours), strict=True)
    return module


def of_factory(target: str, ours: Mapping[str, np.ndarray], names: Naming) -> Any:
    """Returns the user's own module with the same weights.

    Args:
      target: 'FILE.py:FACTORY'; the file is executed.
      ours: the weights under our names.
      names: the names in the weights' code base, tried if the module has no names that we know.

    Raises:
      UserError: torch is not installed, the factory fails, or the weights do not fit its module.
    """
    import_torch()
    with faults_of(target):
        module = record.load_factory(target)
        record.load_weights(module, _tensors(_as_named_by(module, ours, names)))
        return module


@contextlib.contextmanager
def faults_of(target: str) -> Iterator[None]:
    """Makes a fault of the user's module a UserError that names 'FILE.py:FACTORY'."""
    try:
        yield
    except record.RecordError as error:
        text = one_line(error)
        raise LongError(partial(shortened, text), text).within(target) from error


def _as_named_by(module: Any, ours: Mapping[str, np.ndarray], names: Naming) -> Mapping[str, np.ndarray]:
    own = set(module.state_dict())
    weights = [name for name in ours if not name.endswith(naming.COUNTER)]
    if own.issuperset(weights):
        return ours
    found = naming.find_naming(own, weights)
    if own.issuperset(map(found.to_source, weights)):
        return {found.to_source(name): array for name, array in ours.items()}
    prefix = naming.common_prefix(own)
    if not own.issuperset(prefix + name for name in weights):
        ours = {names.to_source(name).removeprefix(names.prefix): array for name, array in ours.items()}
    return {prefix + name: array for name, array in ours.items()}


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    torch = import_torch()
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
