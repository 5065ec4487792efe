"""`python -m fastdfkd_jax.convert import|verify|export`: checkpoints from PyTorch and back."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence

from fastdfkd_jax.arguments import OneLineParser, numbers
from fastdfkd_jax.convert.transfer import NAMINGS, export_checkpoint, import_checkpoint
from fastdfkd_jax.convert.verify import Report, verify
from fastdfkd_jax.errors import EXIT_STATUS, UserError


def _parser() -> OneLineParser:
    network = OneLineParser(add_help=False)
    network.add_argument("--arch", help="architecture, where the entries do not tell it")
    network.add_argument("--num-classes", type=int, help="refuse a checkpoint with another number of classes")
    network.add_argument(
        "--image-size", type=int, help="side of the input in pixels (default: stored, else the architecture's)"
    )

    parser = OneLineParser(prog="python -m fastdfkd_jax.convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", parents=[network], help="write a checkpoint as our .safetensors")
    command.add_argument("source", help=".pth, .pt, .th, .safetensors or Keras's model.json")
    command.add_argument("--out", required=True, help="the .safetensors to write")
    command.add_argument("--mean", type=numbers, help="of the images in [0, 1], one number a channel: a,b,c")
    command.add_argument("--std", type=numbers, help="likewise")

    command = commands.add_parser("verify", parents=[network], help="compare a checkpoint with PyTorch")
    command.add_argument("checkpoint")
    reference = command.add_mutually_exclusive_group()
    reference.add_argument("--torch", metavar="FILE.py:FACTORY", help="your own module (the file is executed)")
    reference.add_argument("--reference", metavar="FILE.npz", help="what record.py wrote elsewhere")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")

    command = commands.add_parser("export", parents=[network], help="write a PyTorch state dictionary")
    command.add_argument("checkpoint")
    command.add_argument("--out", required=True, help="ends in .pth, .pt, .th or .safetensors")
    command.add_argument(
        "--naming",
        choices=NAMINGS,
        default="source",
        help="the names that were imported (default), ours, or torchvision's: fc and downsample",
    )
    return parser


def _table(report: Report) -> str:
    width = max(len(check.name) for check in report.checks)
    lines = [
        f"{report.spec.arch}, {report.spec.num_classes} classes, against {report.reference}",
        f"{'':{width}}  max|Δ|/max|ref|  max|ref|   tolerance",
    ]
    for check in report.checks:
        verdict = "ok" if check.passed else "FAILED"
        figures = f"{check.error:<15.2e}  {check.magnitude:<9.3g}  {check.tolerance:<9.0e}"
        lines.append(f"{check.name:{width}}  {figures}  {verdict}")
    failed = sum(not check.passed for check in report.checks)
    lines.append(f"{failed} of {len(report.checks)} checks failed" if failed else "all checks passed")
    return "\n".join(lines)


def _json(report: Report, path: str) -> str:
    def number(x: float) -> float | None:
        return x if math.isfinite(x) else None  # JSON has no infinity

    checks = [c._asdict() | {"error": number(c.error), "passed": c.passed} for c in report.checks]
    content = {"checkpoint": path, "spec": dataclasses.asdict(report.spec), "reference": report.reference}
    return json.dumps(content | {"passed": report.passed, "checks": checks}, indent=1)


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    known = {"arch": options.arch, "num_classes": options.num_classes, "image_size": options.image_size}
    if options.command == "verify":
        report = verify(options.checkpoint, torch_factory=options.torch, reference=options.reference, **known)
        print(_json(report, options.checkpoint) if options.json else _table(report))
        return 0 if report.passed else 1
    if options.command == "import":
        spec = import_checkpoint(options.source, options.out, mean=options.mean, std=options.std, **known)
    else:
        spec = export_checkpoint(options.checkpoint, options.out, options.naming, **known)
    print(f"{options.out}: {spec.arch}, {spec.num_classes} classes")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 where a verification failed, or 2 for a mistake of the input."""
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_STATUS


if __name__ == "__main__":
    sys.exit(main())
