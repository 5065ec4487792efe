"""Each record reaches metrics.jsonl and TensorBoard, a resumed run repeats no line, and the summary's numbers."""

import io
import json
import resource
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue] - made at import

from fastdfkd_jax.training import metric_files
from fastdfkd_jax.training.health import class_balance, near_chance
from fastdfkd_jax.training.metric_files import Metrics, Pace, peak_memory_bytes


def scalars(workdir):
    """(tag, step, value) of all event files: each record is its length, a checksum, an Event and a checksum."""
    found = []
    for path in sorted((workdir / "events").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def values_by_tag(workdir):
    """The last value of each tag."""
    found = {}
    for path in sorted((workdir / "events").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found |= {value.tag: value for value in event.summary.value}
    return found


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_record_is_a_line(tmp_path):
    metrics = Metrics(tmp_path, total_calls=2)
    metrics.write(1, {"kd/loss": 0.5, "synthesis/predicted": [1, 2]})
    assert metrics.offset == (tmp_path / "metrics.jsonl").stat().st_size, "lines are on disk as they come"
    metrics.write(2, {"kd/loss": 0.25})
    metrics.close()
    assert lines(tmp_path) == [
        {"call": 1, "kd/loss": 0.5, "synthesis/predicted": [1, 2]},
        {"call": 2, "kd/loss": 0.25},
    ]


def test_tensorboard_holds_the_scalars_and_not_the_lists(tmp_path):
    metrics = Metrics(tmp_path, total_calls=2)
    metrics.write(1, {"kd/loss": 0.5, "synthesis/predicted": [1, 2]})
    metrics.write(2, {"kd/loss": 0.25, "eval/count": 3})
    metrics.close()
    assert scalars(tmp_path) == [("kd/loss", 1, 0.5), ("kd/loss", 2, 0.25), ("eval/count", 2, 3.0)]


@pytest.mark.parametrize(("side", "channels"), [(40, 3), (2000, 1)])
def test_tensorboard_gets_pictures(tmp_path, side, channels):
    path = tmp_path / "grid.png"
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)
    metrics = Metrics(tmp_path, total_calls=2)
    metrics.picture(1, path)
    metrics.close()
    image = values_by_tag(tmp_path)["images"].image
    assert (image.height, image.width, image.colorspace) == (min(side, 1024), min(side, 1024), channels)
    with Image.open(io.BytesIO(image.encoded_image_string)) as shown:
        if side == 40:
            np.testing.assert_array_equal(np.asarray(shown), pixels)


def test_tensorboard_gets_the_configuration_once(tmp_path):
    settings = {"kd.lr": 0.1, "calls": 3, "kd.nesterov": False, "method.name": "a|b", "kd.milestones": [1, 2]}
    Metrics(tmp_path, total_calls=3, settings=settings).close()
    found = values_by_tag(tmp_path)
    (text,) = found["config"].tensor.string_val
    assert "| `kd.lr` | `0.1` |" in text.decode()
    assert "| `kd.milestones` | `[1, 2]` |" in text.decode()
    data = HParamsPluginData.FromString(found["_hparams_/session_start_info"].metadata.plugin_data.content)
    known = data.session_start_info.hparams
    assert (known["kd.lr"].number_value, known["calls"].number_value, known["method.name"].string_value) == (
        0.1, 3, "a|b",
    )  # fmt: skip
    (tmp_path / "events").rename(tmp_path / "first")
    Metrics(tmp_path, total_calls=3, call=1, settings=settings).close()
    assert values_by_tag(tmp_path) == {}


def test_a_resumed_run_cuts_off_what_it_will_write_again(tmp_path):
    first = Metrics(tmp_path, total_calls=3)
    first.write(1, {"loss": 1.0})
    offset = first.offset
    first.write(2, {"loss": 2.0})
    first.close()
    resumed = Metrics(tmp_path, total_calls=3, call=1, offset=offset)
    assert resumed.offset == offset
    assert lines(tmp_path) == [{"call": 1, "loss": 1.0}]
    resumed.write(2, {"loss": 2.5})
    resumed.close()
    assert lines(tmp_path) == [{"call": 1, "loss": 1.0}, {"call": 2, "loss": 2.5}]


def test_a_run_from_the_start_leaves_nothing_of_an_earlier_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"call": 1}\n')
    Metrics(tmp_path, total_calls=1).close()
    assert lines(tmp_path) == []


@pytest.mark.parametrize(
    ("predicted", "balance"),
    # Half of four classes: log 2 / log 4. Three to one of two: -(3/4 log2 3/4 + 1/4 log2 1/4).
    [
        ([5, 5], 1),
        ([5, 5, 5, 5], 1),
        ([8, 0, 0], 0),
        ([0, 7, 0, 0], 0),
        ([3, 0, 0, 3], 0.5),
        ([4, 0, 4, 0], 0.5),
        ([3, 1], 0.8112781),
    ],
)
def test_class_balance_by_hand(predicted, balance):
    assert class_balance(predicted) == pytest.approx(balance, abs=1e-7)


def test_a_single_class_has_no_balance_at_all():
    assert class_balance([8, 0, 0]) == 0
    assert class_balance([1, 1] + 998 * [0]) == pytest.approx(1), "two images cannot be of more classes"
    assert class_balance([0, 1, 0]) == 1


@pytest.mark.parametrize(
    ("shares", "classes", "near"),
    [
        ([0.08, 0.16, 0.12, 0.2, 0.1], 10, True),
        ([0.19, 0.22], 10, False),
        ([0.0], 10, True),
        ([0.0195], 100, True),
        ([0.0205], 100, False),
        ([0.55], 2, True),
        ([0.65], 2, False),  # twice chance would be all of them
    ],
)
def test_near_chance_is_below_twice_chance_or_ten_points_above_it(shares, classes, near):
    assert near_chance(shares, classes) == near


def test_peak_memory_is_that_of_a_process_with_jax():
    peak = peak_memory_bytes()
    # More than an interpreter and less than the whole machine; on CPU it is the kernel's figure for this process.
    assert 50e6 < peak < 1e12
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_line_about_a_call_has_its_signals_and_the_time_left(tmp_path, monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(Pace, "_now", lambda self: clock[0])
    metrics = Metrics(tmp_path, total_calls=40, afterwards="the noise control")
    caplog.set_level("INFO", "fastdfkd_jax")
    metrics.write(1, {"synthesis/on_target": 0.914, "kd/loss": 0.4567, "kd/agreement": 0.93})
    clock[0] = 3.0
    metrics.advance(1, "64 images")
    clock[0] = 123.0  # longer ones, as after a warm-up; the newest five count
    for call in range(2, 41):
        clock[0] += 10.0
        metrics.advance(call, "more")
    metrics.close()
    said = [record.getMessage() for record in caplog.records]
    first = "call 1: 64 images, on target 91%, agreement 93%, loss 0.457; 1 min 57 s left, then the noise control"
    assert said[0] == first
    assert said[1].startswith("(on target: share of the call's images that the teacher assigns to")
    assert said[2].startswith("(agreement: share of training images on which both predict")
    assert said[31].endswith("; 1 min 40 s left, then the noise control")
    assert said[-1] == "call 40: more, on target 91%, agreement 93%, loss 0.457"


def test_the_time_left_counts_no_compilation():
    pace = Pace(total_calls=2, call=0)
    before = pace._now()
    metric_files._count_compilation("/jax/core/compile/backend_compile_duration", 1000.0)
    metric_files._count_compilation("/jax/orbax/write/total_duration_secs", 5000.0)
    assert -1000.0 <= pace._now() - before < -990.0
    metric_files._count_compilation("/jax/core/compile/backend_compile_duration", -1000.0)
