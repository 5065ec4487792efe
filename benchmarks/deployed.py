"""Compares files for production with their networks on real images: logits, classes, accuracy, size.

    python -m benchmarks.deployed resnet20 --checkpoint resnet20-12fca82f.th --mean 0.485,0.456,0.406 \\
        --std 0.229,0.224,0.225 --data tfds:cifar10 --data-dir DIR --split 'test[:1000]' --int8 RUN
    python -m benchmarks.deployed --table          # writes the table of all records into docs/production.md

Each network leaves a record, results/deployed/NAME.json. Without a pool (`--int8`) there is no row of 8-bit integers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastdfkd_jax import convert, data
from fastdfkd_jax.cli.parser import numbers
from fastdfkd_jax.convert.deploy import compared, onnx_files, write
from fastdfkd_jax.storage import markdown

RESULTS, TABLE = Path("results/deployed"), Path("docs/production.md")
_BATCH = 50
_FORMATS = {"onnx": "ONNX", "int8": "ONNX, 8-bit integers", "stablehlo": "StableHLO"}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Writes every format of a network and runs it on the images; returns what the record holds."""
    known = {"arch": given.arch, "mean": given.mean, "std": given.std}
    network, variables = convert.load_network(given.checkpoint, **known)
    side = network.spec.image_size
    dataset = data.load(given.data, given.split, data_dir=given.data_dir, image_size=side, crop=given.crop)
    images = data.in_channels(dataset, network.spec.channels).images.astype(np.float32) / 255
    expected = _logits(compared.logits_of(network, variables), compared.normalised(images, network))
    found: dict[str, Any] = {"network": given.name, "side": side, "images": len(images), "data": given.data}
    found["accuracy"] = _accuracy(expected, dataset.labels)
    found["formats"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in _FORMATS:
            if kind == "int8" and not given.int8:
                continue
            out = Path(folder) / ("network.stablehlo" if kind == "stablehlo" else "network.onnx")
            options: dict[str, Any] = {"int8": given.int8} if kind == "int8" else {}
            if kind != "stablehlo":
                options["torch_factory"] = given.torch
            write.write(given.checkpoint, out, unit_range=True, **options, **known)
            logits = _logits(_runner(out), images)
            found["formats"][kind] = _against(expected, logits, dataset.labels) | {"bytes": out.stat().st_size}
    packages = ("jax", "torch", "onnx", "onnxruntime")
    return found | {"versions": {package: importlib.metadata.version(package) for package in packages}}


def _runner(path: Path) -> compared.Run:
    if path.suffix == onnx_files.SUFFIX:
        return onnx_files.runner(path.read_bytes())
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: jax.device_get(call(images))


def _logits(run: compared.Run, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)])


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((logits.argmax(-1) == labels).mean())


def _against(expected: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "error": float(np.abs(logits - expected).max() / np.abs(expected).max()),
        "same_class": 100 * float((logits.argmax(-1) == expected.argmax(-1)).mean()),
        "accuracy": _accuracy(logits, labels),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Formats the records in Markdown, one row for each format of each network."""
    head = ("network", "format", "MB", "logits", "same class %", "accuracy %", "of the network")
    rows = []
    for found in records:
        for kind, one in found["formats"].items():
            figures = (f"{one['bytes'] / 1e6:.2f}", f"{one['error']:.0e}", f"{one['same_class']:.1f}")
            accuracies = (f"{one['accuracy']:.1f}", f"{found['accuracy']:.1f}")
            rows.append((found["network"], _FORMATS[kind], *figures, *accuracies))
    return markdown.table(head, rows, left=2)


def page(text: str) -> str:
    """Returns the document with the table of all records between its marks."""
    return markdown.insert(text, table([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


def main() -> None:
    """Parses the arguments; measures a network or writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", help="of the record")
    parser.add_argument("--checkpoint", help="as for fastdfkd convert export")
    parser.add_argument("--arch")
    parser.add_argument("--mean", type=numbers)
    parser.add_argument("--std", type=numbers)
    parser.add_argument("--torch", metavar="FILE.py:FACTORY", help="module of a recorded graph")
    parser.add_argument("--int8", help="workdir of a run whose images calibrate the integers")
    parser.add_argument("--data", help="labelled images")
    parser.add_argument("--data-dir")
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop", type=float, default=0.0)
    parser.add_argument("--table", action="store_true", help="write the table of the records")
    given = parser.parse_args()
    if given.table:
        TABLE.write_text(page(TABLE.read_text()))
        return
    if not (given.name and given.checkpoint and given.data):
        parser.error("expected a name, --checkpoint and --data, or --table")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(measure(given), indent=1) + "\n")


if __name__ == "__main__":
    main()
