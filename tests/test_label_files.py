"""Soft labels on disk: what comes back, what is refused, and what damage does."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from toy_network import toy_network

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import distill, soft_labels
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool.label_files import Description, LabelFiles, check

VIEWS = augment.ViewOptions(crop_padding=2, flip=True, cutmix=0.5)
DESCRIPTION = Description(
    teacher="aa",
    arch="wrn16_1",
    mean=(0.5,),
    std=(0.25,),
    precision="float32",
    classes=10,
    pool="bb",
    pool_size=50,
    seed=0,
    batch=6,
    steps=4,
    top_k=3,
    temperature=4.0,
    views=VIEWS,
)


def steps(description, index=0):
    """Labels of a shard, different for each index."""
    rng = np.random.default_rng(index)
    promised = soft_labels.shapes(description.classes, description.top_k, description.views, description.batch)

    def draw(leaf):
        values = rng.integers(0, 2 if leaf.dtype == np.bool_ else 200, (description.steps, *leaf.shape))
        return values.astype(leaf.dtype)

    return jax.tree.map(draw, promised)


def filled(directory, count=2, description=DESCRIPTION):
    files = LabelFiles(directory, description)
    for index in range(count):
        files.write(index, steps(description, index))
    return files


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert [leaf.dtype for leaf in jax.tree.leaves(one)] == [leaf.dtype for leaf in jax.tree.leaves(other)]


def varied(**changes):
    views = {name: value for name, value in changes.items() if hasattr(VIEWS, name)}
    others = {name: value for name, value in changes.items() if name not in views}
    return dataclasses.replace(DESCRIPTION, views=dataclasses.replace(VIEWS, **views), **others)


@pytest.mark.parametrize(
    "changes", [{}, {"top_k": 0}, {"least_crop": 0.3}, {"crop_padding": 0, "flip": False, "cutmix": 0}]
)
def test_shards_come_back_as_they_were(tmp_path, changes):
    description = varied(**changes)
    filled(tmp_path / "labels", 2, description)
    again = LabelFiles(tmp_path / "labels", description)
    assert again.count == 2
    for index in range(2):
        assert_equal(again.read(index), steps(description, index))
    with pytest.raises(AssertionError):
        assert_equal(again.read(0), steps(description, 1))


@pytest.mark.parametrize("changes", [{}, {"top_k": 0}, {"least_crop": 0.3}])
def test_a_shard_is_as_large_as_was_computed(tmp_path, changes):
    description = varied(batch=64, steps=20, **changes)
    filled(tmp_path, 1, description)
    arrays = len(jax.tree.leaves(steps(description)))
    found = (tmp_path / "000000.npz").stat().st_size
    # Beside its bytes each array has a header of 128 and two entries of the archive.
    assert 0 < found - description.bytes_per_shard < arrays * 400
    expected = 20 * 64 * soft_labels.bytes_per_view(10, description.top_k, description.views, 64)
    assert description.bytes_per_shard == round(expected)


def test_shards_after_a_gap_do_not_count(tmp_path):
    files = filled(tmp_path, 3)
    (tmp_path / "000001.npz").unlink()
    assert files.count == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "cc"}, "teacher: 'aa' there, 'cc' now"),
        ({"pool_size": 51}, "pool_size: 50 there, 51 now"),
        ({"temperature": 5.0, "batch": 8}, "batch: 6 there, 8 now, temperature: 4.0 there, 5.0 now"),
        ({"top_k": 0}, "temperature: 4.0 there, 'any' now, top_k: 3 there, 0 now"),
        ({"least_crop": 0.25}, "views.least_crop: 0.0 there, 0.25 now"),
        ({"cutmix_alpha": 0.2}, "views.cutmix_alpha: 1.0 there, 0.2 now"),
    ],
)
def test_a_folder_of_other_labels_is_refused_and_left_alone(tmp_path, changes, said):
    filled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds other soft labels") as caught:
        LabelFiles(tmp_path, varied(**changes))
    assert f"({said}): use another folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_part_of_a_description_is_compared(tmp_path):
    filled(tmp_path, 0)
    flat = {**dataclasses.asdict(DESCRIPTION), **dataclasses.asdict(VIEWS)}
    del flat["views"]
    assert len(flat) == 18
    other = {str: lambda value: f"{value}x", tuple: lambda value: (*value, 1.0)}
    other[float] = lambda value: 0.25 if value != 0.25 else 0.5  # within every range
    for name, value in flat.items():
        with pytest.raises(UserError, match=rf"{name}: "):
            check(tmp_path, varied(**{name: other.get(type(value), lambda value: value + 1)(value)}))
    check(tmp_path, DESCRIPTION)


def test_all_logits_work_at_any_temperature(tmp_path):
    filled(tmp_path, 1, varied(top_k=0))
    assert LabelFiles(tmp_path, varied(top_k=0, temperature=20.0)).count == 1


def test_a_check_writes_nothing(tmp_path):
    check(tmp_path / "absent", DESCRIPTION)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"3"])
def test_a_spoiled_description_is_refused(tmp_path, content):
    filled(tmp_path)
    (tmp_path / "description.json").write_bytes(content)
    with pytest.raises(UserError, match=r"description.json is not a description of soft labels"):
        LabelFiles(tmp_path, DESCRIPTION)


def test_shards_without_a_description_are_refused(tmp_path):
    filled(tmp_path)
    (tmp_path / "description.json").unlink()
    with pytest.raises(UserError, match=r"holds shards of labels but no description.json that describes them"):
        LabelFiles(tmp_path, DESCRIPTION)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged"),
        (lambda path: np.savez(path, rows=np.zeros(3)), "is damaged"),
    ],
)
def test_a_spoiled_shard_is_named(tmp_path, spoil, message):
    files = filled(tmp_path)
    spoil(tmp_path / "000001.npz")
    assert_equal(files.read(0), steps(DESCRIPTION, 0))
    with pytest.raises(UserError, match=rf"000001.npz {message}.*restore it, or delete it") as caught:
        files.read(1)
    assert "\n" not in str(caught.value)


def test_a_changed_bit_is_found_or_means_nothing(tmp_path):
    """Every seventh byte, so that each part of the archive is met: contents, headers and directory."""
    files = filled(tmp_path, 1)
    path, expected = tmp_path / "000000.npz", files.read(0)
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = files.read(0)
        except UserError:
            refused += 1
        else:
            assert_equal(found, expected)
    assert refused > 0.3 * len(content) / 7


def test_a_shard_of_other_steps_is_refused(tmp_path):
    files = filled(tmp_path / "one", 1)
    filled(tmp_path / "two", 1, varied(steps=5))
    (tmp_path / "two" / "000000.npz").rename(tmp_path / "one" / "000000.npz")
    with pytest.raises(UserError, match=r"000000.npz has rows as int32\[5, 6\], expected int32\[4, 6\]"):
        files.read(0)
    with pytest.raises(ValueError, match="steps must have"):
        files.write(0, steps(varied(steps=5)))


def test_the_description_is_plain_json(tmp_path):
    filled(tmp_path, 0)
    assert json.loads((tmp_path / "description.json").read_text()) == DESCRIPTION.record


def test_a_student_learns_the_same_from_the_disk(tmp_path):
    """As in a run: the teacher labels a shard in one program, a student takes its steps in another."""
    network = toy_network()
    description = varied(pool_size=20, batch=6, steps=3)
    label = soft_labels.make_labeller(network, description.views, description.temperature, description.top_k)
    optimizer = distill.sgd(lambda _: 0.05, 0.9, 0.0)
    loss = kd_loss(description.temperature)
    step = distill.make_step_from_stored(network, optimizer, loss, description.temperature)
    images = jax.random.uniform(jax.random.key(0), (20, *network.spec.input_shape))
    teacher_vars, student_vars = (jax.jit(network.init)(jax.random.key(seed)) for seed in (1, 2))

    @jax.jit
    def label_steps(teacher_vars, keys):
        def one(_, key):
            row_key, view_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (description.batch,), 0, description.pool_size)
            return None, soft_labels.LabelledViews(rows, *label(teacher_vars, images[rows], view_key))

        return jax.lax.scan(one, None, keys)[1]

    @jax.jit
    def learn(state, labelled):
        def one(state, told):
            return step(state, images[told.rows], told.view, told.labels, jax.random.key(0))

        return jax.lax.scan(one, state, labelled)

    files = LabelFiles(tmp_path, description)
    states = [distill.from_variables(student_vars, optimizer)] * 2
    for index in range(2):
        made = label_steps(teacher_vars, jax.random.split(jax.random.key(index), description.steps))
        files.write(index, made)
        states = [learn(state, told)[0] for state, told in zip(states, (made, files.read(index)), strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0].step == 6
    assert np.any(np.asarray(states[0].params["readout"]) != student_vars["params"]["readout"])
