"""Comparisons, for `python -m fastdfkd_jax.compare`; `parts.py` says what they are made of."""
