"""The images of a run as other programs read them; `python -m fastdfkd_jax.export --help`."""
