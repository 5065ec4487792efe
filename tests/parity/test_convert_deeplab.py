"""DeepLabv3 from the port's and from torchvision's names and back, and against torch."""

import json
import re

import jax
import numpy as np
import pytest
import torch
from absl import logging
from convert_samples import seeded_twin
from safetensors import safe_open
from safetensors.numpy import load_file

from fastdfkd_jax import convert
from fastdfkd_jax.convert import naming
from fastdfkd_jax.convert import verify as verification
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.convert.guess import guess_arch, guess_channels, guess_classes
from fastdfkd_jax.convert.verify import verify
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, arch_names, build

NORMALIZATION = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
ARCHS = tuple(name for name in arch_names() if name.startswith("deeplabv3_"))
SMALL = "deeplabv3_mobilenetv2_os16"
QUICK = (SMALL, "deeplabv3_resnet18_os16")
OTHER_STRIDES = ("deeplabv3_resnet50_os16", "deeplabv3_mobilenetv2")  # of networks whose gradients are compared

# torchvision's form of the module: another place of the head, and a dictionary of outputs.
USER_NETWORK = """
import torch
from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.models import NetworkSpec


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        module = twin(NetworkSpec("deeplabv3_mobilenetv2_os16", 7))
        self.backbone, self.classifier = module.backbone, module.classifier.classifier

    def forward(self, x):
        logits = self.classifier(self.backbone(x))
        logits = torch.nn.functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": logits, "aux": 2 * logits}
"""


def as_torchvision(state):
    """The same entries under torchvision's names."""
    return {name.replace("classifier.classifier.", "classifier."): tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def port():
    """A seeded network's entries under the port's names, as DataParallel keeps them."""
    return {f"module.{name}": tensor for name, tensor in seeded_twin(NetworkSpec(SMALL, 7)).state_dict().items()}


@pytest.fixture(scope="module")
def torchvision():
    """A ResNet's entries under torchvision's names, with its second head."""
    state = as_torchvision(seeded_twin(NetworkSpec("deeplabv3_resnet18", 7)).state_dict())
    auxiliary = {"aux_classifier.0.weight": torch.ones(64, 256, 3, 3), "aux_classifier.4.bias": torch.ones(7)}
    return state, auxiliary


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("arch", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in ARCHS])
def test_a_seeded_module_verifies(tmp_path, arch, monkeypatch):
    if arch in OTHER_STRIDES:
        monkeypatch.setattr(verification, "image_gradients", lambda *_: {})
    torch.save(seeded_twin(NetworkSpec(arch, 7)).state_dict(), tmp_path / "module.pth")
    report = verify(tmp_path / "module.pth", arch=arch, image_size=64)
    assert (report.spec.arch, report.spec.task) == (arch, "segmentation")
    assert report.passed, [check for check in report.checks if not check.passed]


def test_the_ports_names_come_back_exactly(tmp_path, port):
    source, ours, back = tmp_path / "port.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    torch.save({"state_dict": port}, source)
    assert main(["import", str(source), "--out", str(ours), "--arch", SMALL, *NORMALIZATION]) == 0
    assert main(["export", str(ours), "--out", str(back)]) == 0
    assert same(torch.load(back, weights_only=True), port)
    network, variables = convert.load_network(ours)
    assert network.spec == NetworkSpec(SMALL, 7, 128, task="segmentation")
    with safe_open(ours, "np") as file:
        assert json.loads(file.metadata()["fastdfkd_jax"])["task"] == "segmentation"
    convert.save_network(tmp_path / "again.safetensors", network, variables)
    assert convert.load_network(tmp_path / "again.safetensors")[0].spec == network.spec


@pytest.mark.parametrize("arch", [None, "deeplabv3_mobilenetv2"])
def test_a_stride_that_nobody_has_said_is_warned_of(tmp_path, port, monkeypatch, arch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    torch.save({"model_state": port, "cur_itrs": 30000}, tmp_path / "port_os16.pth")
    network, _ = convert.load_network(tmp_path / "port_os16.pth", arch=arch, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert network.spec.arch == "deeplabv3_mobilenetv2"
    assert len(said) == (0 if arch else 1)
    assert all(re.search("8 is assumed: .* the architecture deeplabv3_mobilenetv2_os16$", line) for line in said)


def test_torchvisions_names_are_understood_and_come_back(tmp_path, torchvision, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    state, auxiliary = torchvision
    source, ours, back = tmp_path / "theirs.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    torch.save(state | auxiliary, source)
    assert main(["import", str(source), "--out", str(ours), *NORMALIZATION]) == 0
    assert said == ["ignored 2 entries of aux_classifier.*, a head used only in training"]
    assert {"classifier.classifier.0.convs.4.1.weight", "classifier.classifier.4.bias"} <= load_file(ours).keys()
    assert not any("aux" in name for name in load_file(ours))
    assert convert.load_network(ours)[0].spec.arch == "deeplabv3_resnet18"
    for style in ("source", "torchvision"):
        assert main(["export", str(ours), "--out", str(back), "--naming", style]) == 0
        assert same(torch.load(back, weights_only=True), state)


@pytest.mark.parametrize("style", ["ours", "torchvision"])
def test_names_can_be_chosen_at_the_export(tmp_path, torchvision, style):
    state, _ = torchvision
    source, back = tmp_path / "source.pth", tmp_path / "back.pth"
    ours = {name.replace("classifier.", "classifier.classifier."): tensor for name, tensor in state.items()}
    torch.save(ours, source)
    assert main(["export", str(source), "--out", str(back), "--naming", style]) == 0
    assert same(torch.load(back, weights_only=True), ours if style == "ours" else state)


@pytest.mark.parametrize("names", ["port", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_a_module_that_gives_a_dictionary_is_a_reference(tmp_path, port, capsys, names):
    """Its own names are torchvision's; the checkpoint's are those or the port's."""
    state = {name.removeprefix("module."): tensor for name, tensor in port.items()}
    torch.save(state if names == "port" else as_torchvision(state), tmp_path / "source.pth")
    (tmp_path / "network.py").write_text(USER_NETWORK)
    arguments = ["verify", str(tmp_path / "source.pth"), "--arch", SMALL, "--image-size", "32", "--json"]
    assert main([*arguments, "--torch", f"{tmp_path / 'network.py'}:Network"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["spec"]["task"] == "segmentation"
    assert {"classifier.classifier.0.project.1 input var", "round trip"} <= {c["name"] for c in report["checks"]}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torchvisions_entries_tell_the_architecture_too(arch, prefix):
    network = build(NetworkSpec(arch, 17, channels=1))
    entries = naming.expected_entries(network)
    state = {f"{prefix}{n}": np.zeros(entry.shape, np.float32) for n, entry in as_torchvision(entries).items()}
    assert (guess_arch(state), guess_classes(state), guess_channels(state)) == (arch.removesuffix("_os16"), 17, 1)
    found = naming.find_naming(state, entries)
    assert {found.to_ours(name) for name in state} == set(entries)
    assert {found.to_source(name) for name in entries} == set(state)


def test_an_unknown_backbone_is_asked_for():
    entries = naming.expected_entries(build(NetworkSpec("deeplabv3_resnet18", 5)))
    state = {name: np.zeros(entry.shape, np.float32) for name, entry in entries.items()}
    state["backbone.layer1.2.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)
    with pytest.raises(UserError, match=r"cannot be recognised.*--arch"):
        guess_arch(state)


def test_what_is_missing_is_said_by_torchvisions_names(torchvision):
    network = build(NetworkSpec("deeplabv3_resnet18", 7))
    state, auxiliary = ({name: tensor.numpy() for name, tensor in part.items()} for part in torchvision)
    del state["classifier.4.bias"]
    with pytest.raises(UserError, match=r"missing \(1\): classifier\.4\.bias; check --arch"):
        naming.from_state_dict(state | auxiliary, network)
    state["classifier.4.bias"] = np.zeros(7, np.float32)
    variables = naming.from_state_dict(state | auxiliary, network)
    shapes = dict(jax.eval_shape(network.init, jax.random.key(0)))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
