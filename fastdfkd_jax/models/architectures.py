"""Architectures by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fastdfkd_jax.errors import UserError, nearest
from fastdfkd_jax.models import resnet, vgg
from fastdfkd_jax.models.cifar_resnet import CifarResNet
from fastdfkd_jax.models.deeplab import DeepLabV3
from fastdfkd_jax.models.efficientnet import EfficientNetLite0
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.mobilenet import MobileNetV2
from fastdfkd_jax.models.network import Network, NetworkSpec, from_linen
from fastdfkd_jax.models.wide_resnet import WideResNet
from fastdfkd_jax.options import Options, option

_ModuleOf = Callable[[re.Match[str]], Callable[..., Any] | None]


class _Family(NamedTuple):
    """Architectures that share a module.

    Attributes:
      pattern: regular expression that must match the whole name.
      usual: members that messages list and tests cover.
      module: returns the matched name's module class with its sizes bound; None if no such member exists.
      stages: kind of its networks' `Outputs.blocks`, as listed in `stages_of`.
      image_size: side in pixels of the images that the family was published for.
      task: the networks' task, as in `NetworkSpec.task`.
    """

    pattern: str
    usual: tuple[str, ...]
    module: _ModuleOf
    stages: str
    image_size: int = 32
    task: str = "classification"


def _wide_resnet(match: re.Match[str]) -> Callable[..., Any] | None:
    depth, widen = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or widen < 1:
        return None
    return partial(WideResNet, depth, widen)


def _cifar_resnet(match: re.Match[str]) -> Callable[..., Any] | None:
    depth, wide, shortcut = int(match[1]), match[2] is not None, match[3]
    if depth < 8 or (depth - 2) % 6:
        return None
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    # The ports differ: the thin networks have option A, those with 4x widths option B.
    return partial(CifarResNet, depth, widths, shortcut or ("b" if wide else "a"))


def _deeplab(match: re.Match[str]) -> Callable[..., Any]:
    return partial(DeepLabV3, match[1], 16 if match[2] else 8)


_THIN = ("resnet8", "resnet20", "resnet20b", "resnet32", "resnet44", "resnet56", "resnet110")

_BACKBONES = ("resnet50", "resnet18", "mobilenetv2")

# The first match counts: resnet50 is the network with four stages, not the thin one of depth 6n + 2.
_FAMILIES = (
    _Family(r"wrn(\d+)_(\d+)", ("wrn16_1", "wrn16_2", "wrn40_1", "wrn40_2"), _wide_resnet, "sums"),
    _Family(
        r"resnet(18|34|50)",
        ("resnet18", "resnet34", "resnet50"),
        lambda match: partial(resnet.ResNet, int(match[1]), False),
        "activated sums",
    ),
    _Family(
        r"resnet(18|34|50)_imagenet",
        ("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet"),
        lambda match: partial(resnet.ResNet, int(match[1]), True),
        "activated sums",
        image_size=224,
    ),
    _Family(
        r"resnet50v1_imagenet",
        ("resnet50v1_imagenet",),
        lambda match: partial(resnet.ResNet, 50, True, v1=True),
        "activated sums",
        image_size=224,
    ),
    _Family(r"resnet(\d+)(x4)?([ab])?", (*_THIN, "resnet8x4", "resnet32x4"), _cifar_resnet, "activated sums"),
    _Family(r"mobilenetv2_imagenet", ("mobilenetv2_imagenet",), lambda match: MobileNetV2, "projections", 224),
    _Family(r"efficientnet_lite0", ("efficientnet_lite0",), lambda match: EfficientNetLite0, "projections", 224),
    _Family(
        rf"deeplabv3_({'|'.join(_BACKBONES)})(_os16)?",
        tuple(f"deeplabv3_{backbone}{stride}" for backbone in _BACKBONES for stride in ("", "_os16")),
        _deeplab,
        "",  # the backbone's stages
        image_size=128,
        task="segmentation",
    ),
    _Family(r"vgg(8|11|13)", ("vgg8", "vgg11", "vgg13"), lambda match: partial(vgg.VGG, int(match[1])), "activations"),
)


_registered: dict[str, _Family] = {}


def register(
    name: str,
    module: Callable[..., Any],
    *,
    stages: str = "",
    image_size: int = 32,
    task: str = "classification",
) -> None:
    """Registers your own architecture, for example at the top of a config file; a second call replaces the first.

    Args:
      name: the value for `teacher.arch` and `student.arch`.
      module: a linen module with the attributes `num_classes`, `train` and `forms` (`models.Forms`). It maps
        f32[B, H, W, C] to (logits, features, blocks); `WideResNet` is an example. Methods can match the moments
        only of `layers.BatchNorm`.
      stages: kind of the blocks, as listed in `stages_of`.
      image_size: side in pixels of the images that it is meant for.
      task: its task, as in `NetworkSpec.task`.

    Raises:
      UserError: the package already has an architecture of that name.
    """
    if any(re.fullmatch(family.pattern, name) for family in _FAMILIES):
        raise UserError(
            f"the name {name!r} belongs to an architecture of the package: register yours under another name"
        )
    _registered[name] = _Family(re.escape(name), (name,), lambda match: module, stages, image_size, task)


def _find(arch: str) -> tuple[_Family, Callable[..., Any]] | None:
    for family in (*_FAMILIES, *_registered.values()):
        if match := re.fullmatch(family.pattern, arch):
            module = family.module(match)
            return None if module is None else (family, module)
    return None


def arch_names() -> tuple[str, ...]:
    """Returns the package's usual architectures, for messages and tests (others, such as wrn28_10, exist)."""
    return tuple(name for family in _FAMILIES for name in family.usual)


def _nearest(arch: str) -> str:
    return nearest(arch[:40], arch_names())


def is_known(arch: str) -> bool:
    """Returns True if `build` knows this name."""
    return _find(arch) is not None


def is_registered(arch: str) -> bool:
    """Returns True if a user has added an architecture of this name."""
    return arch in _registered


def usual_image_size(arch: str) -> int:
    """Returns the side in pixels of the images that an architecture was published for; 32 for unknown names."""
    found = _find(arch)
    return 32 if found is None else found[0].image_size


def task_of(arch: str) -> str:
    """Returns an architecture's task, as in `NetworkSpec.task`; 'classification' for unknown names."""
    found = _find(arch)
    return "classification" if found is None else found[0].task


def stages_of(arch: str) -> str:
    """Returns the kind of an architecture's `Outputs.blocks`; '' if unknown, as for a recorded graph.

    The kinds are 'sums' of residual branches before a BatchNorm and a ReLU (WRN), 'activated sums' after their ReLU
    (ResNet), 'activations' of plain convolutions after their ReLU (VGG), and 'projections', sums without a ReLU
    (MobileNetV2).
    """
    found = _find(arch)
    return "" if found is None else found[0].stages


def build(spec: NetworkSpec, *, forms: Forms = Forms()) -> Network:
    """Builds the network that a spec names.

    Args:
      spec: architecture, classes, input size and normalisation; its task is replaced by the architecture's.
      forms: precision and convolutions.

    Raises:
      UserError: the architecture is not known.
    """
    found = _find(spec.arch)
    if found is None:
        raise UserError(
            f"unknown architecture {spec.arch[:40]!r}: the nearest are {_nearest(spec.arch)}; expected one of "
            "docs/models.md, another depth or width of these families, or the folder of a recorded graph"
        )
    family, module = found
    spec = dataclasses.replace(spec, task=family.task)

    def make(train: bool, forms: Forms = forms):
        return module(num_classes=spec.num_classes, train=train, forms=forms)

    # Variables do not depend on the form of convolutions, and this one is traced in a third of the time. A user's
    # module may not be hashable.
    initial = None if is_registered(spec.arch) else make(True, dataclasses.replace(forms, conv="xla"))
    return from_linen(make, spec, initial)


@dataclass(frozen=True)
class TeacherOptions(Options, section="teacher"):
    """Options of the teacher, the network to invert."""

    checkpoint: str = option(
        "",
        "weights of the teacher: a PyTorch, safetensors or Keras file (docs/doors.md), or 'digits' (shipped with "
        "the package)",
    )
    graph: str = option(
        "",
        "folder written by convert.record --graph, for any PyTorch network; its weights, unless there is a checkpoint",
    )
    arch: str = option("", "architecture of the teacher, a name in docs/models.md; '' to read it from the checkpoint")
    num_classes: int = option(0, "number of classes of the teacher; 0 to read it from the checkpoint", at_least=0)
    image_size: int = option(
        0,
        "side of the teacher's input images in pixels; 0 to read it from the checkpoint, else the architecture's "
        "default",
        at_least=0,
    )
    mean: tuple[float, ...] = option(
        (), "mean per channel of images in [0, 1], for normalisation; () to read it from the checkpoint"
    )
    std: tuple[float, ...] = option(
        (), "standard deviation per channel of images in [0, 1], for normalisation; () to read it from the checkpoint"
    )


@dataclass(frozen=True)
class StudentOptions(Options, section="student"):
    """Options of the student, the network to train."""

    arch: str = option("wrn16_1", "architecture of the student, a name in docs/models.md")
    graph: str = option("", "folder written by convert.record --graph; replaces arch")
    checkpoint: str = option("", "file of weights that the student starts from; '' for a new student")

    def __post_init__(self):
        super().__post_init__()
        self.require(
            "arch",
            bool(self.graph) or is_known(self.arch),
            f"a network of docs/models.md, such as {_nearest(self.arch)}",
        )
