"""Which entries of a file are taken for the weights, and what is said of the others."""

import argparse
import datetime
import os
import pathlib
import re
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from convert_samples import random_variables
from safetensors.torch import save_file

from fastdfkd_jax import convert
from fastdfkd_jax.convert import weight_files
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, build

NORMALIZATION = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]


def state_of(seed: int) -> dict[str, Any]:
    variables = random_variables(build(NetworkSpec("wrn10_1", 4)), seed)
    return {name: torch.from_numpy(array) for name, array in convert.to_state_dict(variables).items()}


RAW, EMA = state_of(0), state_of(1)


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def imported(tmp_path, content, *options: str, name: str = "teacher.pth") -> dict[str, np.ndarray]:
    """What the import of such a file stores, by our names."""
    torch.save(content, tmp_path / name)
    out = tmp_path / "out.safetensors"
    assert main(["import", str(tmp_path / name), "--out", str(out), *NORMALIZATION, *options]) == 0
    return weight_files.read(out).state


def is_same(found: dict[str, np.ndarray], expected: dict[str, Any]) -> bool:
    weights = {name for name in expected if "num_batches" not in name}
    return all(found[name].tobytes() == expected[name].numpy().tobytes() for name in weights)


BOTH = {
    "timm": {"state_dict": RAW, "state_dict_ema": EMA, "epoch": 3},
    "torchvision": {"model": prefixed("module.", RAW), "model_ema": {"n_averaged": torch.tensor(9)} | EMA},
    "yolo": {"model": RAW, "ema": {"module": EMA, "updates": 3}},
    "swa": {"state_dict": RAW, "swa_state_dict": EMA},
    "lightning": {"state_dict": prefixed("model.", RAW) | prefixed("ema_model.", EMA)},
    "a shadow": {"net": RAW, "ema": {"decay": 0.9, "shadow": EMA}},
    "bare": RAW | {"model_ema": EMA},
}


@pytest.mark.parametrize("case", BOTH)
def test_raw_weights_are_taken_and_averaged_ones_are_named(tmp_path, capsys, case):
    assert is_same(imported(tmp_path, BOTH[case]), RAW)
    said = capsys.readouterr().out
    assert "took the raw weights" in said
    assert "averaged (EMA or SWA)" in said
    assert "--weights ema to take those" in said
    assert is_same(imported(tmp_path, BOTH[case], "--weights", "ema"), EMA)
    assert "averaged" in capsys.readouterr().out
    assert is_same(imported(tmp_path, BOTH[case], "--weights", "raw"), RAW)


def test_every_door_says_that_there_are_averaged_weights(tmp_path, caplog):
    torch.save(BOTH["timm"], tmp_path / "teacher.pth")
    convert.load_network(tmp_path / "teacher.pth", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "teacher.pth: took the raw weights under state_dict" in caplog.text


def test_averaged_weights_alone_are_taken(tmp_path, capsys):
    assert is_same(imported(tmp_path, {"model_ema": prefixed("module.", EMA), "epoch": 3}), EMA)
    assert "took averaged weights (EMA or SWA), under model_ema: there are no raw ones" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["network", "params", "weights", "state", "teacher", "student", "ema", "module"])
def test_more_containers_are_understood(tmp_path, capsys, key):
    assert is_same(imported(tmp_path, {key: RAW, "epoch": 3, "cfg": {"a": 1}}), RAW)
    said = capsys.readouterr().out
    assert f"took the weights under {key}" in said
    assert re.search(r"^next, compare it .*fastdfkd convert verify .*out\.safetensors --torch", said, re.MULTILINE)


EXTRAS = {
    "AveragedModel": ({"n_averaged": torch.tensor(100), **prefixed("module.", RAW)}, "n_averaged"),
    "thop": (
        RAW | {"total_ops": torch.zeros(1), "fc.total_ops": torch.zeros(1), "fc.total_params": torch.zeros(1)},
        "total_ops, fc.total_ops",
    ),
    "a criterion": ({"state_dict": prefixed("model.", RAW) | {"criterion.weight": torch.ones(4)}}, "criterion.weight"),
    "metrics": ({"state_dict": prefixed("model.", RAW) | {"val_acc.tp": torch.zeros(4)}}, "val_acc.tp"),
    "a normaliser": (
        {"0.mean": torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), "0.std": torch.ones(3, 1, 1), **prefixed("1.", RAW)},
        "--mean 0.5,0.4,0.3 --std 1,1,1",
    ),
    "an attacker": (
        {
            "model": {
                **prefixed("module.model.", RAW),
                **prefixed("module.attacker.model.", EMA),
                "module.normalizer.new_mean": torch.zeros(3, 1, 1),
            }
        },
        "belong to a network: module.attacker.",
    ),
    "numbers": (RAW | {"epoch": 3, "arch": "wrn", "best": 91.5}, "epoch, arch, best"),
}


@pytest.mark.parametrize("case", EXTRAS)
def test_bookkeeping_is_dropped_and_named(tmp_path, capsys, case):
    content, named = EXTRAS[case]
    assert is_same(imported(tmp_path, content), RAW)
    said = capsys.readouterr().out
    assert "ignored " in said
    assert named in said


def refused(capsys, tmp_path, content, *options: str) -> str:
    torch.save(content, tmp_path / "teacher.pth")
    out = tmp_path / "out.safetensors"
    out.unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["import", str(tmp_path / "teacher.pth"), "--out", str(out), *NORMALIZATION, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not out.exists()
    return error


def test_a_choice_between_networks_is_the_users(tmp_path, capsys):
    two = {"teacher": RAW, "student": EMA}
    assert "several networks, under teacher, student: choose one with --key" in refused(capsys, tmp_path, two)
    assert is_same(imported(tmp_path, two, "--key", "teacher"), RAW)
    flat = prefixed("teacher.", RAW) | prefixed("student.", EMA)
    assert "under teacher., student.: choose one with --prefix teacher." in refused(capsys, tmp_path, flat)
    assert is_same(imported(tmp_path, flat, "--prefix", "student."), EMA)
    nested = {"a": {"b": {"state_dict": RAW}}, "c": 1}
    assert is_same(imported(tmp_path, nested, "--key", "a.b"), RAW)


def test_a_second_head_is_ignored_on_request(tmp_path, capsys):
    content = RAW | {"rotation.weight": torch.ones(4, 64), "rotation.bias": torch.ones(4)}
    assert "--ignore 'rotation.*'" in refused(capsys, tmp_path, content, "--arch", "wrn10_1")
    assert is_same(imported(tmp_path, content, "--ignore", "rotation.*"), RAW)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--weights", "ema"), "it has no ema weights, found bare tensors"),
        (("--key", "net"), "--key net does not exist: expected one of the file's keys, found "),
        (("--prefix", "net."), "--prefix net. matches no entry"),
        (("--ignore", "net.*"), "--ignore net.* matches no entry"),
        (("--ignore", "*"), "no entries are left"),
    ],
)
def test_options_that_fit_nothing_are_refused(tmp_path, capsys, options, expected):
    assert expected in refused(capsys, tmp_path, RAW, *options)


BESIDE = {
    "a NumPy number": np.float64(91.7),
    "another": np.float32(91.7),
    "a mean": np.mean([0.7, 0.8]),
    "an array": np.arange(3.0),
    "a namespace": argparse.Namespace(lr=0.1, model="wrn10_1"),
    "a path": pathlib.PurePosixPath("runs") / "a",
    "a time": datetime.datetime(2024, 1, 2, 3, 4),
    "a defaultdict": defaultdict(list, {"loss": [1.0]}),
    "a version": torch.__version__,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", BESIDE)
def test_values_beside_the_weights_do_no_harm(tmp_path, case, legacy):
    path = tmp_path / "teacher.pth"
    content = OrderedDict(epoch=3, state_dict=RAW, value=BESIDE[case])
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    before = torch.serialization.get_safe_globals()
    assert is_same(weight_files.read(path).state, RAW)
    assert set(torch.serialization.get_safe_globals()) == set(before)  # nothing stays allowed


def test_a_namespace_is_not_made_and_sets_nothing(tmp_path):
    """The state of a pickled object is handed to a class that keeps nothing, and never becomes attributes."""
    from fastdfkd_jax.convert import torch_files

    namespace = argparse.Namespace(lr=0.1)
    vars(namespace)["__class__"] = "x"
    torch.save({"args": namespace, "state_dict": RAW}, tmp_path / "teacher.pth")
    found = torch_files.load(tmp_path / "teacher.pth")["args"]
    assert type(found) is torch_files.Inert
    assert not hasattr(found, "__dict__")
    assert not hasattr(found, "lr")
    assert not vars(torch_files.Inert).keys() & {"lr", "__dict__"}


NAMES = ["a.ckpt", "a.pth.tar", "a.bin", "a.t7", "A.PTH", "no_suffix", "a.safetensors", "a.json", "a.model.v2"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_determines_the_format(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "safetensors":
        save_file(RAW, path)
    else:
        torch.save({"state_dict": RAW}, path, _use_new_zipfile_serialization=kind == "zip")
    assert is_same(weight_files.read(path).state, RAW)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "is a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "is compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x93NUMPY\x01\0", "is a NumPy array"),
    ],
)
def test_other_files_are_named(tmp_path, start, expected):
    (tmp_path / "teacher.pth").write_bytes(start)
    with pytest.raises(UserError, match=expected):
        convert.load_network(tmp_path / "teacher.pth")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((123.675, 116.28, 103.53), (1,) * 3),
        ((0,) * 3, (255,) * 3),
    ],
)
def test_a_normalisation_of_0_to_255_is_refused(tmp_path, mean, std):
    torch.save(RAW, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=r"images in \[0, 1\], found .* divide them by 255"):
        convert.load_network(tmp_path / "teacher.pth", mean=mean, std=std)
    network, _ = convert.load_network(tmp_path / "teacher.pth", mean=(0.485,) * 3, std=(1 / 255,) * 3)
    assert network.spec.std == (1 / 255,) * 3


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(RAW, tmp_path / "teacher.pth")
    assert main(["import", "~/teacher.pth", "--out", "~/out.safetensors", *NORMALIZATION]) == 0
    assert main(["export", "~/out.safetensors", "--out", "~/back.pth"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["back.pth", "out.safetensors", "teacher.pth"]
    assert convert.load_network("~/out.safetensors")[0].spec.arch == "wrn10_1"
