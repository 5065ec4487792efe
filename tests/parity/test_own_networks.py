"""`fastdfkd distill`: from modules of one's own to a student that loads into one's own module."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import fastdfkd_jax as fd
from fastdfkd_jax import own_networks
from fastdfkd_jax.errors import UserError

NET = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, width=4, classes=5):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

teacher = lambda: Small(6)
student = Small
"""
IMAGES = {"image_size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.2)}
# As short as a run can be: one call, in which the student learns for two steps.
SHORT = ("generator.width=4", "generator.latent_dim=4", "calls=1", "warmup_calls=0", "kd.steps_per_call=2")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    (folder / "net.py").write_text(NET)
    torch.manual_seed(1)
    torch.save(namespace()["teacher"]().state_dict(), folder / "teacher.pth")
    return folder


def namespace():
    found = {}
    exec(NET, found)
    return found


def run(nets, workdir, capsys=None, **changes):
    options = {"mean": "0.5,0.4,0.3", "std": "0.25,0.2,0.2", "image-size": 8, "student": f"{nets}/net.py:student"}
    options |= {"weights": f"{nets}/teacher.pth", "protocol": "smoke", "workdir": workdir} | changes
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    own_networks.main(["fastdfkd distill", f"{nets}/net.py:teacher", *flags, *SHORT])
    return capsys.readouterr().out if capsys else ""


@pytest.fixture(scope="module")
def finished(nets, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own") / "run"
    run(nets, workdir)
    return workdir


def test_the_student_loads_into_its_own_module_and_gives_the_same_logits(finished):
    module = namespace()["student"]().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(torch.load(finished / "student.pth", weights_only=True), strict=True)
    assert not torch.equal(before["conv.weight"], module.state_dict()["conv.weight"])
    network, variables = fd.load_network(finished / "student.safetensors", arch=str(finished / "networks" / "student"))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(network.apply(variables, jnp.asarray(x)).logits, theirs, rtol=1e-5, atol=1e-6)


def test_shifts_are_in_proportion_to_the_images_unless_they_are_given(finished, nets, tmp_path):
    config = json.loads((finished / "config.json").read_text())["config"]
    assert config["inversion"]["crop_padding"] == config["kd"]["crop_padding"] == 1  # of 8 pixels
    assert own_networks._shifts(None, finished / "networks" / "teacher") == own_networks._shifts(8, Path("none"))
    assert own_networks._shifts(32, Path("none")) == own_networks._shifts(None, Path("none")) == []
    own_networks.main(["fastdfkd distill", str(finished / "networks" / "teacher"), "--student", "wrn10_1",
                       "--protocol", "smoke", "--workdir", str(tmp_path), "kd.crop_padding=2", *SHORT])  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["config"]["kd"]["crop_padding"] == 2


def test_the_same_command_continues_and_says_how_to_load(nets, finished, capsys):
    before = (finished / "student.pth").read_bytes()
    printed = run(nets, finished, capsys)
    assert (finished / "student.pth").read_bytes() == before
    assert f"student: {finished}/student.pth" in printed
    assert "from net import student" in printed
    assert "KD steps" not in printed, "a run that was begun is not planned again"


def test_the_plan_comes_first_and_a_mistake_can_be_mended_in_the_same_workdir(nets, tmp_path, capsys):
    own = tmp_path / "run" / "networks" / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("a user's file")
    with pytest.raises(UserError, match="mean and std"):
        run(nets, tmp_path / "run", mean=None)
    printed = run(nets, tmp_path / "run", capsys).splitlines()
    assert printed[0].startswith("teacher graph:teacher: ")
    assert own.read_text() == "a user's file"
    summary = next(json.loads(line) for line in printed if line.startswith("{"))
    assert (summary["method"], summary["knows"], summary["images"]) == ("fastdfkd", "teacher only", 8)


def test_a_folder_of_pictures_may_be_given_to_a_run_that_has_ended(nets, finished, tmp_path, capsys):
    before = (finished / "student.pth").read_bytes()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "one.png")
    printed = run(nets, finished, capsys, probe=str(tmp_path))
    summary = next(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    assert (summary["probe_images"], summary["agreement_probe"] in (0, 100)) == (1, True)
    assert (summary["held_out_images"], summary["student_accuracy_last"]) == (8, None)
    assert (finished / "student.pth").read_bytes() == before
    with pytest.raises(UserError, match="found no folder"):
        run(nets, finished, probe=str(tmp_path / "none"))


def test_modules_of_this_process_are_taken_as_they_are(tmp_path):
    nets = namespace()
    teacher, student = nets["teacher"](), nets["student"]()
    done = fd.distill(teacher, student, tmp_path / "run", protocol="smoke", changes=SHORT, **IMAGES)
    assert done.summary["images"] == 8
    student.load_state_dict(torch.load(done.student, weights_only=True), strict=True)
    with pytest.raises(UserError, match=r"was begun with other networks or images: give a new workdir"):
        fd.distill(nets["teacher"](), student, tmp_path / "run", protocol="smoke", changes=SHORT, **IMAGES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mean": None}, r"mean and std of the teacher's images in \[0, 1\] are needed"),
        ({"mean": "125,123,114", "std": "63,62,67"}, r"divide them by 255"),
        ({"mean": "0.5", "std": "0.5"}, r"teacher: --mean has 1 numbers, expected 3"),
        ({"weights": "absent.pth"}, r"absent.pth does not exist"),
        ({"student": "net.py:nothing"}, r"net.py does not exist"),
        ({"student": "wrm16_1"}, r"config.student.arch must be a network of docs/models.md, such as wrn16_1, "),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(nets, tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected) as caught:
        run(nets, tmp_path / "run", **changes)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "run" / "student.pth").exists()


def test_a_word_that_is_no_change_is_refused(nets):
    with pytest.raises(UserError, match=r"expected KEY=VALUE, found 'fast'"):
        own_networks.main(["fastdfkd distill", "net.py:teacher", "--student", "wrn16_1", "fast"])
