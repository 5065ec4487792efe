"""A dry run prints the plan and cost of a run, and leaves no trace."""

import functools
import sys
from pathlib import Path

import jax
import pytest
from runs import options_of, tiny_config
from toy_network import toy_parts

from fastdfkd_jax import models
from fastdfkd_jax.main import main
from fastdfkd_jax.training import dry_run, one_run

QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"


def tiny_plan(**changes):
    """Lines of the plan, and the parts; pixels in place of the generator compile in a moment."""
    config = tiny_config(fastdfkd__representation="pixels", **changes)
    parts = toy_parts(config)
    return dry_run.describe(options_of(config), parts).splitlines(), parts


@functools.cache
def described(mode="all"):
    return tiny_plan(mode=mode)


def test_both_networks_are_described():
    lines, parts = described()
    student = jax.eval_shape(parts.student.init, jax.random.key(0))
    for line, role, network, variables in (
        (lines[0], "teacher", parts.teacher, parts.teacher_vars),
        (lines[1], "student", parts.student, student),
    ):
        assert line.startswith(f"{role} {network.spec.arch}: {models.count_parameters(variables):,} parameters, ")
        assert f" {models.count_batch_norms(variables)} BatchNorm layers, 10 classes, images 8x8x1, " in line


def test_parameters_and_batch_norms_by_hand():
    # 64 pixels to 16 units, scale and bias of one BatchNorm, 16 units to 10 classes.
    assert f": {64 * 16 + 2 * 16 + 16 * 10:,} parameters, 1 BatchNorm layers, " in described()[0][1]


def test_work_and_cost_are_counted():
    lines, _ = described()
    # Three calls of eight images; the first only warms up, so that two of them have four KD steps.
    assert lines[2] == "fastdfkd (teacher only): 3 synthesis calls, 24 images"
    assert lines[3] == "8 KD steps of 8 images"
    assert lines[4] == "disk: less than 1 MB of synthesised images, plus checkpoints"
    assert lines[5].startswith("synthesis call: ")
    assert lines[6].startswith("2 KD steps: ")
    for line in lines[5:7]:
        assert " MB held on each device, compiled in " in line
        assert line.endswith(" s for all")
    assert lines[7].startswith("about ")
    assert " s in all on this machine" in lines[7]
    assert len(lines) == 8


def test_disk_is_that_of_all_images():
    lines, _ = tiny_plan(calls=100_000, mode="synthesize")
    # 100 000 calls of 8 images of 64 bytes.
    assert lines[4] == "disk: 51 MB of synthesised images, plus checkpoints"


def test_what_does_not_run_is_not_measured():
    synthesis, _ = described("synthesize")
    assert synthesis[2:4] == ["fastdfkd (teacher only): 3 synthesis calls, 24 images", "0 KD steps of 8 images"]
    assert [line.split(":")[0] for line in synthesis[5:-1]] == ["synthesis call"]
    distillation, _ = described("distill")
    assert distillation[2:4] == ["fastdfkd (teacher only): 0 synthesis calls, 0 images", "8 KD steps of 8 images"]
    assert [line.split(":")[0] for line in distillation[4:-1]] == ["2 KD steps"]


@pytest.mark.parametrize("mode", ["all", "distill"])
def test_steps_that_draw_by_difficulty_are_measured_too(mode):
    lines, _ = tiny_plan(mode=mode, replay__difficulty_exponent=1.0)
    assert lines[-2].startswith("2 KD steps: ")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_dry_run_prints_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastdfkd_jax.main.assemble", toy_parts)
    argv = [
        "main",
        f"--config={QUICKSTART}",
        "--workdir=new",
        "--config.dry_run=true",
        "--config.fastdfkd.representation=pixels",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    main(argv)
    printed = capsys.readouterr().out
    assert printed.startswith("teacher toy: ")
    assert "fastdfkd (teacher only): 30 synthesis calls, 1920 images\n1040 KD steps of 64 images\n" in printed
    assert not list(tmp_path.iterdir())


def test_the_run_after_a_plan_counts_its_compilation(tmp_path):
    config = tiny_config(fastdfkd__representation="pixels", held_out=False)
    built = one_run.build(config)
    costs = dry_run.measure(options_of(config), built.parts, built.programs)
    planned = sum(cost.compile_seconds for cost in costs)
    assert planned > 0
    assert one_run.run(config, tmp_path / "first", built)["compile_seconds"] >= planned
    assert built.programs.compiled_before == 0
    assert one_run.run(config, tmp_path / "second", built)["compile_seconds"] < planned, "only once"
