"""Conversions against torch: what is computed, the way back, and a comparison that can fail."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from convert_samples import USER_NETWORK, random_variables, seeded_twin
from safetensors.numpy import load_file

from fastdfkd_jax import convert
from fastdfkd_jax.convert import record
from fastdfkd_jax.convert import verify as verification
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.convert.verify import verify
from fastdfkd_jax.models import NetworkSpec, arch_names, build, count_batch_norms

NORMALIZATION = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]
# The others take minutes together.
QUICK = ("wrn16_1", "resnet8", "resnet8x4", "resnet18", "vgg8")
# Of the blocks of another one, whose gradients are compared: logits, moments and names suffice.
OTHER_DEPTHS = ("wrn40_2", "resnet20b", "resnet34", "resnet50_imagenet", "vgg13")
# Of the same code and depths between or beyond; real teachers of 20 and 56 layers verify above.
SAME = (
    "wrn16_2", "wrn40_1", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet32x4",
    "resnet34_imagenet", "vgg11",
)  # fmt: skip
TEACHERS = {"resnet20-12fca82f.th": ("resnet20", 19), "resnet56-4bfd9763.th": ("resnet56", 55)}


def save_twin(path: pathlib.Path, spec: NetworkSpec):
    """Writes a seeded twin as a user would; returns the module."""
    module = seeded_twin(spec)
    torch.save(module.state_dict(), path)
    return module


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(USER_NETWORK)
    return path


@pytest.fixture
def user_checkpoint(tmp_path, user_file):
    """The user's network, untrained but with its own statistics, as DataParallel saved it."""
    torch.manual_seed(1)
    module = record.load_factory(f"{user_file}:make_parallel").train()
    for _ in range(3):
        module(torch.randn(8, 3, 32, 32))
    path = tmp_path / "user.pth"
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, path)
    return path


@pytest.mark.optimized
@pytest.mark.parametrize(
    "file", [name if "20" in name else pytest.param(name, marks=pytest.mark.slow) for name in TEACHERS]
)
def test_the_real_teachers_verify(shared_data, file):
    arch, batch_norms = TEACHERS[file]
    report = verify(shared_data / "teachers" / file)
    assert report.spec.arch == arch
    assert report.passed, [check for check in report.checks if not check.passed]
    assert sum("input" in check.name for check in report.checks) == 2 * batch_norms


@pytest.mark.parametrize("file", TEACHERS)
def test_the_real_teachers_come_back_bit_equal(shared_data, tmp_path, file):
    arch, batch_norms = TEACHERS[file]
    source, ours, back = shared_data / "teachers" / file, tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main(["import", str(source), "--out", str(ours), *NORMALIZATION]) == 0
    assert main(["export", str(ours), "--out", str(back)]) == 0
    original = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    again = torch.load(back, weights_only=True)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)
    network, variables = convert.load_network(ours)
    assert network.spec == NetworkSpec(arch, 10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    assert count_batch_norms(variables) == batch_norms


# DeepLabv3 verifies in test_convert_deeplab.py.
@pytest.mark.parametrize(
    "arch",
    [
        arch if arch in QUICK else pytest.param(arch, marks=pytest.mark.slow)
        for arch in arch_names()
        if not arch.startswith("deeplabv3") and arch not in SAME
    ],
)
def test_a_seeded_module_of_each_architecture_verifies(tmp_path, arch, monkeypatch):
    if arch in OTHER_DEPTHS:
        monkeypatch.setattr(verification, "image_gradients", lambda *_: {})
    save_twin(tmp_path / "module.pth", NetworkSpec(arch, 7))
    # Strides and epsilons are not among the entries, so these are named.
    named = arch if arch == "resnet50v1_imagenet" else None
    report = verify(tmp_path / "module.pth", arch=named)
    assert (report.spec.arch, report.spec.num_classes) == (arch, 7)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert len(report.checks) > 12


@pytest.mark.parametrize("spec", [NetworkSpec("vgg8", 5, image_size=64), NetworkSpec("wrn10_1", 3, channels=1)])
def test_other_inputs_verify(tmp_path, spec):
    save_twin(tmp_path / "module.pt", spec)
    report = verify(tmp_path / "module.pt", image_size=spec.image_size)
    assert report.spec.input_shape == spec.input_shape
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("arch", ["wrn10_1", "resnet8", "resnet8x4", "vgg8", "resnet18", "resnet18_imagenet"])
def test_a_student_of_ours_loads_strictly_in_torch_and_gives_the_same_logits(tmp_path, arch):
    network = build(NetworkSpec(arch, 6))
    variables = random_variables(network)
    images = record.fixed_images((2, 3, 32, 32))
    logits = jax.jit(network.apply)(variables, images.transpose(0, 2, 3, 1)).logits
    convert.save_network(tmp_path / "student.pth", network, variables)
    convert.save_network(tmp_path / "student.safetensors", network, variables)
    safe = {n: torch.from_numpy(array) for n, array in load_file(tmp_path / "student.safetensors").items()}
    for state in (torch.load(tmp_path / "student.pth", weights_only=True), safe):
        module = twin(network.spec).eval()
        module.load_state_dict(state, strict=True)
        with torch.no_grad():
            expected = module(torch.from_numpy(images)).numpy()
        # float32 sums in another order, through at most twenty layers
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_names_of_another_code_base_come_back_exactly(tmp_path, user_checkpoint):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main(["import", str(user_checkpoint), "--out", str(ours), *NORMALIZATION]) == 0
    assert {"linear.weight", "layer2.0.shortcut.0.weight"} <= load_file(ours).keys()
    assert main(["export", str(ours), "--out", str(back)]) == 0
    original = torch.load(user_checkpoint, weights_only=True)["state_dict"]
    again = torch.load(back, weights_only=True)
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    assert int(again["module.bn1.num_batches_tracked"]) == 3


@pytest.mark.parametrize(
    ("style", "name"), [("ours", "layer2.0.shortcut.0.weight"), ("torchvision", "layer2.0.downsample.0.weight")]
)
def test_names_can_be_chosen_at_the_export(tmp_path, user_checkpoint, user_file, style, name):
    back = tmp_path / "back.pth"
    assert main(["export", str(user_checkpoint), "--out", str(back), "--naming", style]) == 0
    state = torch.load(back, weights_only=True)
    assert name in state
    module = twin(NetworkSpec("resnet8b", 10)) if style == "ours" else record.load_factory(f"{user_file}:make")
    module.load_state_dict(state, strict=True)


@pytest.mark.parametrize("factory", ["make", "make_parallel"])
def test_the_users_own_module_is_the_reference(user_file, user_checkpoint, factory, capsys):
    arguments = ["verify", str(user_checkpoint), "--torch", f"{user_file}:{factory}", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["spec"]["arch"] == "resnet8b"
    names = [check["name"] for check in report["checks"]]
    assert names[0] == "logits"
    assert {"layer3.0.shortcut.1 input var", "image gradient of cross_entropy", "round trip"} <= set(names)
    assert all(check["error"] <= check["tolerance"] for check in report["checks"])
    assert all(check["magnitude"] > 0 for check in report["checks"])


def test_a_module_that_computes_something_else_fails(user_file, user_checkpoint, capsys):
    assert main(["verify", str(user_checkpoint), "--torch", f"{user_file}:make_wrong"]) == 1
    table = capsys.readouterr().out
    failed = [line for line in table.splitlines() if line.endswith("FAILED")]
    # Everything up to the pooling is the same: the moments agree, what comes after does not.
    assert [line.split("  ")[0] for line in failed] == ["logits", "image gradient of cross_entropy"]
    assert table.splitlines()[-1].startswith("2 of ")
    assert table.splitlines()[-1].endswith("record the graph instead: fastdfkd convert record")
    assert table.isascii()


def test_a_reference_recorded_elsewhere(tmp_path, user_file, user_checkpoint):
    """The script is copied alone and run by a fresh interpreter, as on a machine without this package."""
    script, out = tmp_path / "record_alone.py", tmp_path / "reference.npz"
    script.write_text(pathlib.Path(record.__file__).read_text())
    command = [sys.executable, str(script), f"{user_file}:make", "--checkpoint", str(user_checkpoint)]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    report = verify(user_checkpoint, reference=str(out))
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.checks[-1].name == "weights of the reference"

    state = torch.load(user_checkpoint, weights_only=True)
    state["state_dict"]["module.fc.weight"][0, 0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    other = verify(tmp_path / "other.pth", reference=str(out))
    assert not other.checks[-1].passed


def test_a_recorded_gradient_is_that_of_the_stated_losses(user_file):
    """Central differences along one direction, in double precision."""
    module = record.load_factory(f"{user_file}:make")
    images = record.fixed_images((2, 3, 16, 16))
    arrays = record.record(module, images)
    module = module.double().eval()
    direction = record.fixed_images(images.shape, seed=1)

    def losses(x):
        inputs = {}
        hooks = [
            layer.register_forward_pre_hook(lambda m, x, name=name: inputs.__setitem__(name, (m, x[0])))
            for name, layer in module.named_modules()
            if isinstance(layer, torch.nn.BatchNorm2d)
        ]
        with torch.no_grad():
            logits = module(torch.from_numpy(x))
        for hook in hooks:
            hook.remove()
        gap = sum(
            float((x.mean((0, 2, 3)) - m.running_mean).norm())
            + float((x.var((0, 2, 3), unbiased=False) - m.running_var).norm())
            for m, x in inputs.values()
        )
        return np.array([float(torch.nn.functional.cross_entropy(logits, torch.arange(2))), gap])

    step = 1e-6  # small against the distance to the nearest kink of a ReLU, large against double rounding
    slopes = (losses(images + step * direction.astype(float)) - losses(images - step * direction.astype(float))) / (
        2 * step
    )
    found = [float((arrays[f"gradient/{name}"] * direction).sum()) for name in ("cross_entropy", "batch_norm")]
    np.testing.assert_allclose(found, slopes, rtol=1e-3)  # float32 gradients against double differences
