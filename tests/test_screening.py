"""A screening design finds what each change does, and says how sure that is."""

import json

import numpy as np
import pytest
import runs  # noqa: F401 - makes benchmarks importable too

from benchmarks import screening as measured
from fastdfkd_jax.configs.compare import screening
from fastdfkd_jax.errors import UserError

NAMES = list(screening.CHANGES)


def scores(halves, effect_of, noise=0.0):
    """Accuracies of the halves' runs, where each change that is made adds its effect."""
    rng = np.random.default_rng(0)
    found = {}
    for half, seed in halves.items():
        for number, row in enumerate(screening.design(half)):
            made = sum(effect_of.get(name, 0.0) for name, is_made in zip(NAMES, row, strict=True) if is_made)
            found[half, number] = 40.0 + seed + made + noise * rng.normal()
    return found


def test_each_pair_of_changes_is_made_together_in_a_quarter_of_the_runs():
    for half in screening.SEEDS:
        made = np.array(screening.design(half), int)
        assert made.shape == (12, 11)
        assert (made.T @ made == 3 * (1 + np.eye(11, dtype=int))).all()


@pytest.mark.parametrize("halves", [{"": 0}, screening.SEEDS], ids=["one half", "both"])
def test_effects_are_found(halves):
    wanted = {"CutMix": 4.0, "loss": -2.5}
    found = {effect.name: effect.points for effect in measured.effects(scores(halves, wanted))}
    assert found == pytest.approx({name: wanted.get(name, 0.0) for name in NAMES}, abs=1e-9)


@pytest.mark.parametrize("halves", [{"": 0}, screening.SEEDS], ids=["one half", "both"])
def test_the_error_is_that_of_chance(halves):
    found = measured.effects(scores(halves, {"CutMix": 20.0}, noise=2.0))
    expected = 2 * 2.0 / (12 * len(halves)) ** 0.5
    assert 0.4 < found[0].error / expected < 1.8
    assert all(abs(effect.points) < 4 * effect.error for effect in found if effect.name != "CutMix")


def test_changes_are_those_that_the_runs_make():
    config = screening.get_config().runs
    for half in screening.SEEDS:
        for number, row in enumerate(screening.design(half)):
            run = config[screening.name_of(half, number)].config
            for (base, tried), made in zip(screening.CHANGES.values(), row, strict=True):
                for key, value in (tried if made else base).items():
                    section, _, name = key.rpartition(".")
                    assert (run[section] if section else run)[name] == value
            trained = run.kd.steps_per_call * (run.calls - run.warmup_calls)
            assert screening.STEPS - 12 <= trained <= screening.STEPS


def test_the_table_has_the_best_first_and_needs_whole_halves(tmp_path):
    for number, (_, accuracy) in enumerate(scores({"": 0}, {"CutMix": 4.0}).items()):
        place = tmp_path / "runs" / screening.name_of("", number) / "seed0"
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps({"student_accuracy_last": accuracy}))
    text = measured.table(measured.effects(measured.accuracies(tmp_path)))
    assert text.splitlines()[2] == "| CutMix | `kd.cutmix` | 0 | 0.5 | +4.00 ± 0.00 |"
    (tmp_path / "runs" / screening.name_of("", 11) / "seed0" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"holds 11 runs, expected all 12 of a half"):
        measured.accuracies(tmp_path)
