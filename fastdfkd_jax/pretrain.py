"""Trains a teacher on real data by the documented recipe (METHOD section 5).

    fastdfkd pretrain digits --workdir DIR [key=value]

Writes `teacher.safetensors`, `metrics.jsonl` and `config.json` into the work directory. The test split is
read for reporting, never for selection: the teacher is the one of the last epoch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.cli import config_flags
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import require_unit_scale
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.models.network import Variables
from fastdfkd_jax.storage.files import make_folder, write_atomically
from fastdfkd_jax.training.supervised import Recipe, steps_per_epoch, train_teacher

log = logging.getLogger("fastdfkd_jax.pretrain")  # not __name__, which is __main__

DEFAULT_CONFIG = "configs/pretrain_digits.py"
_KEYS = {"arch", "mean", "std", "data", "recipe"}


def run(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """Trains and stores the teacher that a config describes.

    Args:
      config: the keys of `configs/pretrain_cifar10.py`, as plain dictionaries.
      workdir: where the three files go.

    Returns:
      The last line of `metrics.jsonl`: epoch, training loss, the test split's measurements, seconds.

    Raises:
      UserError: the config, the data or the work directory cannot be used.
    """
    _expect_keys("the config", config, _KEYS)
    _expect_keys("recipe", config["recipe"], {field.name for field in dataclasses.fields(Recipe)})
    recipe = Recipe(**{**config["recipe"], "lr_milestones": tuple(config["recipe"]["lr_milestones"])})
    train, test = _datasets(config["data"])
    steps_per_epoch(recipe, len(train.labels))
    network = models.build(_spec(config, train, recipe))
    data.require(test, network.spec)
    _prepare(workdir, config)
    report, records = _reporter(network, recipe, test, workdir)
    train_teacher(network, recipe, train, report)
    return records[-1]


def _expect_keys(where: str, found: Mapping[str, Any], expected: Set[str]) -> None:
    if set(found) != expected:
        raise UserError(f"expected {', '.join(sorted(expected))} in {where}, found {', '.join(sorted(found))}")


def _datasets(source: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    _expect_keys("data", source, {"source", "dir", "short_side", "train_split", "test_split"})
    place: dict[str, Any] = {"data_dir": source["dir"] or None, "short_side": source["short_side"] or None}
    train, test = (data.load(source["source"], source[split], **place) for split in ("train_split", "test_split"))
    return train, test


def _spec(config: Mapping[str, Any], dataset: Dataset, recipe: Recipe) -> NetworkSpec:
    height, width, channels = dataset.images.shape[1:]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if recipe.square > min(height, width):
        raise UserError(
            f"expected recipe.square of at most {min(height, width)}, the images' side, got {recipe.square}"
        )
    if dataset.labels.ndim == 3:
        height = width = recipe.square or min(height, width)  # of what is synthesised for it
    if height != width:
        raise UserError(f"expected square training images, found {height}x{width}")
    if not len(mean) == len(std) == channels or not all(value > 0 for value in std):
        raise UserError(f"expected {channels} numbers in mean and positive ones in std, got {mean} and {std}")
    require_unit_scale(mean, std)
    return NetworkSpec(config["arch"], data.count_classes(dataset), height, channels, mean, std)


def _prepare(workdir: Path, config: Mapping[str, Any]) -> None:
    make_folder(workdir)
    text = json.dumps(config, indent=2) + "\n"
    write_atomically(workdir / "config.json", lambda file: file.write(text.encode()))


def _reporter(
    network: Network, recipe: Recipe, test: Dataset, workdir: Path
) -> tuple[Callable[[int, float, Variables], None], list[dict[str, Any]]]:
    """The function that evaluates and stores a teacher, and the list of records that it fills."""
    evaluate, score = make_evaluator(network, recipe.batch_size), scores.of_task(network.spec)
    records: list[dict[str, Any]] = []
    start = time.perf_counter()

    def report(epoch: int, loss: float, variables: Variables) -> None:
        measured = {f"test_{name}": value for name, value in evaluate(variables, test).items()}
        seconds = time.perf_counter() - start
        records.append({"epoch": epoch, "train_loss": loss, **measured, "seconds": seconds})
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(workdir / "metrics.jsonl", lambda file: file.write(lines.encode()))
        found = measured[f"test_{score.name}"]
        convert.save_network(
            workdir / "teacher.safetensors",
            network,
            variables,
            metadata={"epoch": epoch, f"test_{score.name}": found},
        )
        line = "epoch %d/%d: loss %.4f, test %s %.2f %%, %.0f s"
        log.info(line, epoch, recipe.epochs, loss, score.title, found, seconds)

    return report, records


def main(argv: Sequence[str]) -> None:
    """Parses, trains, and prints the last epoch's record as one line of JSON."""
    config, workdir = config_flags.parse(argv, "pretrain", DEFAULT_CONFIG)
    print(json.dumps(run(config.to_dict(), workdir)))


if __name__ == "__main__":
    run_command(main)
