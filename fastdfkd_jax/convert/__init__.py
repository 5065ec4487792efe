"""Conversion of checkpoints from and to PyTorch; `fastdfkd convert --help` lists the commands."""

from fastdfkd_jax.convert.checkpoints import load_described, load_network, save_network
from fastdfkd_jax.convert.naming import from_state_dict, to_state_dict

__all__ = [
    "from_state_dict",
    "load_described",
    "load_network",
    "save_network",
    "to_state_dict",
]
