"""Our architectures as PyTorch modules, the reference that a conversion is verified against by default.

Written from the published descriptions, with the usual ports' module names, independently of the linen
models. torch is imported when a twin is built, so that nothing else needs it.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from fastdfkd_jax.convert.files import import_torch
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec

_RESNET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_VGG_STAGES = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}


def twin(spec: NetworkSpec) -> Any:
    """Builds the torch.nn.Module whose state dictionary has our names.

    Args:
      spec: the network.

    Returns:
      A module with PyTorch's initial weights; its forward takes NCHW images and gives logits.

    Raises:
      UserError: torch is not installed, or there is no twin of this architecture.
    """
    import_torch()
    for pattern, make in _TWINS:
        if match := re.fullmatch(pattern, spec.arch):
            return make(match, spec)
    raise UserError(f"there is no PyTorch twin of {spec.arch!r}: give --torch FILE.py:FACTORY or --reference FILE.npz")


def _classifier(modules: dict[str, Any], forward: Any) -> Any:
    """A module with these children and this forward function of (children, images)."""
    nn = import_torch().nn

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                self.add_module(name, module)

        def forward(self, x):
            return forward(self, x)

    return Classifier()


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, bias: bool = False) -> Any:
    return import_torch().nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)


def _wide_resnet(match: re.Match[str], spec: NetworkSpec) -> Any:
    torch = import_torch()
    nn, relu = torch.nn, torch.relu
    depth, widen = int(match[1]), int(match[2])

    def block(inputs: int, outputs: int, stride: int) -> Any:
        parts = {
            "bn1": nn.BatchNorm2d(inputs),
            "conv1": _conv(inputs, outputs, 3, stride),
            "bn2": nn.BatchNorm2d(outputs),
            "conv2": _conv(outputs, outputs),
        }
        if inputs != outputs:
            parts["convShortcut"] = _conv(inputs, outputs, 1, stride)

        def forward(self, x):
            active = relu(self.bn1(x))
            out = self.conv2(relu(self.bn2(self.conv1(active))))
            return out + (self.convShortcut(active) if inputs != outputs else x)

        return _classifier(parts, forward)

    widths = (16, 16 * widen, 32 * widen, 64 * widen)
    modules = {"conv1": _conv(spec.channels, 16)}
    for s, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        first = block(inputs, outputs, 1 if s == 1 else 2)
        rest = [block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
        modules[f"block{s}"] = _classifier({"layer": nn.Sequential(first, *rest)}, lambda self, x: self.layer(x))
    modules |= {"bn1": nn.BatchNorm2d(widths[-1]), "fc": nn.Linear(widths[-1], spec.num_classes)}

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(relu(self.bn1(x)).mean((2, 3)))

    return _classifier(modules, forward)


def _residual_block(inputs: int, width: int, stride: int, bottleneck: bool, shortcut: str, name: str) -> Any:
    torch = import_torch()
    nn, relu = torch.nn, torch.relu
    outputs = 4 * width if bottleneck else width
    if bottleneck:
        convs = [_conv(inputs, width, 1), _conv(width, width, 3, stride), _conv(width, outputs, 1)]
    else:
        convs = [_conv(inputs, width, 3, stride), _conv(width, width)]
    parts = {}
    for i, conv in enumerate(convs, start=1):
        parts |= {f"conv{i}": conv, f"bn{i}": nn.BatchNorm2d(conv.out_channels)}
    changes = stride != 1 or inputs != outputs
    if changes and shortcut == "b":
        parts[name] = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = x
        for i in range(1, len(convs) + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            out = relu(out) if i < len(convs) else out
        if changes and shortcut == "b":
            x = getattr(self, name)(x)
        elif changes:
            missing = outputs - inputs
            x = nn.functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing // 2, missing - missing // 2))
        return relu(out + x)

    return _classifier(parts, forward)


def _residual_network(
    spec: NetworkSpec,
    stem: int,
    widths: tuple[int, ...],
    counts: tuple[int, ...],
    bottleneck: bool,
    shortcut: str,
    imagenet: bool = False,
) -> Any:
    torch = import_torch()
    nn = torch.nn
    stem_conv = _conv(spec.channels, stem, 7, 2) if imagenet else _conv(spec.channels, stem)
    modules = {"conv1": stem_conv, "bn1": nn.BatchNorm2d(stem)}
    name, head = ("downsample", "fc") if imagenet else ("shortcut", "linear")
    inputs = stem
    for s, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        blocks = []
        for i in range(count):
            blocks.append(_residual_block(inputs, width, 2 if i == 0 and s > 1 else 1, bottleneck, shortcut, name))
            inputs = 4 * width if bottleneck else width
        modules[f"layer{s}"] = nn.Sequential(*blocks)
    modules[head] = nn.Linear(inputs, spec.num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        if imagenet:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for s in range(1, len(widths) + 1):
            x = getattr(self, f"layer{s}")(x)
        return getattr(self, head)(x.mean((2, 3)))

    return _classifier(modules, forward)


def _resnet(match: re.Match[str], spec: NetworkSpec) -> Any:
    depth = int(match[1])
    return _residual_network(spec, 64, (64, 128, 256, 512), _RESNET_STAGES[depth], depth >= 50, "b", bool(match[2]))


def _cifar_resnet(match: re.Match[str], spec: NetworkSpec) -> Any:
    wide = match[2] is not None
    widths = (64, 128, 256) if wide else (16, 32, 64)
    count = (int(match[1]) - 2) // 6
    shortcut = match[3] or ("b" if wide else "a")
    return _residual_network(spec, widths[0] // (2 if wide else 1), widths, (count,) * 3, False, shortcut)


def _vgg(match: re.Match[str], spec: NetworkSpec) -> Any:
    torch = import_torch()
    nn = torch.nn
    modules, inputs = {}, spec.channels
    for b, (width, count) in enumerate(zip((64, 128, 256, 512, 512), _VGG_STAGES[int(match[1])], strict=True)):
        layers = []
        for _ in range(count):
            layers += [_conv(inputs, width, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        modules[f"block{b}"] = nn.Sequential(*layers)
    modules["classifier"] = nn.Linear(inputs, spec.num_classes)

    def forward(self, x):
        size = x.shape[-1]
        for b in range(5):
            x = getattr(self, f"block{b}")(x)
            if b < 3 or (b == 3 and size == 64):
                x = nn.functional.max_pool2d(x, 2)
        return self.classifier(x.mean((2, 3)))

    return _classifier(modules, forward)


def _mobilenet(match: re.Match[str], spec: NetworkSpec) -> Any:
    nn = import_torch().nn

    def activated(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> Any:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

    def block(inputs: int, outputs: int, stride: int, expansion: int) -> Any:
        hidden = inputs * expansion
        layers = [activated(inputs, hidden, 1)] if expansion != 1 else []
        layers += [activated(hidden, hidden, 3, stride, hidden), _conv(hidden, outputs, 1), nn.BatchNorm2d(outputs)]
        adds = stride == 1 and inputs == outputs
        return _classifier({"conv": nn.Sequential(*layers)}, lambda self, x: x + self.conv(x) if adds else self.conv(x))

    layers, inputs = [activated(spec.channels, 32, 3, 2)], 32
    for expansion, outputs, count, stride in zip(
        (1, 6, 6, 6, 6, 6, 6),
        (16, 24, 32, 64, 96, 160, 320),
        (1, 2, 3, 4, 3, 3, 1),
        (1, 2, 2, 2, 1, 2, 1),
        strict=True,
    ):
        for i in range(count):
            layers.append(block(inputs, outputs, stride if i == 0 else 1, expansion))
            inputs = outputs
    layers.append(activated(inputs, 1280, 1))
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, spec.num_classes))
    return _classifier(
        {"features": nn.Sequential(*layers), "classifier": head},
        lambda self, x: self.classifier(self.features(x).mean((2, 3))),
    )


_TWINS = (
    (r"mobilenetv2_imagenet", _mobilenet),
    (r"wrn(\d+)_(\d+)", _wide_resnet),
    (r"resnet(18|34|50)(_imagenet)?", _resnet),
    (r"resnet(\d+)(x4)?([ab])?", _cifar_resnet),
    (r"vgg(8|11|13)", _vgg),
)
