"""Infers a checkpoint's architecture, classes and input channels from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from fastdfkd_jax.convert.messages import RECORD, UNKNOWN_NETWORK, LongError
from fastdfkd_jax.convert.naming import DEEPLAB_HEAD, common_prefix
from fastdfkd_jax.errors import UserError, listed, one_line
from fastdfkd_jax.models import is_known

State = Mapping[str, np.ndarray]

_STEMS = ("conv1.weight", "block0.0.weight", "features.0.0.weight", "_conv_stem.weight", "backbone.conv1.weight")
_STEMS += ("backbone.low_level_features.0.0.weight",)
_HEADS = ("linear", "fc", "_fc", "classifier")
_FOUR_STAGES: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
}
_VGG: dict[tuple[int, ...], str] = {(1, 1, 1, 1, 1): "vgg8", (1, 1, 2, 2, 2): "vgg11", (2, 2, 2, 2, 2): "vgg13"}


def guess_arch(state: State) -> str:
    """Names the architecture of a state dictionary.

    Raises:
      UserError: its entries match no known family; the message asks for --arch.
    """
    state = _bare(state)
    arch = _family(state)
    if arch is None:
        bare = not any(name.endswith("running_mean") for name in state)
        hint = "; it has no BatchNorm, so it is not a known network" if bare else ""
        title = "the architecture cannot be recognised from the checkpoint's entries"
        mend = f"name it with --arch; {UNKNOWN_NETWORK}"
        names = list(state)

        def fitted(room: int) -> str:
            texts = (f"{title} ({listed(names, most, 60)}{hint}): {mend}" for most in (4, 3, 2, 1))
            return next((text for text in texts if len(text) <= room), f"{title}: {mend}")

        raise LongError(fitted, f"{title} ({', '.join(map(one_line, names))}{hint}): {mend}")
    return arch


def networks_under(state: State) -> list[str]:
    """Returns the first components ('teacher.') under each of which there is a known network."""
    starts = dict.fromkeys(f"{name.split('.')[0]}." for name in state if "." in name)
    groups = {p: {n.removeprefix(p): array for n, array in state.items() if n.startswith(p)} for p in starts}
    return [start for start, group in groups.items() if _family(_bare(group))]


def _family(state: State) -> str | None:
    families = (_wide_resnet, _resnet, _vgg, _mobilenet, _efficientnet, _deeplab)
    return next(filter(None, (family(state) for family in families)), None)


def guess_classes(state: State) -> int:
    """Returns the outputs of the last linear layer; for DeepLab those of the last 1x1 convolution.

    Raises:
      UserError: there is no linear layer.
    """
    state = _bare(state)
    for head in DEEPLAB_HEAD:
        if _is_deeplab(state, head):
            return int(state[f"{head}.4.weight"].shape[0])
    heads = [name for name in state if name.endswith("weight") and state[name].ndim == 2]
    usual = [name for name in heads if name.split(".")[0] in _HEADS]
    if not heads:
        raise UserError(
            "the checkpoint has no linear layer to read the number of classes from: expected a classifier; import any "
            f"other network as a recorded graph: {RECORD}"
        )
    return int(state[(usual or heads)[-1]].shape[0])


def guess_channels(state: State) -> int:
    """Returns the input channels of the stem's convolution, or 3 if none is found."""
    state = _bare(state)
    for name in _STEMS:
        if name in state and state[name].ndim == 4:
            return int(state[name].shape[1])
    return 3


def _bare(state: State) -> dict[str, np.ndarray]:
    prefix = common_prefix(state)
    return {name.removeprefix(prefix): array for name, array in state.items()}


def _indices(state: State, pattern: str) -> dict[int, int]:
    """Counts the second numbers for every first number among the matching names, in order."""
    pairs = {(int(m[1]), int(m[2])) for name in state if (m := re.fullmatch(pattern, name))}
    return {first: sum(a == first for a, _ in pairs) for first in sorted({a for a, _ in pairs})}


def _wide_resnet(state: State) -> str | None:
    blocks = _indices(state, r"block(\d+)\.layer\.(\d+)\.conv1\.weight")
    if list(blocks) != [1, 2, 3] or len(set(blocks.values())) != 1:
        return None
    return f"wrn{6 * blocks[1] + 4}_{state['block1.layer.0.conv1.weight'].shape[0] // 16}"


def _resnet(state: State) -> str | None:
    blocks = _indices(state, r"layer(\d+)\.(\d+)\.conv1\.weight")
    stem = state.get("conv1.weight")
    if stem is None or stem.ndim != 4 or stem.shape[-1] not in (3, 7):
        return None
    imagenet = stem.shape[-1] == 7
    convs = 3 if "layer1.0.conv3.weight" in state else 2
    if list(blocks) == [1, 2, 3, 4]:
        arch = _FOUR_STAGES.get((tuple(blocks.values()), convs))
        return f"{arch}_imagenet" if arch and imagenet else arch
    if imagenet or list(blocks) != [1, 2, 3] or len(set(blocks.values())) != 1 or convs != 2:
        return None
    wide = "x4" if stem.shape[0] == 32 else ""
    kind = "b" if any(re.search(r"\.(shortcut|downsample)\.", name) for name in state) else "a"
    depth = 6 * blocks[1] + 2
    # The letter is needed only if it is not the name's default, or if the name means another family.
    usual = "b" if wide else "a"
    return f"resnet{depth}{wide}{'' if kind == usual and depth != 50 else kind}"


def _vgg(state: State) -> str | None:
    convs = {
        (int(m[1]), int(m[2]))
        for name, array in state.items()
        if (m := re.fullmatch(r"block(\d+)\.(\d+)\.weight", name)) and array.ndim == 4
    }
    counts = tuple(sum(block == b for block, _ in convs) for b in range(5))
    return _VGG.get(counts)


def _mobilenet(state: State) -> str | None:
    widths = [
        array.shape[0]
        for name in ("features.0.0.weight", "features.18.0.weight")
        if (array := state.get(name)) is not None
    ]
    blocks = {m[1] for name in state if (m := re.match(r"features\.(\d+)\.conv\.0\.0\.weight", name))}
    return "mobilenetv2_imagenet" if widths == [32, 1280] and len(blocks) == 17 else None


def _efficientnet(state: State) -> str | None:
    # Lite0 has the blocks of B0, but no squeeze and excitation.
    depthwise = [name for name in state if re.fullmatch(r"_blocks\.\d+\._depthwise_conv\.weight", name)]
    head = state.get("_conv_head.weight")
    lite = head is not None and head.shape[0] == 1280 and len(depthwise) == 16
    return "efficientnet_lite0" if lite and not any("._se_" in name for name in state) else None


def _deeplab(state: State) -> str | None:
    if not any(_is_deeplab(state, head) for head in DEEPLAB_HEAD):
        return None
    backbone = {name.removeprefix("backbone."): array for name, array in state.items() if name.startswith("backbone.")}
    blocks = {m[1] for name in backbone if (m := re.match(r"(?:low|high)_level_features\.(\d+)\.conv\.", name))}
    resnet = (_resnet(backbone) or "").removesuffix("_imagenet")
    arch = f"deeplabv3_{'mobilenetv2' if len(blocks) == 17 else resnet}"
    return arch if is_known(arch) else None


def _is_deeplab(state: State, head: str) -> bool:
    last = state.get(f"{head}.4.weight")
    return last is not None and last.ndim == 4 and f"{head}.0.project.0.weight" in state
