"""Checkpoints are restored bit-identically; damage, other formats and other runs are recognised."""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax import options
from fastdfkd_jax.configs import default
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.digest import digest, file_digest
from fastdfkd_jax.training import checkpoint
from fastdfkd_jax.training.checkpoint import Checkpoints, require_same_run
from fastdfkd_jax.training.workdir import flatten

PROGRESS = {"call": 3, "seconds": 0.1, "accuracy": None}


def tree(seed: int):
    """Values whose bits are easily lost: a denormal, a NaN, a half of half precision, no array at all."""
    weights = jax.random.normal(jax.random.key(seed), (64, 32)).at[0, :2].set(jnp.array([1e-42, jnp.nan]))
    return {"net": {"w": weights, "half": jnp.full(3, 0.1, jnp.bfloat16)}, "step": jnp.int32(seed), "none": ()}


@pytest.fixture
def three(tmp_path):
    """A folder in which checkpoints 1, 2 and 3 were saved."""
    saved = Checkpoints(tmp_path / "checkpoints")
    for number in (1, 2, 3):
        saved.save(number, tree(number), PROGRESS | {"call": number})
    saved.close()
    return tmp_path / "checkpoints"


def restore(directory: Path):
    opened = Checkpoints(directory)
    try:
        return opened.restore(tree(0)), opened.latest
    finally:
        opened.close()


def numbers(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def largest_file(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert restore(tmp_path / "new") == (None, None)


def test_a_round_trip_is_equal_to_the_bit(three):
    restored, latest = restore(three)
    assert latest == 3
    assert restored is not None
    assert restored.progress == {"call": 3, "seconds": 0.1, "accuracy": None}
    assert jax.tree.structure(restored.state) == jax.tree.structure(tree(3))
    for ours, theirs in zip(jax.tree.leaves(restored.state), jax.tree.leaves(tree(3)), strict=True):
        assert isinstance(ours, jax.Array)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_the_last_two_are_kept(three):
    assert numbers(three) == {"2", "3"}


def test_saving_a_number_twice_keeps_the_first(three):
    saved = Checkpoints(three)
    saved.save(3, tree(4), PROGRESS)
    saved.close()
    restored, _ = restore(three)
    assert restored is not None
    assert int(restored.state["step"]) == 3
    assert numbers(three) == {"2", "3"}


def flip_a_bit(newest: Path) -> None:
    path = largest_file(newest / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(newest: Path) -> None:
    path = largest_file(newest / "state")
    path.write_bytes(path.read_bytes()[:100])


def lose_arrays(newest: Path) -> None:
    largest_file(newest / "state").unlink()


def lose_meta(newest: Path) -> None:
    (newest / "meta" / "metadata").unlink()


def garble_meta(newest: Path) -> None:
    (newest / "meta" / "metadata").write_text('{"format": 1, ')


def change_digest(newest: Path) -> None:
    path = newest / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0"}))


DAMAGES = [flip_a_bit, truncate, lose_arrays, lose_meta, garble_meta, change_digest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_deleted(damage, three, caplog):
    damage(three / "3")
    with caplog.at_level(logging.WARNING, checkpoint.__name__):
        restored, latest = restore(three)
    assert restored is not None
    assert digest(restored.state) == digest(tree(2))
    assert restored.progress["call"] == latest == 2
    assert numbers(three) == {"2"}
    (message,) = [record.getMessage() for record in caplog.records if record.name == checkpoint.__name__]
    assert message.startswith("checkpoint 3 cannot be used (")
    assert "\n" not in message


def test_after_damage_the_same_number_can_be_saved_again(three):
    truncate(three / "3")
    saved = Checkpoints(three)
    saved.restore(tree(0))
    saved.save(3, tree(5), PROGRESS)
    saved.close()
    restored, _ = restore(three)
    assert restored is not None
    assert int(restored.state["step"]) == 5


def test_nothing_whole_is_one_line_and_nothing_is_deleted(three):
    truncate(three / "3")
    lose_meta(three / "2")
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be used \(.*\): restore it, or start again with restart"
    ) as caught:
        restore(three)
    assert "\n" not in str(caught.value)
    assert numbers(three) == {"2", "3"}


def test_another_format_is_refused(three, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    with pytest.raises(UserError, match=r"checkpoint 3 in .* has format 2, this version reads 3") as caught:
        restore(three)
    assert "\n" not in str(caught.value)
    assert numbers(three) == {"2", "3"}


def test_another_machine_is_named_and_accepted(three, monkeypatch, caplog):
    here = checkpoint.fingerprint()
    monkeypatch.setattr(checkpoint, "fingerprint", lambda: here | {"cores": -1, "jaxlib": "0"})
    with caplog.at_level(logging.WARNING, checkpoint.__name__):
        restored, _ = restore(three)
    assert restored is not None
    assert restored.progress["call"] == 3
    assert "another machine or software (cores, jaxlib differ)" in caplog.text


def test_a_full_disk_is_a_user_s_error(three, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    saved = Checkpoints(three)
    monkeypatch.setattr(saved._manager, "save", full)
    with pytest.raises(UserError, match=r"no space left for .*checkpoints: free some"):
        saved.save(4, tree(4), PROGRESS)
    saved.close()


def test_a_digest_sees_values_names_shapes_and_dtypes(tmp_path):
    base = np.zeros((2, 3), np.float32)
    others = [base + 1, -base, base.T, base.reshape(6), base.astype(np.int32)]
    assert len({digest({"a": array}) for array in (base, *others)} | {digest({"b": base})}) == 7
    assert digest({"a": base}) == digest({"a": jnp.asarray(base)})
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file").startswith("ba7816bf"), "the SHA-256 of 'abc' in FIPS 180"


def test_every_differing_key_is_named():
    recorded = {"a": 1, "b": [1, 2], "c": "x", "gone": None, "old": 0}
    require_same_run(recorded, {"a": 1, "b": (1, 2), "c": "x", "gone": None, "old": 0}, "here")
    with pytest.raises(UserError) as caught:
        require_same_run(recorded, {"a": 2, "b": (1, 2), "c": "y", "new": 5}, "here")
    changes = "a: 1 there, 2 now, c: 'x' there, 'y' now, new: None there, 5 now, old: 0 there, None now"
    assert f"({changes})" in str(caught.value)


def test_a_record_with_old_names_is_of_the_same_run():
    require_same_run({"cmi.learning_rate": 0.1, "kd.lr": 0.2}, {"cmi.lr": 0.1, "kd.lr": 0.2}, "here")
    with pytest.raises(UserError, match=r"\(cmi.lr: 0.1 there, 0.3 now\)"):
        require_same_run({"cmi.learning_rate": 0.1}, {"cmi.lr": 0.3}, "here")


def test_a_record_with_a_removed_option_is_of_the_same_run():
    require_same_run({"fastdfkd.label_dim": 64, "kd.lr": 0.2}, {"kd.lr": 0.2}, "here")


def test_an_option_that_was_added_since_had_its_default():
    require_same_run({"calls": 3}, {"calls": 3, "kd.loss": "kl", "kd.milestones": ()}, "here")
    with pytest.raises(UserError, match=r"\(kd.loss: 'kl' there, 'decoupled' now\)"):
        require_same_run({"calls": 3}, {"calls": 3, "kd.loss": "decoupled"}, "here")


def test_every_option_of_the_default_config_has_its_default():
    present = flatten(default.get_config().to_dict())
    known = options.defaults()
    assert {key: known[key] for key in present if not key.startswith("meta.kwargs.")} == {
        key: value for key, value in present.items() if not key.startswith("meta.kwargs.")
    }


def test_a_run_may_grow_but_not_shrink_nor_where_its_checkpoint_has_no_room():
    require_same_run({"calls": 3}, {"calls": 5}, "here")
    with pytest.raises(UserError, match="calls: 3 there, 2 now"):
        require_same_run({"calls": 3}, {"calls": 2}, "here")
    replayed = {"replay.class_exponent": 1.0}
    with pytest.raises(UserError, match="calls: 3 there, 5 now"):
        require_same_run({"calls": 3, **replayed}, {"calls": 5, **replayed}, "here")


@pytest.mark.parametrize(("old", "new"), [("canonical", "cpu"), ("native", "xla"), ("auto", "auto")])
def test_a_record_of_before_its_values_were_renamed_is_of_the_same_run(old, new):
    require_same_run({"conv_gradient": old, "calls": 3}, {"conv_gradient": new, "calls": 3}, "here")
    other = {"cpu": "xla", "xla": "cpu", "auto": "cpu"}[new]
    with pytest.raises(UserError, match=f"conv_gradient: '{new}' there, '{other}' now"):
        require_same_run({"conv_gradient": old, "calls": 3}, {"conv_gradient": other, "calls": 3}, "here")
