"""Pictures by class: layout, what is chosen, and a confidence that is the teacher's softmax; the README's picture."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image
from runs import ROOT, tiny_config

from benchmarks import first_picture
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import image_grid
from fastdfkd_jax.storage.image_grid import LabelledRow
from fastdfkd_jax.training import class_rows, one_run

RECORD = ROOT / "results/quickstart/seed0"


@pytest.fixture(scope="module")
def built():
    return one_run.build(tiny_config())


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 1), np.uint8)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def write_pool(workdir, *shards):
    (workdir / "pool").mkdir(parents=True)
    for number, (pictures, labels) in enumerate(shards):
        np.savez(workdir / "pool" / f"{number:06d}.npz", images=pictures, labels=np.asarray(labels, np.int32))


def test_each_row_has_its_images_enlarged_beside_its_name():
    # Levels that occur in no text: it is anti-aliased between black and white, but never in these squares.
    rows = [LabelledRow(name, "97 %", np.full((3, 8, 8, 1), level, np.uint8)) for name, level in (("0", 0), ("1", 200))]
    sheet = np.asarray(image_grid.draw_rows("Heading", rows).convert("L"))
    tops = []
    for level in (0, 200):
        same = sheet == level
        ys = np.flatnonzero(same.sum(1) >= 3 * 48)
        assert len(ys) == 48, "eight pixels, each six times"
        assert same[ys[0]].sum() == 3 * 48
        assert np.flatnonzero(same[ys[0]]).min() > 30, "there is room for the name"
        assert (sheet[ys[0] : ys[-1], : np.flatnonzero(same[ys[0]]).min()] < 128).any(), "the name is there"
        tops.append(ys[0])
    assert tops[0] < tops[1]
    assert (sheet[: tops[0]] < 160).any(), "the heading is there"


def test_names_are_cut_and_large_images_reduced():
    rows = [LabelledRow("漢字 " + "goldfish, Carassius auratus " * 9, "", np.zeros((8, 224, 224, 3), np.uint8))]
    sheet = image_grid.draw_rows("", rows)
    assert sheet.height < 128 + 30
    assert sheet.width < 8 * 130 + 250


def test_confidence_is_the_teachers_softmax_for_any_number_of_images(built):
    parts, pictures, labels = built.parts, images(53), np.arange(53) % 10
    found = built.programs.confidence(parts.teacher_vars, pictures, labels)
    spec = parts.teacher.spec
    inputs = augment.normalize(jnp.asarray(pictures, jnp.float32) / 255, spec.mean, spec.std)
    wanted = jax.nn.softmax(parts.teacher.apply(parts.teacher_vars, inputs).logits)[np.arange(53), labels]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert len(built.programs.confidence(parts.teacher_vars, pictures[:0], labels[:0])) == 0


def test_the_newest_images_of_each_class_are_chosen_and_sorted(built, tmp_path):
    old, new = images(20, 1), images(20, 2)
    write_pool(tmp_path, (old, [3, 1] * 10), (new, [3] * 16 + [1] * 4))
    gallery = class_rows.of_run(tmp_path, *built)
    assert [(row.label, row.name) for row in gallery.rows] == [(1, "1"), (3, "3")]
    one, three = gallery.rows
    np.testing.assert_array_equal(three.images, new[:8])
    np.testing.assert_array_equal(one.images, np.concatenate([new[16:], old[1:8:2]]))
    wanted = built.programs.confidence(built.parts.teacher_vars, three.images, np.full(8, 3))
    np.testing.assert_allclose(three.confidence, wanted)
    assert three.note == f"{100 * wanted.mean():.0f} %"
    assert (tmp_path / "images.png").exists()


def test_of_many_classes_those_with_the_most_images_are_shown(built, tmp_path):
    labels = np.repeat(np.arange(30), 2)
    labels[:3] = 29  # the last class has more images than others, and the first none
    parts = built.parts._replace(test=None)
    write_pool(tmp_path, (images(60), labels))
    gallery = class_rows.of_run(tmp_path, parts, built.programs)
    assert [row.label for row in gallery.rows] == [*range(2, 21), 29]
    assert gallery.rows[0].name == "class 2"
    assert gallery.rows[-1].confidence is None, "the teacher has ten classes"
    assert gallery.cut == "20 of 29 classes are shown."


def test_images_without_a_class_are_a_plain_grid(built, tmp_path):
    write_pool(tmp_path, (images(20), [-1] * 20))
    gallery = class_rows.of_run(tmp_path, *built)
    assert not gallery.has_classes
    assert size_of(tmp_path / "images.png") == (16 * 17 * 3, 2 * 17 * 3)
    assert class_rows.of_run(tmp_path / "none", *built) == class_rows.Gallery()
    assert not (tmp_path / "none").exists()


def test_a_stage_has_rows_only_where_classes_have_images(built, tmp_path):
    plain, pictures = (16 * 17 * 3, 17 * 3), images(16)
    for call, labels in ((1, np.full(16, -1)), (2, np.arange(16)), (3, np.arange(16) % 4), (4, np.full((2, 16), -1))):
        class_rows.write_stage(tmp_path, call, pictures, jnp.asarray(labels), *built)
    sizes = {path.name: size_of(path) for path in (tmp_path / "images").iterdir()}
    assert sizes["000001.png"] == sizes["000002.png"] == sizes["000004.png"] == plain
    assert sizes["000003.png"] != plain


def test_the_readmes_picture_is_drawn_from_its_record():
    """Text is left out where another Pillow may draw it otherwise."""
    with Image.open(RECORD / "picture.png") as picture:
        kept = np.asarray(picture.convert("RGB"))
    made = np.asarray(first_picture.draw(first_picture.read(RECORD)))
    assert made.shape == kept.shape == (*first_picture.SIZE[::-1], 3)
    hint = "run: python -m benchmarks.first_picture results/quickstart/seed0"
    top, left = first_picture.TOP, first_picture.LEFT
    across, down = 8 * first_picture.STEP, 10 * first_picture.STEP
    assert (made[top : top + down, left : left + across] == kept[top : top + down, left : left + across]).all(), hint
    share = (made != kept).any(-1).mean()
    assert share == 0 or (PIL.__version__ != "13.0.0" and share < 0.05), hint
    assert (RECORD / "picture.png").stat().st_size < 150_000


def test_the_record_has_eight_images_of_each_class_with_their_confidence():
    record = first_picture.read(RECORD)
    assert record.labels.tolist() == np.repeat(np.arange(10), 8).tolist()
    assert (record.images.shape, record.confidence.shape) == ((80, 16, 16, 1), (80,))
    assert record.summary["student_accuracy_last"] == 98.39034205231388


@pytest.mark.optimized
def test_the_confidence_of_the_record_is_the_digits_teachers():
    record = first_picture.read(RECORD)
    parts, programs = one_run.build(tiny_config(teacher__checkpoint="digits"))
    found = programs.confidence(parts.teacher_vars, record.images, record.labels)
    np.testing.assert_allclose(found, record.confidence, atol=1e-3)


def test_images_of_another_run_are_refused(tmp_path):
    shutil.copytree(RECORD, tmp_path / "run")
    other = json.loads((RECORD / "summary.json").read_text()) | {"student_accuracy_last": 90.0}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"expected the run of .*student_accuracy_last 98.39.*found 90.0"):
        first_picture.copy_images(tmp_path / "run", RECORD)
