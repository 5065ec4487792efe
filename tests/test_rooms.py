"""The structure that the design promises: which room may import which, and what an algorithm may not touch."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "fastdfkd_jax"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
ALGORITHMS = {"methods", "meta", "losses", "moments", "augment", "distill", "models", "replay"}
ALGORITHMS |= {"windows", "soft_labels", "scores"}
# What computing needs; anything else in an algorithm room would be input, output or a device. NumPy is for constants.
PURE = {"__future__", "collections", "dataclasses", "fractions", "functools", "math", "re", "typing"}
PURE |= {"jax", "flax", "numpy", "optax"}
# May be imported by the rooms or files on the left; rooms that are not listed import nothing of ours.
ALLOWED = {
    "methods": {"methods", "meta", "losses", "moments", "augment", "models", "distill"},
    "augment": {"windows"},
    "distill": {"losses", "augment", "models", "soft_labels"},
    "soft_labels": {"augment", "models"},
    "npz": {"files"},
    "label_files": {"augment", "files", "npz", "soft_labels"},
    "losses": {"moments"},
    "models": {"models"},
    "scores": {"losses", "models"},
    "supervised": {"augment", "losses", "models", "data"},
    "data": {"data", "models", "npz"},
    "data/nyuv2": {"command", "data", "files"},  # a command
    "convert": {"command", "convert", "files", "models", "npz"},
    "pool": {"replay"},
    "shards": {"files", "npz"},
    "initial": {"data", "npz", "shards"},
    "stream": {"shards"},
    "store": {"initial", "parallel", "pool", "replay", "shards", "stream"},
    "label_store": {"label_files", "parallel", "pool", "soft_labels", "store", "stream"},
    "checkpoint": {"files"},
    "evidence": {"checkpoint", "initial", "npz"},
    "diagnosis": {"models"},
    "workdir": {"checkpoint", "files", "report"},
    "command": {"signals"},
    "configuration": set(),
    "metrics": {"files"},
    "report": {"command", "files"},
    "export": {"command", "convert", "export", "files", "parallel", "shards"},
    "export/answers": {"augment", "checkpoint", "convert", "data", "export", "models", "parallel"},
    "evaluate": {"augment", "command", "convert", "data", "models", "parallel", "scores"},
}


def imports(parts):
    """Full names of the modules that a file imports, wherever in it."""
    tree = ast.parse(PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(parts):
    """The rooms of ours that a file imports, but for `errors`, `arguments` and `limits`, which anyone may import."""
    names = [name.split(".") for name in imports(parts) if name.startswith("fastdfkd_jax.")]
    return {name[1] for name in names} - {"errors", "arguments", "limits"}


@pytest.mark.parametrize("parts", MODULES, ids="/".join)
def test_a_room_imports_only_what_it_may(parts):
    if parts[0] in ALLOWED or parts[0] in ALGORITHMS:
        assert rooms(parts) <= ALLOWED.get("/".join(parts), ALLOWED.get(parts[0], set()))


@pytest.mark.parametrize("parts", [parts for parts in MODULES if parts[0] in ALGORITHMS], ids="/".join)
def test_algorithms_do_no_input_or_output(parts):
    outside = {name.split(".")[0] for name in imports(parts)} - {"fastdfkd_jax"}
    assert outside <= PURE, outside - PURE
    source = PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
    called = {node.func.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
              and isinstance(node.func, ast.Name)}  # fmt: skip
    assert not called & {"open", "print", "input"}
    assert not {"load", "loadtxt", "fromfile", "save", "savez", "savetxt", "tofile"} & {
        node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
    }
    assert "@jax.jit" not in source, "compilation happens at the edge"


def test_only_the_host_side_sees_a_config():
    seen = {parts[0] for parts in MODULES if any("ml_collections" in name for name in imports(parts))}
    assert seen == {"main", "train", "assemble", "compare", "configuration", "plan", "programs", "registry", "validate"}
    compare = [parts for parts in MODULES if parts[0] == "compare"]
    in_compare = {parts[1] for parts in compare if "ml_collections" in " ".join(imports(parts))}
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
