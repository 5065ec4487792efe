"""Damaged inputs for every reader of untrusted files: what is read, or refused in one line, and nothing else.

    python tests/fuzzing.py READER --seconds 600       # by coverage; needs `pip install atheris`

A finding is written to tests/fuzz_corpus/READER-NAME.bin. It stays there once the reader is mended, and the tests read
it. Torch files also need PyTorch, and ONNX files onnxruntime.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import inspect
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_readers import READERS

from fastdfkd_jax.errors import UserError

CORPUS = Path(__file__).parent / "fuzz_corpus"
_MOST = 300  # characters of a message, with 'error: '
_SEEN = ("fastdfkd_jax", "zipfile", "numpy.lib", "scipy.io.matlab", "PIL", "safetensors")
_LARGEST = 1 << 16  # bytes of an input: larger ones are slow and find no more


class Finding(AssertionError):
    """An input that a reader neither reads nor refuses as it should."""


@contextlib.contextmanager
def prepared(name: str) -> Iterator[tuple[Path, Path]]:
    """Yields a folder with a valid input of a reader, and the file to change."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), READERS[name].make(Path(folder))


def attempt(name: str, folder: Path, file: Path, content: bytes) -> bool:
    """Reads the input with this content; returns True if it was read, False if it was refused.

    Raises:
      Finding: another error than UserError, or a message that is not one short line.
    """
    file.write_bytes(content)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            READERS[name].read(folder)
    except UserError as error:
        message = f"error: {error}".replace(str(folder), "FOLDER")
        if "\n" in message or len(message) >= _MOST:
            raise Finding(f"{name}: a message of {len(message)} characters: {message}") from error
        return False
    except Exception as error:
        raise Finding(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(level)
    return True


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields changed copies: bytes replaced, cut, repeated, moved or set to the ends of their range."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(int(generator.integers(1, 5))):
            at, length = int(generator.integers(len(changed) or 1)), int(generator.integers(1, 9))
            kind = int(generator.integers(6))
            part = bytes(changed[at : at + length])
            if kind == 0:
                changed[at : at + length] = generator.bytes(len(part))
            elif kind == 1:
                changed[at : at + length] = b""
            elif kind == 2:
                changed[at:at] = part * int(generator.integers(1, 40))
            elif kind == 3:
                changed[at : at + length] = bytes([int(generator.choice([0, 1, 0x7F, 0x80, 0xFF]))]) * len(part)
            elif kind == 4:
                changed = changed[:at]
            else:
                to = int(generator.integers(len(changed) or 1))
                changed[to : to + length] = part
        yield bytes(changed)


def missing(name: str) -> str:
    """Returns the package that a reader lacks here, or ''."""
    needs = READERS[name].needs
    return "" if importlib.util.find_spec(needs) else needs


def _instrument(atheris: Any) -> None:
    """Makes the search see which lines of this package, and of the formats it reads by Python, an input reaches."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_SEEN)]
    for place in [*modules, *(kind for module in modules for kind in vars(module).values() if inspect.isclass(kind))]:
        for value in list(vars(place).values()):
            if inspect.isfunction(value) and value.__module__.startswith(_SEEN):
                atheris.instrument_func(value)


def main() -> None:
    """Searches for findings by coverage, until the time is over or one is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    import atheris  # pyright: ignore[reportMissingImports]

    with prepared(options.reader) as (folder, file), tempfile.TemporaryDirectory() as corpus:
        valid = file.read_bytes()
        for number, content in enumerate([valid, *mutants(valid, 30)]):
            (Path(corpus) / str(number)).write_bytes(content)

        def one(content: bytes) -> None:
            try:
                attempt(options.reader, folder, file, content)
            except Finding as finding:
                CORPUS.mkdir(exist_ok=True)
                name = f"{options.reader}-{hashlib.sha256(content).hexdigest()[:8]}.bin"
                (CORPUS / name).write_bytes(content)
                print(f"{name}: {finding}", file=sys.stderr)
                os._exit(1)

        _instrument(atheris)
        limit = max(_LARGEST, 2 * len(valid))
        atheris.Setup([sys.argv[0], f"-max_total_time={options.seconds}", f"-max_len={limit}", corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
