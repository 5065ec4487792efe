"""The interface of every network: pure functions of variables that return every output as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from fastdfkd_jax.cpu_conv import map_in_chunks
from fastdfkd_jax.models.layers import BLOCK, CONVOLUTION

Array = jax.Array
Variables = Mapping[str, Any]

_KEPT = {"activations": CONVOLUTION, "blocks": BLOCK}
REMATERIALISATIONS = ("none", *_KEPT)


@dataclass(frozen=True)
class NetworkSpec:
    """The properties of a network that its weights do not determine.

    Attributes:
      arch: name in the registry (`models.build`), or 'graph:NAME' of a recorded network.
      num_classes: outputs of the classifier.
      image_size: side of the square input in pixels.
      channels: channels of the input.
      mean, std: per-channel normalisation of images in [0, 1].
      task: 'classification', or 'segmentation', whose logits are a map with a class for every pixel.
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
        """True if logits and labels are maps, so that an image as a whole has no class."""
        return self.task == "segmentation"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return (self.image_size, self.image_size, self.channels)


class Outputs(NamedTuple):
    """The outputs of one forward pass.

    Attributes:
      logits: f32[B, num_classes]; for a segmentation network f32[B, H, W, num_classes].
      features: f32[B, D], the penultimate features.
      blocks: the activations after each stage, f32[B, h, w, c] each.
      moments: tree like `batch_stats`: mean and biased variance, f32[C], of every BatchNorm's
        input over N, H and W; empty unless requested.
      batch_stats: the running statistics after this pass; unchanged unless `train`.
      image_means: for every BatchNorm by name {'mean': f32[B, C]}, each image's mean of its input over H and W;
        empty unless requested.
      tokens: what each attention layer has gathered, f32[images or windows, tokens, channels] each; empty unless
        requested, and for networks without attention.
    """

    logits: Array
    features: Array
    blocks: tuple[Array, ...]
    moments: Any
    batch_stats: Any
    image_means: Any = {}  # noqa: RUF012 - never written to
    tokens: tuple[Array, ...] = ()


class OtherEntries(NamedTuple):
    """Entries of a PyTorch state dictionary that are not variables.

    Attributes:
      fixed: arrays by name: buffers that do not train, and entries of unused layers.
      ties: maps the name of an entry that shares another entry's tensor to the other's name.
    """

    fixed: Mapping[str, Any]
    ties: Mapping[str, str]


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      spec: classes, input, normalisation and task.
      init: `init(key) -> variables` with the collections 'params' and 'batch_stats'.
      apply: `apply(variables, images, train=False, moments=False, key=None, image_means=False, tokens=False) ->
        Outputs`; images are normalised f32[B, H, W, C]. In training, dropout is active only if a `key` is given.
      others: the other state dictionary entries of a network from another code base; None for our networks.
      other_norms: names of the layers that normalise without running statistics. Where `batch_stats` has statistics
        under such a name, `moments` has those of the layer's input.
    """

    spec: NetworkSpec
    init: Callable[[Array], Variables]
    apply: Callable[..., Outputs]
    others: OtherEntries | None = None
    other_norms: tuple[str, ...] = ()


def from_linen(make: Callable[[bool], nn.Module], spec: NetworkSpec, initial: nn.Module | None = None) -> Network:
    """Wraps a linen module whose `__call__(images)` returns (logits, features, blocks).

    Args:
      make: `make(train)` builds the module in training or in evaluation mode.
      spec: the network's spec.
      initial: a hashable module that draws the same variables and is traced faster; by default `make(True)`.
    """
    init = _initialiser(initial, spec.input_shape) if initial else _draw(make(True), spec.input_shape)

    def apply(
        variables: Variables,
        images: Array,
        train: bool = False,
        moments: bool = False,
        key=None,
        image_means: bool = False,
        tokens: bool = False,
    ) -> Outputs:
        asked = {"batch_stats": train, "moments": moments, "image_means": image_means}
        mutable = [name for name, wanted in asked.items() if wanted]
        rngs = None if key is None else {"dropout": key}
        (logits, features, blocks), new = make(train).apply(variables, images, mutable=mutable, rngs=rngs)
        batch_stats = new.get("batch_stats", variables["batch_stats"])
        return Outputs(logits, features, blocks, new.get("moments", {}), batch_stats, new.get("image_means", {}))

    return Network(spec, init, apply)


def _draw(module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[Array], Variables]:
    def init(key: Array) -> Variables:
        variables = module.init(key, jnp.zeros((1, *input_shape)))
        # A network without BatchNorm has no such collection, but callers rely on the key.
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    return init


# The same function for equal networks, so that JAX traces and compiles it once.
_initialiser = lru_cache(maxsize=64)(_draw)


def rematerialised(network: Network, kind: str) -> Network:
    """Returns the same network with rematerialisation: it stores less for the backward pass and recomputes the rest.

    Args:
      network: one of our networks; recorded ones have no blocks.
      kind: 'none'; 'activations' stores the convolutions' outputs and recomputes BatchNorms and ReLUs;
        'blocks' stores the blocks' outputs and costs one more forward pass. On the CPU little is
        saved, because XLA merges most recomputation with the first computation.
    """
    if kind == "none":
        return network
    policy = jax.checkpoint_policies.save_only_these_names(_KEPT[kind])

    def apply(variables: Variables, images: Array, **asked: Any) -> Outputs:
        return jax.checkpoint(partial(network.apply, **asked), policy=policy)(variables, images)

    return network._replace(apply=apply)


def in_chunks(network: Network, most: int) -> Network:
    """Returns the same network for prediction on a CPU, with `most` images per device at a time, to fit the cache.

    Only plain evaluation is split into chunks; training, moments, image means and tokens need the whole batch.
    """

    def apply(variables: Variables, images: Array, **asked: Any) -> Outputs:
        if any(asked.get(name) for name in ("train", "moments", "image_means", "tokens")):
            return network.apply(variables, images, **asked)

        def predict(images: Array) -> tuple[Array, Array, tuple[Array, ...]]:
            out = network.apply(variables, images)
            return out.logits, out.features, out.blocks

        whole = map_in_chunks(predict, images, most)
        return Outputs(*whole, moments={}, batch_stats=variables["batch_stats"])

    return network._replace(apply=apply)


def variables_of(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Builds variables from leaves by path, with both collections even if one is empty."""
    return {"params": {}, "batch_stats": {}} | unflatten_dict(dict(leaves))


def count_parameters(variables: Variables) -> int:
    """Counts the trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_batch_norms(variables: Variables) -> int:
    """Counts the BatchNorm layers (each holds a mean and a variance)."""
    return len(jax.tree.leaves(variables["batch_stats"])) // 2


def has_batch_norms(network: Network) -> bool:
    """Returns True if a network has a BatchNorm, without computing anything."""
    return count_batch_norms(jax.eval_shape(network.init, jax.random.key(0))) > 0
