"""Files made to harm whoever reads them: nothing runs, no memory is taken, and the answer is one line."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from malicious import Runs

from fastdfkd_jax.convert import references, weight_files
from fastdfkd_jax.convert.__main__ import main
from fastdfkd_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's format before zip archives


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def legacy(pickled: bytes) -> bytes:
    """A file of the old format whose content is this pickle."""
    head = (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled + pickle.dumps([], protocol=2)


def tarred(pickled: bytes) -> bytes:
    """A tar archive as PyTorch wrote it before 2017, a pickle in each of its parts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(pickled)
            archive.addfile(info, io.BytesIO(pickled))
    return buffer.getvalue()


def safetensors(metadata: object, header: dict | None = None, data: bytes = bytes(4)) -> bytes:
    """A safetensors file with this text, or this JSON, for our metadata."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    entries = header or {"fc.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
    content = json.dumps({"__metadata__": {"fastdfkd_jax": text}} | entries).encode()
    return struct.pack("<Q", len(content)) + content + data


def said(capsys, path: Path, name: str = "out.safetensors") -> str:
    """The one line with which a file is refused at every command."""
    for arguments in (["verify", path], ["export", path, "--out", path.parent / "out.pth"]):
        assert main([str(argument) for argument in arguments]) == 2
        capsys.readouterr()
    assert main(["import", str(path), "--out", str(path.parent / name), "--mean", "0,0,0", "--std", "1,1,1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err.replace(str(path), path.name)) <= 300
    assert os.listdir(path.parent) == [path.name]
    return captured.err


def payload(marker: Path, protocol: int = 2) -> bytes:
    return pickle.dumps(Runs(marker), protocol=protocol)


EXECUTING = {
    "zip.pth": lambda m: saved({"state_dict": {"fc.weight": torch.zeros(1)}, "x": Runs(m)}),
    "legacy.pth": lambda m: legacy(payload(m)),
    "pickle.pth": payload,
    "protocol4.pth": lambda m: payload(m, 4),
    "tar.t7": lambda m: tarred(payload(m)),
    "no_suffix": lambda m: legacy(payload(m)),
    "in_metadata.safetensors": lambda m: safetensors(payload(m).decode("latin1")),
    "pickle.safetensors": payload,
    "pickle.json": payload,
    "model.json": lambda m: b'{"weightsManifest": ' + json.dumps(payload(m).decode("latin1")).encode() + b"}",
}


@pytest.mark.parametrize("name", EXECUTING)
def test_nothing_is_executed(tmp_path, capsys, name):
    folder, marker = tmp_path / "folder", tmp_path / "marker"
    folder.mkdir()
    (folder / name).write_bytes(EXECUTING[name](marker))
    said(capsys, folder / name)
    assert not marker.exists()


def test_an_object_that_sets_attributes_is_refused(tmp_path):
    """`BUILD` on a class that is not replaced by an inert one would call its `__setstate__`."""

    class Sets:
        def __reduce__(self):
            return os.path.join, ("a", "b"), {"x": 1}

    (tmp_path / "teacher.pth").write_bytes(saved({"x": Sets()}))
    with pytest.raises(UserError, match=r"its pickle asks for posixpath\.join"):
        weight_files.read(tmp_path / "teacher.pth")


def deep(opening: bytes, closing: bytes, count: int = 100_000) -> bytes:
    return legacy(b"\x80\x02" + opening * count + opening[:1] + closing * count + b".")


def bomb() -> bytes:
    """A zip archive that declares 30 GB in a few kilobytes: its directory says so, its data are zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(1000))
        archive.infolist()[1].file_size = 30 * 10**9
    return buffer.getvalue()


def itself() -> bytes:
    content: dict = {"x": torch.zeros(1)}
    content["state_dict"] = content["model"] = content
    return saved(content)


LARGE = {
    "a stride of 0": (lambda: saved({"fc.weight": torch.zeros(1).expand(10**14)}), "would take 400,000.0 GB of memory"),
    "many views": (
        lambda: saved({f"fc{i}.weight": torch.zeros(1).expand(10**9) for i in range(3)}),
        "would take 8.0 GB of memory, expected at most 6.0 GB",
    ),
    "a zip bomb": (bomb, "would take 30.0 GB of memory"),
    "a deep list": (lambda: deep(b"]", b"a"), "expected a dictionary of tensors, found list"),
    "a deep container": (lambda: deep(b"}X\x05\0\0\0model", b"s"), "not a state dictionary"),
    "itself": (itself, "no linear layer"),
    "a deep JSON": (lambda: safetensors("[" * 100_000), "are not JSON"),
    "a deep header": (lambda: struct.pack("<Q", 10**5) + b'{"a":' + b"[" * 10**5, "is not a safetensors file"),
    "a huge header": (lambda: struct.pack("<Q", 2**40) + b"{" + bytes(99), "not a"),
    "a deep model.json": (lambda: b"[" * 100_000, "nested too deeply"),
    "a large shape": (
        lambda: safetensors({}, {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}),
        "is not a safetensors file",
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_no_memory_is_taken(tmp_path, capsys, case, monkeypatch):
    monkeypatch.setenv("FASTDFKD_MAX_GB", "6")
    make, expected = LARGE[case]
    (tmp_path / "teacher.pth").write_bytes(make())
    assert expected in said(capsys, tmp_path / "teacher.pth")


def test_a_sparse_file_is_refused_by_its_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTDFKD_MAX_GB", "1")
    with (tmp_path / "teacher.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2) + b"{}")
        file.truncate(10**12)
    assert "would take 1,000.0 GB" in said(capsys, tmp_path / "teacher.safetensors")


def test_devices_and_pipes_are_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pth")
    assert "is not a regular file" in said(capsys, tmp_path / "pipe.pth")
    (tmp_path / "pipe.pth").unlink()
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    assert "is not a regular file" in said(capsys, tmp_path / "zero.pth")


METADATA = {
    "a list": [1],
    "pairs": [["arch", "resnet20"]],
    "a number": 3,
    "text": '"resnet20"',
    "arch": {"arch": ["resnet20"]},
    "image_size": {"image_size": "32"},
    "a negative size": {"image_size": -32},
    "mean": {"mean": "0.5"},
    "numbers": {"std": [0.5, None, 0.5]},
    "infinite": {"std": [float("inf")] * 3},
    "classes": {"num_classes": 1.5},
    "naming": {"naming": {"prefix": 1, "renames": []}},
    "renames": {"naming": {"prefix": "", "renames": [["a"]]}},
    "task": {"task": {}},
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_another_type_are_one_line(tmp_path, capsys, case):
    (tmp_path / "teacher.safetensors").write_bytes(safetensors(METADATA[case]))
    assert "are damaged (" in said(capsys, tmp_path / "teacher.safetensors")


def test_a_model_json_reads_only_beside_itself(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4))
    (tmp_path / "model").mkdir()
    for name in ("../secret", str(tmp_path / "secret")):
        weights = [{"name": "conv1/kernel", "shape": [1], "dtype": "float32"}]
        manifest = {"weightsManifest": [{"paths": [name], "weights": weights}]}
        (tmp_path / "model" / "model.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="is not beside it"):
            weight_files.read(tmp_path / "model" / "model.json")


def reference() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32))
    gradients = {f"gradient/{name}": images for name in ("cross_entropy", "batch_norm")}
    return {"images": images, "labels": np.arange(2), "logits": np.round(images[:, 0, 0, :10])} | gradients


def test_a_damaged_reference_is_one_line(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez_compressed(path, allow_pickle=False, **reference())
    good = path.read_bytes()
    assert references.from_file(str(path)).keys() == reference().keys()
    for place in np.random.default_rng(0).integers(30, len(good) - 200, 60):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        with pytest.raises(UserError, match=r"is not an \.npz that"):
            references.from_file(str(path))


def header_of(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", ["(10**14,)", "(100000000000000,)", "(-1,)", "(" * 400])
def test_a_reference_that_asks_for_memory_is_refused(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "reference.npz", "w") as archive:
        archive.writestr("images.npy", header_of(shape) + bytes(16))
    with pytest.raises(UserError, match=r"is not an \.npz that"):
        references.from_file(str(tmp_path / "reference.npz"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": np.zeros(3)}, "expected one row for each image"),
        ({"logits": np.zeros((3, 10))}, "expected one row for each image"),
        ({"labels": np.array([0.5, 1.5])}, "expected one whole number a row"),
        ({"labels": np.array([0, 10])}, r"labels lie in 0..10, expected classes of 10"),
        ({"images": np.array(["a"])}, "images has the type <U1"),
        ({"moments/bn1": np.zeros(3)}, "moments/bn1 is neither a mean nor a variance"),
        ({"moments/bn1/mean": np.zeros((3, 1))}, "moments/bn1/mean is neither a mean nor a variance"),
    ],
)
def test_a_reference_of_other_arrays_is_refused(tmp_path, change, expected):
    np.savez(tmp_path / "reference.npz", allow_pickle=False, **reference() | change)
    with pytest.raises(UserError, match=expected):
        references.from_file(str(tmp_path / "reference.npz"))


WRITE = """
import sys
import numpy as np
from fastdfkd_jax.convert import weight_files
state = {name: np.arange(4, dtype=np.float32) for name in ("b.weight", "a.weight", "\\u00e9.bias")}
for path in sys.argv[1:]:
    weight_files.write_safetensors(path, state, {"z": 1, "a": [1, 2], "\\u00e9": "\\u00e9"})
"""


def test_equal_weights_give_equal_bytes_in_every_process(tmp_path):
    # The library's own order is drawn anew for each file, so that two could be equal by chance.
    paths = [tmp_path / f"{number}.safetensors" for number in range(16)]
    for seed, part in (("1", paths[:8]), ("2", paths[8:])):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", WRITE, *part], check=True, env=environment)
    assert len({path.read_bytes() for path in paths}) == 1
    state, metadata = weight_files.read_state_dict(paths[0])
    assert metadata == {"z": 1, "a": [1, 2], "\u00e9": "\u00e9"}
    assert state["\u00e9.bias"].tolist() == [0, 1, 2, 3]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for name in (".a.safetensors.123.tmp", ".a.safetensors.partial", ".b.safetensors.9.tmp"):
        (tmp_path / name).write_bytes(b"half")
    weight_files.write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(1, np.float32)}, {})
    assert sorted(os.listdir(tmp_path)) == [".b.safetensors.9.tmp", "a.safetensors"]
