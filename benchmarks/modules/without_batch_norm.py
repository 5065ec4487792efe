"""Small PyTorch classifiers of 32 x 32 images without BatchNorm: a vision transformer and a ResNet with GroupNorm."""

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    """Attention and two linear layers, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.rise, self.fall = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, tokens, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.fall(functional.gelu(self.rise(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer of 8 x 8 tokens, which two convolutions make (Dosovitskiy et al. 2021; Xiao et al. 2021)."""

    def __init__(self, depth: int, width: int, heads: int, classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width // 2, 3, 2, 1), nn.Conv2d(width // 2, width, 3, 2, 1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, 3, 32, 32] to logits."""
        x = self.conv2(functional.relu(self.conv1(x))).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Block(nn.Module):
    """Two convolutions with GroupNorm; where the shape changes, the shortcut is a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(self.shortcut(x) + y)


class ResNet(nn.Module):
    """A ResNet of 6 n + 2 layers (He et al. 2016, section 4.2) with GroupNorm (Wu and He 2018)."""

    def __init__(self, n: int, classes: int = 10):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(8, 16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(before if i == 0 else width, width, stride if i == 0 else 1) for i in range(n)))
            for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, 3, 32, 32] to logits."""
        x = functional.relu(self.norm1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def vit() -> ViT:
    """Returns a transformer of 0.55 million parameters."""
    return ViT(depth=4, width=128, heads=4)


def gn_resnet20() -> ResNet:
    """Returns a ResNet-20 with GroupNorm."""
    return ResNet(3)
