"""Fixtures and settings of the whole suite."""

import logging
import pathlib
import sys

import pytest

from fastdfkd_jax import configuration

SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and real PyTorch teachers beside the project; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data and teachers in {SHARED.parent.name}/{SHARED.name} beside the project")
    return SHARED


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """Runs a command's main function as the program, within tmp_path; gives exit status, stdout and stderr."""
    logger = logging.getLogger("fastdfkd_jax")
    before = logger.handlers[:], logger.level, logger.propagate
    monkeypatch.chdir(tmp_path)

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            configuration.run_command(main)
        return caught.value.code, *capsys.readouterr()

    yield run
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
