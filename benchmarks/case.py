"""The case that is timed: a pair, a batch, k; and the weights and random numbers that every implementation gets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import flops
from fastdfkd_jax import convert
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.configs import cifar, cifar10, imagenet
from fastdfkd_jax.models import Forms, Network, NetworkSpec, build, build_generator, usual_image_size
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.programs import initial_state

CALL_KEY = 3  # seed of the timed calls


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      pair: teacher-student, as `configs/cifar10.py` names it.
      batch: images of a synthesis call and of a KD step.
      steps: k.
      kd_steps: KD steps timed together.
      precision: 'float32' or 'bfloat16'.
      teacher: a checkpoint, or '' for random weights, which cost the same.
      overrides: further values for our config, by dotted name.
      recipe: 'cifar10', or 'imagenet' for 224 pixels, which only our side has.
    """

    pair: str
    batch: int
    steps: int
    kd_steps: int = 2
    precision: str = "float32"
    teacher: str = ""
    overrides: tuple[tuple[str, object], ...] = ()
    recipe: str = "cifar10"

    def config(self, folder: Path) -> ConfigDict:
        """Returns the published config of the pair, with this batch and k; `folder` has the files of `Preparation`.

        A pair that is not published has the options of one that is.
        """
        teacher, student = self.pair.split("-")
        if self.recipe == "cifar10":
            known = self.pair if self.pair in cifar.PAIRS else "wrn40_2-wrn16_1"
            config = cifar10.get_config(f"{known}-fast5")
        else:
            config = imagenet.get_config(student if student in imagenet.STUDENTS else "resnet18_imagenet")
            config.pool.place, config.synthesis_calls = "device", 0
        config.teacher.arch, config.student.arch = teacher, student
        config.teacher.checkpoint = self.teacher or str(folder / "teacher.safetensors")
        config.student.checkpoint = str(folder / "student.safetensors")
        config.data.source, config.precision = "", self.precision
        config.fastdfkd.num_steps = self.steps
        config.synthesis_batch = config.kd.batch = self.batch
        config.fastdfkd.reset_first_layer_at = 0
        config.kd.steps_per_call = config.kd.steps_per_dispatch = self.kd_steps
        config.calls, config.warmup_calls = 2, 1  # the adversarial term is on from the first call
        config.update_from_flattened_dict(dict(self.overrides))
        return config


class Numbers(NamedTuple):
    """The random numbers of one synthesis call.

    Attributes:
      latents: f32[B, D].
      labels: i64[B].
      places: i64[k, B, H W]: where each pixel of each step's view comes from, 0 for black, else 1 + its place.
    """

    latents: np.ndarray
    labels: np.ndarray
    places: np.ndarray


class Preparation:
    """Writes the networks' weights and the first call's random numbers, and counts what a case costs.

    Args:
      case: what is timed.
      folder: where to write; it exists.
    """

    def __init__(self, case: Case, folder: Path):
        self.case = case
        teacher, student = case.pair.split("-")
        self.config = case.config(folder)
        if not case.teacher:
            _save_fresh(teacher, 0, folder / "teacher.safetensors", self.config)
        _save_fresh(student, 1, folder / "student.safetensors", self.config)
        self.parts = assemble(self.config)
        if case.recipe != "cifar10":
            return  # nobody else computes it
        generator = initial_state(jax.random.key(0), self.parts)["method"].generator
        weights = convert.to_state_dict({"params": generator, "batch_stats": {}}, num_batches_tracked=None)
        np.savez(folder / "generator.npz", **weights)  # pyright: ignore[reportArgumentType] - names are keywords
        numbers = numbers_of(first_key(), self.config, self.parts.teacher.spec)
        np.savez(folder / "numbers.npz", **numbers._asdict())

    def costs(self) -> flops.Costs:
        """Counts the floating-point operations of one batch's forward passes."""
        given, spec = self.config.generator, self.parts.teacher.spec
        sizes = given.latent_dim, given.width
        generator = build_generator(spec.image_size, spec.channels, *sizes, kind=given.kind, forms=Forms(conv="xla"))
        return flops.count(
            self._in_xla_form(self.parts.teacher), self._in_xla_form(self.parts.student), generator, self.case.batch
        )

    def convolutions(self) -> dict[flops.Convolution, int]:
        """Returns the teacher's convolutions and how often each occurs in a forward pass."""
        return flops.convolutions(self._in_xla_form(self.parts.teacher), self.parts.teacher_vars, self.case.batch)

    @staticmethod
    def _in_xla_form(network: Network) -> Network:
        return build(network.spec, forms=Forms(conv="xla"))


def first_key() -> jax.Array:
    """Returns the key of the first timed call, as a run derives it."""
    return jax.random.fold_in(jax.random.key(CALL_KEY), 0)


def _save_fresh(arch: str, seed: int, path: Path, config: ConfigDict) -> None:
    size = config.teacher.image_size or usual_image_size(arch)
    network = build(NetworkSpec(arch, config.teacher.num_classes, size))
    convert.save_network(path, network, jax.jit(network.init)(jax.random.key(seed)))


def numbers_of(key: jax.Array, config: ConfigDict, spec: NetworkSpec) -> Numbers:
    """Returns what `method.synthesize` draws from this key: latents, labels and the views of every step."""
    batch = config.synthesis_batch
    start_key, lanes_key = jax.random.split(key)
    latents_key, _ = jax.random.split(start_key)
    latents = jax.random.normal(jax.random.split(latents_key, 1)[0], (batch, config.generator.latent_dim))
    label_key, _ = jax.random.split(jax.random.split(lanes_key, 1)[0])
    labels = jax.random.randint(label_key, (batch,), 0, spec.num_classes)
    return Numbers(np.asarray(latents), np.asarray(labels, np.int64), places_of(key, config, spec))


def places_of(key: jax.Array, config: ConfigDict, spec: NetworkSpec) -> np.ndarray:
    """Returns the views that a call with this key makes of an image whose pixels hold their own positions."""
    _, lanes_key = jax.random.split(key)
    _, view_key = jax.random.split(jax.random.split(lanes_key, 1)[0])
    height, width, _ = spec.input_shape
    batch, padding = config.synthesis_batch, config.inversion.crop_padding
    places = jnp.arange(1.0, height * width + 1).reshape(1, height, width, 1)
    places = jnp.broadcast_to(places, (batch, height, width, 1))
    views = jax.random.split(view_key, config.fastdfkd.num_steps + 1)[:-1]
    made = [augment.random_crop_flip(view, places, padding, config.inversion.flip) for view in views]
    return np.stack([np.asarray(view, np.int64).reshape(batch, -1) for view in made])
