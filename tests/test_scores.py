"""The scores of each task: intersection over union against a few lines of NumPy, and pixels that are not counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.models import NetworkSpec

CLASSES = 5
SHAPE = (3, 7, 6)


def logits_and_labels(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*SHAPE, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, SHAPE).astype(np.uint8)
    labels[rng.random(SHAPE) < 0.2] = 255
    return logits, labels


def read(logits, labels, classes=CLASSES):
    sums = jax.device_get(jax.jit(scores.confusion_sums)(jnp.asarray(logits), jnp.asarray(labels)))
    return scores.read_confusion(sums, classes)


def test_iou_equals_sets_of_pixels():
    logits, labels = logits_and_labels()
    found, predicted, known = read(logits, labels), logits.argmax(-1), labels != 255
    expected = []
    for c in range(CLASSES):
        ours, theirs = (predicted == c) & known, labels == c
        expected.append(100 * (ours & theirs).sum() / (ours | theirs).sum())
    np.testing.assert_allclose(found["iou"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["miou"], np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose(found["pixel_accuracy"], 100 * (predicted == labels)[known].mean(), rtol=1e-12)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(probabilities, np.where(known, labels, 0)[..., None], -1)[..., 0])[known]
    np.testing.assert_allclose(found["loss"], nats.mean(), rtol=1e-5)


def test_sums_of_batches_are_the_sums_of_the_whole():
    logits, labels = logits_and_labels(1)
    parts = [scores.confusion_sums(logits[i : i + 1], labels[i : i + 1]) for i in range(len(logits))]
    whole = scores.confusion_sums(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_array_equal(sum(part["confusion"] for part in parts), whole["confusion"])


def test_void_pixels_have_no_part_whatever_is_predicted_there():
    logits, labels = logits_and_labels(2)
    other = np.where((labels == 255)[..., None], -logits, logits)
    assert read(logits, labels) == read(other, labels)


def test_a_class_that_is_nowhere_has_no_iou_and_no_part_in_the_mean():
    labels = np.array([[[0, 0, 1, 1]]])
    logits = np.eye(CLASSES, dtype=np.float32)[[[[0, 1, 1, 1]]]]
    found = read(logits, labels)
    assert found["iou"][2:] == [None] * 3
    np.testing.assert_allclose(found["miou"], 100 * (1 / 2 + 2 / 3) / 2)


def test_an_output_beyond_the_classes_is_a_miss_and_no_class():
    """Two classes of 50 pixels, one of which is taken for a third output's."""
    labels = np.repeat([[[0, 1]]], 50, 1)
    predicted = labels.copy()
    predicted[0, 0, 0] = 2
    found = read(np.eye(CLASSES, dtype=np.float32)[predicted], labels, classes=2)
    assert found["iou"] == [98.0, 100.0, None, None, None]
    assert (found["miou"], found["pixel_accuracy"]) == (99.0, 99.0)


def test_a_pixel_that_is_not_finite_is_missed_and_is_no_class():
    labels = np.array([[[0, 1]]])
    logits = np.eye(CLASSES, dtype=np.float32)[[[[0, 1]]]]
    logits[0, 0, 0, 3] = np.nan
    found = read(logits, labels)
    assert found["iou"][:2] == [0.0, 100.0]
    assert found["pixel_accuracy"] == 50.0


def test_nothing_known_gives_zeros_rather_than_an_error():
    logits, labels = logits_and_labels()
    found = read(logits, np.full_like(labels, 255))
    assert (found["miou"], found["pixel_accuracy"], found["loss"]) == (0.0, 0.0, 0.0)


def test_unknown_labels_of_images_do_not_count():
    logits = np.eye(7, dtype=np.float32)[[0, 1, 2, 3]]
    sums = jax.device_get(scores.top_sums(jnp.asarray(logits), jnp.array([0, 1, 3, -1])))
    assert sums["count"] == 3
    found = scores.read_top(sums, 7)
    assert found["accuracy"] == pytest.approx(100 * 2 / 3)
    assert found["top5"] == 100.0


def test_the_task_chooses_the_score():
    assert scores.of_task(NetworkSpec("resnet20", 10)).name == "accuracy"
    assert scores.of_task(NetworkSpec("any", 10, task="segmentation")).name == "miou"
