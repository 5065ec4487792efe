"""The contract that every data-free method keeps; the host loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fastdfkd_jax.distill import StudentLoss

Array = jax.Array
Tree = Any

LIFETIMES = ("pool", "once")


class Batch(NamedTuple):
    """What one synthesis call made.

    Attributes:
      images: f32[N, H, W, C] in [0, 1].
      labels: i32[N], the classes that were asked for.
    """

    images: Array
    labels: Array


class Method(NamedTuple):
    """A data-free method as pure functions, its static parts bound when it is built.

    Attributes:
      init: `init(key, teacher_vars) -> state`.
      synthesize: `synthesize(state, teacher_vars, student_vars, key) -> (state, Batch, info)`. Info holds scalars
        under 'loss/<term>' and the health signals 'agreement', 'moment_gap' and 'predicted' (i32[C], how
        often the teacher predicts each class).
      lifetime: 'pool' appends each batch to D', 'once' uses it for the next student steps and drops it.
      student_loss: replaces the vanilla KD loss of the student step where it is not None.
    """

    init: Callable[[Array, Tree], Tree]
    synthesize: Callable[[Tree, Tree, Tree, Array], tuple[Tree, Batch, dict[str, Array]]]
    lifetime: str = "pool"
    student_loss: StudentLoss | None = None
