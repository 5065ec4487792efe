"""Agreement of student and teacher on images without labels, and that measuring it changes no number of a run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import Runs
from runs import tiny_config as unmeasured
from safetensors.numpy import load_file

from fastdfkd_jax import convert
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.data import probe
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.agreement import Agreement, agreeing
from fastdfkd_jax.models import Network, NetworkSpec, Outputs
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.training import held_out, one_run

shared = Runs()


def tiny_config(**changes):
    """A tiny run that also measures a held-out batch, unless told otherwise."""
    return unmeasured(**{"held_out": True, **changes})


def pixels_as_logits(sign: float) -> Network:
    """A network of two classes, whose logits are an image's first pixel and a constant."""
    spec = NetworkSpec("pixels", 2, 1, 1, (0.0,), (1.0,))

    def apply(variables, images, **asked):
        first = sign * (images[:, 0, 0, 0] - 0.5)
        logits = jnp.stack([first, jnp.zeros(len(images))], -1) + variables["params"]["shift"]
        return Outputs(logits, logits, (), {}, {})

    return Network(spec, lambda key: {}, apply)


def test_a_share_by_hand():
    teacher = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [jnp.nan, 0.0]])
    student = jnp.array([[2.0, 0.0], [0.0, 9.0], [1.0, 0.0], [jnp.nan, 0.0]])
    np.testing.assert_array_equal(agreeing(teacher, student), [1, 1, 0, 0])


def test_maps_agree_by_pixel():
    teacher = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(1)
    assert agreeing(teacher, teacher.at[0, 0, 0, 2].set(5))[0] == 0.75


@pytest.mark.parametrize("count", [1, 4, 10])
def test_every_image_counts_once_and_padding_never(count):
    """Black and white in turn; the networks are opposite, and the padding is black."""
    images = (np.arange(count) % 2 * 255).astype(np.uint8).reshape(-1, 1, 1, 1)
    none = {"params": {"shift": np.zeros(2, np.float32)}}
    first = {"params": {"shift": np.array([9, 0], np.float32)}}
    same = Agreement(pixels_as_logits(1), pixels_as_logits(1), batch=4)
    opposite = Agreement(pixels_as_logits(1), pixels_as_logits(-1), batch=4)
    assert same(none, none, images) == 1
    assert same.compile_seconds > 0
    assert opposite(none, none, images) == 0
    assert same(first, none, images) == pytest.approx(sum(images.ravel() > 0) / count)
    assert same.compile_seconds == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A colour picture, a grey one, one with transparency, at two depths, and a text file."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 33, 3), np.uint8)).save(place / "colour.png")
    (place / "below").mkdir()
    Image.fromarray(rng.integers(0, 255, (40, 17), np.uint8)).save(place / "below" / "grey.jpg")
    Image.fromarray(rng.integers(0, 255, (9, 9, 4), np.uint8)).save(place / "below" / "clear.png")
    (place / "note.txt").write_text("no picture")
    return place


@pytest.fixture(scope="module")
def runs(tmp_path_factory, pictures):
    """The same run with and without the measurement, the first with its noise control."""
    place = tmp_path_factory.mktemp("agreement")
    config = tiny_config(data__probe=str(pictures), noise_control=True)
    shared.built(config, fresh=True)
    summary = one_run.complete(config, place / "with", shared.built(config))
    plain = tiny_config(held_out=False)
    shared.built(plain, fresh=True)
    return place, summary, shared.run(plain, place / "without")


def test_the_noise_control_has_an_agreement_of_its_own(runs):
    assert 0 <= runs[1]["noise_agreement_held_out"] <= 100


def test_pictures_become_the_networks_input(pictures):
    grey, colour = (probe.read(pictures, (16, 16, channels)) for channels in (1, 3))
    assert (grey.shape, grey.dtype) == ((3, 16, 16, 1), np.uint8)
    assert colour.shape == (3, 16, 16, 3)
    assert (colour[1] == colour[1, :, :, :1]).all(), "a grey one has three equal channels"
    assert not (colour[2] == colour[2, :, :, :1]).all()


def test_of_many_pictures_some_are_read_evenly(pictures, monkeypatch):
    monkeypatch.setattr(probe, "MOST", 2)
    every = probe.read(pictures, (16, 16, 3))
    assert len(every) == 2
    monkeypatch.setattr(probe, "MOST", 3)
    np.testing.assert_array_equal(every, probe.read(pictures, (16, 16, 3))[[0, 2]])


@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("none", 3, "expected a folder of pictures, found no folder .*none"),
        ("empty", 3, "expected pictures in .*empty, found none"),
        ("damaged", 3, "cannot read the picture .*a.png: it is damaged"),
        ("damaged", 4, "expected a network of 1 or 3 channels .*, found 4"),
    ],
)
def test_what_is_no_folder_of_pictures_is_refused(tmp_path, name, channels, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=expected):
        probe.read(tmp_path / name, (16, 16, channels))


def test_measuring_changes_no_number_of_the_run(runs):
    place, summary, plain = runs
    one, other = (load_file(place / name / "student.safetensors") for name in ("with", "without"))
    assert all(one[key].tobytes() == other[key].tobytes() for key in one)
    assert (place / "with" / "metrics.jsonl").read_text() == (place / "without" / "metrics.jsonl").read_text()
    assert len(list((place / "with" / "pool").iterdir())) == 3
    for name in sorted(path.name for path in (place / "without" / "pool").iterdir()):
        np.testing.assert_array_equal(*(read_shard(place / run / "pool" / name).images for run in ("with", "without")))
    assert "agreement_held_out" not in plain
    assert plain["agreement_noise_images"] == summary["agreement_noise_images"]
    assert not (place / "without" / "held_out").exists()


def test_the_figures_are_those_of_the_saved_networks(runs, pictures):
    """By a plain loop over the images on disk."""
    place, summary, _ = runs
    teacher, teacher_vars = convert.load_network(tiny_config().teacher.checkpoint)
    spec = teacher.spec
    held = read_shard(place / "with" / "held_out" / "000000.npz").images
    sets = {"held_out": held, "noise_images": held_out.noise(spec), "probe": probe.read(pictures, spec.input_shape)}
    assert (summary["held_out_images"], summary["probe_images"], summary["probe"]) == (8, 3, pictures.name)

    def predicted(network, variables, images):
        inputs = augment.normalize(jnp.asarray(images, jnp.float32) / 255, spec.mean, spec.std)
        return np.asarray(network.apply(variables, inputs).logits).argmax(-1)

    for folder, prefix in (("with", ""), ("with/noise_control", "noise_")):
        student, variables = convert.load_network(place / folder / "student.safetensors")
        for name, images in sets.items():
            if f"{prefix}agreement_{name}" not in summary:
                assert (prefix, name) == ("noise_", "noise_images")
                continue
            same = predicted(teacher, teacher_vars, images) == predicted(student, variables, images)
            assert summary[f"{prefix}agreement_{name}"] == pytest.approx(100 * same.mean())


def test_held_out_images_are_none_of_the_pool(runs):
    place, _, _ = runs
    held = {image.tobytes() for image in read_shard(place / "with" / "held_out" / "000000.npz").images}
    pool = {image.tobytes() for path in (place / "with" / "pool").iterdir() for image in read_shard(path).images}
    assert len(held) == 8
    assert not held & pool


def test_a_run_that_stops_while_it_measures_ends_with_the_same_figures(runs, tmp_path, monkeypatch):
    _, summary, _ = runs
    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "_synthesise", lambda training: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared.run(config, tmp_path)
    again = shared.run(config, tmp_path)
    assert again["agreement_held_out"] == summary["agreement_held_out"]
    assert again["agreement_noise_images"] == summary["agreement_noise_images"]


def test_a_finished_run_measures_only_new_pictures(tmp_path, pictures, monkeypatch):
    first = shared.run(tiny_config(), tmp_path)
    (tmp_path / "held_out" / "000000.npz").unlink()
    monkeypatch.setattr(held_out, "_synthesise", lambda training: 1 / 0)
    again = shared.run(tiny_config(data__probe=str(pictures)), tmp_path)
    assert {key: again[key] for key in first if key.startswith("agreement")} == {
        key: first[key] for key in first if key.startswith("agreement")
    }
    assert again["probe_images"] == 3
    assert 0 <= again["agreement_probe"] <= 100


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({"method__name": "noise"}, {"agreement_noise_images"}),
        ({"mode": "synthesize"}, set()),
        ({"method__name": "dafl", "dafl__student_steps": 2}, {"agreement_noise_images"}),  # not in [0, 1]
        ({"method__name": "kd", "transfer__source": "digits", "transfer__limit": 16}, {"agreement_noise_images"}),
    ],
)
def test_runs_without_images_of_their_own_leave_them_out(changes, measured, tmp_path):
    summary = one_run.run(tiny_config(**changes), tmp_path)
    assert {key for key in summary if key.startswith("agreement")} == measured
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_state_is_used_up_only_after_the_last_save(tmp_path, monkeypatch):
    """A stop that is asked for while it measures loses nothing: the same command ends as if there was none."""
    original, asked = held_out.measure, []

    def measure(training):
        found = original(training)
        if not asked:
            asked.append(True)
            training.stop.requested = True
        return found

    monkeypatch.setattr(held_out, "measure", measure)
    config = tiny_config()
    assert shared.run(config, tmp_path) == {}
    summary = shared.run(config, tmp_path)
    assert summary["images"] == 24
    assert asked
