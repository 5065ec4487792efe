"""Depthwise, grouped and dilated convolutions within a loop, as inversion has them: ours, XLA's own, PyTorch's.

    python -m benchmarks.convolutions

Seconds of one convolution with the gradients of input and kernel, the median of interleaved rounds; a loop of two for
both of JAX. Leaves results/levers/general_convolutions.json.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import seconds
from fastdfkd_jax.cpu_conv import conv2d
from fastdfkd_jax.storage import markdown

RECORD = Path("results/levers/general_convolutions.json")
_BATCH, _ROUNDS, _IN_LOOP = 8, 3, 2


class Case(NamedTuple):
    """A square convolution.

    Attributes:
      network: that has it.
      side: of its input, pixels.
      inputs, outputs: channels.
      size: of the kernel; padding keeps the side, but for the stride.
      stride, dilation, groups: of the convolution.
    """

    network: str
    side: int
    inputs: int
    outputs: int
    size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1


CASES = (
    Case("EfficientNet-Lite0", 112, 32, 32, 3, groups=32),
    Case("EfficientNet-Lite0", 112, 96, 96, 3, 2, groups=96),
    Case("EfficientNet-Lite0", 28, 240, 240, 5, groups=240),
    Case("EfficientNet-Lite0", 14, 672, 672, 5, groups=672),
    Case("ResNeXt-50 32x4d", 56, 128, 128, 3, groups=32),
    Case("ResNeXt-50 32x4d", 14, 1024, 1024, 3, 2, groups=32),
    Case("RegNet-X 400MF", 28, 160, 160, 3, groups=10),
    Case("DeepLabv3", 16, 256, 256, 3, dilation=2),
    Case("DeepLabv3", 16, 512, 256, 3, dilation=12),
)


def _ours(case: Case, form: str) -> Callable[[], Any]:
    edge = case.dilation * (case.size // 2)
    edges = ((edge, edge), (edge, edge))

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, case.stride, edges, case.dilation, case.groups, form=form)

    def loop(x: jax.Array, kernel: jax.Array) -> Any:
        def step(at, _):
            gradients = jax.grad(lambda x, kernel: jnp.square(conv(x, kernel)).sum(), (0, 1))(*at)
            return jax.tree.map(lambda a, g: a - 1e-6 * g, at, gradients), None

        return lax.scan(step, (x, kernel), length=_IN_LOOP)[0]

    run = jax.jit(loop)
    x = jax.random.normal(jax.random.key(0), (_BATCH, case.side, case.side, case.inputs))
    kernel = jax.random.normal(jax.random.key(1), (case.size, case.size, case.inputs // case.groups, case.outputs))
    return lambda: jax.block_until_ready(run(x, kernel))


def _torch(case: Case) -> Callable[[], Any]:
    import torch

    edge = case.dilation * (case.size // 2)
    x = torch.randn(_BATCH, case.inputs, case.side, case.side).to(memory_format=torch.channels_last).requires_grad_()
    kernel = torch.randn(case.outputs, case.inputs // case.groups, case.size, case.size, requires_grad=True)

    def run() -> Any:
        y = torch.nn.functional.conv2d(x, kernel, None, case.stride, edge, case.dilation, case.groups)
        return torch.autograd.grad((y * y).sum(), (x, kernel))

    return run


def measure(case: Case) -> dict[str, Any]:
    """Milliseconds of each implementation."""
    loops = {"ours": _ours(case, "cpu"), "XLA": _ours(case, "xla")}
    runs = {**loops, "PyTorch": _torch(case)}
    for run in runs.values():
        run()
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(_ROUNDS)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in runs}
    return {name: 1e3 * time / (_IN_LOOP if name in loops else 1) for name, time in medians.items()}


def table(content: dict[str, Any]) -> str:
    """Formats a record in Markdown."""
    columns = (
        "network",
        "side",
        "channels",
        "kernel",
        "stride",
        "dilation",
        "groups",
        "ours ms",
        "XLA ms",
        "PyTorch ms",
    )
    rows = []
    for each in content["cases"]:
        shape = [each[key] for key in ("size", "stride", "dilation", "groups")]
        times = [f"{each['milliseconds'][name]:,.0f}" for name in ("ours", "XLA", "PyTorch")]
        channels = f"{each['inputs']} to {each['outputs']}"
        rows.append([each["network"], each["side"], channels, *shape, *times])
    return markdown.table(columns, rows)


def main() -> None:
    """Parses the arguments and runs the measurement."""
    found = [{**case._asdict(), "batch": _BATCH, "milliseconds": measure(case)} for case in CASES]
    content = {"rounds": _ROUNDS, "jax": jax.__version__, "cases": found}
    RECORD.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content), end="")


if __name__ == "__main__":
    main()
