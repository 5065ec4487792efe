"""Limits that readers check before they allocate."""

import json
import os

import pytest

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits


def test_the_memory_limit_is_a_share_of_the_machine_s_until_it_is_set(monkeypatch):
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert limits.max_bytes() == pytest.approx(0.75 * physical, abs=2)
    monkeypatch.setenv("FASTDFKD_MAX_GB", "0.5")
    limits.require_bytes(500_000_000, "x.npz")
    with pytest.raises(UserError, match=r"x.npz would take 1.0 GB of memory, expected at most 0.5 GB.*FASTDFKD_MAX_GB"):
        limits.require_bytes(1_000_000_000, "x.npz")


@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("FASTDFKD_MAX_PIXELS", value)
    with pytest.raises(UserError, match="FASTDFKD_MAX_PIXELS must be a number above 0"):
        limits.max_pixels()


def test_pictures_are_limited_by_their_number_of_pixels(monkeypatch):
    limits.require_pixels(13_000, 13_000, "a.png")
    with pytest.raises(UserError, match=r"a.png has 20,000 x 20,000 pixels, expected at most 178,956,970"):
        limits.require_pixels(20_000, 20_000, "a.png")
    monkeypatch.setenv("FASTDFKD_MAX_PIXELS", "4e8")
    limits.require_pixels(20_000, 20_000, "a.png")


def test_json_is_bounded_in_depth_and_size(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1]}))
    assert limits.read_json(path, "description") == {"a": [1]}
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        limits.read_json(path, "description")
    monkeypatch.setattr(limits, "MAX_JSON_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10 bytes"):
        limits.read_json(path, "description")


def test_only_regular_files_are_read(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a regular file"):
        limits.read_json(pipe, "description")
