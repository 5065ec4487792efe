"""Writes a TensorBoard file of scalars, pictures and the run's configuration."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.compat.proto.types_pb2 import DT_STRING  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text import metadata as text
from tensorboard.summary.writer.record_writer import masked_crc32c

from fastdfkd_jax.storage.files import AppendFile
from fastdfkd_jax.storage.markdown import table

_LARGEST = 1024  # pixels, the longer side of a picture; `images/` has the whole one


class Events:
    """A TensorBoard file that is written immediately.

    TensorBoard's own writer has a thread, whose failure on a full disk hides the error that ends the run.
    """

    def __init__(self, directory: Path, first_step: int):
        self._file = AppendFile(directory / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        self._append(file_version="brain.Event:2")
        if first_step > 1:
            # Hides events that the interrupted run wrote after its last checkpoint.
            self._append(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records numbers at a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._append(step=step, summary=Summary(value=values))

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Records a PNG at a step, reduced if it is large."""
        with Image.open(path) as opened:
            channels = len(opened.getbands())
            opened.thumbnail((_LARGEST, _LARGEST))  # smaller ones stay as they are
            width, height, file = *opened.size, io.BytesIO()
            opened.save(file, format="PNG")
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())
        self._append(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def settings(self, config: Mapping[str, Any]) -> None:
        """Records flat names and values as hyper-parameters and as a table in the text tab."""
        plain = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
        lists = {name: json.dumps(value) for name, value in config.items() if name not in plain}
        started = hparams.hparams_pb(plain | lists, trial_id="run")
        rows = ((f"`{name}`", f"`{value}`") for name, value in (plain | lists).items())
        tensor = TensorProto(dtype=DT_STRING, string_val=[table(("key", "value"), rows).encode()])
        about = text.create_summary_metadata(display_name="", description="")
        value = Summary.Value(tag="config", tensor=tensor, metadata=about)
        self._append(summary=Summary(value=[*started.value, value]))

    def _append(self, **fields: Any) -> None:
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, _checksum(length), data, _checksum(data))
        self._file.append(b"".join(parts))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
