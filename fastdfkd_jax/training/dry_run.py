"""Estimates what a run would do and cost, without doing it (`dry_run=true`)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fastdfkd_jax import models
from fastdfkd_jax.distillation import soft_labels
from fastdfkd_jax.distributed import hosts
from fastdfkd_jax.distributed.parallel import CompiledStep
from fastdfkd_jax.methods import base
from fastdfkd_jax.models import proxies
from fastdfkd_jax.pool.stored_labels import Taught
from fastdfkd_jax.training import phases
from fastdfkd_jax.training.build import Parts
from fastdfkd_jax.training.feeding import open_feed
from fastdfkd_jax.training.programs import Programs
from fastdfkd_jax.training.run_options import RunOptions
from fastdfkd_jax.training.schedule import count_kd_steps, count_synthesis_calls
from fastdfkd_jax.training.summary_text import duration

# Each program is timed this many times, or until this much time has passed.
_REPEATS, _ENOUGH_SECONDS = 3, 30


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one of a run's programs, compiled and run on this machine.

    Attributes:
      kind: key of a run's summary that its time belongs to.
      name: description of the program.
      times: number of times that the run calls it.
      run_seconds: seconds of one call, the median of a few.
      compile_seconds: seconds of lowering and compiling.
      held_bytes: bytes of arguments and temporaries on each device; None if the compiler does not report them.
    """

    kind: str
    name: str
    times: float
    run_seconds: float
    compile_seconds: float
    held_bytes: int | None

    @property
    def total_seconds(self) -> float:
        """Seconds of all calls, without compilation."""
        return self.run_seconds * self.times

    def __str__(self) -> str:
        held = float("nan") if self.held_bytes is None else self.held_bytes / 1e6
        return (
            f"{self.name}: {self.run_seconds:.2f} s measured, {held:.0f} MB held on each device, "
            f"compiled in {self.compile_seconds:.0f} s; {duration(self.total_seconds)} for all"
        )


def describe(run: RunOptions, parts: Parts, programs: Programs | None = None) -> str:
    """Returns a few lines on networks, counts, memory, disk and time.

    All programs are compiled to measure memory, and run on this machine to measure time. Reading a pool from disk is
    not included. Nothing is written.

    Args:
      run: options of the run.
      parts: its parts.
      programs: its programs, which the run can then use without compiling again; None to build others.
    """
    method = parts.method
    synthesis_calls = count_synthesis_calls(run, parts.method)
    images = synthesis_calls * method.images_per_call
    lines = [
        _network("teacher", parts.teacher, parts.teacher_vars),
        _network("student", parts.student, jax.eval_shape(parts.student.init, jax.random.key(0))),
        f"{run.method.name} ({method.knows}): {synthesis_calls} synthesis calls, {images} images",
        f"{count_kd_steps(run)} KD steps of {run.kd.batch} images",
    ]
    if synthesis_calls and method.lifetime == base.POOL:
        megabytes = images * math.prod(parts.teacher.spec.input_shape) / 1e6
        said = f"{megabytes:.0f} MB" if megabytes >= 1 else "less than 1 MB"
        lines.append(f"disk: {said} of synthesised images, plus checkpoints")
    if run.soft_labels.steps and count_kd_steps(run):
        spec, chosen = parts.teacher.spec, run.soft_labels
        view = soft_labels.bytes_per_view(spec.num_classes, chosen.top_k, run.kd.views, run.kd.batch)
        lines.append(f"disk: {chosen.steps * run.kd.batch * view / 1e6:.0f} MB of soft labels, {view:.0f} bytes each")
    costs = measure(run, parts, programs)
    whole = duration(sum(cost.total_seconds for cost in costs))
    beside = ", evaluation and the noise control" if run.noise_control else " and evaluation"
    last = f"about {whole} in all on this machine, without compilation{beside}"
    return "\n".join([*lines, *map(str, costs), last])


def _network(role: str, network: models.Network, variables) -> str:
    spec, names = network.spec, set(variables["batch_stats"])
    given = proxies.COLLECTION in variables or (names and names <= set(network.other_norms))
    layers = "layers with statistics of config.proxy" if given else "BatchNorm layers"
    return (
        f"{role} {spec.arch}: {models.count_parameters(variables):,} parameters, "
        f"{models.count_batch_norms(variables)} {layers}, {spec.num_classes} classes, "
        f"images {'x'.join(map(str, spec.input_shape))}, mean {spec.mean}, std {spec.std}"
    )


def measure(run: RunOptions, parts: Parts, programs: Programs | None = None) -> list[Cost]:
    """Compiles the programs and times each on this machine; leaves out those that the run does not need."""
    programs = programs or Programs(parts, run)
    phases.enter("measuring the memory and time of the run")
    key = jax.random.key(run.seed)
    state = programs.begin(key)
    feed = open_feed(parts, run, programs, None, key, lambda text: None)
    costs: list[Cost] = []
    if synthesis_calls := count_synthesis_calls(run, parts.method):
        student = state["student"].variables

        def synthesize() -> Any:
            # Each call donates these buffers, so the next call needs the new ones.
            state["method"], feed.state, batch, _ = programs.synthesize(
                state["method"], feed.state, parts.teacher_vars, student, key, np.int32(1)
            )
            return batch

        cost, batch = _cost("synthesis_seconds", "synthesis call", programs.synthesize, synthesis_calls, synthesize)
        costs.append(cost)
        if feed.per_dispatch:
            feed.add(batch)
    source = feed.example()
    if kd_steps := count_kd_steps(run):
        if run.soft_labels.steps:
            cost, source = _labelling(parts, run, programs, source, key)
            costs.append(cost)

        def distill() -> Any:
            state["student"], _, info = programs.distill(state["student"], parts.teacher_vars, source, key)
            return info

        name = f"{programs.steps} KD steps"
        costs.append(_cost("distill_seconds", name, programs.distill, kd_steps / programs.steps, distill)[0])
    programs.compiled_before += sum(cost.compile_seconds for cost in costs)
    return costs


def _labelling(parts: Parts, run: RunOptions, programs: Programs, source: Any, key: Any) -> tuple[Cost, Taught]:
    """Returns the cost of storing the teacher's outputs, and the stored steps that the student learns from."""
    zero = np.int32(0)

    def label() -> Any:
        return programs.label(parts.teacher_vars, source, key, zero, np.int32(1))

    times = math.ceil(run.soft_labels.steps / programs.steps)
    cost, steps = _cost("label_seconds", f"answers to {programs.steps} steps", programs.label, times, label)
    return cost, Taught(source, jax.tree.map(np.asarray, steps))


def _cost(kind: str, name: str, step: CompiledStep, times: float, call: Callable[[], Any]) -> tuple[Cost, Any]:
    """Returns the cost of a program and the result of its last call; `call` makes one call."""
    result = call()
    compile_seconds, seconds = step.compile_seconds, [step.run_seconds]
    # All processes must repeat it equally often, although their clocks differ.
    while len(seconds) < _REPEATS and hosts.any_process(sum(seconds) < _ENOUGH_SECONDS):
        result = call()
        seconds.append(step.run_seconds)
    memory = step.compiled.memory_analysis() if step.compiled is not None else None
    held = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else None
    return Cost(kind, name, times, statistics.median(seconds), compile_seconds, held), result
