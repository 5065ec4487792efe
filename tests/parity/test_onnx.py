"""ONNX files of students, in onnxruntime: the network's logits, its scores, and 8-bit integers from a pool."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from convert_samples import random_variables
from onnx import external_data_helper

from fastdfkd_jax import convert
from fastdfkd_jax import evaluate as evaluation
from fastdfkd_jax.convert import metadata
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.convert.deploy import compared, onnx_files
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, build
from fastdfkd_jax.pool.shards import Shards

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SPEC = NetworkSpec("wrn10_1", 10, 16, 3, MEAN, STD)
LABELS = np.arange(40) % 10


@pytest.fixture(scope="module")
def network():
    made = build(SPEC)
    return made, random_variables(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network):
    """A student, pictures of noise with labels, and a pool of other such pictures."""
    place = tmp_path_factory.mktemp("deploy")
    convert.save_network(place / "student.safetensors", *network)
    images = np.random.default_rng(1).integers(0, 256, (120, *SPEC.input_shape), np.uint8)
    np.savez(place / "data.npz", images=images[:40], labels=LABELS)
    Shards(place / "pool").write(0, images[40:], np.zeros(80, np.int32), {})
    return place


@pytest.fixture(scope="module")
def student(folder):
    """The student as ONNX; takes images in [0, 1]."""
    assert main(["export", str(folder / "student.safetensors"), "--to", str(folder / "s.onnx"), "--unit-range"]) == 0
    return folder / "s.onnx"


def scores(checkpoint, folder, run_command, *arguments):
    line = (checkpoint, "--data", f"npz:{folder / 'data.npz'}", "--json", *arguments)
    status, out, err = run_command(evaluation.main, *line)
    assert status in (0, None), err
    return json.loads(out)


def test_onnxruntime_computes_the_network_for_any_batch(network, student):
    made, variables = network
    session = onnxruntime.InferenceSession(str(student), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).uniform(size=(7, *SPEC.input_shape)).astype(np.float32)
    expected = np.asarray(made.apply(variables, compared.normalised(images, made)).logits)
    for count in (1, 7):
        (logits,) = session.run(["logits"], {"images": images[:count].transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(logits, expected[:count], rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_file_names_its_network_and_no_file_of_this_machine(student):
    model = onnx.load(student)
    onnx.checker.check_model(model, full_check=True)
    (entry,) = model.metadata_props
    assert entry.key == metadata.KEY
    assert json.loads(entry.value)["mean"] == list(MEAN)
    assert not re.search(rb"/(home|root|tmp|usr)/", student.read_bytes())


def test_it_is_evaluated_like_the_checkpoint(folder, student, run_command):
    expected = scores(folder / "student.safetensors", folder, run_command)
    found = scores(student, folder, run_command, "--teacher", folder / "student.safetensors")
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["agreement"] == 100


def test_8_bit_integers_decide_nearly_as_before(folder, student, run_command, capsys):
    out = folder / "int8.onnx"
    assert main(["export", str(folder / "student.safetensors"), "--to", str(out), "--int8", str(folder)]) == 0
    said = re.search(r"from (\d+) synthesised images; .* same class as before in ([\d.]+) %", capsys.readouterr().out)
    assert said is not None
    assert said[1] == "40"
    assert float(said[2]) >= 80
    stored = {tensor.data_type for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4}
    assert stored == {onnx.TensorProto.INT8}
    found = scores(out, folder, run_command, "--teacher", folder / "student.safetensors")
    assert found["agreement"] >= 80


NETWORKS = """
import torch

class Other(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def other():
    return Other()

def twisted():
    from fastdfkd_jax.convert.torch_twins.classifiers import twin
    from fastdfkd_jax.models import NetworkSpec
    module = twin(NetworkSpec("wrn10_1", 10, 16))
    module.bn1.eps = 0.5
    return module

def by_values():
    module = twisted()
    forward = module.forward
    module.forward = lambda x: forward(x) if float(x.sum()) > 0 else forward(x) * 2
    return module
"""


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("other", "the checkpoint does not fit the PyTorch module"),
        ("twisted", "the file's logits differ from the network's by"),
        ("by_values", "this module cannot be converted to ONNX by PyTorch"),
    ],
)
def test_another_module_is_refused_and_nothing_written(factory, expected, folder, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NETWORKS)
    line = ["export", str(folder / "student.safetensors"), "--to", str(tmp_path / "x.onnx")]
    assert main([*line, "--torch", f"{tmp_path / 'net.py'}:{factory}"]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert len(error) < 300
    assert "\n" not in error
    assert not (tmp_path / "x.onnx").exists()


def foreign(path):
    """A valid file that is not ours."""
    shape = [1, 3, 16, 16]
    given, got = (onnx.helper.make_tensor_value_info(name, 1, shape) for name in ("images", "logits"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["logits"])], "g", [given], [got])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


def test_other_files_are_refused(student, tmp_path):
    foreign(tmp_path / "foreign.onnx")
    (tmp_path / "damaged.onnx").write_bytes(student.read_bytes()[:5000])
    for name, expected in [
        ("foreign", "was not written by fastdfkd convert export"),
        ("damaged", "is not an ONNX file, or is damaged"),
        ("missing", "there is no ONNX file"),
    ]:
        with pytest.raises(UserError, match=expected):
            onnx_files.load_network(str(tmp_path / f"{name}.onnx"))


def test_a_file_of_another_shape_than_it_says_is_refused(student, tmp_path):
    model = onnx.load(student)
    (entry,) = model.metadata_props
    entry.value = entry.value.replace('"image_size": 16', '"image_size": 32')
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"has inputs and outputs .*\[3, 16, 16\].*, expected .*\[3, 32, 32\]"):
        onnx_files.load_network(str(tmp_path / "other.onnx"))


def test_arrays_in_other_files_are_not_read(student, tmp_path, monkeypatch):
    """A file may name another file of the machine as the place of its weights."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(student)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    (tmp_path / "secret.bin").write_bytes(weights.raw_data)
    external_data_helper.set_external_data(weights, "secret.bin", offset=0, length=len(weights.raw_data))
    weights.ClearField("raw_data")
    (tmp_path / "thief.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="is not an ONNX file, or is damaged"):
        onnx_files.load_network("thief.onnx")


@pytest.mark.parametrize("change", [{"mean": [0.5]}, {"std": [0.0, 0.5, 0.5]}])
def test_a_normalisation_that_cannot_be_is_refused(change, student, tmp_path):
    model = onnx.load(student)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | change)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"the metadata of .* are damaged \(--.*: export the network again"):
        onnx_files.load_network(str(tmp_path / "other.onnx"))


def test_a_checkpoint_without_a_normalisation_is_refused(network, tmp_path, capsys):
    convert.save_network(tmp_path / "bare.pth", *network)
    assert (
        main(["export", str(tmp_path / "bare.pth"), "--to", str(tmp_path / "bare.onnx"), "--mean", "0.5,0.5,0.5"]) == 2
    )
    assert "bare.pth does not say how its images are normalised: give --mean and --std" in capsys.readouterr().err


ON_ONE_CORE = """
import os, runpy, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


def test_it_is_evaluated_in_several_batches_on_one_core(folder, student):
    """One core leaves XLA a single thread, for the program and for the calls that it makes."""
    images = np.zeros((700, *SPEC.input_shape), np.uint8)  # few or small batches are copied without that thread
    np.savez(folder / "many.npz", images=images, labels=np.arange(700) % 10)
    line = [sys.executable, "-c", ON_ONE_CORE, "fastdfkd_jax.evaluate", str(student)]
    line += ["--data", f"npz:{folder / 'many.npz'}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert ", 700 images" in done.stdout


def test_what_the_file_knows_is_not_given_again(folder, student, run_command):
    status, _, err = run_command(evaluation.main, student, "--data", f"npz:{folder / 'data.npz'}", "--arch", "wrn16_1")
    assert status == 2
    assert "knows its --arch: leave it out" in err
