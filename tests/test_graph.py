"""Exported graphs: layouts, every operation and whole networks against torch, students, refusals."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config

from fastdfkd_jax import convert, graph, main
from fastdfkd_jax.convert import record
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.graph.layout import Laid, arranged, logical, permuted, plain, reshaped
from fastdfkd_jax.models import NetworkSpec

torch = pytest.importorskip("torch")
from convert_samples import seeded_twin  # noqa: E402
from torch import nn  # noqa: E402

STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SHAPES = [
    ((2, 12, 3, 5), (2, 3, 4, 3, 5)),
    ((2, 3, 4, 3, 5), (2, 12, 3, 5)),
    ((2, 12, 3, 5), (2, 180)),
    ((2, 12, 1, 1), (2, 12)),
    ((2, 12), (2, 12, 1, 1)),
    ((2, 12, 3, 5), (-1, 15)),
    ((1, 1), (1,)),
    ((6, 1, 4), (3, 8)),
]


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_a_reshape_is_the_logical_one_however_the_array_lies(old, new):
    x = jnp.arange(math.prod(old)).reshape(old)
    for order in itertools.permutations(range(len(old))):
        value = reshaped(Laid(arranged(plain(x), order), order), new)
        np.testing.assert_array_equal(logical(value), x.reshape(new))


def test_splitting_channels_that_lie_last_moves_nothing():
    x = Laid(jnp.arange(2 * 3 * 5 * 12).reshape(2, 3, 5, 12), (0, 2, 3, 1))
    split = reshaped(x, (2, 3, 4, 3, 5))
    assert split.order == (0, 3, 4, 1, 2)
    np.testing.assert_array_equal(split.array, x.array.reshape(2, 3, 5, 3, 4))
    swapped = permuted(split, (0, 2, 1, 3, 4))
    assert swapped.array is split.array
    np.testing.assert_array_equal(logical(swapped), logical(split).swapaxes(1, 2))


class Function(nn.Module):
    """A function of an image's features, between layers that make it a classifier."""

    def __init__(self, function, channels=3, classes=5):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.function, self.fc = function, nn.LazyLinear(classes)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x):
        y = self.function(self.norm(self.conv(x)) * self.gain[:, None, None])
        return self.fc(y.flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        weight = self.up(nn.functional.silu(self.down(nn.functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(weight)


def shuffle(x):
    batch, channels, height, width = x.shape
    left, right = x.chunk(2, 1)
    x = torch.cat([right, left * 2], 1)
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


F = nn.functional
FUNCTIONS = {
    "relu and residual": lambda: lambda x: torch.relu(x) + x,
    "relu6": nn.ReLU6,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "arithmetic": lambda: lambda x: (2 * x - 1).sub(x, alpha=0.5) / 3 + 1 / (x * x + 1),
    "strided": lambda: nn.Conv2d(8, 8, 3, 2, 1, bias=False),
    "dilated": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "oblong": lambda: nn.Conv2d(8, 8, (1, 5), (1, 2), (0, 2)),
    "squeeze-excite": SqueezeExcite,
    "channel shuffle": lambda: shuffle,
    "maximum": lambda: nn.MaxPool2d(3, 2, 1),
    "maximum, rounded up": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "maximum, dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "average": lambda: nn.AvgPool2d(2),
    "average, padded and rounded up": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average, padding not counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(3),
    "mean": lambda: lambda x: x.mean((2, 3), keepdim=True) * x,
    "pad": lambda: lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "slice": lambda: lambda x: x[:, 1:7:2, ::2, :-1],
    "split": lambda: lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.split([2, 5, 1], 1))], 1),
    "permute": lambda: lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "nearest to a size": lambda: nn.Upsample((11, 7)),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear to a size": lambda: nn.Upsample((11, 7), mode="bilinear"),
    "bilinear, corners aligned": lambda: nn.Upsample((11, 7), mode="bilinear", align_corners=True),
}


def recorded(module, folder, size=8, channels=3):
    """What `record` computes of a module, whose graph it leaves in the folder."""
    with torch.no_grad():
        module.eval()(torch.zeros(2, channels, size, size))  # lazy layers take their shapes
    result = record.record(module, record.fixed_images((3, channels, size, size)))
    record._write_graph(folder, module, record.export(module, size, channels), result)
    return result


def assert_equal(folder, reference):
    """Logits, moments and the gradient of the cross-entropy, in double precision where `record` has it so."""
    network, variables = graph.load(folder, **STATISTICS)
    images, labels = reference["images"].transpose(0, 2, 3, 1), reference["labels"]
    out = jax.jit(lambda v, x: network.apply(v, x, moments=True))(variables, images)
    np.testing.assert_allclose(out.logits, reference["logits"], rtol=1e-4, atol=1e-5)
    names = {name.split("/")[1] for name in reference if name.startswith("moments/")}
    assert set(out.moments) == names
    for name in names:
        for part in ("mean", "var"):
            np.testing.assert_allclose(out.moments[name][part], reference[f"moments/{name}/{part}"], 1e-4, 1e-5)
    with jax.enable_x64(True):
        network, variables = graph.load(folder, **STATISTICS, dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), variables)

        def loss(x):
            log_p = jax.nn.log_softmax(network.apply(variables, x).logits)
            return -log_p[jnp.arange(len(labels)), labels].mean()

        gradient = jax.jit(jax.grad(loss))(jnp.asarray(images, jnp.float64)).transpose(0, 3, 1, 2)
    expected = reference["gradient/cross_entropy"]
    # PyTorch keeps some constants, a sixth for one, in single precision.
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_equals_torch(tmp_path, name):
    torch.manual_seed(0)
    assert_equal(tmp_path, recorded(Function(FUNCTIONS[name]()), tmp_path))


@pytest.mark.parametrize(("arch", "size"), [("wrn10_1", 32), ("resnet8", 32), ("vgg8", 32), ("resnet18_imagenet", 64)])
def test_a_network_equals_torch(tmp_path, arch, size):
    assert_equal(tmp_path, recorded(seeded_twin(NetworkSpec(arch, 7)), tmp_path, size))


def test_a_student_trains_as_in_torch_and_goes_back_to_it(tmp_path):
    module = seeded_twin(NetworkSpec("wrn10_1", 7))
    recorded(module, tmp_path, 32)
    network, variables = graph.load(tmp_path, **STATISTICS)
    fresh = network.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
    images = record.fixed_images((8, 3, 32, 32))
    out = jax.jit(lambda v, x: network.apply(v, x, train=True))(fresh, images.transpose(0, 2, 3, 1))
    with pytest.raises(AssertionError):  # the batch's statistics, not the recorded ones
        np.testing.assert_allclose(out.batch_stats["bn1"]["mean"], fresh["batch_stats"]["bn1"]["mean"], atol=1e-6)

    state = convert.to_state_dict(fresh)
    module.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=True)
    logits = module.train()(torch.tensor(images)).detach()
    # Seven BatchNorms of eight images divide by small deviations.
    np.testing.assert_allclose(out.logits, logits, rtol=1e-3, atol=1e-4)
    trained = convert.to_state_dict({**fresh, "batch_stats": out.batch_stats}, None)
    for name, array in trained.items():
        np.testing.assert_allclose(array, module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_command_writes_a_folder_that_torch_is_not_needed_for(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, 6))\n"
    )
    folder = tmp_path / "graph"
    arguments = [f"{tmp_path / 'net.py'}:make", "--channels", "1", "--image-size", "12", "--graph", str(folder)]
    assert record.main(arguments) == 0, capsys.readouterr().err
    network, variables = graph.load(folder, mean=(0.5,), std=(0.5,))
    assert network.spec == NetworkSpec("graph", 6, 12, 1, (0.5,), (0.5,))
    assert {name: set(leaves) for name, leaves in variables["params"].items()} == {
        "0": {"kernel", "bias"}, "1": {"scale", "bias"}, "4": {"kernel", "bias"},
    }  # fmt: skip
    reference = np.load(folder / "reference.npz")
    out = network.apply(variables, reference["images"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(out.logits, reference["logits"], rtol=1e-5, atol=1e-6)
    assert out.features.shape == (2, 4)


@pytest.fixture(scope="module")
def digits_graph(tmp_path_factory):
    """A small network for the digits, with a parameter that belongs to no layer."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("digits")
    module = Function(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), channels=1, classes=10)
    recorded(module, folder, 16, 1)
    return folder, module


def test_a_run_with_graphs_as_teacher_and_student(digits_graph, tmp_path):
    folder, module = digits_graph
    config = tiny_config(
        teacher__checkpoint="", teacher__graph=str(folder), teacher__mean=(0.5,), teacher__std=(0.5,),
        student__graph=str(folder), student__arch="",
    )  # fmt: skip
    summary = main.run(config, tmp_path)
    assert summary["student"] == summary["teacher"] == "graph"
    module.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True), strict=True)
    assert not torch.equal(module.gain.detach(), torch.linspace(0.5, 1.5, 8)), "not trained"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher__mean": ()}, "does not say how images are normalised"),
        ({"teacher__checkpoint": "digits"}, "are both set"),
        ({"student__checkpoint": "x.pth"}, "are both set"),
    ],
)
def test_graphs_that_do_not_go_with_the_rest_are_refused(digits_graph, tmp_path, changes, words):
    folder = str(digits_graph[0])
    config = tiny_config(
        teacher__checkpoint="", teacher__graph=folder, teacher__mean=(0.5,), teacher__std=(0.5,), student__graph=folder
    )
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    with pytest.raises(UserError, match=words):
        main.run(config, tmp_path)


def test_all_operations_that_are_not_known_are_listed_and_nothing_is_run(tmp_path):
    recorded(Function(lambda x: torch.special.erf(torch.cumsum(torch.cumsum(x, 1), 2))), tmp_path)
    with pytest.raises(UserError, match=r"not known: aten\.cumsum\.default \(2\), aten\.(special_)?erf\.default \(1\)"):
        graph.load(tmp_path, **STATISTICS)


def test_what_is_not_a_recorded_graph_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a recorded graph"):
        graph.load(tmp_path, **STATISTICS)
    recorded(Function(nn.ReLU()), tmp_path)
    with pytest.raises(UserError, match="need 3 numbers each, found 1 and 3"):
        graph.load(tmp_path, mean=(0.5,), std=(0.5, 0.5, 0.5))
    text = json.loads((tmp_path / "graph.json").read_text())
    (tmp_path / "graph.json").write_text(json.dumps(text | {"format": 9}))
    with pytest.raises(UserError, match="format 9, expected 1"):
        graph.load(tmp_path, **STATISTICS)
    (tmp_path / "graph.json").write_text(json.dumps(text | {"entries": text["entries"] | {"p_x": "x.weight"}}))
    with pytest.raises(UserError, match=r"lacks x\.weight"):
        graph.load(tmp_path, **STATISTICS)
