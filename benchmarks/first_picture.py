"""The picture at the top of the README, from a record of the quickstart.

    fastdfkd run quickstart --workdir WORKDIR
    python -m benchmarks.first_picture results/quickstart/seed0 --workdir WORKDIR

The second command first copies images and `images.png` from the run to the record, as `images.npz` and `images.png`;
without `--workdir`, it draws the record's. `picture.png` has images that the run synthesised, the teacher's confidence
in their class, and the scores of the record's `summary.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdfkd_jax.configs import quickstart
from fastdfkd_jax.data import digits
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.scores import score_key
from fastdfkd_jax.storage import image_grid, npz
from fastdfkd_jax.training import class_rows, one_run

PICTURE, IMAGES, GRID = "picture.png", "images.npz", "images.png"
SIZE = (860, 448)
TILE, STEP, TOP, LEFT = 32, 34, 98, 364  # pixels: of an image, from image to image, and the first image's place
_PER_CLASS = 8
_INK, _FAINT, _LINE = (24, 24, 27), (98, 98, 105), (170, 170, 178)
_TEACHER, _STUDENT, _NOISE = (75, 85, 99), (0, 99, 166), (150, 150, 158)


class Record(NamedTuple):
    """The content of a record that is drawn.

    Attributes:
      images: uint8[N, 16, 16, 1].
      labels: i32[N], the classes that they were made for, sorted.
      confidence: f32[N], the teacher's in these classes.
      summary: the summary of the run.
    """

    images: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    summary: dict[str, Any]


def copy_images(workdir: Path, record: Path) -> None:
    """Copies the newest images of each class, with the teacher's confidence, from a run to its record.

    Raises:
      UserError: the run's scores are not those of the record.
    """
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (workdir, record))
    for key in ("teacher_accuracy", "student_accuracy_last", "noise_student_accuracy_last"):
        if ours[key] != theirs[key]:
            raise UserError(f"expected the run of {record}, with {key} {theirs[key]}, found {ours[key]} in {workdir}")
    gallery = class_rows.of_run(workdir, *one_run.build(quickstart.get_config()))
    labels = np.repeat([row.label for row in gallery.rows], [len(row.images) for row in gallery.rows])
    images, confidence = (
        np.concatenate([getattr(row, name) for row in gallery.rows]) for name in ("images", "confidence")
    )
    npz.write(record / IMAGES, {"images": images, "labels": labels.astype(np.int32), "confidence": confidence})
    (record / GRID).write_bytes((workdir / GRID).read_bytes())


def read(record: Path) -> Record:
    """Reads a record."""
    with np.load(record / IMAGES, allow_pickle=False) as file:
        images, labels, confidence = (file[name] for name in ("images", "labels", "confidence"))
    return Record(images, labels, confidence, json.loads((record / "summary.json").read_text()))


def draw(record: Record) -> Image.Image:
    """Returns the picture: the teacher without its data, the synthesised images by class, and three scores."""
    sheet = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(sheet)
    _heading(pen, 20, "1", "A trained teacher", "its training data is gone")
    _heading(pen, 238, "2", "Images made from the teacher alone", "for each class, and how sure the teacher is of it")
    _heading(pen, 656, "3", "A trained student", "accuracy on real digits")
    _teacher(pen, record.summary)
    _rows(sheet, pen, record)
    _bars(pen, record.summary)
    pen.rectangle((0, 0, SIZE[0] - 1, SIZE[1] - 1), outline=_LINE)
    return sheet


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _heading(pen: ImageDraw.ImageDraw, left: int, number: str, title: str, below: str) -> None:
    pen.ellipse((left, 18, left + 22, 40), fill=_STUDENT)
    pen.text((left + 11, 29), number, "white", _font(14), anchor="mm")
    pen.text((left + 29, 18), title, _INK, _font(16))
    pen.text((left + 29, 40), below, _FAINT, _font(13))


def _teacher(pen: ImageDraw.ImageDraw, summary: dict[str, Any]) -> None:
    """Draws the absent data, crossed out, above the network, and arrows from there to the images."""
    box = (46, 104, 176, 184)
    for start in range(box[0], box[2], 10):
        for y in (box[1], box[3]):
            pen.line((start, y, start + 5, y), fill=_LINE, width=2)
    for start in range(box[1], box[3], 10):
        for x in (box[0], box[2]):
            pen.line((x, start, x, start + 5), fill=_LINE, width=2)
    for ends in ((box[0], box[1], box[2], box[3]), (box[0], box[3], box[2], box[1])):
        pen.line(ends, fill=(214, 69, 65), width=2)
    pen.rectangle((72, 126, 150, 162), fill="white")
    pen.multiline_text((111, 144), "training\ndata", _FAINT, _font(14), anchor="mm", align="center")
    pen.rounded_rectangle((46, 226, 176, 306), 8, fill=(236, 240, 245), outline=_TEACHER, width=2)
    text = f"digit classifier\n{summary['teacher'].upper().replace('_', '-')}"
    pen.multiline_text((111, 266), text, _INK, _font(15), anchor="mm", align="center")
    _arrow(pen, 186, 226, 266)
    _arrow(pen, 644, 664, 266)


def _arrow(pen: ImageDraw.ImageDraw, left: int, right: int, y: int) -> None:
    pen.line((left, y, right - 6, y), fill=_TEACHER, width=3)
    pen.polygon([(right, y), (right - 10, y - 7), (right - 10, y + 7)], fill=_TEACHER)


def _rows(sheet: Image.Image, pen: ImageDraw.ImageDraw, record: Record) -> None:
    """Draws a row for each class: its number, a real digit to compare with, the confidence, and images."""
    real = digits.read("test")
    for left, text in ((LEFT - 83, "real"), (LEFT - 30, "sure"), (LEFT + 4 * STEP, "synthesised")):
        pen.text((left, TOP - 6), text, _FAINT, _font(13), anchor="ms")
    for row, label in enumerate(np.unique(record.labels)):
        chosen, top = record.labels == label, TOP + row * STEP
        middle = top + TILE // 2
        pen.text((LEFT - 107, middle), str(label), _INK, _font(18), anchor="rm")
        sheet.paste(image_grid.tile(real.images[np.argmax(real.labels == label)], TILE), (LEFT - 99, top))
        pen.text((LEFT - 12, middle), f"{100 * record.confidence[chosen].mean():.0f} %", _FAINT, _font(13), anchor="rm")
        for column, image in enumerate(record.images[chosen][:_PER_CLASS]):
            sheet.paste(image_grid.tile(image, TILE), (LEFT + column * STEP, top))


def _bars(pen: ImageDraw.ImageDraw, summary: dict[str, Any]) -> None:
    """Draws the three scores, each with its name and its value."""
    student = score_key(summary, "student_{}_last")
    bars = (
        ("teacher", summary[score_key(summary, "teacher_{}")], _TEACHER),
        ("student", summary[student], _STUDENT),
        ("same, trained on noise", summary[f"noise_{student}"], _NOISE),
    )
    left, right = 672, 844
    for number, (name, score, colour) in enumerate(bars):
        top = 150 + number * 84
        pen.text((left, top), name, _INK, _font(13), anchor="ls")
        pen.rectangle((left, top + 8, right, top + 34), fill=(238, 238, 241))
        pen.rectangle((left, top + 8, left + round((right - left) * score / 100), top + 34), fill=colour)
        wide = score > 50
        place = (left + 8, top + 21) if wide else (left + (right - left) * score / 100 + 8, top + 21)
        pen.text(place, f"{score:.2f} %", "white" if wide else _INK, _font(16), anchor="lm")


def main() -> None:
    """Draws the picture of a record, after copying images there if a run is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("record", type=Path, help="folder of the record")
    parser.add_argument("--workdir", type=Path, help="the finished run to copy images from")
    chosen = parser.parse_args()
    if chosen.workdir is not None:
        copy_images(chosen.workdir, chosen.record)
    image_grid.save(chosen.record / PICTURE, draw(read(chosen.record)))


if __name__ == "__main__":
    main()
