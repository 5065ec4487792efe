"""Data as people have them: usual names of splits, 16 bits, numbered classes, leftovers of other programs."""

import logging
from pathlib import Path

import numpy as np
import pytest
import runs  # noqa: F401 - makes configs importable
from PIL import Image

from fastdfkd_jax import data
from fastdfkd_jax.configs import quickstart
from fastdfkd_jax.data import listing, pictures, unlabelled
from fastdfkd_jax.data.dataset import kind_of
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import initial_images
from fastdfkd_jax.training.build import assemble


def write(path: Path, value: int = 0, **options) -> None:
    """Writes a picture of one grey level in three channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(path, **options)


def refused(match: str, *arguments, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load(*arguments, **options)
    assert "\n" not in str(caught.value)


def levels(dataset: data.Dataset) -> list[int]:
    """The grey level of each image."""
    return dataset.images[:, 0, 0, 0].tolist()


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# --- splits


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("train", "train"), ("Training_Set", "train"), ("TRAIN", "train"), ("train2017", "train")),
        *(("valid", "val"), ("Validation", "val"), ("val_images", "val"), ("dev-set", "val")),
        *(("testset", "test"), ("Test Data", "test"), ("testing", "test")),
        *(("images", None), ("bus", None), ("invalid", None), ("contest", None), ("set", None), ("all", None)),
    ],
)
def test_usual_names_of_splits(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("train", "test"), [("training_set", "test_set"), ("Train", "Test"), ("train", "valid"), ("Training", "Validation")]
)
def test_folders_of_splits_by_other_names_are_no_classes(tmp_path, train, test):
    for level, split in enumerate((train, test)):
        for number, name in enumerate(("cat", "dog")):
            write(tmp_path / split / name / "0.png", 10 * level + number)
    asked = "val" if "al" in test else "test"
    read = data.load("folder:.", asked, data_dir=tmp_path)
    assert (levels(read), read.class_names) == ([10, 11], ("cat", "dog"))
    assert levels(data.load("folder:.", "train", data_dir=tmp_path)) == [0, 1]
    assert levels(data.load("folder:.", test, data_dir=tmp_path)) == [10, 11]
    other = "test" if asked == "val" else "val"
    refused(f"has no split '{other}': expected one of", "folder:.", other, data_dir=tmp_path)


def test_all_splits_are_numbered_by_the_training_split_whatever_its_name(tmp_path):
    for name in ("cat", "dog", "eel"):
        write(tmp_path / "Training" / name / "0.png")
    write(tmp_path / "Test" / "eel" / "0.png")
    read = data.load("folder:.", "test", data_dir=tmp_path)
    assert (read.labels.tolist(), read.class_names) == ([2], ("cat", "dog", "eel"))


def test_a_class_that_is_called_like_a_split_is_a_class(tmp_path):
    for name in ("bus", "training", "valid"):
        write(tmp_path / "one" / name / "0.png")
    for name in ("invalid", "valid"):
        write(tmp_path / "other" / name / "0.png")
    refused("expected one of training, valid", f"folder:{tmp_path / 'one'}")  # two of them are splits
    assert data.load(f"folder:{tmp_path / 'other'}").class_names == ("invalid", "valid")


# --- 16 bits, floats


def sixteen_bits(path: Path) -> np.ndarray:
    """Writes a PNG of 16 bits that holds each of 256 levels; returns them as 8 bits."""
    wanted = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(wanted.astype(np.uint16) * 257).save(path)
    return wanted


def test_grey_pictures_of_16_bits_are_scaled(tmp_path):
    wanted = sixteen_bits(tmp_path / "a" / "0.png")
    read = data.load("folder:.", data_dir=tmp_path)
    np.testing.assert_array_equal(read.images[0, ..., 0], wanted)
    np.testing.assert_array_equal(initial_images.read(tmp_path, (16, 16, 3)).images[0], np.dstack([wanted] * 3))
    sixteen_bits(tmp_path / "images" / "val" / "0.png")
    Image.fromarray(wanted % 3).save(tmp_path / "images" / "mask.png")
    (tmp_path / "masks" / "val").mkdir(parents=True)
    (tmp_path / "images" / "mask.png").rename(tmp_path / "masks" / "val" / "0.png")
    np.testing.assert_array_equal(data.load("pairs:.", "val", data_dir=tmp_path).images[0, ..., 0], wanted)


def test_crops_of_a_picture_of_16_bits(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((16, 16), 100 * 257, np.uint16)).save(tmp_path / "a" / "0.png")
    crops = unlabelled.stream("folder:a", "train", tmp_path, image_size=4, channels=3, crops=2, limit=0)
    np.testing.assert_array_equal(np.concatenate(list(crops)), np.full((2, 4, 4, 3), 100))


@pytest.mark.parametrize("largest", [1.0, 255.0])
def test_pictures_of_floats_are_scaled_by_their_range(tmp_path, largest):
    wanted = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(wanted.astype(np.float32) * np.float32(largest / 255)).save(tmp_path / "0.tiff")
    np.testing.assert_array_equal(pictures.decode(tmp_path / "0.tiff"), wanted)


@pytest.mark.parametrize("value", [np.float32(300), np.float32(-1), np.float32("nan"), np.int32(70_000)])
def test_pictures_of_no_known_range_are_refused(tmp_path, value):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((8, 8), value)).save(tmp_path / "a" / "0.tiff")
    refused("expected levels from 0 to 255, .* save it with 8 bits", "folder:.", data_dir=tmp_path)


def test_grey_images_are_repeated_for_a_network_that_takes_colours():
    grey = data.load("digits", "test[:3]")
    coloured = data.in_channels(grey, 3)
    np.testing.assert_array_equal(coloured.images, np.concatenate([grey.images] * 3, axis=-1))
    assert data.in_channels(grey, 1) is grey
    assert data.in_channels(coloured, 1) is coloured


# --- classes that are numbers, or a part of a network's


def test_class_folders_that_are_numbers_are_sorted_by_value_and_said_once(tmp_path, caplog):
    for number in (1, 2, 10):
        write(tmp_path / str(number) / "0.png", number)
    with caplog.at_level(logging.WARNING):
        read = data.load("folder:.", data_dir=tmp_path)
        data.load("folder:.", data_dir=tmp_path)
    assert read.class_names == ("1", "2", "10")
    assert levels(read) == [1, 2, 10]
    told = [text for text in messages(caplog) if "are numbers" in text]
    assert len(told) == 1
    assert "sorted by value (1, 2, 10)" in told[0]
    assert "as text (1, 10, 2)" in told[0]


def test_numbers_of_one_length_or_with_names_are_sorted_as_text(caplog):
    with caplog.at_level(logging.WARNING):
        assert listing.in_order(["002", "010", "001"], "x") == ["001", "002", "010"]
        assert listing.in_order(["10", "2", "b"], "x") == ["10", "2", "b"]
        assert listing.in_order([], "x") == []
    assert not messages(caplog)


def test_class_names_number_a_part_of_a_network_s_classes(tmp_path):
    for name in ("n02", "n05"):
        write(tmp_path / "val" / name / "0.png")
    file = tmp_path / "names.txt"
    file.write_text("n01\nn05\nn03\nn02\n")
    for names in (file, str(file), ["n01", "n05", "n03", "n02"]):
        read = data.load("folder:.", "val", data_dir=tmp_path, class_names=names)
        assert read.labels.tolist() == [3, 1]
        assert read.class_names == ("n01", "n05", "n03", "n02")
    options = {"data_dir": tmp_path, "class_names": file}
    file.write_text("n01\nn05\nn03\n")
    refused(r"among the 3 class names, .* found 1 others \(n02\)", "folder:.", "val", **options)
    file.write_text("n02\nn05\nn02\n")
    refused("every class name once, found 'n02' twice", "folder:.", "val", **options)
    file.write_text("n02\n\nn05\n")
    refused("found an empty line", "folder:.", "val", **options)
    file.unlink()
    refused("cannot read the class names", "folder:.", "val", **options)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1])
    refused("has no class names to look up", "npz:a.npz", data_dir=tmp_path, class_names=["a", "b"])


def test_a_run_takes_class_names_from_its_config(tmp_path):
    test = data.load("digits", "test")
    for digit in (3, 7):
        row = int(np.flatnonzero(test.labels == digit)[0])
        (tmp_path / f"d{digit}").mkdir()
        Image.fromarray(test.images[row, ..., 0]).save(tmp_path / f"d{digit}" / "0.png")
    (tmp_path / "names.txt").write_text("\n".join(f"d{digit}" for digit in range(10)))
    config = quickstart.get_config()
    config.data.source, config.data.class_names = f"folder:{tmp_path}", str(tmp_path / "names.txt")
    read = assemble(config).test
    assert read is not None
    assert read.labels.tolist() == [3, 7]


# --- leftovers and other files


def test_leftovers_and_other_files_are_skipped_and_counted(tmp_path, caplog):
    for name in ("cat", "dog"):
        write(tmp_path / name / "0.png", 5)
    junk = ("cat/._0.png", "__MACOSX/cat/0.png", "cat/.ipynb_checkpoints/0.png", "cat/Thumbs.db", "cat/.DS_Store")
    for path in (*junk, ".DS_Store", "cat/notes.txt", "cat/a.db", "dog/b.db"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        read = data.load("folder:.", data_dir=tmp_path)
    assert (len(read.labels), read.class_names) == (2, ("cat", "dog"))
    told = messages(caplog)
    assert len(told) == 1
    assert "skipped 3 files that are not pictures: .db, .txt" in told[0]
    names = ".DS_Store, ._0.png, .ipynb_checkpoints and 2 more"
    assert f"6 hidden or left by other programs: {names}" in told[0]


def test_an_empty_class_and_pictures_outside_of_classes_are_said(tmp_path, caplog):
    write(tmp_path / "cat" / "0.png")
    write(tmp_path / "beside.png")
    (tmp_path / "logs").mkdir()
    with caplog.at_level(logging.WARNING):
        assert data.load("folder:.", data_dir=tmp_path).class_names == ("cat", "logs")
    assert any("1 pictures outside the class folders" in text for text in messages(caplog))
    assert any("1 of the 2 class folders of" in text and text.endswith("logs") for text in messages(caplog))
    (tmp_path / "cat" / "0.png").unlink()
    refused("found 1 images outside such folders: make these folders", "folder:.", data_dir=tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jpe", "tiff", "tif", "webp", "bmp", "PNG", "ppm", "jp2", "avif"])
def test_pictures_of_every_suffix_are_read_at_every_door(tmp_path, suffix):
    try:
        write(tmp_path / "a" / f"0.{suffix}", 100)
    except (OSError, KeyError):
        pytest.skip("this Pillow cannot write it")
    assert abs(levels(data.load("folder:.", data_dir=tmp_path))[0] - 100) <= 2  # some of them lose a little
    assert len(initial_images.find(tmp_path).pictures) == 1
    crops = unlabelled.stream("folder:a", "train", tmp_path, image_size=4, channels=1, crops=1, limit=0)
    assert abs(int(next(crops)[0, 0, 0, 0]) - 100) <= 2


def test_initial_images_skip_leftovers(tmp_path, caplog):
    write(tmp_path / "0.png", 9)
    (tmp_path / "._0.png").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(initial_images.read(tmp_path, (8, 8, 1)).images, np.full((1, 8, 8, 1), 9))
    assert "skipped 1 hidden" in messages(caplog)[0]


# --- npz


IMAGES = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
KEYS = [
    (("test_images", "test_labels"), "test"),
    (("val_images", "val_labels"), "val"),
    (("val_images", "val_labels"), "validation"),
    (("X_test", "y_test"), "test"),
    (("X", "y"), "test"),
    (("image", "label"), "test"),
    (("data", "labels"), "all"),
]


@pytest.mark.parametrize(("keys", "split"), KEYS)
def test_usual_names_of_arrays(tmp_path, keys, split):
    others = {"train_images": IMAGES[:1], "train_labels": np.zeros((1, 1), np.uint8)}
    np.savez(tmp_path / "a.npz", **{keys[0]: IMAGES, keys[1]: np.array([[2], [0], [1]])}, **others)
    read = data.load("npz:a.npz", split, data_dir=tmp_path)
    np.testing.assert_array_equal(read.images, IMAGES)
    np.testing.assert_array_equal(read.labels, [2, 0, 1])


def test_labels_that_are_names(tmp_path):
    for labels in (np.array(["dog", "cat", "dog"]), np.array([b"dog", b"cat", b"dog"])):
        np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
        read = data.load("npz:a.npz", data_dir=tmp_path)
        assert (read.labels.tolist(), read.class_names) == ([1, 0, 1], ("cat", "dog"))
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array(["10", "9", "10"]))
    assert data.load("npz:a.npz", data_dir=tmp_path).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.zeros(3, [("a", int)]), "expected integer labels from 0, or names"),
        (np.zeros(3, bool), "found bool"),
        (np.array([b"\xff", b"a", b"b"]), "UTF-8"),
        (np.arange(3) + 2**32, "from 0 to 2147483647 in .*, found int64 from 4294967296"),
        (np.arange(3, dtype=np.uint64) + np.uint64(2**63), "found uint64 from 9223372036854775808"),
        (np.array([{}, {}, {}], dtype=object), "holds Python objects"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path, labels, match):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
    refused(match, "npz:a.npz", data_dir=tmp_path)


def test_arrays_that_are_not_asked_for_are_not_read(tmp_path):
    names = np.array(["a", "b"], dtype=object)
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(3), class_names=names)
    assert len(data.load("npz:a.npz", data_dir=tmp_path).labels) == 3


# --- TFDS


@pytest.mark.parametrize("name", ["cifar10:3.0.2", "cifar10/3.0.2", "cifar10:3.*.*", "cifar10"])
@pytest.mark.parametrize("place", ["", "cifar10", "cifar10/3.0.2"])
def test_versions_and_folders_of_tfds(shared_data, name, place):
    wanted = data.load("tfds:cifar10", "test[:3]", data_dir=shared_data / "tfds")
    read = data.load(f"tfds:{name}", "test[:3]", data_dir=shared_data / "tfds" / place)
    np.testing.assert_array_equal(read.images, wanted.images)
    assert read.class_names == wanted.class_names


def test_the_current_folder_may_be_the_data_set_s(shared_data, monkeypatch):
    monkeypatch.chdir(shared_data / "tfds" / "cifar10")
    assert len(data.load("tfds:cifar10", "test[:3]", data_dir=".").labels) == 3


def test_versions_of_tfds_that_are_not_there(shared_data):
    for place in ("", "cifar10", "cifar10/3.0.2"):
        root = shared_data / "tfds" / place
        refused("expected version 9.0.0 of cifar10 .*, found 3.0.2: give", "tfds:cifar10:9.0.0", data_dir=root)
    refused("expected a version such as 3.0.2", "tfds:cifar10:newest", data_dir=shared_data / "tfds")
