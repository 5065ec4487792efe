"""The host loop: builds the parts, runs synthesis and distillation call by call, records, saves and resumes."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fastdfkd_jax import convert, distill, models, parallel, pool, report
from fastdfkd_jax.assemble import Parts
from fastdfkd_jax.checkpoint import Checkpoints
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluate import make_evaluator
from fastdfkd_jax.metrics import Metrics, class_balance, peak_memory_bytes
from fastdfkd_jax.models import Network
from fastdfkd_jax.profile import Trace

log = logging.getLogger(__name__)

# Below these the synthesised images are nearly one class, or nearly one image.
_COLLAPSED_BALANCE, _COLLAPSED_DIVERSITY = 0.5, 0.02


@dataclasses.dataclass
class Progress:
    """Where a run stands and what it has cost, over all its resumptions; saved with each checkpoint.

    Attributes:
      call: synthesis calls done.
      kd_steps: KD steps done after the last of them.
      images: images synthesised.
      *_seconds: time of each kind of work, apart from the others.
      teacher_accuracy, accuracy_last, accuracy_best: top-1 on the evaluation data, percent.
      metrics_offset: bytes of metrics.jsonl that belong to this point.
    """

    call: int = 0
    kd_steps: int = 0
    images: int = 0
    synthesis_seconds: float = 0.0
    distill_seconds: float = 0.0
    compile_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    teacher_accuracy: float | None = None
    accuracy_last: float | None = None
    accuracy_best: float | None = None
    metrics_offset: int = 0


class Programs:
    """The two compiled programs of a run: one synthesis call, and a few KD steps."""

    def __init__(self, parts: Parts, config: ConfigDict):
        self.steps = math.gcd(config.kd.steps_per_call, config.kd.steps_per_dispatch)
        loss = distill.kd_loss(config.kd.temperature)
        # Nothing but predictions is asked of the teacher there.
        teacher = models.in_chunks(parts.teacher, 8) if jax.default_backend() == "cpu" else parts.teacher
        kd_step = distill.make_step(
            teacher,
            parts.student,
            parts.optimizer,
            loss,
            crop_padding=config.kd.crop_padding,
            flip=config.kd.flip,
        )

        def synthesize(state, filled, teacher_vars, student_vars, key, call):
            """One call and all that follows from it on the device: (state, pool, new rows, labels, info)."""
            key = jax.random.fold_in(key, call)
            state, batch, info = parts.method.synthesize(state, teacher_vars, student_vars, key)
            info = {**info, "diversity": batch.images.std(0).mean()}
            rows = pool.to_uint8(batch.images)
            return state, pool.append(filled, rows), rows, batch.labels, info

        def distill_steps(state, teacher_vars, images, key):
            def one(state, _):
                sample_key, view_key = jax.random.split(jax.random.fold_in(key, state.step))
                batch = parts.split(pool.sample(sample_key, images, config.kd.batch))
                return kd_step(state, teacher_vars, batch, view_key)

            state, info = jax.lax.scan(one, state, None, length=self.steps)
            return state, jax.tree.map(jnp.mean, info)

        self.synthesize = parallel.CompiledStep(synthesize, donate=(0, 1))
        self.distill = parallel.CompiledStep(distill_steps, donate=(0,))


class Training:
    """One run in one working directory."""

    def __init__(self, config: ConfigDict, parts: Parts, workdir: Path):
        self.config, self.parts, self.workdir = config, parts, workdir
        self.programs = Programs(parts, config)
        self.progress = Progress()
        self.stop_requested = False
        self.evaluate = make_evaluator(parts.student, config.data.batch)
        init_key, self.synthesis_key, self.distill_key = jax.random.split(jax.random.key(config.seed), 3)
        self.state = initial_state(init_key, parts)
        self.synthesizes = config.mode != "distill"
        self.shards = pool.Shards(workdir / "pool")
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self._restore()
        self.pool = self._fill_pool()
        self.trace = Trace(workdir / "profile", self._call_to_trace() if config.profile else None)
        self.metrics = Metrics(workdir, config.calls, self.progress.call, self.progress.metrics_offset)

    def _restore(self) -> None:
        restored = self.checkpoints.restore(self.state)
        if restored is not None:
            # A copy, because the compiled steps donate their state.
            self.state = parallel.copy(restored.state)
            self.progress = Progress(**restored.progress)
            log.info("resumed at call %d, KD step %d", self.progress.call, self.progress.kd_steps)
        elif not self.synthesizes:
            self.progress.call = self.config.warmup_calls
        if self.synthesizes:
            self.shards.truncate(self.progress.call)

    def _fill_pool(self) -> pool.Pool:
        shape = self.parts.teacher.spec.input_shape
        parts = [] if self.parts.initial is None else [self.parts.initial]
        per_call = self.config.fastdfkd.synthesis_batch * self.config.fastdfkd.num_tasks
        capacity = sum(map(len, parts)) + (per_call * self.config.calls if self.synthesizes else 0)
        if self.synthesizes:
            parts.extend(self.shards.read(self.progress.call))
        filled = pool.empty(capacity, shape)
        return pool.append(filled, jnp.asarray(np.concatenate(parts))) if parts else filled

    def _call_to_trace(self) -> int:
        """The second call of this start that does all that calls do: the first one compiles."""
        warmup = 0 if self.config.mode == "synthesize" else self.config.warmup_calls
        return min(self.config.calls, max(self.progress.call, warmup) + 2)

    def run(self) -> dict[str, Any]:
        """Runs to the end, or to a SIGTERM, and returns the summary (empty where stopped)."""
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            self._evaluate_teacher()
            while self.progress.call < self.config.calls or self._kd_left():
                if self._kd_left():
                    self._distill()
                else:
                    self._synthesize()
                if not self._kd_left():
                    self._end_trace()
                    self._end_call()
                if self.stop_requested:
                    self._save()
                    self.metrics.say("stopped by SIGTERM, everything saved; the same command goes on")
                    return {}
            return self._finish()
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._end_trace()
            self.metrics.close()
            self.checkpoints.close()

    def _request_stop(self, *_) -> None:
        self.stop_requested = True

    def _end_trace(self) -> None:
        if (folder := self.trace.end()) is not None:
            self.metrics.say(
                f"traced call {self.progress.call} into {folder}: for TensorBoard's profile plugin, or "
                "perfetto_trace.json.gz within it for ui.perfetto.dev"
            )

    def _kd_left(self) -> bool:
        config, done = self.config, self.progress
        trains = config.mode != "synthesize" and done.call > config.warmup_calls
        return trains and done.kd_steps < config.kd.steps_per_call

    def _synthesize(self) -> None:
        """Algorithm 1 lines 5 to 14, once."""
        self.progress.call += 1
        self.progress.kd_steps = 0
        self.trace.begin(self.progress.call)
        if not self.synthesizes:
            return
        self.state["method"], self.pool, rows, labels, info = self.programs.synthesize(
            self.state["method"],
            self.pool,
            self.parts.teacher_vars,
            self.state["student"].variables,
            self.synthesis_key,
            np.int32(self.progress.call),
        )
        self.progress.synthesis_seconds += self.programs.synthesize.run_seconds
        self.progress.compile_seconds += self.programs.synthesize.compile_seconds
        rows = np.asarray(rows)
        self.shards.write(self.progress.call - 1, rows, np.asarray(labels))
        self.progress.images += len(rows)
        self._record("synthesis", info)
        if self.progress.call % self.config.images_every == 0:
            report.write_grid(self.workdir / "images" / f"{self.progress.call:06d}.png", rows)

    def _distill(self) -> None:
        """Algorithm 1 lines 17 to 20, as many steps as one program holds."""
        self.state["student"], info = self.programs.distill(
            self.state["student"], self.parts.teacher_vars, self.pool, self.distill_key
        )
        self.progress.distill_seconds += self.programs.distill.run_seconds
        self.progress.compile_seconds += self.programs.distill.compile_seconds
        self.progress.kd_steps += self.programs.steps
        if not math.isfinite(float(info["loss"])):
            self._refuse_non_finite("kd/loss")
        if not self._kd_left():
            self._record("kd", info)

    def _end_call(self) -> None:
        done = self.progress
        last = done.call == self.config.calls
        trained = done.call > self.config.warmup_calls
        due = last or done.call % self.config.eval_every == 0
        if self.parts.test is not None and due and trained and self.config.mode != "synthesize":
            self._evaluate(self.parts.test)
        if last or done.call % self.config.checkpoint_every == 0:
            self._save()
        accuracy = "" if done.accuracy_last is None else f", test accuracy {done.accuracy_last:.2f} %"
        self.metrics.advance(done.call, f"{done.images} images{accuracy}")

    def _record(self, part: str, info: dict[str, jax.Array]) -> None:
        values = {f"{part}/{name}": np.asarray(value).tolist() for name, value in info.items()}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                self._refuse_non_finite(name)
        self.metrics.write(self.progress.call, values)
        if part == "synthesis" and "predicted" in info:
            balance, diversity = class_balance(values["synthesis/predicted"]), values["synthesis/diversity"]
            if balance < _COLLAPSED_BALANCE or diversity < _COLLAPSED_DIVERSITY:
                self.metrics.say(
                    f"warning: synthesis may have collapsed at call {self.progress.call}: class balance "
                    f"{balance:.2f} of 1, pixel deviation over the batch {diversity:.3f}"
                )

    def _refuse_non_finite(self, term: str) -> None:
        raise UserError(
            f"{term} is not finite at call {self.progress.call}, KD step {self.progress.kd_steps}; last checkpoint: "
            f"{self.checkpoints.latest}: lower config.kd.lr, config.meta.lr or config.inner.*, and use a new workdir"
        )

    def _evaluate_teacher(self) -> None:
        if self.parts.test is not None and self.progress.teacher_accuracy is None:
            evaluate = make_evaluator(self.parts.teacher, self.config.data.batch)
            result = evaluate(self.parts.teacher_vars, self.parts.test)
            self.progress.teacher_accuracy = result["accuracy"]
            self.metrics.say(f"teacher accuracy {result['accuracy']:.2f} %")

    def _evaluate(self, test: Dataset) -> None:
        done, start = self.progress, time.perf_counter()
        result = self.evaluate(self.state["student"].variables, test)
        done.evaluate_seconds += time.perf_counter() - start
        done.accuracy_last = result["accuracy"]
        done.accuracy_best = max(done.accuracy_last, done.accuracy_best or 0.0)
        self.metrics.write(done.call, {f"eval/{name}": value for name, value in result.items()})

    def _save(self) -> None:
        done = self.progress
        done.metrics_offset = self.metrics.offset
        number = done.call * (self.config.kd.steps_per_call + 1) + done.kd_steps
        self.checkpoints.save(number, self.state, dataclasses.asdict(done))

    def _finish(self) -> dict[str, Any]:
        done = self.progress
        save_student(self.workdir, self.parts.student, self.state["student"].variables)
        return {
            "teacher": self.parts.teacher.spec.arch,
            "student": self.parts.student.spec.arch,
            "method": self.config.method.name,
            "seed": self.config.seed,
            "teacher_accuracy": done.teacher_accuracy,
            "student_accuracy_last": done.accuracy_last,
            "student_accuracy_best_on_test": done.accuracy_best,
            "images": done.images,
            "synthesis_seconds": done.synthesis_seconds,
            "distill_seconds": done.distill_seconds,
            "evaluate_seconds": done.evaluate_seconds,
            "compile_seconds": done.compile_seconds,
            "peak_memory_bytes": peak_memory_bytes(),
        }


def initial_state(key: jax.Array, parts: Parts) -> dict[str, Any]:
    """What a run starts from: the method's state and the student's."""
    method_key, student_key = jax.random.split(key)
    if parts.student_vars is None:
        student = jax.jit(lambda key: distill.init(key, parts.student, parts.optimizer))(student_key)
    else:
        student = distill.from_variables(parallel.copy(parts.student_vars), parts.optimizer)
    return {"method": jax.jit(parts.method.init)(method_key, parts.teacher_vars), "student": student}


def save_student(workdir: Path, student: Network, variables: Any) -> None:
    """Writes student.safetensors and, where torch is installed, student.pth."""
    convert.save_network(workdir / "student.safetensors", student, variables)
    if importlib.util.find_spec("torch") is not None:
        convert.save_network(workdir / "student.pth", student, variables)
