"""Keras's ResNet-50 as TensorFlow.js stores it: one handwritten convolution with its BatchNorm, and damaged files."""

import json

import numpy as np
import pytest

from fastdfkd_jax import convert
from fastdfkd_jax.convert import keras, naming, weight_files
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, build

MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)


def write(folder, arrays):
    """A layers-model in two shards, cut in the middle of an array."""
    content = b"".join(array.tobytes() for array in arrays.values())
    half = len(content) // 2 + 1
    names = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    for name, part in zip(names, (content[:half], content[half:]), strict=True):
        (folder / name).write_bytes(part)
    weights = [{"name": name, "shape": [*a.shape], "dtype": "float32"} for name, a in arrays.items()]
    path = folder / "model.json"
    path.write_text(json.dumps({"weightsManifest": [{"paths": names, "weights": weights}]}))
    return path


def append(path, content):
    path.write_bytes(path.read_bytes() + content)


def replace(path, before, after):
    path.write_text(path.read_text().replace(before, after))


def layer(rng, conv, norm, inputs, outputs, size):
    draw = {"kernel": (size, size, inputs, outputs), "bias": (outputs,)}
    statistics = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = {f"{conv}/{name}": rng.normal(size=shape) for name, shape in draw.items()}
    arrays |= {f"{norm}/{name}": rng.uniform(0.5, 1.5, outputs) for name in statistics}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture
def part():
    """Stem, one later convolution and head, of Keras's names and few channels."""
    rng = np.random.default_rng(0)
    arrays = layer(rng, "conv1", "bn_conv1", 3, 4, 7) | layer(rng, "res3a_branch2b", "bn3a_branch2b", 4, 4, 3)
    head = {"fc1000/kernel": rng.normal(size=(4, 5)), "fc1000/bias": rng.normal(size=5)}
    return arrays | {name: array.astype(np.float32) for name, array in head.items()}


def test_the_stem_is_the_same_function(tmp_path, part):
    state, spec = keras.read(write(tmp_path, part))
    patch = np.random.default_rng(1).uniform(0, 255, (7, 7, 3)).astype(np.float32)  # RGB, what one output sees
    before = np.einsum("hwi,hwio->o", patch[..., ::-1] - MEAN_BGR, part["conv1/kernel"]) + part["conv1/bias"]
    deviation = np.sqrt(part["bn_conv1/moving_variance"] + 1e-3)
    expected = (before - part["bn_conv1/moving_mean"]) / deviation * part["bn_conv1/gamma"] + part["bn_conv1/beta"]

    inputs = (patch / 255 - np.array(spec["mean"])) / np.array(spec["std"])
    ours = np.einsum("hwi,oihw->o", inputs, state["conv1.weight"])
    normalised = (ours - state["bn1.running_mean"]) / np.sqrt(state["bn1.running_var"] + 1e-3)
    np.testing.assert_allclose(normalised * state["bn1.weight"] + state["bn1.bias"], expected, rtol=1e-4)
    # BatchNorm's input keeps its distance from the running statistics.
    np.testing.assert_allclose(ours - state["bn1.running_mean"], before - part["bn_conv1/moving_mean"], rtol=1e-4)


def test_layers_have_our_names(tmp_path, part):
    state, spec = keras.read(write(tmp_path, part))
    np.testing.assert_array_equal(state["layer2.0.conv2.weight"], part["res3a_branch2b/kernel"].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state["layer2.0.bn2.running_var"], part["bn3a_branch2b/moving_variance"])
    np.testing.assert_array_equal(state["fc.weight"], part["fc1000/kernel"].T)
    assert spec["arch"] == keras.ARCH
    counts = {"2": 3, "3": 4, "4": 6, "5": 3}
    layers = ["conv1"]
    for stage, count in counts.items():
        layers += [f"res{stage}{'abcdef'[i]}_branch2{branch}" for i in range(count) for branch in "abc"]
        layers.append(f"res{stage}a_branch1")
    names = {name for layer in layers for name in keras._ours(layer)}
    network = build(NetworkSpec(keras.ARCH, 5, image_size=32))
    assert names | {"fc"} == {name.rpartition(".")[0] for name in naming.expected_entries(network)}


def test_a_part_is_refused_as_a_network(tmp_path, part):
    with pytest.raises(UserError, match=r"missing \(\d+\)"):
        convert.load_network(write(tmp_path, part))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "group1-shard2of2.bin").unlink(), "cannot read .*shard2of2"),
        (lambda folder: (folder / "group1-shard2of2.bin").write_bytes(b"abc"), "cannot read .*ResNet-50"),
        (lambda folder: (folder / "model.json").write_text("{}"), "cannot read .*weightsManifest"),
        (lambda folder: (folder / "model.json").write_text("["), "cannot read .*ResNet-50"),
        (lambda folder: append(folder / "group1-shard2of2.bin", b"\0\0\0\0"), "expected [0-9]+: download them again"),
        (lambda folder: replace(folder / "model.json", "float32", "int32"), "expected float32 weights, found int32"),
    ],
)
def test_damaged_files(tmp_path, part, damage, expected):
    path = write(tmp_path, part)
    damage(tmp_path)
    with pytest.raises(UserError, match=expected):
        weight_files.read_state_dict(path)


def test_another_network(tmp_path, part):
    with pytest.raises(UserError, match="found the layer block_1_expand"):
        keras.read(write(tmp_path, part | {"block_1_expand/kernel": np.zeros((1, 1, 2, 2), np.float32)}))
    del part["bn_conv1/gamma"]
    with pytest.raises(UserError, match=r"no usable .*bn_conv1/gamma"):
        keras.read(write(tmp_path, part))
