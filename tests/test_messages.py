"""The dialect of errors: in the source, and with long names, paths and lists."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from runs import ROOT
from test_language import offences

from fastdfkd_jax.cli import config_flags
from fastdfkd_jax.cli.command import say
from fastdfkd_jax.compare import comparison
from fastdfkd_jax.convert import choosing, guess
from fastdfkd_jax.convert.graph import read_graph
from fastdfkd_jax.data import dataset, image_folder, maps
from fastdfkd_jax.errors import LONGEST_LINE, UserError, listed
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.models.architectures import build
from fastdfkd_jax.pretrain import _expect_keys
from fastdfkd_jax.training.checkpoint import require_same_run

SOURCES = [path for folder in ("fastdfkd_jax", "configs") for path in sorted((ROOT / folder).rglob("*.py"))]
LONGEST_LITERAL = 240  # characters of a message besides its values
AVOIDED = re.compile(
    r"\b(got|wants|tells|serves?|anew|likewise|by hand|of its own|goes on)\b"
    r"|\b(is|are) no (option|tensor|picture|state|feature)"
)
# A message may begin with a name from the code.
BEGINNING = re.compile(r"[a-z\0\-'{]|JAX\b|NYUv2\b|Forms\.")


def literal(node: ast.expr) -> str | None:
    """The text of a string, with a zero character for every value in it; None for any other expression."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages() -> list[tuple[str, str]]:
    """(place, text) of every UserError whose message is written where it is made."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError"):
                continue
            if node.args and (text := literal(node.args[0])) is not None:
                found.append((f"{path.name}:{node.lineno}", text))
    return found


def faults(text: str) -> list[str]:
    return [
        *(["ends with a full stop"] if text.endswith(".") and not text.endswith("...") else []),
        *(["begins with a capital"] if not BEGINNING.match(text) else []),
        *(["has several lines"] if "\n" in text else []),
        *(["is too long"] if len(text) >= LONGEST_LITERAL else []),
        *[f"says {word[0]!r}" for word in AVOIDED.finditer(text)],
        *offences(text),
    ]


def test_messages_have_one_dialect():
    found = messages()
    assert len(found) > 250
    assert not [(place, text, wrong) for place, text in found if (wrong := faults(text))]


def test_the_check_finds_what_it_looks_for():
    assert faults("Expected x, got y.") == ["ends with a full stop", "begins with a capital", "says 'got'"]
    assert len(faults("\0 is no option:\n" + "x" * LONGEST_LITERAL)) == 3
    assert not faults("\0 must be at least \0, found \0: lower kd.batch")


def test_most_messages_say_how_to_fix_the_fault():
    """After a colon or a semicolon, or by naming the expected value."""
    without = [text for _, text in messages() if not re.search(r"[:;] |expected|\bmust\b", text)]
    assert len(without) < 25, without  # parts of messages, such as what an unreadable pickle asks for


# --- Long inputs

LONG = "a" * 60
NAMES = [f"{LONG}.{number}.running_mean" for number in range(300)]


@pytest.fixture
def deep(tmp_path) -> Path:
    """A folder whose path has at least 120 characters."""
    folder = tmp_path / ("folder-" + "x" * max(20, 112 - len(str(tmp_path))))
    folder.mkdir()
    assert len(str(folder)) >= 120
    return folder


def no_tensor(_: object) -> bool:
    return False


def unpaired(deep: Path) -> None:
    for number in range(300):
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(deep / f"{number:03d}{LONG}.png")
    maps.read_folders(deep, deep.parent, dataset.parse_split("val"), maps.Classes(None), None)


def unknown_class(deep: Path) -> None:
    found = dataset.Dataset(
        np.zeros((1000, 2, 2, 3), np.uint8), np.arange(1000, dtype=np.int32), tuple(NAMES * 4)[:1000]
    )
    dataset.renumbered(found, [f"class {number} {LONG}" for number in range(1000)], f"folder:{deep}")


def other_classes(deep: Path) -> None:
    for split in ("train", "val"):
        for number in range(300 if split == "val" else 2):
            (deep / split / f"{number}{LONG}{split}").mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(next((deep / split).glob("1a*")) / "1.png")
    image_folder.read(deep, "val", None)


def unknown_operations(deep: Path) -> None:
    nodes = [{"name": name, "op": name, "args": {}} for name in NAMES]
    read_graph._check_nodes(deep, {"images": "x", "entries": {}, "nodes": nodes, "output": "x"})


def unknown_split(deep: Path) -> None:
    raise dataset.unknown_split("test", f"folder:{deep}", [name[-30:] for name in NAMES])


CASES = {
    "files without their mask": (unpaired, "found files without the other: "),
    "1,000 class names": (unknown_class, "write the names as"),
    "class folders of one split": (other_classes, "give both the same class names"),
    "operations of a graph": (unknown_operations, "replace them in the PyTorch module"),
    "splits of a source": (unknown_split, "expected one of "),
    "entries of a checkpoint": (lambda _: guess.guess_arch({name: np.zeros(1) for name in NAMES}), "--arch"),
    "keys of a file": (
        lambda _: choosing.find_weights(dict.fromkeys(NAMES, 1), choosing.Choice(key=LONG), no_tensor),
        "expected one of the file's keys, found",
    ),
    "values that are no tensors": (
        lambda _: choosing.find_weights(dict.fromkeys(NAMES, object()), choosing.Choice(), no_tensor),
        "not a state dictionary",
    ),
    "entries that --ignore misses": (
        lambda _: choosing.trim(dict.fromkeys(NAMES, np.zeros(1)), choosing.Choice(ignore=(f"{LONG}*x",))),
        "matches no entry: the file has",
    ),
    "runs of a comparison": (
        lambda _: comparison._chosen("none", dict.fromkeys(f"run-{n}-{LONG}" for n in range(300))),  # type: ignore[arg-type]
        "no run matches 'none'",
    ),
    "keys of a config": (
        lambda _: config_flags._require_known(
            "--config.learning=1", ConfigDict({f"{LONG}_{n}": n for n in range(300)})
        ),
        "has no key 'learning': the nearest are",
    ),
    "keys of a section": (lambda _: _expect_keys("data", dict.fromkeys(NAMES), set(NAMES[:200])), "unknown: "),
    "an architecture": (lambda _: build(NetworkSpec("x" * 500, 10, 32, 3, (0.0,) * 3, (1.0,) * 3)), "docs/models.md"),
}


@pytest.mark.parametrize("case", CASES)
def test_long_inputs_give_short_messages(deep, case):
    make, expected = CASES[case]
    with pytest.raises(UserError) as caught:
        make(deep)
    text = str(caught.value)
    assert expected in text
    assert len(f"error: {text}") < LONGEST_LINE, text


def test_differing_configs_are_all_named_by_verbose_alone(capsys):
    identity = {f"section.key_{number}": number for number in range(300)}
    with pytest.raises(UserError) as caught:
        require_same_run(identity, {key: -value - 1 for key, value in identity.items()}, "folder")
    say(str(caught.value), verbose=False)
    short = capsys.readouterr().err.rstrip("\n")
    assert len(short) <= LONGEST_LINE
    assert short.startswith("error: folder is of another configuration (section.key_0: 0 there, -1 now")
    assert short.endswith("use a new workdir")
    say(str(caught.value), verbose=True)
    whole = capsys.readouterr().err
    assert all(f"{key}: " in whole for key in identity)


def test_a_list_counts_what_it_leaves_out():
    assert listed(["a", "b"]) == "a, b"
    assert listed(NAMES, 2, 10).endswith(" and 298 more")
    assert len(listed(NAMES, 2, 10)) == 10 + 2 + 10 + len(" and 298 more")
