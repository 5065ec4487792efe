"""`python -m fastdfkd_jax.compare.child`: one run, or its measurement, as a process.

The request comes from standard input. The answer is the last line of standard output, in JSON; a stopped run gives
none.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    request = pickle.load(sys.stdin.buffer)
    _end_with(request["parent"])
    if request["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, request["cores"])
    # The last line of a crash's log is the reason; JAX would add a line on how it shortens tracebacks.
    os.environ.setdefault("JAX_TRACEBACK_FILTERING", "quiet_remove_frames")
    # Imported only now, because libraries count the cores when they are imported.
    from ml_collections import ConfigDict

    from fastdfkd_jax.cli import config_flags
    from fastdfkd_jax.compare.estimates import PARTS
    from fastdfkd_jax.options import read
    from fastdfkd_jax.training import build, compiled_programs, dry_run
    from fastdfkd_jax.training.one_run import run, set_up_jax
    from fastdfkd_jax.training.run_options import RunOptions

    if request["config_file"] is not None:
        config_flags.execute(request["config_file"])
    config = ConfigDict(request["config"]).lock()
    if config.compilation_cache == compiled_programs.AUTO:
        config.compilation_cache = ""  # seconds of runs are compared: the second must not find what the first compiled
    set_up_jax(config)
    if request["action"] == "measure":
        costs = dry_run.measure(read(RunOptions, config), build.assemble(config))
        answer = dict.fromkeys(PARTS, 0.0) | {cost.kind: cost.total_seconds for cost in costs}
        answer["compile_seconds"] = sum(cost.compile_seconds for cost in costs)
    else:
        answer = run(config, Path(request["workdir"]))
    if answer:
        print(json.dumps(answer))


def _end_with(parent: int) -> None:
    """Makes the process save its work and end when its parent is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    from fastdfkd_jax.cli.command import run_command

    run_command(main)
