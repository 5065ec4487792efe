"""The structure that the design promises: which room may import which, and what an algorithm may not touch."""

import ast
import collections
import re
import subprocess
import sys

import pytest
from structure import DOORS, MODULES, PACKAGE, ROOMS, imports, rooms, svg, tree_of

from fastdfkd_jax import cpu_conv

ALGORITHMS = {"augmentation", "cpu_conv", "distillation", "losses", "meta", "methods", "models", "moments"}
# What computing needs; anything else in an algorithm room would be input, output or a device. NumPy is for constants.
PURE = {"__future__", "collections", "dataclasses", "fractions", "functools", "math", "re", "typing"}
PURE |= {"jax", "flax", "numpy", "optax"}
# May not know these, though they come before: an algorithm has no file, no device and no argument.
NOT_PURE = {"cli", "storage", "distributed", "data", "convert"}
ALIKE = {"__init__", "__main__", "base"}  # names that several files bear


def is_algorithm(parts):
    return parts[0] in ALGORITHMS or parts in {("pool", "sampling"), ("evaluation", "scores")}


def test_only_networks_use_the_convolutions_and_only_by_their_face():
    """Everything behind the three functions, such as minimal filtering or chunks, is used nowhere else."""
    used = {}
    for parts in MODULES:
        names = {name for name in imports(parts) if name.startswith("fastdfkd_jax.cpu_conv")}
        if names and parts[0] != "cpu_conv":
            used[parts] = names
    assert {parts[:2] if parts[0] == "convert" else parts[:1] for parts in used} == {("models",), ("convert", "graph")}
    assert set().union(*used.values()) <= {f"fastdfkd_jax.cpu_conv.{name}" for name in cpu_conv.__all__}


@pytest.mark.parametrize("parts", MODULES, ids="/".join)
def test_imports_go_down_only(parts):
    if parts == ("__init__",):
        return
    order = ROOMS + DOORS
    assert parts[0] in order, "every module is in one room"
    assert rooms(parts) <= {*order[: order.index(parts[0])], parts[0]}


@pytest.mark.parametrize("parts", [parts for parts in MODULES if is_algorithm(parts)], ids="/".join)
def test_algorithms_do_no_input_or_output(parts):
    assert not rooms(parts) & NOT_PURE
    outside = {name.split(".")[0] for name in imports(parts)} - {"fastdfkd_jax"}
    assert outside <= PURE, outside - PURE
    nodes = list(ast.walk(tree_of(parts)))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input"}
    assert not {"load", "loadtxt", "fromfile", "save", "savez", "savetxt", "tofile"} & {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }
    source = PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
    assert "@jax.jit" not in source, "compilation happens at the edge"


def test_a_config_ends_where_a_run_is_built():
    """Beyond there are options, each with its own class; `options.read` makes them of any mapping."""
    seen = {parts[:2] for parts in MODULES if any("ml_collections" in name for name in imports(parts))}
    assert {parts[0] for parts in seen} == {"cli", "training", "compare"}
    assert {parts[1] for parts in seen if parts[0] == "training"} == {"build", "config_checks", "one_run"}
    in_compare = {parts[1] for parts in seen if parts[0] == "compare"}
    assert in_compare == {"__main__", "child", "comparison", "synthesis"}, "tables and figures are made of plain values"


@pytest.mark.parametrize("parts", [parts for parts in MODULES if parts[0] != "convert"], ids="/".join)
def test_torch_and_tensorflow_are_never_needed(parts):
    """Torch is imported inside the converter only, TensorFlow nowhere: both are extras."""
    assert not {name.split(".")[0] for name in imports(parts)} & {"torch", "tensorflow", "torchvision"}


def test_everything_can_be_imported_without_either():
    names = ["fastdfkd_jax." + ".".join(parts) for parts in MODULES if parts[-1] not in ("__init__", "__main__")]
    names = [name for name in names if not name.endswith("make_digits")]  # needs scikit-learn, which made the digits
    code = "import importlib, sys; sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
    code += f"for name in {names!r}: importlib.import_module(name)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_two_files_have_one_name():
    counts = collections.Counter(parts[-1] for parts in MODULES)
    assert not [name for name, count in counts.items() if count > 1 and name not in ALIKE]


LONGEST_FILE, LONGEST_FUNCTION = 300, 60  # lines
ONE_FILE = ("convert", "record")  # that users copy to where this package is not installed


@pytest.mark.parametrize("parts", MODULES, ids="/".join)
def test_files_and_functions_are_short(parts):
    text = PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE or parts == ONE_FILE
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert not [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= LONGEST_FUNCTION]


def test_the_picture_is_of_these_rooms():
    drawn = (PACKAGE.parent / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert drawn == svg(), "run: python tests/structure.py docs/rooms.svg"


def cited():
    """Every section and trap of docs/method.md that a file names, with the file."""
    root = PACKAGE.parent
    for folder in ("fastdfkd_jax", "configs", "benchmarks", "tests", "docs"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".md"):
                text = path.read_text(encoding="utf-8")
                for places in re.findall(r"METHOD (?:sections? )?((?:T?\d[\d.]*)(?:(?:, | and )T?\d[\d.]*)*)", text):
                    yield from ((place.rstrip("."), path.name) for place in re.split(", | and ", places))


def test_every_citation_of_the_method_leads_somewhere():
    page = (PACKAGE.parent / "docs" / "method.md").read_text(encoding="utf-8")
    there = set(re.findall(r"^#+ ([\d.]*\d)", page, re.M)) | set(re.findall(r"^\| (T\d+) \|", page, re.M))
    found = list(cited())
    assert len(found) > 150
    assert not [(place, name) for place, name in found if place not in there]
