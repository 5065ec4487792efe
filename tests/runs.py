"""A real run in small, for the tests of the host loop: digits, two lanes of nothing, seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import default  # noqa: E402 - configs lie beside the package, not in it


def tiny_config(**changes) -> ConfigDict:
    """The quickstart's teacher, a WRN-10-1 student, three calls of eight images; keys with '__' for '.'."""
    config = default.get_config()
    config.calls, config.warmup_calls = 3, 1
    config.teacher.checkpoint = "digits"
    config.student.arch = "wrn10_1"
    config.data.source, config.data.split, config.data.batch = "digits", "test[:32]", 32
    config.fastdfkd.num_adapt_steps = 2
    config.synthesis_batch = config.kd.batch = 8
    config.fastdfkd.reset_first_layer_at = 0
    config.generator.latent_dim, config.generator.width = 16, 8
    config.inversion.crop_padding = config.kd.crop_padding = 2
    config.kd.steps_per_call, config.kd.steps_per_dispatch = 4, 2
    config.kd.lr = 0.05
    config.eval_every = config.checkpoint_every = config.images_every = 1
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def identity_of(workdir: Path) -> dict[str, Any]:
    """The identity of the run in a folder, without which its checkpoints are refused."""
    return json.loads((workdir / "config.json").read_text())["identity"]
