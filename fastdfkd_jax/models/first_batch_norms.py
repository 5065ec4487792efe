"""Finds the first BatchNorms of a network, because trees of moments are ordered by name, not by forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from fastdfkd_jax.models.network import Network


def first_batch_norms(network: Network) -> tuple[bool, ...]:
    """Returns, in the order of the tree of moments, True for each BatchNorm whose input passed no other one.

    The moments of such a layer depend on no running statistics. The program is only traced, nothing is computed.
    A network with several stems has several first BatchNorms.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *network.spec.input_shape), jnp.float32)

    def means(batch_stats: Any, params: Any, image: Any) -> list[Any]:
        moments = network.apply({"params": params, "batch_stats": batch_stats}, image, moments=True).moments
        return jax.tree.leaves(moments)[::2]  # each layer has a mean and a variance

    program = jax.make_jaxpr(means)(variables["batch_stats"], variables["params"], image).jaxpr
    statistics = len(jax.tree.leaves(variables["batch_stats"]))
    depends = depend(program, [i < statistics for i in range(len(program.invars))])
    return tuple(not output for output in depends)


def depend(program: Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Marks the outputs of a program that depend on any of its marked inputs."""
    marked = {variable for variable, mark in zip(program.invars, inputs, strict=True) if mark}

    def is_marked(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in marked

    for equation in program.eqns:
        arguments = [is_marked(atom) for atom in equation.invars]
        inner = _body(equation)
        outputs = depend(inner, arguments) if inner else [any(arguments)] * len(equation.outvars)
        marked.update(variable for variable, mark in zip(equation.outvars, outputs, strict=True) if mark)
    return [is_marked(atom) for atom in program.outvars]


def _body(equation: Any) -> Jaxpr | None:
    """Returns the program that an equation runs once on its arguments, as in rematerialisation; else None."""
    bodies = [value for value in equation.params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    if len(bodies) != 1:
        return None
    body = bodies[0].jaxpr if isinstance(bodies[0], ClosedJaxpr) else bodies[0]
    sizes = (len(body.invars), len(body.outvars))
    # A loop's body has as many, but its outputs may depend on other positions in the next round.
    looped = equation.primitive.name in ("scan", "while")
    return body if not looped and sizes == (len(equation.invars), len(equation.outvars)) else None
