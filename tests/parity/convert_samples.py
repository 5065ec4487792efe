"""Seeded PyTorch networks for the tests of the conversion."""

from typing import Any

import jax
import numpy as np
import torch

from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.models import Network, NetworkSpec


def random_variables(network: Network, seed: int = 0) -> dict[str, Any]:
    """Positive noise in every leaf: sound weights without compiling the initialisation."""
    generator = np.random.default_rng(seed)
    shapes = dict(jax.eval_shape(network.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: generator.uniform(0.01, 0.1, leaf.shape).astype(np.float32), shapes)


def seeded_twin(spec: NetworkSpec, seed: int = 0) -> torch.nn.Module:
    """A twin in which no scale, shift or statistic has its initial value, so that a swapped one shows."""
    torch.manual_seed(seed)
    module = twin(spec).eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                assert layer.num_batches_tracked is not None
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.num_batches_tracked.fill_(7)
    return module


# A ResNet-8 with convolution shortcuts under RepDistiller's and torchvision's names, written apart from the twins.
USER_NETWORK = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += residual
        return self.relu(out)


class Network(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2))
        self.layer3 = nn.Sequential(Block(32, 64, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.avgpool(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.flatten(1))


def make():
    return Network()


def make_parallel():
    return nn.DataParallel(Network())


def make_wrong():
    """The same entries, another function: what only a comparison of outputs can tell."""
    network = Network()
    network.avgpool = nn.AdaptiveMaxPool2d(1)
    return network


def make_other():
    return Network(classes=7)


def break_down():
    raise RuntimeError("out of order")
'''
