"""Containers, types and formats on the way in; whole files on the way out."""

import os
import sys

import numpy as np
import pytest
import torch
from convert_samples import random_variables

from fastdfkd_jax import convert
from fastdfkd_jax.convert import weight_files
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, build

SPEC = NetworkSpec("wrn10_1", 4, image_size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
GIVEN = {"mean": SPEC.mean, "std": SPEC.std, "image_size": 64}


@pytest.fixture(scope="module")
def network():
    return build(SPEC)


@pytest.fixture(scope="module")
def variables(network):
    return random_variables(network)


@pytest.fixture(scope="module")
def state(variables):
    return {n: torch.from_numpy(a) for n, a in convert.to_state_dict(variables).items()}


def same(found, variables) -> bool:
    """Whether two sets of variables have equal bits."""
    pairs = [
        (found[kind][module][name], array)
        for kind, modules in variables.items()
        for module, leaves in modules.items()
        for name, array in leaves.items()
    ]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
@pytest.mark.parametrize(
    "container", [(), ("state_dict",), ("model_state",), ("model",), ("net",), ("model", "state_dict")]
)
def test_containers_and_prefixes(tmp_path, state, variables, container, suffix, prefix):
    content = {prefix + name: tensor for name, tensor in state.items()}
    for key in reversed(container):
        content = {"epoch": 3, "best": 91.2, key: content}
    path = tmp_path / f"teacher{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=suffix != ".th")
    network, found = convert.load_network(path, **GIVEN)
    assert network.spec == SPEC
    assert same(found, variables)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_float_types_become_float32(tmp_path, state, dtype, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"teacher{suffix}"
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    (torch.save if suffix == ".pth" else save_file)(cast, path)
    _, found = convert.load_network(path, **GIVEN)
    kernel = np.asarray(found["params"]["fc"]["kernel"])
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state["fc.weight"].to(dtype).float().numpy().T)


def test_our_format_keeps_the_spec_and_what_else_is_given(tmp_path, network, variables):
    path = tmp_path / "student.safetensors"
    convert.save_network(path, network, variables, metadata={"accuracy": 91.25})
    again, found = convert.load_network(path)
    assert again.spec == SPEC
    assert same(found, variables)
    assert weight_files.read_state_dict(path)[1]["accuracy"] == 91.25
    other, _ = convert.load_network(path, mean=(0.1, 0.2, 0.3), image_size=32)
    assert (other.spec.mean, other.spec.std, other.spec.image_size) == ((0.1, 0.2, 0.3), SPEC.std, 32)


def test_our_format_needs_no_torch(tmp_path, network, variables, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    convert.save_network(tmp_path / "student.safetensors", network, variables)
    assert same(convert.load_network(tmp_path / "student.safetensors")[1], variables)
    with pytest.raises(UserError, match=r"pip install torch"):
        convert.save_network(tmp_path / "student.pth", network, variables)
    assert os.listdir(tmp_path) == ["student.safetensors"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, network, variables, monkeypatch):
    path = tmp_path / "student.safetensors"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        convert.save_network(path, network, variables)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]
