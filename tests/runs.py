"""A real run in small, for the tests of the host loop: digits, two lanes of nothing, seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fastdfkd_jax.options import read
from fastdfkd_jax.training import one_run
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.one_run import Built
from fastdfkd_jax.training.run_options import RunOptions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import toy_architecture  # noqa: E402

from fastdfkd_jax.configs import default  # noqa: E402 - configs lie beside the package, not in it


def tiny_config(**changes) -> ConfigDict:
    """The toy teacher and student, three calls of eight images; keys with '__' for '.'.

    A process that a test starts leaves no student.pth, because it would import PyTorch for longer than it runs.
    """
    if "pytest" not in sys.modules:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    config = default.get_config()
    config.calls, config.warmup_calls = 3, 1
    config.held_out = False  # one more program for each run
    config.teacher.checkpoint = str(toy_architecture.CHECKPOINT)
    config.student.arch = "toy"
    config.data.source, config.data.split, config.data.batch = "digits", "test[:32]", 32
    config.fastdfkd.num_steps = 2
    config.synthesis_batch = config.kd.batch = 8
    config.fastdfkd.reset_first_layer_at = 0
    config.generator.latent_dim, config.generator.width = 16, 8
    config.inversion.crop_padding = config.kd.crop_padding = 2
    config.kd.steps_per_call, config.kd.steps_per_dispatch = 4, 2
    config.kd.lr = 0.05
    config.eval_every = config.checkpoint_every = config.images_every = 1
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def options_of(config: ConfigDict) -> RunOptions:
    """The options of a run."""
    return read(RunOptions, config)


def identity_of(workdir: Path) -> dict[str, Any]:
    """The identity of the run in a folder, without which its checkpoints are refused."""
    return json.loads((workdir / "config.json").read_text())["identity"]


class Runs:
    """Runs that share what they compile, which is nearly all that a tiny run costs.

    A test that replaces a method must have its own `Runs`. Few are held: the programs of a run
    take some 2,000 of the 65,530 memory maps that Linux gives a process, and XLA crashes where there are none left.
    """

    _MOST = 8
    _NOT_COMPILED = ("seed", "noise_control", "restart", "eval_every", "checkpoint_every", "images_every")

    def __init__(self) -> None:
        self._built: dict[str, Built] = {}

    def built(self, config: ConfigDict, fresh: bool = False) -> Built:
        """Parts and programs, these of an earlier run if its config compiles to the same, unless fresh ones are asked.

        Parts that hold images are always made anew.
        """
        said = {key: value for key, value in config.to_dict().items() if key not in self._NOT_COMPILED}
        has_images = bool(config.pool.initial or config.transfer.source)
        said["pool"] = {**said["pool"], "initial": ""}
        name = json.dumps(said, sort_keys=True)
        known = None if fresh else self._built.pop(name, None)
        self._built[name] = known or one_run.build(config)  # the last, which is forgotten last
        while len(self._built) > self._MOST:
            del self._built[next(iter(self._built))]
        if known is not None and has_images:
            return known._replace(parts=assemble(config))
        return self._built[name]

    def forget(self) -> None:
        """Lets go of all programs."""
        self._built.clear()

    def run(self, config: ConfigDict, folder: Path) -> dict[str, Any]:
        """`one_run.run`."""
        return one_run.run(config, folder, self.built(config))
