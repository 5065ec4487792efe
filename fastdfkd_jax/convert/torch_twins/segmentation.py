"""DeepLabv3 as a PyTorch module; `classifiers` has the other architectures."""

from __future__ import annotations

import re
from typing import Any

from fastdfkd_jax.convert.weight_files import import_torch
from fastdfkd_jax.models import NetworkSpec

_RESNETS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}
# For each block of MobileNetV2: expansion, channels, stride.
_MOBILENET = (
    (1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1), (6, 64, 2), (6, 64, 1), (6, 64, 1),
    (6, 64, 1), (6, 96, 1), (6, 96, 1), (6, 96, 1), (6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1),
)  # fmt: skip


def deeplab(match: re.Match[str], spec: NetworkSpec) -> Any:
    """Builds the module for a match of 'deeplabv3_(BACKBONE)(_os16)?'; its forward returns [B, classes, H, W]."""
    nn = import_torch().nn
    output_stride = 16 if match[2] else 8
    resnet = _RESNETS.get(match[1])
    backbone, channels = (
        _resnet(spec.channels, *resnet, output_stride) if resnet else _mobilenet(spec.channels, output_stride)
    )

    class DeepLab(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone
            # The inner name comes from the port.
            self.classifier = nn.Module()
            self.classifier.classifier = _head(channels, spec.num_classes, output_stride)

        def forward(self, x):
            logits = self.classifier.classifier(self.backbone(x))
            return nn.functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)

    return DeepLab()


def _resnet(colours: int, counts: tuple[int, ...], bottleneck: bool, output_stride: int) -> tuple[Any, int]:
    """Builds the stages up to the last, with each convolution's dilation written out; returns also their channels."""
    torch = import_torch()
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int]):
            super().__init__()
            outputs = 4 * width if bottleneck else width
            first, rest = dilations
            if bottleneck:
                sizes = [(inputs, width, 1, 1, 1), (width, width, 3, stride, first), (width, outputs, 1, 1, 1)]
            else:
                sizes = [(inputs, width, 3, stride, first), (width, outputs, 3, 1, rest)]
            self.parts = len(sizes)
            for i, (a, b, size, step, dilation) in enumerate(sizes, start=1):
                padding = dilation * (size // 2)
                self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, padding, dilation, bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            self.downsample = None
            if stride > 1 or inputs != outputs:
                conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = x
            for i in range(1, self.parts + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = torch.relu(y) if i < self.parts else y
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    modules = {
        "conv1": nn.Conv2d(colours, 64, 7, 2, 3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }
    # Stride of the first block, dilation of its convolution that may stride, and dilation of all others.
    plans = {8: ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)), 16: ((1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2))}
    inputs = 64
    for stage, (count, (stride, first, rest)) in enumerate(zip(counts, plans[output_stride], strict=True), start=1):
        blocks, width = [], 32 * 2**stage
        for i in range(count):
            blocks.append(Block(inputs, width, stride if i == 0 else 1, (first if i == 0 else rest, rest)))
            inputs = 4 * width if bottleneck else width
        modules[f"layer{stage}"] = nn.Sequential(*blocks)
    return _sequence(modules), inputs


def _mobilenet(colours: int, output_stride: int) -> tuple[Any, int]:
    """Builds the blocks up to the last, padding each branch's input; the port's two groups keep their numbers."""
    nn = import_torch().nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int):
            super().__init__()
            hidden = expansion * inputs
            layers = [activated(inputs, hidden, 1)] if expansion > 1 else []
            layers.append(activated(hidden, hidden, 3, stride, dilation, hidden))
            layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.conv = nn.Sequential(*layers)
            self.around, self.adds = (dilation,) * 4, stride == 1 and inputs == outputs

        def forward(self, x):
            y = self.conv(nn.functional.pad(x, self.around))
            return x + y if self.adds else y

    def activated(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> Any:
        conv = nn.Conv2d(inputs, outputs, size, stride, 0, dilation, groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

    layers, inputs, reached, dilation = [activated(colours, 32, 3, 2)], 32, 2, 1
    for expansion, outputs, stride in _MOBILENET:
        own, step = dilation, stride
        if stride > 1 and reached == output_stride:
            dilation, step = stride * dilation, 1
        reached *= step
        layers.append(Block(inputs, outputs, expansion, step, own))
        inputs = outputs
    numbered = {str(i): layer for i, layer in enumerate(layers)}
    groups = {
        "low_level_features": _sequence({name: layer for name, layer in numbered.items() if int(name) < 4}),
        "high_level_features": _sequence({name: layer for name, layer in numbered.items() if int(name) >= 4}),
    }
    return _sequence(groups), inputs


def _head(channels: int, classes: int, output_stride: int) -> Any:
    torch = import_torch()
    nn = torch.nn

    def branch(conv: Any, outputs: int = 256) -> Any:
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            unit = 96 // output_stride
            dilated = (nn.Conv2d(channels, 256, 3, 1, rate, rate, bias=False) for rate in (unit, 2 * unit, 3 * unit))
            branches = [branch(nn.Conv2d(channels, 256, 1, bias=False)), *map(branch, dilated)]
            mean = [nn.AdaptiveAvgPool2d(1), *branch(nn.Conv2d(channels, 256, 1, bias=False))]
            self.convs = nn.ModuleList([*branches, nn.Sequential(*mean)])
            self.project = nn.Sequential(*branch(nn.Conv2d(5 * 256, 256, 1, bias=False)), nn.Dropout(0.1))

        def forward(self, x):
            parts = [conv(x) for conv in self.convs]
            parts[-1] = nn.functional.interpolate(parts[-1], x.shape[2:], mode="bilinear", align_corners=False)
            return self.project(torch.cat(parts, 1))

    return nn.Sequential(Pyramid(), *branch(nn.Conv2d(256, 256, 3, padding=1, bias=False)), nn.Conv2d(256, classes, 1))


def _sequence(modules: dict[str, Any]) -> Any:
    sequence = import_torch().nn.Sequential()
    for name, module in modules.items():
        sequence.add_module(name, module)
    return sequence
