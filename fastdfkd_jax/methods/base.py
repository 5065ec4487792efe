"""The contract that every method keeps; the host loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import losses
from fastdfkd_jax.distillation.distill import Objective
from fastdfkd_jax.errors import require
from fastdfkd_jax.models import Forms, Network, NetworkSpec, count_batch_norms
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any
LaneMap = Callable[[Callable[..., Tree], Tree, Tree], Tree]


# How long a batch lives: in D' to the end of the run; for the next few student steps; or there is none, and D' is data.
POOL, ONCE, DATA = "pool", "once", "data"

# What a method is given of the world, from the least to the most.
TEACHER_ONLY = "teacher only"
OTHER_DATA = "teacher and other real data"
ORIGINAL_DATA = "the teacher's training data"


REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class LaneOptions(Options, section="fastdfkd"):
    """The number of lanes, which FastDFKD and its noise control share: each makes a batch in every call."""

    num_tasks: int = option(
        1,
        "number of lanes, each with its own labels and latents; their meta-gradients are combined into one",
        at_least=1,
    )
    task_reduction: str = option(
        "mean", "reduction of the lanes' meta-gradients: 'mean', or 'sum' as in Eq. 11", choices=REDUCTIONS
    )


class Batch(NamedTuple):
    """What one synthesis call made.

    Attributes:
      images: f32[N, H, W, C] in [0, 1]; of a method whose batches live once f32[M, N, H, W, C], M batches that
        the student's steps take in turn, as `Method.network_input` says.
      labels: i32[N] or i32[M, N], the classes that were asked for, -1 for none.
      kept: bool[], whether the images join D'; a call may only prepare those to come.
      weights: tree of arrays that is stored beside images that are kept, a generator's for instance; () for nothing.
    """

    images: Array
    labels: Array
    kept: Array | bool = True
    weights: Tree = ()


class Info(NamedTuple):
    """Health signals of a synthesis call; None where a method has none.

    Attributes:
      losses: f32[] by name: the terms of the loss at the call's last step, and of methods that take many steps the
        whole loss at their 'first' and 'last'.
      agreement: f32[], the share of images, or pixels, of which teacher and student predict the same class.
      moment_gap: f32[], the distance of the images' BatchNorm moments from the teacher's statistics (Eq. 13).
      moment_gap_by_step: f32[at most 50], the same at steps of the call, the first and the last among them.
      predicted: i32[C], how often the teacher predicts each class.
      on_target: f32[], the share of images that the teacher predicts to be of the class that was asked for.
    """

    losses: Mapping[str, Array] = {}
    agreement: Array | None = None
    moment_gap: Array | None = None
    moment_gap_by_step: Array | None = None
    predicted: Array | None = None
    on_target: Array | None = None

    def records(self) -> dict[str, Array]:
        """The signals that are not None, under their names in `metrics.jsonl`."""
        named = {"by_step/moment_gap" if n == "moment_gap_by_step" else n: v for n, v in self._asdict().items()}
        terms = {f"loss/{name}": value for name, value in named.pop("losses").items()}
        return terms | {name: value for name, value in named.items() if value is not None}


def lanes_in_turn(num_tasks: int) -> LaneMap:
    """Lanes one after another, on one device."""
    return lambda f, stacked, shared: jax.lax.map(lambda lane: f(lane, shared), stacked)


class Setting(NamedTuple):
    """What a run gives to the method that is built for it.

    Attributes:
      teacher, student: the networks; only their functions are bound, never their variables.
      batch: images of a synthesis batch.
      calls: synthesis calls of the whole run.
      warmup_calls: first calls in which the student does not learn; it may go on learning when synthesis has ended.
      steps_per_call: student steps of each other call.
      split: lays the leading axis of an array over devices (`parallel.batch_splitter`).
      forms: precision and convolutions of what the method builds.
      temperature: of KD.
      has_original_data: whether the real images that a run is given are those that the teacher was trained on.
      lane_map: `lane_map(num_tasks)` gives a function `(f, stacked, shared)` that maps `f(lane, shared)` over the
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
    temperature: float = 1.0
    has_original_data: bool = False
    lane_map: Callable[[int], LaneMap] = lanes_in_turn


class Method(NamedTuple):
    """A method as pure functions, its static parts bound when it is built.

    Attributes:
      init: `init(key, teacher_vars) -> state`.
      synthesize: `synthesize(state, teacher_vars, student_vars, key) -> (state, Batch, Info)`.
      images_per_call: how many images a synthesis call makes.
      steps_per_round: student steps that a batch which lives once serves.
      lifetime: `POOL`, the batch is appended to D' (Algorithm 1 line 11); `ONCE`, it is used for the next student
        steps and dropped; `DATA`, nothing is synthesised and D' is what the run was given.
      network_input: whether images are as the networks take them rather than in [0, 1]; such are not augmented.
      objective: what the student minimises, or None for vanilla KD (Eq. 12).
      needs_labels: whether the student learns the images' own labels.
      select: `select(teacher_vars, images) -> f32[N]`, by which given data are chosen, the lowest first; or None.
      knows: `TEACHER_ONLY`, `OTHER_DATA` or `ORIGINAL_DATA`.
      class_advice: how to bring more images on target; '' where no class is asked for, or by no term of the loss.
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
    """A class for each of so many images, i32[count], uniformly; -1 where a network gives maps and none is asked."""
    if spec.gives_maps:
        return jnp.full(count, -1, jnp.int32)
    return jax.random.randint(key, (count,), 0, spec.num_classes)


def on_target(predicted: Array, labels: Array, spec: NetworkSpec) -> Array | None:
    """`Info.on_target` of predictions i32[...] and the classes asked for; None where a network gives maps."""
    return None if spec.gives_maps else (predicted == labels).mean()


def class_advice(class_weight: tuple[str, float], statistics_weight: tuple[str, float]) -> str:
    """`Method.class_advice` of two weights of a loss, each the name of its config key and its value."""
    (name, weight), (other, found) = class_weight, statistics_weight
    if not weight:
        return ""
    return f"raise config.{name} ({weight:g})" + (f" or lower config.{other} ({found:g})" if found else "")


def require_no_class_term(spec: NetworkSpec, key: str, weight: float) -> None:
    """UserError where a weight asks for a class term on images of which no class is asked."""
    expected = "0 for a teacher of segmentation, of whose images no class is asked"
    require(not (spec.gives_maps and weight), key, expected, weight)


def moment_gaps(moments: Tree, teacher_vars: Tree, by_step: Array | None = None) -> dict[str, Array]:
    """`Info.moment_gap`, and `Info.moment_gap_by_step` of the gaps of a call's steps, f32[steps], where given.

    Empty for a teacher without BatchNorm: a gap of 0 would say that its statistics are met.
    """
    if not count_batch_norms(teacher_vars):
        return {}
    gap = {"moment_gap": losses.feature(moments, teacher_vars["batch_stats"])}
    return gap if by_step is None else gap | {"moment_gap_by_step": evenly(by_step)}


def evenly(values: Array, most: int = 50) -> Array:
    """At most so many of [N, ...], the first and the last among them, for a record that stays readable."""
    count = len(values)
    if count <= most:
        return values
    return values[np.linspace(0, count - 1, most).round().astype(int)]
