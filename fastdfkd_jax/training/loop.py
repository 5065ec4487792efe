"""The host loop: runs synthesis and distillation call by call, records, saves and resumes."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastdfkd_jax.cli import signals
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.distributed import hosts, parallel
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.training import class_rows, health, held_out, phases
from fastdfkd_jax.training.build import Parts
from fastdfkd_jax.training.checkpoint import Checkpoints
from fastdfkd_jax.training.diagnosis import not_finite
from fastdfkd_jax.training.evidence import Evidence
from fastdfkd_jax.training.feeding import labels_folder, open_feed
from fastdfkd_jax.training.metric_files import Metrics, Silent, peak_memory_bytes
from fastdfkd_jax.training.profile import Trace
from fastdfkd_jax.training.programs import Programs
from fastdfkd_jax.training.progress import Progress, summary
from fastdfkd_jax.training.run_options import RunOptions
from fastdfkd_jax.training.schedule import last_call, last_synthesis_call
from fastdfkd_jax.training.student_files import save_student
from fastdfkd_jax.training.workdir import mark_saved

log = logging.getLogger(__name__)


class Training:
    """One run in one working directory."""

    def __init__(
        self,
        options: RunOptions,
        parts: Parts,
        programs: Programs,
        workdir: Path,
        identity: Mapping[str, Any] | None = None,
    ):
        """Restores the newest usable checkpoint.

        Args:
          options: options of the run.
          parts: parts built from them.
          programs: programs built from them.
          workdir: folder of the run.
          identity: saved with checkpoints, to refuse those of other runs (`checkpoint.require_same_run`).
        """
        self.options, self.parts, self.programs, self.workdir = options, parts, programs, workdir
        self.progress = Progress()
        self.last_call = last_call(options)
        self.stop = signals.Stop()
        self.score = scores.of_task(parts.teacher.spec)
        init_key, self.synthesis_key, self.distill_key = jax.random.split(jax.random.key(options.seed), 3)
        self.state = self.programs.begin(init_key)
        self.writes = hosts.is_writer()
        self.checkpoints = Checkpoints(workdir / "checkpoints", layout=parts.layout, identity=dict(identity or {}))
        self.evidence = Evidence(workdir, labels_folder(options, workdir), options.pool.initial)
        self.feed = open_feed(parts, options, self.programs, workdir, self.distill_key, self._tell)
        self._restore()
        self.trace = Trace(workdir / "profile", self._call_to_trace() if options.profile and self.writes else None)
        self.resumed_at = (self.progress.call, self.progress.kd_steps)
        self.progress.compile_seconds += programs.compiled_before
        programs.compiled_before = 0.0
        self.judge = health.Judge(self.progress, parts, METHODS[options.method.name].statistics)
        at = self.resumed_at[0], self.progress.metrics_offset
        self.metrics = Metrics(workdir, self.last_call, *at, identity, options.afterwards) if self.writes else Silent()

    def _restore(self) -> None:
        restored, saved = self.checkpoints.restore(self._saved_state(), self.evidence.fault), None
        if restored is not None:
            # Copied, because the compiled steps donate their state.
            held = parallel.copy(restored.state)
            self.state = {name: held.pop(name) for name in self.state}
            saved = held
            self.progress = Progress(**restored.progress)
            log.info("resumed at call %d, KD step %d", self.progress.call, self.progress.kd_steps)
        elif not self.feed.grows:
            self.progress.call = self.options.warmup_calls
        hosts.require_same("checkpoint", dataclasses.asdict(self.progress))
        self.feed.restore(self.progress.shards, saved)

    def _saved_state(self) -> dict[str, Any]:
        """Returns all contents of a checkpoint, except for images and labels, which are in their shards."""
        return {**self.state, **self.feed.saved()}

    def _call_to_trace(self) -> int:
        """Returns the second call of this start that has both synthesis and student steps; the first call compiles.

        If no call has both, because synthesis ends before the student begins, it is the second call.
        """
        warmup = self.options.warmup_calls
        if self.options.mode == "synthesize" or warmup >= last_synthesis_call(self.options):
            warmup = 0
        return min(self.last_call, max(self.progress.call, warmup) + 2)

    def run(self) -> dict[str, Any]:
        """Runs to the end, or until a signal asks to stop; returns the summary, which is empty if stopped."""
        try:
            with signals.deferred(self.stop) as stop:
                self._evaluate_teacher()
                while self.progress.call < self.last_call or self._steps_left():
                    self._step()
                    if hosts.any_process(stop.requested):
                        return self._stopped()
                summary = self._finish()
                return self._stopped() if hosts.any_process(stop.requested) else summary
        finally:
            self._tell(self.trace.end(self.progress.call))
            self.metrics.close()
            if hosts.count() == 1 or sys.exc_info()[0] is None:  # else closing might wait for a lost process
                self.checkpoints.close()
            self.feed.close()

    def _stopped(self) -> dict[str, Any]:
        """Saves, reports it, and returns the empty summary of a run that has not ended."""
        self._save()
        asked = f" by {self.stop.by}" if self.stop.by else ""
        how = "run the same command without restart" if self.options.restart else "run the same command"
        self.metrics.say(f"stopped{asked}; checkpoint saved; {how} to continue")
        return {}

    def _step(self) -> None:
        """Does the work between two checks for a stop: at most one dispatch of each program."""
        if not self._steps_left():
            self._begin_call()
        elif not self.feed.ready:
            self._prepare()
        else:
            self._learn()
        if not self._steps_left():
            self._tell(self.trace.end(self.progress.call))
            self._end_call()

    def _trains(self) -> bool:
        """Returns whether the student learns in this call."""
        return self.options.mode != "synthesize" and self.progress.call > self.options.warmup_calls

    def _steps_left(self) -> bool:
        steps = self.progress.kd_steps < self.options.kd.steps_per_call
        return steps and (self._trains() or (self.feed.per_dispatch and self.progress.call > 0))

    def _begin_call(self) -> None:
        self.progress.call += 1
        self.progress.kd_steps = 0
        self.trace.begin(self.progress.call)
        makes_images = self.feed.grows and self.progress.call <= last_synthesis_call(self.options)
        if makes_images and not self.feed.per_dispatch:
            self._show(*self._synthesize(self.progress.call))

    def _synthesize(self, index: int) -> tuple[dict[str, jax.Array], base.Batch]:
        """Runs Algorithm 1 lines 5 to 14 once; `index` counts the synthesis calls."""
        self.metrics.doing(self.progress.call, "synthesis")
        self.state["method"], self.feed.state, batch, info = self.programs.synthesize(
            self.state["method"],
            self.feed.state,
            self.parts.teacher_vars,
            self.state["student"].variables,
            self.synthesis_key,
            np.int32(index),
        )
        if self.feed.add(batch):
            self.progress.shards = self.feed.shards
            self.progress.images += self.parts.method.images_per_call
            self._tell(self.judge.off_target(info))
        self.progress.synthesis_seconds += self.programs.synthesize.run_seconds
        self.progress.compile_seconds += self.programs.synthesize.compile_seconds
        return info, batch

    def _show(self, info: Mapping[str, Any], batch: base.Batch) -> None:
        """Records a synthesis call, and writes a picture of it when one is due."""
        self._record("synthesis", info)
        if (call := self.progress.call) % self.options.images_every == 0 and self.writes:
            images = self.feed.pictures(batch)
            path = class_rows.write_stage(self.workdir, call, images, batch.labels, self.parts, self.programs)
            self.metrics.picture(call, path)

    def _learn(self) -> None:
        """Runs a dispatch of student steps, preceded by synthesis if each dispatch needs its own images."""
        done, made = self.progress, None
        if self.feed.per_dispatch:
            made = self._synthesize((done.call - 1) * self.options.kd.steps_per_call + done.kd_steps)
        if self._trains():
            self._distill(self._next_source())
        else:
            done.kd_steps += self.programs.steps
        if made is not None and not self._steps_left():
            self._show(*made)

    def _prepare(self) -> None:
        """Does one part of the work that the student waits for."""
        self.metrics.doing(self.progress.call, "the teacher's answers")
        begin = time.perf_counter()
        compile_seconds = self.feed.prepare()
        self.progress.compile_seconds += compile_seconds
        self.progress.label_seconds += time.perf_counter() - begin - compile_seconds

    def _next_source(self) -> Any:
        """Takes the next dispatch's data; starts reading those of the one after it unless D' grows before."""
        begin = time.perf_counter()
        step, steps, options = int(self.state["student"].step), self.programs.steps, self.options
        same_call = self.progress.kd_steps + steps < options.kd.steps_per_call
        grows = self.feed.grows and self.progress.call < last_synthesis_call(options)
        more = same_call or not (grows or self.progress.call == self.last_call)
        source = self.feed.take(step, step + steps if more else None)
        self.progress.distill_seconds += time.perf_counter() - begin  # includes waiting for data that are not read yet
        return source

    def _distill(self, source: Any) -> None:
        """Runs Algorithm 1 lines 17 to 20, for as many steps as one program has."""
        position = f"step {self.progress.kd_steps} of {self.options.kd.steps_per_call}"
        self.metrics.doing(self.progress.call, "distillation", position)
        given = (self.state["student"], self.parts.teacher_vars, source, self.distill_key)
        self.state["student"], known, info = self.programs.distill(*given)
        self.feed.learned(known)
        self.progress.distill_seconds += self.programs.distill.run_seconds
        self.progress.compile_seconds += self.programs.distill.compile_seconds
        self.progress.kd_steps += self.programs.steps
        if not math.isfinite(float(info["loss"])):
            raise self._not_finite("kd/loss")
        sums, steps = self.progress.kd_sums, self.programs.steps
        self.progress.kd_sums = {name: sums.get(name, 0.0) + steps * float(mean) for name, mean in info.items()}
        if not self._steps_left():
            self._record("kd", {name: total / self.progress.kd_steps for name, total in self.progress.kd_sums.items()})
            self.progress.kd_sums = {}

    def _end_call(self) -> None:
        done, last = self.progress, self.progress.call == self.last_call
        due = last or done.call % self.options.eval_every == 0
        if self.parts.test is not None and due and self._trains():
            self._evaluate(self.parts.test)
        if last or done.call % self.options.checkpoint_every == 0:
            self._save()
        phase = "" if self._trains() or self.options.mode == "synthesize" else "warm-up, "
        of_call = "" if due else f" at call {done.call - done.call % self.options.eval_every}"
        score = "" if done.score_last is None else f", test {self.score.title} {done.score_last:.2f} %{of_call}"
        self.metrics.advance(done.call, f"{phase}{done.images} images{score}")

    def _record(self, part: str, info: Mapping[str, Any]) -> None:
        values = {f"{part}/{name}": np.asarray(value).tolist() for name, value in info.items()}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self._not_finite(name)
        self.metrics.write(self.progress.call, values)
        self._tell(self.judge.collapse(values))

    def _tell(self, line: str) -> None:
        if line:
            self.metrics.say(line)

    def _not_finite(self, term: str) -> UserError:
        done, latest = self.progress, self.checkpoints.latest
        where = f"at call {done.call}, KD step {done.kd_steps}; last checkpoint: {latest}"
        return not_finite(term, where, self.parts.teacher, self.parts.teacher_vars)

    def _evaluate_teacher(self) -> None:
        if self.parts.test is not None and self.progress.teacher_score is None:
            phases.enter("evaluating the teacher")
            scored = self.programs.evaluate_teacher(self.parts.teacher_vars, self.parts.test)[self.score.name]
            self.progress.teacher_score = scored
            self.metrics.say(f"teacher {self.score.title} {self.progress.teacher_score:.2f} %")

    def _evaluate(self, test: Dataset) -> None:
        done, start = self.progress, time.perf_counter()
        self.metrics.doing(done.call, "evaluation")
        result = self.programs.evaluate(self.state["student"].result, test)
        done.evaluate_seconds += time.perf_counter() - start
        done.score_last = found = result[self.score.name]
        done.score_best = max(found, done.score_best or 0.0)
        self.metrics.write(done.call, {f"eval/{name}": value for name, value in result.items()})

    def _save(self) -> None:
        done = self.progress
        done.metrics_offset = self.metrics.offset
        done.peak_memory_bytes = max(done.peak_memory_bytes, peak_memory_bytes())
        number = done.call * (self.options.kd.steps_per_call + 1) + done.kd_steps
        evidence = self.evidence.of(done.shards, self.feed.labelled, done.metrics_offset) if self.writes else {}
        self.checkpoints.save(number, self._saved_state(), dataclasses.asdict(done), evidence)
        if self.writes:
            mark_saved(self.workdir)

    def _finish(self) -> dict[str, Any]:
        if self.writes:
            save_student(self.workdir, self.parts.student, self.state["student"].result)
        measured = held_out.measure(self)
        return summary(self.progress, self.parts, self.score, self.options.method.name, self.options.seed) | measured
