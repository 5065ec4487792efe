"""Checkpoints of a run, which let a resumed run end with bit-identical results."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.models.forms import OLD_NAMES
from fastdfkd_jax.options import defaults, renamed
from fastdfkd_jax.storage.digest import digest
from fastdfkd_jax.storage.files import disk_error, make_folder
from fastdfkd_jax.training.quiet_orbax import quiet_tasks

Tree = Any
FORMAT = 2
Fault = Callable[[dict[str, Any], dict[str, Any]], str]  # (progress, evidence) -> fault, for `Checkpoints.restore`

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint that was read and found undamaged.

    Attributes:
      state: the tree, on the device.
      progress: the JSON that was saved with it.
    """

    state: Tree
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir, numbered by the KD and synthesis steps done.

    A save is complete or absent: Orbax writes to a temporary folder and renames it. Each checkpoint holds digests of
    its arrays and of all its other contents, so that later damage is detected too.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        layout: dict[str, int] | None = None,
        identity: dict[str, Any] | None = None,
        restart: str = "start again with restart=true",
    ):
        """Opens the folder, which all processes of a run share.

        Args:
          directory: folder of the checkpoints; made if it is missing.
          keep: number of checkpoints to keep.
          layout: numbers of devices and processes; a change, like another machine, changes results by rounding.
          identity: the run's identity, as `require_same_run` compares it.
          restart: remedy that errors suggest if no checkpoint can be used.
        """
        self.directory = directory.absolute()
        self._layout, self._identity, self._restart = layout or {}, identity or {}, restart
        make_folder(self.directory)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
            item_names=("state", "meta"),
        )

    @property
    def latest(self) -> int | None:
        """Number of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, number: int, state: Tree, progress: dict[str, Any], evidence: dict[str, Any] | None = None) -> None:
        """Saves a tree under a number (once), and deletes the oldest checkpoints beyond those to keep.

        Args:
          number: steps done; an existing number is not saved again.
          state: the tree.
          progress: JSON that belongs to it.
          evidence: JSON to check that the run's other files are still those of this point.
        """
        if number in self._manager.all_steps():
            return
        meta = {
            "format": FORMAT,
            "digest": digest(state),
            "fingerprint": fingerprint(),
            "layout": self._layout,
            "progress": progress,
            "identity": self._identity,
            "evidence": evidence or {},
        }
        meta["seal"] = _seal(meta)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with quiet_tasks():
            failure = self._try_to_save(number, args)
            if failure is not None:
                gc.collect()  # now, since failed tasks print a complaint when they are collected
        if failure is not None:
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            raise failure

    def _try_to_save(self, number: int, args: ocp.args.Composite) -> UserError | None:
        try:
            self._manager.save(number, args=args, force=True)
        except (OSError, ValueError) as error:  # TensorStore reports a full disk as ValueError
            code = _os_error_code(error)
            if code is None:
                raise
            return disk_error(self.directory, OSError(code, os.strerror(code)))
        return None

    def restore(self, like: Tree, fault: Fault | None = None) -> Restored | None:
        """Restores the newest usable checkpoint; returns None if there are no checkpoints.

        Args:
          like: a tree of the expected structure, shapes and dtypes.
          fault: `fault(progress, evidence)` describes a mismatch in the run's other files; '' if there is none.

        Raises:
          UserError: no checkpoint can be used, or one is of another run or another version of this program.
        """
        steps, reasons = sorted(self._manager.all_steps(), reverse=True), []
        for step in steps:
            try:
                with quiet_tasks():
                    restored = self._read(step, like, fault)
            except _UnusableError as error:
                reasons.append(str(error))
                older = "; trying the one before it" if step != steps[-1] else ""
                log.warning("checkpoint %d cannot be used (%s)%s", step, error, older)
            else:
                self._forget_after(step, steps)
                return restored
        if steps:
            newest = shortened(reasons[0], 80)
            raise UserError(f"no checkpoint in {self.directory} can be used ({newest}): restore it, or {self._restart}")
        return None

    def _read(self, step: int, like: Tree, fault: Fault | None) -> Restored:
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:  # Orbax may raise anything on a damaged file
            raise _UnusableError(shortened(error, 200) or type(error).__name__) from error
        if not isinstance(meta, dict):
            raise _UnusableError("its description is not a JSON object")
        if meta.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {step} in {self.directory} has format {meta.get('format')}, this version reads "
                f"{FORMAT}: use the version that wrote it, or start in a new workdir"
            )
        if meta.pop("seal", None) != _seal(meta):
            raise _UnusableError("its description was changed")
        require_same_run(meta["identity"], self._identity, f"checkpoint {step} in {self.directory}")
        if fault is not None and (found := fault(meta["progress"], meta["evidence"])):
            raise _UnusableError(found)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise _UnusableError(shortened(error, 200) or type(error).__name__) from error
        if digest(state) != meta["digest"]:
            raise _UnusableError("its arrays do not match their digest")
        here, there = fingerprint() | self._layout, meta["fingerprint"] | meta.get("layout", self._layout)
        changed = [name for name, value in here.items() if there.get(name) != value]
        if changed:
            log.warning(
                "resuming with another machine or software (%s differ): results will agree to rounding only",
                ", ".join(changed),
            )
        return Restored(state, meta["progress"])

    def _forget_after(self, step: int, steps: list[int]) -> None:
        # Damaged checkpoints would block later saves with the same numbers.
        for later in steps:
            if later > step:
                self._manager.delete(later)

    def close(self) -> None:
        """Waits for pending writes."""
        self._manager.close()


class _UnusableError(Exception):
    """The reason why a checkpoint cannot be used, in one line."""


def _seal(meta: dict[str, Any]) -> str:
    """Returns the SHA-256 of a checkpoint's description."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _os_error_code(error: OSError | ValueError) -> int | None:
    """Returns the errno of a failed write, or None for other errors."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return int(match[1]) if match else None


def fingerprint() -> dict[str, Any]:
    """Returns the properties that decide whether runs are bit-identical: processor, devices, software, flags."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line for line in info.read_text().splitlines() if line.startswith("model name")), model)
    return {
        "processor": model.split(":")[-1].strip(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "jaxlib": importlib.metadata.version("jaxlib"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def require_same_run(recorded: dict[str, Any], identity: dict[str, Any], where: str, free: Sequence[str] = ()) -> None:
    """Refuses files of another configuration.

    An option that was added since has its default there. `calls` may have grown, since a run can be extended. It may
    not grow if replay is not uniform, because a checkpoint then has room only for the images of the calls it was made
    for.

    Args:
      recorded: the identity found there: flat names and values; the names may be old ones (`options.RENAMED`).
      identity: that of this run, whose values must be equal.
      where: name of the place, for the message.
      free: names that an older version recorded and that need not be equal.

    Raises:
      UserError: some values differ; the message names every differing key.
    """
    recorded = in_present_names(recorded)
    wanted = json.loads(json.dumps(identity))  # turns tuples into lists, as in the record
    added = {key: value for key, value in defaults().items() if key in wanted and key not in recorded}
    recorded |= json.loads(json.dumps(added))
    names = (recorded.keys() | wanted.keys()) - set(free)
    differing = sorted(
        key for key in names if recorded.get(key) != wanted.get(key) and not _grew(key, recorded, wanted)
    )
    if differing:
        changes = ", ".join(f"{key}: {recorded.get(key)!r} there, {wanted.get(key)!r} now" for key in differing)
        raise UserError(f"{where} is of another configuration ({changes}): use a new workdir")


def in_present_names(recorded: dict[str, Any]) -> dict[str, Any]:
    """Returns a recorded identity with today's names of keys and values that were renamed."""
    recorded, key = renamed(recorded), "conv_gradient"
    return {**recorded, key: OLD_NAMES.get(str(recorded[key]), recorded[key])} if key in recorded else recorded


def _grew(key: str, recorded: dict[str, Any], wanted: dict[str, Any]) -> bool:
    uniform = not (recorded.get("replay.class_exponent") or recorded.get("replay.difficulty_exponent"))
    return key == "calls" and uniform and isinstance(recorded.get(key), int) and recorded[key] < wanted.get(key, 0)
