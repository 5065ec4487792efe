"""A network that compiles in no time (one dense layer, one BatchNorm, one dense layer), and a run's parts of it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.methods.base import Batch
from fastdfkd_jax.models import Forms, Network, NetworkSpec, Outputs
from fastdfkd_jax.models.network import from_linen
from fastdfkd_jax.options import read
from fastdfkd_jax.training.build import Parts, method_of, objective_of, setting_of
from fastdfkd_jax.training.run_options import RunOptions

SPEC = NetworkSpec("toy", 10, 8, 1, (0.3,), (0.3,))
_WIDTH, _KEPT = 16, 0.9


def toy_network() -> Network:
    """Takes 8x8x1 images; BatchNorm works as in the real networks, statistics and moments included."""

    def init(key):
        keys = jax.random.split(key, 3)
        hidden = 0.2 * jax.random.normal(keys[0], (64, _WIDTH))
        readout = jax.random.normal(keys[1], (_WIDTH, 10))
        mean = 0.1 * jax.random.normal(keys[2], (_WIDTH,))
        params = {"hidden": hidden, "bn": {"scale": jnp.ones(_WIDTH), "bias": jnp.zeros(_WIDTH)}, "readout": readout}
        return {"params": params, "batch_stats": {"bn": {"mean": mean, "var": jnp.ones(_WIDTH)}}}

    def apply(variables, images, train=False, moments=False, key=None, image_means=False, tokens=False):
        params, stats = variables["params"], variables["batch_stats"]
        hidden = images.reshape(len(images), -1) @ params["hidden"]
        seen = {"bn": {"mean": hidden.mean(0), "var": hidden.var(0)}}
        means = {"bn": {"mean": hidden}} if image_means else {}
        used = seen["bn"] if train else stats["bn"]
        hidden = (hidden - used["mean"]) / jnp.sqrt(used["var"] + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
        hidden = jax.nn.relu(hidden)
        if train:
            stats = jax.tree.map(lambda old, new: _KEPT * old + (1 - _KEPT) * new, stats, seen)
        return Outputs(hidden @ params["readout"], hidden, (), seen if moments else {}, stats, means)

    return Network(SPEC, init, apply)


class _Bare(nn.Module):
    """Two dense layers, the first one's output also as a stage of 4x4 pixels."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(_WIDTH)(x.reshape(len(x), -1)))
        return nn.Dense(10)(hidden), hidden, (hidden.reshape(-1, 4, 4, 1),)


def bare_network() -> Network:
    """Takes the toy network's images and has no BatchNorm."""
    return from_linen(lambda train: _Bare(), dataclasses.replace(SPEC, arch="bare"))


def share_on_target(teacher: Network, variables: Any, batch: Batch) -> float:
    """The share of a batch that a teacher sees as the classes that were asked for."""
    shown = augment.normalize(batch.images, teacher.spec.mean, teacher.spec.std)
    return float((teacher.apply(variables, shown).logits.argmax(-1) == batch.labels).mean())


def toy_parts(config: Any) -> Parts:
    """What `assemble` would give, were the toy network the teacher and the student; SGD replaces the KD recipe."""
    network, run = toy_network(), read(RunOptions, config)
    split = parallel.batch_splitter(parallel.devices(config.parallel.batch_devices or 1))
    forms = Forms(conv="xla")
    method = method_of(config, setting_of(run, network, network, forms, split))
    optimizer = distill.sgd(lambda _: config.kd.lr, config.kd.momentum, config.kd.weight_decay)
    return Parts(
        teacher=network,
        teacher_vars=network.init(jax.random.key(0)),
        student=network,
        student_vars=None,
        optimizer=optimizer,
        method=method,
        split=split,
        objective=objective_of(run, method),
        test=None,
        initial=None,
    )
