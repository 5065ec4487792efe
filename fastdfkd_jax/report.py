"""What a run leaves for people: PNG grids and summary.json; and tables made from the summaries.

`python -m fastdfkd_jax.report results` prints a Markdown table of recorded runs; with `--into README.md` it
replaces what stands there between the lines `<!-- results -->` and `<!-- /results -->`; with `--add WORKDIR --as
NAME/SEED` it first records a finished run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdfkd_jax import limits
from fastdfkd_jax.arguments import OneLineParser
from fastdfkd_jax.command import run_command
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.files import make_folder, write_atomically

_END = "<!-- /results -->"
_COLUMNS = (
    "run", "teacher → student", "seeds", "teacher %", "student %, last", "best on test %", "noise control %",
    "images", "synthesis s", "KD s",
)  # fmt: skip


def write_grid(path: Path, images: np.ndarray, columns: int = 16, scale: int = 2, rows: int = 0) -> None:
    """Writes the first images, row by row, as one PNG.

    Args:
      path: the file.
      images: uint8[N, H, W, C].
      columns: images in a row.
      scale: pixels of the picture for a pixel of an image.
      rows: the most that are shown; 0 for as many as columns.
    """
    images = np.asarray(images)[: columns * (rows or columns)]
    used = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    sheet = np.full((used * (height + 1), columns * (width + 1), channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    make_folder(path.parent)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; OSError or ValueError where there is none."""
    content = limits.read_json(path, "record")
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    return content


def table(directory: Path) -> str:
    """A Markdown table of the runs below a folder: a row for each folder of seeds, `NAME/SEED/summary.json`.

    Several seeds give mean ± standard error. What no summary holds is 'not measured'.

    Raises:
      UserError: no summaries, or one that cannot be read.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(directory.glob("*/*/summary.json")):
        try:
            groups.setdefault(path.parent.parent.name, []).append(_json(path))
        except ValueError as error:
            raise UserError(f"{path} is not the summary of a run: {error}") from None
    if not groups:
        raise UserError(f"{directory} holds no records: expected NAME/SEED/summary.json")
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    rows += [_row(name, summaries) for name, summaries in groups.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def score_key(summary: Mapping[str, Any], name: str) -> str:
    """A key such as 'student_{}_last' with the score of a run's task in it; older records are all of accuracy."""
    return name.format(summary.get("score", "accuracy"))


def _row(name: str, summaries: list[dict[str, Any]]) -> tuple[str, ...]:
    first = summaries[0]

    def mean(key: str, digits: int) -> str:
        values = [summary[key] for summary in summaries if summary.get(key) is not None]
        if not values:
            return "not measured"
        text = f"{np.mean(values):,.{digits}f}"
        return f"{text} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else text

    return (
        name + (f" ({first['score']})" if first.get("score", "accuracy") != "accuracy" else ""),
        f"{first['teacher']} → {first['student']}",
        ", ".join(str(summary["seed"]) for summary in summaries),
        f"{first[score_key(first, 'teacher_{}')]:.2f}",
        mean(score_key(first, "student_{}_last"), 2),
        mean(score_key(first, "student_{}_best_on_test"), 2),
        mean(score_key(first, "noise_student_{}_last"), 2),
        f"{first['images']:,}",
        mean("synthesis_seconds", 0),
        mean("distill_seconds", 0),
    )


def add(workdir: Path, record: Path, timed: bool = True, picture: bool = True) -> None:
    """Copies what is worth keeping of a finished run: config, metrics, summary and the last picture.

    Of places on this machine only the last name is kept.

    Args:
      workdir: of the run.
      record: the folder to write.
      timed: whether the machine did nothing else; otherwise the summary's seconds are left out.
      picture: whether the last picture is kept.

    Raises:
      UserError: the run is not finished.
    """
    try:
        config, summary = (_json(workdir / name) for name in ("config.json", "summary.json"))
        chosen = config["config"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{workdir} holds no finished run: expected its config.json and summary.json") from error
    make_folder(record)
    write_json(record / "config.json", without_places(chosen))
    if not timed:
        summary = {name: value for name, value in summary.items() if not name.endswith("_seconds")}
    write_json(record / "summary.json", summary)
    pictures = sorted((workdir / "images").glob("*.png")) if picture else []
    copies = [("metrics.jsonl", workdir / "metrics.jsonl"), *(("images.png", path) for path in pictures[-1:])]
    for name, source in copies:
        content = source.read_bytes()
        write_atomically(record / name, lambda file, content=content: file.write(content))


def without_places(value: Any) -> Any:
    """A tree of JSON in which of each place on this machine only the last name is left."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    is_place = isinstance(value, str) and value.startswith(("/", "~", "."))
    return Path(value).name if is_place else value


def insert(text: str, block: str, name: str = "") -> str:
    """Replaces what stands between the marks of a document, `<!-- results NAME -->` and `<!-- /results -->`.

    Args:
      text: the document.
      block: whole lines to put there.
      name: of the mark; '' for the one without.

    Raises:
      UserError: the document has no such marks.
    """
    mark = start_mark(name)
    before, start, rest = text.partition(f"{mark}\n")
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise UserError(f"the document has no place for the table: expected the lines {mark} and {_END}")
    return before + start + block + end + after


def insert_all(document: Path, blocks: Mapping[str, str]) -> None:
    """Puts each block between its marks of a Markdown file; those that the file has no marks for are left out.

    Args:
      document: the file.
      blocks: whole lines by the name of their mark.

    Raises:
      UserError: the file cannot be read, or has a place for none of them.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read ({error.strerror}): give a Markdown file") from error
    marked = [name for name in blocks if start_mark(name) in text]
    if not marked:
        expected = " or ".join(start_mark(name) for name in blocks)
        raise UserError(f"{document} has no place for the tables: expected the line {expected}, and {_END} after it")
    for name in marked:
        text = insert(text, blocks[name], name)
    write_atomically(document, lambda file: file.write(text.encode()))


def start_mark(name: str = "") -> str:
    """The line after which a table of this name stands in a document."""
    return f"<!-- results {name} -->" if name else "<!-- results -->"


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = OneLineParser(prog="python -m fastdfkd_jax.report", description="A table of recorded runs.")
    parser.add_argument("results", type=Path, help="folder of records, NAME/SEED/summary.json")
    parser.add_argument("--into", type=Path, help="Markdown file in which the table is put")
    parser.add_argument("--add", type=Path, metavar="WORKDIR", help="a finished run to record first")
    parser.add_argument("--as", dest="name", metavar="NAME/SEED", help="where in the folder it is recorded")
    parser.add_argument("--untimed", action="store_true", help="the machine was busy: leave out the run's seconds")
    args = parser.parse_args(argv[1:])
    if args.add is not None:
        if not args.name:
            raise UserError("--add needs --as NAME/SEED, the place of the record")
        add(args.add, args.results / args.name, timed=not args.untimed)
    block = table(args.results)
    if args.into is None:
        print(block, end="")
        return
    insert_all(args.into, {"": block})


if __name__ == "__main__":
    run_command(main)
