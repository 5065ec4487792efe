"""Exports a run's images in formats that other programs read; see `fastdfkd images --help`."""
