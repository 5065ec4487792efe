"""Exported graphs: layouts, every operation and whole networks against torch, students, refusals."""

import itertools
import json
import math
import pathlib
import re
import shutil
import warnings
from collections import OrderedDict

import graph_fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert_samples import USER_NETWORK, seeded_twin
from PIL import Image
from runs import Runs, tiny_config
from torch import nn

from fastdfkd_jax import convert, data, evaluate, models
from fastdfkd_jax.convert import checkpoints, naming, record, verify, weight_files
from fastdfkd_jax.convert.__main__ import main as convert_main
from fastdfkd_jax.convert.graph import graph_network
from fastdfkd_jax.convert.graph.axis_order import Laid, arranged, logical, permuted, plain, reshaped
from fastdfkd_jax.convert.graph.table import OPERATIONS
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Forms, NetworkSpec
from fastdfkd_jax.training import build, one_run
from fastdfkd_jax.training.programs import initial_state

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
    x = np.arange(math.prod(old)).reshape(old)
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


class Several(nn.Module):
    """Functions of three channels each of one image, whose classes are side by side: one export covers them all."""

    def __init__(self, functions):
        super().__init__()
        self.of = nn.ModuleList(map(Function, functions))

    def forward(self, x):
        return torch.cat([function(part) for function, part in zip(self.of, x.split(3, 1), strict=True)], 1)


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


class ChannelAttention(nn.Module):
    """A convolution along the channels, and a softmax over two of them stacked."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        mean = x.mean((2, 3))
        weight = torch.sigmoid(self.conv(mean[:, None])).transpose(1, 2)[..., None]
        both = torch.softmax(torch.stack([x, x * weight], 1), 1)
        return (both * both).sum(1)


class Filters(nn.Module):
    """Two kernels under names of their own in one module."""

    def __init__(self):
        super().__init__()
        self.filters, self.scale = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.filters, padding=1) + F.conv2d(x, self.scale)


class VectorNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x.mean((2, 3)))


class Blur(nn.Module):
    """A kernel that is a buffer and does not train, in the state dictionary or not."""

    def __init__(self, persistent):
        super().__init__()
        kernel = torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16
        self.register_buffer("kernel", kernel.expand(8, 1, 3, 3).clone(), persistent=persistent)

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


def assigned(x):
    x = x.clone()
    x[:, 2:4] = x[:, 4:6] * 2
    return x


def weighted(norm):
    """A layer with another scale and shift for each of its entries."""
    with torch.no_grad():
        norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
        norm.bias.copy_(torch.randn_like(norm.bias))
    return norm


class LastNorm(nn.Module):
    """A layer norm of channels, as ConvNeXt has it."""

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=1e-3).permute(0, 3, 1, 2)


class Averaged(nn.Module):
    """A norm of vectors by the batch's statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, affine=False, track_running_stats=False)

    def forward(self, x):
        return x * self.norm(torch.relu(x).mean((2, 3)))[..., None, None]


def with_statistics(norm):
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(8))
        norm.running_var.copy_(torch.rand(8) + 0.5)
    return weighted(norm)


def tokens(x):
    """[B, heads, pixels, channels a head] of two heads."""
    return x.flatten(2).transpose(1, 2).unflatten(2, (2, 4)).transpose(1, 2)


class Attention(nn.Module):
    """As timm has it: one layer for queries, keys and values, which are unbound."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        rows = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(rows).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows.shape))


class MultiHead(nn.Module):
    """As torchvision has it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        rows = x.flatten(2).transpose(1, 2)
        return self.attention(rows, rows, rows, need_weights=False)[0]


def masked_attention(x):
    """Every kind of mask, with a row that sees nothing; another scale; two heads that share keys and values."""
    q = tokens(x)
    near = (torch.arange(64)[:, None] - torch.arange(64)).abs() < 5
    near = near & (torch.arange(64) != 7)[:, None]
    biased = F.scaled_dot_product_attention(q, q, q, torch.linspace(-1, 1, 64)[None, :], scale=0.7)
    causal = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    shared = F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], near, enable_gqa=True)
    return biased + causal * shared


class ShiftedWindows(nn.Module):
    """As Swin has it: windows that are rolled, a mask made on the way, a table of relative positions."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 2))
        self.register_buffer("places", (torch.arange(4)[:, None] - torch.arange(4) + 3).flatten())

    def forward(self, x):
        x = torch.roll(x.permute(0, 2, 3, 1), shifts=(-2, -1), dims=(1, 2))
        mask = x.new_zeros((8, 8))
        mask[:4, 2:] = 1
        mask[4:, :] = 2
        mask = mask.view(16, 4)
        mask = mask.unsqueeze(1) - mask.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        windows = x.reshape(x.shape[0], 16, 4, 2, 4).permute(0, 1, 3, 2, 4)
        scores = windows @ windows.transpose(-1, -2)
        bias = torch.roll(self.table, 3)[self.places].view(4, 4, 2).permute(2, 0, 1)
        shares = torch.softmax(scores + bias + mask[:, None], -1)
        return shares @ windows


def compared(x):
    """Choices by comparisons, values that are replaced, and a product that is added."""
    chosen = torch.where(x > 0.5, x * 2, torch.zeros_like(x)) + torch.where(x <= -0.5, torch.full_like(x, 0.25), x)
    kept = x.masked_fill((x >= 0) & (x < 0.25), 0.0)
    filled = x.clone()
    filled[:, 1].fill_(3.0)
    filled[:, 2].zero_()
    return torch.addcmul(chosen, kept, filled, value=0.5) + x[:, torch.tensor([1, 0, -1])].sum(1, keepdim=True)


def waves(x):
    """Sines and cosines of positions, as embeddings of positions have them."""
    places = torch.ones_like(x).cumsum(2)
    scale = 10.0 ** (2 * torch.div(torch.arange(8), 2, rounding_mode="floor") / 8)
    angle = places / scale.type_as(x) + torch.div(x, 0.7, rounding_mode="trunc")
    return x * (angle.sin() + angle.cos())


def whole_numbers(x):
    """Arithmetic of whole numbers that become places, powers of a fraction, masks of a type of their own."""
    n = torch.arange(8)
    halves = torch.div(n - 4, 2, rounding_mode="floor") + torch.div(n - 3, -2, rounding_mode="trunc") + n // 3
    places = (n & 3) | (~n & 4)
    slopes = 0.5 ** n[:, None, None]
    mask = x.new_zeros((8, 8), dtype=torch.bool)
    mask[:, :5] = True
    mask = mask | (n[:, None] == n) & ~torch.zeros_like(mask)
    seen = F.scaled_dot_product_attention(x, x, x, mask)
    picked = x[:, places] * torch.ones_like(n, dtype=torch.float32)[:, None, None] + x[:, halves.clamp(0, 7)]
    return picked * slopes + torch.where(x > x.mean(), seen, 0.0) - x.new_ones(8) * torch.full((8, 1), 2)


F = nn.functional
FUNCTIONS = {
    "whole numbers": lambda: whole_numbers,
    "waves of positions": lambda: waves,
    "attention": Attention,
    "attention of several heads": MultiHead,
    "attention with masks": lambda: masked_attention,
    "shifted windows": ShiftedWindows,
    "comparisons": lambda: compared,
    "relu and residual": lambda: lambda x: torch.relu(x) + x,
    "relu6": nn.ReLU6,
    "relu6 as a function": lambda: F.relu6,
    "selu": nn.SELU,
    "mish": nn.Mish,
    "prelu": lambda: nn.PReLU(8),
    "prelu of one slope": nn.PReLU,
    "softplus": lambda: nn.Softplus(2, 3),
    "powers and bounds": lambda: lambda x: torch.maximum(x**2, torch.minimum(x, 0.5 - x)),
    "logarithm of softmax": lambda: lambda x: F.log_softmax(x, 1),
    "channel shuffle by name": lambda: nn.ChannelShuffle(4),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "products of matrices": lambda: lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2))[..., None],
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu of tanh": lambda: nn.GELU("tanh"),
    "group norms": lambda: nn.Sequential(weighted(nn.GroupNorm(4, 8)), nn.ReLU(), nn.GroupNorm(2, 8, affine=False)),
    "instance norms": lambda: nn.Sequential(
        weighted(nn.InstanceNorm2d(8, affine=True)),
        nn.ReLU(),
        with_statistics(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    ),
    "layer norms": lambda: nn.Sequential(weighted(nn.LayerNorm((8, 8, 8))), nn.ReLU(), LastNorm()),
    "norms of the batch": lambda: nn.Sequential(weighted(nn.BatchNorm2d(8, track_running_stats=False)), Averaged()),
    "weight norms": lambda: nn.Sequential(
        *(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3), dim=dim) for dim in (0, 1, None))
    ),
    "spectral norms": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)), nn.utils.spectral_norm(nn.Conv2d(6, 8, 3))
    ),
    "einsum": lambda: lambda x: torch.einsum("nchw, ndhw -> ncd", x, x)[..., None] * torch.einsum("n...->n", x)[0],
    "normalised": lambda: lambda x: F.normalize(x) + F.normalize(x.flatten(1)).view_as(x),
    "norms of vectors": lambda: (
        lambda x: (
            x * x.norm()
            + x.norm(p=math.inf, dim=1, keepdim=True)
            + x.norm(p=1.0, dim=3)[..., None] * F.normalize(x, p=3.0)
        )
    ),
    "bounded on a side": lambda: lambda x: x.clamp_min(-0.5) * x.clamp_max(0.25),
    "products of vectors": lambda: lambda x: x * torch.dot(x[0, 0, 0], x[0, 1, 0]) + x[0, 0] @ x[0, 1, 1],
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
    "channel attention": ChannelAttention,
    "blur": lambda: Blur(True),
    "blur, not in the state": lambda: Blur(False),
    "tensor made on the way": lambda: lambda x: x * torch.tensor([0.5, 2.0]).repeat(4)[:, None, None],
    "assignment": lambda: assigned,
    "filters of one's own": lambda: Filters(),
    "over everything": lambda: lambda x: x * torch.amax(x) + torch.sum(x, ()),
    "nearest by a fraction": lambda: nn.Upsample(scale_factor=1.4),
    "nearest to fewer": lambda: nn.Upsample(scale_factor=0.3),
    "bilinear by a fraction": lambda: nn.Upsample(scale_factor=1.4, mode="bilinear"),
    "reflected and cut": lambda: lambda x: F.pad(x, (2, -1, -1, 1), mode="reflect"),
    "norm of vectors": lambda: VectorNorm(),
    "norms without scale": lambda: nn.BatchNorm2d(8, affine=False),
    "padding by name": lambda: nn.Conv2d(8, 8, (3, 5), padding="same"),
    "edges repeated": lambda: lambda x: F.pad(x, (2, 1, 0, 1), mode="replicate"),
    "edges reflected": lambda: lambda x: F.pad(x, (2, 1, 0, 1), mode="reflect"),
    "selection": lambda: lambda x: x[:, 1][:, None] * x,
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
    record.write_graph(folder, record.export(module, size, channels), result, {"initial": False})
    return result


def load(folder, dtype=jnp.float32, channels=3):
    """The network of a folder and its variables, in any precision."""
    statistics = {name: value[:1] * channels for name, value in STATISTICS.items()}
    opened = checkpoints.open_checkpoint(folder, **statistics)
    network = opened.build(forms=Forms(dtype))
    variables = naming.to_variables(opened.state, network)
    return network, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), variables)


def assert_equal(folder, reference, parts=("all",)):
    """Logits, moments and the gradient of the cross-entropy, in double precision where `record` has it so.

    Each part has its share of the logits and of the images' channels, by which a difference is told.
    """
    network, variables = load(folder, channels=reference["images"].shape[1])
    images, labels = reference["images"].transpose(0, 2, 3, 1), reference["labels"]
    out = jax.jit(lambda v, x: network.apply(v, x, moments=True))(variables, images)
    pairs = zip(*(np.split(logits, len(parts), 1) for logits in (out.logits, reference["logits"])), strict=True)
    for part, (logits, expected) in zip(parts, pairs, strict=True):
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5, err_msg=part)
    names = {name.split("/")[1] for name in reference if name.startswith("moments/")}
    assert set(out.moments) == names
    for name in names:
        for part in ("mean", "var"):
            np.testing.assert_allclose(out.moments[name][part], reference[f"moments/{name}/{part}"], 1e-4, 1e-5)
    with jax.enable_x64(True):
        network, variables = load(folder, jnp.float64, reference["images"].shape[1])

        def loss(x):
            log_p = jax.nn.log_softmax(network.apply(variables, x).logits)
            return -log_p[jnp.arange(len(labels)), labels].mean()

        gradient = jax.jit(jax.grad(loss))(jnp.asarray(images, jnp.float64)).transpose(0, 3, 1, 2)
    pairs = zip(*(np.split(g, len(parts), 1) for g in (gradient, reference["gradient/cross_entropy"])), strict=True)
    for part, (found, expected) in zip(parts, pairs, strict=True):
        # PyTorch keeps some constants, a sixth for one, in single precision.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max(), err_msg=part)


TOGETHER = 8  # functions of an export


@pytest.mark.parametrize("start", range(0, len(FUNCTIONS), TOGETHER))
def test_operations_equal_torchs(tmp_path, start):
    torch.manual_seed(0)
    names = list(FUNCTIONS)[start : start + TOGETHER]
    module = Several([FUNCTIONS[name]() for name in names])
    assert_equal(tmp_path, recorded(module, tmp_path, channels=3 * len(names)), names)


KINKS = {
    "relu": (F.relu, (0,)),
    "relu6": (nn.ReLU6(), (0, 6)),
    "hardtanh": (nn.Hardtanh(-2, 3), (-2, 3)),
    "clamp": (lambda x: x.clamp(-1, 1), (-1, 1)),
    "hardswish": (F.hardswish, (-3, 3)),
    "hardsigmoid": (F.hardsigmoid, (-3, 3)),
    "leaky relu": (nn.LeakyReLU(0.1), (0,)),
    "elu": (nn.ELU(0.5), (0,)),
    "abs": (torch.abs, (0,)),
    "clamp_min": (lambda x: x.clamp_min(-1), (-1,)),
    "clamp_max": (lambda x: x.clamp_max(1), (1,)),
}


@pytest.mark.parametrize("name", KINKS)
def test_gradients_at_kinks_are_pytorchs(name):
    """Channels that are dead have exact zeros, and bounded ones exact bounds."""
    function, at = KINKS[name]

    class Module(nn.Module):
        def forward(self, x):
            return function(x)

    points = torch.tensor([*at, -4.0, -0.5, 0.5, 7.0]).reshape(1, 1, 1, -1).repeat(2, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, _ = record.describe(torch.export.export(Module(), (points,)))
    (node,) = graph["nodes"]
    x = points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(x).sum(), x)

    def ours(x):
        arguments = {key: None if isinstance(value, dict) else value for key, value in node["args"].items()}
        return OPERATIONS[node["op"]](**(arguments | {"self": plain(x)})).array.sum()

    np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(points.numpy())), expected, atol=1e-6)


def test_gradients_are_the_same_in_both_forms(tmp_path):
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, (1, 3), dilation=2), nn.Conv2d(8, 16, 1, groups=4)
    recorded(Function(nn.Sequential(*layers)), tmp_path)
    opened = checkpoints.open_checkpoint(tmp_path, **STATISTICS)
    variables = naming.to_variables(opened.state, opened.build())
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    xla, cpu = (
        jax.jit(jax.value_and_grad(lambda v, n=n: jnp.sin(n.apply(v, images).logits).sum()))(variables)
        for n in (opened.build(forms=Forms(conv=kind)) for kind in ("xla", "cpu"))
    )
    for a, b in zip(jax.tree.leaves(xla), jax.tree.leaves(cpu), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_applied_twice_keeps_both_updates(tmp_path):
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 5)

        def forward(self, x):
            return self.fc(torch.relu(self.norm(self.norm(x * 2 + 1) * 3)).mean((2, 3)))

    module = Twice()
    recorded(module, tmp_path)
    network, variables = load(tmp_path)
    images = record.fixed_images((4, 3, 8, 8))
    out = network.apply(variables, images.transpose(0, 2, 3, 1), train=True)
    module.train()(torch.tensor(images))
    np.testing.assert_allclose(out.batch_stats["norm"]["mean"], module.norm.running_mean, rtol=1e-4, atol=1e-5)


def test_what_is_computed_of_weights_is_no_stage(tmp_path):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    reference = recorded(Function(Standardised()), tmp_path)
    network, variables = load(tmp_path)
    out = models.in_chunks(network, 1).apply(variables, reference["images"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(out.logits, reference["logits"], rtol=1e-4, atol=1e-5)
    assert {len(stage) for stage in out.blocks} == {3}


def test_buffers_come_with_the_weights_and_are_checked(tmp_path):
    torch.manual_seed(0)
    module = Function(Blur(True))
    recorded(module, tmp_path / "graph")
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["function.kernel"] *= 2
    images = record.fixed_images((2, 3, 8, 8))

    def found(state):
        torch.save(state, tmp_path / "other.pth")
        network, variables = convert.load_network(tmp_path / "other.pth", arch=str(tmp_path / "graph"), **STATISTICS)
        return network.apply(variables, images.transpose(0, 2, 3, 1)).logits

    module.load_state_dict(state)
    expected = module.eval()(torch.tensor(images)).detach()
    for prefix in ("", "module."):
        np.testing.assert_allclose(found({prefix + n: t for n, t in state.items()}), expected, rtol=1e-4, atol=1e-5)
    for change, words in {
        None: r"missing \(1\): function\.kernel",
        torch.zeros(8, 1, 5, 5): r"mis-shaped \(1\): function\.kernel",
        torch.full((8, 1, 3, 3), torch.nan): r"not finite \(1\): function\.kernel",
    }.items():
        changed = {n: t for n, t in (state | {"function.kernel": change}).items() if t is not None}
        with pytest.raises(UserError, match=words):
            found(changed)


class Mutating(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Mutating(), "changes seen in evaluation mode"),
        (Function(lambda x: F.dropout(x)), r"drops values in evaluation mode"),
    ],
)
def test_modules_that_are_no_functions_are_refused(tmp_path, module, words):
    with pytest.raises(record.RecordError, match=words):
        recorded(module, tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--image-size", "-3"), "whole number of at least 1, found '-3'"),
        (("--batch", "0"), "whole number of at least 1, found '0'"),
        (("--mean", "a,b"), "numbers separated by commas, found 'a,b'"),
        (("--std", "0,1,1"), "--std must be positive"),
        (("--checkpoint", "list.pth"), "is not a state dictionary"),
        (("--checkpoint", "names.pth"), "is not a state dictionary"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_one_line(tmp_path, monkeypatch, more, words, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(USER_NETWORK)
    torch.save([torch.zeros(2)], "list.pth")
    torch.save({"epoch": 3}, "names.pth")
    assert record.main(["net.py:make", "--graph", "graph", *more]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("arch", "size"), [("wrn10_1", 32), ("resnet8", 32), ("vgg8", 32), ("resnet18_imagenet", 64)])
def test_a_network_equals_torch(tmp_path, arch, size):
    assert_equal(tmp_path, recorded(seeded_twin(NetworkSpec(arch, 7)), tmp_path, size))


@pytest.mark.parametrize("source", ["initial", "trained"])
def test_a_fresh_student_is_drawn_as_its_constructor_or_as_pytorch_draws(tmp_path, source):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    norm, slope = nn.BatchNorm2d(16), nn.PReLU(16)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 16, 3), norm, slope, nn.Flatten(), nn.Linear(576, 5))\n"
        "    nn.init.normal_(net[0].weight, 0, 7), nn.init.constant_(net[0].bias, 3), nn.init.zeros_(net[1].weight)\n"
        "    return net\n"
    )
    arguments = [f"{tmp_path / 'net.py'}:make", "--image-size", "8", "--graph", str(tmp_path / "graph")]
    if source == "trained":
        torch.save(record.load_factory(arguments[0]).state_dict(), tmp_path / "net.pth")
        arguments += ["--checkpoint", str(tmp_path / "net.pth")]
    assert record.main(arguments) == 0
    network, recorded_weights = load(tmp_path / "graph")
    one, other = (network.init(jax.random.key(seed))["params"] for seed in (0, 1))
    assert not np.array_equal(one["0"]["kernel"], other["0"]["kernel"])
    if source == "initial":
        for leaf, known in zip(jax.tree.leaves(one), jax.tree.leaves(recorded_weights["params"]), strict=True):
            np.testing.assert_array_equal(np.sort(leaf, None), np.sort(known, None))
        assert not np.array_equal(one["4"]["bias"], other["4"]["bias"])
    else:
        bound = 1 / math.sqrt(27)
        assert 0.9 * bound < np.abs(one["0"]["kernel"]).max() <= bound
        assert np.abs(one["0"]["bias"]).max() <= bound
        np.testing.assert_array_equal(one["1"]["scale"], 1)
    np.testing.assert_array_equal(one["2.weight"]["value"], 0.25)


def test_a_graph_in_bfloat16_convolves_so_and_gives_float32(tmp_path):
    torch.manual_seed(0)
    recorded(Function(nn.Sequential(SqueezeExcite(), ChannelAttention(), nn.Conv2d(8, 8, 3, groups=8))), tmp_path)
    opened = checkpoints.open_checkpoint(tmp_path, **STATISTICS)
    variables = naming.to_variables(opened.state, opened.build())
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    wide, narrow = (opened.build(forms=Forms(dtype, "xla")) for dtype in (jnp.float32, jnp.bfloat16))
    out = narrow.apply(variables, images, moments=True)
    assert {out.logits.dtype, out.features.dtype, out.moments["norm"]["var"].dtype} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out.logits, wide.apply(variables, images).logits, rtol=0.05, atol=0.05)
    program = str(jax.make_jaxpr(narrow.apply)(variables, images))
    convolutions = re.findall(r":(\w+)\[[^]]*\] = conv_general_dilated", program)
    assert set(convolutions) == {"bf16"}


def test_a_graph_is_a_pure_function_that_vmap_maps(tmp_path):
    torch.manual_seed(0)
    recorded(Function(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, dilation=2))), tmp_path)
    network, variables = load(tmp_path)
    images = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))

    def gradient(images):
        return jax.grad(lambda images: jnp.square(network.apply(variables, images).logits).sum())(images)

    mapped = jax.jit(jax.vmap(gradient))(images)
    np.testing.assert_allclose(mapped, jnp.stack([gradient(each) for each in images]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", sorted(graph_fixtures.FOLDER.glob("*.npz")), ids=lambda path: path.stem)
def test_networks_of_torchvision_and_timm_equal_pytorch(tmp_path, path):
    graph_fixtures.unpack(path, tmp_path / "graph")
    report = verify.verify(tmp_path / "graph")
    assert report.passed, [check for check in report.checks if not check.passed]
    least = {"vit": 2, "gn_resnet8": 2, "segmenter": 4}  # of the first two, logits, a gradient and the way back
    assert len(report.checks) > least.get(path.stem, 40)


def test_a_student_trains_as_in_torch_and_goes_back_to_it(tmp_path):
    module = seeded_twin(NetworkSpec("wrn10_1", 7))
    recorded(module, tmp_path, 32)
    network, variables = load(tmp_path)
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
    network, variables = convert.load_network(folder, mean=(0.5,), std=(0.5,))
    assert network.spec == NetworkSpec("graph:graph", 6, 12, 1, (0.5,), (0.5,))
    assert {name: set(leaves) for name, leaves in variables["params"].items()} == {
        "0": {"kernel", "bias"}, "1": {"scale", "bias"}, "4": {"kernel", "bias"},
    }  # fmt: skip
    reference = np.load(folder / "reference.npz")
    out = network.apply(variables, reference["images"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(out.logits, reference["logits"], rtol=1e-5, atol=1e-6)
    assert out.features.shape == (2, 4)


class Dropped(nn.Module):
    """Dropouts of both kinds, one in place, a layer that evaluation does not use, and tied layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again.weight = self.second.weight
        self.norm = nn.BatchNorm2d(8, momentum=0.3)
        self.fc, self.auxiliary = nn.Linear(8, 5), nn.Linear(8, 5)
        self.register_buffer("unused", torch.arange(3))
        self.drop, self.drop_channels = nn.Dropout(0.25, inplace=True), nn.Dropout2d(0.5)

    def forward(self, x):
        x = self.drop_channels(self.again(self.second(self.first(x))))
        x = self.drop(torch.relu(self.norm(x)))
        x = x.mean((2, 3))
        return (self.fc(x), self.auxiliary(x)) if self.training else self.fc(x)


def test_dropout_drops_in_training_where_it_has_a_key(tmp_path):
    torch.manual_seed(0)
    recorded(Dropped(), tmp_path)
    network, variables = load(tmp_path)
    images = jnp.ones((64, 8, 8, 3))

    def logits(**how):
        return network.apply(variables, images, **how).logits

    key = jax.random.key(0)
    np.testing.assert_array_equal(logits(key=key), logits())
    np.testing.assert_array_equal(logits(train=True, key=key), logits(train=True, key=key))
    assert not np.allclose(logits(train=True, key=key), logits(train=True))
    assert not np.allclose(logits(train=True, key=key), logits(train=True, key=jax.random.key(1)))


@pytest.mark.parametrize(("channels", "rate"), [(False, 0.25), (True, 0.5), (False, 1.0), (True, 0.0)])
def test_dropout_keeps_its_share_and_the_mean(channels, rate):
    x = Laid(jnp.ones((200, 4, 4, 50)), (0, 2, 3, 1))
    y = np.asarray(graph_network._dropout(jax.random.key(0), x, rate, channels).array)
    assert set(np.unique(y)) <= {0.0, np.float32(1 / (1 - rate)) if rate < 1 else 0.0}
    assert abs((y == 0).mean() - rate) < 0.02
    whole = (y == y[:, :1, :1]).all((1, 2)).mean()
    assert whole == 1 if channels or rate == 1 else whole < 0.1


def test_ties_unused_layers_and_momentum_go_with_a_student(tmp_path):
    module = Dropped()
    recorded(module, tmp_path)
    network, variables = load(tmp_path)
    assert set(variables["params"]) - {"second", "again"} == {"first", "norm", "fc"}
    assert len(set(variables["params"]) & {"second", "again"}) == 1
    fresh = network.init(jax.random.key(0))
    out = network.apply(fresh, jnp.ones((4, 8, 8, 3)), train=True, moments=True)
    moved = out.batch_stats["norm"]["mean"]
    np.testing.assert_allclose(moved, 0.3 * out.moments["norm"]["mean"], rtol=1e-5)
    convert.save_network(tmp_path / "student.pth", network, fresh)
    module.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True), strict=True)
    torch.testing.assert_close(module.second.weight, module.again.weight, rtol=0, atol=0)
    x = record.fixed_images((2, 3, 8, 8))
    expected = network.apply(fresh, x.transpose(0, 2, 3, 1)).logits
    np.testing.assert_allclose(module.eval()(torch.tensor(x)).detach(), expected, rtol=1e-4, atol=1e-5)


def programs(module):
    """The module as `torch.export` gives it, and with everything decomposed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module.eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
        return {"training": program, "decomposed": program.run_decompositions()}


def save(program, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)


@pytest.mark.parametrize("dialect", ["training", "decomposed"])
def test_a_saved_program_is_recorded_as_its_module_is(tmp_path, dialect, capsys):
    torch.manual_seed(0)
    module = Function(
        nn.Sequential(nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.MaxPool2d(2), nn.SiLU())
    )
    expected = recorded(module, tmp_path / "module")
    save(programs(module)[dialect], tmp_path / "net.pt2")
    arguments = ["--trust", "--graph", str(tmp_path / "program"), "--batch", "3"]
    assert record.main([str(tmp_path / "net.pt2"), *arguments]) == 0, capsys.readouterr().err
    with np.load(tmp_path / "program" / "reference.npz") as found:
        for name in ("logits", "moments/norm/mean", "gradient/cross_entropy", "gradient/batch_norm"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
    assert_equal(tmp_path / "program", expected)
    opened = checkpoints.open_checkpoint(tmp_path / "program", **STATISTICS)
    fresh = opened.build().init(jax.random.key(0))
    assert {"kernel", "bias"} == set(fresh["params"]["fc"]), "a linear layer stays one"
    module.load_state_dict({n: torch.tensor(a) for n, a in naming.state_of(opened.build(), fresh).items()}, strict=True)


def test_norms_of_a_decomposed_program_equal_torch(tmp_path, capsys):
    torch.manual_seed(0)
    kept = with_statistics(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
    norms = nn.GroupNorm(4, 8), nn.InstanceNorm2d(8), kept, nn.BatchNorm2d(8, track_running_stats=False)
    weights = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    layers = [layer for norm in norms for layer in (norm, nn.ReLU())]
    module = Function(nn.Sequential(*layers, LastNorm(), weights, nn.GELU("tanh")))
    expected = recorded(module, tmp_path / "module")
    save(programs(module)["decomposed"], tmp_path / "net.pt2")
    arguments = [str(tmp_path / "net.pt2"), "--trust", "--graph", str(tmp_path / "program"), "--batch", "3"]
    assert record.main(arguments) == 0, capsys.readouterr().err
    ops = {node["op"] for node in json.loads((tmp_path / "program" / "graph.json").read_text())["nodes"]}
    assert {"aten.native_group_norm.default", "aten.native_layer_norm.default"} <= ops
    assert "aten._native_batch_norm_legit.no_stats" in ops
    assert_equal(tmp_path / "program", expected)


def test_an_instance_norm_with_statistics_teaches_and_is_not_trained(tmp_path):
    torch.manual_seed(0)
    recorded(Function(with_statistics(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))), tmp_path)
    network, variables = load(tmp_path)
    assert set(variables["batch_stats"]) == {"norm"}, "no teacher statistics: they are of single images"
    with pytest.raises(UserError, match="record the student with track_running_stats=False"):
        network.apply(variables, jnp.zeros((2, 8, 8, 3)), train=True)


def test_a_norm_of_the_batch_has_no_statistics_and_is_the_same_in_training(tmp_path):
    torch.manual_seed(0)
    module = Function(weighted(nn.BatchNorm2d(8, track_running_stats=False)))
    module.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    reference = recorded(module, tmp_path)
    network, variables = load(tmp_path)
    assert variables["batch_stats"] == {}
    images = reference["images"].transpose(0, 2, 3, 1)
    trained = network.apply(variables, images, train=True, moments=True)
    np.testing.assert_allclose(trained.logits, reference["logits"], rtol=1e-4, atol=1e-5)
    assert trained.moments == {}
    # Another batch is another function of the same image.
    assert np.abs(network.apply(variables, images[:2]).logits - reference["logits"][:2]).max() > 1e-2


def fixed_batch(module):
    return torch.export.export(module.eval(), (torch.zeros(2, 3, 8, 8),))


def in_training(module):
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(module.train(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("export", "more", "words"),
    [
        (fixed_batch, (), "takes batches of 2 only"),
        (in_training, (), "exported in training mode"),
        (lambda module: programs(module)["training"], ("--image-size", "16"), "takes images of 3x8x8"),
        (lambda module: programs(module)["training"], ("--checkpoint", "x.pth"), "has its weights"),
        (lambda module: programs(module)["training"], ("--mean", "0.5"), "--mean has 1 numbers, expected 3"),
        (None, (), "is not a program that torch.export.save wrote"),
    ],
)
def test_programs_that_cannot_be_recorded_are_refused(tmp_path, export, more, words, capsys):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"no archive")
    if export is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = Function(nn.ReLU())
            module.eval()(torch.zeros(2, 3, 8, 8))
            save(export(module), path)
    assert record.main([str(path), "--trust", "--graph", str(tmp_path / "graph"), *more]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "graph").exists()


class Segmenter(nn.Module):
    """Dilated, resized to the image, in a dictionary, as torchvision's are."""

    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.wide, self.head = nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.head(torch.relu(self.wide(torch.relu(self.norm(self.down(x))))))
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return OrderedDict(out=y, aux=y * 2)


def test_a_segmentation_network_gives_a_map_and_is_verified(tmp_path, capsys):
    torch.manual_seed(0)
    reference = recorded(Segmenter(), tmp_path)
    network, variables = load(tmp_path)
    assert network.spec.task == "segmentation"
    logits = network.apply(variables, reference["images"].transpose(0, 2, 3, 1)).logits
    np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), reference["logits"], rtol=1e-4, atol=1e-5)
    assert convert_main(["verify", str(tmp_path)]) == 0, capsys.readouterr()
    config = tiny_config(teacher__checkpoint="", teacher__graph=str(tmp_path), teacher__mean=(0.5,) * 3)
    config.teacher.std = (0.5,) * 3
    with pytest.raises(UserError, match=r"is for segmentation, the student .* for classification: expected both"):
        one_run.run(config, tmp_path / "run")


@pytest.fixture(scope="module")
def digits_graph(tmp_path_factory):
    """A small network for the digits, with a parameter that belongs to no layer."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("digits")
    module = Function(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), channels=1, classes=10)
    recorded(module, folder, 16, 1)
    return folder, module


def graph_config(folder, **changes):
    flags = {"teacher__checkpoint": "", "teacher__graph": str(folder), "student__graph": str(folder)}
    flags |= {"student__arch": "", "teacher__mean": (0.5,), "teacher__std": (0.5,)}
    return tiny_config(**(flags | changes))


def test_a_run_with_graphs_as_teacher_and_student(digits_graph, tmp_path, capsys):
    folder, module = digits_graph
    run = tmp_path / "run"
    config = graph_config(folder)
    summary = one_run.run(config, run)
    assert summary["student"] == summary["teacher"] == f"graph:{folder.name}"
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(torch.load(run / "student.pth", weights_only=True), strict=True)
    assert not torch.equal(module.gain.detach(), torch.linspace(0.5, 1.5, 8)), "not trained"

    # The student's own file, with the folder as architecture, is a checkpoint for every command.
    test = ["--data", config.data.source, "--split", config.data.split, "--json"]
    evaluate.main(["evaluate", str(run / "student.safetensors"), "--arch", str(folder), *test])
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["student_accuracy_last"]
    known = ["--arch", str(folder)]
    assert convert_main(["export", str(run / "student.safetensors"), *known, "--out", str(run / "again.pth")]) == 0
    again = torch.load(run / "again.pth", weights_only=True)
    assert again.keys() == module.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())
    module.load_state_dict(before)
    with pytest.raises(UserError, match="weights of a recorded graph: name its folder with --arch"):
        convert.load_network(run / "student.safetensors")


def double(tree):
    """Floating-point leaves in double precision; keys and counters as they are."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def after_two_calls(parts, teacher_vars, state):
    """What two synthesis calls with a KD step after each leave, the second one adversarial."""
    synthesize = jax.jit(parts.method.synthesize)
    step = jax.jit(distill.make_step(parts.teacher, parts.student, parts.optimizer, kd_loss(20.0)))
    method, student, kept = state["method"], state["student"], []
    for call in range(2):
        method, batch, info = synthesize(method, teacher_vars, student.variables, jax.random.key(call))
        student, kd = step(student, teacher_vars, batch.images, jax.random.key(10 + call))
        kept.append((batch, info, kd))
    return jax.tree.map(np.asarray, (kept, method, student))


def test_calls_and_kd_steps_equal_those_of_the_linen_models(tmp_path):
    """In double precision, where only the order of sums differs: the twins' graphs have our names and so our trees."""
    networks = {"teacher__checkpoint": "digits", "student__arch": "wrn10_1"}
    parts = build.assemble(tiny_config(**networks))
    spec = parts.teacher.spec
    for part in ("teacher", "student"):
        recorded(seeded_twin(getattr(parts, part).spec), tmp_path / part, spec.image_size, spec.channels)
    linen = tiny_config(precision="float64", **networks)
    graphs = graph_config(
        tmp_path / "teacher", student__graph=str(tmp_path / "student"), precision="float64",
        teacher__mean=spec.mean, teacher__std=spec.std,
    )  # fmt: skip
    with jax.enable_x64(True):
        start = initial_state(jax.random.key(1), parts)
        teacher_vars, start = double((parts.teacher.init(jax.random.key(2)), start))
        expected, found = (after_two_calls(build.assemble(each), teacher_vars, start) for each in (linen, graphs))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, theirs), ours in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        atol = 1e-8 * np.abs(theirs).max(initial=1e-12)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_commands_take_a_graph_for_a_checkpoint(digits_graph, tmp_path, capsys):
    folder, module = digits_graph
    statistics = ["--mean", "0.5", "--std", "0.5"]
    evaluate.main(["evaluate", str(folder), "--data", "digits", "--split", "test", "--json", *statistics])
    found = json.loads(capsys.readouterr().out)
    digits = data.load("digits", "test")
    images = torch.tensor((digits.images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5, dtype=torch.float32)
    predicted = module.eval()(images).argmax(1).numpy()
    assert found["arch"] == f"graph:{folder.name}"
    assert found["accuracy"] == pytest.approx(100 * (predicted == digits.labels).mean())

    assert convert_main(["verify", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["reference"].endswith("reference.npz")
    assert convert_main(["export", str(folder), "--out", str(tmp_path / "net.pth")]) == 0
    module.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True), strict=True)
    assert convert_main(["export", str(folder), "--out", str(tmp_path / "n.pth"), "--naming", "torchvision"]) == 2
    assert "keeps its own names: leave --naming" in capsys.readouterr().err
    assert convert_main(["import", str(folder), "--out", str(tmp_path / "n.safetensors"), *statistics]) == 2
    assert "needs no import" in capsys.readouterr().err


def test_verify_recognises_a_graph_with_other_weights(digits_graph, tmp_path, capsys):
    shutil.copytree(digits_graph[0], tmp_path / "graph")
    state, _ = weight_files.read_state_dict(tmp_path / "graph" / "weights.safetensors")
    state["norm.running_mean"] = state["norm.running_mean"] + 0.1
    weight_files.write_safetensors(tmp_path / "graph" / "weights.safetensors", state, {})
    assert convert_main(["verify", str(tmp_path / "graph")]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_verify_runs_the_module_that_a_graph_comes_from(tmp_path, capsys):
    (tmp_path / "net.py").write_text(USER_NETWORK)
    target, folder = f"{tmp_path / 'net.py'}:make", str(tmp_path / "graph")
    assert record.main([target, "--graph", folder]) == 0
    assert convert_main(["verify", folder, "--torch", target]) == 0, capsys.readouterr().out
    assert target in capsys.readouterr().out


def test_a_student_may_begin_with_the_recorded_weights(digits_graph, tmp_path):
    folder = digits_graph[0]
    config = graph_config(folder, student__checkpoint=str(folder))
    parts = build.assemble(config)
    recorded_weights = convert.load_network(folder, mean=(0.5,), std=(0.5,))[1]
    assert parts.student_vars is not None
    jax.tree.map(np.testing.assert_array_equal, parts.student_vars, recorded_weights)
    assert build.assemble(graph_config(folder)).student_vars is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher__mean": ()}, "does not say how its images are normalised"),
        ({"teacher__checkpoint": "digits"}, r"not a valid graph:.*expected weights of the recorded module"),
        ({"student__checkpoint": "x.pth"}, r"no checkpoint x\.pth"),
    ],
)
def test_graphs_that_do_not_go_with_the_rest_are_refused(digits_graph, tmp_path, changes, words):
    config = graph_config(digits_graph[0])
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    with pytest.raises(UserError, match=words):
        one_run.run(config, tmp_path)


def test_all_operations_that_are_not_known_are_listed_and_nothing_is_run(tmp_path, monkeypatch):
    words = r"unsupported operations: aten\.cumprod\.default \(2\), aten\.(special_)?erf\.default \(1\)"
    module = Function(lambda x: torch.special.erf(torch.cumprod(torch.cumprod(x, 1), 2)))
    with pytest.raises(record.RecordError, match=words):
        recorded(module, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
    # Recorded where this package is not, the folder is refused when it is read.
    with monkeypatch.context() as patch:
        patch.setattr(record, "_require_known", lambda *_: None)
        recorded(module, tmp_path / "graph")
    with pytest.raises(UserError, match=words):
        load(tmp_path / "graph")


def convolutional(width):
    return nn.Sequential(nn.Conv2d(1, width, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10))


def attentive(width):
    """Attention between patches, of one width only."""
    del width
    return nn.Sequential(nn.Conv2d(1, 8, 4, 4), Attention(), nn.LayerNorm(8), nn.Flatten(), nn.Linear(128, 10))


@pytest.mark.parametrize("make", [convolutional, attentive])
def test_networks_without_batch_norm_teach_and_learn(tmp_path, make):
    """A whole run of a method that matches no statistics; FastDFKD, which does, is refused unless D' is there."""
    teacher, student, workdir = (str(tmp_path / name) for name in ("teacher", "student", "run"))
    recorded(make(6), teacher, 16, 1)
    recorded(make(3), student, 16, 1)
    rows = [check.name for check in verify.verify(teacher).checks]
    assert rows == ["logits", "image gradient of cross_entropy", "round trip"]
    known = {"teacher__graph": teacher, "teacher__mean": (0.5,), "teacher__std": (0.5,), "student__graph": student}
    config = tiny_config(teacher__checkpoint="", method__name="dafl", dafl__width=4, dafl__latent_dim=6, **known)
    runs = Runs()
    summary = runs.run(config, pathlib.Path(workdir))
    assert (summary["teacher"], summary["student"]) == ("graph:teacher", "graph:student")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("synthesis/agreement" in record for record in records)
    assert not any("moment_gap" in name for record in records for name in record)
    # What was saved of a student without statistics is found whole, and is the same summary.
    again = runs.run(config, pathlib.Path(workdir))
    assert again == summary | {"peak_memory_bytes": again["peak_memory_bytes"]}
    state = torch.load(f"{workdir}/student.pth", weights_only=True)
    make(3).load_state_dict(state, strict=True)
    _, trained = convert.load_network(f"{workdir}/student.safetensors", arch=student)
    assert trained["batch_stats"] == {}

    config.method.name = "fastdfkd"
    with pytest.raises(UserError, match=r"inversion\.feature_weight must be 0 for the teacher graph:teacher"):
        one_run.run(config, tmp_path / "other")
    # Nothing is synthesised of images that are there.
    (tmp_path / "given").mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "given" / "black.png")
    config.mode, config.pool.initial = "distill", str(tmp_path / "given")
    assert build.assemble(config).teacher.spec.arch == "graph:teacher"


def without_kernel(folder, description):
    state, _ = weight_files.read_state_dict(folder / "weights.safetensors")
    weight_files.write_safetensors(
        folder / "weights.safetensors", {n: a for n, a in state.items() if n != "conv.weight"}, {}
    )


def with_other_kernel(folder, description):
    state, _ = weight_files.read_state_dict(folder / "weights.safetensors")
    weight_files.write_safetensors(folder / "weights.safetensors", state | {"conv.weight": np.zeros((8, 3, 5, 5))}, {})


def truncated_weights(folder, description):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_graph(folder, description):
    path = folder / "graph.json"
    path.write_text(path.read_text()[:-100])


def without_output(folder, description):
    del description["output"]


def with_dangling_node(folder, description):
    del description["nodes"][[node["name"] for node in description["nodes"]].index("conv2d")]


def with_strange_output(folder, description):
    description["output"] = "nobody"


def with_strange_entry(folder, description):
    description["entries"]["p_x"] = "x.weight"


def without_arguments(folder, description):
    del description["nodes"][-1]["args"]


def with_other_classes(folder, description):
    description["classes"] = 7


def of_another_format(folder, description):
    description["format"] = 9


def empty(folder, description):
    (folder / "graph.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_kernel, r"does not fit its graph \(it lacks conv\.weight"),
        (with_other_kernel, r"has conv\.weight of shape \[8, 3, 5, 5\], expected \[8, 3, 3, 3\]"),
        (truncated_weights, "not a safetensors file, or is truncated"),
        (truncated_graph, "cannot be read as JSON"),
        (without_output, "has no output"),
        (with_dangling_node, "takes conv2d, which no node gives"),
        (with_strange_output, "no node gives its output nobody"),
        (with_strange_entry, r"lacks x\.weight"),
        (without_arguments, "nodes must be a list of nodes with name, op and args"),
        (with_other_classes, "expected logits of 7 classes, found shape \\(1, 5\\)"),
        (of_another_format, "format 9, expected 3"),
        (empty, r"is a folder without graph\.json"),
    ],
)
def test_a_damaged_graph_is_refused_in_one_line(tmp_path, damage, words):
    recorded(Function(nn.ReLU()), tmp_path)
    path = tmp_path / "graph.json"
    description = json.loads(path.read_text())
    before = json.dumps(description)
    damage(tmp_path, description)
    if json.dumps(description) != before:
        path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_asked_of_a_graph_must_be_so(tmp_path):
    recorded(Function(nn.ReLU()), tmp_path)
    with pytest.raises(UserError, match="mean has 1 numbers, expected 3"):
        convert.load_network(tmp_path, mean=(0.5,), std=(0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="was recorded with classes 5, expected 7"):
        convert.load_network(tmp_path, num_classes=7, **STATISTICS)
    with pytest.raises(UserError, match="is a recorded graph, expected resnet8"):
        convert.load_network(tmp_path, arch="resnet8", **STATISTICS)


def test_a_graph_keeps_how_its_images_are_normalised(tmp_path, capsys):
    (tmp_path / "net.py").write_text(USER_NETWORK)
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    flags = [item for key, numbers in statistics.items() for item in (f"--{key}", ",".join(map(str, numbers)))]
    folder = tmp_path / "graph"
    assert record.main([f"{tmp_path / 'net.py'}:make", "--graph", str(folder), *flags]) == 0, capsys.readouterr().err
    for how in ({}, statistics):
        network, _ = convert.load_network(folder, **how)
        assert (network.spec.mean, network.spec.std) == (statistics["mean"], statistics["std"])
    with pytest.raises(
        UserError, match=r"expected mean \[0\.1, 0\.2, 0\.3\], with which .* was recorded, found \[0\.5"
    ):
        convert.load_network(folder, mean=(0.5,) * 3)


def test_a_graph_gives_the_means_of_single_images_and_its_first_batch_norms(tmp_path):
    torch.manual_seed(0)
    normed = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
    reference = recorded(Function(nn.Sequential(*normed)), tmp_path)
    network, variables = load(tmp_path)
    images = reference["images"].transpose(0, 2, 3, 1)
    out = jax.jit(lambda v, x: network.apply(v, x, moments=True, image_means=True))(variables, images)
    names = sorted(out.moments)
    assert sorted(out.image_means) == names
    for name in names:
        means = out.image_means[name]["mean"]
        assert means.shape == (3, *out.moments[name]["mean"].shape)
        np.testing.assert_allclose(means.mean(0), out.moments[name]["mean"], rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(network.apply, variables, images).image_means == {}
    first = [name for name, flag in zip(names, models.first_batch_norms(network), strict=True) if flag]
    assert first == ["norm"]
