"""The Markdown and the plot of a timed case, from its JSON alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from fastdfkd_jax.storage import markdown

KINDS = (("call_seconds", "call_flops", "synthesis call"), ("kd_seconds", "kd_flops", "KD step"))


def write_markdown(result: dict[str, Any]) -> str:
    """Tables of times, ratios, memory, start-up, agreement and single convolutions."""
    case, machine, sides = result["case"], result["machine"], result["sides"]
    peak = result["matrix_product_flops_per_second"]
    rounds = f"{result['rounds']} interleaved rounds"
    if (starts := result.get("starts", 1)) > 1:
        rounds += f" of {starts} starts each"
    lines = [
        f"{case['pair']}, batch {case['batch']}, k = {case['steps']}, {case['precision']}; {machine['cpu']}, "
        f"{machine['cores']} cores; jax {machine['jax']}, torch {machine['torch']}; medians of "
        f"{rounds} (least to most) of a call and {case['kd_steps']} KD steps.",
        "",
        f"A call is {result['call_flops'] / 1e9:,.0f} GFLOP, a KD step {result['kd_flops'] / 1e9:,.0f}; the best "
        f"matrix product of the run made {peak / 1e9:,.0f} GFLOP/s.",
        "",
    ]
    head = ("side", "call s", "GFLOP/s", "of peak", "KD step s", "GFLOP/s", "of peak", "memory GB, before and most")
    rows = []
    for name, side in sides.items():
        cells = [name]
        for key, flops, _ in KINDS:
            speed = result[flops] / median(side[key])
            cells += [_spread(side[key]), f"{speed / 1e9:.1f}", f"{100 * speed / peak:.0f} %"]
        before, most = (f"{number / 1e9:.2f}" for number in side["resident_bytes"])
        on_device = side["device_peak_bytes"]
        cells.append(f"{before}, {most}" if on_device is None else f"{on_device / 1e9:.2f} on the device")
        rows.append(cells)
    lines.append(markdown.table(head, rows))
    others = [name for name in sides if name != "ours"]
    if others:
        ours = {key: median(sides["ours"][key]) for key, *_ in KINDS}
        rows = [[label, *(f"{ours[key] / median(sides[name][key]):.2f}" for name in others)] for key, _, label in KINDS]
        lines.append(markdown.table(["ours / other", *others], rows))
        worst = {name: max(values.values()) for name, values in result["agreement"].items()}
        words = ", ".join(f"{value:.0e} ({name})" for name, value in worst.items())
        lines += [f"Losses and adapted parameters differ by {words} in double precision.", ""]
    start = ", ".join(f"{seconds:.1f} s ({name})" for name, seconds in result["start_seconds"].items())
    lines += [f"From the start of our process until the first call runs: {start}.", ""]
    return "\n".join(lines + _convolution_table(result))


def _convolution_table(result: dict[str, Any]) -> list[str]:
    sides = {name: side["convolutions"] for name, side in result["sides"].items() if side["convolutions"]}
    if not sides:
        return []
    rows = []
    for i, conv in enumerate(result["convolutions"]):
        shape = f"{conv['height']}×{conv['width']}×{conv['inputs']}"
        kind = f"{conv['outputs']}, {conv['size']}×{conv['size']}, {conv['stride']}"
        speeds = [" / ".join(f"{conv['flops'] / s / 1e9:.0f}" for s in timed[i]) for timed in sides.values()]
        rows.append([shape, kind, conv["count"], *speeds])
    title = "The teacher's convolutions: GFLOP/s of forward pass / input gradient / kernel gradient."
    return [title, "", markdown.table(["input", "outputs, kernel, stride", "times", *sides], rows)]


def compare(results: dict[str, dict[str, Any]]) -> str:
    """Formats one line for each result: our medians, and the ratio of each to the line before."""
    rows = []
    before: dict[str, Any] | None = None
    for name, result in results.items():
        ours, cells = result["sides"]["ours"], [name]
        for key, _, _ in KINDS:
            ratio = "" if before is None else f"{median(ours[key]) / median(before[key]):.2f}"
            cells += [_spread(ours[key]), ratio]
        before = ours
        rows.append(cells)
    return markdown.table(["", "call s", "of the line before", "KD step s", "of the line before"], rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws a bar for each side, one panel for calls and one for KD steps, with every round as a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, (key, _, label) in zip(figure.subplots(1, 2), KINDS, strict=True):
        for place, side in enumerate(result["sides"].values()):
            axes.bar(place, median(side[key]), color="C0" if place == 0 else "C7", zorder=1)
            axes.scatter([place] * len(side[key]), side[key], color="black", s=8, zorder=2)
        axes.set_xticks(range(len(result["sides"])), list(result["sides"]))
        axes.set_title(f"seconds of a {label}")
    figure.savefig(path, dpi=100)


def _spread(values: list[float]) -> str:
    digits = 2 if median(values) > 1 else 3
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    """Prints the Markdown of a recorded case, or of several a table that compares our side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="what --out of benchmarks.speed was")
    folders = parser.parse_args().folders
    results = {folder.name: json.loads((folder / "speed.json").read_text()) for folder in folders}
    print(compare(results) if len(results) > 1 else write_markdown(*results.values()), end="")


if __name__ == "__main__":
    main()
