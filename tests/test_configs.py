"""Every config builds, its rates are the published ones, and what it does not know it refuses."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from options_page import page
from runs import options_of, tiny_config  # makes configs importable too

from fastdfkd_jax import models
from fastdfkd_jax.configs import (
    camvid,
    cifar,
    cifar10,
    cifar100,
    default,
    nyuv2,
    own,
    pretrain_camvid,
    pretrain_nyuv2,
    quickstart,
)
from fastdfkd_jax.configs import segmentation as maps
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.options import REMOVED, RENAMED, Options, kinds, option, part, ranges, read, renamed, said, section
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.run_options import RunOptions, every_kind

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


# --- Options

KINDS = set(every_kind())


def test_the_default_config_is_the_classes_defaults_and_nothing_else():
    """Each section of the config is a class of options, and reading it gives the class's defaults."""
    config = default.get_config()
    sections = {key for key, value in config.items() if hasattr(value, "items")}
    assert sections == {kind.section for kind in KINDS} - {""}
    for kind in KINDS:
        found = config[kind.section].to_dict() if kind.section else config.to_dict()
        assert section(kind).items() <= found.items()
    for kind in (RunOptions, *(entry.options for entry in METHODS.values())):
        assert read(kind, config) == kind()


@pytest.mark.parametrize("kind", sorted(KINDS, key=str), ids=str)
def test_every_option_says_what_it_means(kind):
    for each in dataclasses.fields(kind):
        assert part(each) or said(kind, each.name)["about"], each.name


def test_the_page_of_options_is_of_these_classes():
    written = (Path(__file__).resolve().parent.parent / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == page(), "run: python tests/options_page.py docs/options.md"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_of_its_options_and_a_setting(name):
    assert list(inspect.signature(METHODS[name].build).parameters) == ["options", "setting"]


@dataclasses.dataclass(frozen=True)
class _Lamp(Options, section="lamp"):
    colour: str = option("red", "of its light", choices=("red", "green"))
    power: float = option(5.0, "watts", above=0)
    share: float = option(0.5, "of the day", within="[0, 1)")
    count: int = option(1, "of them", at_least=1)


@dataclasses.dataclass(frozen=True)
class _Street(Options, section="street"):
    width: float = option(4.0, "metres", above=0)
    lamp: _Lamp = dataclasses.field(default_factory=_Lamp)


@dataclasses.dataclass(frozen=True)
class _Avenue(_Street, section="avenue"):
    width: float = 20.0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"colour": "blue"}, "config.lamp.colour must be one of red, green, found 'blue'"),
        ({"power": 0.0}, "config.lamp.power must be more than 0, found 0.0"),
        ({"power": float("nan")}, "config.lamp.power must be more than 0, found nan"),
        ({"share": 1.0}, "config.lamp.share must be in [0, 1), found 1.0"),
        ({"share": -0.1}, "config.lamp.share must be in [0, 1), found -0.1"),
        ({"count": 0}, "config.lamp.count must be at least 1, found 0"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_its_key(changes, line):
    with pytest.raises(UserError) as caught:
        _Lamp(**changes)
    assert str(caught.value) == line
    with pytest.raises(UserError) as caught:
        read(_Street, {"street": section(_Street), "lamp": section(_Lamp) | changes})
    assert str(caught.value) == line


def test_options_are_read_with_those_of_their_parts():
    config = {"street": {"width": 3.0}, "lamp": section(_Lamp) | {"count": 9}, "avenue": {"width": -1.0}}
    assert read(_Street, config) == _Street(3.0, _Lamp(count=9))
    assert [kind.section for kind in kinds(_Street)] == ["street", "lamp"]
    assert section(_Avenue) == {"width": 20.0}
    assert ranges(_Avenue, "width") == "more than 0", "a new default keeps the range"
    with pytest.raises(UserError, match=r"config.avenue.width must be more than 0, found -1.0"):
        read(_Avenue, config)
    with pytest.raises(UserError, match=r"config.lamp.colour is missing: expected a config made from configs/default"):
        read(_Street, {"street": {"width": 3.0}, "lamp": {}})


def test_what_a_config_file_adds_is_refused():
    config = tiny_config()
    config.kd.momentun = 0.5
    with pytest.raises(UserError, match=r"config.kd.momentun is not an option: see docs/options.md"):
        validate(config)
    config = tiny_config()
    config.cmi.learning_rate = 0.5
    with pytest.raises(UserError, match=r"config.cmi.learning_rate is not an option: it is called config.cmi.lr now"):
        validate(config)


def test_old_names_are_of_no_option_and_lead_to_one():
    known = set(flat(default.get_config()))
    assert not RENAMED.keys() & known
    assert set(RENAMED.values()) <= known
    assert renamed({"cmi.learning_rate": 1.0, "kd.lr": 2.0}) == {"cmi.lr": 1.0, "kd.lr": 2.0}
    assert not set(REMOVED) & known


def test_options_of_a_run_are_those_of_its_config():
    config = tiny_config(kd__cutmix=0.25, pool__draw="passes")
    options = options_of(config)
    assert (options.calls, options.kd.batch, options.pool.draw) == (3, 8, "passes")
    assert (options.kd.views.cutmix, options.kd.views.crop_padding) == (0.25, 2)
    assert json.dumps(dataclasses.asdict(options.kd)) == json.dumps(section(type(options.kd)) | config.kd.to_dict())
