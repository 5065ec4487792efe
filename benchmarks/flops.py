"""Multiply-adds of a network, counted from the shapes in its traced program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from fastdfkd_jax.models import Network
from fastdfkd_jax.models.generators.by_kind import Generator


class Convolution(NamedTuple):
    """One convolution as both frameworks know it; shapes are NHWC.

    Attributes:
      batch, height, width, inputs: the input's shape.
      outputs: output channels.
      size, stride, padding: the same for both axes.
    """

    batch: int
    height: int
    width: int
    inputs: int
    outputs: int
    size: int
    stride: int
    padding: int

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Returns [B, H', W', O]."""
        rows, columns = ((n + 2 * self.padding - self.size) // self.stride + 1 for n in (self.height, self.width))
        return (self.batch, rows, columns, self.outputs)

    @property
    def flops(self) -> int:
        """Counts two for each multiply-add of the definition; either gradient costs as much again."""
        return 2 * math.prod(self.output_shape) * self.size**2 * self.inputs


def equations(jaxpr: Any) -> Iterator[core.JaxprEqn]:
    """Yields every equation of a jaxpr and of the jaxprs within it; the body of a loop counts once."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else [parameter]:
                inner = getattr(inner, "jaxpr", inner)
                if isinstance(inner, core.Jaxpr):
                    yield from equations(inner)


def convolutions(network: Network, variables: Any, batch: int) -> Counter[Convolution]:
    """Returns the convolutions of one forward pass, and how often each occurs; build the network in the form 'xla'."""
    images = jax.ShapeDtypeStruct((batch, *network.spec.input_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: network.apply(v, x).logits)(variables, images)
    return Counter(_convolution(e) for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated")


def _shapes(variables: Any) -> list[tuple[int, ...]]:
    return [variable.aval.shape for variable in variables]


def _convolution(equation: core.JaxprEqn) -> Convolution:
    (batch, height, width, inputs), (size, _, _, outputs) = _shapes(equation.invars)
    stride, padding = equation.params["window_strides"][0], equation.params["padding"][0][0]
    return Convolution(batch, height, width, inputs, outputs, size, stride, padding)


def forward_flops(function: Any, *args: Any) -> int:
    """Counts the floating-point operations of the convolutions and matrix products of a function without loops."""
    total = 0
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        name = equation.primitive.name
        if name not in ("conv_general_dilated", "dot_general"):
            continue
        (output,), (left, right) = _shapes(equation.outvars), _shapes(equation.invars)
        if name == "dot_general":
            contracted = math.prod(left[i] for i in equation.params["dimension_numbers"][0][0])
        else:
            contracted = math.prod(right[:-1])  # HWIO, I being the inputs of one group
        total += 2 * math.prod(output) * contracted
    return total


class Costs(NamedTuple):
    """Floating-point operations of one forward pass over a batch."""

    teacher: int
    student: int
    generator: int

    def synthesis_call(self, steps: int) -> int:
        """k steps: networks forward and back to their images, the generator forward and back to both of its inputs.

        Gradients of the networks' weights are not needed, and not counted where a program computes them.
        """
        return steps * (2 * self.teacher + 2 * self.student + 3 * self.generator)

    def kd_step(self) -> int:
        """Teacher forward; student forward, and back to its activations and its weights."""
        return self.teacher + 3 * self.student


def count(teacher: Network, student: Network, generator: Generator, batch: int) -> Costs:
    """Costs of one batch; build all three in the form 'xla', whose convolutions are traced as they are defined."""

    def forward(network: Network) -> int:
        variables = jax.eval_shape(network.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((batch, *network.spec.input_shape), jnp.float32)
        return forward_flops(lambda v, x: network.apply(v, x).logits, variables, images)

    params = jax.eval_shape(generator.init, jax.random.key(0))
    latents = jax.ShapeDtypeStruct((batch, *generator.latent_shape), jnp.float32)
    return Costs(forward(teacher), forward(student), forward_flops(generator.apply, params, latents))
