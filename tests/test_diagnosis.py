"""The messages about a teacher whose outputs are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fastdfkd_jax import models
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.training.diagnosis import teacher_fault


@pytest.fixture(scope="module")
def teacher():
    spec = NetworkSpec("wrn10_1", 10, 8, 1, (0.5,), (0.5,))
    network = models.build(spec, forms=models.Forms(conv="xla"))
    return network, network.init(jax.random.key(0))


def with_statistics(variables, change):
    return {**variables, "batch_stats": jax.tree_util.tree_map_with_path(change, variables["batch_stats"])}


def test_a_sound_teacher_has_no_fault(teacher):
    assert teacher_fault(*teacher) == ""


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("var", 0.0, "16 of 16 BatchNorm variances of the teacher are not above 0 in "),
        ("var", -1.0, "BatchNorm variances of the teacher are not above 0"),
        ("var", 1e20, "16 of 16 BatchNorm statistics of the teacher are implausible in "),
        ("mean", float("nan"), "BatchNorm statistics of the teacher are implausible"),
        ("mean", -1e9, "BatchNorm statistics of the teacher are implausible"),
    ],
)
def test_absurd_statistics_are_named(teacher, kind, value, expected):
    network, variables = teacher

    def change(path, leaf):
        return jnp.full_like(leaf, value) if jax.tree_util.keystr(path, simple=True).endswith(kind) else leaf

    assert expected in teacher_fault(network, with_statistics(variables, change))


@pytest.mark.parametrize("std", [1e-9, 1e9])
def test_an_absurd_normalisation_is_named(teacher, std):
    network, variables = teacher
    changed = network._replace(spec=dataclasses.replace(network.spec, std=(std,)))
    assert teacher_fault(changed, variables) == f"the teacher's std is {std:g}, expected that of images in [0, 1]"
