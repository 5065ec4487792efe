"""Sampling D' by class and by difficulty: probabilities in closed form, weights that undo the bias, and a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import Runs, identity_of, options_of, tiny_config

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import sampling
from fastdfkd_jax.pool.sampling import Replay, ReplayOptions
from fastdfkd_jax.training.checkpoint import Checkpoints
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.loop import Training

shared = Runs()
# Six rows, the last not filled: three of class 0, one of class 1, one not known.
KNOWN = Replay(jnp.array([0, 0, 1, 0, -1, 1]), jnp.array([1.0, 2.0, 4.0, 1.0, 2.0, 9.0]))
SIZE = jnp.int32(5)


def chances(**exponents):
    return np.asarray(sampling.probabilities(ReplayOptions(**exponents), KNOWN, SIZE, 3))


def test_without_exponents_all_that_is_filled_is_as_likely():
    np.testing.assert_allclose(chances(), [0.2, 0.2, 0.2, 0.2, 0.2, 0], rtol=1e-6)
    assert ReplayOptions().uniform


def test_classes_are_balanced():
    np.testing.assert_allclose(chances(class_exponent=1.0), [1 / 9, 1 / 9, 1 / 3, 1 / 9, 1 / 3, 0], rtol=1e-6)


def test_hard_images_are_likelier():
    np.testing.assert_allclose(chances(difficulty_exponent=1.0), [0.1, 0.2, 0.4, 0.1, 0.2, 0], rtol=1e-6)
    half = np.sqrt([1, 2, 4, 1, 2, 0])
    np.testing.assert_allclose(chances(difficulty_exponent=0.5), half / half.sum(), rtol=1e-6)


def test_rows_are_drawn_by_their_probability():
    options = ReplayOptions(difficulty_exponent=1.0)
    rows, weights = sampling.draw(jax.random.key(0), options, jnp.array(chances(difficulty_exponent=1.0)), SIZE, 10_000)
    shares = np.bincount(rows, minlength=6) / 10_000
    # The standard deviation of a share is at most 0.005.
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.4, 0.1, 0.2, 0], atol=0.02)
    np.testing.assert_array_equal(weights, 1)


def test_full_importance_weights_make_the_mean_that_of_uniform_sampling():
    options = ReplayOptions(difficulty_exponent=1.0, importance_exponent=1.0)
    probability = jnp.array(chances(difficulty_exponent=1.0))
    rows, weights = sampling.draw(jax.random.key(0), options, probability, SIZE, 20_000)
    values = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0, 1e9])
    mean = (weights * values[rows]).sum() / weights.sum()
    assert float(mean) == pytest.approx(14 / 5, abs=0.05)
    assert float(weights.max()) == 1


def test_a_number_that_rounds_up_to_the_whole_draws_the_last_filled_row(monkeypatch):
    """Beyond it lie rows that are not filled."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.ones(shape))
    chances = jnp.array([0.25, 0.75, 0.0, 0.0])
    rows, _ = sampling.draw(jax.random.key(0), sampling.ReplayOptions(), chances, jnp.int32(2), 3)
    np.testing.assert_array_equal(rows, [1, 1, 1])


def test_new_images_get_the_median_difficulty_and_what_is_met_is_noted():
    known = sampling.added(sampling.init(6), jnp.int32(0), jnp.array([2, 2, 1]))
    np.testing.assert_array_equal(known.difficulty[:3], [1, 1, 1])
    known = sampling.met(known, jnp.array([1, 2]), jnp.array([7.0, 2.0]))
    known = sampling.added(known, jnp.int32(3), jnp.array([0, 1]))
    np.testing.assert_array_equal(known.classes, [2, 2, 1, 0, 1, -1])
    np.testing.assert_array_equal(known.difficulty[:5], [1, 7, 2, 2, 2])  # neither the largest, 7, nor the initial 1


@pytest.mark.parametrize("name", ["class_exponent", "difficulty_exponent", "importance_exponent"])
def test_negative_exponents_are_refused(name):
    with pytest.raises(UserError, match=f"config.replay.{name} must be at least 0, found -1"):
        ReplayOptions(**{name: -1.0})


@pytest.mark.parametrize("name", ["difficulty_exponent", "importance_exponent"])
def test_what_is_known_of_one_image_does_not_fit_a_mixed_one(name):
    config = tiny_config(kd__cutmix=0.5, replay__class_exponent=1.0)
    validate(config)
    config.replay[name] = 0.5
    with pytest.raises(UserError, match=r"config.kd.cutmix must be 0 with replay.difficulty_exponent or .*found 0.5"):
        validate(config)


def test_images_that_are_not_as_likely_are_not_met_in_passes():
    config = tiny_config(pool__draw="passes")
    validate(config)
    config.replay.class_exponent = 1.0
    with pytest.raises(UserError, match=r"config.pool.draw must be 'replacement' where replay is not uniform, found"):
        validate(config)


def test_a_run_notes_classes_and_difficulty_and_goes_on_to_the_bit(tmp_path, monkeypatch):
    config = tiny_config(replay__class_exponent=1.0, replay__difficulty_exponent=0.7, replay__importance_exponent=0.5)
    whole = shared.run(config, tmp_path / "whole")
    distilled = Training._distill

    def stop(training, source):
        distilled(training, source)
        if training.progress.call == 2:
            training.stop.requested = True

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_distill", stop)
        assert shared.run(config, tmp_path / "parts") == {}
    resumed = shared.run(config, tmp_path / "parts")
    assert resumed["student_accuracy_last"] == whole["student_accuracy_last"]
    states = [last_state(tmp_path / name, config) for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    known = Replay(*states[0]["replay"])
    assert len(known.classes) == 3 * 8
    assert (known.classes >= 0).all()
    assert len(np.unique(known.difficulty)) > 8, "those that were met differ"


def last_state(workdir, config):
    identity = identity_of(workdir)
    training = Training(options_of(config), *shared.built(config), workdir, identity)
    saved = Checkpoints(workdir / "checkpoints", identity=identity).restore(training._saved_state())
    training.metrics.close()
    training.checkpoints.close()
    assert saved is not None
    return jax.tree.map(np.asarray, {**saved.state, "student": saved.state["student"].variables})
