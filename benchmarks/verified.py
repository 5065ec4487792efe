"""`convert verify` on ImageNet's networks and DeepLab: torchvision's own modules with seeded weights, or checkpoints.

    python -m benchmarks.verified                       # torchvision's, which must be installed; --networks for some
    python -m benchmarks.verified FILE.safetensors ...  # against our PyTorch twins
    python -m benchmarks.verified --table               # writes the table of all records into docs/conversion.md

Each leaves a record, results/verified/NAME.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import graphs
from fastdfkd_jax.convert import record, verify
from fastdfkd_jax.storage import files, markdown

RESULTS, TABLE = Path("results/verified"), Path("docs/conversion.md")
MODULES = Path(__file__).parent / "modules" / "torchvision_networks.py"
NETWORKS = ("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet", "mobilenetv2_imagenet")
NETWORKS += ("deeplabv3_resnet50",)
_SIDES = {"deeplabv3_resnet50": 96}  # of the images; else 224
# Columns of the table, and what the names of their checks have in common.
_COLUMNS = {"logits": "logits", "moments": " input ", "gradient of cross-entropy": "cross_entropy",
            "gradient of moments": "batch_norm", "round trip": "round trip"}  # fmt: skip


def of_torchvision(arch: str) -> verify.Report:
    """Compares seeded weights of torchvision's module, as imported, with the module itself."""
    import torch

    factory, size = f"{MODULES}:{arch}", _SIDES.get(arch, 224)
    torch.manual_seed(0)
    module = record.load_factory(factory)
    graphs.seed_norms(module, size)
    if arch in _SIDES:
        _calm(module, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{arch}.pth"
        torch.save(module.state_dict(), path)
        return verify.verify(path, torch_factory=factory, image_size=size)


def _calm(module: Any, size: int) -> None:
    """Lets residual branches add less, as trained ones do.

    Of random weights this network triples rounding from stage to stage: torch's own logits in single precision are
    then 1.2e-4 from those in double, more than the tolerance.
    """
    for name, norm in module.named_modules():
        if name.endswith(".bn3"):
            norm.weight.data *= 0.3
    graphs.calibrate(module, size)


def keep(found: verify.Report, reference: str) -> dict[str, Any]:
    """Writes the record of a network: the worst error of every kind of check.

    Raises:
      SystemExit: a check failed.
    """
    if not found.passed:
        raise SystemExit(f"{found.spec.arch}: {[check for check in found.checks if not check.passed]}")
    result = {
        "network": found.spec.arch,
        "image_size": found.spec.image_size,
        "num_classes": found.spec.num_classes,
        "reference": reference,
        "checks": len(found.checks),
        "errors": {
            column: max(check.error for check in found.checks if part in check.name)
            for column, part in _COLUMNS.items()
        },
        "versions": {package: importlib.metadata.version(package) for package in ("jax", "torch")},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / f"{found.spec.arch}.json", result)
    return result


def table(records: list[dict[str, Any]]) -> str:
    """Formats the records in Markdown, one row each."""
    columns = ("network", "against", *_COLUMNS)
    rows = []
    for found in records:
        errors = (f"{found['errors'][column]:.0e}" if found["errors"][column] else "0" for column in _COLUMNS)
        rows.append([found["network"], found["reference"], *errors])
    return markdown.table(columns, rows)


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="*", help="compared with our twins; by default torchvision's networks")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="of torchvision's")
    parser.add_argument("--table", action="store_true", help="write the table of the records")
    args = parser.parse_args()
    if args.table:
        records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
        markdown.insert_all(TABLE, {"": table(records)})
        return
    for path in args.checkpoints:
        print(keep(verify.verify(path), "our twin, the file's weights"), flush=True)
    for arch in () if args.checkpoints else args.networks:
        reference = f"torchvision {importlib.metadata.version('torchvision')}, seeded weights"
        print(keep(of_torchvision(arch), reference), flush=True)


if __name__ == "__main__":
    main()
