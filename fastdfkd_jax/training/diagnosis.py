"""Explains why a run's numbers are not finite; a faulty teacher is a common cause."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network

# Images lie in [0, 1]; the statistics of a working network are far from these limits.
_LEAST_DEVIATION, _MOST_DEVIATION = 1e-4, 1e4
_MOST_VARIANCE, _MOST_MEAN = 1e12, 1e6


def teacher_fault(teacher: Network, variables: Any) -> str:
    """Returns a phrase that describes a teacher's implausible statistics, or '' if there are none.

    Args:
      teacher: the network.
      variables: its variables, with the running statistics as `batch_stats`.
    """
    deviations = [value for value in teacher.spec.std if not _LEAST_DEVIATION <= value <= _MOST_DEVIATION]
    if deviations:
        return f"the teacher's std is {deviations[0]:g}, expected that of images in [0, 1]"
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {})):
        values, name = np.asarray(leaf, np.float64), jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith("var"):
            zero = int((values <= 0).sum())
            if zero:
                return f"{zero} of {values.size} BatchNorm variances of the teacher are not above 0 in {name}"
            wrong = ~(values < _MOST_VARIANCE)
        else:
            wrong = ~(np.abs(values) < _MOST_MEAN)
        if wrong.any():
            return f"{int(wrong.sum())} of {values.size} BatchNorm statistics of the teacher are implausible in {name}"
    return ""


def not_finite(term: str, where: str, teacher: Network, variables: Any) -> UserError:
    """Returns the error for a loss term that is not finite; it blames the teacher if at fault, else learning rates.

    Args:
      term: recorded name of the term.
      where: where it occurred, and the checkpoint to restart from.
      teacher, variables: as for `teacher_fault`.
    """
    if fault := teacher_fault(teacher, variables):
        return UserError(f"{term} is not finite, as {fault}: use another teacher, or import this one again")
    remedy = "lower config.kd.lr, config.meta.lr or config.inner.*, and use a new workdir"
    return UserError(f"{term} is not finite {where}: {remedy}")
