"""Runs whose networks give maps: methods that support them, what is refused, bit-identical results after a stop."""

import json
import subprocess
import sys

import graph_fixtures
import jax
import numpy as np
import pytest
from PIL import Image
from runs import ROOT, Runs, tiny_config
from safetensors.numpy import load_file

from fastdfkd_jax import data, evaluate, overlay
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.training import one_run
from fastdfkd_jax.training.loop import Training

SIDE, CLASSES = 16, 4  # of the recorded segmenter


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders: 'graph' of the network, and 'data' with splits 'train', larger than what it takes, and 'val'."""
    place = tmp_path_factory.mktemp("segmentation")
    graph_fixtures.unpack(graph_fixtures.FOLDER / "segmenter.npz", place / "graph")
    rng = np.random.default_rng(0)
    for split, count, shape in (("train", 9, (18, 24)), ("val", 5, (SIDE, SIDE))):
        for i in range(count):
            image, mask = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, CLASSES, shape, np.uint8)
            mask[:2] = data.VOID
            for folder, array in (("images", image), ("masks", mask)):
                path = place / "data" / folder / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return place


def config_of(place, method, **changes):
    graph, on_data = str(place / "graph"), method in ("kd", "scratch")
    source = {"transfer__source": "pairs:data", "transfer__dir": str(place), "kd__square": SIDE} if on_data else {}
    if method == "dfnd":
        pictures = str(place / "data" / "images" / "train")
        source = {"transfer__source": f"folder:{pictures}", "transfer__crops": 2, "transfer__select": 12}
    return tiny_config(
        **{
            "teacher__checkpoint": "", "teacher__graph": graph, "student__arch": "", "student__graph": graph,
            "teacher__mean": (0.5,) * 3, "teacher__std": (0.5,) * 3, "data__source": "pairs:data",
            "data__dir": str(place), "data__split": "val", "data__batch": 4, "method__name": method,
            "warmup_calls": 0 if source else 1, "inversion__class_weight": 0.0, "deepinversion__class_weight": 0.0,
            "deepinversion__num_steps": 2, "deepinversion__jitter": 2, "dfad__generator_loss": "log_l1",
            "dfad__student_steps": 2, "dafl__student_steps": 2, "dfad__latent_dim": 8, "dafl__latent_dim": 8,
            "dfad__width": 8, "dafl__width": 8, **source, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.maps])
def test_a_method_supports_maps(place, method, tmp_path):
    summary = one_run.run(config_of(place, method), tmp_path)
    assert summary["score"] == "miou"
    assert 0 < summary["teacher_miou"] < 60, "of random labels"
    assert 0 <= summary["student_miou_last"] <= summary["student_miou_best_on_test"] < 60
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines[-1]["eval/iou"]) == CLASSES
    assert not any("loss/class" in name for name in lines[0] if method != "dafl"), "no class is asked of an image"
    assert not any("synthesis/on_target" in line for line in lines)
    predicted = [line["synthesis/predicted"] for line in lines if "synthesis/predicted" in line]
    assert all(sum(of_call) == 8 * SIDE * SIDE for of_call in predicted), "counted in pixels"
    assert bool(predicted) == (method in ("fastdfkd", "deepinversion", "dafl", "dfad"))
    for path in (tmp_path / "pool").glob("*.npz"):
        assert (read_shard(path).labels == -1).all()


def test_a_student_learns_the_maps_that_data_have(place, tmp_path):
    config = config_of(place, "scratch", calls=30, kd__lr=0.1, kd__square=0)
    config.data.split, config.transfer.split = "val", "val"
    config.eval_every = config.checkpoint_every = config.images_every = 30
    config.kd.crop_padding, config.kd.flip = 0, False
    summary = one_run.run(config, tmp_path)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["kd/loss"]
    last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-2]["kd/loss"]
    assert last < first
    assert summary["student_miou_last"] > summary["teacher_miou"], "five images were learned, if little of them"


def test_a_run_on_maps_goes_on_to_the_bit(place, tmp_path):
    config = config_of(place, "kd")
    runs = Runs()
    whole = runs.run(config, tmp_path / "whole")
    original = Training._end_call

    def stop_once(training):
        original(training)
        if training.progress.call == 2:
            training.stop.requested = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_end_call", stop_once)
        assert runs.run(config, tmp_path / "parts") == {}
    assert runs.run(config, tmp_path / "parts")["student_miou_last"] == whole["student_miou_last"]
    students = [load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *students)


LEARNED = {"transfer__source": "pairs:data", "warmup_calls": 0}
REFUSED = {
    **{
        f"the method {name}": (
            {"method__name": name},
            "method.name must be one of fastdfkd, .* for a segmentation teacher",
        )
        for name, entry in METHODS.items()
        if not entry.maps
    },
    "squares larger than images": ({"kd__square": SIDE + 1}, "kd.square must be at most the images' 16 pixels"),
    "squares larger than pictures": (
        {"method__name": "kd", "kd__square": 19, **LEARNED},
        "squares of at most 18 pixels from 18x24, found 19",
    ),
    "pictures that a graph does not take": (
        {"method__name": "kd", "kd__square": 0, **LEARNED},
        "takes images of 16x16, the data set has 18x24",
    ),
    "squares of images that live once": (
        {"method__name": "dafl", "kd__square": 8},
        "kd.square must be 0 for the method",
    ),
    "a class term": ({"inversion__class_weight": 0.1}, "inversion.class_weight must be 0 for a segmentation teacher"),
    "replay": ({"replay__difficulty_exponent": 0.5}, "replay must be all 0 for a segmentation teacher"),
    "a classifier as student": (
        {"student__graph": "", "student__arch": "wrn10_1"},
        "is for segmentation, the student wrn10_1 for classification: expected both for the same task",
    ),
    "data of images": ({"data__source": "digits", "data__split": "test"}, "a class for every pixel"),
    "another size than the graph's": ({"data__split": "train"}, r"takes images of 16x16, the data set has 18x24"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(place, name, tmp_path):
    changes, message = REFUSED[name]
    changes = changes | ({"transfer__dir": str(place)} if "transfer__source" in changes else {})
    config = config_of(place, "fastdfkd", **changes)
    with pytest.raises(UserError, match=message) as caught:
        one_run.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_stored_soft_labels_are_refused(place, tmp_path):
    config = config_of(place, "fastdfkd", synthesis_calls=1, soft_labels__steps=4)
    with pytest.raises(UserError, match=r"soft_labels.steps must be 0 for a segmentation teacher"):
        one_run.run(config, tmp_path)


def test_a_network_is_measured_by_the_command(place, capsys):
    source = ["--data", "pairs:data", "--data-dir", str(place), "--split", "val", "--mean", "0.5,0.5,0.5"]
    arguments = ["evaluate", str(place / "graph"), *source, "--std", "0.5,0.5,0.5"]
    evaluate.main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["iou"]) == [f"class {number}" for number in range(CLASSES)]
    evaluate.main(arguments)
    assert f"mIoU {found['miou']:.2f} %, pixel accuracy {found['pixel_accuracy']:.2f} %" in capsys.readouterr().out


def test_the_overlay_shows_pictures_labels_and_predictions(place, tmp_path):
    out = tmp_path / "sub" / "overlay.png"
    graph = str(place / "graph")
    source = ["--data", "pairs:data", "--data-dir", str(place), "--split", "val[:5]", "--mean", "0.5,0.5,0.5"]
    overlay.main(["overlay", graph, graph, *source, "--std", "0.5,0.5,0.5", "--out", str(out)])
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (5 * (SIDE + 1), 4 * (SIDE + 1), 3)
    dataset = data.load("pairs:data", "val", data_dir=place)
    np.testing.assert_array_equal(sheet[:SIDE, :SIDE], dataset.images[0])
    colours = overlay.palette(CLASSES)
    assert len(np.unique(colours, axis=0)) == CLASSES
    assert colours.any(1).all(), "black is left to pixels without a class"
    truth = sheet[:SIDE, SIDE + 1 : 2 * SIDE + 1]
    np.testing.assert_allclose(truth[:2], 0.4 * dataset.images[0, :2], atol=0.51)
    expected = 0.4 * dataset.images[0, 2:] + 0.6 * colours[dataset.labels[0, 2:]]
    np.testing.assert_allclose(truth[2:], expected, atol=0.51)
    np.testing.assert_array_equal(*(sheet[:, i * (SIDE + 1) : i * (SIDE + 1) + SIDE] for i in (2, 3)))


def test_pictures_without_maps_have_predictions_only(place, tmp_path):
    (tmp_path / "pictures" / "unlabelled").mkdir(parents=True)
    images = data.load("pairs:data", "val", data_dir=place).images[:2]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / "unlabelled" / f"{i}.png")
    source = ["--data", "folder:pictures", "--data-dir", str(tmp_path), "--split", "train", "--mean", "0.5,0.5,0.5"]
    out = tmp_path / "overlay.png"
    overlay.main(["overlay", str(place / "graph"), *source, "--std", "0.5,0.5,0.5", "--across", "2", "--out", str(out)])
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (SIDE + 1, 4 * (SIDE + 1), 3)
    for i, image in enumerate(images):
        shown = sheet[:SIDE, 2 * i * (SIDE + 1) :]
        np.testing.assert_array_equal(shown[:, :SIDE], image)
        painted = (shown[:, SIDE + 1 : 2 * SIDE + 1] - 0.4 * image) / 0.6
        apart = np.abs(painted[..., None, :] - overlay.palette(CLASSES)).max(-1).min(-1)
        assert apart.max() < 1, "every pixel has the colour of a class"


def test_photographs_of_mixed_sizes_are_shown_by_their_middles(place, tmp_path, capsys):
    """And the colour of each class is told."""
    (tmp_path / "pictures" / "any").mkdir(parents=True)
    for i, shape in enumerate([(40, 60), (50, 30)]):
        Image.new("RGB", shape, (90, 90, 90)).save(tmp_path / "pictures" / "any" / f"{i}.png")
    command = ["overlay", str(place / "graph"), "--data", "folder:pictures", "--data-dir", str(tmp_path)]
    command += ["--split", "train", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--out", str(tmp_path / "o.png")]
    with pytest.raises(UserError, match=r"found 2 sizes .*give a crop \(--crop"):
        overlay.main(command)
    overlay.main([*command, "--crop", "1"])
    assert np.asarray(Image.open(tmp_path / "o.png")).shape == (2 * (SIDE + 1), 2 * (SIDE + 1), 3)
    legend = capsys.readouterr().out.splitlines()[1:]
    assert legend == [f"  #{bytes(colour).hex()} class {i}" for i, colour in enumerate(overlay.palette(CLASSES))]


def test_a_classifier_has_no_overlay(place, tmp_path):
    source = ["--data", "pairs:data", "--data-dir", str(place), "--split", "val", "--out", str(tmp_path / "x.png")]
    with pytest.raises(UserError, match="a classifier: expected a network for segmentation"):
        overlay.main(["overlay", str(data.digits.TEACHER_PATH), *source])
    with pytest.raises(UserError, match="at least 1 picture across, found 0"):
        overlay.main(["overlay", str(data.digits.TEACHER_PATH), *source, "--across", "0"])
    assert not (tmp_path / "x.png").exists()


def test_two_devices_learn_and_measure_maps_as_one(place, tmp_path):
    small = {"calls": 1, "kd__steps_per_call": 1, "kd__steps_per_dispatch": 1}
    one = one_run.run(config_of(place, "kd", **small), tmp_path / "one")
    small |= {"parallel__cpu_devices": 2, "parallel__batch_devices": 2}
    config = tmp_path / "two.py"
    config.write_text(
        f"import pathlib\nimport sys\n\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from test_segmentation import config_of\n\n\n"
        f"def get_config():\n    return config_of(pathlib.Path({str(place)!r}), 'kd', **{small!r})\n"
    )
    line = [sys.executable, "-m", "fastdfkd_jax.main", f"--config={config}", f"--workdir={tmp_path / 'two'}"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    assert two["devices"] == ["cpu", "cpu"]
    students = [load_file(tmp_path / name / "student.safetensors") for name in ("one", "two")]
    # BatchNorm's sums are taken in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *students)
    for name in ("teacher_miou", "student_miou_last"):  # a few of 1,280 pixels may be decided by rounding
        np.testing.assert_allclose(two[name], one[name], atol=0.5)
