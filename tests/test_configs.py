"""Every config builds, its rates are the published ones, and what it does not know it refuses."""

import pytest
import runs  # noqa: F401 - makes configs importable

from configs import camvid, cifar, cifar10, cifar100, default, nyuv2, own, pretrain_camvid, pretrain_nyuv2, quickstart
from configs import segmentation as maps
from fastdfkd_jax import models
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.training.config_checks import validate

VARIANTS = [f"{pair}-fast{k}" for pair in cifar.PAIRS for k in cifar.STEPS]


@pytest.mark.parametrize("variant", [None, "smoke", *VARIANTS])
@pytest.mark.parametrize(("module", "classes"), [(cifar10, 10), (cifar100, 100)])
def test_every_pair_and_step_count_builds(module, classes, variant):
    config = module.get_config(variant)
    validate(config)
    assert config.teacher.num_classes == classes
    assert models.is_known(config.teacher.arch)
    assert config.data.source == f"tfds:cifar{classes}"


@pytest.mark.parametrize("protocol", cifar.PROTOCOLS)
def test_every_protocol_builds_and_changes_something(protocol):
    plain = cifar10.get_config("wrn40_2-wrn16_1-fast5")
    config = cifar10.get_config(f"wrn40_2-wrn16_1-fast5-{protocol}")
    validate(config)
    assert config != plain


@pytest.mark.parametrize(("old", "new"), [("canonical", "cpu"), ("native", "xla")])
def test_a_value_of_before_is_refused_with_its_new_name(old, new):
    config = default.get_config()
    config.conv_gradient = old
    with pytest.raises(UserError, match=f"config.conv_gradient must be '{new}', as .* found '{old}'"):
        validate(config)


@pytest.mark.parametrize("k", cifar.STEPS)
def test_networks_of_ones_own_get_the_recipe_of_the_tables_and_no_constants(k):
    config, published = own.get_config(f"fast{k}-short"), cifar10.get_config(f"wrn40_2-wrn16_1-fast{k}-short")
    validate(config)
    assert not config.teacher.arch
    assert not config.teacher.mean
    published.teacher, published.data.source = config.teacher, config.data.source
    assert config == published


@pytest.mark.parametrize("variant", ["fast3", "short", "fast5-long", "smoke"])
def test_a_recipe_that_is_not_known_is_refused(variant):
    with pytest.raises(UserError, match=f"unknown variant '{variant}': expected one of fast2, fast5, fast10"):
        own.get_config(variant)


@pytest.mark.parametrize("variant", [None, "smoke", *maps.METHODS, *(f"{name}-smoke" for name in maps.METHODS)])
@pytest.mark.parametrize(("module", "classes", "side"), [(nyuv2, 13, 128), (camvid, 11, 96)])
def test_every_method_of_segmentation_builds(module, classes, side, variant):
    config = module.get_config(variant)
    validate(config)
    assert (config.teacher.num_classes, config.teacher.image_size) == (classes, side)
    assert models.task_of(config.teacher.arch) == models.task_of(config.student.arch) == "segmentation"
    assert config.inversion.class_weight == 0 or config.method.name not in ("fastdfkd", "deepinversion")
    assert set(flat(config)) - {"meta.kwargs.b1", "meta.kwargs.b2"} <= set(flat(default.get_config()))


@pytest.mark.parametrize("module", [nyuv2, camvid])
def test_students_of_segmentation_take_as_many_steps_whatever_the_method(module):
    configs = [module.get_config(name) for name in maps.METHODS]
    steps = {(config.calls - config.warmup_calls) * config.kd.steps_per_call for config in configs}
    assert len(steps) == 1
    assert len({config.kd.batch for config in configs}) == 1


@pytest.mark.parametrize("variant", ["fast5", "fast10-short", "cmi"])
def test_an_unknown_method_of_segmentation_is_refused(variant):
    with pytest.raises(UserError, match=f"unknown variant '{variant}': expected METHOD.* of fast10, deep"):
        nyuv2.get_config(variant)


@pytest.mark.parametrize(("module", "of"), [(pretrain_camvid, camvid), (pretrain_nyuv2, nyuv2)])
def test_a_teacher_of_segmentation_is_trained_for_the_runs_that_it_is_to_teach(module, of):
    made, config = module.get_config(), of.get_config()
    assert (made.arch, made.recipe.square) == (config.teacher.arch, config.teacher.image_size)
    assert (made.mean, made.std) == (config.teacher.mean, config.teacher.std)
    assert (made.data.source, made.data.short_side, made.data.test_split) == (
        config.data.source, config.data.short_side, config.data.split
    )  # fmt: skip


def test_every_config_is_overrides_of_the_default():
    """No config adds a key that `default.py` does not explain."""
    known = set(flat(default.get_config()))
    for config in (quickstart.get_config(), *(cifar10.get_config(f"{VARIANTS[0]}-{name}") for name in cifar.PROTOCOLS)):
        # The outer optimizer's own arguments are free.
        assert {key for key in flat(config) if not key.startswith("meta.kwargs.")} <= known


def flat(config):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from (f"{key}.{name}" for name in flat(value))
        else:
            yield key


@pytest.mark.parametrize(
    ("variant", "inner", "latents", "meta"),
    [("fast2", 5e-3, 0.015, 0.010), ("fast5", 3e-3, 0.010, 0.015), ("fast10", 2e-3, 0.010, 0.020)],
)
def test_rates_depend_on_k_as_published(variant, inner, latents, meta):
    """METHOD section 2; the meta rate is lr_g * k (METHOD T1)."""
    config = cifar10.get_config(f"resnet34-resnet18-{variant}")
    assert (config.inner.generator_lr, config.inner.latents_lr) == (inner, latents)
    assert config.meta.lr == pytest.approx(meta)
    assert (config.inversion.adversarial_weight, config.inversion.class_weight) == (1.33, 0.5)
    assert (config.calls, config.warmup_calls, config.fastdfkd.reset_first_layer_at) == (220, 20, 140)


def test_the_short_protocol_is_the_one_that_is_compared():
    config = cifar10.get_config("resnet20-wrn16_1-fast5-short")
    assert (config.calls, config.warmup_calls, config.kd.steps_per_call) == (60, 5, 60)
    assert (config.synthesis_batch, config.kd.batch, config.eval_every) == (128, 128, 5)
    assert (config.kd.lr, config.kd.final_lr, config.kd.temperature) == (0.1, 2e-4, 20)
    assert (config.kd.momentum, config.kd.weight_decay) == (0.9, 1e-4)
    assert (config.inversion.adversarial_weight, config.inversion.class_weight) == (1.1, 0.4)
    assert (config.inversion.feature_weight, config.inversion.accumulator_weight) == (10, 0.9)
    assert (config.inner.generator_lr, config.inner.latents_lr) == (3e-3, 1e-2)
    assert config.fastdfkd.meta_rule == "fomaml_sum"


@pytest.mark.parametrize(
    "variant",
    [
        "wrn40_2-vgg8-fast5",
        "wrn40_2-wrn16_1-fast3",
        "wrn40_2-wrn16_1",
        "wrn40_2",
        "wrn40_2-wrn16_1-fast5-long",
        "x-y-z",
    ],
)
def test_an_unknown_variant_lists_the_known_ones(variant):
    with pytest.raises(UserError, match=r"unknown variant .*wrn40_2-wrn16_1.*short") as caught:
        cifar10.get_config(variant)
    assert "\n" not in str(caught.value)
