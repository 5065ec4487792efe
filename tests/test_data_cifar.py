"""CIFAR as torchvision's pickles and as prepared TFDS: what was written is read, every mistake is one line."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdfkd_jax import data
from fastdfkd_jax.errors import UserError


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def expect_error(match: str, *arguments, **keywords) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load(*arguments, **keywords)
    assert "\n" not in str(caught.value)


# --- CIFAR pickles


def write_cifar10(root: Path, *, classes: int = 10) -> np.ndarray:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = random_images(12)
    planes = images.transpose(0, 3, 1, 2).reshape(12, 3072)
    for i, file in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {b"data": planes[2 * i : 2 * i + 2], b"labels": [i % classes, (i + 1) % classes]}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class{i}".encode() for i in range(classes)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return images


def test_cifar10_pickles(tmp_path):
    images = write_cifar10(tmp_path)
    train, test = (data.load("pickle:cifar10", split, data_dir=tmp_path) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, images[:10])
    np.testing.assert_array_equal(train.labels, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
    np.testing.assert_array_equal(test.images, images[10:])
    assert test.class_names == tuple(f"class{i}" for i in range(10))
    inside = data.load("pickle:cifar10", "train[2:4]", data_dir=tmp_path / "cifar-10-batches-py")
    np.testing.assert_array_equal(inside.images, images[2:4])


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar100_pickles(tmp_path, protocol):
    images, folder = random_images(3), tmp_path / "cifar-100-python"
    folder.mkdir()
    planes = images.transpose(0, 3, 1, 2).reshape(3, 3072)
    content = {"data": planes, "fine_labels": [99, 0, 50], "coarse_labels": [0, 0, 0]}
    (folder / "test").write_bytes(pickle.dumps(content, protocol))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}, protocol))
    dataset = data.load("pickle:cifar100", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, [99, 0, 50])
    expect_error("found none: unpack", "pickle:cifar100", "train", data_dir=tmp_path)


def test_a_pickle_as_python_2_wrote_it(tmp_path):
    # The publisher's files: Python 2 byte strings (opcodes U and T) and NumPy's module names of the time.
    pixels = np.arange(2 * 3072).astype(np.uint8)
    by_hand = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + (2 * 3072).to_bytes(4, "little")
        + pixels.tobytes()
        + b"tbU\x06labels](K\x07K\x01eu."
    )
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(by_hand)
    dataset = data.load("pickle:cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.images, pixels.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(dataset.labels, [7, 1])


class _Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_that_asks_for_more_than_arrays_is_refused_unrun(tmp_path):
    write_cifar10(tmp_path)
    evil = {b"data": _Malicious(tmp_path / "ran"), b"labels": []}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(evil))
    expect_error("refused to unpickle .* asks for", "pickle:cifar10", data_dir=tmp_path)
    code = b"c__builtin__\neval\n(V1\ntR."
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(code)
    expect_error("asks for builtins.eval", "pickle:cifar10", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickles_that_are_missing_damaged_or_another_data_set(tmp_path):
    expect_error("found no such folder: give --data-dir", "pickle:cifar10", data_dir=tmp_path)
    write_cifar10(tmp_path)
    expect_error("no split 'val'", "pickle:cifar10", "val", data_dir=tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = batch.read_bytes()
    for damaged in (b"", whole[:1000], b"\xff" * 50):
        batch.write_bytes(damaged)
        expect_error("cannot unpickle", "pickle:cifar10", data_dir=tmp_path)
    for content, match in [
        ([1, 2], "expected a dict"),
        ({"x": 1}, "expected data and labels"),
        ({"data": np.zeros((2, 99), np.uint8), "labels": [0, 1]}, r"expected uint8\[2, 3072\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "it is not cifar10"),
    ]:
        batch.write_bytes(pickle.dumps(content))
        expect_error(match, "pickle:cifar10", data_dir=tmp_path)
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    write_cifar10(tmp_path, classes=7)
    expect_error("expected 10 classes", "pickle:cifar10", data_dir=tmp_path)


# --- TFDS


@pytest.fixture
def prepared_copy(shared_data, tmp_path) -> Path:
    """A data directory with CIFAR-10's test split alone, to be damaged."""
    target = tmp_path / "cifar10" / "3.0.2"
    target.mkdir(parents=True)
    for path in (shared_data / "tfds" / "cifar10" / "3.0.2").iterdir():
        if "train" not in path.name:
            shutil.copy(path, target)
    return target


def test_tfds_reads_fixed_sets_in_the_order_of_their_ids(shared_data):
    root = shared_data / "tfds"
    part, again = (data.load("tfds:cifar10", "test[:40]", data_dir=root) for _ in range(2))
    assert part.images.shape == (40, 32, 32, 3)
    assert part.images.dtype == np.uint8
    assert part.class_names is not None
    assert part.class_names[3] == "cat"
    np.testing.assert_array_equal(part.images, again.images)
    # In file order the set is another sequence of the same examples.
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(root / "cifar10" / "3.0.2")
    source = builder.as_data_source("test[:40]")
    records = sorted((source[i] for i in range(40)), key=lambda record: record["id"])
    np.testing.assert_array_equal(part.images, np.stack([record["image"] for record in records]))
    np.testing.assert_array_equal(part.labels, [record["label"] for record in records])
    both = data.load("tfds:cifar10", "train[:10]+test[:5]", data_dir=root)
    assert len(both.labels) == 15


def test_tfds_images_are_cut_where_asked_for(shared_data):
    whole = data.load("tfds:cifar10", "test[:4]", data_dir=shared_data / "tfds")
    centre = data.load("tfds:cifar10", "test[:4]", data_dir=shared_data / "tfds", image_size=24, crop=0.75)
    np.testing.assert_array_equal(centre.images, whole.images[:, 4:28, 4:28])


def test_tfds_needs_no_tensorflow(shared_data):
    code = (
        "import sys; from fastdfkd_jax import data;"
        f"data.load('tfds:cifar10', 'test[:5]', data_dir={str(shared_data / 'tfds')!r});"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("split", ["val", "test[", "test[:20000]", "test[:0]"])
def test_tfds_splits_that_are_not_there(shared_data, split):
    expect_error(r"train \(50000\), test \(10000\)", "tfds:cifar10", split, data_dir=shared_data / "tfds")


def test_tfds_that_is_missing(tmp_path):
    expect_error("found no such folder: give --data-dir", "tfds:cifar10", data_dir=tmp_path / "none")
    expect_error("found nothing: give --data-dir", "tfds:cifar10", data_dir=tmp_path)
    (tmp_path / "mnist").mkdir()
    expect_error("found mnist: give --data-dir", "tfds:cifar10", data_dir=tmp_path)


def _set_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_tfds_corrupt_records(prepared_copy):
    root, shard = prepared_copy.parent.parent, prepared_copy / "cifar10-test.array_record-00000-of-00001"
    whole = shard.read_bytes()
    spoiled = bytearray(whole)
    spoiled[1000:1100] = b"x" * 100
    for content in (bytes(spoiled), whole[: len(whole) // 2], b""):
        shard.write_bytes(content)
        expect_error("corrupt or missing record", "tfds:cifar10", data_dir=root)
    shard.unlink()
    expect_error("corrupt or missing record", "tfds:cifar10", data_dir=root)


def test_tfds_damaged_description_or_other_format(prepared_copy):
    root, info = prepared_copy.parent.parent, prepared_copy / "dataset_info.json"
    whole = info.read_text()
    info.write_text(whole[:100])
    expect_error("cannot read the description", "tfds:cifar10", data_dir=root)
    info.write_text(whole)
    _set_json(info, fileFormat="tfrecord")
    expect_error("expected .* in array_record format, found tfrecord", "tfds:cifar10", data_dir=root)


def test_tfds_another_data_set_under_the_name(prepared_copy):
    root, labels = prepared_copy.parent.parent, prepared_copy / "label.labels.txt"
    features = prepared_copy / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "11"'))
    labels.write_text(labels.read_text().strip() + "\nzebra\n")
    expect_error("expected tfds:cifar10 to have 10 classes", "tfds:cifar10", "test[:3]", data_dir=root)
