"""Gives a teacher without BatchNorm the statistics that a run's section `proxy` names."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import convert
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import probe
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.base import Method
from fastdfkd_jax.models import Forms, Network, ProxyOptions, count_batch_norms, proxies

Tree = Any

_MOST_PIXELS = 1 << 21  # in one pass, whose activations are in memory together


def applied(
    chosen: ProxyOptions, teacher: Network, teacher_vars: Tree, forms: Forms, crop: float = 0.0
) -> tuple[Network, Tree]:
    """Returns the teacher and its variables with the chosen statistics; unchanged if none are chosen.

    Args:
      chosen: the statistics.
      teacher, teacher_vars: a network without BatchNorm.
      forms: precision and convolutions of the other network.
      crop: share of the shorter side that is kept of a picture; 0 for all of it.

    Raises:
      UserError: the teacher has BatchNorm, or no layer to measure; the other network has no BatchNorm, or takes other
        images; or a file cannot be read.
    """
    key, found = chosen.given
    if not key:
        return teacher, teacher_vars
    arch = teacher.spec.arch
    require(not count_batch_norms(teacher_vars), key, f"'' for the teacher {arch}, which has BatchNorm", found)
    if chosen.is_network:
        return _with_network(chosen, teacher, teacher_vars, forms)
    expected = f"'' for the teacher {arch}: no LayerNorm or GroupNorm of a recorded graph was found in it"
    require(bool(teacher.other_norms), key, expected, found)
    statistics = measured(teacher, teacher_vars, probe.read(chosen.images, teacher.spec.input_shape, crop))
    return proxies.with_statistics(teacher, statistics), {**teacher_vars, "batch_stats": statistics}


def _with_network(chosen: ProxyOptions, teacher: Network, teacher_vars: Tree, forms: Forms) -> tuple[Network, Tree]:
    described = dataclasses.asdict(chosen) | {"image_size": chosen.image_size or teacher.spec.image_size}
    proxy, proxy_vars = convert.load_described(expanded(chosen.checkpoint or chosen.graph), described, forms)
    arch, (key, _) = proxy.spec.arch, chosen.given
    if not count_batch_norms(proxy_vars):
        raise UserError(f"config.{key} must be of a network with BatchNorm, found {arch}, which has none")
    ours, theirs = teacher.spec.channels, proxy.spec.channels
    require(ours == theirs, key, f"of a network of {ours} channels, as the teacher", theirs)
    joined = proxies.with_proxy(teacher, proxy, chosen.image_size)
    variables = proxies.proxy_variables(teacher_vars, proxy_vars)
    images = jax.ShapeDtypeStruct((1, *teacher.spec.input_shape), jnp.float32)
    try:
        jax.eval_shape(lambda v, x: joined.apply(v, x, moments=True), variables, images)
    except (TypeError, ValueError) as error:
        side = chosen.image_size or teacher.spec.image_size
        raise UserError(f"config.proxy.image_size must be a side that {arch} takes, found {side}") from error
    return joined, variables


def measured(network: Network, variables: Tree, images: np.ndarray) -> Tree:
    """Measures the moments of a network's `other_norms` on images, uint8[N, H, W, C].

    Returns:
      A tree like `batch_stats`: mean and biased variance of each layer's input over all images, f32[C].
    """
    spec = network.spec
    # What a layer is compared with has no influence on what it sees.
    asked = {name: {"mean": np.zeros(()), "var": np.zeros(())} for name in network.other_norms}

    @jax.jit
    def seen(params: Tree, images: jax.Array) -> Tree:
        view = augment.normalize_bytes(images, spec.mean, spec.std)
        return network.apply({"params": params, "batch_stats": asked}, view, moments=True).moments

    most = max(1, _MOST_PIXELS // spec.image_size**2)
    parts = [images[start : start + most] for start in range(0, len(images), most)]
    found = [jax.tree.map(np.asarray, seen(variables["params"], part)) for part in parts]
    shares = [len(part) / len(images) for part in parts]
    return {name: _joined([layers[name] for layers in found], shares) for name in network.other_norms}


def _joined(moments: list[dict[str, np.ndarray]], shares: list[float]) -> dict[str, np.ndarray]:
    """Joins the moments of parts: the variance of all is the mean of variances plus the variance of means."""
    mean = sum(share * part["mean"] for share, part in zip(shares, moments, strict=True))
    square = sum(
        share * (part["var"] + np.square(part["mean"] - mean)) for share, part in zip(shares, moments, strict=True)
    )
    return {"mean": np.asarray(mean, np.float32), "var": np.asarray(square, np.float32)}


def knowing(chosen: ProxyOptions, method: Method) -> Method:
    """Returns the method with what it knows: the images or the network beside the teacher are other data."""
    if any(chosen.given) and method.knows in (base.TEACHER_ONLY, base.LABEL_NAMES):
        return method._replace(knows=base.OTHER_DATA)
    return method
