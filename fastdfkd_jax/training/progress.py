"""The progress of a run, and its final summary."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fastdfkd_jax.evaluation.scores import Score
from fastdfkd_jax.training.build import Parts
from fastdfkd_jax.training.metric_files import peak_memory_bytes


@dataclasses.dataclass
class Progress:
    """The position of a run and its cost so far, over all its resumptions; saved with each checkpoint.

    Attributes:
      call: calls done.
      kd_steps: KD steps done after the last of them. In a warm-up call of a method whose batches live once, it counts
        the steps that its rounds replace.
      images: images synthesised; if a method keeps the images of only some calls, only those.
      shards: calls whose images are in D' and on disk.
      *_seconds: seconds of each kind of work; they do not overlap.
      teacher_score, score_last, score_best: scores on the evaluation data, in percent (`scores.of_task`).
      peak_memory_bytes: most memory that a process of the run used, up to its last checkpoint.
      metrics_offset: bytes of metrics.jsonl that belong to this point.
      kd_sums: sum of each scalar over the call's KD steps so far.
      on_target: shares of the last calls that are judged together; None once a warning was given.
      collapsed: whether a warning of a collapse was given.
      warnings: the warnings of synthesis so far, each one sentence.
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
    peak_memory_bytes: int = 0
    metrics_offset: int = 0
    kd_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    on_target: list[float] | None = dataclasses.field(default_factory=list)
    collapsed: bool = False
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def total_seconds(self) -> float:
        """Seconds of all kinds of work together."""
        return sum(value for name, value in vars(self).items() if name.endswith("_seconds"))


def summary(progress: Progress, parts: Parts, score: Score, method: str, seed: int) -> dict[str, Any]:
    """Returns the contents of summary.json for a run that has ended."""
    return {
        "teacher": parts.teacher.spec.arch,
        "student": parts.student.spec.arch,
        "method": method,
        "knows": parts.method.knows,
        "seed": seed,
        "score": score.name,
        f"teacher_{score.name}": progress.teacher_score,
        f"student_{score.name}_last": progress.score_last,
        f"student_{score.name}_best_on_test": progress.score_best,
        "warnings": progress.warnings,
        "images": progress.images,
        "synthesis_seconds": progress.synthesis_seconds,
        "distill_seconds": progress.distill_seconds,
        "label_seconds": progress.label_seconds,
        "evaluate_seconds": progress.evaluate_seconds,
        "compile_seconds": progress.compile_seconds,
        "total_seconds": progress.total_seconds,
        "peak_memory_bytes": max(progress.peak_memory_bytes, peak_memory_bytes()),
        "devices": [device.device_kind for device in jax.devices()],
    }
