"""`fastdfkd convert import|verify|export|record`: checkpoints from PyTorch and back."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastdfkd_jax.cli.command import run_command, say
from fastdfkd_jax.cli.parser import PROGRAM, OneLineParser, numbers
from fastdfkd_jax.convert import choosing, weight_files
from fastdfkd_jax.convert.deploy import write
from fastdfkd_jax.convert.import_export import NAMINGS, export_checkpoint, import_checkpoint
from fastdfkd_jax.convert.messages import RECORD, LongError
from fastdfkd_jax.convert.verify import SAME_WEIGHTS, TWIN, Report, verify
from fastdfkd_jax.errors import EXIT_STATUS, UserError
from fastdfkd_jax.models import NetworkSpec

VERIFY = f"{PROGRAM} convert verify"


def _parser() -> OneLineParser:
    shared = OneLineParser(add_help=False)
    shared.add_argument("--arch", type=_path, help="architecture or recorded graph, if the entries do not determine it")
    shared.add_argument("--num-classes", type=int, help="refuse a checkpoint with another number of classes")
    shared.add_argument(
        "--image-size", type=int, help="side of the input in pixels (default: stored, else the architecture's)"
    )
    shared.add_argument("--verbose", action="store_true", help="list every entry that does not fit")
    entries = shared.add_argument_group("which of the file's entries are the weights")
    entries.add_argument("--weights", choices=choosing.WEIGHTS, help="take raw or averaged (EMA, SWA) weights")
    entries.add_argument("--key", default="", help="dotted keys that lead to the weights: state.model")
    entries.add_argument("--prefix", default="", help="take only entries that begin with this: teacher.")
    entries.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="drop entries: 'head2.*'")

    parser = OneLineParser(prog=f"{PROGRAM} convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", parents=[shared], help="write a checkpoint as our .safetensors")
    command.add_argument("source", type=_path, help="a PyTorch or .safetensors file, or Keras's model.json")
    command.add_argument("--out", type=_path, required=True, help="the .safetensors to write")
    command.add_argument("--mean", type=numbers, help="mean per channel of images in [0, 1]: a,b,c")
    command.add_argument("--std", type=numbers, help="standard deviation per channel of images in [0, 1]")

    command = commands.add_parser("verify", parents=[shared], help="compare a checkpoint with PyTorch")
    command.add_argument("checkpoint", type=_path)
    reference = command.add_mutually_exclusive_group()
    reference.add_argument(
        "--torch", type=_path, metavar="FILE.py:FACTORY", help="your own module (the file is executed)"
    )
    reference.add_argument("--reference", type=_path, metavar="FILE.npz", help="file that record.py wrote")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")

    command = commands.add_parser(
        "export", parents=[shared], help="write a PyTorch state dictionary, or a file for production"
    )
    command.add_argument("checkpoint", type=_path)
    command.add_argument(
        "--out",
        "--to",
        type=_path,
        required=True,
        help="ends in .pth, .pt, .th or .safetensors, or for production in .onnx or .stablehlo",
    )
    command.add_argument(
        "--naming",
        choices=NAMINGS,
        default="source",
        help="names as imported (default), ours, or torchvision's (fc and downsample)",
    )
    production = command.add_argument_group("files for production")
    production.add_argument(
        "--torch", type=_path, metavar="FILE.py:FACTORY", help="for .onnx, your own module (the file is executed)"
    )
    production.add_argument("--unit-range", action="store_true", help="normalise inside: images in [0, 1] go in")
    production.add_argument(
        "--int8", type=_path, metavar="RUN", help="for .onnx, quantise with the images of a run's workdir or pool"
    )
    production.add_argument("--mean", type=numbers, help="mean per channel of images in [0, 1]: a,b,c")
    production.add_argument("--std", type=numbers, help="standard deviation per channel of images in [0, 1]")
    commands.add_parser("record", add_help=False, help="record any other PyTorch network's graph")
    return parser


def _path(text: str) -> str:
    return os.path.expanduser(text)


def _table(report: Report) -> str:
    width = max(len(check.name) for check in report.checks)
    lines = [
        f"{report.spec.arch}, {report.spec.num_classes} classes, against {report.reference}",
        f"{'':{width}}  max|diff|/max|ref|  max|ref|   tolerance",
    ]
    for check in report.checks:
        verdict = "ok" if check.passed else "FAILED"
        figures = f"{check.error:<18.2e}  {check.magnitude:<9.3g}  {check.tolerance:<9.0e}"
        lines.append(f"{check.name:{width}}  {figures}  {verdict}")
    failed = sum(not check.passed for check in report.checks)
    lines.append(
        f"{failed} of {len(report.checks)} checks failed: {_advice(report)}" if failed else "all checks passed"
    )
    return "\n".join(lines)


def _advice(report: Report) -> str:
    """Returns advice on what to do after a failed verification."""
    failed = [check.name for check in report.checks if not check.passed]
    if failed == [SAME_WEIGHTS]:
        return "the reference has other weights: record it again from this checkpoint"
    if report.reference.startswith(TWIN):
        return "this is a fault of the import: please report it"
    return f"its names are those of another network; do not use the import, record the graph instead: {RECORD}"


def _json(report: Report, path: str) -> str:
    def number(x: float) -> float | None:
        return x if math.isfinite(x) else None  # JSON has no infinity

    checks = [c._asdict() | {"error": number(c.error), "passed": c.passed} for c in report.checks]
    content = {"checkpoint": path, "spec": dataclasses.asdict(report.spec), "reference": report.reference}
    return json.dumps(content | {"passed": report.passed, "checks": checks}, indent=1)


def _run(options: argparse.Namespace) -> int:
    known: dict[str, Any] = {
        "arch": options.arch,
        "num_classes": options.num_classes,
        "image_size": options.image_size,
        "choice": choosing.Choice(options.weights, options.key, options.prefix, tuple(options.ignore)),
        "say": print,
    }
    if options.command == "verify":
        if options.json:
            known["say"] = partial(print, file=sys.stderr)
        report = verify(options.checkpoint, torch_factory=options.torch, reference=options.reference, **known)
        print(_json(report, options.checkpoint) if options.json else _table(report))
        return 0 if report.passed else 1
    if options.command == "import":
        spec = import_checkpoint(options.source, options.out, mean=options.mean, std=options.std, **known)
    elif write.is_for_production(options.out):
        spec = _written(options, known)
    else:
        known_suffixes = (*weight_files.SUFFIXES, *write.SUFFIXES)
        if not options.out.lower().endswith(known_suffixes):
            raise UserError(
                f"--out {options.out} must end in one of {', '.join(known_suffixes)}: it selects the format"
            )
        for name in ("torch", "unit_range", "int8", "mean", "std"):
            if getattr(options, name):
                suffixes = " or ".join(write.SUFFIXES)
                raise UserError(f"--{name.replace('_', '-')} is for files that end in {suffixes}, found {options.out}")
        spec = export_checkpoint(options.checkpoint, options.out, options.naming, **known)
    print(f"{options.out}: {spec.arch}, {spec.num_classes} classes")
    if options.command == "import":
        print(f"next, compare it with your own module: {VERIFY} {options.out} --torch FILE.py:FACTORY")
    return 0


def _written(options: argparse.Namespace, known: dict[str, Any]) -> NetworkSpec:
    if options.naming != "source":
        raise UserError("--naming is for state dictionaries: leave it out")
    made = write.write(
        options.checkpoint,
        options.out,
        torch_factory=options.torch,
        unit_range=options.unit_range,
        int8=options.int8,
        mean=options.mean,
        std=options.std,
        **known,
    )
    before = " before quantisation" if made.calibrated else ""
    print(f"logits differ from the network's by at most {made.error:.0e} of the largest{before}, on noise images")
    if made.calibrated:
        print(
            f"8-bit integers, from {made.calibrated} synthesised images; on other such images, same class as before "
            f"in {made.agreement:.2f} %"
        )
    return made.spec


def command(argv: Sequence[str]) -> int:
    """Does the same as `main`, without the program's name."""
    return main(argv[1:])


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns 0, 1 if a verification failed, or 2 if the input is wrong."""
    if arguments[:1] == ["record"]:
        from fastdfkd_jax.convert import record  # a script that also runs on its own; it needs PyTorch

        return record.main(arguments[1:], f"{PROGRAM} convert record")
    verbose = False
    try:
        options = _parser().parse_args(arguments)
        verbose = options.verbose
        return _run(options)
    except LongError as error:
        hint = "" if str(error) == error.full else " (--verbose: all)"
        say(error.full if verbose else f"{error}{hint}", verbose)
    except UserError as error:
        say(str(error), verbose)
    return EXIT_STATUS


if __name__ == "__main__":
    run_command(command)
