"""No data file executes, imports, crashes or fills the memory: it is read within its limits or refused in one line."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from malicious import Runs
from pictures import write_jpegs
from PIL import Image

from fastdfkd_jax import data
from fastdfkd_jax.data import plain_pickle, unlabelled
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import initial_images
from fastdfkd_jax.storage import npz


def refused(match: str, source: str, split: str = "test", **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load(source, split, **options)
    message = str(caught.value).replace(str(options.get("data_dir", "")), "")
    assert "\n" not in message
    assert len(message) < 300


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A PNG of a few kilobytes that claims so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- nothing is executed


def npz_of_objects(root: Path, marker: Path) -> str:
    np.savez(root / "a.npz", images=np.array([Runs(marker)], dtype=object), labels=np.arange(1))
    return "npz:a.npz"


def npz_of_a_pickle(root: Path, marker: Path) -> str:
    with zipfile.ZipFile(root / "a.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(Runs(marker)))
        archive.writestr("labels.npy", pickle.dumps(Runs(marker)))
    return "npz:a.npz"


def pickle_as_npz(root: Path, marker: Path) -> str:
    (root / "a.npz").write_bytes(pickle.dumps(Runs(marker)))
    return "npz:a.npz"


def cifar_that_calls(root: Path, marker: Path) -> str:
    write(root / "cifar-10-batches-py" / "test_batch", pickle.dumps({"data": Runs(marker), "labels": [0]}))
    return "pickle:cifar10"


def cifar_that_calls_by_old_opcodes(root: Path, marker: Path) -> str:
    code = b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."
    write(root / "cifar-10-batches-py" / "test_batch", code)
    return "pickle:cifar10"


def postscript(root: Path, marker: Path) -> str:
    script = b"%%!PS-Adobe-3.0 EPSF-3.0\n%%%%BoundingBox: 0 0 8 8\n(%s) (w) file closefile\nshowpage\n"
    write(root / "a" / "1.png", script % str(marker).encode())
    return "folder:."


def postscript_as_a_mask(root: Path, marker: Path) -> str:
    postscript(root, marker)
    for folder in ("images", "masks"):
        write(root / folder / "test" / "1.png", (root / "a" / "1.png").read_bytes())
    return "pairs:."


PAYLOADS = [
    npz_of_objects,
    npz_of_a_pickle,
    pickle_as_npz,
    cifar_that_calls,
    cifar_that_calls_by_old_opcodes,
    postscript,
    postscript_as_a_mask,
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_refused_unrun(tmp_path, payload):
    marker = tmp_path / "ran"
    refused("cannot read|refused to unpickle", payload(tmp_path, marker), data_dir=tmp_path)
    assert not marker.exists()


FEATURES = {
    "as TFDS writes it": {"pythonClassName": "evil_features.X", "featuresDict": {"features": {}}},
    "as protobuf also reads it": {"python_class_name": "evil_features.X", "featuresDict": {"features": {}}},
    "as older versions wrote it": {"type": "evil_features.X", "content": {}},
    "within another": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": {"pythonClassName": "evil_features.X", "image": {}}}},
    },
}


@pytest.fixture
def importable(tmp_path, monkeypatch) -> Path:
    """A module that leaves a marker where it is imported; the path of the marker."""
    (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "ran"


@pytest.fixture
def prepared(shared_data, tmp_path) -> Path:
    """A folder of CIFAR-10's test split alone, to be damaged."""
    target = tmp_path / "cifar10" / "3.0.2"
    target.mkdir(parents=True)
    for path in (shared_data / "tfds" / "cifar10" / "3.0.2").iterdir():
        if "train" not in path.name:
            shutil.copyfile(path, target / path.name)
    return target


@pytest.mark.parametrize("case", FEATURES)
def test_tfds_imports_no_module_that_a_file_names(prepared, importable, case):
    (prepared / "features.json").write_text(json.dumps(FEATURES[case]))
    root = prepared.parent.parent
    refused("only features of TFDS .* found 'evil_features.X', whose module would", "tfds:cifar10", data_dir=root)
    assert not importable.exists()
    assert "evil_features" not in sys.modules


FEATURES_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
HIDDEN = {
    "in the JSON of a feature": {
        "pythonClassName": FEATURES_DICT,
        "jsonFeature": {"json": json.dumps({"image": {"type": "evil_features.X", "content": {}}})},
    },
    "in the content of an older feature": {
        "type": FEATURES_DICT,
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": json.dumps({"features": {"image": {"pythonClassName": "evil_features.X", "tensor": {}}}}),
    },
}


@pytest.mark.parametrize("case", HIDDEN)
def test_tfds_imports_no_module_that_json_in_a_text_names(prepared, importable, case):
    (prepared / "features.json").write_text(json.dumps(HIDDEN[case]))
    refused("'evil_features.X' is not a feature of TFDS", "tfds:cifar10", data_dir=prepared.parent.parent)
    assert not importable.exists()


def test_tfds_imports_nothing_that_the_description_names(prepared, importable):
    info = prepared / "dataset_info.json"
    content = json.loads(info.read_text()) | {"moduleName": "evil_features", "configName": "evil_features"}
    info.write_text(json.dumps(content))
    read = data.load("tfds:cifar10", "test[:2]", data_dir=prepared.parent.parent)
    assert read.images.shape == (2, 32, 32, 3)
    assert not importable.exists()
    info.write_text(json.dumps(content | {"fileFormat": "evil_features"}))
    refused("cannot read the description", "tfds:cifar10", data_dir=prepared.parent.parent)
    assert not importable.exists()


def test_tfds_descriptions_are_bounded_and_plain_files(prepared):
    root, features = prepared.parent.parent, prepared / "features.json"
    whole = features.read_text()
    features.write_text("[" * 100_000)
    refused("cannot read the description of .* nested too deeply", "tfds:cifar10", data_dir=root)
    features.write_text(whole.replace('"numClasses": "10"', '"numClasses": "100000000000000"'))
    (prepared / "label.labels.txt").unlink()
    refused("classes of tfds:cifar10 would take", "tfds:cifar10", "test[:2]", data_dir=root)
    features.unlink()
    os.mkfifo(features)
    refused("not a regular file", "tfds:cifar10", data_dir=root)


# --- CIFAR's pickles


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FORGED = {
    "an array of objects": Calls(np.ndarray, (1,), np.dtype("O"), b"AAAAAAAA"),
    "a type of objects": np.zeros(1, np.dtype("O")),
    "a type with fields": np.zeros(1, np.dtype([("a", "i4")])),
    "an array of floats": np.zeros(1),
    "bytes of a number": Calls(bytes, 10**12),
    "a class": pickle.Pickler,
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_array_is_refused_and_does_not_crash(tmp_path, case):
    for protocol in (2, 4, 5):
        batch = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": FORGED[case]}, protocol)
        write(tmp_path / "cifar-10-batches-py" / "test_batch", batch)
        refused("refused to unpickle", "pickle:cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_are_read_as_pickle_reads_them(protocol):
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    content = {
        "c": array,
        "fortran": np.asfortranarray(array),
        "part": np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(1, 2, 0),
        "big endian": np.arange(3, dtype=">i4"),
        "scalar": np.int64(-7),
        b"bytes": [b"", b"\xff\x00'\n", "text ü", None, True, False, -1, 2**40, 1.5, (), (1,), (1, 2, 3, 4), {}],
        "twice": [array, array],
        "many": list(range(3000)),
    }
    read = plain_pickle.loads(pickle.dumps(content, protocol))
    assert list(read) == list(content)
    for name in ("c", "fortran", "part", "big endian"):
        np.testing.assert_array_equal(read[name], content[name])
        assert read[name].dtype == content[name].dtype
    np.testing.assert_array_equal(read["twice"][1], array)
    assert read["scalar"] == -7
    assert read[b"bytes"] == content[b"bytes"]
    assert read["many"] == content["many"]


def test_a_pickle_that_holds_itself_or_has_a_wrong_shape(tmp_path):
    loop: list = []
    loop.append(loop)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    write(batch, pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": loop}))
    refused("expected a list of labels from 0", "pickle:cifar10", data_dir=tmp_path)
    write(batch, pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [2**40]}))
    refused("expected a list of labels from 0", "pickle:cifar10", data_dir=tmp_path)
    whole = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1]}, 2)
    batch.write_bytes(whole.replace(b"M\x00\x0c", b"M\xff\x0f"))
    refused("shape does not fit", "pickle:cifar10", data_dir=tmp_path)


# --- limits before allocation


def header(text: str) -> bytes:
    content = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


HEADERS = {
    "of petabytes": header("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000, 4, 4, 1), }"),
    "of more digits than a float": header("{'descr': '|u1', 'fortran_order': False, 'shape': (%s,), }" % ("9" * 400)),
    "of negative sides": header("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -4), }"),
    "of brackets": header("(" * 9000),
    "of minus signs": header("-" * 9000 + "1"),
    "that is cut": header("{'descr'")[:9],
    "of an unknown type": header("{'descr': 'zz', 'fortran_order': False, 'shape': (1,), }"),
    "of an unknown version": b"\x93NUMPY\x09\x00" + bytes(60),
}


@pytest.mark.parametrize("case", HEADERS)
def test_an_array_s_header_that_lies(tmp_path, case):
    path = tmp_path / "000000.npz"
    labels = io.BytesIO()
    np.save(labels, np.zeros(2, np.int32))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("images.npy", HEADERS[case])
            archive.writestr("labels.npy", labels.getvalue())
        refused("cannot read .*.npz as an .npz archive", f"npz:{path}")
        with pytest.raises(UserError, match=r"shard .*000000.npz is damaged .*: restore it"):
            npz.read(path, ["images", "labels"], "shard", "restore it")


def test_bits_that_flip_in_a_compressed_archive(tmp_path):
    path, generator = tmp_path / "a.npz", np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 16, 16, 1), np.uint8) // 32 * 32
    np.savez_compressed(path, images=images, labels=np.arange(8))
    whole = path.read_bytes()
    refusals = 0
    for position in generator.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            read = data.load(f"npz:{path}")
        except UserError:
            refusals += 1
        else:  # the bit was in a name's attributes or in padding
            np.testing.assert_array_equal(read.images, images)
    assert refusals > 150


def test_arrays_that_would_take_too_much_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros((1000, 32, 32, 3), np.uint8), labels=np.zeros(1000, int))
    assert path.stat().st_size < 50_000
    monkeypatch.setenv("FASTDFKD_MAX_GB", "0.001")
    refused("images of .*a.npz would take .* FASTDFKD_MAX_GB", f"npz:{path}")
    with pytest.raises(UserError, match="FASTDFKD_MAX_GB"):
        npz.read(path, ["images"], "shard", "restore it")


def test_many_pictures_are_refused_after_the_first_is_decoded(tmp_path, monkeypatch):
    for number in range(20):
        write(tmp_path / "a" / f"{number}.png", b"never read")
    Image.new("RGB", (100, 100)).save(tmp_path / "a" / "0.png")
    monkeypatch.setenv("FASTDFKD_MAX_GB", "0.001")
    refused("would take 0.0 GB of memory", "folder:.", data_dir=tmp_path)


def picture_doors(root: Path):
    """Every way by which a picture's file is read, as functions."""
    (root / "pool").mkdir()
    shutil.copy(root / "a" / "1.png", root / "pool" / "1.png")
    content = np.frombuffer((root / "a" / "1.png").read_bytes(), np.uint8)
    np.savez(root / "a.npz", jpeg=content, offsets=[0, len(content)], labels=[0])
    np.savez(root / "camvid_test_1.npz", jpeg=content, offsets=[0, len(content)], masks=np.zeros((1, 8, 8), np.uint8))
    crops = {"image_size": 8, "channels": 1, "crops": 1, "limit": 0}
    return {
        "folder": lambda: data.load("folder:.", data_dir=root),
        "cut": lambda: data.load("folder:.", data_dir=root, image_size=8, crop=0.5),
        "npz": lambda: data.load("npz:a.npz", data_dir=root),
        "camvid": lambda: data.load("camvid:.", "test", data_dir=root),
        "image": lambda: data.load("pairs:.", "test", data_dir=root),
        "mask": lambda: data.load("pairs:.", "val", data_dir=root),
        "crops of a folder": lambda: list(unlabelled.stream("folder:a", "test", root, **crops)),
        "crops of an npz": lambda: list(unlabelled.stream("npz:a.npz", "test", root, **crops)),
        "initial images": lambda: initial_images.read(root / "pool", (20_000, 20_000, 1)),
        "initial images' sizes": lambda: initial_images.locate(root / "pool", (20_000, 20_000, 1)),
    }


def test_a_picture_bomb_is_refused_at_every_door(tmp_path):
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "PNG")
    write(tmp_path / "a" / "1.png", bomb())
    for split, image, mask in (("test", bomb(), small.getvalue()), ("val", small.getvalue(), bomb())):
        write(tmp_path / "images" / split / "1.png", image)
        write(tmp_path / "masks" / split / "1.png", mask)
    for name, read in picture_doors(tmp_path).items():
        with pytest.raises(UserError, match=r"20,000 x 20,000 pixels, expected at most 178,956,970") as caught:
            read()
        assert len(str(caught.value)) < 300, name


def test_a_picture_above_pillow_s_own_limit_and_below_ours_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (16, 16), 7).save(tmp_path / "1.png")
    write(tmp_path / "a" / "1.png", (tmp_path / "1.png").read_bytes())
    read = data.load("folder:.", data_dir=tmp_path)  # warnings are errors
    np.testing.assert_array_equal(read.images, np.full((1, 16, 16, 1), 7))
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setenv("FASTDFKD_MAX_PIXELS", "255")
    refused("16 x 16 pixels, expected at most 255 .* FASTDFKD_MAX_PIXELS", "folder:.", data_dir=tmp_path)
    assert Image.MAX_IMAGE_PIXELS == 100


OFFSETS = {
    "beyond the bytes": [0, 10**6],
    "that fall": [0, 500, 200],
    "of an empty file": [0, 0, 100],
    "below 0": [-5, 100],
    "of floats": [0.0, 100.0],
    "that are none": [],
    "in two dimensions": [[0, 100]],
    "above int64": np.array([0, 2**64 - 1], np.uint64),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_that_are_wrong(tmp_path, case):
    write_jpegs(tmp_path / "a.npz", np.zeros((64, 64, 3), np.uint8))
    content = dict(np.load(tmp_path / "a.npz")) | {"offsets": np.array(OFFSETS[case])}
    np.savez(tmp_path / "a.npz", **content)
    refused("expected (growing|jpeg uint8.* and integer) .*offsets", "npz:a.npz", data_dir=tmp_path)


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    for name in ("x.npz", "a/1.png", "cifar-10-batches-py/test_batch", "camvid_test_1.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    for source in ("npz:x.npz", "folder:.", "pickle:cifar10", "camvid:."):
        refused("not a regular file", source, data_dir=tmp_path)
    with pytest.raises(UserError, match="not a regular file"):
        npz.read(tmp_path / "x.npz", ["images"], "shard", "restore it")


def test_the_home_folder_is_replaced_and_may_be_unknown(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 8, 8, 1), np.uint8), labels=[0])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("npz:~/a.npz").images.shape == data.load("npz:a.npz", data_dir="~").images.shape == (1, 8, 8, 1)
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    refused("there is no home directory for .*: set HOME", "tfds:cifar10")
    assert len(data.load("digits", "test[:3]").labels) == 3


def test_a_forged_pickle_does_not_end_the_process(tmp_path):
    # With Python's unpickler and a list of allowed names this was a segmentation fault.
    content = {"data": np.zeros((1, 3072), np.uint8), "labels": FORGED["an array of objects"]}
    write(tmp_path / "cifar-10-batches-py" / "test_batch", pickle.dumps(content))
    code = f"from fastdfkd_jax import data; data.load('pickle:cifar10', data_dir={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "UserError: refused to unpickle" in done.stderr
