"""Builds the parts of a run from a config: networks, method, optimizers, evaluation data."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import label_embeddings, probe
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.base import Method
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.models import Forms, Network
from fastdfkd_jax.options import read
from fastdfkd_jax.pool import initial_images, real_images
from fastdfkd_jax.pool.initial_images import Located
from fastdfkd_jax.pool.shards import Rows
from fastdfkd_jax.training import given_statistics
from fastdfkd_jax.training.config_checks import require_fit, require_maps_fit, require_statistics
from fastdfkd_jax.training.run_options import RunOptions
from fastdfkd_jax.training.schedule import last_synthesis_call, student_optimizer

Tree = Any


class Parts(NamedTuple):
    """The parts of a run.

    Attributes:
      teacher, teacher_vars: the network to invert, read-only.
      student: the network to train.
      student_vars: initial weights of the student, or None for new ones.
      optimizer: the student's optimizer.
      method: the data-free method.
      split: lays a batch of distillation over devices inside a compiled program.
      objective: the objective that the student minimises.
      test: evaluation data, or None.
      initial: initial images of D', in memory or, if D' is on disk, in files; or None.
      layout: numbers of devices and processes that share the work, by name.
      ema_decay: decay of the average of the student's variables (`distill.average`); 0 for none.
      probes: images on which student and teacher are compared after the run, uint8[N, H, W, C] by name.
    """

    teacher: Network
    teacher_vars: Tree
    student: Network
    student_vars: Tree | None
    optimizer: optax.GradientTransformation
    method: Method
    split: Callable[[jax.Array], jax.Array]
    objective: distill.Objective
    test: data.Dataset | None
    initial: Rows | Located | None
    layout: dict[str, int] = {}  # noqa: RUF012 - read-only
    ema_decay: float = 0.0
    probes: Mapping[str, np.ndarray] = {}


def assemble(config: ConfigDict) -> Parts:
    """Builds all parts and checks that they fit together.

    Raises:
      UserError: they do not fit.
    """
    run = read(RunOptions, config)
    forms = forms_of(config)
    teacher, teacher_vars = load_teacher(run.teacher, forms)
    teacher, teacher_vars = given_statistics.applied(run.proxy, teacher, teacher_vars, forms, run.data.crop)
    student, student_vars = _student(run.student, teacher, forms)
    if run.remat == "blocks" and (teacher.others or student.others):
        raise UserError("config.remat='blocks' is not supported for recorded graphs: use 'activations' or 'none'")
    teacher, student = (models.rematerialised(network, run.remat) for network in (teacher, student))
    test = _evaluation_data(run.data, teacher) if run.data.source else None
    optimizer = student_optimizer(run)
    layout = _layout(run)
    split = parallel.batch_splitter(parallel.devices(layout["batch devices"]))
    synthesis_split = split if layout["task devices"] == 1 else _whole  # each lane runs on one device
    if teacher.spec.gives_maps:
        require_maps_fit(run)
    if run.mode != "distill":
        require_statistics(config, teacher, teacher_vars)
    method = method_of(config, setting_of(run, teacher, student, forms, synthesis_split))
    method = given_statistics.knowing(run.proxy, method)
    objective = objective_of(run, method)
    require_fit(run, method)
    given_whole = method.lifetime == base.DATA and not run.transfer.crops
    if not given_whole or run.noise_control:  # these images have the network's size
        side = teacher.spec.image_size
        require(run.kd.square <= side, "kd.square", f"at most the images' {side} pixels", run.kd.square)
    top_k, classes = run.soft_labels.top_k, teacher.spec.num_classes
    require(top_k <= classes, "soft_labels.top_k", f"at most the teacher's {classes} classes", top_k)
    begun_with = _initial_images(run, method, teacher, teacher_vars)
    teacher_vars = parallel.everywhere(teacher_vars)
    return Parts(
        teacher,
        teacher_vars,
        student,
        student_vars,
        optimizer,
        method,
        split,
        objective,
        test,
        begun_with,
        layout,
        run.kd.ema_decay,
        _probes(run.data, teacher),
    )


def _probes(chosen: data.DataOptions, teacher: Network) -> dict[str, np.ndarray]:
    """Reads the pictures without labels on which both networks are compared."""
    if not chosen.probe:
        return {}
    return {"probe": probe.read(chosen.probe, teacher.spec.input_shape, chosen.crop)}


def _evaluation_data(chosen: data.DataOptions, teacher: Network) -> data.Dataset:
    """Reads the data that the networks are measured on; UserError if they do not fit the teacher."""
    sizes: dict[str, Any] = {"short_side": chosen.short_side or None}
    if chosen.crop:
        sizes |= {"image_size": teacher.spec.image_size, "crop": chosen.crop}
    sizes["class_names"] = chosen.class_names or None
    test = data.load(chosen.source, chosen.split, data_dir=chosen.dir or None, **sizes)
    test = data.in_channels(test, teacher.spec.channels)
    return data.require(test, teacher.spec)


def method_of(config: ConfigDict, setting: base.Setting) -> Method:
    """Builds the method that a config names, with its options there; reads its file of label embeddings, if any."""
    entry = METHODS[config.method.name]
    file = operator.attrgetter(entry.embeddings)(config) if entry.embeddings else ""
    if file:
        setting = setting._replace(label_embeddings=label_embeddings.read(file, setting.teacher.spec.num_classes))
    return entry.build(read(entry.options, config), setting)


def _layout(run: RunOptions) -> dict[str, int]:
    """Returns the numbers of devices that share lanes and batches, and of processes; UserError if they do not fit."""
    chosen, lanes = run.parallel, run.parallel.task_devices
    batches = (run.kd.batch,) if lanes > 1 else (run.synthesis_batch, run.kd.batch)
    count = parallel.batch_devices(chosen.batch_devices, batches, lanes)
    if jax.process_count() > 1:
        found = jax.device_count()
        expected = f"1 or all {found} devices of the {jax.process_count()} processes"
        require(lanes in (1, found), "parallel.task_devices", expected, lanes)
        if lanes == 1:
            # A process without devices that share batches would have nothing to do.
            expected = f"multiples of {found}, the devices of the {jax.process_count()} processes"
            require(chosen.batch_devices in (0, found), "parallel.batch_devices", f"0 or {found}", chosen.batch_devices)
            require(count == found, "synthesis_batch and kd.batch", expected, batches)
    return {"batch devices": count, "task devices": lanes, "processes": jax.process_count()}


def _whole(batch: jax.Array) -> jax.Array:
    return batch


def _initial_images(run: RunOptions, method: Method, teacher: Network, teacher_vars: Tree) -> Rows | Located | None:
    """Returns the images that D' holds before the first call."""
    if method.lifetime != base.DATA:
        if not run.pool.initial:
            return None
        find = initial_images.locate if run.pool.place == "disk" else initial_images.read
        return find(expanded(run.pool.initial), teacher.spec.input_shape)
    chosen = run.transfer
    directory = chosen.dir or (run.data.dir if chosen.source == run.data.source else "")
    short_side = chosen.short_side or (run.data.short_side if chosen.source == run.data.source else 0)
    limits = {"crops": chosen.crops, "limit": chosen.limit, "short_side": short_side, "square": run.kd.square}
    parts = real_images.read(chosen.source, chosen.split, directory, teacher.spec, **limits)
    if method.select is None or not chosen.select:
        return real_images.collect(parts)
    return real_images.choose(parts, method.select, teacher_vars, chosen.select)


def setting_of(
    run: RunOptions, teacher: Network, student: Network, forms: Forms, split: Callable[[Any], Any]
) -> base.Setting:
    """Returns the setting that the method is built for."""
    counts = (run.synthesis_batch, last_synthesis_call(run), run.warmup_calls, run.kd.steps_per_call)
    return base.Setting(
        teacher,
        student,
        *counts,
        split,
        forms,
        distilled=_distilled(run),
        has_original_data=run.transfer.source == run.data.source and not run.transfer.crops,
        lane_map=lambda num_tasks: parallel.lane_map(num_tasks, parallel.devices(run.parallel.task_devices)),
    )


def objective_of(run: RunOptions, method: Method) -> distill.Objective:
    """Returns the method's own objective, or that of KD."""
    return method.objective or distill.Objective(_distilled(run))


def _distilled(run: RunOptions) -> distill.Loss:
    return kd_loss(run.kd.temperature, run.kd.loss, run.kd.others_weight, run.kd.standardize)


def load_teacher(given: models.TeacherOptions, forms: Forms) -> tuple[Network, Tree]:
    """Reads the teacher from a checkpoint, a recorded graph, or a checkpoint of the graph's weights."""
    path = given.checkpoint or given.graph
    if not path:
        raise UserError(
            f"config.teacher.checkpoint is not set: give the checkpoint of a trained {given.arch or 'network'} "
            "(of PyTorch or safetensors), 'digits' for the one that ships with the package, or a recorded graph "
            "as config.teacher.graph"
        )
    file = data.digits.TEACHER_PATH if path == "digits" else expanded(path)
    return convert.load_described(file, vars(given), forms)


def forms_of(config: ConfigDict) -> Forms:
    """Returns the precision of a run's networks and the form of their convolutions.

    Raises:
      UserError: float64 is requested, but JAX computes in float32.
    """
    conv, precision = config.conv_gradient, config.precision
    single = precision == "float64" and not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    require(not single, "precision", "float32 or bfloat16, or JAX started with JAX_ENABLE_X64=1", precision)
    if conv == "auto":
        exact_maml = config.fastdfkd.reuse == "meta" and config.fastdfkd.meta_rule == "maml"
        conv = "cpu" if jax.default_backend() == "cpu" and not exact_maml else "xla"
    return Forms(jnp.dtype(precision), conv)


def _student(given: models.StudentOptions, teacher: Network, forms: Forms) -> tuple[Network, Tree | None]:
    spec = teacher.spec
    if not given.checkpoint and not given.graph:
        student = models.build(dataclasses.replace(spec, arch=given.arch), forms=forms)
        _require_same_task(student, teacher)
        return student, None
    path = expanded(given.checkpoint or given.graph)
    student, variables = convert.load_network(
        path,
        arch=str(expanded(given.graph)) if given.graph else None if path.is_dir() else given.arch,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        forms=forms,
    )
    _require_same_task(student, teacher)
    # A graph alone gives the architecture; its recorded weights are used if it is named as checkpoint too.
    return student, variables if given.checkpoint else None


def _require_same_task(student: Network, teacher: Network) -> None:
    ours, theirs = student.spec, teacher.spec
    if ours.task != theirs.task:
        raise UserError(
            f"the teacher {theirs.arch} is for {theirs.task}, the student {ours.arch} for {ours.task}: expected both "
            "for the same task"
        )
