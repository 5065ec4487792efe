"""One run: parts built from a config, compiled programs, the host loop, checkpoints and records."""
