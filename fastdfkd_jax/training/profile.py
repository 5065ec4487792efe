"""Traces one call, for TensorBoard and Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax


class Trace:
    """A trace of the host's and the devices' work during one call.

    Args:
      folder: folder that TensorBoard reads; the trace goes into a subfolder.
      call: the call to trace, counted from 1; None for no call.
    """

    def __init__(self, folder: Path, call: int | None):
        self._folder, self._call, self._recording = folder, call, False

    def begin(self, call: int) -> None:
        """Starts recording if this is the call."""
        if call == self._call and not self._recording:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._recording = True

    def end(self, call: int) -> str:
        """Writes the trace; returns a line that says where it is, or '' if nothing was recorded."""
        if not self._recording:
            return ""
        self._recording = False
        jax.profiler.stop_trace()
        return (
            f"traced call {call} into {self._folder}: for TensorBoard's profile plugin, or "
            "perfetto_trace.json.gz within it for ui.perfetto.dev"
        )
