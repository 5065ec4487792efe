"""Figure 1 of the records: families, series and labels; no label covers another label or a mark."""

import functools
import itertools
import re

import pytest
import runs  # noqa: F401 - makes configs importable
from runs import ROOT

from fastdfkd_jax.compare import comparison, figure, outputs
from fastdfkd_jax.configs.compare import all as all_tables
from fastdfkd_jax.configs.compare import table3

pytest.importorskip("matplotlib")
FOLDERS = {"short": (all_tables, None), "camvid": (table3, "cpu")}


TABLES = [("short", f"table{name}") for name in ("1-cpu", "1-cpu-synthesis", "4-cpu", "5-cpu")]
TABLES += [("camvid", "table3-cpu")]


@functools.cache
def sections_of(folder):
    """The lines of each table in a folder of records, by its name."""
    module, variant = FOLDERS[folder]
    config = module.get_config(variant)
    config.other_data = "npz:imagenet_even500_256_q90.npz"
    made = comparison.read(config)
    place = ROOT / "results/compare" / folder
    found = {table.name: lines for table, lines in outputs.figures_of(place, made, made.tables, {}) if not table.brief}
    assert found.keys() == {name for where, name in TABLES if where == folder}
    return found


@pytest.fixture(scope="module")
def table1():
    (lines,) = sections_of("short")["table1-cpu"].values()
    return {line.row.label: line for line in lines}


def boxes(axes):
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


@pytest.mark.parametrize(("folder", "name"), TABLES)
def test_no_label_covers_another_or_a_mark_or_leaves_the_picture(folder, name):
    sections = sections_of(folder)[name]
    made = figure.draw(sections)
    made.set_dpi(150)
    made.canvas.draw()
    for axes, lines in zip(made.axes, sections.values(), strict=True):
        found, shown = boxes(axes), [line for line in lines if line.accuracy and line.synthesis_seconds]
        assert found.keys() == {line.row.label for line in shown}
        for (one, a), (other, b) in itertools.combinations(found.items(), 2):
            assert not a.overlaps(b), f"{one} covers {other}"
        for label, box in found.items():
            assert axes.bbox.x0 <= box.x0, label
            assert box.x1 <= made.bbox.x1, label
            assert axes.bbox.y0 <= box.y0, label
            assert box.y1 <= axes.bbox.y1, label
            for line in shown:
                x, y = axes.transData.transform((line.synthesis_seconds, line.accuracy))
                assert not box.contains(x, y), f"{label} covers the mark of {line.row.label}"


def test_every_row_with_a_score_and_seconds_has_a_label(table1, tmp_path):
    figure.write(tmp_path / "a", sections_of("short")["table1-cpu"])
    written = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "a.svg").read_text())
    for label in ("Fast-2", "Fast-5", "Fast-10", "CMI, 10 steps", "Generative DFD", "DFQ", "noise control"):
        assert written.count(label) == 1
    for label in ("Teacher", "KD, original data", "CMI, 500 steps"):
        assert label in table1, "it is in the table"
        assert label not in written


def test_a_family_has_one_look_that_no_other_has(table1):
    looks = {label: figure.family(line) for label, line in table1.items()}
    assert looks["Fast-2"] == looks["Fast-10"] == figure.FAMILIES["FastDFKD"]
    assert looks["CMI, 10 steps"] == figure.FAMILIES["CMI"]
    assert looks["DeepInversion, 5 steps"] == figure.FAMILIES["DeepInversion"]
    assert looks["DFQ"] == looks["Generative DFD"] == figure.FAMILIES["one generator"]
    for part in ("colour", "marker", "style"):
        assert len({str(getattr(look, part)) for look in figure.FAMILIES.values()}) == len(figure.FAMILIES)


def test_runs_that_differ_in_more_than_steps_and_rates_are_not_joined(table1):
    series = {label: line.row.series for label, line in table1.items()}
    assert series["Fast-2"] == series["Fast-5"] == series["Fast-10"]
    assert series["DeepInversion, 5 steps"] == series["DeepInversion, 10 steps"]
    assert (
        len({series[label] for label in ("Fast-5", "Fast-5, replay by class and difficulty", "CMI, 10 steps", "DFQ")})
        == 4
    )
    assert series["Teacher"] == ""


def test_lines_join_the_points_of_a_series_in_the_order_of_seconds(table1):
    (axes,) = figure.draw(sections_of("short")["table1-cpu"]).axes
    fast = [table1[f"Fast-{steps}"] for steps in (2, 5, 10)]
    wanted = ([line.synthesis_seconds for line in fast], [line.accuracy for line in fast])
    assert wanted in [tuple(map(list, line.get_data())) for line in axes.lines]


@pytest.mark.parametrize(("folder", "name"), TABLES)
def test_the_committed_figures_have_the_labels_of_the_records(folder, name, tmp_path):
    """Of text only, because outlines differ with the version of matplotlib."""
    figure.write(tmp_path / "made", sections_of(folder)[name])
    made, kept = (
        re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
        for path in (tmp_path / "made.svg", ROOT / "results/compare" / folder / f"{name}-figure1.svg")
    )
    assert made == kept, "remake the tables by the command in docs/results.md"
