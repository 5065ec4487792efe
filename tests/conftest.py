"""Fixtures and settings of the whole suite."""

import pathlib

import pytest

SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and real PyTorch teachers beside the project; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data and teachers in {SHARED.parent.name}/{SHARED.name} beside the project")
    return SHARED
