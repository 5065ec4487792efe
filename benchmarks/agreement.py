"""Checks that both sides of a case compute the same, in double precision and from the same random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.case import Case, first_key, numbers_of
from benchmarks.torch_side import TorchSide
from fastdfkd_jax import convert
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.programs import initial_state

_BATCH, _STEPS = 4, 5  # more of Adam's steps only raise the rounding errors


class Agreement:
    """Compares one synthesis call of a small batch, with the case's pair."""

    def __init__(self, case: Case, folder: Path):
        # Sequential reuse and adapted latents show what the k steps ended with.
        shown = (("fastdfkd.reuse", "sequential"), ("fastdfkd.latents_update", "adapted"))
        steps = min(case.steps, _STEPS)
        self.case = case._replace(batch=_BATCH, steps=steps, precision="float64", overrides=(*case.overrides, *shown))
        self.folder = folder

    def differences(self, form: str) -> dict[str, float]:
        """Returns max|ours - torch's| / max|torch's| of first and last loss, adapted latents and adapted generator."""
        with jax.enable_x64(True):
            config = self.case.config(self.folder)
            parts = assemble(config)
            state = double(initial_state(jax.random.key(0), parts))
            key = first_key()
            method, _, info = jax.jit(parts.method.synthesize)(
                state["method"], double(parts.teacher_vars), state["student"].variables, key
            )
            numbers = numbers_of(key, config, parts.teacher.spec)
        side = TorchSide(self.case, self.folder, form, torch.float64)
        losses = side.synthesize(numbers)
        adapted, latents = side.synthesizer.adapted or (torch.nn.Identity(), torch.empty(0))
        theirs = adapted.state_dict()
        ours = convert.to_state_dict({"params": method.generator, "batch_stats": {}}, num_batches_tracked=None)
        return {
            "first loss": _difference(info["loss/first"], losses[0]),
            "last loss": _difference(info["loss/last"], losses[-1]),
            "adapted latents": _difference(method.latents[0], latents.cpu()),
            "adapted generator": max(_difference(value, theirs[name].cpu()) for name, value in ours.items()),
        }


def double(tree: Any) -> Any:
    """Returns the tree with its floating-point leaves in double precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _difference(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
