"""`convert.record`: outputs, inputs, wrappers, folded weights, programs that are code, and graphs that lie."""

import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import warnings
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fastdfkd_jax import convert
from fastdfkd_jax.convert import graph, record, verify
from fastdfkd_jax.convert.graph.graph_network import BATCH_NORM, DROPOUT
from fastdfkd_jax.convert.graph.table import MAX_STEPS, OPERATIONS
from fastdfkd_jax.errors import UserError

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
SHAPE = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
NETS = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

class Net(nn.Module):
    def __init__(self, wrap=lambda layer: layer, channels=3):
        super().__init__()
        self.conv = wrap(nn.Conv2d(channels, 6, 3, bias=False))
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 5)
    def features(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))
    def forward(self, x):
        return self.fc(self.features(x))

class Outputs(Net):
    def __init__(self, give):
        super().__init__()
        self.give = give
    def forward(self, x):
        f = self.features(x)
        return self.give(self.fc(f), f)

plain = Net
grey = lambda: Net(channels=1)
features_first = lambda: Outputs(lambda y, f: (f, y))
named = lambda: Outputs(lambda y, f: {"features": f, "logits": y})
nested = lambda: Outputs(lambda y, f: {"answer": y, "more": [f, f.sum()]})
with_loss = lambda: Outputs(lambda y, f: (f.sum(), y))
probabilities = lambda: Outputs(lambda y, f: y.softmax(1))
log_probabilities = lambda: Outputs(lambda y, f: y.log_softmax(1))
sequence = lambda: Outputs(lambda y, f: f[:, None])
unknown = lambda: Outputs(lambda y, f: y.cumprod(1))
endless = lambda: Outputs(lambda y, f: 1 / 0 if y.sum() > 0 else y)
parallel = lambda: nn.DataParallel(Net())
compiled = lambda: torch.compile(Net())
scripted = lambda: torch.jit.script(Net())
weighted = lambda: Net(nn.utils.parametrizations.weight_norm)
spectral = lambda: Net(nn.utils.parametrizations.spectral_norm)
old_spectral = lambda: Net(nn.utils.spectral_norm)

class Checkpointed(Net):
    def forward(self, x):
        return self.fc(checkpoint(self.features, x, use_reentrant=False))

class Reentrant(Net):
    def forward(self, x):
        return self.fc(checkpoint(self.features, x, use_reentrant=True, preserve_rng_state=False))

class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)

class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)

class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.LazyConv2d(6, 3, bias=False), nn.LazyLinear(5)

class Timm(Net):
    default_cfg = {"input_size": (3, 12, 12)}

class Sized(Net):
    image_size = 14

class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 5))
"""


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def run(capsys, nets, factory, *more, size=("--image-size", "8"), graph="graph"):
    """Exit status, and what is said."""
    folder = nets.parent / graph
    status = record.main([f"{nets}:{factory}", "--graph", str(folder), *size, *more])
    said = capsys.readouterr()
    assert len(said.err) <= 300, said.err
    assert said.err.count("\n") <= 1
    return status, said.out + said.err


def reference(nets, name="logits"):
    with np.load(nets.parent / "graph" / "reference.npz") as file:
        return file[name]


# --- code


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_program_that_runs_code_is_not_loaded_without_trust(nets, tmp_path, capsys):
    """The payload replaces the sample inputs, which `torch.export.load` unpickles without limits."""
    module, marker = record.load_factory(f"{nets}:plain"), tmp_path / "marker"
    torch.export.save(record.export(module, 8, 3), tmp_path / "good.pt2")
    torch.save(Marker(marker), tmp_path / "payload")
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for name in good.namelist():
            evil.writestr(name, (tmp_path / "payload").read_bytes() if "sample_inputs" in name else good.read(name))
    arguments = [str(tmp_path / "evil.pt2"), "--graph", str(tmp_path / "graph")]
    assert record.main(arguments) == 2
    said = capsys.readouterr().err
    assert "evil.pt2 is code" in said
    assert "--trust" in said
    assert said.count("\n") == 1
    assert not marker.exists()
    assert not (tmp_path / "graph").exists()
    record.main([*arguments, "--trust"])
    assert marker.exists(), "the payload works where it is trusted, so that its absence above means something"


# --- outputs


def test_features_that_come_first_are_no_logits(nets, capsys):
    status, said = run(capsys, nets, "features_first")
    assert status == 2
    assert "choose one with --output" in said
    assert "0 [batch, 6], 1 [batch, 5]" in said
    assert run(capsys, nets, "features_first", "--output", "1")[0] == 0
    expected = record.load_factory(f"{nets}:plain").eval()(torch.tensor(reference(nets, "images"))).detach()
    np.testing.assert_allclose(reference(nets), expected, rtol=1e-5, atol=1e-6)
    network, variables = convert.load_network(nets.parent / "graph", **SHAPE)
    found = network.apply(variables, reference(nets, "images").transpose(0, 2, 3, 1)).logits
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert verify.verify(nets.parent / "graph", torch_factory=f"{nets}:features_first").passed


@pytest.mark.parametrize(
    ("factory", "more", "classes"),
    [
        ("named", (), 5),
        ("named", ("--output", "features"), 6),
        ("named", ("--output", "0"), 6),
        ("nested", ("--output", "answer"), 5),
        ("nested", ("--output", "more.0"), 6),
        ("with_loss", (), 5),
    ],
)
def test_an_output_is_chosen_by_name_position_or_shape(nets, capsys, factory, more, classes):
    status, said = run(capsys, nets, factory, *more)
    assert status == 0, said
    assert f"{classes} classes" in said
    assert reference(nets).shape == (2, classes)


@pytest.mark.parametrize(
    ("factory", "more", "words"),
    [
        ("nested", (), "choose one with --output, by name or position, of answer [batch, 5], more.0 [batch, 6]"),
        ("nested", ("--output", "more.1"), "--output must name logits [batch, classes]"),
        ("named", ("--output", "nobody"), "among: features [batch, 6], logits [batch, 5]"),
        ("plain", ("--output", "1"), "among: 0 [batch, 5]"),
        (
            "sequence",
            (),
            "expected logits [batch, classes] or [batch, classes, h, w], the module gives 0 [batch, 1, 6]",
        ),
    ],
)
def test_outputs_that_are_no_answer_are_refused(nets, capsys, factory, more, words):
    status, said = run(capsys, nets, factory, *more)
    assert (status, (nets.parent / "graph").exists()) == (2, False)
    assert words in said


@pytest.mark.parametrize(
    ("factory", "warned"), [("probabilities", True), ("log_probabilities", False), ("plain", False)]
)
def test_probabilities_are_warned_of(nets, capsys, factory, warned):
    """Logarithms of probabilities are logits: softmax gives the probabilities back."""
    status, said = run(capsys, nets, factory)
    assert status == 0
    assert ("warning: the output has the form of probabilities" in said) == warned


# --- what a run would refuse, and how it is said


def test_unknown_operations_are_refused_where_they_are_recorded(nets, capsys):
    status, said = run(capsys, nets, "unknown")
    assert (status, (nets.parent / "graph").exists()) == (2, False)
    assert "unsupported operations: aten.cumprod.default (1)" in said


def test_torchs_reason_is_shown_from_its_beginning_and_in_full_on_request(nets, capsys):
    status, said = run(capsys, nets, "endless")
    assert status == 2
    assert "torch.export cannot export the module, change what it names: Could not guard on data-dependent" in said
    assert record.main([f"{nets}:endless", "--graph", str(nets.parent / "g"), "--image-size", "8", "--verbose"]) == 2
    full = capsys.readouterr().err
    assert full.startswith(said[:250])
    assert len(full) > 300


def test_a_checkpoint_that_cannot_be_loaded_is_said_from_the_beginning(nets, capsys):
    torch.save({"net": Marker(nets.parent / "marker")}, nets.parent / "evil.pth")
    status, said = run(capsys, nets, "plain", "--checkpoint", str(nets.parent / "evil.pth"))
    assert status == 2
    assert "UnpicklingError: Weights only load failed" in said
    assert not (nets.parent / "marker").exists()


def test_the_command_says_nothing_but_its_result(nets, tmp_path):
    """In a separate interpreter: neither a RuntimeWarning of `python -m` nor torch's warnings."""
    command = [sys.executable, "-m", "fastdfkd_jax.convert.record", f"{nets}:grey", "--graph", "~/graph"]
    done = subprocess.run(command, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == f"{tmp_path}/graph: 10 nodes, 5 classes, 1 BatchNorms, images of 1x32x32\n".replace(
        "10 nodes", f"{len(json.loads((tmp_path / 'graph' / 'graph.json').read_text())['nodes'])} nodes"
    )


# --- inputs and wrappers


@pytest.mark.parametrize(
    ("factory", "shape"),
    [("plain", "3x32x32"), ("grey", "1x32x32"), ("Timm", "3x12x12"), ("Sized", "3x14x14"), ("Lazy", "3x32x32")],
)
def test_channels_and_side_are_the_modules_own(nets, capsys, factory, shape):
    status, said = run(capsys, nets, factory, size=())
    assert status == 0, said
    assert f"images of {shape}" in said


def test_the_channels_of_a_module_without_convolutions_are_those_that_fit(nets, capsys):
    status, said = run(capsys, nets, "Flat")
    assert status == 0, said
    assert "images of 1x8x8" in said
    status, said = run(capsys, nets, "Flat", size=())
    assert status == 2
    assert "the module fails on 2 images of 3x32x32 (set others with --batch, --channels " in said
    assert ": mat1 and mat2" in said


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch.compile about torch
@pytest.mark.parametrize(
    "factory", ["parallel", "compiled", "Checkpointed", "Reentrant", "NoGrad", "Autocast", "with_loss"]
)
def test_wrappers_change_neither_the_function_nor_its_names(nets, capsys, factory):
    status, said = run(capsys, nets, factory)
    assert status == 0, said
    expected = record.record(record.load_factory(f"{nets}:plain"), reference(nets, "images"))
    with np.load(nets.parent / "graph" / "reference.npz") as found:
        assert set(found) == {name for name in expected if not name.startswith("state/")}
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    assert np.abs(reference(nets, "gradient/cross_entropy")).max() > 1e-4
    description = json.loads((nets.parent / "graph" / "graph.json").read_text())
    assert set(description["state"]) == set(record.load_factory(f"{nets}:plain").state_dict())
    assert verify.verify(nets.parent / "graph").passed


def test_torchscript_is_refused_in_a_line(nets, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        status, said = run(capsys, nets, "scripted")
    assert status == 2
    assert "TorchScript, which cannot be exported: give the Python module" in said


@pytest.mark.parametrize("factory", ["weighted", "spectral", "old_spectral"])
def test_computed_weights_are_folded(nets, capsys, factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the older form
        module = record.load_factory(f"{nets}:{factory}").eval()
        conv: Any = module.conv
        images = torch.tensor(record.fixed_images((2, 3, 8, 8)))
        logits, weight = module(images).detach(), conv.weight.detach()
        torch.save(module.state_dict(), nets.parent / "net.pth")
        status, said = run(capsys, nets, factory, "--checkpoint", str(nets.parent / "net.pth"))
    assert status == 0, said
    recorded = graph.read(nets.parent / "graph")
    np.testing.assert_allclose(recorded.state["conv.weight"], weight, rtol=1e-6, atol=1e-7)
    assert not [name for name in recorded.state if re.search("parametriz|_orig|_u$|_g$", name)]
    assert [node["op"] for node in recorded.description["nodes"]].count("aten.conv2d.default") == 1
    network, variables = convert.load_network(nets.parent / "graph", **SHAPE)
    np.testing.assert_allclose(
        network.apply(variables, images.numpy().transpose(0, 2, 3, 1)).logits, logits, rtol=1e-4, atol=1e-5
    )


# --- writing


def test_nothing_is_written_through_a_link_within_the_folder(nets, capsys):
    folder, outside = nets.parent / "graph", nets.parent / "outside"
    folder.mkdir()
    outside.write_text("precious")
    for name in ("graph.json", "weights.safetensors", "reference.npz"):
        (folder / name).symlink_to(outside)
        (folder / f"{name}.{os.getpid()}.tmp").symlink_to(outside)
    assert run(capsys, nets, "plain")[0] == 0
    assert outside.read_text() == "precious"
    assert not (folder / "graph.json").is_symlink()
    assert graph.read(folder).description["classes"] == 5


# --- graphs that lie


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("recorded")
    (place / "nets.py").write_text(NETS)
    assert record.main([f"{place / 'nets.py'}:plain", "--graph", str(place / "graph"), "--image-size", "8"]) == 0
    return place / "graph"


def refusal(folder, tmp_path, text):
    """What reading says of the folder with this graph.json."""
    (tmp_path / "graph.json").write_text(text)
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    with pytest.raises(UserError) as caught:
        graph.read(tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 300
    return said


def test_a_graph_that_is_nested_too_deeply_is_refused(folder, tmp_path):
    assert "nested too deeply" in refusal(folder, tmp_path, "[" * 100_000)
    deep = json.dumps(json.loads((folder / "graph.json").read_text()) | {"more": 0})
    assert "nested too deeply" in refusal(folder, tmp_path, deep.replace('"more": 0', f'"more": {"[" * 100_000}'))


@pytest.mark.parametrize(
    ("op", "one", "other", "expected"),
    [
        ("mul", [0], 500_000_000, "expected two numbers, found list and int"),
        ("mul", "x", 500_000_000, "expected two numbers, found str and int"),
        ("mul", 2**39, 2**39, "expected a size of at most"),
        ("add", 2**40, 1, "expected a size of at most"),
    ],
)
def test_arithmetic_on_sizes_takes_no_memory(folder, tmp_path, op, one, other, expected):
    described = json.loads((folder / "graph.json").read_text())
    node = described["nodes"][0] | {"op": f"operator.{op}", "args": {"0": one, "1": other}, "name": "huge"}
    text = json.dumps(described | {"nodes": [node, *described["nodes"]]})
    assert expected in refusal(folder, tmp_path, text)


def test_a_graph_of_an_unusual_kind_is_not_read(folder, tmp_path):
    os.mkfifo(tmp_path / "graph.json")
    with pytest.raises(UserError, match="is not a regular file"):
        graph.read(tmp_path)


WRONG = {
    "nodes": [{"name": "x"}], "images": 3, "output": ["x"], "entries": {"x": 1}, "parameters": "x", "shapes": {"x": 3},
    "state": [1], "ties": [], "classes": 2.5, "channels": True, "image_size": 0, "task": "x", "initial": 1,
    "mean": "abc", "std": [None],
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("other", [None, {}, "x" * 500, -1])
def test_a_part_of_the_wrong_type_is_named(folder, tmp_path, key, other):
    description = json.loads((folder / "graph.json").read_text())
    wrong = WRONG[key] if other is None or not wrong_for(key, other) else other
    said = refusal(folder, tmp_path, json.dumps(description | {key: wrong}))
    assert f"graph.json is damaged ({key} must be" in said


def wrong_for(key, value):
    """A long word is a name, and an empty table is one."""
    return not (isinstance(value, str) and key in ("images", "output")) and not (
        value == {} and key in ("entries", "shapes", "ties")
    )


def with_node(description, op, **arguments):
    """The graph with an operation on its logits."""
    node = {"name": "last", "op": op, "args": {"self": {"node": description["output"]}, **arguments}}
    return {"nodes": [*description["nodes"], node]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: {"image_size": 10**6}, "1,000,000 x 1,000,000 pixels"),
        (lambda d: {"channels": 10**12 // 2}, "an image of .* would take .* of memory"),
        (lambda d: {"shapes": {"conv.weight": [10**12, 10**12]}}, "the weights of .* would take .* of memory"),
        (lambda d: {"shapes": {"conv.weight": [10**12] * 60}}, "the weights of .* would take .* of memory"),
        (lambda d: with_node(d, "aten.expand.default", size=[10**6, 10**7]), "an array that|is damaged"),
        (lambda d: with_node(d, "aten.repeat.default", repeats=[10**6, 10**7]), "an array that .* would take"),
    ],
)
def test_sizes_above_the_machines_are_refused_before_anything_is_allocated(folder, tmp_path, change, words):
    description = json.loads((folder / "graph.json").read_text())
    assert re.search(words, refusal(folder, tmp_path, json.dumps(description | change(description))))


@pytest.mark.parametrize("window", [{"kernel_size": 10**9}, {"kernel_size": 2, "padding": 10**9}])
def test_windows_without_end_are_refused(folder, tmp_path, window):
    description = json.loads((folder / "graph.json").read_text())
    given = {"stride": [1], "padding": [0], "dilation": [1], "ceil_mode": False}
    arguments = given | {key: [value] for key, value in window.items()}
    node = {"name": "pool", "op": "aten.max_pool2d.default", "args": {"self": {"node": "x"}, **arguments}}
    said = refusal(folder, tmp_path, json.dumps(description | {"nodes": [node, *description["nodes"]]}))
    assert re.search(rf"parts, expected at most {MAX_STEPS:,}|is damaged or cannot be built", said)


# --- documents


def test_every_operation_is_documented():
    text = (DOCS / "graphs.md").read_text()
    listed = set(re.findall(r"`((?:aten|operator|fastdfkd_jax)\.[\w.]+)`", text))
    assert listed == {*OPERATIONS, BATCH_NORM, DROPOUT}


def test_a_home_is_expanded_in_every_path(nets, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(nets.parent))
    torch.save(record.load_factory(f"{nets}:plain").state_dict(), nets.parent / "net.pth")
    arguments = ["~/nets.py:plain", "--checkpoint", "~/net.pth", "--image-size", "8"]
    assert record.main([*arguments, "--graph", "~/graph"]) == 0, capsys.readouterr().err
    assert record.main([*arguments, "--out", "~/reference.npz"]) == 0, capsys.readouterr().err
    assert (nets.parent / "reference.npz").exists()
    assert graph.read("~/graph").folder == nets.parent / "graph"


def test_a_file_copied_alone_records_without_the_package(nets):
    """What needs the package, whether it knows every operation, is left to the commands that read the folder."""
    alone = nets.parent / "record_alone.py"
    alone.write_text(inspect.getsource(record))
    code = "import sys; sys.modules['fastdfkd_jax'] = sys.modules['jax'] = None; import record_alone as r; "
    code += f"sys.exit(r.main([{str(nets) + ':weighted'!r}, '--graph', 'graph', '--image-size', '8']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=nets.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    network, variables = convert.load_network(nets.parent / "graph", **SHAPE)
    assert network.apply(variables, jnp.zeros((1, 8, 8, 3))).logits.shape == (1, 5)
