"""Networks of other code bases, from graphs that `torch.export` records: `read(folder)`, then `build`."""

from fastdfkd_jax.convert.graph.read_graph import ARCH, Recorded, build, read, read_description

__all__ = ["ARCH", "Recorded", "build", "read", "read_description"]
