"""Every compare config builds, each of its runs is one that `main` accepts, and the paper's figures are the paper's."""

import json
import statistics

import pytest
import runs  # noqa: F401 - makes configs importable

from configs import cifar, cifar10, dafl, dfq, zskt
from configs.compare import all as all_tables
from configs.compare import cifar_runs, parts, table1, table2, table3, table4, table5
from fastdfkd_jax import plan
from fastdfkd_jax.assemble import METHODS
from fastdfkd_jax.compare import comparison, results, tables
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.validate import validate

CONFIGS = [(module, variant) for module in (table1, table2, table3, table4, table5) for variant in (None, "cpu")]
CONFIGS.append((all_tables, None))


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


@pytest.mark.parametrize("module", [table1, table2, table3, table4, table5, all_tables], ids=ids)
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(UserError, match="unknown variant 'gpu': expected"):
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
    assert set(union.runs) == set().union(*(part.runs for part in parts_of))
    assert [table.name for table in union.tables] == ["table1-cpu", "table4-cpu", "table5-cpu"]


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
        assert (plan.count_kd_steps(run.config), run.config.kd.batch) == (400_000, 100), run.name


def test_rows_that_a_claim_rests_on_have_three_seeds():
    found = comparison.read(all_tables.get_config()).runs
    at = "cifar10-resnet20-wrn16_1-short-"
    claimed = {name.removeprefix(at) for name, run in found.items() if run.seeds == parts.SEEDS}
    assert claimed == {
        "fast5", "noise", "deepinversion5", "none-generator", "sequential-generator", "meta-generator"
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


def test_few_steps_are_the_methods_own_options():
    found = comparison.read(table4.get_config()).runs
    at = "cifar100-wrn40_2-wrn16_1-"
    for k in (2, 5, 10):
        assert found[f"{at}deepinversion{k}"].config.deepinversion.num_steps == k
        assert found[f"{at}cmi{k}"].config.cmi.num_steps == k
        assert found[f"{at}fast{k}"].config.fastdfkd.num_adapt_steps == k


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
