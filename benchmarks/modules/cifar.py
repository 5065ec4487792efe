"""PyTorch modules as a user would bring them, which know nothing of this package: a thin ResNet, a Wide ResNet.

python -m fastdfkd_jax.convert.record benchmarks/modules/cifar.py:resnet20 --checkpoint resnet20.th --graph DIR
"""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions; where the shape changes, the shortcut takes every other pixel and adds zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """A ResNet of 6 n + 2 layers for 32 x 32 images (He et al. 2016, section 4.2)."""

    def __init__(self, n: int, classes: int = 10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(before if i == 0 else width, width, stride if i == 0 else 1) for i in range(n)))
            for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, 3, 32, 32] to logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    """Activations before convolutions (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = functional.relu(self.norm1(x), inplace=True)
        shortcut = x if self.project is None else self.project(y)
        return shortcut + self.conv2(functional.relu(self.norm2(self.conv1(y)), inplace=True))


class WideResNet(nn.Module):
    """A Wide ResNet of 6 n + 4 layers."""

    def __init__(self, n: int, width: int, classes: int = 10):
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        stages = [
            WideBlock(before if i == 0 else after, after, stride if i == 0 else 1)
            for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
            for i in range(n)
        ]
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), *stages, nn.BatchNorm2d(widths[-1]), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, 3, 32, 32] to logits."""
        return self.head(self.body(x))


def resnet20() -> nn.Module:
    """ResNet-20."""
    return ResNet(3)


def wrn16_1() -> nn.Module:
    """WRN-16-1."""
    return WideResNet(2, 1)
