"""Writes the student's files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fastdfkd_jax import convert
from fastdfkd_jax.models import Network


def save_student(workdir: Path, student: Network, variables: Any) -> None:
    """Writes student.safetensors and, if torch is installed, student.pth."""
    convert.save_network(workdir / "student.safetensors", student, variables)
    if importlib.util.find_spec("torch") is not None:
        convert.save_network(workdir / "student.pth", student, variables)
