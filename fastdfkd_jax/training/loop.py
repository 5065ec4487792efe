"""The host loop: builds the parts, runs synthesis and distillation call by call, records, saves and resumes."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fastdfkd_jax import convert
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli import signals
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.distributed import hosts, parallel
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.methods import base
from fastdfkd_jax.models import Network
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.pool.initial_images import Located
from fastdfkd_jax.pool.label_files import Description, LabelFiles
from fastdfkd_jax.pool.on_disk import DeviceStore, DiskStore
from fastdfkd_jax.pool.sampling import Replay
from fastdfkd_jax.pool.shards import Rows, Shards
from fastdfkd_jax.pool.stored_labels import LabelStore, Taught
from fastdfkd_jax.storage import image_grid
from fastdfkd_jax.storage.files import lock_folder
from fastdfkd_jax.training.build import Parts, last_call, last_synthesis_call
from fastdfkd_jax.training.checkpoint import Checkpoints, digest
from fastdfkd_jax.training.diagnosis import teacher_fault
from fastdfkd_jax.training.evidence import Evidence
from fastdfkd_jax.training.metric_files import Metrics, Silent, class_balance, near_chance, peak_memory_bytes
from fastdfkd_jax.training.profile import Trace
from fastdfkd_jax.training.programs import Programs, initial_state, on_disk, view_options
from fastdfkd_jax.training.workdir import mark_saved

log = logging.getLogger(__name__)

# Below these the synthesised images are nearly one class, or nearly one image.
_COLLAPSED_BALANCE, _COLLAPSED_DIVERSITY = 0.5, 0.02
# The class term is judged by the mean over so many calls, and not by the first ones, whose generator knows nothing yet.
_JUDGED_CALLS, _FIRST_CALLS = 5, 5


@dataclasses.dataclass
class Progress:
    """Where a run stands and what it has cost, over all its resumptions; saved with each checkpoint.

    Attributes:
      call: calls done.
      kd_steps: KD steps done after the last of them; in a warm-up call of a method whose batches live once, those
        that its rounds stand for.
      images: images synthesised, those of a method that keeps some of its calls without the others.
      shards: calls whose images are in D' and on disk.
      *_seconds: time of each kind of work, apart from the others.
      teacher_score, score_last, score_best: on the evaluation data, percent (`scores.of_task`).
      metrics_offset: bytes of metrics.jsonl that belong to this point.
      kd_sums: of each scalar that the call's KD steps have shown so far, its sum over them.
      on_target: shares of the last calls that are judged together; None once a warning was given.
    """

    call: int = 0
    kd_steps: int = 0
    images: int = 0
    shards: int = 0
    synthesis_seconds: float = 0.0
    distill_seconds: float = 0.0
    compile_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    label_seconds: float = 0.0
    teacher_score: float | None = None
    score_last: float | None = None
    score_best: float | None = None
    metrics_offset: int = 0
    kd_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    on_target: list[float] | None = dataclasses.field(default_factory=list)


class Training:
    """One run in one working directory."""

    def __init__(self, config: ConfigDict, parts: Parts, workdir: Path, identity: Mapping[str, Any] | None = None):
        """Builds the programs and restores the newest checkpoint that can be used.

        Args:
          config: of the run.
          parts: built of it.
          workdir: the run's folder.
          identity: kept with checkpoints, which another run is refused by (`checkpoint.require_same_run`).
        """
        self.config, self.parts, self.workdir = config, parts, workdir
        self.programs = Programs(parts, config)
        self.progress = Progress()
        self.last_call = last_call(config)
        self.stop = signals.Stop()
        self.evaluate, self.score = make_evaluator(parts.student, config.data.batch), scores.of_task(parts.teacher.spec)
        init_key, self.synthesis_key, self.distill_key = jax.random.split(jax.random.key(config.seed), 3)
        self.state = initial_state(init_key, parts)
        self.once = parts.method.lifetime == base.ONCE
        self.synthesizes = config.mode != "distill" and parts.method.lifetime != base.DATA
        self.writes = hosts.is_writer()
        self.shards = Shards(workdir / "pool")
        self.checkpoints = Checkpoints(workdir / "checkpoints", layout=parts.layout, identity=dict(identity or {}))
        self.evidence = Evidence(workdir, self._labels_folder(), config.pool.initial)
        self.store = self._empty_store()
        self._restore()
        if self.store is not None:
            made = self.progress.shards if self.synthesizes else 0
            self.store.fill(self.shards, made, self.checkpoints.latest is not None)
        self.labels: LabelStore | None = None
        self._label_lock: IO[str] | None = None
        self.trace = Trace(workdir / "profile", self._call_to_trace() if config.profile and self.writes else None)
        done = self.progress
        self.metrics = Metrics(workdir, self.last_call, done.call, done.metrics_offset) if self.writes else Silent()

    def _restore(self) -> None:
        restored = self.checkpoints.restore(self._saved_state(), self.evidence.fault)
        if restored is not None:
            # A copy, because the compiled steps donate their state.
            self.state = parallel.copy(restored.state)
            if "replay" in self.state and self.store is not None:
                self.store.learned(Replay(*self.state.pop("replay")))
            self.progress = Progress(**restored.progress)
            log.info("resumed at call %d, KD step %d", self.progress.call, self.progress.kd_steps)
        elif not self.synthesizes:
            self.progress.call = self.config.warmup_calls
        hosts.require_same("checkpoint", dataclasses.asdict(self.progress))
        if self.synthesizes and not self.once and self.writes:
            self.shards.truncate(self.progress.shards)

    def _saved_state(self) -> dict[str, Any]:
        """All that a checkpoint holds; the pool's images lie in the shards."""
        known = None if self.store is None else self.store.replay
        return self.state if known is None else {**self.state, "replay": tuple(known)}

    def _empty_store(self) -> DeviceStore | DiskStore | None:
        if self.once:
            return None
        first = self.parts.initial
        if on_disk(self.parts.method, self.config):
            assert not isinstance(first, Rows)
            place = parallel.placer(parallel.devices(self.parts.layout["batch devices"]))
            return DiskStore(first, self.workdir / "initial", self._rows, place, hosts.writer_first)
        assert not isinstance(first, Located)
        made = self.parts.method.images_per_call * last_synthesis_call(self.config) if self.synthesizes else 0
        replayed = not self.programs.replay.uniform
        return DeviceStore(first, made, self.parts.teacher.spec.input_shape, replayed)

    def _rows(self, step: int, size: int) -> np.ndarray:
        return np.asarray(self.programs.draw_rows(self.distill_key, np.int32(step), np.int32(size)))

    def _call_to_trace(self) -> int:
        """The second call of this start that does all that calls do: the first one compiles.

        Where none does, as synthesis ends before the student begins, the second.
        """
        warmup = self.config.warmup_calls
        if self.config.mode == "synthesize" or warmup >= last_synthesis_call(self.config):
            warmup = 0
        return min(self.last_call, max(self.progress.call, warmup) + 2)

    def run(self) -> dict[str, Any]:
        """Runs to the end, or until a signal asks to stop, and returns the summary (empty where stopped)."""
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
            self._end_trace()
            self.metrics.close()
            if hosts.count() == 1 or sys.exc_info()[0] is None:  # it waits for the others, of which one may be lost
                self.checkpoints.close()
            if self.labels is not None:
                self.labels.close()
            if self._label_lock is not None:
                self._label_lock.close()
            if self.store is not None:
                self.store.close()

    def _stopped(self) -> dict[str, Any]:
        """Saves, says so, and gives the summary of a run that has not ended, an empty one."""
        self._save()
        asked = f" by {self.stop.by}" if self.stop.by else ""
        how = "run the same command without --config.restart" if self.config.restart else "run the same command"
        self.metrics.say(f"stopped{asked}; checkpoint saved; {how} to continue")
        return {}

    def _step(self) -> None:
        """As much as is done between two looks at whether to stop: at most one dispatch of each program."""
        if not self._steps_left():
            self._begin_call()
        elif self.once:
            self._round()
        elif self.config.soft_labels.steps and (self.labels is None or not self.labels.complete):
            self._label()
        else:
            self._distill(self._next_source())
        if not self._steps_left():
            self._end_trace()
            self._end_call()

    def _end_trace(self) -> None:
        if (folder := self.trace.end()) is not None:
            self.metrics.say(
                f"traced call {self.progress.call} into {folder}: for TensorBoard's profile plugin, or "
                "perfetto_trace.json.gz within it for ui.perfetto.dev"
            )

    def _trains(self) -> bool:
        """Whether the student learns in this call."""
        return self.config.mode != "synthesize" and self.progress.call > self.config.warmup_calls

    def _steps_left(self) -> bool:
        steps = self.progress.kd_steps < self.config.kd.steps_per_call
        return steps and (self._trains() or (self.once and self.progress.call > 0))

    def _begin_call(self) -> None:
        self.progress.call += 1
        self.progress.kd_steps = 0
        self.trace.begin(self.progress.call)
        if self.synthesizes and not self.once and self.progress.call <= last_synthesis_call(self.config):
            self._synthesize()

    def _synthesize(self) -> None:
        """Algorithm 1 lines 5 to 14, once; the images stay."""
        assert self.store is not None
        self.state["method"], self.store.pool, batch, info = self.programs.synthesize(
            self.state["method"],
            self.store.pool,
            self.parts.teacher_vars,
            self.state["student"].variables,
            self.synthesis_key,
            np.int32(self.progress.call),
        )
        if bool(batch.kept):
            rows = jax.tree.map(np.asarray, batch)
            if self.writes:
                self.shards.write(self.progress.shards, rows.images, rows.labels, rows.weights)
            hosts.wait()
            self.store.added(self.shards.path(self.progress.shards))
            self.progress.shards += 1
            self.progress.images += self.parts.method.images_per_call
            self._judge_classes(info)
        self._count_synthesis()
        self._record("synthesis", info)
        if self._shows_images():
            self._write_grid(batch.images)

    def _round(self) -> None:
        """One batch that lives once, and the student's steps on it."""
        turn = (self.progress.call - 1) * self.config.kd.steps_per_call + self.progress.kd_steps
        self.state["method"], batch, info = self.programs.synthesize(
            self.state["method"],
            self.parts.teacher_vars,
            self.state["student"].variables,
            self.synthesis_key,
            np.int32(turn),
        )
        self._count_synthesis()
        self.progress.images += self.parts.method.images_per_call
        if self._trains():
            self._distill(batch)
        else:
            self.progress.kd_steps += self.programs.steps
        if not self._steps_left():
            self._record("synthesis", info)
            if self._shows_images():
                self._write_grid(on_device.to_uint8(self._as_pixels(batch.images[0])))

    def _count_synthesis(self) -> None:
        self.progress.synthesis_seconds += self.programs.synthesize.run_seconds
        self.progress.compile_seconds += self.programs.synthesize.compile_seconds

    def _as_pixels(self, images: jax.Array) -> jax.Array:
        spec = self.parts.teacher.spec
        return augment.denormalize(images, spec.mean, spec.std) if self.parts.method.network_input else images

    def _shows_images(self) -> bool:
        return self.progress.call % self.config.images_every == 0

    def _write_grid(self, rows: jax.Array | np.ndarray) -> None:
        if self.writes:
            image_grid.write_grid(self.workdir / "images" / f"{self.progress.call:06d}.png", np.asarray(rows))

    def _label(self) -> None:
        """The teacher's answers to as many steps as one program holds; the first time, finds those that there are."""
        assert self.store is not None
        if self.labels is None:
            self.labels = self._open_labels(self.store)
            return
        key, steps, size = jax.random.key(self.config.soft_labels.seed), self.programs.steps, len(self.store)
        step = np.int32(self.labels.made * steps)
        begin = time.perf_counter()
        source = self.store.of_rows(np.asarray(self.programs.draw_rows(key, step, np.int32(size))))
        made = self.programs.label(self.parts.teacher_vars, source, key, step, np.int32(size))
        self.labels.append(made, write=self.writes)
        self.progress.compile_seconds += self.programs.label.compile_seconds
        self.progress.label_seconds += time.perf_counter() - begin - self.programs.label.compile_seconds
        if self.labels.complete and self._label_lock is not None:
            self._label_lock.close()

    def _open_labels(self, store: DeviceStore | DiskStore) -> LabelStore:
        chosen, spec, steps = self.config.soft_labels, self.parts.teacher.spec, self.programs.steps
        description = Description(
            teacher=digest(self.parts.teacher_vars),
            arch=spec.arch,
            mean=tuple(spec.mean),
            std=tuple(spec.std),
            precision=self.config.precision,
            classes=spec.num_classes,
            pool=store.digest(),
            pool_size=len(store),
            seed=chosen.seed,
            batch=self.config.kd.batch,
            steps=steps,
            top_k=chosen.top_k,
            temperature=self.config.kd.temperature,
            views=view_options(self.config),
        )
        directory = self._labels_folder()
        files = hosts.writer_first(lambda: LabelFiles(directory, description))
        made = hosts.from_writer("soft labels", files.count)
        labels = LabelStore(files, made, math.ceil(chosen.steps / steps), self._order, store)
        if not labels.complete:
            if self.writes:
                self._label_lock = lock_folder(directory)
            gigabytes = (labels.count - labels.made) * description.bytes_per_shard / 1e9
            self.metrics.say(f"the teacher answers {labels.count * steps} steps, {gigabytes:.3f} GB, into {directory}")
        return labels

    def _labels_folder(self) -> Path:
        chosen = self.config.soft_labels.dir
        return expanded(chosen) if chosen else self.workdir / "soft_labels"

    def _order(self, turn: int, shards: int) -> np.ndarray:
        """In which order the student meets the shards of soft labels."""
        return np.asarray(jax.random.permutation(jax.random.fold_in(self.distill_key, turn), shards))

    def _next_source(self) -> on_device.Pool | on_device.Batches | Taught:
        """What the next dispatch learns from; where that is read, the one after it is too, unless D' grows before."""
        assert self.store is not None
        begin = time.perf_counter()
        step, steps, config = int(self.state["student"].step), self.programs.steps, self.config
        same_call = self.progress.kd_steps + steps < config.kd.steps_per_call
        grows = self.synthesizes and self.progress.call < last_synthesis_call(config)
        more = same_call or not (grows or self.progress.call == self.last_call)
        if self.labels is not None:
            source = self.labels.source(step // steps, step // steps + 1 if more else None)
        else:
            source = self.store.source(step, step + steps if more else None)
        self.progress.distill_seconds += time.perf_counter() - begin  # what is not there yet is waited for
        return source

    def _distill(self, source: on_device.Pool | on_device.Batches | base.Batch | Taught) -> None:
        """Algorithm 1 lines 17 to 20, as many steps as one program holds."""
        self.state["student"], known, info = self.programs.distill(
            self.state["student"], self.parts.teacher_vars, source, self.distill_key
        )
        if known is not None and self.store is not None:
            self.store.learned(known)
        self.progress.distill_seconds += self.programs.distill.run_seconds
        self.progress.compile_seconds += self.programs.distill.compile_seconds
        self.progress.kd_steps += self.programs.steps
        if not math.isfinite(float(info["loss"])):
            self._refuse_non_finite("kd/loss")
        sums, steps = self.progress.kd_sums, self.programs.steps
        self.progress.kd_sums = {name: sums.get(name, 0.0) + steps * float(mean) for name, mean in info.items()}
        if not self._steps_left():
            self._record("kd", {name: total / self.progress.kd_steps for name, total in self.progress.kd_sums.items()})
            self.progress.kd_sums = {}

    def _end_call(self) -> None:
        done = self.progress
        last = done.call == self.last_call
        due = last or done.call % self.config.eval_every == 0
        if self.parts.test is not None and due and self._trains():
            self._evaluate(self.parts.test)
        if last or done.call % self.config.checkpoint_every == 0:
            self._save()
        score = "" if done.score_last is None else f", test {self.score.title} {done.score_last:.2f} %"
        self.metrics.advance(done.call, f"{done.images} images{score}")

    def _record(self, part: str, info: Mapping[str, Any]) -> None:
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

    def _judge_classes(self, info: dict[str, jax.Array]) -> None:
        """Says once a run that few images of the last calls are of the class that was asked for."""
        done, method, classes = self.progress, self.parts.method, self.parts.teacher.spec.num_classes
        if not method.class_advice or done.on_target is None or done.call <= _FIRST_CALLS or classes < 2:
            return
        done.on_target = [*done.on_target, float(info["on_target"])][-_JUDGED_CALLS:]
        if len(done.on_target) == _JUDGED_CALLS and near_chance(done.on_target, classes):
            share = sum(done.on_target) / _JUDGED_CALLS
            self.metrics.say(
                f"warning: at call {done.call}, the teacher sees {100 * share:.1f} % of the last {_JUDGED_CALLS} "
                f"batches as the class that was asked for; chance is {100 / classes:.1f} %: {method.class_advice}"
            )
            done.on_target = None

    def _refuse_non_finite(self, term: str) -> None:
        if fault := teacher_fault(self.parts.teacher, self.parts.teacher_vars):
            raise UserError(f"{term} is not finite, as {fault}: use another teacher, or import this one again")
        raise UserError(
            f"{term} is not finite at call {self.progress.call}, KD step {self.progress.kd_steps}; last checkpoint: "
            f"{self.checkpoints.latest}: lower config.kd.lr, config.meta.lr or config.inner.*, and use a new workdir"
        )

    def _evaluate_teacher(self) -> None:
        if self.parts.test is not None and self.progress.teacher_score is None:
            evaluate = make_evaluator(self.parts.teacher, self.config.data.batch)
            result = evaluate(self.parts.teacher_vars, self.parts.test)
            self.progress.teacher_score = result[self.score.name]
            self.metrics.say(f"teacher {self.score.title} {self.progress.teacher_score:.2f} %")

    def _evaluate(self, test: Dataset) -> None:
        done, start = self.progress, time.perf_counter()
        result = self.evaluate(self.state["student"].result, test)
        done.evaluate_seconds += time.perf_counter() - start
        found: float = result[self.score.name]
        done.score_last, done.score_best = found, max(found, done.score_best or 0.0)
        self.metrics.write(done.call, {f"eval/{name}": value for name, value in result.items()})

    def _save(self) -> None:
        done = self.progress
        done.metrics_offset = self.metrics.offset
        number = done.call * (self.config.kd.steps_per_call + 1) + done.kd_steps
        labels = 0 if self.labels is None else self.labels.made
        shards = done.shards if self.synthesizes and not self.once else 0
        evidence = self.evidence.of(shards, labels, done.metrics_offset) if self.writes else {}
        self.checkpoints.save(number, self._saved_state(), dataclasses.asdict(done), evidence)
        if self.writes:
            mark_saved(self.workdir)

    def _finish(self) -> dict[str, Any]:
        done = self.progress
        if self.writes:
            save_student(self.workdir, self.parts.student, self.state["student"].result)
        worked = (
            done.synthesis_seconds,
            done.distill_seconds,
            done.label_seconds,
            done.compile_seconds,
            done.evaluate_seconds,
        )
        return {
            "teacher": self.parts.teacher.spec.arch,
            "student": self.parts.student.spec.arch,
            "method": self.config.method.name,
            "knows": self.parts.method.knows,
            "seed": self.config.seed,
            "score": self.score.name,
            f"teacher_{self.score.name}": done.teacher_score,
            f"student_{self.score.name}_last": done.score_last,
            f"student_{self.score.name}_best_on_test": done.score_best,
            "images": done.images,
            "synthesis_seconds": done.synthesis_seconds,
            "distill_seconds": done.distill_seconds,
            "label_seconds": done.label_seconds,
            "evaluate_seconds": done.evaluate_seconds,
            "compile_seconds": done.compile_seconds,
            "total_seconds": sum(worked),
            "peak_memory_bytes": peak_memory_bytes(),
            "devices": [device.device_kind for device in jax.devices()],
        }


def save_student(workdir: Path, student: Network, variables: Any) -> None:
    """Writes student.safetensors and, where torch is installed, student.pth."""
    convert.save_network(workdir / "student.safetensors", student, variables)
    if importlib.util.find_spec("torch") is not None:
        convert.save_network(workdir / "student.pth", student, variables)
