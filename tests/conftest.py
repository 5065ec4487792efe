"""Fixtures and settings of the whole suite."""

import gc
import importlib.util
import logging
import os
import pathlib
import subprocess
import sys
import tempfile


def _quick() -> str:
    """Flags with which XLA compiles faster, and results of two programs stay equal to the last bit.

    A program in one part compiles faster than in many. XLA places fused multiply-adds differently from one program to
    the next, so it must not use them. Its older kernels compile in half the time, where it still has them: XLA refuses
    to start with a flag that it has dropped.
    """
    asked = os.environ | {"XLA_FLAGS": "--help"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    known = subprocess.run(command, env=asked, capture_output=True, text=True, check=False).stderr
    flags = "--xla_cpu_max_isa=AVX --xla_cpu_parallel_codegen_split_count=1"
    return f"--xla_cpu_use_fusion_emitters=false {flags}" if "--xla_cpu_use_fusion_emitters=" in known else flags


# Workers of pytest-xdist start with the environment of the process that reads this first.
_AS_USERS = os.environ.setdefault("XLA_FLAGS_BEFORE_TESTS", os.environ.get("XLA_FLAGS", ""))
if "XLA_FLAGS_OF_TESTS" not in os.environ:
    os.environ["XLA_FLAGS_OF_TESTS"] = f"{_quick()} {_AS_USERS}"
_QUICK = os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS_OF_TESTS"]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads of two workers would wait for each other

if "CACHE_BEFORE_TESTS" not in os.environ:  # runs remember seconds of compilation there; those of tests are no user's
    os.environ["CACHE_BEFORE_TESTS"] = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(os.environ["CACHE_BEFORE_TESTS"], "matplotlib"))
    _cache = tempfile.TemporaryDirectory(prefix="fastdfkd_jax-cache-")  # removed when the process ends
    os.environ["XDG_CACHE_HOME"] = _cache.name
    # Each run makes its functions anew, and would compile the same programs again.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(_cache.name, "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402 - XLA reads its flags once
import pytest  # noqa: E402
from runs import Runs  # noqa: E402

from fastdfkd_jax.cli import command  # noqa: E402

_LONG = {"test_readme", "test_gpu_visit", "test_gpu_runs", "test_hosts", "test_imagenet", "test_deeplab"}
_MANY_MAPS = 15_000  # of the 65,530 that Linux gives a process
_PARITY = pathlib.Path(__file__).resolve().parent / "parity"
SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


class NeedsPyTorch(pytest.Directory):
    """The folder of parity tests where PyTorch is not installed: one skipped group."""

    def collect(self):
        pytest.skip("comparison with PyTorch: pip install -e '.[parity]' && pytest -m parity")


def pytest_collect_directory(path: pathlib.Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Skips the folder of parity tests as a whole where PyTorch is missing."""
    if path == _PARITY and importlib.util.find_spec("torch") is None:
        return NeedsPyTorch.from_parent(parent, path=path)
    return None


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Does not import PyTorch for tests that the default selection leaves out."""
    left_out = "not parity" in config.option.markexpr and importlib.util.find_spec("torch") is not None
    return True if collection_path == _PARITY and left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first, then the largest: at the end, a long one would run alone."""
    items.sort(key=lambda item: (item.path.stem not in _LONG, -item.path.stat().st_size))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Has Python look for garbage less often, and never among what was imported: that took a third of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets XLA compile with few optimisations, as JAX's own tests do: most programs here are small and run once.

    What is marked optimized compiles as users do, but for the kernels, which a process chooses once: only the processes
    that it starts have users' too.
    """
    quick = not item.get_closest_marker("optimized")
    jax.config.update("jax_disable_most_optimizations", quick)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))
    os.environ["XLA_FLAGS"] = _QUICK if quick else _AS_USERS


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go of compiled programs where they are many: XLA crashes where a process has no memory map left."""
    module = item.getparent(pytest.Module)
    ended = nextitem is None or nextitem.getparent(pytest.Module) is not module
    if ended and isinstance(shared := getattr(getattr(module, "obj", None), "shared", None), Runs):
        shared.forget()
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > (_MANY_MAPS if ended else 2 * _MANY_MAPS):
        jax.clear_caches()
        gc.collect()


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
            command.run_command(main)
        return caught.value.code, *capsys.readouterr()

    yield run
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
