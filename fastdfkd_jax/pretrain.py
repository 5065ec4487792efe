"""Trains a teacher on real data by the documented recipe (METHOD section 5).

    fastdfkd pretrain digits --workdir DIR [key=value]

It writes `teacher.safetensors`, `metrics.jsonl`, `config.json` and checkpoints into the work directory. On a signal to
stop, it saves one more checkpoint; the same command continues from there and ends with the same teacher. The test split
is used only for reporting, never for selection: the teacher is that of the last epoch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.cli import config_flags, signals
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import require_unit_scale
from fastdfkd_jax.convert import initial
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.errors import UserError, listed
from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.models.network import Variables
from fastdfkd_jax.storage.files import lock_folder, write_atomically
from fastdfkd_jax.training.checkpoint import Checkpoints
from fastdfkd_jax.training.supervised import Keeping, Position, Recipe, TrainState, steps_per_epoch, train_teacher
from fastdfkd_jax.training.workdir import flatten

log = logging.getLogger("fastdfkd_jax.pretrain")  # not __name__, which is __main__ here

DEFAULT_CONFIG = "configs/pretrain_digits.py"
_KEYS = {"arch", "mean", "std", "data", "recipe"}
# Keys and values of the recipe that older configs and unfinished trainings lack, with what holds for them.
_LATER = {"graph": "", "initial": ""}
_LATER_IN_RECIPE = {"optimizer": "sgd", "schedule": "milestones", "rate_warmup_epochs": 0}
_FREE_KEYS = ("data.dir", "recipe.eval_every")  # may differ when a training is resumed


def run(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """Trains and stores the teacher that a config describes, or continues a training that was stopped.

    Args:
      config: the keys of `configs/pretrain_cifar10.py`, as plain dictionaries.
      workdir: folder for all files.

    Returns:
      The last line of `metrics.jsonl`: epoch, training loss, the test split's measurements, seconds. {} if a signal
      stopped the training, which was then saved.

    Raises:
      UserError: the config, the data or the work directory cannot be used.
    """
    config = {**_LATER, **config}
    _expect_keys("the config", config, _KEYS | _LATER.keys())
    config["recipe"] = {**_LATER_IN_RECIPE, **config["recipe"]}
    _expect_keys("recipe", config["recipe"], {field.name for field in dataclasses.fields(Recipe)})
    recipe = Recipe(**{**config["recipe"], "lr_milestones": tuple(config["recipe"]["lr_milestones"])})
    train, test = _datasets(config["data"])
    steps_per_epoch(recipe, len(train.labels))
    network = _network(config, _spec(config, train, recipe), begun=(workdir / "checkpoints").exists())
    data.require(test, network.spec)
    with lock_folder(workdir), signals.deferred() as stop:
        training = _Training(network, recipe, test, workdir, config)
        try:
            keeping = Keeping(training.restore, training.save, stop)
            variables = train_teacher(network, recipe, train, training.report, keeping)
        finally:
            training.close()
        if variables is None:
            log.info("stopped by %s; checkpoint saved; run the same command to continue", stop.by)
            return {}
        if not training.teacher.exists():
            training.store(variables)
    return training.records[-1]


def _expect_keys(where: str, found: Mapping[str, Any], expected: Set[str]) -> None:
    if set(found) != expected:
        missing, strange = (listed(sorted(names)) or "none" for names in (expected - set(found), set(found) - expected))
        raise UserError(
            f"config.{where} must have its {len(expected)} keys, found missing: {missing}; unknown: {strange}"
        )


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
            f"expected recipe.square of at most {min(height, width)}, the images' side, found {recipe.square}"
        )
    if dataset.labels.ndim == 3:
        height = width = recipe.square or min(height, width)  # size of the images synthesised from it
    if height != width:
        raise UserError(f"expected square training images, found {height}x{width}: resize them")
    if not len(mean) == len(std) == channels or not all(value > 0 for value in std):
        raise UserError(f"expected {channels} numbers in mean and positive ones in std, found {mean} and {std}")
    require_unit_scale(mean, std)
    return NetworkSpec(config["arch"], data.count_classes(dataset), height, channels, mean, std)


def _network(config: Mapping[str, Any], spec: NetworkSpec, begun: bool) -> Network:
    """Builds the network, or reads its recorded graph; unless begun, it starts from the config's initial weights."""
    if config["graph"]:
        known = {"num_classes": spec.num_classes, "image_size": spec.image_size, "mean": spec.mean, "std": spec.std}
        network, _ = convert.load_network(config["graph"], **known)
    else:
        network = models.build(spec)
    if not config["initial"] or begun:
        return network
    return initial.starting_from(network, config["initial"], log.info)


class _Training:
    """The files of one training: checkpoints, metrics and the teacher."""

    def __init__(self, network: Network, recipe: Recipe, test: Dataset, workdir: Path, config: Mapping[str, Any]):
        """Opens a work directory that has been locked."""
        self.teacher = workdir / "teacher.safetensors"
        self.records: list[dict[str, Any]] = []
        self._network, self._recipe, self._test, self._workdir = network, recipe, test, workdir
        self._config = config
        self._evaluate, self._score = make_evaluator(network, recipe.batch_size), scores.of_task(network.spec)
        self._before, self._start = 0.0, time.perf_counter()
        later = {**_LATER, **{f"recipe.{key}": value for key, value in _LATER_IN_RECIPE.items()}}
        identity = {
            key: value
            for key, value in flatten(dict(config)).items()
            if key not in _FREE_KEYS and (key not in later or value != later[key])
        }
        self._checkpoints = Checkpoints(workdir / "checkpoints", identity=identity, restart="use a new workdir")

    def restore(self, state: TrainState) -> Position | None:
        """Returns the newest checkpoint's position, or None if there is none, and records the config.

        Raises:
          UserError: the checkpoints are of another config, or none of them can be used.
        """
        restored = self._checkpoints.restore(state)
        text = json.dumps(self._config, indent=2) + "\n"
        write_atomically(self._workdir / "config.json", lambda file: file.write(text.encode()))
        if restored is None:
            return None
        found = restored.progress
        self.records, self._before = found["records"], found["seconds"]
        log.info("resumed after step %d", found["steps"])
        return Position(restored.state, found["steps"], found["losses"])

    def save(self, position: Position) -> None:
        """Saves a checkpoint."""
        progress = {"steps": position.steps, "losses": position.losses}
        progress |= {"records": self.records, "seconds": self._seconds()}
        self._checkpoints.save(position.steps, position.state, progress)

    def report(self, epoch: int, loss: float, variables: Variables) -> None:
        """Evaluates the network, then writes metrics and teacher."""
        measured = {f"test_{name}": value for name, value in self._evaluate(variables, self._test).items()}
        self.records.append({"epoch": epoch, "train_loss": loss, **measured, "seconds": self._seconds()})
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_atomically(self._workdir / "metrics.jsonl", lambda file: file.write(lines.encode()))
        self.store(variables)
        found = self.records[-1]
        line, score = "epoch %d/%d: loss %.4f, test %s %.2f %%, %.0f s", self._score
        log.info(line, epoch, self._recipe.epochs, loss, score.title, found[f"test_{score.name}"], found["seconds"])

    def store(self, variables: Variables) -> None:
        """Writes the teacher with the last report's measurements."""
        name, last = f"test_{self._score.name}", self.records[-1]
        convert.save_network(
            self.teacher, self._network, variables, metadata={"epoch": last["epoch"], name: last[name]}
        )

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def close(self) -> None:
        """Waits for pending writes."""
        self._checkpoints.close()


def main(argv: Sequence[str]) -> None:
    """Parses, trains, and prints the last epoch's record as one line of JSON, or nothing if training was stopped."""
    config, workdir = config_flags.parse(argv, "pretrain", DEFAULT_CONFIG)
    if record := run(config.to_dict(), workdir):
        print(json.dumps(record))


if __name__ == "__main__":
    run_command(main)
