"""Compares a checkpoint with PyTorch: logits, BatchNorm input moments, image gradients and the round trip."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from fastdfkd_jax.convert import checkpoints, naming, record, references
from fastdfkd_jax.convert.checkpoints import Build, Opened
from fastdfkd_jax.convert.weight_files import read_state_dict, write_safetensors
from fastdfkd_jax.models import Forms, Network, NetworkSpec, count_batch_norms

# Summing float32 in another order changes results by about 1e-6; a swapped axis or a wrong epsilon by 1e-2 and more.
# Moments of nearly constant channels lose another digit to cancellation.
TOLERANCES = {"logits": 1e-4, "gradient": 1e-4, "moments": 1e-3, "bits": 0.0}
# Rounding of activations relative to their mean. It matters if they are nearly constant: DeepLab's pooled branch has
# one value per image, which is nearly the same for all noise images.
_ROUNDING = 1e-6
TWIN, SAME_WEIGHTS = "our PyTorch twin", "weights of the reference"  # titles in a report
GRADIENTS = ("cross_entropy", "batch_norm")


class Check(NamedTuple):
    """One comparison.

    Attributes:
      name: the compared quantity.
      error: max|ours - reference| / max|reference|; for a variance that is only rounding error, relative to the largest
        rounding error.
      magnitude: max|reference|.
      tolerance: the largest error that passes.
    """

    name: str
    error: float
    magnitude: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """True if the error is within the tolerance (a NaN is not)."""
        return self.error <= self.tolerance


class Report(NamedTuple):
    """The checks of one checkpoint and the reference that it was compared with."""

    spec: NetworkSpec
    reference: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(check.passed for check in self.checks)


def verify(
    path: str | os.PathLike[str], *, torch_factory: str | None = None, reference: str | None = None, **known
) -> Report:
    """Compares a checkpoint, imported by us, with PyTorch on the same weights and images.

    Args:
      path: a checkpoint of any kind, or the folder of a recorded graph.
      torch_factory: 'FILE.py:FACTORY' of the user's own module; by default our twin of the architecture, or the
        reference recorded with the graph.
      reference: an `.npz` that `record.py` wrote; torch is then needed only for a torch checkpoint.
      known: `choice` and `say` as in `sources.read_source`, `arch`, `num_classes` and `image_size` as in
        `sources.find_spec`.

    Returns:
      The checks: logits, every BatchNorm's input mean and variance, two image gradients, the round trip
      through our file format, and the weights if the reference has its own.

    Raises:
      UserError: the checkpoint is invalid, or the reference belongs to another network.
    """
    opened = checkpoints.open_checkpoint(path, needs_normalization=False, **known)
    source, network = opened.source, opened.build()
    recorded = str(source.path / record.REFERENCE) if source.path.is_dir() else None
    if reference is None and torch_factory is None:
        reference = recorded
    if torch_factory is not None:
        torch_factory = os.path.expanduser(torch_factory)
    if reference is not None:
        title, arrays = reference, references.from_file(reference)
    elif torch_factory is not None:
        names = checkpoints.source_naming(source, opened.naming)
        title, arrays = torch_factory, references.from_factory(torch_factory, opened.state, names, network.spec)
    else:
        title, arrays = f"{TWIN} of {network.spec.arch}", references.from_twin(opened.state, network.spec)
    expected = references.in_our_names(arrays, network, title)
    variables = naming.to_variables(opened.state, network)
    checks = [*compare(opened.build, variables, expected), _round_trip(opened, variables)]
    if any(name.startswith("state/") for name in expected):
        checks.append(_same_weights(opened.state, expected))
    return Report(network.spec, title, tuple(checks))


def run_network(network: Network, variables: Mapping[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the network in float32 on network input f32[B, C, H, W], PyTorch's layout.

    Returns:
      'logits' f32[B, num_classes], or f32[B, num_classes, H, W], and 'moments/NAME/mean' and '/var' f32[C] for every
      BatchNorm's input.
    """
    with jax.default_matmul_precision("highest"):
        # Weights are an argument, because XLA would evaluate expressions of constants while it compiles.
        run = jax.jit(lambda variables, x: network.apply(variables, x.transpose(0, 2, 3, 1), moments=True))
        outputs = run(variables, jnp.asarray(images))
    # A map is NHWC in JAX and NCHW in PyTorch.
    result = {"logits": np.moveaxis(np.asarray(outputs.logits), -1, 1)}
    for path, moment in flatten_dict(dict(outputs.moments)).items():
        result[f"moments/{'.'.join(path[:-1])}/{path[-1]}"] = np.asarray(moment)
    return result


def image_gradients(
    make: Build, variables: Mapping[str, Any], images: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the gradients of two losses with respect to the image, computed in float64.

    In float32, a few of a wide network's million ReLUs are so near their kink that rounding decides them. One of them
    changes the gradient by a thousandth between any two implementations.

    Args:
      make: builds the network in double precision.
      variables: its variables.
      images: network input, f32[B, C, H, W].
      labels: i32[B], or i32[B, H, W] for a map.

    Returns:
      'gradient/cross_entropy' and 'gradient/batch_norm' (`record.losses`), f64[B, C, H, W].
    """
    with jax.enable_x64(True):
        network = make(forms=Forms(jnp.float64))
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)

        def losses(x, variables):
            outputs = network.apply(variables, x.transpose(0, 2, 3, 1), moments=True)
            log_probabilities = jax.nn.log_softmax(outputs.logits)
            cross_entropy = -jnp.take_along_axis(log_probabilities, labels[..., None], -1).mean()
            gaps = jax.tree.map(jnp.subtract, dict(outputs.moments), dict(variables["batch_stats"]))
            distance = sum(map(jnp.linalg.norm, jax.tree.leaves(gaps)), jnp.zeros(()))
            return jnp.stack([cross_entropy, distance])

        gradients = jax.jit(jax.jacrev(losses))(jnp.asarray(images, jnp.float64), variables)
        return {f"gradient/{name}": np.asarray(g) for name, g in zip(GRADIENTS, gradients, strict=True)}


def compare(make: Build, variables: Mapping[str, Any], reference: Mapping[str, np.ndarray]) -> list[Check]:
    """Compares our network's outputs with a reference under our names (`references.in_our_names`)."""
    images, labels = reference["images"], reference["labels"]
    checks = []
    for name, array in run_network(make(), variables, images).items():
        kind, _, rest = name.partition("/")
        title, least = rest.replace("/", " input ") or name, 0.0
        if kind == "moments" and rest.endswith("/var"):
            least = _least_variance(reference[f"{name.removesuffix('var')}mean"], reference[name])
        checks.append(_check(title, array, reference[name], kind, least))
    gradients = image_gradients(make, variables, images, labels)
    if not count_batch_norms(variables):
        del gradients["gradient/batch_norm"]  # without BatchNorm the row would compare zeros
    for name, array in gradients.items():
        kind, _, rest = name.partition("/")
        checks.append(_check(f"image gradient of {rest}", array, reference[name], kind))
    return checks


def _least_variance(mean: np.ndarray, var: np.ndarray) -> float:
    """Returns the magnitude below which a variance may be rounding error of the activations."""
    rounding, deviation = _ROUNDING * float(np.abs(mean).max()), float(np.sqrt(var.max()))
    return (2 * deviation * rounding + rounding**2) / TOLERANCES["moments"]


def _check(name: str, found: np.ndarray, reference: np.ndarray, kind: str, least: float = 0.0) -> Check:
    """Checks an array; its error is relative to the reference's magnitude, or to `least` if that is larger."""
    magnitude = float(np.max(np.abs(reference), initial=0.0))
    if found.shape != reference.shape:
        return Check(name, float("inf"), magnitude, TOLERANCES[kind])
    difference = float(np.max(np.abs(found - reference), initial=0.0))
    return Check(name, difference / (max(magnitude, least) or 1), magnitude, TOLERANCES[kind])


def _round_trip(opened: Opened, variables: Mapping[str, Any]) -> Check:
    """Converts the checkpoint to variables, to our file and back to its own names, and compares bit for bit."""
    counters = {name: array for name, array in opened.state.items() if name.endswith(naming.COUNTER)}
    state = naming.state_of(opened.build(), variables)
    state = {name: array for name, array in state.items() if not name.endswith(naming.COUNTER)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "round_trip.safetensors"
        write_safetensors(file, state | counters, {})
        again, _ = read_state_dict(file)
    back = {opened.naming.to_source(name): array for name, array in again.items()}
    return _same("round trip", back, opened.source.state)


def _same_weights(ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Check:
    def weights(state):
        return {name: array for name, array in state.items() if not name.endswith(naming.COUNTER)}

    prefix = "state/"
    theirs = {name.removeprefix(prefix): array for name, array in reference.items() if name.startswith(prefix)}
    return _same(SAME_WEIGHTS, weights(ours), weights(theirs))


def _same(name: str, found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Check:
    """Checks whole state dictionaries; the error is infinite if names, types or only signs of zero differ."""
    magnitude = max((float(np.abs(array).max(initial=0)) for array in reference.values()), default=0.0)
    error = float("inf")
    if found.keys() == reference.keys():
        same = all(found[n].dtype == a.dtype and found[n].tobytes() == a.tobytes() for n, a in reference.items())
        worst = max((_check(n, found[n], a, "bits").error for n, a in reference.items()), default=0.0)
        error = 0.0 if same else worst or error
    return Check(name, error, magnitude, TOLERANCES["bits"])
