"""Config of the toy teacher: `fastdfkd pretrain tests/pretrain_toy.py --workdir DIR`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import toy_architecture  # noqa: E402, F401 - registers 'toy'

from fastdfkd_jax.configs import pretrain_digits  # noqa: E402


def get_config():
    config = pretrain_digits.get_config()
    config.arch = "toy"
    config.recipe.epochs = 60
    config.recipe.lr_milestones = (36, 45, 54)
    return config
