"""A trace of one call, for TensorBoard and Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax


class Trace:
    """Records what the host and the devices do during one call.

    Args:
      folder: where TensorBoard looks; the trace goes into a folder of its own within it.
      call: the call to trace, counted from 1; None for no call at all.
    """

    def __init__(self, folder: Path, call: int | None):
        self._folder, self._call, self._recording = folder, call, False

    def begin(self, call: int) -> None:
        """Starts recording if this is the call."""
        if call == self._call and not self._recording:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._recording = True

    def end(self, call: int) -> str:
        """Writes what was recorded; a line that says where it is, or '' where nothing was."""
        if not self._recording:
            return ""
        self._recording = False
        jax.profiler.stop_trace()
        return (
            f"traced call {call} into {self._folder}: for TensorBoard's profile plugin, or "
            "perfetto_trace.json.gz within it for ui.perfetto.dev"
        )
