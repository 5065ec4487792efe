"""Methods of real data: losses against a few lines of NumPy, which images are taken, and runs on digits."""

import io
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import tiny_config
from toy_network import SPEC, toy_network

from fastdfkd_jax import main
from fastdfkd_jax.data import unlabelled
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, dfnd, real_data
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.options import Options
from fastdfkd_jax.pool import real_images
from fastdfkd_jax.pool.shards import Rows
from fastdfkd_jax.training import one_run

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))
LABELS = np.array([0, 3, -1, 2, -1])
NETWORK = toy_network()
SETTING = base.Setting(NETWORK, NETWORK, 8, 3, 0, 4, lambda x: x, Forms(), distilled=kd_loss(4.0))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def loss_of(method, extra=()):
    outputs = [SimpleNamespace(logits=jnp.asarray(logits)) for logits in (STUDENT, TEACHER)]
    return np.asarray(method.objective.loss(extra, *outputs, jnp.asarray(LABELS)))


def cross_entropy():
    return np.array(
        [-np.log(softmax(row)[label]) if label >= 0 else 0 for row, label in zip(STUDENT, LABELS, strict=True)]
    )


def divergence(temperature):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def test_from_scratch_only_labels_count():
    method = real_data.scratch(Options(), SETTING)
    np.testing.assert_allclose(loss_of(method), cross_entropy(), rtol=1e-5)
    assert (method.lifetime, method.knows) == (base.DATA, base.ORIGINAL_DATA)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_kd_on_data_adds_the_labels_that_are_known(weight):
    method = real_data.kd(real_data.KDOnDataOptions(weight), SETTING)
    np.testing.assert_allclose(loss_of(method), divergence(4.0) + weight * cross_entropy(), rtol=1e-5, atol=2e-6)
    assert method.knows == base.OTHER_DATA


def test_the_noise_matrix_keeps_its_diagonal_and_its_rows_sum_to_one():
    matrix = np.asarray(dfnd.noise_matrix(jnp.asarray(RNG.normal(size=(4, 4))), 0.9))
    np.testing.assert_allclose(np.diag(matrix), 0.9, rtol=1e-6)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)


def test_dfnd_s_loss_sees_the_student_through_the_matrix():
    logits = RNG.normal(size=(4, 4))
    off = np.exp(logits) * (1 - np.eye(4))
    matrix = 0.1 * off / off.sum(1, keepdims=True) + 0.9 * np.eye(4)
    noisy = -np.log((softmax(STUDENT) @ matrix)[np.arange(5), TEACHER.argmax(1)])
    method = dfnd.build(dfnd.DFNDOptions(teacher_accuracy=0.9, noise_weight=2.0), SETTING)
    np.testing.assert_allclose(loss_of(method, jnp.asarray(logits)), divergence(4.0) + 2 * noisy, rtol=1e-5, atol=2e-6)


def test_the_matrix_has_finite_gradients_and_none_on_its_diagonal():
    loss = lambda logits: dfnd.noise_loss(logits, jnp.asarray(STUDENT), jnp.asarray(TEACHER), 0.9).mean()  # noqa: E731
    gradient = np.asarray(jax.grad(loss)(jnp.zeros((4, 4))))
    assert np.isfinite(gradient).all()
    assert not np.diag(gradient).any()
    assert np.abs(gradient).max() > 1e-4


def test_the_images_that_the_teacher_is_surest_of_are_chosen():
    images = RNG.integers(0, 256, (300, *SPEC.input_shape), np.uint8)  # more than one batch
    rows = Rows(images, np.arange(300, dtype=np.int32))
    variables = NETWORK.init(jax.random.key(0))
    chosen = real_images.choose([rows], dfnd.selection(NETWORK), variables, 20)
    logits = np.asarray(NETWORK.apply(variables, (images / 255 - 0.3) / 0.3).logits)
    surest = np.argsort(-softmax(logits).max(1))[:20]
    np.testing.assert_array_equal(chosen.labels, np.sort(surest))
    np.testing.assert_array_equal(chosen.images, images[np.sort(surest)])


@pytest.mark.parametrize("count", [1, 30, 100, 2500, 4000])
def test_the_choice_among_parts_is_that_among_all(count):
    """Parts larger and smaller than those in which they are looked through; equal scores, and some that are none."""
    levels = RNG.integers(0, 200, 3000).astype(np.uint8)
    levels[::500] = 255
    images, numbers = np.broadcast_to(levels[:, None, None, None], (3000, 2, 2, 1)), np.arange(3000, dtype=np.int32)
    bounds = [0, 1100, 1103, 2900, 3000]
    parts = [Rows(images[a:b], numbers[a:b]) for a, b in itertools.pairwise(bounds)]
    score = lambda _, shown: jnp.where(shown[:, 0, 0, 0] < 1, shown.mean((1, 2, 3)), jnp.nan)  # noqa: E731
    chosen = real_images.choose(iter(parts), score, (), count)
    expected = np.sort(np.argsort(levels, kind="stable")[:count])
    np.testing.assert_array_equal(chosen.labels, expected)
    np.testing.assert_array_equal(chosen.images, images[expected])


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of unlike sizes, one red and one grey, in a folder within a folder."""
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (20, 50), 70).save(tmp_path / "deep" / "b.jpg")
    return tmp_path


def crops(source, place, **changes):
    options = {"image_size": 8, "channels": 3, "crops": 2, "limit": 0, **changes}
    return np.concatenate(list(unlabelled.stream(source, "train", place, **options)))


def test_pictures_of_a_folder_become_crops_of_one_size(pictures):
    images = crops(f"folder:{pictures}", pictures)
    assert images.shape == (4, 8, 8, 3)
    assert (images[:2] == [200, 0, 0]).all()
    np.testing.assert_allclose(images[2:].astype(int), 70, atol=2)  # JPEG
    assert crops(f"folder:{pictures}", pictures, limit=3).shape[0] == 3
    assert crops(f"folder:{pictures}", pictures, channels=1).shape == (4, 8, 8, 1)


def test_crops_differ_lie_within_their_picture_and_are_the_same_each_time(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (48, 1, 3))
    np.savez(tmp_path / "ramp.npz", images=ramp[None])
    found = crops("npz:ramp.npz", tmp_path, crops=50).astype(int)[:, :, :, 0]
    np.testing.assert_array_equal(found, crops("npz:ramp.npz", tmp_path, crops=50)[..., 0])
    widths = found[:, 0, -1] - found[:, 0, 0]
    # Seven eighths of a side between 0.3 and 1 of 48 pixels.
    assert 0.3 * 48 * 7 / 8 - 2 <= widths.min() < widths.max() <= 48 * 7 / 8 + 2
    assert found.min() < 6
    assert found.max() > 57


def test_jpegs_in_an_archive_are_read(tmp_path):
    files = []
    for level in (10, 240):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (level,) * 3).save(buffer, "JPEG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(tmp_path / "x.npz", jpeg=np.concatenate(files), offsets=np.cumsum([0, *map(len, files)]))
    found = crops("npz:x.npz", tmp_path, crops=1)
    np.testing.assert_allclose(found[:, 0, 0, 0].astype(int), [10, 240], atol=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digits", "unknown source of pictures 'digits': expected one of tfds:NAME"),
        ("folder:absent", "expected a folder of pictures, found no folder"),
        ("folder:empty", "expected pictures in folder:empty, found none"),
        ("folder:broken", "cannot read a picture of .*: it is damaged"),
        ("npz:other.npz", "expected jpeg and offsets, or uint8 x_train or images, in .*, found other"),
    ],
)
def test_sources_without_pictures_are_refused_in_one_line(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"no picture")
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    with pytest.raises(UserError, match=message) as caught:
        crops(source, tmp_path)
    assert "\n" not in str(caught.value)


RUNS = {
    "scratch": {"transfer__source": "digits"},
    "kd": {"transfer__source": "digits"},
    "dfnd": {"transfer__source": "folder:.", "transfer__crops": 40, "transfer__select": 50},
}


@pytest.mark.parametrize("method", RUNS)
def test_a_run_on_given_images_synthesises_none(method, pictures, tmp_path_factory):
    config = tiny_config(method__name=method, warmup_calls=0, transfer__dir=str(pictures), **RUNS[method])
    workdir = tmp_path_factory.mktemp(method)
    summary = one_run.run(config, workdir)
    assert summary["images"] == 0
    assert summary["synthesis_seconds"] == 0
    assert summary["knows"] == (base.OTHER_DATA if method == "dfnd" else base.ORIGINAL_DATA)
    assert not list((workdir / "pool").iterdir())
    assert summary["student_accuracy_last"] is not None


def test_labels_cannot_be_learned_from_crops():
    config = tiny_config(method__name="scratch", transfer__source="folder:.", transfer__crops=1)
    with pytest.raises(UserError, match=r"config.transfer.crops must be 0 for the method scratch"):
        main.assemble(config)
