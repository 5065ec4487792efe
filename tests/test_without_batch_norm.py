"""Teachers and students without BatchNorm: which methods support them, what they leave out, and what others say."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import options_of, tiny_config
from toy_network import SPEC, bare_network, toy_network

from fastdfkd_jax import models
from fastdfkd_jax.augmentation.augment import ViewOptions
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, deepinversion, generative_dfd, nayer, registry
from fastdfkd_jax.methods.parts import online_generator, parametrization
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators.by_kind import Generator
from fastdfkd_jax.training import build
from fastdfkd_jax.training.config_checks import require_statistics

BATCH = 4
SMALL = {"width": 4, "latent_dim": 5, "student_steps": 2}
CMI = {"num_steps": 2, "bank_size": 8, "negatives": 4, "head_dim": 5}
# What each method needs beyond `tiny_config` to be small, and to match no statistics.
SUPPORTED = {
    "dafl": {"dafl": SMALL},
    "dfad": {"dfad": SMALL},
    "zskt": {"zskt": SMALL | {"attention_weight": 0.0}},  # their stages are of no known kind
    "dfq": {"dfq": SMALL | {"statistics_weight": 0.0}},
    "generative_dfd": {
        "generative_dfd": {
            "width": 4, "latent_dim": 5, "classes_per_generator": 0, "calls_per_generator": 1, "steps_per_call": 2,
            "batches_kept": 1, "statistics_weight": 0.0,
        }
    },
    "fastdfkd": {"inversion": {"feature_weight": 0.0, "crop_padding": 1}},
    "deepinversion": {"deepinversion": {"num_steps": 2, "feature_weight": 0.0, "jitter": 1}},
    "nayer": {"nayer": {"num_steps": 2}, "inversion": {"feature_weight": 0.0, "crop_padding": 1}},
    "cmi": {"cmi": CMI | {"features": "blocks"}, "inversion": {"feature_weight": 0.0, "crop_padding": 1}},
}  # fmt: skip
KEYS = {
    "fastdfkd": "inversion.feature_weight",
    "cmi": "inversion.feature_weight",
    "nayer": "inversion.feature_weight",
    "deepinversion": "deepinversion.feature_weight",
    "dfq": "dfq.statistics_weight",
    "generative_dfd": "generative_dfd.statistics_weight",
}
OTHERS = sorted(registry.METHODS.keys() - KEYS.keys())


def dense_generator(side, channels, latent_dim=5, width=4, **kwargs):
    """A linear map of the latents: what a generator is like is no matter here, and the published ones take seconds."""
    shape = (latent_dim, side * side * channels)

    def init(key):
        return {"kernel": jax.random.normal(key, shape)}

    def apply(params, latents):
        return jax.nn.sigmoid(latents @ params["kernel"]).reshape(-1, side, side, channels)

    def reset(key, params):
        return init(key)

    return Generator(init, apply, (latent_dim,), reset, reset)


@pytest.fixture(autouse=True)
def small_generators(monkeypatch):
    for module in (parametrization, online_generator, generative_dfd, nayer):
        monkeypatch.setattr(module, "build_generator", dense_generator)


def config_of(name, sections=None):
    config = tiny_config(method__name=name, synthesis_batch=BATCH)
    for section, changes in (sections or {}).items():
        config[section].update(changes)
    return config


def setting_of(teacher, student):
    forms = Forms(conv="xla")
    return base.Setting(teacher, student, BATCH, 2, 0, 2, lambda x: x, forms)


def built(name, sections=None, teacher=None):
    config = config_of(name, sections)
    method = build.method_of(config, setting_of(teacher or bare_network(), bare_network()))
    return method, build.objective_of(options_of(config), method)


@functools.cache
def variables():
    init = jax.jit(bare_network().init)
    return init(jax.random.key(0)), init(jax.random.key(1))


def learned(objective, images, labels, network_input=False):
    """The student before and after a step, and what the step records."""
    teacher_vars, student_vars = variables()
    optimizer = optax.sgd(0.1)
    before = distill.from_variables(student_vars, optimizer, objective, jax.random.key(2))
    step = distill.make_step(
        bare_network(), bare_network(), optimizer, objective.loss, extra_optimizer=objective.optimizer,
        network_input=network_input, views=ViewOptions(1),
    )  # fmt: skip
    return before, *jax.jit(step)(before, teacher_vars, images, jax.random.key(3), labels)


def assert_learned(before, after, info):
    assert np.isfinite(info["loss"])
    assert after.batch_stats == {}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_call_without_statistics_makes_images_and_records_no_gap(name):
    method, objective = built(name, SUPPORTED[name])
    teacher_vars, student_vars = variables()
    state = jax.jit(method.init)(jax.random.key(4), teacher_vars)
    _, batch, info = jax.jit(method.synthesize)(state, teacher_vars, student_vars, jax.random.key(5))
    assert all(np.isfinite(value).all() for value in jax.tree.leaves((batch.images, info)))
    assert info.agreement is not None
    # A gap or a term of 0 would say that statistics are met.
    assert not [key for key in info.records() if re.search("moment_gap|feature|statistics", key)]
    once = method.lifetime == base.ONCE
    images, labels = (batch.images[0], batch.labels[0]) if once else (batch.images, batch.labels)
    assert images.shape == (BATCH, *SPEC.input_shape)
    if method.objective is not None:  # vanilla KD is the noise control's below
        assert_learned(*learned(objective, images, labels, method.network_input))


@pytest.mark.parametrize("name", ["kd", "dfnd", "scratch", "noise"])
def test_methods_without_statistics_work_unchanged(name):
    images = jax.random.uniform(jax.random.key(6), (BATCH, *SPEC.input_shape))
    method, objective = built(name)
    assert_learned(*learned(objective, images, jnp.arange(BATCH)))
    if method.select is not None:
        assert np.isfinite(jax.jit(method.select)(variables()[0], images)).all()


@pytest.mark.parametrize("name", registry.METHODS)
def test_only_a_weight_of_statistics_is_refused_and_the_line_names_it(name):
    config = config_of(name)
    require_statistics(config, toy_network(), toy_network().init(jax.random.key(0)))
    if name in OTHERS:
        require_statistics(config, bare_network(), variables()[0])
        return
    with pytest.raises(UserError) as caught:
        require_statistics(config, bare_network(), variables()[0])
    line = str(caught.value)
    assert re.match(rf"config\.{KEYS[name]} must be 0 for the teacher bare, which has no BatchNorm .*found \d", line)
    assert all(other in line for other in OTHERS)
    assert len(line) < 300
    require_statistics(config_of(name, SUPPORTED[name]), bare_network(), variables()[0])


def test_a_contrast_needs_features_that_the_teacher_has():
    with pytest.raises(UserError, match=r"cmi\.features must be 'blocks' for the teacher bare, .* found 'batch_norm'"):
        built("cmi", {"cmi": CMI})
    with pytest.raises(UserError, match=r"cmi\.contrastive_weight must be 0 for the teacher toy"):
        built("cmi", {"cmi": CMI | {"features": "blocks"}}, toy_network())
    built("cmi", {"cmi": CMI | {"contrastive_weight": 0.0}})


@pytest.mark.parametrize("student", [bare_network, toy_network])
def test_a_student_without_batch_norm_has_no_feature_term(student):
    """Its teacher's remains."""
    teacher, student = toy_network(), student()
    loss = deepinversion.make_loss(teacher, student, deepinversion.DeepInversionOptions(jitter=0))
    teacher_vars, student_vars = (network.init(jax.random.key(7)) for network in (teacher, student))
    frozen = deepinversion.Frozen(teacher_vars, student_vars, jnp.arange(BATCH), jnp.ones(()))
    terms = jax.eval_shape(loss, jnp.zeros((BATCH, *SPEC.input_shape)), jax.random.key(8), frozen)[1].terms
    assert "feature" in terms
    assert ("student_feature" in terms) == models.has_batch_norms(student)
