"""Statistics for teachers without BatchNorm: those of another network, or measured at the teacher's own layers.

Both are given to a teacher as its `batch_stats`, so that every method with a statistics term can use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.models.network import Network, Outputs, Variables
from fastdfkd_jax.options import Options, option

COLLECTION = "proxy"  # of the other network's parameters, beside the teacher's


@dataclass(frozen=True)
class ProxyOptions(Options, section="proxy"):
    """Options of the statistics that a teacher without BatchNorm is given; such a teacher has none otherwise."""

    images: str = option(
        "",
        "folder of pictures on which the moments of the teacher's LayerNorm and GroupNorm inputs are measured, to be "
        "matched as BatchNorm statistics are; no labels are read",
    )
    checkpoint: str = option(
        "", "weights of another network, with BatchNorm, whose statistics are matched: a file as for the teacher"
    )
    graph: str = option("", "folder written by convert.record --graph, for another network with BatchNorm")
    arch: str = option("", "architecture of the other network; '' to read it from the checkpoint")
    num_classes: int = option(0, "number of classes of the other network; 0 to read it", at_least=0)
    image_size: int = option(
        0, "side to which images are resized for the other network, in pixels; 0 to leave them as they are", at_least=0
    )
    mean: tuple[float, ...] = option((), "mean per channel that the other network expects; () to read it")
    std: tuple[float, ...] = option((), "standard deviation per channel that it expects; () to read it")

    def __post_init__(self):
        super().__post_init__()
        self.require("images", not (self.images and self.is_network), "'' with proxy.checkpoint or proxy.graph")

    @property
    def given(self) -> tuple[str, str]:
        """Key and value of the option that gives the statistics; ('', '') if none does."""
        names = (name for name in ("images", "checkpoint", "graph") if getattr(self, name))
        name = next(names, "")
        return (f"proxy.{name}", getattr(self, name)) if name else ("", "")

    @property
    def is_network(self) -> bool:
        """True if the statistics are another network's."""
        return bool(self.checkpoint or self.graph)


def with_statistics(teacher: Network, statistics: Any) -> Network:
    """Returns the teacher with statistics of its `other_norms`, a tree like `batch_stats`, among its variables."""

    def init(key: Any) -> Variables:
        return {**teacher.init(key), "batch_stats": statistics}

    return teacher._replace(init=init)


def with_proxy(teacher: Network, proxy: Network, side: int = 0) -> Network:
    """Returns the teacher with the moments and statistics of another network, which sees the same images.

    Its variables are `proxy_variables(...)`. The other network runs only where moments are requested.

    Args:
      teacher: a network without BatchNorm.
      proxy: a network with BatchNorm and as many channels.
      side: side to which images are resized for the proxy; 0 for none.
    """
    ours, expected = teacher.spec, proxy.spec

    def init(key: Any) -> Variables:
        return proxy_variables(teacher.init(key), proxy.init(key))

    def apply(
        variables: Variables, images: Any, moments: bool = False, image_means: bool = False, **asked: Any
    ) -> Outputs:
        seen = teacher.apply({"params": variables["params"], "batch_stats": {}}, images, **asked)
        seen = seen._replace(batch_stats=variables["batch_stats"])
        if not (moments or image_means):
            return seen
        theirs = {"params": variables[COLLECTION], "batch_stats": variables["batch_stats"]}
        images = augment.normalize(augment.denormalize(images, ours.mean, ours.std), expected.mean, expected.std)
        if side:
            images = jax.image.resize(images, (len(images), side, side, images.shape[-1]), "linear")
        other = proxy.apply(theirs, images, moments=moments, image_means=image_means)
        return seen._replace(moments=other.moments, image_means=other.image_means)

    return teacher._replace(init=init, apply=apply)


def proxy_variables(teacher_vars: Variables, proxy_vars: Variables) -> dict[str, Any]:
    """Joins the variables of both networks of `with_proxy`."""
    return {
        "params": teacher_vars["params"],
        "batch_stats": proxy_vars["batch_stats"],
        COLLECTION: proxy_vars["params"],
    }
