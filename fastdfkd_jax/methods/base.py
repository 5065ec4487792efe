"""The interface that every method implements; the host loop relies on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import losses
from fastdfkd_jax.distillation.distill import Objective
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.errors import require
from fastdfkd_jax.models import Forms, Network, NetworkSpec, count_batch_norms
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any
LaneMap = Callable[[Callable[..., Tree], Tree, Tree], Tree]


# Lifetime of a batch: in D' until the run ends; for the next student steps; or no batch, because D' is real data.
POOL, ONCE, DATA = "pool", "once", "data"

# The data that a method uses, from the least to the most.
TEACHER_ONLY = "teacher only"
LABEL_NAMES = "teacher and names of classes"
OTHER_DATA = "teacher and other real data"
ORIGINAL_DATA = "the teacher's training data"


REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class LaneOptions(Options, section="fastdfkd"):
    """Options of lanes, shared by FastDFKD and its noise control; each lane makes a batch in every call."""

    num_tasks: int = option(
        1,
        "number of lanes, each with its own labels and latents; their meta-gradients are combined into one",
        at_least=1,
    )
    task_reduction: str = option(
        "mean", "reduction of the lanes' meta-gradients: 'mean', or 'sum' as in Eq. 11", choices=REDUCTIONS
    )


class Batch(NamedTuple):
    """The result of one synthesis call.

    Attributes:
      images: f32[N, H, W, C] in [0, 1]. With lifetime `ONCE`, f32[M, N, H, W, C]: M batches that the student's steps
        take in turn, in the range that `Method.network_input` defines.
      labels: i32[N] or i32[M, N], the target classes; -1 for none.
      kept: bool[], True if the images join D'; False if the call only prepares later images.
      weights: tree of arrays to store with kept images, for example a generator's; () for nothing.
    """

    images: Array
    labels: Array
    kept: Array | bool = True
    weights: Tree = ()


class Info(NamedTuple):
    """Health signals of a synthesis call; None where a method has none.

    Attributes:
      losses: f32[] by name: the terms of the loss at the call's last step. Methods that take many steps add the
        whole loss at their 'first' and 'last' step.
      agreement: f32[], the share of images, or pixels, for which teacher and student predict the same class.
      moment_gap: f32[], the distance of the images' BatchNorm moments from the teacher's statistics (Eq. 13).
      moment_gap_by_step: f32[at most 50], the same at steps of the call, including the first and the last.
      predicted: i32[C], how often the teacher predicts each class.
      on_target: f32[], the share of images for which the teacher predicts the target class.
    """

    losses: Mapping[str, Array] = {}
    agreement: Array | None = None
    moment_gap: Array | None = None
    moment_gap_by_step: Array | None = None
    predicted: Array | None = None
    on_target: Array | None = None

    def records(self) -> dict[str, Array]:
        """Returns the signals that are not None, under their names in `metrics.jsonl`."""
        named = {"by_step/moment_gap" if n == "moment_gap_by_step" else n: v for n, v in self._asdict().items()}
        terms = {f"loss/{name}": value for name, value in named.pop("losses").items()}
        return terms | {name: value for name, value in named.items() if value is not None}


def lanes_in_turn(num_tasks: int) -> LaneMap:
    """Maps over the lanes one after another, on one device."""
    return lambda f, stacked, shared: jax.lax.map(lambda lane: f(lane, shared), stacked)


class Setting(NamedTuple):
    """The part of a run's configuration that a method is built with.

    Attributes:
      teacher, student: the networks; the method binds only their functions, never their variables.
      batch: images in a synthesis batch.
      calls: synthesis calls in the whole run.
      warmup_calls: first calls, in which the student does not learn; it may continue to learn after the last call.
      steps_per_call: student steps in each later call.
      split: lays the leading axis of an array over devices (`parallel.batch_splitter`).
      forms: precision and convolutions of the networks that the method builds.
      distilled: `distilled(extra, student_outputs, teacher_outputs, labels) -> f32[B]`, the run's KD loss.
      has_original_data: True if the run's real images are those that the teacher was trained on.
      label_embeddings: f32[classes, D], embeddings of the classes' names from a file; None if the run has none.
      lane_map: `lane_map(num_tasks)` returns a function `(f, stacked, shared)` that maps `f(lane, shared)` over the
        leading axis (`parallel.lane_map`).
    """

    teacher: Network
    student: Network
    batch: int
    calls: int
    warmup_calls: int
    steps_per_call: int
    split: Callable[[Array], Array]
    forms: Forms
    distilled: Callable[..., Array] = kd_loss(1.0)
    has_original_data: bool = False
    label_embeddings: np.ndarray | None = None
    lane_map: Callable[[int], LaneMap] = lanes_in_turn


class Method(NamedTuple):
    """A method as pure functions, with its static parts bound when it is built.

    Attributes:
      init: `init(key, teacher_vars) -> state`.
      synthesize: `synthesize(state, teacher_vars, student_vars, key) -> (state, Batch, Info)`.
      images_per_call: images that a synthesis call makes.
      steps_per_round: student steps on a batch with lifetime `ONCE`.
      lifetime: `POOL` appends the batch to D' (Algorithm 1 line 11); `ONCE` uses it for the next student steps and
        drops it; `DATA` synthesises nothing, and D' is the run's real data.
      network_input: True if images are already in the networks' input range rather than in [0, 1]; they are then not
        augmented.
      objective: the student's objective, or None for KD (Eq. 12, or as `KDOptions` say).
      needs_labels: True if the student learns the images' own labels.
      select: `select(teacher_vars, images) -> f32[N]`, a score that selects real data, the lowest first; or None.
      knows: `TEACHER_ONLY`, `LABEL_NAMES`, `OTHER_DATA` or `ORIGINAL_DATA`.
      class_advice: advice on how to bring more images on target; '' if the loss has no term for a target class.
    """

    init: Callable[[Array, Tree], Tree]
    synthesize: Callable[[Tree, Tree, Tree, Array], tuple[Tree, Batch, Info]]
    images_per_call: int
    steps_per_round: int = 1
    lifetime: str = POOL
    network_input: bool = False
    objective: Objective | None = None
    needs_labels: bool = False
    select: Callable[[Tree, Array], Array] | None = None
    knows: str = TEACHER_ONLY
    class_advice: str = ""


def asked_classes(key: Array, count: int, spec: NetworkSpec) -> Array:
    """Draws `count` target classes uniformly, i32[count]; -1 where a network outputs maps, which have no target."""
    if spec.gives_maps:
        return jnp.full(count, -1, jnp.int32)
    return jax.random.randint(key, (count,), 0, spec.num_classes)


def on_target(predicted: Array, labels: Array, spec: NetworkSpec) -> Array | None:
    """Returns `Info.on_target` for predictions and target classes, i32[...]; None where a network outputs maps."""
    return None if spec.gives_maps else (predicted == labels).mean()


def class_advice(class_weight: tuple[str, float], statistics_weight: tuple[str, float]) -> str:
    """Returns `Method.class_advice` for two weights of a loss, each given as its config key and its value."""
    (name, weight), (other, found) = class_weight, statistics_weight
    if not weight:
        return ""
    return f"raise config.{name} ({weight:g})" + (f" or lower config.{other} ({found:g})" if found else "")


def require_no_class_term(spec: NetworkSpec, key: str, weight: float) -> None:
    """Raises UserError if the class term has a weight but the images have no target class."""
    expected = "0 for a segmentation teacher, as its images have no requested class"
    require(not (spec.gives_maps and weight), key, expected, weight)


def moment_gaps(moments: Tree, teacher_vars: Tree, by_step: Array | None = None) -> dict[str, Array]:
    """Returns `Info.moment_gap` and, if given a call's gaps f32[steps], `Info.moment_gap_by_step`.

    Returns nothing for a teacher without BatchNorm, because a gap of 0 would mean that the statistics match.
    """
    if not count_batch_norms(teacher_vars):
        return {}
    gap = {"moment_gap": losses.feature(moments, teacher_vars["batch_stats"])}
    return gap if by_step is None else gap | {"moment_gap_by_step": evenly(by_step)}


def evenly(values: Array, most: int = 50) -> Array:
    """Picks at most `most` of [N, ...], including the first and the last, to keep records readable."""
    count = len(values)
    if count <= most:
        return values
    return values[np.linspace(0, count - 1, most).round().astype(int)]
