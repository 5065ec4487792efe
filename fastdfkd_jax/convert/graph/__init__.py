"""Networks of other code bases, from the graphs that `torch.export` makes of them: `read(folder)`, then `build`."""

from fastdfkd_jax.convert.graph.read_graph import ARCH, Recorded, build, read

__all__ = ["ARCH", "Recorded", "build", "read"]
