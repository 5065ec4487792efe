"""The effect of each change that `fastdfkd compare screening` tries, estimated from the records of its runs.

python -m benchmarks.screening results/compare/screening --into docs/recipe.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import OneLineParser
from fastdfkd_jax.configs.compare import screening
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import markdown

MARK = "screening"


class Effect(NamedTuple):
    """Effect of a change on the student's accuracy in percentage points, with its standard error."""

    name: str
    points: float
    error: float


def accuracies(records: Path) -> dict[tuple[str, int], float]:
    """Returns the last accuracy in percent of each recorded run, by its half and its number.

    Raises:
      UserError: a half of the design lacks a run, or there is none.
    """
    found: dict[tuple[str, int], float] = {}
    for half, seed in screening.SEEDS.items():
        for number in range(len(screening.design(half))):
            path = records / "runs" / screening.name_of(half, number) / f"seed{seed}" / "summary.json"
            if path.exists():
                found[half, number] = json.loads(path.read_text(encoding="utf-8"))["student_accuracy_last"]
    halves = {half: len(screening.design(half)) for half, _ in found}
    if not found or len(found) != sum(halves.values()):
        raise UserError(
            f"{records} holds {len(found)} runs, expected all 12 of a half: finish `fastdfkd compare screening`"
        )
    return found


def effects(scores: dict[tuple[str, int], float]) -> list[Effect]:
    """Fits a mean for each half and an effect for each change, by least squares.

    The standard error comes from what the fit leaves over. One half leaves nothing over; there, the median effect is
    taken for chance (Lenth, 1989): most changes are expected to do nothing.

    Args:
      scores: accuracies of whole halves, as `accuracies` returns them.
    """
    halves = sorted({half for half, _ in scores})
    made = np.array([screening.design(half)[number] for half, number in scores], np.float64) - 0.5
    means = np.array([[half == other for other in halves] for half, _ in scores], np.float64)
    design, values = np.hstack([means, made]), np.array(list(scores.values()))
    fitted = np.linalg.lstsq(design, values, rcond=None)[0]
    points = fitted[len(halves) :]
    left_over = len(values) - design.shape[1]
    if left_over:
        deviation = math.sqrt(((values - design @ fitted) ** 2).sum() / left_over)
        error = 2 * deviation / math.sqrt(len(values))
    else:
        error = _lenth(np.abs(points))
    return [Effect(name, float(value), error) for name, value in zip(screening.CHANGES, points, strict=True)]


def _lenth(sizes: np.ndarray) -> float:
    """Returns Lenth's pseudo standard error of effects of these sizes."""
    first = 1.5 * np.median(sizes)
    return float(1.5 * np.median(sizes[sizes < 2.5 * first]))


def table(found: Sequence[Effect]) -> str:
    """Formats the effects in Markdown, the best first."""
    rows = []
    for name, points, error in sorted(found, key=lambda effect: -effect.points):
        base, tried = screening.CHANGES[name]
        values = (", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in end.values())
                  for end in (base, tried))  # fmt: skip
        rows.append((name, ", ".join(f"`{key}`" for key in base), *values, f"{points:+.2f} ± {error:.2f}"))
    return markdown.table(("change", "key", "Fast-10", "tried", "effect, points"), rows, left=4)


def main(argv: Sequence[str]) -> None:
    """Parses the arguments, prints the table and puts it into documents."""
    parser = OneLineParser(prog="python -m benchmarks.screening", description="Effects of the changes of a recipe.")
    parser.add_argument("records", type=Path, help="folder of records")
    parser.add_argument("--into", type=Path, nargs="*", default=[], help="Markdown files in which the table is put")
    args = parser.parse_args(argv[1:])
    text = table(effects(accuracies(args.records)))
    for document in args.into:
        markdown.insert_all(document, {MARK: text})
    print(text, end="")


if __name__ == "__main__":
    run_command(main)
