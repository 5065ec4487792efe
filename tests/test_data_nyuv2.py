"""NYUv2 through the preparing command and back: what the official file says is what is read."""

import errno
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
import scipy.io
from PIL import Image
from runs import ROOT

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.configs import nyuv2 as recipe
from fastdfkd_jax.data import map_sources, nyuv2
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.training import held_out, one_run

SHAPE = (4, 6)
META = ("classMapping40.mat", "class13Mapping.mat", "splits.mat")


def official(path: Path, count: int, largest: int = 894, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Writes a file as MATLAB does, its axes in reverse after a header; gives images [N, H, W, 3] and raw labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, *shape, 3), np.uint8)
    labels = generator.integers(0, largest + 1, (count, *shape), np.uint16)
    with h5py.File(path, "w", userblock_size=512) as file:
        # As MATLAB writes them, compressed in chunks of several images.
        file.create_dataset("images", data=images.transpose(0, 3, 2, 1), chunks=(2, 3, *shape[::-1]), compression=3)
        file.create_dataset("labels", data=labels.transpose(0, 2, 1), chunks=(2, *shape[::-1]), compression=3)
    return images, labels


def write_meta(folder: Path, train=(5, 2), test=(1, 3)) -> np.ndarray:
    """Writes the three files of mappings; gives the class of each raw label, by a loop over their words."""
    folder.mkdir(exist_ok=True)
    middle = np.random.default_rng(1).integers(1, 41, 894, np.uint8)
    coarse = np.random.default_rng(2).integers(1, 14, 40, np.uint8)
    structure = {"labels13": coarse[None], "classNames": np.array([["a"] * 13], object)}
    scipy.io.savemat(str(folder / META[0]), {"mapClass": middle[None]})
    scipy.io.savemat(str(folder / META[1]), {"classMapping13": structure})
    numbers = {"trainNdxs": np.array(train, np.uint16)[:, None], "testNdxs": np.array(test, np.uint16)[:, None]}
    scipy.io.savemat(str(folder / META[2]), numbers)
    return np.array([255, *(coarse[middle[raw - 1] - 1] - 1 for raw in range(1, 895))])


@pytest.fixture
def run(run_command):
    """Runs the command in this process; gives its exit status, what it wrote to stdout and to stderr."""
    return functools.partial(run_command, nyuv2.main)


@pytest.fixture
def refused(run, tmp_path):
    """Runs the command on `a.mat`, which must be refused in one line that matches, with nothing written."""

    def refused(match, *arguments):
        before = sorted(tmp_path.rglob("*"))
        status, out, err = run(*(arguments or ("a.mat", "--meta", "meta", "--to", "out")))
        assert (status, out) == (2, "")
        assert re.fullmatch(f"error: .*{match}.*\n", err), err
        assert sorted(tmp_path.rglob("*")) == before

    return refused


def test_prepared_and_read(run, tmp_path, monkeypatch):
    images, raw = official(tmp_path / "a.mat", 5)
    classes = write_meta(tmp_path / "meta")[raw]
    monkeypatch.setattr(nyuv2, "_SECONDS_BETWEEN_LINES", -1)
    status, out, err = run("a.mat", "--meta", "meta", "--to", "new/out")
    assert (status, out) == (0, "new/out: 2 images of train, 2 images of test\n")
    assert "wrote 3 of 4 images" in err
    for split, numbers in (("train", [2, 5]), ("test", [1, 3])):
        rows = np.array(numbers) - 1
        read = data.load("nyuv2:new/out", split, data_dir=tmp_path)
        np.testing.assert_array_equal(read.images, images[rows])
        np.testing.assert_array_equal(read.labels, classes[rows])
        assert read.class_names == map_sources.NYUV2
        names = [f"{number:05d}.png" for number in numbers]
        assert sorted(path.name for path in (tmp_path / "new" / "out" / "seg13" / split).iterdir()) == names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"], "nothing stays beside it"
    assert data.load("nyuv2:new/out", "test[1:]", data_dir=tmp_path).images.shape == (1, *SHAPE, 3)


def test_the_official_mappings_and_splits(shared_data, tmp_path):
    meta = shared_data / "nyuv2"
    images, raw = official(tmp_path / "a.mat", 1449)
    assert nyuv2.prepare(tmp_path / "a.mat", meta, tmp_path / "out") == {"train": 795, "test": 654}
    known = nyuv2.read_meta(meta)
    mapping = scipy.io.loadmat(str(meta / META[0]))
    words = [word.item() for word in mapping["allClassName"].ravel()]
    # From the names of the classes: what these words mean in the 13 is known without the tables.
    same = ("bed", "books", "ceiling", "chair", "floor", "picture", "sofa", "table", "wall", "window")
    others = {"cabinet": "furniture", "box": "objects", "television": "tv"}
    for word, expected in {**{word: word for word in same}, **others}.items():
        assert map_sources.NYUV2[known.classes[1 + words.index(word)]] == expected
    assert known.classes[0] == data.VOID
    assert set(known.classes[1:]) == set(range(13))
    test = data.load(f"nyuv2:{tmp_path / 'out'}", "test")
    np.testing.assert_array_equal(test.images[0], images[0])  # image 1 is the first of the test split
    np.testing.assert_array_equal(test.labels[0], known.classes[raw[0]])


@pytest.mark.slow
def test_from_the_official_file_to_a_student(run, tmp_path, monkeypatch):
    """`configs/nyuv2.py:smoke` on what the command prepared, in small, with a small teacher that nobody trained."""
    monkeypatch.setattr(held_out, "_NOISE", 4)
    official(tmp_path / "a.mat", 5, shape=(48, 64))
    write_meta(tmp_path / "meta")
    assert run("a.mat", "--meta", "meta", "--to", "NYUv2")[0] == 0
    config = recipe.get_config("smoke")
    config.teacher.arch = config.student.arch
    config.data.dir, config.data.short_side = str(tmp_path), 40
    config.teacher.image_size, config.teacher.checkpoint = 32, str(tmp_path / "teacher.safetensors")
    config.calls, config.kd.steps_per_call, config.kd.steps_per_dispatch = 2, 2, 2
    spec = models.NetworkSpec(config.teacher.arch, 13, 32, 3, (0.5,) * 3, (0.5,) * 3)
    network = models.build(spec)
    convert.save_network(config.teacher.checkpoint, network, jax.jit(network.init)(jax.random.key(0)))

    summary = one_run.run(config.lock(), tmp_path / "run")
    assert (summary["teacher"], summary["student"]) == ("deeplabv3_mobilenetv2", "deeplabv3_mobilenetv2")
    assert summary["images"] == 4
    evaluation = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert evaluation["eval/count"] == 2
    assert evaluation["eval/miou"] == summary["student_miou_last"]
    assert len(evaluation["eval/iou"]) == 13


def test_labels_that_count_from_one_are_told(tmp_path):
    for folder, array in (("image", np.zeros((*SHAPE, 3), np.uint8)), ("seg13", np.full(SHAPE, 13, np.uint8))):
        (tmp_path / folder / "test").mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / folder / "test" / "00001.png")
    with pytest.raises(
        UserError, match=r"classes 0 to 12, .* found 13: these may count from 1; prepare them with python"
    ):
        data.load(f"nyuv2:{tmp_path}", "test")


def test_files_that_are_missing_or_others(refused, tmp_path, monkeypatch):
    refused("expected meta/classMapping40.mat, found none: give --meta the folder of https://.*nyuv2-meta-data")
    write_meta(tmp_path / "meta")
    refused("expected the file a.mat, found none: download it from http://.*nyu_depth_v2_labeled.mat")
    for content in (b"", b"MATLAB 5.0 MAT-file"):
        (tmp_path / "a.mat").write_bytes(content)
        refused("cannot read a.mat as HDF5")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["images"] = np.zeros((5, 3, 6, 4), np.uint8)
    refused(r"expected images uint8\[N, 3, W, H\] and labels .* found uint8\[5, 3, 6, 4\] and None\[\]")
    with h5py.File(tmp_path / "a.mat", "a") as file:
        file["labels"] = np.zeros((5, 4, 6), np.uint16)
    refused(r"found uint8\[5, 3, 6, 4\] and uint16\[5, 4, 6\]")
    official(tmp_path / "a.mat", 4)
    refused("expected 5 images in a.mat, as meta splits them, found 4")
    official(tmp_path / "a.mat", 5, largest=60000)
    refused("expected labels 0 to 894 in image 1 of a.mat, found")
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused("needs h5py, which is not installed: pip install h5py")


def test_a_file_that_was_fetched_in_part(refused, tmp_path):
    write_meta(tmp_path / "meta")
    official(tmp_path / "a.mat", 5)
    whole = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(whole[:-100])
    refused("cannot read a.mat as HDF5 .MATLAB v7.3.: it is damaged")
    with h5py.File(tmp_path / "a.mat.2", "w") as file:
        file.create_dataset("images", data=np.zeros((5, 3, 6, 4), np.uint8), chunks=(1, 3, 6, 4), fletcher32=True)
        file.create_dataset("labels", data=np.zeros((5, 6, 4), np.uint16))
        offset = file["images"].id.get_chunk_info(2).byte_offset
    content = bytearray((tmp_path / "a.mat.2").read_bytes())
    content[offset] ^= 1
    (tmp_path / "a.mat").write_bytes(content)
    refused("cannot read image 3 of a.mat: it is damaged")


def test_mappings_that_are_damaged_or_others(refused, tmp_path):
    official(tmp_path / "a.mat", 5)
    for name in META:
        write_meta(tmp_path / "meta")
        for content in (b"", (tmp_path / "meta" / name).read_bytes()[:150]):
            (tmp_path / "meta" / name).write_bytes(content)
            refused(f"cannot read .* of meta/{name}: it is damaged or another file")
    write_meta(tmp_path / "meta")
    shutil.copy(tmp_path / "meta" / META[0], tmp_path / "meta" / META[1])
    refused("cannot read classMapping13 of meta/class13Mapping.mat")
    write_meta(tmp_path / "meta")
    scipy.io.savemat(str(tmp_path / "meta" / META[0]), {"mapClass": np.zeros((1, 894), np.uint8)})
    refused("expected 894 classes from 1 to 40 in meta/classMapping40.mat, found 894")
    write_meta(tmp_path / "meta", test=(2, 3))
    refused("expected two splits of images from 1")


def test_a_target_that_holds_something(refused, tmp_path):
    write_meta(tmp_path / "meta")
    official(tmp_path / "a.mat", 5)
    refused("meta is not empty", "a.mat", "--meta", "meta", "--to", "meta")
    refused("the following arguments are required: --to: see python -m", "a.mat", "--meta", "meta")


FAILURES = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), "no space left for .*out: free some and run"),
    "Ctrl-C": (KeyboardInterrupt(), "stopped: nothing was written to out"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_nothing_is_left_after(case, refused, run, tmp_path, monkeypatch):
    write_meta(tmp_path / "meta")
    official(tmp_path / "a.mat", 5)
    failure, match = FAILURES[case]
    save, calls = Image.Image.save, []

    def failing(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 5:
            raise failure
        save(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", failing)
        refused(match)
    assert run("a.mat", "--meta", "meta", "--to", "out")[0] == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_command_as_it_is_typed(tmp_path):
    """A module that is run by name must not have been imported by its package."""
    command = [sys.executable, "-W", "error", "-m", "fastdfkd_jax.data.nyuv2", "none", "--meta", "none", "--to", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: expected none/classMapping40.mat, found none")
