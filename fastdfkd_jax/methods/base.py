"""The contract that every data-free method keeps; the host loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Tree = Any


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
      synthesize: `synthesize(state, teacher_vars, student_vars, key) -> (state, Batch, info)`; the batch is
        appended to D'. Info holds scalars under 'loss/<term>' and, where the method looks at its images
        through the teacher, the health signals 'agreement', 'moment_gap' and 'predicted' (i32[C], how often
        the teacher predicts each class).
    """

    init: Callable[[Array, Tree], Tree]
    synthesize: Callable[[Tree, Tree, Tree, Array], tuple[Tree, Batch, dict[str, Array]]]
