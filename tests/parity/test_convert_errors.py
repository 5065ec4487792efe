"""Bad input: one line, exit status 2, nothing written and nothing run."""

import io
import os
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from convert_samples import USER_NETWORK, random_variables
from malicious import Runs

from fastdfkd_jax import convert
from fastdfkd_jax.convert import record
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.models import NetworkSpec, build

PATHS = re.compile(r"/\S+")  # those of temporary folders are long
NORMALIZATION = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]


@pytest.fixture(scope="module")
def state():
    network = build(NetworkSpec("wrn10_1", 4))
    return {n: torch.from_numpy(a) for n, a in convert.to_state_dict(random_variables(network)).items()}


def saved(content, **options) -> bytes:
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scripted() -> bytes:
    """The bytes of a TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files are about all the same
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def quantised() -> bytes:
    """The bytes of a quantised tensor under the name a."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their coming end in PyTorch; their files stay
        return saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


def changed(state, name, value):
    """The state dictionary with one entry's first number set."""
    copy = {key: tensor.clone() for key, tensor in state.items()}
    copy[name].view(-1)[0] = value
    return copy


def without_batch_norm(state):
    return {name: t for name, t in state.items() if ".conv" in name or name.startswith(("conv1", "fc"))}


# How each file's bytes are made from a sound state dictionary and a path to mark, and what the line must say.
FILES = {
    "empty": (lambda s, m: b"", "is empty"),
    "truncated": (lambda s, m: saved(s)[:5000], "truncated"),
    "truncated, old format": (lambda s, m: saved(s, _use_new_zipfile_serialization=False)[:-5000], "truncated"),
    "text": (lambda s, m: b"hello, this is no checkpoint\n" * 9, "not a PyTorch checkpoint"),
    "noise": (lambda s, m: np.random.default_rng(0).bytes(999), "not a PyTorch checkpoint"),
    "a list": (lambda s, m: saved([torch.zeros(2)]), "found list"),
    "a tensor": (lambda s, m: saved(torch.zeros(2)), "found Tensor"),
    "no tensors": (lambda s, m: saved({}), "holds no tensors"),
    "unknown container": (
        lambda s, m: saved({"resnet": s, "epoch": 3}),
        "not tensors: resnet, epoch; there are tensors under resnet: take them with --key resnet",
    ),
    "sparse": (lambda s, m: saved({"a": torch.eye(3).to_sparse()}), "a in .* is sparse: expected dense weights"),
    "quantised": (lambda s, m: quantised(), "a in .* is quantised: expected floating-point weights"),
    "TorchScript": (lambda s, m: scripted(), "TorchScript"),
    "a whole module": (lambda s, m: saved(torch.nn.Linear(2, 2)), r"asks for torch\.nn\.modules\.linear\.Linear"),
    "malicious": (lambda s, m: saved({"state_dict": s, "x": Runs(m)}), r"asks for \w+\.system"),
    "malicious, old format": (
        lambda s, m: saved({"state_dict": s, "x": Runs(m)}, _use_new_zipfile_serialization=False),
        r"asks for \w+\.system",
    ),
    "malicious, bare pickle": (lambda s, m: pickle.dumps(Runs(m)), r"asks for \w+\.system"),
    "malicious, protocol 2": (lambda s, m: pickle.dumps(Runs(m), protocol=2), r"asks for \w+\.system"),
    "NaN": (lambda s, m: saved(changed(s, "conv1.weight", float("nan"))), r"not finite \(1\): conv1\.weight"),
    "infinite": (lambda s, m: saved(changed(s, "fc.bias", float("inf"))), r"not finite \(1\): fc\.bias"),
    "negative variance": (
        lambda s, m: saved(changed(s, "bn1.running_var", -0.5)),
        r"negative variance \(1\): bn1\.running_var",
    ),
    "no BatchNorm": (lambda s, m: saved(without_batch_norm(s)), "has no BatchNorm"),
    "another network": (
        lambda s, m: saved({"encoder.weight": torch.zeros(3, 3)}),
        r"name it with --arch.*record its graph: fastdfkd convert record",
    ),
    "no classifier": (lambda s, m: saved({"conv1.weight": s["conv1.weight"]}), "no linear layer"),
    "half a network": (
        lambda s, m: saved({n: t for n, t in s.items() if not n.startswith("bn1")}),
        r"missing \(4\): bn1\.bias, bn1\.running_mean, bn1\.running_var, bn1\.weight",
    ),
}

ARGUMENTS = {
    "wrong architecture": (["--arch", "resnet8"], r"missing \(30\).*not used \(38\).*check --arch"),
    "unknown architecture": (["--arch", "alexnet"], "unknown architecture 'alexnet'"),
    "wrong classes": (["--num-classes", "100"], "has 4 classes, expected 100"),
    "two means": (["--mean", "0.5,0.5"], "--mean has 2 numbers, expected 3"),
    "a word for a mean": (["--mean", "cifar"], "expected numbers separated by commas, found 'cifar'"),
    "a std of zero": (["--std", "0,1,1"], "std positive"),
    "no size": (["--image-size", "0"], "--image-size"),
    "a huge size": (["--image-size", "20000"], "at most 13,377, found 20,000; FASTDFKD_MAX_PIXELS raises it"),
    "a word for a size": (["--image-size", "big"], "invalid int value: 'big'"),
    "an unknown option": (["--architecture"], "unrecognized arguments"),
}


def one_line(text: str) -> str:
    """What a refusal prints; fails where it is not a single line of the usual form."""
    assert text.startswith("error: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


def refused(capsys, arguments: list[object], expected: str) -> None:
    """Runs a command that must be refused in one line which matches `expected`."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err) - sum(map(len, PATHS.findall(captured.err))) <= 300
    assert re.search(expected, one_line(captured.err)), captured.err


@pytest.mark.parametrize("case", FILES)
def test_bad_files(tmp_path, state, capsys, case):
    make, expected = FILES[case]
    source, out, marker = tmp_path / "bad.pth", tmp_path / "out.safetensors", tmp_path / "marker"
    source.write_bytes(make(state, marker))
    refused(capsys, ["import", source, "--out", out, *NORMALIZATION], expected)
    refused(capsys, ["verify", source], expected)
    refused(capsys, ["export", source, "--out", tmp_path / "out.pth"], expected)
    assert not marker.exists()
    assert os.listdir(tmp_path) == ["bad.pth"]


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(tmp_path, state, capsys, case):
    extra, expected = ARGUMENTS[case]
    (tmp_path / "good.pth").write_bytes(saved(state))
    refused(
        capsys,
        ["import", tmp_path / "good.pth", "--out", tmp_path / "out.safetensors", *NORMALIZATION, *extra],
        expected,
    )
    assert os.listdir(tmp_path) == ["good.pth"]


def test_verbose_lists_every_entry(tmp_path, state, capsys):
    (tmp_path / "good.pth").write_bytes(saved(state))
    arguments = ["export", str(tmp_path / "good.pth"), "--out", str(tmp_path / "o.pth"), "--arch", "resnet8"]
    assert main(arguments) == 2
    assert one_line(capsys.readouterr().err).endswith("(--verbose: all)\n")
    assert main([*arguments, "--verbose"]) == 2
    text = one_line(capsys.readouterr().err)
    assert re.search(r"missing .*layer1\.0\.bn1\.bias.*not used .*block1\.layer\.0", text)
    assert all(name in text for name in state if name.startswith("block2"))


def test_bad_safetensors(tmp_path, state, capsys):
    source = tmp_path / "bad.safetensors"
    convert.save_network(source, (network := build(NetworkSpec("wrn10_1", 4))), random_variables(network))
    whole = source.read_bytes()
    for content, expected in ((whole[:-100], "truncated"), (whole[:40], "truncated"), (saved(state)[:400], "damaged")):
        source.write_bytes(content)
        refused(capsys, ["export", source, "--out", tmp_path / "out.pth"], expected)


def test_places(tmp_path, state, capsys):
    source = tmp_path / "good.pth"
    source.write_bytes(saved(state))
    refused(capsys, ["verify", tmp_path / "absent.pth"], "there is no checkpoint .*absent.pth")
    refused(capsys, ["verify", tmp_path], "expected a file that ends in .pth, .pt, .th, .safetensors")
    (tmp_path / "folder.pth").mkdir()
    refused(capsys, ["verify", tmp_path / "folder.pth"], "is a folder without graph.json")
    refused(capsys, ["import", source, "--out", tmp_path / "out.safetensors"], "give --mean and --std")
    refused(capsys, ["import", source, "--out", tmp_path / "out.pth", *NORMALIZATION], "must end in .safetensors")
    refused(capsys, ["export", source, "--out", tmp_path / "out.pb"], "must end in one of")
    absent = tmp_path / "absent" / "out.safetensors"
    refused(capsys, ["import", source, "--out", absent, *NORMALIZATION], "cannot write .*No such file")
    refused(capsys, [], "required: command")


def test_torch_that_is_not_installed(tmp_path, state, capsys, monkeypatch):
    (tmp_path / "good.pth").write_bytes(saved(state))
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(capsys, ["verify", tmp_path / "good.pth"], r"pip install torch")


@pytest.fixture
def user_checkpoint(tmp_path):
    """A checkpoint of the user's own network, and the file that makes it."""
    (tmp_path / "network.py").write_text(USER_NETWORK)
    module = record.load_factory(f"{tmp_path / 'network.py'}:make")
    torch.save(module.state_dict(), tmp_path / "user.pth")
    return tmp_path / "user.pth"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("network.py", "expected FILE.py:FACTORY"),
        ("absent.py:make", "expected FILE.py:FACTORY that names an existing file"),
        ("network.py:absent", "has no 'absent'"),
        ("network.py:break_down", r"RuntimeError: out of order \(line \d+\)"),
        ("network.py:make_other", "does not fit the PyTorch module: .*fc.bias"),
        ("network.py:torch", "TypeError"),
    ],
)
def test_bad_factories(tmp_path, user_checkpoint, capsys, target, expected):
    refused(capsys, ["verify", user_checkpoint, "--torch", tmp_path / target], expected)
    out = tmp_path / "reference.npz"
    assert record.main([str(tmp_path / target), "--checkpoint", str(user_checkpoint), "--out", str(out)]) == 2
    one_line(capsys.readouterr().err)
    assert not out.exists()


def test_bad_references(tmp_path, user_checkpoint, capsys):
    reference = tmp_path / "reference.npz"
    refused(capsys, ["verify", user_checkpoint, "--reference", reference], "there is no reference")
    for content in (b"", b"no archive", b"PK\x03\x04 half an archive"):
        reference.write_bytes(content)
        refused(capsys, ["verify", user_checkpoint, "--reference", reference], "is not an .npz")
    np.savez(reference, images=np.zeros((1, 3, 32, 32), np.float32))
    refused(capsys, ["verify", user_checkpoint, "--reference", reference], "has no labels, logits")
    module = record.load_factory(f"{tmp_path / 'network.py'}:make")
    np.savez(reference, allow_pickle=False, **record.record(module, record.fixed_images((2, 3, 16, 16))))
    refused(capsys, ["verify", user_checkpoint, "--reference", reference], "images of 3x16x16, expected 3x32x32")
    other = record.load_factory(f"{tmp_path / 'network.py'}:make_other")
    np.savez(reference, allow_pickle=False, **record.record(other, record.fixed_images((2, 3, 32, 32))))
    refused(capsys, ["verify", user_checkpoint, "--reference", reference], "has 7 classes, expected 10")
    arrays = record.record(module, record.fixed_images((2, 3, 32, 32)))
    np.savez(reference, allow_pickle=False, **{n: a for n, a in arrays.items() if "moments/bn1" not in n})
    refused(capsys, ["verify", user_checkpoint, "--reference", reference], "BatchNorms missing: bn1; added: none")


@pytest.mark.parametrize("case", ["malicious", "truncated", "NaN"])
def test_the_command_itself(tmp_path, state, case):
    """As a user runs it: a fresh interpreter, its exit status and all that it writes to stderr."""
    source, marker = tmp_path / "bad.pth", tmp_path / "marker"
    source.write_bytes(FILES[case][0](state, marker))
    command = [sys.executable, "-m", "fastdfkd_jax.convert", "import", source.name, "--out", "out.safetensors"]
    done = subprocess.run([*command, *NORMALIZATION], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    one_line(done.stderr)
    assert os.listdir(tmp_path) == ["bad.pth"]
