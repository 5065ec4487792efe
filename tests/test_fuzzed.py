"""Damaged inputs are read or refused in one line; what once was neither is kept and read again."""

import fuzzing
import pytest

FOUND = sorted(fuzzing.CORPUS.glob("*.bin")) if fuzzing.CORPUS.is_dir() else []
# Of readers that take longer.
_MUTANTS = {"graph": 15, "onnx": 60, "matlab": 60, "tfds-features": 40, "tfds-info": 40, "tfds-records": 40}
_MUTANTS |= {"checkpoint-arrays": 3, "checkpoint-progress": 3, "checkpoint-values": 3}
# PyTorch's files are tried where it is: among the tests of parity.
READERS = [
    pytest.param(name, marks=pytest.mark.parity) if reader.needs != "numpy" else name
    for name, reader in fuzzing.READERS.items()
]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_input_is_read_or_refused_in_one_line(name):
    if package := fuzzing.missing(name):
        pytest.skip(f"needs {package}")
    with fuzzing.prepared(name) as (folder, file):
        valid = file.read_bytes()
        assert fuzzing.attempt(name, folder, file, valid), "the valid input is read"
        read = [fuzzing.attempt(name, folder, file, c) for c in fuzzing.mutants(valid, _MUTANTS.get(name, 200))]
    assert not all(read), "some damage shows"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_once_is_refused_in_one_line(path):
    name = path.stem.rpartition("-")[0]
    if package := fuzzing.missing(name):
        pytest.skip(f"needs {package}")
    with fuzzing.prepared(name) as (folder, file):
        fuzzing.attempt(name, folder, file, path.read_bytes())


def test_what_a_reader_does_not_refuse_as_it_should_is_found(monkeypatch):
    """The search itself can fail."""

    def read(folder):
        raise KeyError("a bug")

    monkeypatch.setitem(fuzzing.READERS, "npz", fuzzing.READERS["npz"]._replace(read=read))
    with fuzzing.prepared("npz") as (folder, file), pytest.raises(fuzzing.Finding, match="npz: KeyError: 'a bug'"):
        fuzzing.attempt("npz", folder, file, b"")
