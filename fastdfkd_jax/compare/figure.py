"""Figure 1 of the paper with our results: accuracy against synthesis seconds, with a mark for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from fastdfkd_jax.compare.results import Line
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.files import write_atomically

_MARKERS = "osD^vP*X<>hp"
_SUFFIXES = ("png", "svg")


def write(path: Path, sections: Mapping[str, Sequence[Line]]) -> None:
    """Writes `path` as .png and .svg: a panel for each section, error bars of one standard deviation.

    Args:
      path: path without a suffix.
      sections: lines of a table; lines without accuracy or synthesis seconds are left out.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "a figure needs matplotlib, which is not installed: pip install 'fastdfkd_jax[bench]'"
        ) from None
    # Makes equal figures equal files.
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.2 * len(sections)), layout="constrained")
        for i, (section, lines) in enumerate(sections.items()):
            _panel(figure.add_subplot(len(sections), 1, i + 1), section, lines)
        for suffix in _SUFFIXES:
            metadata = {"Date": None} if suffix == "svg" else {}

            def save(file: IO[bytes], suffix=suffix, metadata=metadata) -> None:
                figure.savefig(file, format=suffix, dpi=150, metadata=metadata)

            write_atomically(path.with_name(f"{path.name}.{suffix}"), save)


def _panel(axes, section: str, lines: Sequence[Line]) -> None:
    shown = [line for line in lines if line.accuracy is not None and line.synthesis_seconds and line.synthesises]
    for i, line in enumerate(line for line in shown if not line.row.is_control):
        axes.errorbar(
            line.synthesis_seconds,
            line.accuracy,
            yerr=line.deviation,
            marker=_MARKERS[i % len(_MARKERS)],
            color=f"C{i % 10}",
            linestyle="none",
            capsize=3,
            label=line.row.label,
        )
    for line in lines:
        if line.row.is_control and line.accuracy is not None:
            axes.axhline(line.accuracy, color="grey", linestyle="--", label=line.row.label)
    axes.set_xscale("log")
    axes.set_xlabel("synthesis seconds")
    score = "mIoU" if any(line.score == "miou" for line in lines) else "accuracy"
    axes.set_ylabel(f"student {score} %, last epoch")
    axes.set_title(section, fontsize="medium")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
