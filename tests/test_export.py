"""The images of a run in folders and as a TFDS data set: what is written is what is read, or nothing is there."""

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from runs import ROOT, tiny_config

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli import signals
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.export import __main__ as command
from fastdfkd_jax.export import answers, folder_writer, tfds_writer
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.pool.shards import Shards
from fastdfkd_jax.storage.digest import digest
from fastdfkd_jax.storage.files import whole_folder, write_atomically

FORMATS = ["folder", "tfds"]
# Classes 1, 5 and 11 have no image; ten and more make the sorted order of names matter.
LABELS = [[3, 0, 10, 3], [2, 4, 6, 7], [8, 9, 0]]
CLASSES = 12
FLAT = [label for part in LABELS for label in part]
ASKED = "labelled with the class that was asked for"


def images_of(labels, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (len(part), 6, 5, channels), np.uint8) for part in labels]


def make_run(workdir: Path, labels=LABELS, channels=3) -> np.ndarray:
    """A workdir as a run under way leaves it; gives all images."""
    parts = images_of(labels, channels)
    shards = Shards(workdir / "pool")
    for index, (images, label) in enumerate(zip(parts, labels, strict=True)):
        shards.write(index, images, np.array(label, np.int32), {"generator": np.zeros(3)})
    (workdir / "config.json").write_text(json.dumps({"config": {"teacher": {"num_classes": CLASSES}}}))
    return np.concatenate(parts)


def contents(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


@pytest.fixture
def run(run_command):
    """Runs the command in this process; gives its exit status, what it wrote to stdout and to stderr.

    Labels are the classes asked for, as the runs that `make_run` makes have no teacher.
    """
    return lambda *arguments: run_command(command.main, *arguments, "--label", "asked")


@pytest.fixture
def refused(run, tmp_path):
    """Runs what must be refused in one line that matches, with nothing written."""
    return functools.partial(assert_refused, run, tmp_path)


@pytest.fixture
def refused_by_teacher(run_command, tmp_path):
    """The same where the teacher is to label the images."""

    def refused(expected, *arguments):
        line = ("run", "--to", "out", "--format", "folder", *arguments)
        assert_refused(functools.partial(run_command, command.main), tmp_path, expected, *line)

    return refused


def assert_refused(run, place, expected, *arguments):
    before = contents(place)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    *_, line = err.splitlines()
    assert re.fullmatch(f"error: .*{expected}.*", line), err
    assert len(line) < 300
    assert contents(place) == before


# --- Folders


def test_folders_hold_every_image_and_every_class(run, tmp_path):
    images = make_run(tmp_path / "run")
    status, out, err = run("run", "--to", "out/pictures", "--format", "folder")
    assert (status, out) == (0, f"out/pictures: 11 images, 12 classes, {ASKED}\n")
    assert "3 classes have no image: torchvision's ImageFolder needs allow_empty=True" in err
    place, flat = tmp_path / "out" / "pictures", FLAT
    assert sorted(path.name for path in place.iterdir()) == [f"{index:02d}" for index in range(CLASSES)]
    assert contents(tmp_path / "out")[0] == "pictures", "nothing stays beside it"
    for number, label in enumerate(flat):
        with Image.open(place / f"{label:02d}" / f"{number:08d}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), images[number])
    assert len(list(place.rglob("*.png"))) == len(flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_folders_are_read_by_the_data_source(run, tmp_path, channels):
    images, flat = make_run(tmp_path / "run", channels=channels), np.array(FLAT)
    assert run("run/pool", "--to", "out", "--format", "folder")[0] == 0
    read = data.load(f"folder:{tmp_path / 'out'}", "train")
    order = np.argsort(flat, kind="stable")
    np.testing.assert_array_equal(read.images, images[order])
    np.testing.assert_array_equal(read.labels, flat[order])
    assert read.class_names == tuple(folder_writer.class_names(CLASSES))


@pytest.mark.parametrize(("number", "first", "last"), [(1, "0", "0"), (10, "0", "9"), (1000, "000", "999")])
def test_names_of_classes_sort_by_their_numbers(number, first, last):
    names = folder_writer.class_names(number)
    assert (names[0], names[-1], len(names)) == (first, last, number)
    assert names == sorted(names)


def test_images_without_labels_are_in_a_folder_of_their_own(run, refused, tmp_path):
    make_run(tmp_path / "run", labels=[[-1, -1], [-1]])
    status, out, err = run("run", "--to", "out", "--format", "folder")
    assert (status, out) == (0, "out: 3 images, 12 classes, without labels\n")
    assert "3 images have no label" in err
    assert contents(tmp_path / "out") == ["unlabelled", *(f"unlabelled/{index:08d}.png" for index in range(3))]
    make_run(tmp_path / "mixed", labels=[[1, 2], [-1]])
    refused("some images have no label.*use --format tfds", "mixed", "--to", "new", "--format", "folder")


# --- TFDS


@pytest.fixture
def exported(run, tmp_path):
    """Exports a run as a TFDS data set; returns its folder, images and labels."""
    images = make_run(tmp_path / "run")
    assert run("run", "--to", "out", "--format", "tfds")[:2] == (0, f"out: 11 images, 12 classes, {ASKED}\n")
    return tmp_path / "out", images, np.array(FLAT)


@pytest.mark.filterwarnings("default")  # TFDS reads files that it does not close
def test_tfds_reads_the_records_in_order(exported):
    import tensorflow_datasets as tfds

    place, images, labels = exported
    builder = tfds.builder_from_directory(place)
    assert builder.info.full_name == "synthesised/1.0.0"
    features = builder.info.features
    assert features is not None
    assert features["label"].num_classes == CLASSES
    source = builder.as_data_source("train")
    assert len(source) == len(labels)
    np.testing.assert_array_equal([record["label"] for record in source], labels)
    np.testing.assert_array_equal(np.stack([record["image"] for record in source]), images)
    assert "tensorflow" not in sys.modules
    encoded = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})[4]["image"]
    assert encoded.startswith(b"\x89PNG")


def test_a_record_is_a_group_of_its_own(exported):
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(next(exported[0].glob("*.array_record*"))))
    assert "group_size:1," in reader.writer_options_string()
    reader.close()


@pytest.mark.parametrize("nested", [False, True])
def test_tfds_sets_are_read_by_the_data_source(exported, tmp_path, nested):
    place, images, labels = exported
    if nested:
        (tmp_path / "sets" / "synthesised").mkdir(parents=True)
        place = place.rename(tmp_path / "sets" / "synthesised" / "1.0.0").parent.parent
    read = data.load("tfds:synthesised", "train", data_dir=place)
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.labels, labels)
    assert len(read.class_names or ()) == CLASSES
    assert len(data.load("tfds:synthesised", "train[:5]", data_dir=place).labels) == 5


def test_another_name_is_not_read_as_this_data_set(exported):
    with pytest.raises(UserError, match=r"expected tfds:cifar10 in .*, found tfds:synthesised: give its name"):
        data.load("tfds:cifar10", "train", data_dir=exported[0])


def test_images_come_in_several_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_writer, "_FILE_BYTES", 3 * 6 * 5 * 3)
    images = make_run(tmp_path / "run")
    assert run("run", "--to", "out", "--format", "tfds")[0] == 0
    assert len(list((tmp_path / "out").glob("*.array_record-*"))) == 4
    np.testing.assert_array_equal(data.load("tfds:synthesised", "train", data_dir=tmp_path / "out").images, images)


def test_images_without_labels_are_not_evaluated(run, tmp_path):
    make_run(tmp_path / "run", labels=[[1, -1]])
    assert run("run", "--to", "out", "--format", "tfds")[0] == 0
    with pytest.raises(UserError, match="examples of split 'train' of tfds:synthesised have no label"):
        data.load("tfds:synthesised", "train", data_dir=tmp_path / "out")


def test_both_formats_evaluate_alike(run, tmp_path):
    """Through the whole path: a student in the workdir gives the classes, and is measured on what was written."""
    workdir, labels = tmp_path / "run", [[0, 2, 3], [9, 2]]
    network, variables = convert.load_network(data.digits.TEACHER_PATH)
    test, chosen, shards = data.load("digits", "test"), [], Shards(workdir / "pool")
    convert.save_network(workdir / "student.safetensors", network, variables)
    for index, part in enumerate(labels):
        rows = [int(np.flatnonzero(test.labels == label)[index]) for label in part]
        shards.write(index, test.images[rows], np.array(part, np.int32))
        chosen += rows
    evaluate = make_evaluator(network, 8)
    expected = evaluate(variables, test._replace(images=test.images[chosen], labels=test.labels[chosen]))
    for name, source in {"folder": "folder:folder", "tfds": "tfds:synthesised"}.items():
        assert run(workdir, "--to", name, "--format", name)[0] == 0
        root = tmp_path / name if name == "tfds" else tmp_path
        found = evaluate(variables, data.load(source, "train", data_dir=root))
        assert found == pytest.approx(expected)
    assert expected["accuracy"] > 50


# --- The teacher's labels


@pytest.fixture
def judged(tmp_path):
    """A workdir whose images are test digits that the teacher knows, asked for as what they are but for the first two.

    Gives the digits' classes.
    """
    test, labels = data.load("digits", "test"), np.array([3, 0, 8, 3, 6])
    network, variables = convert.load_network(data.digits.TEACHER_PATH)
    shown = augment.normalize(test.images.astype(np.float32) / 255, network.spec.mean, network.spec.std)
    known = np.asarray(network.apply(variables, shown).logits.argmax(-1)) == test.labels
    rows = np.array([np.flatnonzero(known & (test.labels == label))[index] for index, label in enumerate(labels)])
    asked = np.array([5, 1, 8, 3, 6], np.int32)
    shards = Shards(tmp_path / "run" / "pool")
    for index, part in enumerate([slice(0, 3), slice(3, 5)]):
        shards.write(index, test.images[rows[part]], asked[part])
    record_run(tmp_path / "run", variables)
    return labels


def record_run(workdir, variables, **teacher):
    config = {**tiny_config(teacher__checkpoint="digits").to_dict()["teacher"], **teacher}
    identity = {"teacher weights": digest(variables)}
    content = {"config": {"teacher": config, "precision": "float32"}, "identity": identity}
    (workdir / "config.json").write_text(json.dumps(content))


def folders(place):
    """{number of an image: the folder that it is in}."""
    return {int(path.stem): path.parent.name for path in place.rglob("*.png")}


def test_the_teacher_labels_the_images_in_folders(run_command, judged, tmp_path):
    status, out, _ = run_command(command.main, "run", "--to", "out", "--format", "folder")
    said = "labelled by the teacher, which agrees with the class that was asked for on 3 of 5 (60.0%)"
    assert (status, out) == (0, f"out: 5 images, 10 classes, {said}\n")
    assert folders(tmp_path / "out") == {number: str(label) for number, label in enumerate(judged)}
    status, out, _ = run_command(command.main, "run", "--to", "asked", "--format", "folder", "--label", "asked",
                                 "--num-classes", 10)  # fmt: skip
    assert (status, out) == (0, f"asked: 5 images, 10 classes, {ASKED}\n")
    assert folders(tmp_path / "asked") == {0: "5", 1: "1", 2: "8", 3: "3", 4: "6"}


def test_the_teacher_labels_the_images_in_records(run_command, judged, tmp_path):
    assert run_command(command.main, "run/pool", "--to", "out", "--format", "tfds", "--label", "teacher")[0] == 0
    read = data.load("tfds:synthesised", "train", data_dir=tmp_path / "out")
    np.testing.assert_array_equal(read.labels, judged)


def test_images_of_which_no_class_was_asked_are_labelled_by_the_teacher(run_command, judged, tmp_path):
    shards = Shards(tmp_path / "run" / "pool")
    images = np.concatenate([rows.images for rows in shards.read(2)])
    shards.truncate(0)
    shards.write(0, images, np.full(5, -1, np.int32))
    status, out, err = run_command(command.main, "run", "--to", "out", "--format", "folder")
    assert (status, out) == (0, "out: 5 images, 10 classes, labelled by the teacher\n")
    assert "no label" not in err
    assert folders(tmp_path / "out") == {number: str(label) for number, label in enumerate(judged)}


def test_answers_do_not_depend_on_how_many_images_are_shown_at_once(run_command, judged, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "_BATCH", 2)
    assert run_command(command.main, "run", "--to", "out", "--format", "folder")[0] == 0
    assert folders(tmp_path / "out") == {number: str(label) for number, label in enumerate(judged)}


def test_a_teacher_of_segmentation_labels_no_image(run_command, tmp_path):
    teacher = models.build(NetworkSpec("deeplabv3_mobilenetv2_os16", 3, 32, task="segmentation"))
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    make_run(tmp_path / "run", labels=[[-1, -1]])
    convert.save_network(tmp_path / "teacher.safetensors", teacher, variables)
    record_run(tmp_path / "run", variables, checkpoint=str(tmp_path / "teacher.safetensors"), num_classes=3)
    status, out, err = run_command(command.main, "run", "--to", "out", "--format", "folder")
    assert (status, out) == (0, "out: 2 images, 3 classes, without labels\n"), err
    assert contents(tmp_path / "out") == ["unlabelled", "unlabelled/00000000.png", "unlabelled/00000001.png"]


def test_a_teacher_that_cannot_label_is_refused(run_command, refused_by_teacher, judged, tmp_path):
    config, network = tmp_path / "run" / "config.json", data.digits.TEACHER_PATH
    _, variables = convert.load_network(network)
    instead = "use --label asked, which keeps the requested classes"
    refused_by_teacher("--num-classes must be at least 10, found 9", "--num-classes", 9)
    record_run(tmp_path / "run", variables, checkpoint="gone.safetensors")
    refused_by_teacher(rf"the run's teacher gone.safetensors cannot be loaded \(.*\): restore it, or {instead}")
    other = jax.tree.map(lambda x: x + 1, variables)
    record_run(tmp_path / "run", other)
    refused_by_teacher(f"digits no longer has the weights of the run's teacher: restore them, or {instead}")
    config.write_text("{}")
    refused_by_teacher(f"config.json is not the record of a run, so its teacher is unknown: {instead}")
    config.unlink()
    refused_by_teacher(f"expected the run's config.json in .*run, which names the teacher, found none: {instead}")
    make_run(tmp_path / "run", labels=[[1, 2], [3]])
    record_run(tmp_path / "run", variables)
    refused_by_teacher(f"expected images of 16x16x1, as the teacher takes, found 6x5x3: {instead}")
    assert run_command(command.main, "run", "--to", "out", "--format", "folder", "--label", "asked",
                       "--num-classes", 12)[0] == 0  # fmt: skip


# --- What is refused


def test_workdirs_that_hold_no_pool(refused, tmp_path):
    last = ("--to", "out", "--format", "folder")
    refused("expected a run's workdir or its pool folder, found no folder absent", "absent", *last)
    (tmp_path / "empty").mkdir()
    refused("empty holds no pool shards", "empty", *last)
    (tmp_path / "run" / "pool").mkdir(parents=True)
    refused("run/pool holds no pool shards", "run", *last)


@pytest.mark.parametrize("file_format", FORMATS)
def test_shards_that_are_damaged_or_missing(refused, tmp_path, file_format):
    make_run(tmp_path / "run")
    path, last = tmp_path / "run" / "pool" / "000001.npz", ("--to", "out", "--format", file_format)
    path.write_bytes(path.read_bytes()[:-40])
    refused("pool shard run/pool/000001.npz is damaged.*", "run", *last)
    path.unlink()
    refused("pool shard run/pool/000001.npz is missing: .*", "run", *last)


def test_classes_that_are_not_known_or_too_few(run, refused, tmp_path):
    make_run(tmp_path / "run")
    config, last = tmp_path / "run" / "config.json", ("--to", "out", "--format", "folder")
    refused("expected labels below 10 in run/pool/000000.npz, found 0 to 10: .*", "run", *last, "--num-classes", 10)
    refused("--num-classes must be at least 1, found 0", "run", *last, "--num-classes", 0)
    config.write_text("{}")
    refused("config.json is not the record of a run: give --num-classes", "run", *last)
    config.unlink()
    refused("does not record the number of classes.*: give --num-classes", "run", *last)
    assert run("run", *last, "--num-classes", 11)[1] == f"out: 11 images, 11 classes, {ASKED}\n"


def test_shards_that_do_not_fit_together(refused, tmp_path):
    make_run(tmp_path / "run")
    last = ("--to", "out", "--format", "tfds")
    shards = Shards(tmp_path / "run" / "pool")
    shards.write(3, np.zeros((2, 7, 5, 3), np.uint8), np.zeros(2, np.int32))
    refused(r"expected uint8 images of 6x5x3, .*000003.npz, found uint8\[2, 7, 5, 3\]", "run", *last)
    shards.write(3, np.zeros((2, 6, 5, 3), np.uint8), np.zeros(3, np.int32))
    refused(r"pool shard .*000003.npz is damaged .labels are int32\[3\], not int32\[2\].: restore it.*", "run", *last)


def test_targets_that_cannot_be_used(run, refused, tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    (tmp_path / "file").touch()
    refused("file is a file: give a new folder", "run", "--to", "file", "--format", "folder")
    refused("run is not empty: give a new folder, .*", "run", "--to", "run", "--format", "folder")
    refused("cannot write .*: choose a folder that can be written", "run", "--to", "file/x", "--format", "folder")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_mount", lambda _: True)
        refused("out is the root of a file system: give a new folder in it", "run", "--to", "out", "--format", "tfds")
    (tmp_path / "out").mkdir()
    assert run("run", "--to", "out", "--format", "folder")[0] == 0, "an empty folder is accepted"


def test_arguments_that_are_wrong(refused, tmp_path):
    make_run(tmp_path / "run")
    refused("invalid choice: 'zip'.*: see fastdfkd images --help", "run", "--to", "out", "--format", "zip")
    refused("required: --to, --format: see .*", "run")


# --- What is cut off


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_full_disk_leaves_nothing(run, refused, tmp_path, monkeypatch, file_format):
    make_run(tmp_path / "run")
    arguments = ("run", "--to", "out", "--format", file_format)
    with monkeypatch.context() as patch:
        message = f"write() failed: {os.strerror(errno.ENOSPC)}; writing x"
        full = OSError(errno.ENOSPC, "") if file_format == "folder" else RuntimeError(message)
        patch.setattr(folder_writer if file_format == "folder" else tfds_writer, "encode", raising(full))
        refused("no space left for .*out: free some and run the same command to start again", *arguments)
    assert run(*arguments)[0] == 0


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_what_a_killed_export_left_is_replaced(run, tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / ".out.partial" / "99").mkdir(parents=True)
    (tmp_path / ".out.partial" / "stray.png").touch()
    assert run("run", "--to", "out", "--format", "folder")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert len(list((tmp_path / "out").iterdir())) == CLASSES


def test_two_exports_do_not_share_a_folder(refused, tmp_path):
    make_run(tmp_path / "run")
    with whole_folder(tmp_path / "out") as partial:
        (partial / "mine").touch()
        refused("out is being written by another process: .*", "run", "--to", "out", "--format", "folder")
    assert contents(tmp_path / "out") == ["mine"]


def test_a_link_in_the_place_of_the_partial_folder_is_not_followed(refused, tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "precious")
    refused(".out.partial is a symbolic link: .*remove it", "run", "--to", "out", "--format", "folder")
    assert contents(tmp_path / "precious") == ["file"]


def test_a_link_in_the_place_of_a_temporary_file_is_replaced(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".new.partial").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "new", lambda file: file.write(b"written"))
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "new").read_bytes() == b"written"
    assert not (tmp_path / "new").is_symlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_export_leaves_nothing(refused, tmp_path, monkeypatch, number):
    make_run(tmp_path / "run")
    encode, main = folder_writer.encode, threading.main_thread().ident
    assert main is not None

    def stop(image):
        signal.pthread_kill(main, number)
        return encode(image)

    monkeypatch.setattr(folder_writer, "encode", stop)
    monkeypatch.setattr(signals, "_GRACE_SECONDS", 60.0)  # each image signals, and a busy machine cleans up slowly
    # A suite that runs in the background may have been told to ignore some signals.
    before = signal.signal(number, signal.default_int_handler)
    try:
        refused("stopped: nothing was written to out; run the same command to start again", "run", "--to", "out",
                "--format", "folder")  # fmt: skip
    finally:
        signal.signal(number, before)


def test_only_the_main_thread_writes_files(run, tmp_path, monkeypatch):
    """Python does not wait for a thread whose start was interrupted; it must have nothing left to write."""
    make_run(tmp_path / "run")
    writers, write_bytes = [], Path.write_bytes

    def note(path, content):
        writers.append(threading.current_thread())
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", note)
    run("run", "--to", "out", "--format", "folder")
    assert writers == [threading.main_thread()] * len(FLAT)


# --- As a user runs it


def test_progress_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_SECONDS_BETWEEN_LINES", -1)
    make_run(tmp_path / "run")
    _, _, err = run("run", "--to", "out", "--format", "folder")
    assert "wrote 8 images, 2 of 3 shards" in err


def test_the_command_itself(tmp_path):
    make_run(tmp_path / "run")
    line = [
        sys.executable,
        "-m",
        "fastdfkd_jax.export",
        str(tmp_path / "run"),
        "--label",
        "asked",
        "--format",
        "tfds",
        "--to",
    ]
    done, again = (
        subprocess.run([*line, str(tmp_path / "out")], capture_output=True, text=True, check=False, cwd=ROOT)
        for _ in range(2)
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}: 11 images, 12 classes, {ASKED}\n"), done.stderr
    assert done.stderr == ""
    assert (again.returncode, again.stdout) == (2, "")
    assert re.fullmatch("error: .*out is not empty: give a new folder.*\n", again.stderr)
