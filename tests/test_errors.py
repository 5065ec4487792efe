"""Bad input to the main command: one line on stderr, exit status 2, nothing lost or half-written."""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malicious import Runs
from PIL import Image
from runs import ROOT
from safetensors.numpy import load_file, save_file

from fastdfkd_jax import data
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.main import main
from fastdfkd_jax.pool.shards import Shards
from fastdfkd_jax.training import run_records
from fastdfkd_jax.training.checkpoint import Checkpoints
from fastdfkd_jax.training.metric_files import Metrics

# Noise needs no compilation of synthesis; the run ends after one call, without KD.
TINY = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from runs import tiny_config


def get_config():
    return tiny_config(method__name="noise", mode="synthesize", calls=2, **{{"data.source": ""}})
"""
CIFAR10 = ROOT / "configs" / "cifar10.py"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder, with the files' bytes."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def isolated(monkeypatch) -> Iterator[None]:
    """Takes back what the command changes in its process: the import path, and where the package logs to."""
    logger = logging.getLogger("fastdfkd_jax")
    before = logger.handlers[:], logger.level, logger.propagate
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, isolated) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process; gives its exit status and what it wrote to stderr."""
    tiny = tmp_path / "settings" / "tiny.py"
    tiny.parent.mkdir()
    tiny.write_text(TINY)

    def run(*arguments: object, config: object = tiny, workdir: object = tmp_path / "run") -> tuple[int, str]:
        argv = ["main", f"--config={config}", f"--workdir={workdir}", *map(str, arguments)]
        # config_flags looks for overrides in the real command line, and loads by what Python 3.12 deprecates.
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        sys.modules.pop("config_config", None)  # its name for every config file, which it would load anew into this
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            with pytest.raises(SystemExit) as caught:
                run_command(main)
        return int(caught.value.code or 0), capsys.readouterr().err

    return run


@pytest.fixture
def refused(run, tmp_path) -> Callable[..., list[str]]:
    """Runs what must be refused in one line that matches, with nothing changed on disk; gives the lines before."""

    def refused(expected: str, *arguments: object, **places: object) -> list[str]:
        before = contents(tmp_path)
        status, output = run(*arguments, **places)
        *logged, line = output.splitlines()
        assert line.startswith("error: "), output
        assert re.search(expected, line), line
        assert status == 2
        assert contents(tmp_path) == before
        return logged

    return refused


# --- The command line and the config's values

ARGUMENTS = {
    "unknown key": ("--config.call=3", "call.*calls"),
    "unknown key in a group": ("--config.kd.learning_rate=1", "learning_rate"),
    "wrong type": ("--config.calls=many", "calls.*many"),
    "a float for an integer": ("--config.calls=2.5", "2.5"),
    "unknown flag": ("--confg=x.py", "Unknown command line flag 'confg'"),
    "stray argument": ("stray", "expected KEY=VALUE or --workdir DIR, found 'stray'"),
    "no calls": ("--config.calls=0", "config.calls must be at least 1, found 0"),
    "all calls warm up": ("--config.warmup_calls=2", "warmup_calls must be less than calls=2, found 2"),
    "more synthesis than calls": ("--config.synthesis_calls=3", "synthesis_calls must be at most calls=2, found 3"),
    "a crop of more than all": ("--config.kd.least_crop=1.5", r"kd.least_crop must be in \[0, 1\], found 1.5"),
    "more mixing than always": ("--config.kd.cutmix=2.", r"kd.cutmix must be in \[0, 1\], found 2"),
    "a Beta of 0": ("--config.kd.cutmix_alpha=0.", "kd.cutmix_alpha must be more than 0, found 0"),
    "negative seed": ("--config.seed=-1", "config.seed must be at least 0"),
    "unknown meta rule": ("--config.fastdfkd.meta_rule=imaml", "one of reptile, .*maml, found 'imaml'"),
    "unknown method": ("--config.method.name=gan", "one of fastdfkd, .*generative_dfd.*, found 'gan'"),
    "unknown mode": ("--config.mode=both", "one of all, synthesize, distill, found 'both'"),
    "unknown precision": ("--config.precision=float16", "one of float32, bfloat16, float64, found 'float16'"),
    "unknown inner optimizer": ("--config.inner.optimizer=adan", "one of adam, sgd, found 'adan'"),
    "unknown student": (
        "--config.student.arch=wrn11_1",
        "student.arch must be a network of docs/models.md, such as wrn16_1, .*found 'wrn11_1'",
    ),
    "learning rate of 0": ("--config.kd.lr=0.", "kd.lr must be more than 0, found 0"),
    "a weight without end": (
        "--config.inversion.feature_weight=inf",
        "inversion.feature_weight must be finite, found inf",
    ),
    "a decay without end": ("--config.kd.lr_decay=inf", "kd.lr_decay must be finite, found inf"),
    "learning rate that is no number": ("--config.kd.lr=nan", "kd.lr must be more than 0, found nan"),
    "momentum of 1": ("--config.inversion.accumulator_weight=1.", r"in \[0, 1\), found 1"),
    "uneven batches": ("--config.parallel.batch_devices=3", "multiple of parallel.batch_devices=3, found 8"),
    "no address": (
        "--config.parallel.hosts=host",
        "must be 'one', 'cluster' or HOST:PORT, found 'host'",
    ),
    "no count of processes": ("--config.parallel.hosts=h:1", "processes must be at least 1 where hosts is HOST:PORT"),
    "processes of nothing": ("--config.parallel.processes=2", "processes must be 0 where hosts='one', found 2"),
    "no time to live": ("--config.parallel.lost_after=1.", "lost_after must be at least 5 s, found 1"),
    "no cluster": (
        "--config.parallel.hosts=cluster",
        "'cluster' cannot be joined .*expected SLURM, Kubern",
    ),
    "lanes that do not divide": ("--config.fastdfkd.num_tasks=0", "num_tasks must be at least 1, found 0"),
    "no pool to distil from": ("--config.mode=distill", "pool.initial must be a folder of images"),
    "unknown data source": ("--config.data.source=mnist", "unknown data source 'mnist': expected one of tfds"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_mistakes_of_the_command_line(refused, case):
    argument, expected = ARGUMENTS[case]
    assert not refused(expected, argument)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adaam", "meta.optimizer='adaam' is not an optimizer of optax"),
        ("__name__", "is not an optimizer of optax"),
        ("sgd", "meta.kwargs do not fit optax.sgd: .*'b1'"),
        ("losses", "is not an optimizer of optax"),
        ("apply_updates", "meta.kwargs do not fit|is not an optimizer"),
    ],
)
def test_outer_optimizers_that_are_none(refused, optimizer, expected):
    assert not refused(expected, "--config.method.name=fastdfkd", f"--config.meta.optimizer={optimizer}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config.parallel.task_devices=64", "--config.fastdfkd.num_tasks=64"),
        ("--config.parallel.batch_devices=64", "--config.kd.batch=64", "--config.synthesis_batch=64"),
    ],
)
def test_more_devices_than_there_are(refused, arguments):
    expected = r"64 devices asked for, found \d \(cpu\): lower config.parallel"
    assert not refused(expected, "--config.method.name=fastdfkd", *arguments)


def test_variants_that_do_not_exist(refused):
    for variant in ("wrn40_2-vgg11-fast5", "wrn40_2-wrn16_1-fast3", "wrn40_2-wrn16_1-fast5-quick", "alexnet", "-"):
        assert not refused("unknown variant .* expected teacher-student-fastK", config=f"{CIFAR10}:{variant}")


CONFIG_FILES = {
    "syntax error": ("def get_config(:\n", r"bad\.py, line 1: invalid syntax"),
    "bad indentation": ("def get_config():\nreturn 1\n", r"bad\.py, line 2: expected an indented block"),
    "no function": ("x = 1\n", "get_config"),
    "returns nothing": ("def get_config():\n    pass\n", "returned NoneType: expected a ConfigDict"),
    "returns a dict": ("def get_config():\n    return {'calls': 3}\n", "get_config"),
    "raises": ("def get_config():\n    return {}['absent']\n", "absent"),
    "imports what is not there": ("import absent_module\n", "absent_module"),
    "another program's config": (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'calls': 3})\n",
        r"config\.seed is missing: expected a config made from configs/default\.py",
    ),
    "binary": ("\0\0", "bad.py|null bytes"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_config_files_that_are_none(refused, tmp_path, case):
    content, expected = CONFIG_FILES[case]
    (tmp_path / "settings" / "bad.py").write_text(content)
    assert not refused(expected, config=tmp_path / "settings" / "bad.py")


def test_config_files_that_are_not_there(refused, tmp_path):
    assert not refused("config file .*absent.py does not exist", config=tmp_path / "absent.py")
    assert not refused("config file .* does not exist", config=tmp_path)
    expected = "config file .*pretrain_digits|arch|missing"
    assert not refused(expected, config=ROOT / "configs" / "pretrain_digits.py")


# --- Networks


def changed_teacher(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Writes the digits' teacher with its arrays changed, under the same metadata."""
    from safetensors import safe_open

    with safe_open(data.digits.TEACHER_PATH, framework="numpy") as file:
        metadata = file.metadata()
    arrays = {name: array.copy() for name, array in load_file(data.digits.TEACHER_PATH).items()}
    change(arrays)
    save_file(arrays, path, metadata)


def set_nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["conv1.weight"].flat[0] = np.nan


def drop_batch_norm(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if "running" in name]:
        del arrays[name]


def drop_layer(arrays: dict[str, np.ndarray]) -> None:
    del arrays["fc.weight"]


TEACHERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("bad.safetensors", lambda path: None, "there is no checkpoint .*bad.safetensors: check the path"),
    "empty": ("bad.safetensors", lambda path: path.touch(), r"is empty \(0 bytes\): copy or download it again"),
    "empty of PyTorch": ("bad.pth", lambda path: path.touch(), r"is empty \(0 bytes\)"),
    "truncated": (
        "bad.safetensors",
        lambda path: path.write_bytes(data.digits.TEACHER_PATH.read_bytes()[:9000]),
        "is not a safetensors file, or is truncated",
    ),
    "text": ("bad.safetensors", lambda path: path.write_text("hello " * 9), "is not a safetensors file"),
    "a folder": ("bad.safetensors", lambda path: path.mkdir(), r"is a folder without graph\.json"),
    "NaN": ("bad.safetensors", lambda path: changed_teacher(path, set_nan), r"not finite \(1\): conv1\.weight"),
    "without BatchNorm": (
        "bad.safetensors",
        lambda path: changed_teacher(path, drop_batch_norm),
        "running_mean|BatchN",
    ),
    "without a classifier": ("bad.safetensors", lambda path: changed_teacher(path, drop_layer), "no linear layer"),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_teachers_that_cannot_be_used(refused, tmp_path, case):
    name, make, expected = TEACHERS[case]
    make(tmp_path / name)
    assert not refused(expected, f"--config.teacher.checkpoint={tmp_path / name}")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.teacher.checkpoint=", "teacher.checkpoint is not set: give the checkpoint of a trained network"),
        ("--config.teacher.arch=resnet8", "toy_teacher.* missing .*mis-shaped"),
        ("--config.teacher.arch=alexnet", "unknown architecture 'alexnet'"),
        ("--config.teacher.num_classes=100", "has 10 classes, expected 100"),
        ("--config.teacher.image_size=4", "at least 8, found 4"),
        ("--config.teacher.mean=(0.1,0.2)", "mean has 2 numbers, expected 1"),
        ("--config.teacher.mean=(123.7,)", "images in .0, 1., found 123.7 .*divide them by 255"),
        ("--config.student.checkpoint=absent.safetensors", "there is no checkpoint absent.safetensors"),
        (f"--config.student.checkpoint={data.digits.TEACHER_PATH}", "digits_teacher.*(does not fit|missing|not used)"),
    ],
)
def test_networks_that_do_not_fit(refused, argument, expected):
    assert not refused(expected, argument)


@pytest.mark.parity
def test_a_file_that_is_no_checkpoint_is_refused(refused, tmp_path):
    (tmp_path / "bad.txt").write_text("hello")
    assert not refused("is not a PyTorch checkpoint", f"--config.teacher.checkpoint={tmp_path / 'bad.txt'}")


@pytest.mark.parity
def test_a_malicious_teacher_is_not_run(refused, tmp_path):
    torch = pytest.importorskip("torch")
    bad, marker = tmp_path / "bad.pth", tmp_path / "marker"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "extra": Runs(marker)}, bad)
    assert not refused(r"refused: its pickle asks for \w+\.system", f"--config.teacher.checkpoint={bad}")
    bad.write_bytes(pickle.dumps(Runs(marker)))
    assert not refused(r"refused: its pickle asks for \w+\.system", f"--config.teacher.checkpoint={bad}")
    assert not marker.exists()


# --- Data


def write_npz(path: Path, size: int = 16, channels: int = 1, classes: int = 10) -> None:
    labels = np.arange(2 * classes, dtype=np.int64) % classes
    np.savez(path, images=np.zeros((len(labels), size, size, channels), np.uint8), labels=labels)


def damage_npz(path: Path) -> None:
    write_npz(path)
    content = bytearray(path.read_bytes())
    content[600:640] = b"x" * 40
    path.write_bytes(content)


DATA: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "directory missing": ("tfds:cifar10", lambda root: shutil.rmtree(root), "found no such folder"),
    "directory empty": ("tfds:cifar10", lambda root: None, "found nothing"),
    "another data set there": ("tfds:cifar10", lambda root: (root / "mnist").mkdir(), "found mnist"),
    "pickles missing": ("pickle:cifar10", lambda root: None, "found"),
    "file missing": ("npz:set.npz", lambda root: None, "set.npz"),
    "file empty": ("npz:set.npz", lambda root: (root / "set.npz").touch(), "set.npz"),
    "corrupt record": ("npz:set.npz", lambda root: damage_npz(root / "set.npz"), "set.npz"),
    "wrong image size": (
        "npz:set.npz",
        lambda root: write_npz(root / "set.npz", size=32, channels=3),
        "toy network expects images of 16x16x1, the data set has 32x32x3",
    ),
    "too many classes": (
        "npz:set.npz",
        lambda root: write_npz(root / "set.npz", classes=11),
        "has 10 classes, the data set 11: give the data set",
    ),
    "folder of nothing": ("folder:.", lambda root: None, "expected one folder of images for each class"),
    "unreadable picture": ("folder:.", lambda root: write_picture(root / "cat" / "1.png", b"no picture"), "1.png"),
}


def write_picture(path: Path, content: bytes = b"", size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content:
        path.write_bytes(content)
    else:
        Image.fromarray(np.zeros((size, size), np.uint8)).save(path)


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(refused, tmp_path, case):
    source, make, expected = DATA[case]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    assert not refused(expected, f"--config.data.source={source}", f"--config.data.dir={root}")


def test_splits_that_are_not_there(refused):
    for split, expected in [("val", "no split 'val'"), ("test[", "expected a split such as"), ("test[9:9]", "no exam")]:
        assert not refused(expected, "--config.data.source=digits", f"--config.data.split={split}")


def test_a_corrupt_record_of_tfds(refused, tmp_path, shared_data):
    target = tmp_path / "data" / "cifar10" / "3.0.2"
    target.mkdir(parents=True)
    for path in (shared_data / "tfds" / "cifar10" / "3.0.2").iterdir():
        if "train" not in path.name:
            shutil.copy(path, target)
    shard = target / "cifar10-test.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    content[1000:1100] = b"x" * 100
    shard.write_bytes(content)
    expected = "corrupt or missing record of tfds:cifar10"
    assert not refused(expected, "--config.data.source=tfds:cifar10", f"--config.data.dir={tmp_path / 'data'}")


# --- The pool to begin with

POOLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda folder: shutil.rmtree(folder), "pool.initial=.* is not a folder"),
    "empty": (lambda folder: None, "holds no pool shards and no .png or .jpg images"),
    "wrong size": (lambda folder: write_picture(folder / "1.png", size=8), r"are \(8, 8, 1\), .* takes \(16, 16, 1\)"),
    "unreadable": (lambda folder: write_picture(folder / "1.png", b"no picture"), "1.png cannot be read"),
    "damaged shard": (lambda folder: (folder / "000000.npz").write_bytes(b"PK"), "000000.npz is damaged"),
}


@pytest.mark.parametrize("mode", ["distill", "synthesize"])
@pytest.mark.parametrize("case", POOLS)
def test_pools_that_cannot_be_used(refused, tmp_path, case, mode):
    make, expected = POOLS[case]
    folder = tmp_path / "pool"
    folder.mkdir()
    make(folder)
    assert not refused(expected, f"--config.mode={mode}", f"--config.pool.initial={folder}")


# --- The working directory


def test_workdirs_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    expected = "cannot write .*: choose a folder that can be written"
    assert not refused(expected, workdir=tmp_path / "file")
    assert not refused(expected, workdir=tmp_path / "file" / "below")
    assert not refused(expected, workdir="/proc/fastdfkd")  # even root cannot write there


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run, to be copied: what the command leaves."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "settings").mkdir()
    (folder / "settings" / "tiny.py").write_text(TINY)
    argv = ["main", f"--config={folder / 'settings' / 'tiny.py'}", f"--workdir={folder / 'run'}"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        patch.setattr(sys, "argv", argv)
        patch.setattr(sys, "path", sys.path[:])
        main(argv)
    return folder / "run"


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of the finished run, where the command looks for it."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_workdir_of_another_config(refused, workdir):
    changes = ["--config.seed=7", "--config.kd.lr=0.5", "--config.student.arch=wrn16_1"]
    expected = (
        r"is of another configuration \(kd.lr: 0.05 there, 0.5 now, seed: 0 there, 7 now, "
        r"student.arch: 'toy' there, 'wrn16_1' now\): use a new workdir"
    )
    assert not refused(expected, *changes)
    (workdir / "config.json").write_text("{}")
    assert not refused("config.json is not the record of a run")


def test_a_workdir_in_use(refused, workdir):
    import fcntl

    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not refused("is in use by another run: wait for it, or use another folder")


def test_a_checkpoint_of_another_version(refused, workdir):
    for metadata in workdir.glob("checkpoints/*/meta/metadata"):
        content = json.loads(metadata.read_text())
        assert content["format"] == 2
        metadata.write_text(json.dumps(content | {"format": 99}))
    assert not refused("has format 99, this version reads 2: use the version that wrote it")


@pytest.mark.parametrize("kind", ["arrays", "meta"])
def test_checkpoints_that_are_all_damaged(refused, workdir, kind):
    pattern = "checkpoints/*/state/**/d/*" if kind == "arrays" else "checkpoints/*/meta/metadata"
    damaged = list(workdir.glob(pattern))
    assert len(damaged) >= 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    logged = refused(r"no checkpoint in .* can be used \(.*restore it, or start again with restart=true")
    assert len(logged) == 2
    assert all(re.search(r"checkpoint \d+ cannot be used \(.*\)", line) for line in logged)
    assert ["trying the one before it" in line for line in logged] == [True, False]


def test_a_shard_that_a_resumed_run_misses(refused, workdir):
    (workdir / "pool" / "000000.npz").unlink()
    refused(r"no checkpoint in .* can be used \(shard 0 of the pool is missing or damaged\): restore it, or start")


# --- A full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_tensorstore(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']")


def expect_no_space(call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"no space left for .*: free some and run the same command to continue"):
        call()


@pytest.mark.parametrize("target", ["os.fsync", "numpy.savez"])
def test_a_shard_on_a_full_disk(tmp_path, monkeypatch, target):
    shards = Shards(tmp_path / "pool")
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        expect_no_space(lambda: shards.write(0, images, labels))
    assert not list((tmp_path / "pool").iterdir())
    shards.write(0, images, labels)
    assert len(list(shards.read(1))) == 1


@pytest.mark.parametrize("failure", [full, full_tensorstore])
def test_a_checkpoint_on_a_full_disk(tmp_path, monkeypatch, failure):
    import orbax.checkpoint as ocp

    checkpoints, state = Checkpoints(tmp_path), {"weights": np.arange(3.0)}
    checkpoints.save(1, state, {"call": 1})
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", failure)
        expect_no_space(lambda: checkpoints.save(2, state, {"call": 2}))
    assert contents(tmp_path) == before
    checkpoints.save(2, state, {"call": 2})
    assert checkpoints.latest == 2
    checkpoints.close()


@pytest.mark.parametrize(
    ("failure", "told"),
    [("Failed writing: No space left on device [os_error_code='28']", False), ("of something else", True)],
)
def test_a_write_that_fails_after_its_checkpoint_is_not_told_again(tmp_path, monkeypatch, caplog, failure, told):
    import orbax.checkpoint as ocp

    checkpoints = Checkpoints(tmp_path)
    loop = asyncio.new_event_loop()
    late = loop.create_future()
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        expect_no_space(lambda: checkpoints.save(1, {"weights": np.arange(3.0)}, {}))
    late.set_exception(ValueError(failure))
    del late
    gc.collect()
    assert ("never retrieved" in caplog.text) == told
    loop.close()
    checkpoints.close()


def test_metrics_on_a_full_disk(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path, total_calls=2)
    metrics.write(1, {"loss": 1.0})
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        expect_no_space(lambda: metrics.offset)
    # Part of the line is written before the space is used up.
    metrics._lines._file = HalfFull(metrics._lines._file)  # type: ignore[assignment]
    expect_no_space(lambda: metrics.write(2, {"loss": 2.0}))
    metrics.close()
    assert contents(tmp_path) == before


class HalfFull:
    """A raw file on a disk that takes five bytes more."""

    def __init__(self, file):
        self.file, self.left = file, 5

    def write(self, content: bytes) -> int:
        if not self.left:
            full()
        self.left, count = 0, self.file.write(content[: self.left])
        return count

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """Mounts a file system of a size, which the function that it gives changes; skips where that is not allowed."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system, to fill it")

    def resize(size: str) -> None:
        subprocess.run([str(mount), "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def run_outside(tmp_path: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    config = tmp_path / "settings" / "tiny.py"
    config.parent.mkdir(exist_ok=True)
    config.write_text(TINY)
    line = [sys.executable, "-m", "fastdfkd_jax.main", f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)


def expect_full(done: subprocess.CompletedProcess[str], workdir: Path) -> None:
    *logged, line = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert re.match(f"error: .*{workdir}.*no space left|error: no space left for {workdir}", line, re.IGNORECASE), line
    assert all(re.match(r"\d\d:\d\d:\d\d ", entry) for entry in logged), done.stderr
    assert not [path for path in workdir.rglob("*") if re.search(r"partial|tmp", path.name)]


def test_a_full_disk_and_then_space(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as resize:
        workdir = tmp_path / "disk" / "run"
        ballast = tmp_path / "disk" / "ballast"
        # Nothing fits; then the pool, but not the checkpoint.
        for kilobytes in (3072, 2860):
            ballast.write_bytes(b"\0" * 1024 * kilobytes)
            expect_full(run_outside(tmp_path, workdir), workdir)
        resize("100m")
        done = run_outside(tmp_path, workdir)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"] == 16
        assert [json.loads(line)["call"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.slow
# Stops at the first checkpoint, at one after it, at the student's file; sizes between stop where one of these does.
@pytest.mark.parametrize("size", ["250k", "1200k", "2300k"])
def test_a_whole_run_on_a_full_disk(tmp_path, size):
    whole = ("--config.method.name=fastdfkd", "--config.mode=all", "--config.calls=3", "--config.data.source=digits")
    whole += ("--config.teacher.checkpoint=digits", "--config.student.arch=wrn10_1")
    with small_disk(tmp_path / "disk", size) as resize:
        workdir = tmp_path / "disk" / "run"
        expect_full(run_outside(tmp_path, workdir, *whole), workdir)
        resize("100m")
        done = run_outside(tmp_path, workdir, *whole)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"] == 24


# --- As a user runs it


def test_the_command_itself(tmp_path):
    for arguments, expected in [
        (["--config.calls=many"], "many"),
        (["--config.teacher.checkpoint=absent.pth"], "there is no checkpoint absent.pth"),
    ]:
        done = run_outside(tmp_path, tmp_path / "run", *arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert re.fullmatch(f"error: .*{expected}.*\n", done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{"])
def test_records_of_runs_that_are_none(tmp_path, workdir, name, content):
    (workdir / "summary.json").write_text("{}")
    (workdir / name).write_text(content)
    with pytest.raises(UserError, match=r"holds no finished run: expected its config.json and summary.json"):
        run_records.add(workdir, tmp_path / "record", timed=False)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3"])
def test_a_config_json_that_is_none(refused, workdir, content):
    (workdir / "config.json").write_text(content)
    assert not refused("config.json is not the record of a run: start in a new workdir")
