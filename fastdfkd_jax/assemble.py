"""From a config to the parts of a run: networks, method, optimizers, evaluation data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fastdfkd_jax import convert, data, distill, models, parallel, pool
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import fastdfkd, noise, representation
from fastdfkd_jax.methods.base import Method
from fastdfkd_jax.methods.inversion import InversionOptions
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.generators import build_generator

Tree = Any


class Parts(NamedTuple):
    """What a run is made of.

    Attributes:
      teacher, teacher_vars: the network to invert, read-only.
      student: the network to train.
      student_vars: weights it starts from, or None for fresh ones.
      optimizer: the student's.
      method: the data-free method.
      split: lays a batch over devices inside a compiled program.
      test: evaluation data, or None.
      initial: uint8[N, H, W, C] images to begin with, or None.
    """

    teacher: Network
    teacher_vars: Tree
    student: Network
    student_vars: Tree | None
    optimizer: optax.GradientTransformation
    method: Method
    split: Callable[[jax.Array], jax.Array]
    test: data.Dataset | None
    initial: np.ndarray | None


def assemble(config: ConfigDict) -> Parts:
    """Builds everything and checks that it fits together; UserError where it does not."""
    options: dict[str, Any] = {"dtype": jnp.dtype(config.precision), "conv_gradient": conv_gradient(config)}
    teacher, teacher_vars = load_teacher(config, options)
    student, student_vars = _student(config, teacher, options)
    if config.remat == "blocks" and (teacher.others or student.others):
        raise UserError("config.remat='blocks' knows no blocks of a recorded graph: expected 'activations' or 'none'")
    teacher, student = (models.rematerialised(network, config.remat) for network in (teacher, student))
    test = None
    if config.data.source:
        test = data.load(config.data.source, config.data.split, data_dir=config.data.dir or None)
        data.require(test, teacher.spec)
    schedule = distill.cosine_by_call(
        config.kd.lr, config.kd.final_lr, max(1, config.calls - config.warmup_calls), config.kd.steps_per_call
    )
    optimizer = distill.sgd(schedule, config.kd.momentum, config.kd.weight_decay)
    batches = (config.fastdfkd.synthesis_batch, config.kd.batch)
    shared = config.parallel.task_devices > 1  # the lanes have them
    split = parallel.batch_splitter(
        parallel.devices(1 if shared else parallel.batch_devices(config.parallel.batch_devices, batches))
    )
    method = METHODS[config.method.name](config, teacher, student, options, split)
    initial = None
    if config.pool.initial:
        initial = pool.read_initial(Path(config.pool.initial).expanduser(), teacher.spec.input_shape)
    return Parts(teacher, teacher_vars, student, student_vars, optimizer, method, split, test, initial)


def load_teacher(config: ConfigDict, options: dict[str, Any]) -> tuple[Network, Tree]:
    """Reads the teacher, a checkpoint or a recorded graph, and requires BatchNorm of it."""
    given = config.teacher
    if given.graph and given.checkpoint:
        raise UserError("config.teacher.graph and config.teacher.checkpoint are both set: a graph has its weights")
    path = given.graph or given.checkpoint
    if not path:
        raise UserError(
            f"config.teacher.checkpoint is not set: give the checkpoint of a trained {given.arch or 'network'} "
            "(.safetensors, .pth, .pt or .th), 'digits' for the one that ships with the package, or a recorded graph "
            "as config.teacher.graph"
        )
    teacher, variables = convert.load_network(
        data.digits.TEACHER_PATH if path == "digits" else Path(path).expanduser(),
        arch=None if given.graph else given.arch or None,
        num_classes=given.num_classes or None,
        image_size=given.image_size or None,
        mean=given.mean or None,
        std=given.std or None,
        **options,
    )
    convert.require_classifier(teacher)
    convert.require_batch_norm(teacher, variables)
    return teacher, variables


def conv_gradient(config: ConfigDict) -> str:
    """Which form of the convolution gradients a run uses."""
    if config.conv_gradient != "auto":
        return config.conv_gradient
    exact_maml = config.fastdfkd.reuse == "meta" and config.fastdfkd.meta_rule == "maml"
    return "canonical" if jax.default_backend() == "cpu" and not exact_maml else "native"


def _student(config: ConfigDict, teacher: Network, options: dict[str, Any]) -> tuple[Network, Tree | None]:
    given, spec = config.student, teacher.spec
    if not given.checkpoint and not given.graph:
        return models.build(dataclasses.replace(spec, arch=given.arch), **options), None
    path = Path(given.checkpoint or given.graph).expanduser()
    student, variables = convert.load_network(
        path,
        arch=str(Path(given.graph).expanduser()) if given.graph else None if path.is_dir() else given.arch,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        **options,
    )
    convert.require_classifier(student)
    # A graph alone is an architecture; its recorded weights are asked for by naming it as checkpoint too.
    return student, variables if given.checkpoint else None


def _fastdfkd(config: ConfigDict, teacher: Network, student: Network, options, split) -> Method:
    chosen = config.fastdfkd.to_dict()
    kind = chosen.pop("representation")
    spec = teacher.spec
    if kind == "pixels":
        rendered = representation.from_pixels(spec)
    else:
        generator = build_generator(spec.image_size, spec.channels, **config.generator.to_dict(), **options)
        rendered = representation.from_generator(generator)
    inversion = InversionOptions(**config.inversion.to_dict())
    # One call before the first with KD, as the released code counts (METHOD 1.1).
    warmup = fastdfkd.FastDFKDOptions(**chosen, adversarial_start=max(1, config.warmup_calls))
    return fastdfkd.build(
        warmup,
        inversion,
        teacher,
        student,
        representation.laid_out(rendered, split),
        _inner_optimizer(config.inner),
        _outer_optimizer(config.meta),
        parallel.lane_map(warmup.num_tasks, parallel.devices(config.parallel.task_devices)),
    )


def _noise(config: ConfigDict, teacher: Network, student: Network, options, split) -> Method:
    return noise.build(teacher.spec, config.fastdfkd.synthesis_batch * config.fastdfkd.num_tasks)


METHODS = {"fastdfkd": _fastdfkd, "noise": _noise}


def _inner_optimizer(inner: ConfigDict) -> optax.GradientTransformation:
    def group(learning_rate: float) -> optax.GradientTransformation:
        if inner.optimizer == "sgd":
            return optax.sgd(learning_rate)
        # eps_root stays 0, as in PyTorch; exact MAML meets no zero second moment in practice.
        return optax.adam(learning_rate, inner.b1, inner.b2)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "latents": group(inner.latents_lr),
        "generator": group(inner.generator_lr),
    }
    return optax.partition(groups, {"latents": "latents", "generator": "generator"})


def _outer_optimizer(meta: ConfigDict) -> optax.GradientTransformation:
    make = getattr(optax, meta.optimizer, None)
    if not callable(make):
        raise UserError(f"config.meta.optimizer={meta.optimizer!r} is not an optimizer of optax: 'adam', 'sgd', ...")
    try:
        optimizer = make(meta.lr, **meta.kwargs.to_dict())
    except TypeError as error:
        raise UserError(f"config.meta.kwargs do not fit optax.{meta.optimizer}: {error}") from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"config.meta.optimizer={meta.optimizer!r} is not an optimizer of optax: 'adam', 'sgd', ...")
    return optimizer
