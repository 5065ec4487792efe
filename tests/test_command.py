"""How a command ends: one line for whatever goes wrong, its exit status, and what signals do to it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fastdfkd_jax.cli import config_flags, signals
from fastdfkd_jax.errors import UserError, shortened

ROOT = Path(__file__).resolve().parent.parent


def program(body: str, *arguments: str, before: str = "", **environment: str) -> subprocess.Popen:
    """A process that runs `main(argv)` of this body as a command, before which it does something else."""
    # A suite in the background is started to ignore some signals, which its processes would inherit.
    code = f"import signal\nfor number in {[int(n) for n in signals.ASKING]}: signal.signal(number, signal.SIG_DFL)\n"
    code += (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        + before
        + "\nfrom fastdfkd_jax.cli.command import run_command\n"
    )
    code += f"def main(argv):\n{textwrap.indent(textwrap.dedent(body), '    ')}\nrun_command(main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(body: str, *arguments: str, **options: str) -> tuple[int, str, str]:
    process = program(body, *arguments, **options)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def test_an_unexpected_failure_is_one_line_and_its_traceback_is_in_a_file():
    status, _, errors = ended("raise KeyError('some\\nthing')")
    assert status == 1
    match = re.fullmatch(r"error: unexpected KeyError: .*; the traceback is in (\S+): please report it\n", errors)
    assert match is not None, errors
    saved = Path(match[1])
    assert "in main" in saved.read_text()
    assert "KeyError: 'some\\nthing'" in saved.read_text()
    saved.unlink()


def test_without_room_for_the_file_the_traceback_is_printed():
    status, _, errors = ended("import tempfile; tempfile.tempdir = '/nowhere'; raise KeyError('x')")
    assert status == 1
    assert "Traceback" in errors
    assert errors.splitlines()[-1] == (
        "error: unexpected KeyError: 'x'; the traceback is in the lines above: please report it"
    )


def test_what_a_user_can_mend_is_at_most_300_characters_unless_asked_for_all():
    body = "from fastdfkd_jax.errors import UserError; raise UserError('begin ' + 'word ' * 400 + 'end')"
    status, _, errors = ended(body)
    assert status == 2
    assert len(errors.rstrip("\n")) == 300
    assert errors.startswith("error: begin word")
    assert errors.endswith("word end\n")
    assert "[... --verbose shows all ...]" in errors
    status, _, errors = ended(body, "--verbose")
    assert (status, len(errors.split())) == (2, 403)


def test_lines_are_cut_in_the_middle_only_where_they_are_too_long():
    assert shortened("x" * 300) == "x" * 300
    assert len(shortened("x" * 301)) == 300


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_the_console_lacks_are_replaced(encoding):
    status, output, errors = ended("print('5 → 3, Δ'); raise SystemExit(0)", PYTHONIOENCODING=encoding)
    assert (status, output, errors) == (0, "5 ? 3, ?\n", "")


def test_a_reader_that_has_closed_the_output_is_told_in_one_line():
    with program("import time; print('x' * 10**6); time.sleep(1); print('y' * 10**6)") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == "error: the program that reads this output has closed it; the rest of the output is lost\n"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("raise MemoryError", "error: out of memory"),
        ("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')", "the device's memory is full"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_program(failure, expected):
    status, _, errors = ended(failure)
    assert status == 2
    assert expected in errors
    assert len(errors.splitlines()) == 1


def test_a_backend_that_is_not_there():
    status, _, errors = ended("import jax; jax.devices()", JAX_PLATFORMS="no_such_backend")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: JAX cannot use JAX_PLATFORMS='no_such_backend' (")
    assert errors.rstrip().endswith(": unset it, or install that backend's jaxlib")
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", signals.ASKING)
def test_each_signal_unwinds_a_command(number, tmp_path):
    body = """
        import time
        try:
            open(argv[1], "w").close()
            time.sleep(200)
        finally:
            print("unwound")
    """
    process = program(body, str(tmp_path / "ready"))
    wait_for(tmp_path / "ready")
    process.send_signal(number)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, output, errors) == (130, "unwound\n", "error: stopped by a signal\n")


@pytest.mark.parametrize("number", signals.ASKING)
def test_the_first_signal_only_asks_and_the_second_ends(number, tmp_path):
    body = """
        import time
        import numpy as np
        from fastdfkd_jax.cli import signals
        with signals.deferred() as stop:
            open(argv[1], "w").close()
            while not stop.requested:
                time.sleep(0.01)
            print(stop.by, flush=True)
            open(argv[2], "w").close()
            np.linalg.eigvals(np.random.default_rng(0).random((4000, 4000)))  # in C for a minute, as in a compiler
    """
    process = program(body, str(tmp_path / "ready"), str(tmp_path / "asked"))
    wait_for(tmp_path / "ready")
    process.send_signal(number)
    wait_for(tmp_path / "asked")
    for _ in range(3):  # within a second, as `timeout` sends two
        process.send_signal(number)
    time.sleep(signals._GRACE_SECONDS + 0.5)
    assert process.poll() is None
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert (process.returncode, output) == (-number, f"{signal.Signals(number).name}\n")


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    body = """
        import os, signal
        from fastdfkd_jax.cli import signals
        os.kill(os.getpid(), signal.SIGHUP)
        with signals.deferred() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        print(stop.requested)
    """
    assert ended(body, before=before) == (0, "False\n", "")


def test_without_a_home_directory_only_what_needs_one_fails():
    before = "import os, pwd\nos.environ.pop('HOME', None)\ndef lacks(uid): raise KeyError(uid)\npwd.getpwuid = lacks"
    body = """
        from fastdfkd_jax import data
        print(len(data.load("digits", "test").labels) > 0, flush=True)
        data.load("tfds:cifar10", "test")
    """
    status, output, errors = ended(body, before=before)
    assert (status, output) == (2, "True\n")
    assert errors.startswith("error: there is no home directory for ~/tensorflow_datasets: set HOME, or ")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- The command line of a config


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Path:
    """A config file in a folder with a colon in its name, as a drive has one elsewhere."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    path = tmp_path / "C:" / "settings" / "own.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config(variant=None):\n"
        "    kd = {'lr': 0.1, 'lr_decay': 0.5, 'steps': 3}\n"
        "    return ConfigDict({'variant': variant or '', 'kd': kd, 'final_rate': 0.0})\n"
    )
    return path


def parsed(*arguments: str):
    return config_flags.parse(["main", *arguments], "run", "none.py")


def test_a_colon_is_a_variant_only_after_the_file(settings):
    config, folder = parsed(f"--config={settings}:cmi-short", "--config.kd.lr=0.2")
    assert (config.variant, config.kd.lr, config.kd.steps, folder) == ("cmi-short", 0.2, 3, Path("runs/own-cmi-short"))
    config, folder = parsed("--config", str(settings), "--workdir", "there")
    assert (config.variant, config.kd.lr, folder) == ("", 0.1, Path("there"))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.kd.learning_rate=1", r"config.kd has no key 'learning_rate': the nearest are lr, "),
        ("--config.kd.step=1", r"config.kd has no key 'step': the nearest are steps, "),
        ("--config.kdd.lr=1", r"config has no key 'kdd': the nearest are kd, "),
        ("--config.kd.lr=fast", r"--config.kd.lr=fast: could not convert"),
        ("--workdri=x", r"Unknown command line flag 'workdri'. Did you mean: workdir"),
        ("loose", r"expected KEY=VALUE or --workdir DIR, found 'loose'"),
    ],
)
def test_a_wrong_key_or_value_is_named(settings, argument, expected):
    with pytest.raises(UserError, match=expected):
        parsed(f"--config={settings}", argument)


def test_a_config_and_its_values_need_no_flags(settings):
    config, folder = parsed(f"{settings}:x", "kd.lr=0.2", "--workdir", "there", "final_rate=1.0")
    assert (config.variant, config.kd.lr, config.final_rate, folder) == ("x", 0.2, 1.0, Path("there"))
    with pytest.raises(UserError, match=r"config.kd has no key 'learning_rate': the nearest are lr, "):
        parsed(str(settings), "kd.learning_rate=1")


def test_an_old_name_leads_to_the_new_one():
    with pytest.raises(UserError) as caught:
        parsed(f"--config={ROOT / 'configs' / 'default.py'}", "--config.cmi.learning_rate=1")
    assert str(caught.value) == "config.cmi has no key 'learning_rate': it is called config.cmi.lr now"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(): return 3", r"get_config\(\) of .* returned int: expected a ConfigDict"),
        ("def get_config(: pass", r"own.py, line 1: invalid syntax"),
        ("import nothing_of_this_name", r"own.py: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def get_config():\n    return None", r"own.py has no variants, found 'x': leave it out"),
    ],
)
def test_a_config_file_that_is_none(settings, text, expected):
    settings.write_text(text)
    with pytest.raises(UserError, match=expected):
        parsed(f"--config={settings}" + (":x" if "variants" in expected else ""))
