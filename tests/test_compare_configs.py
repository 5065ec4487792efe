"""Every compare config builds, each of its runs is one that `main` accepts, and the paper's figures are the paper's."""

import json
import statistics

import pytest
from runs import options_of  # makes configs importable too

from fastdfkd_jax.compare import comparison, results, synthesis, tables
from fastdfkd_jax.configs import cifar, cifar10, dafl, dfq, zskt
from fastdfkd_jax.configs.compare import all as all_tables
from fastdfkd_jax.configs.compare import cifar_runs, parts, screening, spread, table1, table2, table3, table4, table5
from fastdfkd_jax.configs.compare import synthesis as longer_synthesis
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.training.build import METHODS
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.schedule import count_kd_steps

CONFIGS = [(module, variant) for module in (table1, table2, table3, table4, table5) for variant in (None, "cpu")]
CONFIGS += [(all_tables, None), (longer_synthesis, None), (spread, None), (screening, None)]
AT = "cifar10-resnet20-wrn16_1-short-"


def ids(value):
    return value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else str(value)


@pytest.mark.parametrize(("module", "variant"), CONFIGS, ids=ids)
def test_every_config_builds_and_all_its_runs_are_valid(module, variant):
    config = module.get_config(variant)
    json.loads(config.to_json())
    found = comparison.read(config)
    for run in found.runs.values():
        validate(run.config)
        assert run.config.method.name in METHODS
        if run.config.method.name in ("kd", "scratch", "dfnd"):
            assert run.config.pool.place == "device", "their images are read into memory"
        assert run.teacher in config.teachers
    shown = {row.run for table in found.tables for row in table.rows} - {""}
    assert shown == set(found.runs), "every run is shown, and every row's run is there"
    for table in found.tables:
        sections = results.sections(table, {}, {}, {})
        assert tables.markdown(table, sections)
        for lines in sections.values():
            labels = [line.row.label for line in lines]
            assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    "module", [table1, table2, table3, table4, table5, all_tables, longer_synthesis, spread, screening], ids=ids
)
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(UserError, match=r"unknown variant 'gpu': (expected|this config has none, leave it out$)"):
        module.get_config("gpu")


@pytest.mark.parametrize(
    ("dataset", "row", "speed_up"),
    [
        ("cifar10", "CMI", 1.6), ("cifar10", "DAFL", 15.7), ("cifar10", "ZSKT", 30.4), ("cifar10", "DFQ", 18.9),
        ("cifar10", "Fast-2", 655.0), ("cifar10", "Fast-5", 247.1), ("cifar10", "Fast-10", 126.7),
        ("cifar100", "CMI", 1.6), ("cifar100", "DAFL", 15.2), ("cifar100", "ZSKT", 30.4), ("cifar100", "DFQ", 18.8),
        ("cifar100", "Fast-2", 588.2), ("cifar100", "Fast-5", 253.1), ("cifar100", "Fast-10", 124.7),
    ],
)  # fmt: skip
def test_hours_of_table_1_give_the_speed_ups_that_are_printed_there(dataset, row, speed_up):
    hours = table1.PAPER[dataset]
    ratios = [slow / quick for slow, quick in zip(hours["DeepInversion"][1], hours[row][1], strict=True)]
    assert statistics.fmean(ratios) == pytest.approx(speed_up, abs=0.051)


def test_tables_share_what_is_the_same_run():
    paper = {module: comparison.read(module.get_config()).runs for module in (table1, table4, table5)}
    assert "cifar100-wrn40_2-wrn16_1-fast5" in paper[table1].keys() & paper[table4].keys()
    assert "cifar10-wrn40_2-wrn16_2-fast5" in paper[table1].keys() & paper[table5].keys()
    for one in paper.values():
        for other in paper.values():
            assert all(one[name].config == other[name].config for name in one.keys() & other.keys())
    union = comparison.read(all_tables.get_config())
    parts_of = [comparison.read(module.get_config("cpu")) for module in (table1, table4, table5)]
    parts_of.append(comparison.read(longer_synthesis.get_config()))
    assert set(union.runs) == set().union(*(part.runs for part in parts_of))
    names = ["table1-cpu", "table1-cpu-brief", "table1-cpu-synthesis", "table4-cpu", "table5-cpu"]
    assert [table.name for table in union.tables] == names


def test_fast5_is_what_the_ordinary_command_runs():
    config = comparison.read(table1.get_config("cpu")).runs["cifar10-resnet20-wrn16_1-short-fast5"].config
    assert config == cifar10.get_config("resnet20-wrn16_1-fast5-short")


def test_all_methods_of_the_short_protocol_learn_on_equal_terms():
    found = comparison.read(all_tables.get_config()).runs
    for name, run in found.items():
        config = run.config
        steps = (config.calls - config.warmup_calls) * config.kd.steps_per_call
        assert (steps, config.kd.batch) == (3300, 128), name
        recipe = ("adam", 2e-3) if config.method.name == "zskt" else ("sgd", 0.1)
        assert (config.kd.optimizer, config.kd.lr) == recipe, name
        assert (config.teacher.arch, config.student.arch) == ("resnet20", "wrn16_1")


def test_all_runs_of_table_2_have_one_student_budget():
    for run in comparison.read(table2.get_config()).runs.values():
        assert (count_kd_steps(options_of(run.config)), run.config.kd.batch) == (400_000, 100), run.name


def test_rows_that_a_claim_rests_on_have_three_seeds():
    found = comparison.read(all_tables.get_config()).runs
    at = "cifar10-resnet20-wrn16_1-short-"
    claimed = {name.removeprefix(at) for name, run in found.items() if run.seeds == parts.SEEDS}
    assert claimed == {
        "fast5", "noise", "deepinversion5", "none-generator", "sequential-generator", "meta-generator",
        "meta-generator-weight1",
    }  # fmt: skip
    assert {run.seeds for name, run in found.items() if name.removeprefix(at) not in claimed} == {(0,)}


def test_rows_of_table_5():
    found = comparison.read(table5.get_config("cpu")).runs
    at = "cifar10-resnet20-wrn16_1-short-"
    for name, reuse, representation, feature in (
        ("none-pixels", "none", "pixels", "plain"),
        ("none-generator", "none", "generator", "plain"),
        ("sequential-pixels", "sequential", "pixels", "plain"),
        ("sequential-generator", "sequential", "generator", "plain"),
        ("meta-generator", "meta", "generator", "plain"),
        ("fast5", "meta", "generator", "momentum"),
    ):
        config = found[at + name].config
        assert (config.fastdfkd.reuse, config.fastdfkd.representation) == (reuse, representation)
        assert config.inversion.feature == feature
        assert config.inner.latents_lr == (cifar_runs.PIXELS_LR if representation == "pixels" else 0.01)
        persistent = representation == "pixels" and reuse == "sequential"
        assert config.fastdfkd.latents == ("persistent" if persistent else "fresh")
        assert config.inversion.feature_weight == 10


def test_momentum_has_a_row_of_its_own_weight_beside_it():
    """Without momentum, but with the pull that momentum leaves of the feature term: its weight times 1 - a."""
    found = comparison.read(table5.get_config("cpu"))
    plain, light = (found.runs[AT + name].config for name in ("meta-generator", "meta-generator-weight1"))
    assert light.inversion.feature_weight == pytest.approx(
        plain.inversion.feature_weight * (1 - plain.inversion.accumulator_weight)
    )
    plain.inversion.feature_weight = light.inversion.feature_weight
    assert plain == light
    labels = [row.label for row in found.tables[0].rows]
    assert labels[-3:] == ["meta, generator", table5.WEIGHT_1, "meta, generator, momentum"]
    line = tables.markdown(
        found.tables[0], results.sections(found.tables[0], {}, {AT + "meta-generator-weight1": 3}, {})
    )
    row = next(row for row in line.splitlines() if table5.WEIGHT_1 in row)
    assert row.startswith(f"| {table5.WEIGHT_1} | not measured | not measured | 0 of 3 | not measured |")
    assert row.endswith(" | – | – | – |"), "neither a share nor figures of the paper"
    assert not any("weight1" in name for name in comparison.read(table5.get_config()).runs)


def shares(table):
    """Percent by label."""
    return {row.label: None if row.share is None else 100 * row.share for row in table.rows}


def test_shares_of_the_published_synthesis_are_those_of_the_sources():
    """METHOD 8, and what more follows from the sizes of the released scripts."""
    found = shares(comparison.read(table1.get_config("cpu")).tables[0])
    for label, share in (("Fast-5", 13.6), ("DAFL", 10.3), ("DFQ", 2.25), ("DFAD", 2.06), ("ZSKT", 1.03)):
        assert found[label] == pytest.approx(share, abs=0.05), label
    # 60 calls of 128 images instead of 220, or of 200, of 256.
    assert found["Fast-2"] == pytest.approx(100 * 60 * 128 / (220 * 256))
    for label in ("DeepInversion, 2,000 steps", "DeepInversion, 10 steps", "CMI, 500 steps", "CMI, 10 steps"):
        assert found[label] == pytest.approx(100 * 60 * 128 / (200 * 256)), label
    without = {"Teacher", "KD, other data", "noise control", "Generative DFD", "NAYER", "DFQ, averaged generator"}
    assert {found[label] for label in without} == {None}
    few = shares(comparison.read(table4.get_config("cpu")).tables[0])
    assert few["CMI, 5 steps"] == pytest.approx(15)
    assert few["Fast, 10 steps"] == pytest.approx(13.636, abs=1e-3)
    maps = shares(comparison.read(table3.get_config("cpu")).tables[0])
    # 240 steps of 16 instead of 15,000 of 64 images; 44 calls of 16 instead of 266 of 64.
    assert maps["DFAD"] == maps["DAFL"] == pytest.approx(0.4)
    assert maps["Fast-10"] == pytest.approx(100 * 44 * 16 / (266 * 64))


def test_the_size_of_synthesis_is_counted_from_a_config():
    found = comparison.read(all_tables.get_config()).runs
    for name, images in (
        ("fast5", 60 * 128 * 5), ("deepinversion9", 60 * 128 * 9), ("cmi2", 60 * 128 * 2), ("dafl", 3300 * 128),
        ("zskt", 330 * 128), ("dfq", 360 * 128), ("dfad", 660 * 128), ("generative_dfd", 20 * 100 * 128),
        ("nayer", 60 * 128 * 30),
        ("noise", 0), ("scratch", 0), ("kd_other", 0),
    ):  # fmt: skip
        assert synthesis.images_with_gradient(found[AT + name].config) == images, name
    config = found[AT + "fast5"].config
    config.fastdfkd.num_tasks, config.synthesis_calls = 4, 10
    assert synthesis.images_with_gradient(config) == 10 * 4 * 128 * 5
    config.mode = "distill"
    assert synthesis.images_with_gradient(config) == 0
    # CMI's scripts: a step of the generator for every five student steps of 80,000, of DFQ's for every ten.
    scripts = {name: synthesis.images_with_gradient(made) for name, made in cifar_runs.cmi_scripts().items()}
    assert scripts == {"DAFL": 16000 * 256, "ZSKT": 16000 * 256, "DFQ": 8000 * 256, "DFAD": 16000 * 256}


def test_longer_synthesis_differs_in_the_generator_s_steps_alone():
    found = comparison.read(longer_synthesis.get_config())
    short = comparison.read(table1.get_config("cpu"))
    for label, steps in longer_synthesis.STEPS.items():
        name = AT + label.lower()
        config = found.runs[f"{name}_synthesis"].config
        assert config[config.method.name].generator_steps == steps
        size = synthesis.images_with_gradient(config)
        assert size == steps * synthesis.images_with_gradient(short.runs[name].config)
        config[config.method.name].generator_steps = 1
        assert config == short.runs[name].config
        share = shares(found.tables[0])[f"{label}, {steps} generator steps a round"]
        equal_steps = shares(short.tables[0])[label]
        assert equal_steps is not None
        assert share == pytest.approx(steps * equal_steps)


def test_few_steps_are_the_methods_own_options():
    found = comparison.read(table4.get_config()).runs
    at = "cifar100-wrn40_2-wrn16_1-"
    for k in (2, 5, 10):
        assert found[f"{at}deepinversion{k}"].config.deepinversion.num_steps == k
        assert found[f"{at}cmi{k}"].config.cmi.num_steps == k
        assert found[f"{at}fast{k}"].config.fastdfkd.num_steps == k


def test_2000_steps_are_computed_from_ten():
    (row,) = [row for row in comparison.read(table1.get_config("cpu")).tables[0].rows if row.is_reference]
    assert (row.run, row.times) == ("cifar10-resnet20-wrn16_1-short-deepinversion10", 200)
    assert (row.paper_accuracy, row.paper_hours) == (83.04, 16.9)


def test_figures_of_the_paper_s_baselines_stand_beside_the_recipe_that_made_them():
    found = comparison.read(table1.get_config()).runs
    at = "cifar10-wrn40_2-wrn16_1"
    for name, config_file in (("dafl", dafl), ("zskt", zskt), ("dfq", dfq)):
        assert found[f"{at}-{name}_table1"].config == config_file.get_config(f"{at}-table1")
    assert set(table1.PAIRS) < set(cifar.PAIRS)
