"""Configs of the generative methods: they build, in every length, and have the published values."""

import importlib

import numpy as np
import pytest
import runs  # noqa: F401 - makes configs importable

from configs import camvid, default, nyuv2, quickstart
from fastdfkd_jax.assemble import student_rate
from fastdfkd_jax.methods import dafl, dfad, dfq, zskt
from fastdfkd_jax.methods.generative import generator_rate
from fastdfkd_jax.validate import validate

METHODS = ("dafl", "zskt", "dfq", "dfad", "generative_dfd")
VARIANTS = (
    None,
    "smoke",
    "cifar100-resnet34-resnet18",
    "cifar10-vgg11-resnet18-short",
    "cifar100-wrn40_2-wrn16_1-short",
)


def config_of(method, variant=None):
    return importlib.import_module(f"configs.{method}").get_config(variant)


@pytest.mark.parametrize("method", METHODS)
def test_a_config_builds_in_every_length(method):
    for config in (*(config_of(method, variant) for variant in VARIANTS), quickstart.get_config(method)):
        validate(config)
        assert config.method.name == method
        section = config[method]
        if method == "generative_dfd":
            # What the method asks of a run's length.
            groups = 1 if section.classes_per_generator == 0 else config.teacher.num_classes or 10
            assert config.calls >= groups * section.calls_per_generator
            assert config.warmup_calls >= section.calls_per_generator - 1
        else:
            assert config.kd.steps_per_call % section.student_steps == 0
            assert config.kd.batch == config.synthesis_batch


def test_budgets_are_the_published_ones():
    """METHOD section 6: student steps and images of each."""
    steps = {}
    for method in METHODS[:4]:
        config = config_of(method)
        steps[method] = ((config.calls - config.warmup_calls) * config.kd.steps_per_call, config.kd.batch)
    assert steps == {
        "dafl": (2000 * 120, 1024),
        "zskt": (800_000, 128),
        "dfq": (200 * 400 * 10, 256),
        "dfad": (500 * 50 * 5, 256),
    }
    warm = config_of("dfq")
    assert warm.warmup_calls * warm.kd.steps_per_call // warm.dfq.student_steps == 50 * 400


def test_sections_of_the_default_are_the_published_values():
    config = default.get_config()
    shared = {name: (config[name].generator, config[name].latent_dim, config[name].lr) for name in METHODS[:4]}
    assert shared == {
        "dafl": ("dafl", 1000, 0.02),
        "zskt": ("zskt", 100, 1e-3),
        "dfq": ("dfq", 512, 1e-3),
        "dfad": ("dfad", 256, 1e-3),
    }
    assert [config[name].student_steps for name in METHODS[:4]] == [1, 10, 10, 5]
    assert [config[name].student_images for name in METHODS[:4]] == ["step", "repeated", "fresh", "fresh"]
    assert all(config[name].ema_decay == 0 for name in METHODS[:4])


@pytest.mark.parametrize(("dataset", "weights"), [("cifar10", (0.05, 5.0, 0.01)), ("cifar100", (0.5, 20.0, 0.1))])
def test_dafl_s_weights_depend_on_the_data(dataset, weights):
    section = config_of("dafl", f"{dataset}-resnet34-resnet18").dafl
    assert (section.class_weight, section.balance_weight, section.activation_weight) == weights


OPTIONS = {"dafl": dafl.Options, "zskt": zskt.Options, "dfq": dfq.Options, "dfad": dfad.Options}
PAIR = "cifar10-wrn40_2-wrn16_1"
EVERY = [
    *((method, variant) for method in OPTIONS for variant in (None, "smoke", f"{PAIR}-short", f"{PAIR}-smoke")),
    *((quickstart, method) for method in OPTIONS),
    *(
        (module, f"{method}{end}")
        for module in (nyuv2, camvid)
        for method in ("dfad", "dafl")
        for end in ("", "-smoke")
    ),
]
# Recipes that were published with a generator that keeps its rate while the student's falls.
PUBLISHED_SO = {("dafl", None)}  # the official code: Adam 0.02; the student's rate times 0.1 at 800, 1600 (METHOD 6)


def shares_of_peak(config):
    """Of every student step after the warm-up: the student's and the generator's rates over their largest."""
    section = config[config.method.name]
    options = OPTIONS[config.method.name](**section.to_dict())
    calls, steps = config.calls - config.warmup_calls, config.kd.steps_per_call
    generator = generator_rate(options, config.calls, steps)
    taken = np.arange(calls * steps)
    rounds = (taken + config.warmup_calls * steps) // section.student_steps
    return np.array(student_rate(config)(taken)) / config.kd.lr, np.array(generator(rounds)) / section.lr


def generator_outlives_student(config):
    """Whether the generator has, at any step, a larger share of its peak rate than the student has of its own."""
    student, generator = shares_of_peak(config)
    return bool((generator > student + 1e-5).any())  # cosines in float32


@pytest.mark.parametrize(("made_by", "variant"), EVERY)
def test_no_generator_keeps_its_rate_while_the_student_s_falls(made_by, variant):
    config = config_of(made_by, variant) if isinstance(made_by, str) else made_by.get_config(variant)
    assert generator_outlives_student(config) == ((made_by, variant) in PUBLISHED_SO)


def test_both_rates_are_small_at_the_end_of_a_cosine():
    for method in OPTIONS:
        student, generator = shares_of_peak(config_of(method, f"{PAIR}-short"))
        assert student[0] == 1, method
        assert max(student[-1], generator[-1]) < 0.01, method


def test_published_drops_of_dfad_are_those_of_its_student():
    """METHOD section 6: CIFAR times 0.1 after 100 and 200 epochs, NYUv2 times 0.3."""
    for config, decay in ((config_of("dfad"), 0.1), (nyuv2.get_config("dfad"), 0.3), (nyuv2.get_config("dafl"), 0.3)):
        student, generator = shares_of_peak(config)
        np.testing.assert_allclose(student, generator, rtol=1e-5)
        assert student[-1] == pytest.approx(decay**2)
