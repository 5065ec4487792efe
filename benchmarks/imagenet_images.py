"""Images of 224 pixels from two runs, what their teacher says of them, and how far each step was from its statistics.

    python -m benchmarks.imagenet_images --fast DIR --other DIR --out results/imagenet_224

Both runs are of `configs/imagenet.py`, or one of `deepinversion` with as many steps a call. Writes the last call's
images of each as a grid, the distance by step as a plot, and what is drawn as `images.json`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.models import TeacherOptions
from fastdfkd_jax.options import read, renamed
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.pool.shards import Rows, read_shard
from fastdfkd_jax.storage import files, image_grid
from fastdfkd_jax.training.build import forms_of, load_teacher
from fastdfkd_jax.training.workdir import flatten

COLUMNS = 4


def last_images(workdir: Path) -> Rows:
    """Returns the images of the last call."""
    return read_shard(sorted((workdir / "pool").glob("*.npz"))[-1])


def gaps_by_step(workdir: Path) -> list[list[float]]:
    """Returns, for each call, the distance of moments, sum over BatchNorms, before each step (Eq. 13)."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["synthesis/by_step/moment_gap"] for line in lines if "synthesis/by_step/moment_gap" in line]


def opinion(config: ConfigDict, rows: Rows) -> dict[str, Any]:
    """Returns the teacher's predictions on images: of the requested classes, and of any."""
    teacher, variables = load_teacher(read(TeacherOptions, config), replace(forms_of(config), dtype=np.float32))
    images = augment.normalize(on_device.to_float(jnp.asarray(rows.images)), teacher.spec.mean, teacher.spec.std)
    probabilities = np.asarray(jax.nn.softmax(jax.jit(teacher.apply)(variables, images).logits))
    asked = probabilities[np.arange(len(rows.labels)), rows.labels]
    return {
        "images": len(rows.labels),
        "agrees": int((probabilities.argmax(-1) == rows.labels).sum()),
        "among_its_five": int((np.argsort(-probabilities)[:, :5] == rows.labels[:, None]).any(1).sum()),
        "confidence_in_the_class_asked_for": float(asked.mean()),
        "largest_probability": float(probabilities.max(-1).mean()),
    }


def record(workdir: Path) -> dict[str, Any]:
    """Returns the settings and the results of a run."""
    content = json.loads((workdir / "config.json").read_text())["config"]
    config, gaps = ConfigDict(content), gaps_by_step(workdir)
    steps = renamed(flatten(content))[f"{config.method.name}.num_steps"]  # the run may be an old one
    content["teacher"]["checkpoint"], content["data"]["dir"] = Path(config.teacher.checkpoint).name, ""
    return {
        "config": content,
        "method": config.method.name,
        "calls": len(gaps),
        "batch": config.synthesis_batch,
        "steps_a_call": steps,
        "gap_by_step_of_first_call": gaps[0],
        "gap_by_step_of_last_call": gaps[-1],
        "teacher": opinion(config, last_images(workdir)),
    }


def plot(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Plots the distance by step, of the first and the last call of each run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for color, (name, found) in zip(("C0", "C1"), records.items(), strict=True):
        for which, style in (("first", ":"), ("last", "-")):
            gaps = found[f"gap_by_step_of_{which}_call"]
            axes.plot(range(len(gaps)), gaps, style, color=color, label=f"{name}, {which} of {found['calls']} calls")
    axes.set_yscale("log")
    axes.set_xlabel("step within a call")
    axes.set_ylabel("distance from the teacher's statistics")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", type=Path, required=True, help="workdir of FastDFKD")
    parser.add_argument("--other", type=Path, required=True, help="workdir of DeepInversion")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    workdirs = {"FastDFKD": args.fast, "DeepInversion": args.other}
    args.out.mkdir(parents=True, exist_ok=True)
    records = {name: record(workdir) for name, workdir in workdirs.items()}
    for name, workdir in workdirs.items():
        images = last_images(workdir).images[: 2 * COLUMNS]
        grid = args.out / f"{name.lower()}.png"
        image_grid.write_grid(grid, images, columns=COLUMNS, scale=1)
        with Image.open(grid) as picture:
            picture.save(grid.with_suffix(".jpg"), quality=90)  # a tenth of the bytes
        grid.unlink()
    plot(records, args.out / "by_step.png")
    files.write_json(args.out / "images.json", records)
    print(json.dumps({name: found["teacher"] for name, found in records.items()}))


if __name__ == "__main__":
    main()
