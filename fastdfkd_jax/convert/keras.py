"""Reads Keras's ResNet-50 (He et al. 2016, "v1") in TensorFlow.js format, with our names.

Its convolutions have biases before BatchNorms, and it takes BGR images of 0 to 255 minus ImageNet's mean. The biases
move into the running means (BatchNorm's input and its mean both lose the bias), BGR into the first kernel, and the mean
into the spec. The result is a ResNet of this package with the same logits and the same BatchNorm distance.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits

State = dict[str, np.ndarray]

ARCH = "resnet50v1_imagenet"
# 'caffe' mode: subtracted from RGB of 0 to 255, without a division.
_MEAN = (123.68, 116.779, 103.939)
_STAGES = "2345"
_LAYERS = r"(bn|res)[2-5][a-f]_branch(1|2[abc])|(bn_)?conv1|fc1000"
_EXPECTED = "expected the layers-model of Keras's ResNet-50 for TensorFlow.js"


def read(path: Path) -> tuple[State, dict[str, Any]]:
    """Reads `model.json` and the shards beside it.

    Returns:
      f32 arrays by our names in PyTorch's layout, and the spec's arch, mean and std.

    Raises:
      UserError: a file is missing or damaged, or holds another network.
    """
    arrays = _arrays(path)
    layers = {name.split("/")[0] for name in arrays}
    if strange := sorted(layer for layer in layers if not re.fullmatch(_LAYERS, layer)):
        raise UserError(f"{path}: {_EXPECTED}, found the layer {shortened(strange[0], 60)}")
    convs = {layer: _ours(layer) for layer in layers if layer.startswith(("conv", "res"))}
    state: State = {}
    try:
        for layer, (conv, norm) in convs.items():
            theirs = "bn_conv1" if layer == "conv1" else layer.replace("res", "bn")
            state[f"{conv}.weight"] = arrays[f"{layer}/kernel"].transpose(3, 2, 0, 1)
            state[f"{norm}.weight"], state[f"{norm}.bias"] = arrays[f"{theirs}/gamma"], arrays[f"{theirs}/beta"]
            mean, bias = arrays[f"{theirs}/moving_mean"], arrays[f"{layer}/bias"]
            if mean.shape != bias.shape:
                raise ValueError(f"bias of {layer}")
            state[f"{norm}.running_mean"] = mean - bias
            state[f"{norm}.running_var"] = arrays[f"{theirs}/moving_variance"]
        state["conv1.weight"] = state["conv1.weight"][:, ::-1]
        state["fc.weight"], state["fc.bias"] = arrays["fc1000/kernel"].T, arrays["fc1000/bias"]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path}: {_EXPECTED}, found no usable {shortened(str(error), 60)}") from error
    spec = {"arch": ARCH, "mean": [value / 255 for value in _MEAN], "std": [1 / 255] * 3}
    return {name: np.ascontiguousarray(array) for name, array in state.items()}, spec


def _ours(layer: str) -> tuple[str, str]:
    """Returns our names of a convolution and its BatchNorm: res3a_branch2b is layer2.0.conv2."""
    if layer == "conv1":
        return "conv1", "bn1"
    stage, block, branch = layer[3], layer[4], layer.partition("branch")[2]
    name = f"layer{_STAGES.index(stage) + 1}.{ord(block) - ord('a')}"
    if branch == "1":
        return f"{name}.downsample.0", f"{name}.downsample.1"
    part = "abc".index(branch[-1]) + 1
    return f"{name}.conv{part}", f"{name}.bn{part}"


def _arrays(path: Path) -> State:
    """Returns all arrays by Keras's names."""
    try:
        groups = limits.read_json(path, "model description")["weightsManifest"]
        shards = [_shard(path, name) for group in groups for name in group["paths"]]
        limits.require_bytes(sum(limits.require_regular(shard, "shard") for shard in shards), path)
        arrays: State = {}
        for group in groups:
            content, start = b"".join(_shard(path, name).read_bytes() for name in group["paths"]), 0
            for entry in group["weights"]:
                array = _array(path, entry, content, start)
                arrays[entry["name"]], start = array, start + array.nbytes
            if start != len(content):
                raise UserError(f"{path}: its shards hold {len(content)} bytes, expected {start}: download them again")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = shortened(str(error), 80)
        raise UserError(f"cannot read {path} and its shards ({reason}): {_EXPECTED}") from error
    return arrays


def _shard(path: Path, name: str) -> Path:
    """Returns the path of a weights file.

    It must lie beside the description, which may come from an untrusted source.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"the shard {name!r} is not beside it")
    return path.parent / name


def _array(path: Path, entry: dict[str, Any], content: bytes, start: int) -> np.ndarray:
    name, shape = entry["name"], entry["shape"]
    kind = "quantized" if "quantization" in entry else entry["dtype"]
    if kind != "float32":
        raise UserError(f"{path}: expected float32 weights, found {shortened(str(kind), 40)} ones in {name}")
    if not isinstance(name, str) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("a name or a shape is damaged")
    return np.frombuffer(content, np.dtype("<f4"), math.prod(shape), start).reshape(shape)
