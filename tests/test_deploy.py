"""Files for production: what needs neither PyTorch nor ONNX, and every mistake that is refused before they are."""

import sys

import graph_fixtures
import jax
import numpy as np
import pytest

from fastdfkd_jax import convert
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.convert.deploy import compared, integers
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, build
from fastdfkd_jax.pool.shards import Shards

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SPEC = NetworkSpec("wrn10_1", 5, 16, 3, MEAN, STD)


@pytest.fixture(scope="module")
def network():
    made = build(SPEC)
    return made, made.init(jax.random.key(0))


@pytest.fixture
def student(network, tmp_path):
    path = tmp_path / "student.safetensors"
    convert.save_network(path, *network)
    return path


def in_unit_range(count=3):
    return np.random.default_rng(0).uniform(size=(count, *SPEC.input_shape)).astype(np.float32)


def exported(capsys, *arguments):
    """Runs the command, which must succeed, and returns its output."""
    assert main(["export", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, expected, out, *arguments):
    assert main(["export", *map(str, arguments), "--to", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert len(error) < 300
    assert not out.exists()


@pytest.mark.parametrize("unit_range", [False, True])
def test_stablehlo_computes_the_network_for_any_batch(unit_range, network, student, tmp_path, capsys):
    made, variables = network
    out = tmp_path / "student.stablehlo"
    text = exported(capsys, student, "--to", out, *["--unit-range"] * unit_range)
    assert text.splitlines()[1] == f"{out}: wrn10_1, 5 classes"
    # As the page says, without anything of this package.
    call = jax.export.deserialize(bytearray(out.read_bytes())).call
    assert call(np.zeros((1, *SPEC.input_shape), np.float32)).shape == (1, 5)
    images = in_unit_range()
    expected = made.apply(variables, compared.normalised(images, made)).logits
    given = images if unit_range else compared.normalised(images, made)
    np.testing.assert_allclose(call(given), expected, atol=1e-5)


def test_stablehlo_of_a_recorded_graph_that_gives_maps(tmp_path, capsys):
    graph_fixtures.unpack(graph_fixtures.FOLDER / "segmenter.npz", tmp_path / "graph")
    out = tmp_path / "graph.stablehlo"
    exported(capsys, tmp_path / "graph", "--to", out)
    made, variables = convert.load_network(tmp_path / "graph", mean=MEAN, std=STD)
    images = np.random.default_rng(0).standard_normal((3, *made.spec.input_shape)).astype(np.float32)
    found = jax.export.deserialize(bytearray(out.read_bytes())).call(images)
    assert found.shape == (*images.shape[:3], made.spec.num_classes)
    np.testing.assert_allclose(found, made.apply(variables, images).logits, rtol=1e-4, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_written(network):
    with pytest.raises(UserError, match=r"differ from the network's by .* nothing was written"):
        compared.require_same(*network, lambda images: np.ones((len(images), 5), np.float32), False)
    with pytest.raises(UserError, match=r"have shape \(1, 4\), expected \(1, 5\)"):
        compared.require_same(*network, lambda images: np.ones((len(images), 4), np.float32), False)
    with pytest.raises(UserError, match="differ from the network's by nan"):
        compared.require_same(*network, lambda images: np.full((len(images), 5), np.nan), False)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("a.stablehlo", ["--int8", "run"], "--torch and --int8 are for ONNX"),
        ("a.stablehlo", ["--torch", "net.py:make"], "--torch and --int8 are for ONNX"),
        ("a.onnx", ["--naming", "ours"], "--naming is for state dictionaries"),
        ("a.safetensors", ["--unit-range"], "--unit-range is for files that end in .onnx or .stablehlo, found"),
        ("a.pb", [], "must end in one of .pth, .pt, .th, .safetensors, .onnx, .stablehlo: it"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, arguments, expected, student, tmp_path, capsys):
    refused(capsys, expected, tmp_path / name, student, *arguments)


def test_a_missing_package_is_named(student, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(capsys, "onnx is needed for ONNX files: pip install 'fastdfkd_jax[onnx]'", tmp_path / "a.onnx", student)


def write_pool(folder, sizes, shape=SPEC.input_shape):
    """Shards of so many images; each image has its number in all its bytes."""
    start, pool = 0, Shards(folder)
    for index, size in enumerate(sizes):
        images = np.broadcast_to(np.arange(start, start + size).reshape(-1, 1, 1, 1) % 256, (size, *shape))
        pool.write(index, images.astype(np.uint8), np.zeros(size, np.int32), {})
        start += size


def test_images_are_read_from_all_of_a_pool(network, tmp_path):
    write_pool(tmp_path / "pool", [3, 5])
    images = integers.read_images(tmp_path, network[0])
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(8))
    np.testing.assert_array_equal(integers.read_images(tmp_path / "pool", network[0]), images)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([10] * 4, [0, 9, 10, 19, 20, 29, 30, 39]),
        ([10] * 12, [0, 9, 40, 49, 70, 79, 110, 119]),
        ([2] * 7, [0, 1, 4, 5, 8, 9, 12, 13]),
        ([3] * 3, [0, 1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_of_many_images_some_are_read_from_the_first_to_the_last(sizes, expected, network, tmp_path, monkeypatch):
    monkeypatch.setattr(integers, "_MOST", 8)
    write_pool(tmp_path, sizes)
    assert integers.read_images(tmp_path, network[0])[:, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("sizes", "shape", "expected"),
    [
        ([], SPEC.input_shape, "found no shards in"),
        ([1], SPEC.input_shape, "expected at least 2 images in"),
        ([4], (8, 8, 3), "takes images of 16x16x3, found 8x8x3 in"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused(sizes, shape, expected, network, tmp_path):
    write_pool(tmp_path, sizes, shape)
    with pytest.raises(UserError, match=expected):
        integers.read_images(tmp_path, network[0])
