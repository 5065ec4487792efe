"""Shows why `fastdfkd_jax.cpu_conv` exists: XLA's CPU compiler makes convolution gradients slow inside a loop.

    python -m benchmarks.xla_loops

Times one step of gradient descent on the input and the kernel of a 3×3 convolution, in about a minute: XLA's own
gradients outside a loop and inside `lax.scan`, and ours inside `lax.scan`. Writes results/levers/xla_loops.json. If the
second column is no longer slower than the first, XLA is mended and `cpu_conv` can go.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import median_seconds
from fastdfkd_jax.cpu_conv import conv2d
from fastdfkd_jax.storage import markdown
from fastdfkd_jax.storage.files import write_json

RECORD = Path("results/levers/xla_loops.json")
_STEPS = 2  # of a loop


class Case(NamedTuple):
    """A 3×3 convolution that keeps the image's side.

    Attributes:
      batch: images.
      side: of an image, pixels.
      channels: of input and output.
    """

    batch: int
    side: int
    channels: int


CASES = (Case(32, 32, 16), Case(32, 16, 32), Case(32, 8, 64), Case(32, 8, 128))


def _run(case: Case, form: str, in_loop: bool) -> Callable[[], Any]:
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(conv2d(x, kernel, 1, ((1, 1), (1, 1)), form=form)).sum()

    def step(at: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda a, g: a - 1e-6 * g, at, jax.grad(loss, (0, 1))(*at)), None

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array) -> Any:
        return lax.scan(step, (x, kernel), length=_STEPS)[0] if in_loop else step((x, kernel), None)[0]

    x = jax.random.normal(jax.random.key(0), (case.batch, case.side, case.side, case.channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, case.channels, case.channels))
    return lambda: jax.block_until_ready(run(x, kernel))


def measure(case: Case) -> dict[str, float]:
    """Milliseconds of a step: 'outside' a loop and 'inside' one with XLA's gradients, and 'ours' inside one."""
    return {
        "outside": 1e3 * median_seconds(_run(case, "xla", False)),
        "inside": 1e3 * median_seconds(_run(case, "xla", True)) / _STEPS,
        "ours": 1e3 * median_seconds(_run(case, "cpu", True)) / _STEPS,
    }


def table(record: dict[str, Any]) -> str:
    """Formats the record in Markdown."""
    head = ("batch", "side", "channels", "XLA, no loop, ms", "XLA in a loop, ms", "ratio", "ours in a loop, ms")
    rows = [
        [
            *(str(size) for size in row["case"]),
            f"{row['outside']:.1f}",
            f"{row['inside']:,.0f}",
            f"{row['inside'] / row['outside']:.0f}",
            f"{row['ours']:.1f}",
        ]
        for row in record["cases"]
    ]
    return markdown.table(head, rows)


def main() -> None:
    """Parses the arguments and runs the measurement."""
    rows = [{"case": list(case), **measure(case)} for case in CASES]
    record = {"versions": {name: version(name) for name in ("jax", "jaxlib")}, "cases": rows}
    write_json(RECORD, record)
    print(f"jaxlib {version('jaxlib')}\n\n{table(record)}")


if __name__ == "__main__":
    main()
