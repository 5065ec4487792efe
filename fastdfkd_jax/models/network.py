"""The contract of every network: pure functions over variables, all of interest returned as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.cpu_conv import map_in_chunks
from fastdfkd_jax.models.layers import BLOCK, CONVOLUTION

Array = jax.Array
Variables = Mapping[str, Any]

_KEPT = {"activations": CONVOLUTION, "blocks": BLOCK}
REMATERIALISATIONS = ("none", *_KEPT)


@dataclass(frozen=True)
class NetworkSpec:
    """What a checkpoint does not say about its network.

    Attributes:
      arch: name in the registry (`models.build`), or 'graph:NAME' of a recorded network.
      num_classes: outputs of the classifier.
      image_size: side of the square input in pixels.
      channels: channels of the input.
      mean, std: per-channel normalisation of images in [0, 1].
      task: 'classification', or 'segmentation', whose logits are a map: a class for every pixel.
    """

    arch: str
    num_classes: int
    image_size: int = 32
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    task: str = "classification"

    @property
    def gives_maps(self) -> bool:
        """Whether logits and labels are maps, so that no class can be asked of an image as a whole."""
        return self.task == "segmentation"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return (self.image_size, self.image_size, self.channels)


class Outputs(NamedTuple):
    """What one forward pass gives.

    Attributes:
      logits: f32[B, num_classes]; of a segmentation network f32[B, H, W, num_classes].
      features: f32[B, D], the penultimate features.
      blocks: the activations after each stage, f32[B, h, w, c] each.
      moments: tree like `batch_stats`: mean and biased variance, f32[C], of every BatchNorm's
        input over N, H and W; empty unless asked for.
      batch_stats: the running statistics after this pass; those that went in unless `train`.
      image_means: of every BatchNorm by its name {'mean': f32[B, C]}, its input's mean over H and W of each image;
        empty unless asked for.
    """

    logits: Array
    features: Array
    blocks: tuple[Array, ...]
    moments: Any
    batch_stats: Any
    image_means: Any = {}  # noqa: RUF012 - never written to


class OtherEntries(NamedTuple):
    """Entries of a PyTorch state dictionary that are no variables.

    Attributes:
      fixed: arrays by name: buffers that do not train, and what belongs to layers that are not used.
      ties: names of entries that are the tensor of another one, to the name of that.
    """

    fixed: Mapping[str, Any]
    ties: Mapping[str, str]


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      spec: classes, input, normalisation and task.
      init: `init(key) -> variables` with the collections 'params' and 'batch_stats'.
      apply: `apply(variables, images, train=False, moments=False, key=None, image_means=False) -> Outputs`; images
        are normalised f32[B, H, W, C]. In training a network that has dropout drops where it is given a `key`.
      others: what else a network of another code base has in its state dictionary; of ours None.
    """

    spec: NetworkSpec
    init: Callable[[Array], Variables]
    apply: Callable[..., Outputs]
    others: OtherEntries | None = None


def from_linen(make: Callable[[bool], nn.Module], spec: NetworkSpec) -> Network:
    """Wraps a linen module whose `__call__(images)` gives (logits, features, blocks).

    Args:
      make: `make(train)` builds the module in training or in evaluation mode.
      spec: the network's spec.
    """

    def init(key: Array) -> Variables:
        variables = make(True).init(key, jnp.zeros((1, *spec.input_shape)))
        # A network without BatchNorm has no such collection; callers may rely on the key.
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(
        variables: Variables,
        images: Array,
        train: bool = False,
        moments: bool = False,
        key=None,
        image_means: bool = False,
    ) -> Outputs:
        asked = {"batch_stats": train, "moments": moments, "image_means": image_means}
        mutable = [name for name, wanted in asked.items() if wanted]
        rngs = None if key is None else {"dropout": key}
        (logits, features, blocks), new = make(train).apply(variables, images, mutable=mutable, rngs=rngs)
        batch_stats = new.get("batch_stats", variables["batch_stats"])
        return Outputs(logits, features, blocks, new.get("moments", {}), batch_stats, new.get("image_means", {}))

    return Network(spec, init, apply)


def rematerialised(network: Network, kind: str) -> Network:
    """The same network, which keeps less for its backward pass and computes the rest again there.

    Args:
      network: one of ours; recorded ones have no blocks.
      kind: 'none'; 'activations' keeps the convolutions' outputs (BatchNorms and ReLUs are computed again);
        'blocks' keeps what each block leaves to the next (one more forward pass). On the CPU little is
        saved: XLA merges most of what is computed again with the first time.
    """
    if kind == "none":
        return network
    policy = jax.checkpoint_policies.save_only_these_names(_KEPT[kind])

    def apply(variables: Variables, images: Array, **asked: Any) -> Outputs:
        return jax.checkpoint(partial(network.apply, **asked), policy=policy)(variables, images)

    return network._replace(apply=apply)


def in_chunks(network: Network, most: int) -> Network:
    """The same network for predicting on a CPU, `most` images of a device at a time: activations stay in its cache.

    Only evaluation of outputs alone goes by chunks; what else is asked for needs the whole batch.
    """

    def apply(variables: Variables, images: Array, **asked: Any) -> Outputs:
        if any(asked.get(name) for name in ("train", "moments", "image_means")):
            return network.apply(variables, images, **asked)

        def predict(images: Array) -> tuple[Array, Array, tuple[Array, ...]]:
            out = network.apply(variables, images)
            return out.logits, out.features, out.blocks

        whole = map_in_chunks(predict, images, most)
        return Outputs(*whole, moments={}, batch_stats=variables["batch_stats"])

    return network._replace(apply=apply)


def count_parameters(variables: Variables) -> int:
    """Number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_batch_norms(variables: Variables) -> int:
    """Number of BatchNorm layers (each holds a mean and a variance)."""
    return len(jax.tree.leaves(variables["batch_stats"])) // 2


def has_batch_norms(network: Network) -> bool:
    """True where a network has a BatchNorm; nothing is computed."""
    return count_batch_norms(jax.eval_shape(network.init, jax.random.key(0))) > 0
