"""Compiled programs are kept for the next run of the same, in a folder that fits the machine."""

import os
import time

import jax
import pytest
from runs import tiny_config

from fastdfkd_jax.training import compiled_programs
from fastdfkd_jax.training.one_run import set_up_jax


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder is the user's cache folder, and JAX has no cache."""
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_run_keeps_its_programs_in_the_users_cache_folder(home):
    set_up_jax(tiny_config())
    (processor,) = (home / "fastdfkd_jax" / "compiled").iterdir()
    assert jax.config.values["jax_compilation_cache_dir"] == str(processor)


@pytest.mark.parametrize(("asked", "expected"), [("", None), ("mine", "mine")])
def test_another_folder_or_none_can_be_asked_for(home, asked, expected):
    set_up_jax(tiny_config(compilation_cache=asked))
    assert jax.config.values["jax_compilation_cache_dir"] == expected
    assert not any(home.iterdir())


def test_a_cache_that_jax_has_stays(home):
    jax.config.update("jax_compilation_cache_dir", "jaxs")
    set_up_jax(tiny_config())
    assert jax.config.values["jax_compilation_cache_dir"] == "jaxs"


def test_a_folder_that_cannot_be_written_is_no_fault(home):
    (home / "fastdfkd_jax").write_text("a file")
    assert compiled_programs.folder("auto") is None


def test_programs_of_months_ago_are_removed(home):
    place = compiled_programs.folder("auto")
    assert place is not None
    for name, days in (("old", 61), ("new", 59)):
        (place / name).touch()
        os.utime(place / name, times=(time.time() - days * 86400,) * 2)
    compiled_programs.folder("auto")
    assert [path.name for path in place.iterdir()] == ["new"]
