"""Networks of other code bases, from the graphs that `torch.export` makes of them: `load(folder, ...)`."""

from fastdfkd_jax.graph.reading import load

__all__ = ["load"]
