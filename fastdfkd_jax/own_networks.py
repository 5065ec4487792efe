r"""`fastdfkd distill`: trains a student from your own teacher in one command.

    fastdfkd distill net.py:teacher --weights teacher.pth --student net.py:student --image-size 32 \
        --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010

It records both networks, compares the teacher with PyTorch, prints the cost of the run, runs it, and prints how to load
the student. Stop it at any time; the same command continues.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastdfkd_jax.cli import config_flags
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import JSON, PROGRAM, OneLineParser, expanded, numbers, require_unit_scale
from fastdfkd_jax.convert import graph, record
from fastdfkd_jax.convert.verify import verify
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError, listed
from fastdfkd_jax.options import read
from fastdfkd_jax.storage.digest import digest, file_digest
from fastdfkd_jax.storage.files import make_folder, write_json
from fastdfkd_jax.training import dry_run, one_run, phases, summary_text
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.run_options import RunOptions

Given = Any  # a torch.nn.Module, or a path or a name

log = logging.getLogger("fastdfkd_jax.distill")

# name: variant of configs/own.py
PROTOCOLS = {"smoke": "fast2-smoke", "short": "fast5-short", "full": "fast5"}
_IDENTITY = "identity.json"  # written after both networks are recorded
_NEEDS_TORCH = "recording a PyTorch module needs torch, which is not installed: pip install torch"


class Distilled(NamedTuple):
    """The result of a run.

    Attributes:
      student: path of the student's weights, for `load_state_dict` of your own module.
      summary: contents of summary.json; {} if the run was stopped and saved.
    """

    student: Path
    summary: dict[str, Any]


class Images(NamedTuple):
    """The format of the images that both networks take.

    Attributes:
      size: side in pixels; None to read it from the module, else 32.
      channels: None to read them from the module's first convolution.
      mean, std: per channel, of images in [0, 1]; None if the teacher's file has them.
    """

    size: int | None = None
    channels: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def distill(
    teacher: Given,
    student: Given,
    workdir: str | os.PathLike[str] = "runs/distill",
    *,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    protocol: str = "short",
    data: str = "",
    probe: str = "",
    changes: Sequence[str] = (),
    plan: bool = False,
) -> Distilled:
    """Trains a student from a teacher without its training data, by FastDFKD.

    Call it again with the same arguments to continue a run that was stopped; it returns at once if the run has ended.

    Args:
      teacher: a torch module with its weights, 'FILE.py:FACTORY', a checkpoint of a network in docs/models.md, or the
        folder of a recorded graph.
      student: a torch module, 'FILE.py:FACTORY', the name of a network in docs/models.md, or the folder of a recorded
        graph.
      workdir: folder for all files.
      weights: PyTorch checkpoint for a teacher 'FILE.py:FACTORY'.
      image_size, channels, mean, std: as in `Images`.
      protocol: 'smoke' (seconds, learns nothing), 'short' (up to an hour on two cores) or 'full' (for GPUs).
      data: labelled images to evaluate on, as `folder:DIR` or `tfds:cifar10`; '' for none.
      probe: folder of pictures without labels, on which student and teacher are compared after the run; '' for none.
      changes: other values of the config, 'KEY=VALUE'.
      plan: whether to print networks, memory and time before the run.

    Raises:
      UserError: a network cannot be recorded or differs from PyTorch, or the arguments do not fit together.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    parallel.split_cpu(0)
    folder, images = expanded(workdir), Images(image_size, channels, mean, std)
    words = _networks(folder / "networks", teacher, student, weights, images)
    words += _shifts(images.size, folder / "networks" / "teacher")
    if data:
        words.append(f"data.source={data}")
    if probe:
        words.append(f"data.probe={probe}")
    line = [f"own:{PROTOCOLS[protocol]}", *words, *changes, "--workdir", str(folder)]
    log.info("running: %s run %s", PROGRAM, " ".join(line))
    config, _ = config_flags.parse([PROGRAM, *line], "run", "")
    validate(config)
    one_run.set_up_jax(config)
    phases.enter("reading networks and data")
    built = one_run.build(config)
    if plan and not (folder / "checkpoints").exists():
        print(dry_run.describe(read(RunOptions, config), built.parts, built.programs), flush=True)
    summary = one_run.complete(config, folder, built)
    weights_file = folder / "student.pth"
    return Distilled(weights_file if weights_file.exists() else folder / "student.safetensors", summary)


def _shifts(size: int | None, teacher: Path) -> list[str]:
    """Returns config values that make random shifts the same part of the images as the recipe's 4 of 32 pixels.

    Without a size, that of a recorded teacher counts.
    """
    side = size or (graph.read_description(teacher)["image_size"] if teacher.is_dir() else 32)
    return [f"{section}.crop_padding={max(1, round(side / 8))}" for section in ("inversion", "kd") if side != 32]


def _is_factory(given: Given) -> bool:
    return isinstance(given, str) and ".py:" in given


def _is_module(given: Given) -> bool:
    return not isinstance(given, str | os.PathLike)


def _identity(given: Given, weights: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Returns the data that distinguish a network from others, as JSON types."""
    if _is_module(given):
        state = {name: tensor.detach().cpu().numpy() for name, tensor in given.state_dict().items()}  # pyright: ignore
        return {"module": type(given).__name__, "weights": digest(state)}
    files = [str(given).rpartition(":")[0]] if _is_factory(given) else []
    files += [] if weights is None else [str(weights)]
    paths = [expanded(file) for file in files]
    if missing := next((path for path in paths if not path.is_file()), None):
        raise UserError(f"{missing} does not exist: check the path")
    return {"network": str(given), "files": [file_digest(path) for path in paths]}


def _networks(
    folder: Path, teacher: Given, student: Given, weights: str | os.PathLike[str] | None, images: Images
) -> list[str]:
    """Returns the config values for both networks; records those of PyTorch into the folder."""
    identity = json.loads(json.dumps([_identity(teacher, weights), _identity(student, None), list(images)]))
    recorded = _were_recorded(folder, identity)
    words = _words("teacher", teacher, folder / "teacher", weights, images, recorded)
    words += _words("student", student, folder / "student", None, images, recorded)
    if not recorded:
        make_folder(folder)
        write_json(folder / _IDENTITY, identity)
    return words


def _were_recorded(networks: Path, identity: Any) -> bool:
    """Returns whether an earlier call has recorded these networks.

    They are recorded only once, because recording a student again would draw other weights.

    Raises:
      UserError: an earlier call has recorded others.
    """
    place = networks / _IDENTITY
    if not place.exists():
        return False
    if json.loads(place.read_text(encoding="utf-8")) != identity:
        raise UserError(f"{networks.parent} was begun with other networks or images: give a new workdir")
    return True


def _words(
    role: str, given: Given, folder: Path, weights: str | os.PathLike[str] | None, images: Images, recorded: bool
) -> list[str]:
    """Returns the config values for a network; records it into the folder if it is a PyTorch module."""
    if not _is_module(given) and not _is_factory(given):
        name = str(given)
        if role == "student":
            return [f"student.graph={name}" if expanded(name).is_dir() else f"student.arch={name}"]
        known = {"image_size": images.size, "mean": images.mean, "std": images.std}
        return [f"teacher.checkpoint={name}"] + [f"teacher.{key}={value}" for key, value in known.items() if value]
    if not recorded:
        log.info("recording the %s", role)
        phases.enter(f"recording the {role}")
        _record(role, given, folder, weights, images)
    return [f"{role}.graph={folder}"]


def _record(role: str, given: Any, folder: Path, weights: str | os.PathLike[str] | None, images: Images) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UserError(_NEEDS_TORCH)
    normalisation = {}
    if role == "teacher":
        if images.mean is None or images.std is None:
            raise UserError(
                "mean and std of the teacher's images in [0, 1] are needed: give both, with one number for each channel"
            )
        require_unit_scale(images.mean, images.std)
        normalisation = {"mean": list(images.mean), "std": list(images.std)}
    try:
        module = given if _is_module(given) else record.load_factory(given)
        if weights is not None:
            record.load_weights(record.unwrap(module), record.read_checkpoint(str(expanded(weights))))
        record.record_graph(module, folder, images.channels, images.size, normalisation, initial=role == "student")
    except record.RecordError as error:
        raise UserError(f"{role}: {error}") from error
    if role == "teacher":
        phases.enter("comparing the teacher with PyTorch")
        report = verify(folder)
        if failed := [check.name for check in report.checks if not check.passed]:
            raise UserError(f"teacher: our network differs from PyTorch's in {listed(failed)}: please report it")
        log.info("the teacher equals PyTorch's: %d checks passed", len(report.checks))


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog=f"{PROGRAM} distill", description="Trains a student from a teacher of your own, without its data."
    )
    parser.add_argument("teacher", help="FILE.py:FACTORY, a checkpoint, or a recorded graph's folder")
    parser.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help=f"values of the config: {PROGRAM} run own --help"
    )
    parser.add_argument("--weights", help="PyTorch checkpoint of the teacher")
    parser.add_argument("--student", required=True, help="FILE.py:FACTORY, a network's name, or a graph's folder")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: read from the module, else 32)")
    parser.add_argument("--channels", type=int, help="channels of the images (default: those of the first convolution)")
    parser.add_argument("--mean", type=numbers, help="mean per channel of images in [0, 1]: 0.4914,0.4822,0.4465")
    parser.add_argument("--std", type=numbers, help="standard deviation per channel of images in [0, 1]")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="short",
        help="smoke (seconds, to try it), short (a quarter of an hour to an hour on two CPU cores) or full (as "
        "published, for GPUs) (default: %(default)s)",
    )
    parser.add_argument("--data", default="", help="labelled images to evaluate on: folder:DIR or tfds:NAME")
    parser.add_argument("--probe", default="", metavar="DIR", help="unlabelled pictures to compare both networks on")
    parser.add_argument("--workdir", default="runs/distill", help="folder for all files (default: %(default)s)")
    parser.add_argument(
        JSON, action="store_true", help="print the summary as JSON; this is the default without a terminal"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, distils, and prints how to load the student."""
    options = vars(_parser().parse_intermixed_args(argv[1:]))
    options.pop("verbose")
    as_json = options.pop("json")
    if wrong := next((word for word in options["changes"] if "=" not in word), None):
        raise UserError(f"expected KEY=VALUE, found {wrong!r}")
    student = options["student"]
    with phases.reported():
        path, summary = distill(**options, plan=True)
    if summary:
        print(summary_text.printed(summary, path.parent, as_json))
        print(f"student: {path}", *_loading(student, path), sep="\n")


def _loading(student: str, path: Path) -> list[str]:
    """Returns the lines of code that load the student into the user's module."""
    if not _is_factory(student) or path.suffix != ".pth":
        return []
    file, _, name = student.rpartition(":")
    return [
        f"load it: from {Path(file).stem} import {name}; import torch; network = {name}()",
        f'         network.load_state_dict(torch.load("{path}", weights_only=True)); network.eval()',
    ]


if __name__ == "__main__":
    run_command(main)
