"""The contents of `import fastdfkd_jax`, and the packages that it does not load."""

import doctest
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import fastdfkd_jax as fd

# Of its name, and of what it imports that takes time.
LAZY = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "torch")


EXAMPLES = [
    example
    for module in (fd.losses, fd.meta, fd.moments)
    for example in doctest.DocTestFinder(exclude_empty=True).find(
        module, globs={"fd": fd, "jax": jax, "jnp": jnp, "optax": optax}
    )
    if example.examples
]


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", [name for name in fd.__all__ if name != "__version__"])
def test_each_name_is_there_and_is_told(name):
    assert getattr(fd, name) is not None
    assert name in dir(fd)


def test_another_name_is_told_as_python_does():
    with pytest.raises(AttributeError, match="module 'fastdfkd_jax' has no attribute 'nothing'"):
        fd.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_else():
    loaded = python("import fastdfkd_jax, sys; print(*sys.modules)").split()
    assert not set(LAZY) & set(loaded)


def test_a_study_of_meta_gradients_needs_neither_data_nor_checkpoints():
    code = "import fastdfkd_jax as fd, sys; fd.meta.adapt, fd.losses.feature, fd.methods, fd.models.build"
    loaded = python(f"{code}; print(*sys.modules)").split()
    assert "jax" in loaded
    assert not {"orbax", "tensorflow_datasets", "torch", "PIL"} & set(loaded)


def test_commands_start_without_torch_and_tensorflow():
    doors = "main", "evaluate", "pretrain", "overlay", "report"
    packages = "compare", "export", "convert"
    names = [*doors, *(f"{name}.__main__" for name in packages)]
    loaded = python(f"import {', '.join(f'fastdfkd_jax.{name}' for name in names)}, sys; print(*sys.modules)").split()
    assert {f"fastdfkd_jax.{name}" for name in names} <= set(loaded)
    assert not {"torch", "tensorflow"} & set(loaded)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("fastdfkd_jax."))
def test_the_examples_of_docstrings_give_what_they_show(example):
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)


def test_whatever_computes_on_trees_has_an_example():
    shown = {example.name for example in EXAMPLES}
    for module in (fd.meta, fd.moments):
        found = inspect.getmembers(module, inspect.isfunction)
        functions = {f"{module.__name__}.{name}" for name, function in found if function.__module__ == module.__name__}
        assert functions <= shown, functions - shown
    assert len(EXAMPLES) > 15
