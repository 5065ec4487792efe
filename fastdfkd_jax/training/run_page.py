"""`report.html`: a finished run on one page that opens offline, with curves, images by class, and advice."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.evaluation.scores import score_key
from fastdfkd_jax.storage.files import write_atomically
from fastdfkd_jax.storage.image_grid import as_picture
from fastdfkd_jax.training import layer_statistics, summary_text
from fastdfkd_jax.training.class_rows import Gallery
from fastdfkd_jax.training.described import AGREEMENT_REMEDY, METRICS
from fastdfkd_jax.training.layer_statistics import Layer

PAGE = "report.html"
_IN_ROW = 8  # images of a class
_THUMBNAIL = 96  # pixels, the longer side of a larger image
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 320, 150, 46, 20  # of a chart, and of its margins, pixels

_CHARTS = (
    "eval/accuracy", "eval/miou", "kd/agreement", "kd/loss", "synthesis/on_target", "synthesis/moment_gap",
    "synthesis/agreement", "synthesis/diversity",
)  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5 }
body { max-width: 68rem; margin: 0 auto; padding: 1rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .75rem; border-radius: .4rem }
figure { margin: 0 } figcaption { font-size: .85rem; max-width: 20rem }
.charts, .classes { display: flex; flex-wrap: wrap; gap: 1.25rem }
.classes img { image-rendering: pixelated; width: min(48px, calc((100vw - 4rem) / 8)); margin-right: 2px }
svg { max-width: 100% } text { font-size: 11px; fill: currentColor }
"""


_DOCUMENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def write(folder: Path, summary: Mapping[str, Any], gallery: Gallery, layers: Sequence[Layer] = ()) -> Path:
    """Writes the page of a finished run from the files in its workdir.

    Args:
      folder: the workdir, with metrics.jsonl and config.json.
      summary: of the run.
      gallery: the images to show (`class_rows.of_run`).
      layers: the images' distances from the teacher's statistics, where they are known.
    """
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("config", {})
    path = folder / PAGE
    content = page(summary, records, config, gallery, folder, layers)
    write_atomically(path, lambda file: file.write(content.encode()))
    return path


def page(
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    gallery: Gallery,
    folder: Path,
    layers: Sequence[Layer] = (),
) -> str:
    """Formats the page as HTML.

    Args:
      summary, records, config: what summary.json, metrics.jsonl and config.json hold.
      gallery: the images to show.
      folder: of the files that are named.
      layers: distances from the teacher's statistics by layer; () for none.
    """
    title = f"{summary['teacher']} → {summary['student']}, {summary['method']}"
    charts = [chart for key in _CHARTS if (chart := _chart(records, key))]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<pre>{html.escape(summary_text.text(summary, folder))}</pre>",
        *(f"<p>{html.escape(line)}</p>" for line in advice(summary, records)),
        "<h2>Synthesised images</h2>",
        _gallery(gallery) or "<p>This method keeps no images.</p>",
        "<h2>Course of the run</h2><p>The horizontal axis counts calls.</p>",
        f'<div class="charts">{"".join(charts)}</div>',
        layer_statistics.section(layers),
        "<h2>Load the student</h2>",
        f"<pre>{html.escape(_loading(summary, folder))}</pre>",
        "<h2>Configuration</h2>",
        f"<details><summary>All values</summary><pre>{html.escape(json.dumps(config, indent=1))}</pre></details>",
    ]
    return _DOCUMENT.format(title=html.escape(title), style=_STYLE, body="\n".join(parts))


def advice(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns advice for each poor signal, or one sentence that none is poor."""
    # Name of a metric: below which mean of the last calls it is poor, and how that is said.
    poor = {
        "synthesis/on_target": (0.5, "Only {:.0f} % of the last images are on target."),
        "synthesis/diversity": (0.05, "The last images are nearly alike."),
        "kd/agreement": (0.8, "Student and teacher agree on {:.0f} % of the training images."),
    }
    found = []
    for name, (least, said) in poor.items():
        value = _last(records, name)
        if value is not None and value < least:
            found.append(f"{said.format(100 * value)} {METRICS[name].remedy}")
    held_out, control = summary.get("agreement_held_out"), summary.get("noise_agreement_held_out")
    if held_out is not None and held_out < 80:
        found.append(f"Student and teacher agree on {held_out:.0f} % of the held-out images. {AGREEMENT_REMEDY}")
    if held_out is not None and control is not None and held_out < control + 5:
        found.append("On held-out images the student is hardly better than one trained on noise.")
    key = score_key(summary, "student_{}_last")
    student, control = summary.get(key), summary.get(f"noise_{key}")
    if student is not None and control is not None and student < control + 5:
        found.append("The student is hardly better than one trained on noise: the images have taught it little.")
    return found or ["No signal of this run is poor."]


def _last(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Returns the mean over the last five calls that have the value."""
    values = [record[key] for record in records if isinstance(record.get(key), int | float)][-5:]
    return sum(values) / len(values) if values else None


def _chart(records: Sequence[Mapping[str, Any]], key: str) -> str:
    """Draws a line chart as SVG; '' with fewer than two values."""
    points = [(record["call"], record[key]) for record in records if isinstance(record.get(key), int | float)]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if len(points) < 2:
        return ""
    title, meaning, normal, _ = METRICS[key]
    caption = f"{meaning} Normal: {normal}" if normal else meaning
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    span, length = (high - low) or 1.0, (xs[-1] - xs[0]) or 1
    bottom = _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - xs[0]) / length * (_WIDTH - _LEFT - 8)
        return f"{across:.1f},{bottom - (y - low) / span * (bottom - 10):.1f}"

    line = " ".join(place(x, y) for x, y in points)
    labels = [(_LEFT - 4, 14, "end", f"{high:.3g}"), (_LEFT - 4, bottom, "end", f"{low:.3g}")]
    labels += [(_LEFT, _HEIGHT - 4, "start", str(xs[0])), (_WIDTH - 8, _HEIGHT - 4, "end", str(xs[-1]))]
    texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in labels)
    return (
        f'<figure><strong>{html.escape(title)}</strong><br><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'role="img" aria-label="{html.escape(title)}"><path d="M{_LEFT},8V{bottom}H{_WIDTH - 8}" fill="none" '
        f'stroke="currentColor" opacity=".4"/><polyline points="{line}" fill="none" stroke="#2a78d0" '
        f'stroke-width="1.6"/>{texts}</svg><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _gallery(gallery: Gallery) -> str:
    """Formats the newest images of each class, with the teacher's confidence; '' without any."""
    rows = []
    for row in gallery.rows:
        titles = (
            [""] * len(row.images) if row.confidence is None else [f"{100 * sure:.0f} %" for sure in row.confidence]
        )
        shown = "".join(
            f'<img alt="{title}" title="{title}" src="data:image/png;base64,{_png(image)}">'
            for image, title in list(zip(row.images, titles, strict=True))[:_IN_ROW]
        )
        caption = html.escape(row.name) + (f", {row.note}" if row.note else "")
        rows.append(f"<figure><figcaption>{caption}</figcaption>{shown}</figure>")
    if not rows:
        return ""
    about = "The newest images of each class. The percentage is the teacher's mean confidence in that class."
    said = f"<p>{about} {gallery.cut}</p>" if gallery.has_classes else ""
    return f'{said}<div class="classes">{"".join(rows)}</div>'


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    picture = as_picture(image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))  # smaller ones stay as they are
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _loading(summary: Mapping[str, Any], folder: Path) -> str:
    lines = ["import fastdfkd_jax as fd", f'network, variables = fd.load_network("{folder / "student.safetensors"}")']
    if (folder / "student.pth").exists():
        lines += ["", "import torch", f'weights = torch.load("{folder / "student.pth"}", weights_only=True)']
        lines += ["your_network.load_state_dict(weights)"]
    return "\n".join(lines)
