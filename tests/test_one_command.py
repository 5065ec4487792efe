"""The command `fastdfkd`: its help, its version, and configs by name."""

import os
import subprocess
import sys

import pytest
from runs import ROOT

import fastdfkd_jax
from fastdfkd_jax import __main__ as one
from fastdfkd_jax.cli import config_names
from fastdfkd_jax.cli.parser import PROGRAM
from fastdfkd_jax.errors import LONGEST_LINE, UserError

BELOW = ["convert import", "convert verify", "convert export", "convert record"]


def ends(*arguments):
    """Runs the command; its exit status."""
    try:
        return one.main([PROGRAM, *arguments]) or 0
    except SystemExit as ended:
        return ended.code or 0


def test_without_arguments_the_program_names_every_command(capsys):
    assert ends() == 0
    printed = capsys.readouterr().out
    assert ends("--help") == 0
    assert capsys.readouterr().out == printed
    for name, command in one.COMMANDS.items():
        assert f"  {name} " in printed
        assert command.summary in printed


@pytest.mark.parametrize("command", one.COMMANDS)
def test_a_command_without_arguments_prints_its_help(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ends(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {PROGRAM} {command} ")
    assert not list(tmp_path.iterdir()), "nothing runs"


@pytest.mark.parametrize("command", [*one.COMMANDS, *BELOW])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_no_error(command, flag, capsys):
    assert ends(*command.split(), flag) == 0
    assert capsys.readouterr().out.startswith(f"usage: {PROGRAM} {command} ")


@pytest.mark.parametrize("command", ["", *one.COMMANDS])
def test_every_command_prints_its_version(command, capsys):
    assert ends(*command.split(), "--version") == 0
    assert capsys.readouterr().out == f"{PROGRAM} {fastdfkd_jax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrian"], r"unknown command 'pretrian': the nearest are pretrain, "),
        (["run", "quikstart"], r"no config is called 'quikstart': the nearest are quickstart, .*run --help lists all"),
        (["compare", "tabel1"], r"no config is called 'tabel1': the nearest are table1, "),
        (
            ["run", "../configs/quickstart"],
            r"config file ../configs/quickstart does not exist: give a file, or a name ",
        ),
        (["run", "own.py"], r"config file own.py does not exist: give a file, or a name that .*run --help lists"),
        (["run", "quickstart", "kd.learn=1"], r"config.kd has no key 'learn': the nearest are "),
        (["run", "quickstart", "kd.lr=fast"], r"kd.lr=fast: could not convert"),
        (["run", "quickstart:magic"], r"unknown variant 'magic': expected one of "),
    ],
)
def test_a_typing_error_is_answered_by_near_matches(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        one.main([PROGRAM, *arguments])
    assert len(str(caught.value)) < LONGEST_LINE
    assert not list(tmp_path.iterdir())


COMMANDS_OF_CONFIGS = ("run", "pretrain", "compare")


@pytest.mark.parametrize("command", COMMANDS_OF_CONFIGS)
def test_the_help_lists_every_config_of_a_command(command, capsys):
    ends(command, "--help")
    printed = capsys.readouterr().out
    listed = config_names.listed(command)
    assert len(listed) >= {"run": 18, "pretrain": 4, "compare": 7}[command]
    for name, summary in listed.items():
        assert name in printed
        assert summary in printed
        path, variant = config_names.find(name, command)
        assert (path.resolve().is_relative_to(ROOT / "configs"), variant) == (True, None)


def test_every_config_file_is_listed_or_is_no_config():
    """Its description names its command."""
    listed = {
        config_names.find(name, command)[0] for command in COMMANDS_OF_CONFIGS for name in config_names.listed(command)
    }
    for path in config_names.OURS.rglob("*.py"):
        if path not in listed and path.stem not in ("__init__", "default"):
            assert "\ndef get_config(" not in path.read_text(encoding="utf-8"), path


def test_the_help_of_a_comparison_is_short_and_can_be_copied(capsys):
    ends("compare", "table1", "--help")
    out = capsys.readouterr().out
    assert "--workdir DIR data_dir=DATA \\\n        teachers.cifar10_wrn40_2=PATH" in out
    assert "  only= " in out
    assert "  cifar10-wrn40_2-wrn16_1-fast5 (seed 0)\n" in out
    assert out.count("\n") < 200


def test_the_help_of_a_config_has_its_variants_and_keys(capsys):
    assert ends("run", "quickstart:cmi", "--help") == 0
    printed = capsys.readouterr().out
    assert "`:dafl`" in printed
    lines = {line.strip().split("=")[0]: line for line in printed.splitlines() if "=" in line}
    assert "kd.lr" in lines
    assert "learning rate" in lines["kd.lr"]
    assert "cmi.bank_size=1664" in lines["cmi.bank_size"]
    assert not [key for key in lines if key.startswith(("dafl.", "zskt."))], "keys of other methods"


def test_names_work_in_any_folder(tmp_path):
    """Also of a package that is installed without its checkout; `configs/NAME.py` is what older documents say."""
    for arguments in (["run", "quickstart"], ["run", "--config", "configs/quickstart.py"]):
        line = [sys.executable, "-m", "fastdfkd_jax", *arguments, "--help"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "student.arch=wrn10_1" in done.stdout


def test_own_configs_import_ours_from_anywhere(tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text(
        '"""Mine."""\n\nfrom fastdfkd_jax.configs import quickstart\n\n\n'
        "def get_config():\n    config = quickstart.get_config()\n    config.seed = 7\n    return config\n"
    )
    assert ends("run", str(own), "--help") == 0
    assert "  seed=7 " in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "expected"), [((), "3 False"), (("--verbose",), "None False")])
def test_xlas_log_is_hidden_before_jax_reads_the_setting(arguments, expected):
    """Its boxes about slow compilation would land on the terminal."""
    code = "import os, sys, fastdfkd_jax.__main__; print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'), 'jax' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    line = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
