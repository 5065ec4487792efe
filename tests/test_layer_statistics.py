"""Distances of the first and newest images from the teacher's statistics, by layer, and their chart."""

import re
from types import SimpleNamespace
from typing import Any

import graph_fixtures
import jax
import numpy as np
import pytest
import toy_architecture

from fastdfkd_jax import convert
from fastdfkd_jax.pool.shards import Shards
from fastdfkd_jax.training import layer_statistics
from fastdfkd_jax.training.layer_statistics import Layer


@pytest.fixture
def pool(tmp_path):
    """Three shards of four images; the first is dark and the newest bright."""
    rng = np.random.default_rng(0)
    for index, most in enumerate((20, 100, 255)):
        Shards(tmp_path).write(index, rng.integers(0, most, (4, 16, 16, 1), np.uint8), np.zeros(4, np.int32))
    return tmp_path


def parts_of(path) -> Any:
    teacher, variables = convert.load_network(path)
    return SimpleNamespace(teacher=teacher, teacher_vars=variables)


def images(pool, index):
    with np.load(pool / f"{index:06d}.npz") as file:
        return file["images"].astype(np.float64) / 255


def test_the_distances_of_a_convolution_by_hand(pool):
    """The toy's only BatchNorm sees a convolution of the images: 3x3, stride 2, padded by one."""
    parts = parts_of(toy_architecture.CHECKPOINT)
    (layer,) = layer_statistics.measure(parts, pool)
    assert layer.name == "bn1"
    kernel = np.asarray(parts.teacher_vars["params"]["conv1"]["kernel"], np.float64)
    stats = parts.teacher_vars["batch_stats"]["bn1"]
    for index, found in ((0, layer.first), (2, layer.newest)):
        x = (images(pool, index) - parts.teacher.spec.mean) / parts.teacher.spec.std
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = np.sum([x[:, i : i + 16 : 2, j : j + 16 : 2] @ kernel[i, j] for i in range(3) for j in range(3)], 0)
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
        expected = np.linalg.norm(mean - stats["mean"]) + np.linalg.norm(var - stats["var"])
        assert found == pytest.approx(expected, rel=1e-4)  # float32 in the program


def test_a_recorded_graph_has_its_layers(tmp_path):
    graph_fixtures.unpack(graph_fixtures.FOLDER / "segmenter.npz", tmp_path / "graph")
    teacher, variables = convert.load_described(
        tmp_path / "graph", {"graph": str(tmp_path / "graph"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    )
    rng = np.random.default_rng(0)
    for index in range(2):
        rows = rng.integers(0, 255, (4, *teacher.spec.input_shape), np.uint8)
        Shards(tmp_path / "pool").write(index, rows, np.full(4, -1, np.int32))
    parts: Any = SimpleNamespace(teacher=teacher, teacher_vars=variables)
    layers = layer_statistics.measure(parts, tmp_path / "pool")
    assert len(layers) == len({layer.name for layer in layers}) > 0
    assert all(layer.first > 0 and layer.newest > 0 for layer in layers)


def test_layers_come_in_the_order_of_computation(pool):
    parts = parts_of(toy_architecture.CHECKPOINT)
    stats, apply = parts.teacher_vars["batch_stats"]["bn1"], parts.teacher.apply

    def renamed(variables, images, moments):
        (found,) = apply({**variables, "batch_stats": {"bn1": stats}}, images, moments=moments).moments.values()
        later = jax.tree.map(lambda leaf: leaf + 100.0, found)
        return SimpleNamespace(moments={"stem": found, "block": {"10": later, "9": found}})

    network = SimpleNamespace(spec=parts.teacher.spec, apply=renamed)
    variables = {**parts.teacher_vars, "batch_stats": {"block": {"9": stats, "10": stats}, "stem": stats}}
    renamed_parts: Any = SimpleNamespace(teacher=network, teacher_vars=variables)
    found = layer_statistics.measure(renamed_parts, pool)
    assert [layer.name for layer in found] == ["stem", "block.10", "block.9"]
    assert found[0].first == found[2].first < found[1].first


def test_nothing_is_said_without_two_shards_or_without_batch_norm(pool):
    parts = parts_of(toy_architecture.CHECKPOINT)
    for index in (1, 2):
        (pool / f"{index:06d}.npz").unlink()
    assert layer_statistics.measure(parts, pool) == []
    assert layer_statistics.measure(parts, pool / "none") == []
    parts.teacher_vars = {**parts.teacher_vars, "batch_stats": {}}
    assert layer_statistics.measure(parts, pool) == []
    assert layer_statistics.section([]) == ""


def test_the_bars_are_in_proportion():
    text = layer_statistics.section([Layer("a<b", 4.0, 1.0), Layer("n" * 40, 2.0, 0.0)])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.2)
    assert widths[0] == pytest.approx(2 * widths[2], abs=0.2)
    assert "a&lt;b" in text
    assert "Sum: 6 and 1." in text
