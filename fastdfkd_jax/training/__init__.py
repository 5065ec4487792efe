"""One run: parts built of a config, compiled programs, the host loop, checkpoints and records."""
