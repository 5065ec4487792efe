"""Our architectures as PyTorch modules, the default reference that verifies a conversion.

They were written from the published descriptions, with the usual ports' module names, independently of the linen
models. torch is imported only when a twin is built, so that nothing else needs it.
"""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import Any

from fastdfkd_jax.convert.torch_twins.segmentation import deeplab
from fastdfkd_jax.convert.weight_files import import_torch
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec

_RESNET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_VGG_STAGES = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}


def twin(spec: NetworkSpec) -> Any:
    """Builds the torch.nn.Module whose state dictionary has our names.

    Args:
      spec: the network.

    Returns:
      A module with PyTorch's initial weights. Its forward takes NCHW images and returns logits; maps are NCHW.

    Raises:
      UserError: torch is not installed, or there is no twin of this architecture.
    """
    import_torch()
    for pattern, make in _TWINS:
        if match := re.fullmatch(pattern, spec.arch):
            return make(match, spec)
    raise UserError(f"there is no PyTorch twin of {spec.arch!r}: give --torch FILE.py:FACTORY or --reference FILE.npz")


def _classifier(modules: dict[str, Any], forward: Any) -> Any:
    """Builds a module with these children and this forward function of (children, images)."""
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


def _residual_block(
    inputs: int, width: int, stride: int, bottleneck: bool, shortcut: str, name: str, v1: bool = False
) -> Any:
    torch = import_torch()
    nn, relu = torch.nn, torch.relu
    outputs = 4 * width if bottleneck else width
    if bottleneck:
        first, second = (stride, 1) if v1 else (1, stride)
        convs = [_conv(inputs, width, 1, first), _conv(width, width, 3, second), _conv(width, outputs, 1)]
    else:
        convs = [_conv(inputs, width, 3, stride), _conv(width, width)]
    parts, norm = {}, partial(nn.BatchNorm2d, eps=1e-3 if v1 else 1e-5)
    for i, conv in enumerate(convs, start=1):
        parts |= {f"conv{i}": conv, f"bn{i}": norm(conv.out_channels)}
    changes = stride != 1 or inputs != outputs
    if changes and shortcut == "b":
        parts[name] = nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))

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
    v1: bool = False,
) -> Any:
    torch = import_torch()
    nn = torch.nn
    stem_conv = _conv(spec.channels, stem, 7, 2) if imagenet else _conv(spec.channels, stem)
    modules = {"conv1": stem_conv, "bn1": nn.BatchNorm2d(stem, eps=1e-3 if v1 else 1e-5)}
    name, head = ("downsample", "fc") if imagenet else ("shortcut", "linear")
    inputs = stem
    for s, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        blocks = []
        for i in range(count):
            blocks.append(_residual_block(inputs, width, 2 if i == 0 and s > 1 else 1, bottleneck, shortcut, name, v1))
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
    depth, v1, imagenet = int(match[1]), bool(match[2]), bool(match[3])
    return _residual_network(spec, 64, (64, 128, 256, 512), _RESNET_STAGES[depth], depth >= 50, "b", imagenet, v1)


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


def _efficientnet_lite0(match: re.Match[str], spec: NetworkSpec) -> Any:
    nn = import_torch().nn
    functional = nn.functional

    class SameConv(nn.Conv2d):
        """A convolution with TensorFlow's padding 'same', which PyTorch refuses with a stride."""

        def forward(self, x):
            edges = []
            for length in (x.shape[3], x.shape[2]):
                zeros = max((-(-length // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - length, 0)
                edges += [zeros // 2, zeros - zeros // 2]
            return super().forward(functional.pad(x, edges))

    def norm(channels: int) -> Any:
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    def block(inputs: int, outputs: int, size: int, stride: int, expansion: int) -> Any:
        hidden = inputs * expansion
        modules = {} if expansion == 1 else {"_expand_conv": _conv(inputs, hidden, 1), "_bn0": norm(hidden)}
        modules["_depthwise_conv"] = SameConv(hidden, hidden, size, stride, groups=hidden, bias=False)
        modules |= {"_bn1": norm(hidden), "_project_conv": _conv(hidden, outputs, 1), "_bn2": norm(outputs)}

        def forward(self, x):
            y = x if expansion == 1 else functional.relu6(self._bn0(self._expand_conv(x)))
            y = functional.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return x + y if stride == 1 and inputs == outputs else y

        return _classifier(modules, forward)

    blocks, inputs = [], 32
    for count, size, stride, expansion, outputs in zip(
        (1, 2, 2, 3, 3, 4, 1),
        (3, 3, 5, 3, 5, 5, 3),
        (1, 2, 2, 2, 1, 2, 1),
        (1, 6, 6, 6, 6, 6, 6),
        (16, 24, 40, 80, 112, 192, 320),
        strict=True,
    ):
        for i in range(count):
            blocks.append(block(inputs, outputs, size, stride if i == 0 else 1, expansion))
            inputs = outputs
    modules = {"_conv_stem": SameConv(spec.channels, 32, 3, 2, bias=False), "_bn0": norm(32)}
    modules |= {"_blocks": nn.ModuleList(blocks), "_conv_head": _conv(inputs, 1280, 1), "_bn1": norm(1280)}
    modules["_fc"] = nn.Linear(1280, spec.num_classes)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for each in self._blocks:
            x = each(x)
        return self._fc(functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))

    return _classifier(modules, forward)


_TWINS = (
    (r"deeplabv3_(\w+?)(_os16)?", deeplab),
    (r"efficientnet_lite0", _efficientnet_lite0),
    (r"mobilenetv2_imagenet", _mobilenet),
    (r"wrn(\d+)_(\d+)", _wide_resnet),
    (r"resnet(18|34|50)(v1)?(_imagenet)?", _resnet),
    (r"resnet(\d+)(x4)?([ab])?", _cifar_resnet),
    (r"vgg(8|11|13)", _vgg),
)
