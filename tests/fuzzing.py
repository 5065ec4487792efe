"""Damaged inputs for every reader of untrusted files: what is read, or refused in one line, and nothing else.

    python tests/fuzzing.py READER --seconds 600       # by coverage; needs `pip install atheris`

A finding is written to tests/fuzz_corpus/READER-NAME.bin. It stays there once the reader is mended, and the tests read
it. Torch files also need PyTorch, and ONNX files onnxruntime.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import graph_fixtures
import numpy as np
from PIL import Image

from fastdfkd_jax import data
from fastdfkd_jax.convert import graph, references, weight_files
from fastdfkd_jax.data import label_embeddings, nyuv2
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import shards
from fastdfkd_jax.training import run_records

CORPUS = Path(__file__).parent / "fuzz_corpus"
_MOST = 300  # characters of a message, with 'error: '
_SEEN = ("fastdfkd_jax", "zipfile", "numpy.lib", "scipy.io.matlab", "PIL", "safetensors")
_LARGEST = 1 << 16  # bytes of an input: larger ones are slow and find no more


class Reader(NamedTuple):
    """One kind of input.

    Attributes:
      make: writes a valid input into an empty folder and returns the file whose bytes are changed.
      read: reads what is in the folder; raises UserError to refuse it.
      needs: package without which it cannot be tried.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    needs: str = "numpy"


def _images() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 1])


def _weights(folder: Path) -> dict[str, np.ndarray]:
    del folder
    return {"conv.weight": np.ones((2, 3, 1, 1), np.float32), "conv.bias": np.zeros(2, np.float32)}


def _safetensors(folder: Path) -> Path:
    spec = {"arch": "wrn16_1", "num_classes": 2, "mean": [0.5], "std": [0.5], "naming": {"prefix": "", "renames": []}}
    weight_files.write_safetensors(folder / "w.safetensors", _weights(folder), spec)
    return folder / "w.safetensors"


def _torch(folder: Path, old: bool) -> Path:
    import torch

    state = {name: torch.from_numpy(array) for name, array in _weights(folder).items()}
    content = {"epoch": 3, "state_dict": state, "best": np.float64(0.5)}
    torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=not old)
    return folder / "w.pth"


def _npz(folder: Path) -> Path:
    images, labels = _images()
    np.savez(folder / "d.npz", images=images, labels=labels)
    return folder / "d.npz"


def _jpegs(folder: Path) -> Path:
    image = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(image).save(folder / "one.jpg")
    content = np.frombuffer((folder / "one.jpg").read_bytes(), np.uint8)
    np.savez(folder / "d.npz", jpeg=content, offsets=np.array([0, len(content)]), labels=np.array([0]))
    (folder / "one.jpg").unlink()
    return folder / "d.npz"


def _embeddings(folder: Path) -> Path:
    np.save(folder / "e.npy", np.ones((3, 5), np.float32))
    return folder / "e.npy"


def _cifar(folder: Path) -> Path:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    rows = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, 1], b"batch_label": b"x", b"filenames": [b"a", b"b"]}
    (place / "test_batch").write_bytes(pickle.dumps(rows, protocol=2))
    (place / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"c%d" % i for i in range(10)]}, protocol=2))
    return place / "test_batch"


def _picture(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = folder / "images" / "class"
        place.mkdir(parents=True)
        Image.fromarray(_images()[0][0]).save(place / f"a{suffix}")
        return place / f"a{suffix}"

    return make


def _matlab(folder: Path) -> Path:
    import scipy.io

    numbers = np.arange(894) % 40 + 1
    scipy.io.savemat(folder / "classMapping40.mat", {"mapClass": numbers}, do_compression=True)
    scipy.io.savemat(folder / "class13Mapping.mat", {"classMapping13": {"labels13": np.arange(40) % 13 + 1}})
    scipy.io.savemat(folder / "splits.mat", {"trainNdxs": np.arange(1, 5), "testNdxs": np.arange(5, 9)})
    return folder / "classMapping40.mat"


def _graph(folder: Path) -> Path:
    graph_fixtures.unpack(graph_fixtures.FOLDER / "timm-resnetblur18.npz", folder / "graph")
    return folder / "graph" / "graph.json"


def _reference(folder: Path) -> Path:
    images = np.zeros((2, 3, 4, 4), np.float32)
    parts = {f"gradient/{name}": images for name in ("cross_entropy", "batch_norm")}
    logits = np.zeros((2, 5), np.float32)
    np.savez(folder / "r.npz", images=images, labels=np.array([1, 2]), logits=logits, **parts)
    return folder / "r.npz"


def _shard(folder: Path) -> Path:
    images, labels = _images()
    shards.Shards(folder).write(0, images, labels.astype(np.int32), {"layer": np.zeros(3)})
    return folder / "000000.npz"


def _record(folder: Path) -> Path:
    place = folder / "results" / "name" / "seed0"
    place.mkdir(parents=True)
    content = {
        "teacher": "a",
        "student": "b",
        "seed": 0,
        "images": 10,
        "teacher_accuracy": 90.0,
        "distill_seconds": 1.0,
    }
    content |= {"student_accuracy_last": 50.0, "student_accuracy_best_on_test": None, "score": "accuracy"}
    (place / "summary.json").write_text(json.dumps(content))
    (place / "config.json").write_text("{}")
    return place / "summary.json"


def _onnx(folder: Path) -> Path:
    from onnx import TensorProto, helper, save

    from fastdfkd_jax.convert.deploy import onnx_files

    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    got = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 8, 8])
    made = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "g", [given], [got])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = {"arch": "x", "num_classes": 3, "image_size": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    spec |= {"task": "segmentation", onnx_files.UNIT_RANGE: True}
    entry = model.metadata_props.add()
    entry.key, entry.value = "fastdfkd_jax", json.dumps(spec)
    save(model, folder / "n.onnx")
    return folder / "n.onnx"


def _read_onnx(folder: Path) -> object:
    from fastdfkd_jax.convert.deploy import onnx_files

    return onnx_files.load_network(str(folder / "n.onnx"))


READERS = {
    "safetensors": Reader(_safetensors, lambda folder: weight_files.read(folder / "w.safetensors")),
    "torch-zip": Reader(lambda folder: _torch(folder, False), lambda f: weight_files.read(f / "w.pth"), "torch"),
    "torch-pickle": Reader(lambda folder: _torch(folder, True), lambda f: weight_files.read(f / "w.pth"), "torch"),
    "npz": Reader(_npz, lambda folder: data.load(f"npz:{folder / 'd.npz'}", "test")),
    "npz-jpeg": Reader(_jpegs, lambda folder: data.load(f"npz:{folder / 'd.npz'}", "test")),
    "embeddings": Reader(_embeddings, lambda folder: label_embeddings.read(folder / "e.npy", 3)),
    "cifar-pickle": Reader(_cifar, lambda folder: data.load("pickle:cifar10", "test", data_dir=folder)),
    "png": Reader(_picture(".png"), lambda folder: data.load(f"folder:{folder / 'images'}", "test")),
    "jpeg": Reader(_picture(".jpg"), lambda folder: data.load(f"folder:{folder / 'images'}", "test")),
    "gif": Reader(_picture(".gif"), lambda folder: data.load(f"folder:{folder / 'images'}", "test")),
    "tiff": Reader(_picture(".tif"), lambda folder: data.load(f"folder:{folder / 'images'}", "test")),
    "matlab": Reader(_matlab, nyuv2.read_meta),
    "graph": Reader(_graph, lambda folder: graph.read(folder / "graph")),
    "reference": Reader(_reference, lambda folder: references.from_file(str(folder / "r.npz"))),
    "shard": Reader(_shard, lambda folder: (shards.locate_one(p := folder / "000000.npz"), shards.read_shard(p))),
    "record": Reader(_record, lambda folder: run_records.table(folder / "results")),
    "onnx": Reader(_onnx, _read_onnx, "onnxruntime"),
}


class Finding(AssertionError):
    """An input that a reader neither reads nor refuses as it should."""


@contextlib.contextmanager
def prepared(name: str) -> Iterator[tuple[Path, Path]]:
    """Yields a folder with a valid input of a reader, and the file to change."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), READERS[name].make(Path(folder))


def attempt(name: str, folder: Path, file: Path, content: bytes) -> bool:
    """Reads the input with this content; returns True if it was read, False if it was refused.

    Raises:
      Finding: another error than UserError, or a message that is not one short line.
    """
    file.write_bytes(content)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            READERS[name].read(folder)
    except UserError as error:
        message = f"error: {error}".replace(str(folder), "FOLDER")
        if "\n" in message or len(message) >= _MOST:
            raise Finding(f"{name}: a message of {len(message)} characters: {message}") from error
        return False
    except Exception as error:
        raise Finding(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(level)
    return True


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields changed copies: bytes replaced, cut, repeated, moved or set to the ends of their range."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(int(generator.integers(1, 5))):
            at, length = int(generator.integers(len(changed) or 1)), int(generator.integers(1, 9))
            kind = int(generator.integers(6))
            part = bytes(changed[at : at + length])
            if kind == 0:
                changed[at : at + length] = generator.bytes(len(part))
            elif kind == 1:
                changed[at : at + length] = b""
            elif kind == 2:
                changed[at:at] = part * int(generator.integers(1, 40))
            elif kind == 3:
                changed[at : at + length] = bytes([int(generator.choice([0, 1, 0x7F, 0x80, 0xFF]))]) * len(part)
            elif kind == 4:
                changed = changed[:at]
            else:
                to = int(generator.integers(len(changed) or 1))
                changed[to : to + length] = part
        yield bytes(changed)


def missing(name: str) -> str:
    """Returns the package that a reader lacks here, or ''."""
    needs = READERS[name].needs
    return "" if importlib.util.find_spec(needs) else needs


def _instrument(atheris: Any) -> None:
    """Makes the search see which lines of this package, and of the formats it reads by Python, an input reaches."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_SEEN)]
    for place in [*modules, *(kind for module in modules for kind in vars(module).values() if inspect.isclass(kind))]:
        for value in list(vars(place).values()):
            if inspect.isfunction(value) and value.__module__.startswith(_SEEN):
                atheris.instrument_func(value)


def main() -> None:
    """Searches for findings by coverage, until the time is over or one is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    import atheris  # pyright: ignore[reportMissingImports]

    with prepared(options.reader) as (folder, file), tempfile.TemporaryDirectory() as corpus:
        valid = file.read_bytes()
        for number, content in enumerate([valid, *mutants(valid, 30)]):
            (Path(corpus) / str(number)).write_bytes(content)

        def one(content: bytes) -> None:
            try:
                attempt(options.reader, folder, file, content)
            except Finding as finding:
                CORPUS.mkdir(exist_ok=True)
                name = f"{options.reader}-{hashlib.sha256(content).hexdigest()[:8]}.bin"
                (CORPUS / name).write_bytes(content)
                print(f"{name}: {finding}", file=sys.stderr)
                os._exit(1)

        _instrument(atheris)
        limit = max(_LARGEST, 2 * len(valid))
        atheris.Setup([sys.argv[0], f"-max_total_time={options.seconds}", f"-max_len={limit}", corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
