"""The two optimizers of Algorithm 1, for the k inner steps and for the meta parameters, and a schedule of steps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.options import Options, option

INNER = ("adam", "sgd")
RATE_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class InnerOptions(Options, section="inner"):
    """Options of the optimizer of the k inner steps, which is new in every call."""

    optimizer: str = option(
        "adam", "optimizer of the inner steps: 'adam', or 'sgd', plain gradient descent (Eq. 6)", choices=INNER
    )
    generator_lr: float = option(3e-3, "learning rate of the generator in the inner steps (METHOD section 2)", above=0)
    latents_lr: float = option(1e-2, "learning rate of the latents in the inner steps", above=0)
    b1: float = option(0.5, "first decay rate of the inner Adam")
    b2: float = option(0.999, "second decay rate of the inner Adam")


@dataclass(frozen=True)
class MetaOptions(Options, section="meta"):
    """Options of the optimizer of the meta parameters."""

    optimizer: str = option("adam", "optimizer of the meta parameters, any optax optimizer by name")
    lr: float = option(0.015, "learning rate of the meta parameters, lr_g * k (METHOD T1)", above=0)
    kwargs: Mapping[str, Any] = option({"b1": 0.5, "b2": 0.999}, "other arguments of the meta optimizer")


def inner_optimizer(options: InnerOptions) -> optax.GradientTransformation:
    """Returns the optimizer of {'latents', 'generator'} within a call."""

    def group(lr: float) -> optax.GradientTransformation:
        if options.optimizer == "sgd":
            return optax.sgd(lr)
        # eps_root is 0, as in PyTorch. In practice exact MAML meets no second moment of zero.
        return optax.adam(lr, options.b1, options.b2)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "latents": group(options.latents_lr),
        "generator": group(options.generator_lr),
    }
    return optax.partition(groups, {"latents": "latents", "generator": "generator"})


def meta_optimizer(options: MetaOptions) -> optax.GradientTransformation:
    """Returns the optimizer of the meta parameters.

    Raises:
      UserError: optax has no optimizer of this name, or it rejects these arguments.
    """
    name = options.optimizer
    make = getattr(optax, name, None)
    if not callable(make):
        raise UserError(
            f"config.meta.optimizer={name!r} is not an optimizer of optax: give a name such as 'adam' or 'sgd'"
        )
    try:
        optimizer = make(options.lr, **options.kwargs)
    except TypeError as error:
        raise UserError(f"config.meta.kwargs do not fit optax.{name}: {error}") from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(
            f"config.meta.optimizer={name!r} is not an optimizer of optax: give a name such as 'adam' or 'sgd'"
        )
    return optimizer


def rate_of_steps(schedule: str, peak: float, rise: int, steps: int) -> float | optax.Schedule:
    """Returns a rate: 'constant', or 'cosine' (METHOD 6), which rises for `rise` steps before it falls to 0."""
    rise = min(rise, steps)
    if schedule == "constant":
        return peak

    def rate(step: Any) -> jax.Array:
        up = (step + 1) / max(rise, 1)
        down = 0.5 * (1 + jnp.cos(jnp.pi * (step - rise) / max(steps - rise, 1)))
        return peak * jnp.where(step < rise, up, down)

    return rate
