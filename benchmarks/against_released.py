"""Our runs of the short Fast-5 protocol beside those of the released PyTorch code: how their accuracies spread.

    python -m benchmarks.against_released results --into docs/results.md

All recorded runs of one mathematics count: other states of the code, devices and forms of the networks change rounding
only. The released code's accuracies are in `results/released/finals.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import OneLineParser
from fastdfkd_jax.storage import markdown

MARK = "against-released"
# Folders of seeds, as patterns below the folder of records.
OURS = (
    "cifar10-resnet20-wrn16_1-fast5-short",
    "cifar10-resnet20-wrn16_1-fast5-short-graphs",
    "earlier/*",
    "compare/h200/cifar10-resnet20-wrn16_1-short-fast5",
    "compare/*/runs/cifar10-resnet20-wrn16_1-short-fast5",
)


def accuracies(records: Path) -> list[float]:
    """Returns the last test accuracies in percent of all recorded runs of ours."""
    paths = [path for pattern in OURS for path in sorted(records.glob(f"{pattern}/seed*/summary.json"))]
    return [json.loads(path.read_text(encoding="utf-8"))["student_accuracy_last"] for path in paths]


def released(records: Path) -> list[float]:
    """Returns the same for the released code."""
    finals = json.loads((records / "released" / "finals.json").read_text(encoding="utf-8"))
    return list(finals["student_accuracy_last"].values())


def table(ours: Sequence[float], released: Sequence[float]) -> str:
    """Formats in Markdown: number, mean and standard deviation of both, and their difference in its standard errors."""
    groups = [("released code, PyTorch", released), ("this package", ours)]
    head = ("Fast-5, short protocol", "runs", "mean %", "standard deviation", "lowest", "highest")
    figures = [(mean(values), stdev(values), min(values), max(values)) for _, values in groups]
    rows = [
        (name, len(values), *(f"{number:.2f}" for number in numbers))
        for (name, values), numbers in zip(groups, figures, strict=True)
    ]
    difference = mean(released) - mean(ours)
    error = math.sqrt(sum(stdev(values) ** 2 / len(values) for _, values in groups))
    sentence = (
        f"The means differ by {abs(difference):.2f} points, {abs(difference) / error:.1f} standard errors of the "
        "difference."
    )
    return f"{markdown.table(head, rows, left=1)}\n{sentence}\n"


def main(argv: Sequence[str]) -> None:
    """Parses the arguments and runs the measurement."""
    parser = OneLineParser(prog="python -m benchmarks.against_released", description="Ours beside the released code.")
    parser.add_argument("results", type=Path, help="folder of records")
    parser.add_argument("--into", type=Path, nargs="*", default=[], help="Markdown files in which the table is put")
    args = parser.parse_args(argv[1:])
    text = table(accuracies(args.results), released(args.results))
    for document in args.into:
        markdown.insert_all(document, {MARK: text})
    print(text, end="")


if __name__ == "__main__":
    run_command(main)
