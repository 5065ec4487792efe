"""Figure 1 of the paper with our results: accuracy against synthesis seconds, a labelled mark for each row."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from fastdfkd_jax.compare import label_places
from fastdfkd_jax.compare.results import Line
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.files import write_atomically


class Family(NamedTuple):
    """The look of related methods: shapes and line styles differ too, so that it can be read without colour."""

    methods: tuple[str, ...]
    colour: str
    marker: str
    style: Any


FAMILIES = {
    "FastDFKD": Family(("fastdfkd",), "#0063a6", "o", "-"),
    "CMI": Family(("cmi",), "#c44a00", "^", (0, (6, 1.5, 1, 1.5))),
    "DeepInversion": Family(("deepinversion",), "#00795a", "s", (0, (1, 1.2))),
    "one generator": Family(("dafl", "zskt", "dfq", "dfad", "generative_dfd", "nayer"), "#85358a", "D", (0, (3, 1))),
}
_OTHER = Family((), "#444444", "X", (0, (4, 1, 1, 1, 1, 1)))
_CONTROL = "#595959"
_SUFFIXES = ("png", "svg")
_DPI, _TITLE = 150, 80  # of the PNG, and characters in a line of a title
_TICKS = ((1, 2, 3, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))  # of each decade: the second where these are too few


def family(line: Line) -> Family:
    """Returns the family of a line's method."""
    return next((found for found in FAMILIES.values() if line.method in found.methods), _OTHER)


def write(path: Path, sections: Mapping[str, Sequence[Line]]) -> None:
    """Writes `path` as .png and .svg.

    Args:
      path: path without a suffix.
      sections: lines of a table; lines without accuracy or synthesis seconds are left out.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("a figure needs matplotlib, which is not installed: pip install matplotlib") from None
    # Makes equal figures equal files.
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure = draw(sections)
        for suffix in _SUFFIXES:
            metadata = {"Date": None} if suffix == "svg" else {}

            def save(file: IO[bytes], suffix=suffix, metadata=metadata) -> None:
                figure.savefig(file, format=suffix, dpi=_DPI, metadata=metadata)

            write_atomically(path.with_name(f"{path.name}.{suffix}"), save)


def draw(sections: Mapping[str, Sequence[Line]]) -> Any:
    """Returns the `matplotlib` figure: a panel for each section, error bars of one standard deviation.

    Lines join the rows of a series (`Row.series`). A family of methods has one colour, marker and line style.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4 * len(sections)), dpi=_DPI, layout="constrained")
    panels = [figure.add_subplot(len(sections), 1, i + 1) for i in range(len(sections))]
    for axes, (section, lines) in zip(panels, sections.items(), strict=True):
        _panel(axes, section, lines)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed beside marks that no longer move
    for axes, lines in zip(panels, sections.values(), strict=True):
        shown = _shown(lines)
        points = [(line.synthesis_seconds or 0, line.accuracy or 0, line.deviation or 0) for line in shown]
        labels = [(line.row.label, family(line).colour) for line in shown]
        label_places.place(axes, points, labels, _joined(shown), [line.accuracy or 0 for line in _levels(lines)])
    return figure


def _levels(lines: Sequence[Line]) -> list[Line]:
    """Returns the noise controls, which a horizontal line shows whatever their synthesis cost."""
    return [line for line in lines if line.row.is_control and family(line) is _OTHER and line.accuracy is not None]


def _shown(lines: Sequence[Line]) -> list[Line]:
    """Returns the lines that have a mark."""
    levels = _levels(lines)
    return [
        line
        for line in lines
        if line.accuracy is not None and line.synthesis_seconds and line.synthesises and line not in levels
    ]


def _joined(shown: Sequence[Line]) -> list[list[int]]:
    """Returns the series of several rows, each as indices in the order of seconds."""
    found: dict[str, list[int]] = {}
    for i, line in enumerate(shown):
        if line.row.series:
            found.setdefault(line.row.series, []).append(i)
    return [sorted(rows, key=lambda i: shown[i].synthesis_seconds or 0) for rows in found.values() if len(rows) > 1]


def _panel(axes: Any, section: str, lines: Sequence[Line]) -> None:
    shown = _shown(lines)
    for rows in _joined(shown):
        look = family(shown[rows[0]])
        seconds, scores = ([getattr(shown[i], name) for i in rows] for name in ("synthesis_seconds", "accuracy"))
        axes.plot(seconds, scores, color=look.colour, linestyle=look.style, linewidth=1.3)
    for line in shown:
        look = family(line)
        axes.errorbar(
            line.synthesis_seconds,
            line.accuracy,
            yerr=line.deviation,
            marker=look.marker,
            markersize=6,
            color=look.colour,
            linestyle="none",
            capsize=3,
        )
    for line in _levels(lines):
        _level(axes, line)
    if not shown:
        axes.text(0.5, 0.5, "No row has both a score and synthesis seconds.", ha="center", transform=axes.transAxes)
    _axes(axes, shown)
    score = "mIoU" if any(line.score == "miou" for line in lines) else "accuracy"
    axes.set_ylabel(f"student {score} %, last epoch")
    spread = "; bars: ± one standard deviation" if any(line.deviation for line in shown) else ""
    axes.set_xlabel(f"synthesis seconds, logarithmic{spread}")
    axes.set_title(textwrap.fill(section, _TITLE), fontsize="medium")


def _level(axes: Any, line: Line) -> None:
    axes.axhline(line.accuracy, color=_CONTROL, linestyle=(0, (7, 4)), linewidth=1.2, zorder=1)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    look = {"ha": "right", "va": "bottom", "color": _CONTROL, "fontsize": label_places.SIZE}
    axes.annotate(line.row.label, (1, line.accuracy), xytext=(-4, 2), **beside, **look)


def _axes(axes: Any, shown: Sequence[Line]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    seconds = [line.synthesis_seconds for line in shown if line.synthesis_seconds]
    if seconds:
        axes.set_xlim(min(seconds) / 1.5, max(seconds) * 1.5)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(FixedLocator(_ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(low: float, high: float) -> list[float]:
    ticks: list[float] = []
    for steps in _TICKS:
        ticks = [step * 10.0**power for power in range(-3, 9) for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) > 3:
            break
    return ticks
