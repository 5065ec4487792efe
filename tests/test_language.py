"""Plain English: patterns that documents and docstrings avoid."""

import ast
import re

import pytest
from runs import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CODE = [path for folder in ("fastdfkd_jax", "configs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
# Pattern: the plain way.
AVOIDED = {
    r"\bto the bit\b": "bit-identical",
    r"\bnone of ours\b": "name what it is",
    r"\bis given back\b": "is returned",
    r"\band the like\b": "name them, or leave it out",
    r"\bgoes? on with the same command\b": "run the same command to continue",
}


def offences(text):
    return [f"{found[0]!r}: {plain}" for pattern, plain in AVOIDED.items() if (found := re.search(pattern, text))]


def docstrings(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_plain(path):
    assert not offences(path.read_text(encoding="utf-8"))


def test_docstrings_are_plain_and_begin_with_their_subject_or_verb():
    found = [(path.name, text) for path in CODE for text in docstrings(path)]
    assert len(found) > 1500
    assert not [(name, text[:80]) for name, text in found if re.match(r"(What|How|Where|Whether)\b", text)]
    assert not [(name, offence) for name, text in found for offence in offences(text)]
