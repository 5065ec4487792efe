"""What `fuzzing.py` damages: a valid input for every reader of untrusted files, and how it is read."""

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import graph_fixtures
import numpy as np
from PIL import Image

from fastdfkd_jax import data
from fastdfkd_jax.convert import graph, keras, references, weight_files
from fastdfkd_jax.data import label_embeddings, nyuv2
from fastdfkd_jax.export import tfds_writer
from fastdfkd_jax.pool import shards
from fastdfkd_jax.training import run_records
from fastdfkd_jax.training.checkpoint import Checkpoints


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


def _keras(folder: Path) -> Path:
    arrays = {"conv1/kernel": np.ones((7, 7, 3, 4), np.float32), "conv1/bias": np.zeros(4, np.float32)}
    arrays |= {f"bn_conv1/{name}": np.ones(4, np.float32) for name in ("gamma", "beta", "moving_mean")}
    arrays |= {"bn_conv1/moving_variance": np.ones(4, np.float32)}
    arrays |= {"fc1000/kernel": np.ones((4, 5), np.float32), "fc1000/bias": np.zeros(5, np.float32)}
    weights = [{"name": name, "shape": [*array.shape], "dtype": "float32"} for name, array in arrays.items()]
    (folder / "shard.bin").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    (folder / "model.json").write_text(json.dumps({"weightsManifest": [{"paths": ["shard.bin"], "weights": weights}]}))
    return folder / "model.json"


def _masks(folder: Path) -> Path:
    for kind, array in (("images", _images()[0][0]), ("masks", np.arange(64, dtype=np.uint8).reshape(8, 8) % 3)):
        (folder / kind / "val").mkdir(parents=True)
        Image.fromarray(array).save(folder / kind / "val" / "a.png")
    (folder / "classes.txt").write_text("road\ncar\nsky\n")
    return folder / "masks" / "val" / "a.png"


def _tfds(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = folder / tfds_writer.NAME / tfds_writer.VERSION
        place.mkdir(parents=True)
        with ThreadPoolExecutor(1) as threads:
            tfds_writer.write([(0, *_images())], place, 3, threads)
        (found,) = place.glob(name)
        return found

    return make


def _read_tfds(folder: Path) -> object:
    return data.load(f"tfds:{tfds_writer.NAME}", tfds_writer.SPLIT, data_dir=folder)


_STATE = {"weights": np.arange(3.0)}


def _checkpoint(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, _STATE, {"call": 1})
        checkpoints.close()
        found, *_ = sorted(folder.rglob(name))
        return found

    return make


def _read_checkpoint(folder: Path) -> object:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(_STATE)
    finally:
        checkpoints.close()


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
    "keras": Reader(_keras, lambda folder: keras.read(folder / "model.json")),
    "masks": Reader(_masks, lambda folder: data.load(f"pairs:{folder}", "val")),
    "tfds-features": Reader(_tfds("features.json"), _read_tfds),
    "tfds-info": Reader(_tfds("dataset_info.json"), _read_tfds),
    "tfds-records": Reader(_tfds("*.array_record*"), _read_tfds),
    "checkpoint-arrays": Reader(_checkpoint("_METADATA"), _read_checkpoint),
    "checkpoint-progress": Reader(_checkpoint("meta/metadata"), _read_checkpoint),
    "checkpoint-values": Reader(_checkpoint("state/d/*"), _read_checkpoint),
}
