"""The page of a run: what it shows, that it needs nothing from outside, and its advice."""

import html.parser
import json
import re

import numpy as np
import pytest
from runs import ROOT

from fastdfkd_jax.training import described, run_page
from fastdfkd_jax.training.class_rows import ClassRow, Gallery
from fastdfkd_jax.training.layer_statistics import Layer

SUMMARY = {
    "teacher": "wrn16_1", "student": "wrn10_1", "method": "fastdfkd", "score": "accuracy",
    "teacher_accuracy": 99.0, "student_accuracy_last": 98.4, "images": 24, "total_seconds": 12.0,
}  # fmt: skip
RECORDS = [
    {"call": call, "synthesis/on_target": 0.5 + 0.1 * call, "synthesis/diversity": 0.3, "kd/agreement": 0.9}
    for call in range(1, 5)
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": 3, "note": "<script>"}}))
    return tmp_path


@pytest.fixture
def gallery():
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 8, 1), np.uint8)
    sure = np.linspace(0.6, 1, 8)
    return Gallery(tuple(ClassRow(i, name, images[i], sure) for i, name in enumerate(("zero", "one", "<two>"))), 3)


class Checker(html.parser.HTMLParser):
    """Open tags, and everything that a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "path", "polyline", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(folder, gallery):
    content = run_page.write(folder, SUMMARY, gallery).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(content)
    assert checker.open == []
    assert len(checker.sources) == 3 * 8, "eight images of each class"
    assert all(source.startswith("data:image/png;base64,") for source in checker.sources)
    assert "&lt;script&gt;" in content
    assert "<script>" not in content


def test_the_page_shows_scores_classes_curves_and_how_to_load(folder, gallery):
    content = run_page.write(folder, SUMMARY, gallery).read_text(encoding="utf-8")
    for text in ("student  98.40 %, 0.60 points below", "zero", "&lt;two&gt;", "Images on target", "fd.load_network"):
        assert text in content
    assert content.count("<svg") == 3, "curves of what was recorded only"
    (points,) = re.findall(r"Images on target.*?points=\"([^\"]*)\"", content, re.S)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights == sorted(heights, reverse=True), "it rises"


def test_the_page_shows_the_confidence_and_how_many_classes_are_left_out(folder, gallery):
    content = run_page.write(folder, SUMMARY, gallery).read_text(encoding="utf-8")
    assert "<figcaption>zero, 80 %</figcaption>" in content
    assert content.count('title="60 %"') == 3
    assert "classes are shown" not in content
    content = run_page.write(folder, SUMMARY, gallery._replace(classes=1000)).read_text(encoding="utf-8")
    assert "3 of 1,000 classes are shown." in content


def test_a_method_that_keeps_no_images_has_a_page(folder):
    assert "keeps no images" in run_page.write(folder, SUMMARY, Gallery()).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "No signal of this run is poor."),
        ({"synthesis/on_target": 0.2}, "Only 20 % of the last images are on target. Raise inversion.class_weight"),
        ({"synthesis/diversity": 0.01}, "The last images are nearly alike."),
        ({"kd/agreement": 0.5}, "Student and teacher agree on 50 % of the training images."),
    ],
)
def test_each_poor_signal_has_its_advice(changes, expected):
    (line,) = run_page.advice(SUMMARY, [record | changes for record in RECORDS])
    assert line.startswith(expected)


def test_a_student_like_that_of_noise_is_said_to_be_one():
    (line,) = run_page.advice(SUMMARY | {"noise_student_accuracy_last": 97.0}, RECORDS)
    assert "hardly better than one trained on noise" in line


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"agreement_held_out": 96.0, "noise_agreement_held_out": 25.0}, "No signal of this run is poor."),
        ({"agreement_held_out": 60.0}, "Student and teacher agree on 60 % of the held-out images. Train longer"),
        ({"agreement_held_out": 96.0, "noise_agreement_held_out": 94.0}, "On held-out images the student is hardly"),
    ],
)
def test_agreement_has_its_advice(measured, expected):
    (line,) = run_page.advice(SUMMARY | measured, RECORDS)
    assert line.startswith(expected)


def test_the_page_has_the_layers(folder):
    layers = [Layer("layer1.bn", 2.0, 1.0)]
    content = run_page.write(folder, SUMMARY, Gallery(), layers).read_text(encoding="utf-8")
    assert "layer1.bn" in content
    checker = Checker()
    checker.feed(content)
    assert checker.open == []
    assert (
        "Distance from the teacher's statistics by layer" not in run_page.write(folder, SUMMARY, Gallery()).read_text()
    )


def test_everything_that_the_records_hold_is_described():
    """Of every method, of segmentation and of training a teacher."""
    metrics, keys = set(), set()
    for path in (ROOT / "results").rglob("metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            metrics |= json.loads(line).keys()
    for path in (ROOT / "results").rglob("summary.json"):
        keys |= json.loads(path.read_text(encoding="utf-8")).keys()
    teachers = {name for name in metrics if name in described.PRETRAINING or name.startswith("test_")}
    assert teachers >= described.PRETRAINING.keys() - {"test_NAME"}
    assert not [name for name in metrics - teachers if described.metric(name) is None]
    scores = {key.replace("accuracy", "SCORE").replace("miou", "SCORE") for key in keys}
    assert len(scores) > 15
    assert scores <= described.SUMMARY.keys()


def test_the_page_of_metrics_names_each():
    content = described.page()
    for name in (*described.METRICS, *described.SUMMARY, *described.PRETRAINING):
        assert f"`{name}`\n: " in content
