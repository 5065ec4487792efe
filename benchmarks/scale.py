"""Estimates from shapes what synthesis and KD need of an accelerator: work, live memory, and bounds for an H100.

    python -m benchmarks.scale

Nothing is run or compiled. Live memory is what the backward pass of one inner step keeps; the time cannot be less than
the work at the card's bf16 peak, nor than writing and reading the kept arrays once each at the memory's peak.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import flops
from fastdfkd_jax import moments
from fastdfkd_jax.methods.parts.inversion_loss import Frozen, InversionOptions, make_inversion_loss
from fastdfkd_jax.models import Forms, Network, NetworkSpec, build, build_generator, rematerialised, usual_image_size
from fastdfkd_jax.models.network import REMATERIALISATIONS
from fastdfkd_jax.storage import markdown

# NVIDIA H100 SXM data sheet: dense bf16 operations and bytes of HBM3, a second.
_PEAK_FLOPS, _PEAK_BYTES = 989e12, 3.35e12

_PUBLISHED = ("wrn40_2-wrn16_1:256", "resnet34-resnet18:256", "resnet50_imagenet-resnet50_imagenet:100")
KINDS = REMATERIALISATIONS[1:]  # all but none


class Needs(NamedTuple):
    """Of one device in one inner step.

    Attributes:
      flops: floating-point operations.
      kept_bytes: arrays that the forward pass leaves to the backward pass.
      state_bytes: weights, and generator and latents with their gradients and optimizer moments.
      kd_kept_bytes, kd_state_bytes: the same of a KD step, of a batch of the same size.
    """

    flops: float
    kept_bytes: int
    state_bytes: int
    kd_kept_bytes: int
    kd_state_bytes: int


def needs(pair: str, batch: int, devices: int, dtype: str, remat: str = "none") -> Needs:
    """Estimates what the inner step of a teacher-student pair needs where `devices` share the batch.

    Images have the teacher's usual size, and classes and generator are those of CIFAR-10 or of ImageNet accordingly.
    `flops` does not count what rematerialisation computes again.
    """
    teacher_arch, student_arch = pair.split("-")
    size = usual_image_size(teacher_arch)
    classes, kind = (10, "linear") if size == 32 else (1000, "spatial")
    forms = Forms(jnp.dtype(dtype), "xla")
    teacher, student = (build(NetworkSpec(arch, classes, size), forms=forms) for arch in (teacher_arch, student_arch))
    teacher, student = (rematerialised(network, remat) for network in (teacher, student))
    generator = build_generator(size, kind=kind, forms=forms)
    inversion_loss = make_inversion_loss(teacher, student, InversionOptions())
    key = jax.eval_shape(lambda: jax.random.key(0))
    teacher_vars, student_vars = jax.eval_shape(teacher.init, key), jax.eval_shape(student.init, key)
    accumulators = jax.eval_shape(moments.init, teacher_vars["batch_stats"])
    images = -(-batch // devices)
    kd_kept, kd_state = _distillation(teacher, student, images, teacher_vars, student_vars)
    params = {
        "generator": jax.eval_shape(generator.init, key),
        "latents": jax.ShapeDtypeStruct((images, *generator.latent_shape), jnp.float32),
    }

    def backward(params, teacher_vars, student_vars, accumulators, key):
        frozen = Frozen(teacher_vars, student_vars, accumulators, jnp.ones(()))
        labels = jnp.zeros((images,), jnp.int32)

        def loss(params):
            made = generator.apply(params["generator"], params["latents"])
            return inversion_loss(made, labels, key, frozen)[0]

        return jax.vjp(loss, params)[1]

    kept = _bytes(jax.eval_shape(backward, params, teacher_vars, student_vars, accumulators, key))
    # The vjp keeps weights too; they are counted with the state.
    kept -= _bytes(teacher_vars["params"]) + _bytes(student_vars["params"]) + _bytes(params["generator"])
    state = _bytes(teacher_vars) + _bytes(student_vars) + 6 * _bytes(params)
    costs = flops.count(teacher, student, generator, images)
    return Needs(costs.synthesis_call(1), max(kept, 0), state, kd_kept, kd_state)


def _distillation(teacher: Network, student: Network, images: int, teacher_vars: Any, student_vars: Any):
    """Bytes that the student's forward pass keeps in a KD step, and bytes of state."""
    spec = student.spec
    pixels = jax.ShapeDtypeStruct((images, *spec.input_shape), jnp.float32)

    def backward(params, batch_stats, pixels):
        def logits(params):
            return student.apply({"params": params, "batch_stats": batch_stats}, pixels, train=True).logits

        return jax.vjp(logits, params)[1]

    kept = _bytes(jax.eval_shape(backward, student_vars["params"], student_vars["batch_stats"], pixels))
    # Weights, gradient and momentum.
    state = _bytes(teacher_vars) + _bytes(student_vars) + 2 * _bytes(student_vars["params"])
    return max(kept - _bytes(student_vars["params"]), 0), state


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "shape") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def _case(text: str) -> tuple[str, int]:
    pair, _, batch = text.partition(":")
    if pair.count("-") != 1 or not batch.isdigit() or batch == "0":
        raise argparse.ArgumentTypeError(f"expected TEACHER-STUDENT:BATCH, such as {_PUBLISHED[0]}, found {text!r}")
    return pair, int(batch)


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    published = [_case(text) for text in _PUBLISHED]
    parser.add_argument("--pairs", nargs="*", type=_case, default=published, metavar="TEACHER-STUDENT:BATCH")
    args = parser.parse_args()
    head = ("pair", "batch", "devices", "GFLOP a device", "kept GB", *(f"… remat {kind}" for kind in KINDS))
    head += ("state GB", "≥ ms by work", "≥ ms by memory", "limit")
    calls, steps = [], []
    for pair, batch in args.pairs:
        for devices in (1, 8):
            needed = [needs(pair, batch, devices, "bfloat16", kind) for kind in ("none", *KINDS)]
            need = needed[0]
            work = 1e3 * need.flops / _PEAK_FLOPS
            memory = 1e3 * 2 * need.kept_bytes / _PEAK_BYTES
            kept = (f"{each.kept_bytes / 1e9:.2f}" for each in needed)
            bounds = (f"{work:.2f}", f"{memory:.2f}", "memory" if memory > work else "work")
            flops, state = f"{need.flops / 1e9:,.0f}", f"{need.state_bytes / 1e9:.2f}"
            calls.append((pair, batch, devices, flops, *kept, state, *bounds))
            kept = (f"{each.kd_kept_bytes / 1e9:.2f}" for each in needed)
            steps.append((pair, batch, devices, *kept, f"{need.kd_state_bytes / 1e9:.2f}"))
    print("Computed, not run: one inner step, bf16 convolutions and activations, NVIDIA H100.\n")
    print(markdown.table(head, calls))
    head = ("pair", "batch", "devices", "kept GB", *(f"… remat {kind}" for kind in KINDS), "state GB")
    print("Computed, not run: one KD step.\n")
    print(markdown.table(head, steps), end="")


if __name__ == "__main__":
    main()
