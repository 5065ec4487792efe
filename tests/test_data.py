"""Every source reads what was written, and every mistake is one line."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures import bordered, write_jpegs
from PIL import Image

from fastdfkd_jax import data
from fastdfkd_jax.data import digits
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec


def random_images(count: int, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


def expect_error(match: str, *arguments, **keywords) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# --- digits


def test_digits_are_a_fixed_partition_of_real_scans():
    train, test, both = (data.load("digits", split) for split in ("train", "test", "all"))
    assert train.images.shape == (1300, 16, 16, 1)
    assert test.images.shape == (497, 16, 16, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), both.images)
    assert np.bincount(test.labels, minlength=10).min() >= 40
    assert both.class_names == tuple("0123456789")


def test_digits_are_enlarged_bilinearly():
    # One row 0, 16 of constant columns: centres at quarters give 0, 64, 191, 255 (of 255 / 16 per grey level).
    image = np.zeros((1, 2, 2))
    image[0, :, 1] = 16
    np.testing.assert_array_equal(digits.enlarge(image)[0, :, :, 0], [[0, 64, 191, 255]] * 4)


# --- pictures of any size


def test_npz_of_jpegs_and_their_centres(tmp_path):
    write_jpegs(tmp_path / "a.npz", bordered(64, 64, 8), bordered(64, 64, 16))
    whole = data.load("npz:a.npz", data_dir=tmp_path)
    assert whole.images.shape == (2, 64, 64, 3)
    assert abs(whole.images[0].astype(int) - bordered(64, 64, 8)).max() < 30
    centre = data.load("npz:a.npz", data_dir=tmp_path, image_size=48, crop=0.75)
    np.testing.assert_array_equal(centre.images, whole.images[:, 8:56, 8:56])  # 64 pixels need no resizing
    np.testing.assert_array_equal(centre.labels, [0, 1])


def test_the_centre_square_of_pictures_of_any_size(tmp_path):
    write_jpegs(tmp_path / "a.npz", bordered(128, 256, 32), bordered(64, 64, 16))
    expect_error("2 sizes", "npz:a.npz", data_dir=tmp_path)
    images = data.load("npz:a.npz", data_dir=tmp_path, image_size=24, crop=0.75).images
    assert images.shape == (2, 24, 24, 3)
    # Both come to 32 pixels, of which the middle 24 stay: 4 black ones, then white; the wide one is white to its sides.
    assert images[1, 12, :3].max() < 60
    assert images[:, 12, 12].min() > 200
    assert images[0, 12, :3].min() > 200
    assert images[0, :3, 12].max() < 60


def test_a_folder_is_cut_alike(tmp_path):
    write_png(tmp_path / "a" / "0.png", bordered(64, 64, 8))
    kept = data.load("folder:.", data_dir=tmp_path, image_size=48, crop=0.75).images
    np.testing.assert_array_equal(kept[0], bordered(64, 64, 8)[8:56, 8:56])
    whole = data.load("folder:.", data_dir=tmp_path, image_size=64).images
    np.testing.assert_array_equal(whole[0], bordered(64, 64, 8))


def test_mistakes_with_pictures(tmp_path):
    write_jpegs(tmp_path / "a.npz", bordered(64, 64, 8))
    expect_error("crop must be from 0 to 1", "npz:a.npz", data_dir=tmp_path, image_size=8, crop=1.5)
    expect_error("crop must be .*image size", "npz:a.npz", data_dir=tmp_path, crop=0.5)
    np.savez(tmp_path / "b.npz", jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 9]), labels=np.array([0]))
    expect_error("cannot read a picture of .*b.npz", "npz:b.npz", data_dir=tmp_path)


# --- splits


def test_splits_take_examples_and_percent():
    whole = data.load("digits", "test")
    np.testing.assert_array_equal(data.load("digits", "test[3:7]").images, whole.images[3:7])
    np.testing.assert_array_equal(data.load("digits", "test[-5:]").labels, whole.labels[-5:])
    halves = [data.load("digits", f"test[{part}]").labels for part in (":50%", "50%:")]
    np.testing.assert_array_equal(np.concatenate(halves), whole.labels)


@pytest.mark.parametrize("split", ["test[", "test[1]", "", "test[a:b]", "test+train"])
def test_malformed_splits_are_refused(split):
    expect_error("expected a split such as", "digits", split)


def test_unknown_and_empty_splits_are_refused():
    expect_error("no split 'val'", "digits", "val")
    expect_error("has no examples", "digits", "test[5:5]")


@pytest.mark.parametrize("source", ["", "cifar10", "tfds:", "npz", "folder:", "pickle:mnist", "web:cifar10"])
def test_unknown_sources_are_refused(source):
    expect_error("unknown data source", source)


# --- npz


def test_npz_of_images_and_labels(tmp_path):
    images, labels = random_images(6), np.arange(6)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    dataset = data.load("npz:a.npz", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.class_names is None


def test_npz_of_named_splits_floats_and_grey_images(tmp_path):
    grey, labels = random_images(4, channels=1)[..., 0], np.array([[3], [1], [0], [2]], np.uint8)
    np.savez(tmp_path / "a.npz", x_test=grey / np.float32(255), y_test=labels, x_train=grey[:2], y_train=labels[:2])
    test = data.load(f"npz:{tmp_path / 'a.npz'}", "test")
    np.testing.assert_array_equal(test.images, grey[..., None])
    np.testing.assert_array_equal(test.labels, labels[:, 0])
    assert len(data.load(f"npz:{tmp_path / 'a.npz'}", "train").labels) == 2


NPZ_MISTAKES = [
    ({"pictures": random_images(2)}, "expected x_test and y_test, or images and labels"),
    ({"images": random_images(2).transpose(0, 3, 1, 2), "labels": np.arange(2)}, r"expected images \[N, H, W"),
    ({"images": random_images(2), "labels": np.arange(3)}, "labels"),
    ({"images": random_images(0), "labels": np.arange(0)}, "found none"),
    ({"images": random_images(2), "labels": np.array([0.0, 1.0])}, "integer labels"),
    ({"images": random_images(2), "labels": np.array([0, -1])}, "integer labels"),
    ({"images": random_images(2) / 1.0, "labels": np.arange(2)}, r"floats in \[0, 1\]"),
    ({"images": np.full((1, 8, 8, 3), np.nan), "labels": np.arange(1)}, r"floats in \[0, 1\]"),
    ({"images": np.array([{}]), "labels": np.arange(1)}, "damaged or of another kind"),
]


@pytest.mark.parametrize(("content", "match"), NPZ_MISTAKES)
def test_npz_mistakes(tmp_path, content, match):
    np.savez(tmp_path / "a.npz", **content)
    expect_error(match, f"npz:{tmp_path / 'a.npz'}")


def test_npz_that_is_missing_damaged_or_no_archive(tmp_path):
    path = tmp_path / "a.npz"
    expect_error("found none", f"npz:{path}")
    path.write_bytes(b"")
    expect_error("damaged", f"npz:{path}")
    np.savez(path, images=random_images(2), labels=np.arange(2))
    path.write_bytes(path.read_bytes()[:-40])
    expect_error("damaged", f"npz:{path}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"not an array")
        archive.writestr("labels.npy", b"not an array")
    expect_error("a member is not an array", f"npz:{path}")
    np.save(tmp_path / "b.npy", np.arange(3))
    expect_error("single array", f"npz:{tmp_path / 'b.npy'}")
    np.savez(path, images=random_images(2), labels=np.arange(2))
    expect_error("no split 'tset'", f"npz:{path}", "tset")


# --- folders


def test_folder_by_class_numbers_the_sorted_names(tmp_path):
    images = random_images(4, 64)
    for split in ("train", "val"):
        for image, name in zip(images, ("b/1", "b/0", "a/x", "c/images/deep"), strict=True):
            write_png(tmp_path / split / f"{name}.png", image)
    shutil.rmtree(tmp_path / "val" / "a")  # a split that lacks a class keeps the numbers of train
    train, val = data.load(f"folder:{tmp_path}", "train"), data.load(f"folder:{tmp_path}", "val")
    assert train.class_names == val.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(train.labels, [0, 1, 1, 2])
    np.testing.assert_array_equal(train.images, images[[2, 1, 0, 3]])
    np.testing.assert_array_equal(val.labels, [1, 1, 2])
    expect_error("no split 'test': expected one of train, val", f"folder:{tmp_path}")
    write_png(tmp_path / "val" / "z" / "0.png", images[0])
    expect_error("found also 'z'", f"folder:{tmp_path}", "val")


def test_a_class_without_images_keeps_its_number(tmp_path):
    (tmp_path / "a").mkdir()
    write_png(tmp_path / "b" / "0.png", random_images(1, 8)[0])
    read = data.load(f"folder:{tmp_path}")
    assert read.class_names == ("a", "b")
    np.testing.assert_array_equal(read.labels, [1])


def test_folder_without_splits_grey_and_mixed_colour(tmp_path):
    images = random_images(2, 8, 1)[..., 0]
    write_png(tmp_path / "x" / "0.png", images[0])
    write_png(tmp_path / "y" / "0.png", images[1])
    np.testing.assert_array_equal(data.load(f"folder:{tmp_path}").images, images[..., None])
    write_png(tmp_path / "y" / "1.png", random_images(1, 8)[0])
    mixed = data.load(f"folder:{tmp_path}").images
    assert mixed.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(mixed[0], np.repeat(images[0][..., None], 3, -1))


def test_folder_of_mixed_sizes_needs_an_image_size(tmp_path):
    constant = np.full((20, 30, 3), 77, np.uint8)
    write_png(tmp_path / "x" / "0.png", constant)
    write_png(tmp_path / "x" / "1.png", random_images(1, 16)[0])
    expect_error("one size .* give a crop", f"folder:{tmp_path}")
    images = data.load(f"folder:{tmp_path}", image_size=16).images
    assert images.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(images[0], 77)
    np.testing.assert_array_equal(images[1], random_images(1, 16)[0])


def test_tiny_imagenet_layout(tmp_path):
    images = random_images(3, 64)
    for i, name in enumerate(("n02", "n01", "n02")):
        write_png(tmp_path / "train" / name / "images" / f"{name}_{i}.png", images[i])
        write_png(tmp_path / "val" / "images" / f"val_{i}.png", images[i])
    lines = [f"val_{i}.png\t{name}\t0\t0\t9\t9\n" for i, name in enumerate(("n02", "n01", "n02"))]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    write_png(tmp_path / "test" / "images" / "test_0.png", images[0])
    val = data.load(f"folder:{tmp_path}", "val")
    np.testing.assert_array_equal(val.labels, [1, 0, 1])
    np.testing.assert_array_equal(val.images, images)
    assert val.class_names == ("n01", "n02")
    np.testing.assert_array_equal(data.load(f"folder:{tmp_path}", "train").labels, [0, 1, 1])
    expect_error("have no labels", f"folder:{tmp_path}", "test")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.png n02\n")
    expect_error("expected lines of", f"folder:{tmp_path}", "val")


def test_folder_that_is_missing_empty_or_damaged(tmp_path):
    expect_error("found no folder", f"folder:{tmp_path / 'none'}")
    expect_error("found none", f"folder:{tmp_path}")
    expect_error("no split 'tset'", f"folder:{tmp_path}", "tset")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0.png").write_bytes(b"\x89PNG but no more")
    expect_error("cannot read the image", f"folder:{tmp_path}")
    buffer = io.BytesIO()
    Image.fromarray(random_images(1)[0]).save(buffer, "PNG")
    (tmp_path / "x" / "0.png").write_bytes(buffer.getvalue()[:1000])
    expect_error("cannot read the image", f"folder:{tmp_path}")


# --- fit with a network


def test_require_names_what_does_not_fit():
    dataset = data.load("digits", "test[:20]")
    fitting = NetworkSpec("wrn16_1", 10, 16, 1)
    assert data.require(dataset, fitting) is dataset
    for spec, match in [
        (NetworkSpec("wrn16_1", 10), "expects images of 32x32x3, the data set has 16x16x1"),
        (NetworkSpec("wrn16_1", 100, 16, 1), "has 100 classes, the data set 10"),
        (NetworkSpec("wrn16_1", 5, 16, 1), "has 5 classes, the data set 10"),
    ]:
        with pytest.raises(UserError, match=match):
            data.require(dataset, spec)
    unnamed = dataset._replace(class_names=None, labels=np.full_like(dataset.labels, 3))
    data.require(unnamed, fitting)
    with pytest.raises(UserError, match="has 3 classes, the data set 4"):
        data.require(unnamed, NetworkSpec("wrn16_1", 3, 16, 1))
