"""The README is true: its commands and Python run, and its table is made from the records."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import runs  # noqa: F401 - makes configs importable

from benchmarks import against_released
from fastdfkd_jax.compare import __main__ as compare
from fastdfkd_jax.compare import figure
from fastdfkd_jax.storage import markdown
from fastdfkd_jax.training import run_records

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_DATA = "npz:imagenet_even500_256_q90.npz"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S) if kind == language]


def commands():
    """The arguments of every `fastdfkd` command, continuation lines joined."""
    text = "\n".join(blocks("")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in line.split("&&")]
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("fastdfkd ")]


def fastdfkd(arguments, cwd):
    line = [sys.executable, "-m", "fastdfkd_jax", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_python_examples_run():
    examples = blocks("python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_the_table_of_runs_is_made_from_the_records():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert markdown.insert(text, run_records.table(ROOT / "results")) == text, (
        "run: fastdfkd report results --into docs/results.md"
    )


def test_the_table_beside_the_released_code_is_made_from_the_records():
    text, records = (ROOT / "docs/results.md").read_text(encoding="utf-8"), ROOT / "results"
    made = against_released.table(against_released.accuracies(records), against_released.released(records))
    assert markdown.insert(text, made, against_released.MARK) == text, (
        "run: python -m benchmarks.against_released results --into docs/results.md"
    )


@pytest.mark.parametrize(
    ("name", "records", "documents"),
    [
        ("all", "results/compare/short", ("README.md", "docs/results.md")),
        ("table3:cpu", "results/compare/camvid", ("docs/results.md",)),
    ],
)
def test_the_comparison_is_made_from_the_records(name, records, documents, tmp_path, capsys, monkeypatch):
    """Every table in every format, and what documents show of it, by the command that makes them, byte for byte."""
    words = ["tables_only=true", f"other_data={OTHER_DATA}"]
    made = f"fastdfkd compare {name} --workdir {records} {' '.join(words)}"
    shutil.copytree(ROOT / records / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("metrics.jsonl", "*.png"))
    for document in documents:
        shutil.copy(ROOT / document, tmp_path)
    into = ",".join(str(tmp_path / pathlib.Path(document).name) for document in documents)
    monkeypatch.setattr(figure, "write", lambda *_: None)  # pictures differ with the version of matplotlib
    command = ["compare", name, "--workdir", str(tmp_path)]
    assert compare.command([*command, *words, f"into={into}"]) == 0

    kinds = {".md", ".csv", ".tex"}
    committed = {path.name for path in (ROOT / records).iterdir() if path.suffix in kinds}
    written = {path.name for path in tmp_path.iterdir() if path.suffix in kinds} - {"README.md", "results.md"}
    hint = f"run: {made} into={','.join(documents)}"
    assert written == committed, hint
    assert {pathlib.Path(file).suffix for file in written} == kinds
    for file in sorted(written):
        assert (tmp_path / file).read_bytes() == (ROOT / records / file).read_bytes(), f"{file} is stale: {hint}"
    for document in documents:
        text = (ROOT / document).read_text(encoding="utf-8")
        assert (tmp_path / pathlib.Path(document).name).read_text(encoding="utf-8") == text, f"{document}: {hint}"


def test_every_table_of_a_comparison_in_a_document_is_made_from_records():
    """Those above; a mark that no command fills would keep what was typed there."""
    marks = [mark for path in DOCUMENTS for mark in re.findall(r"<!-- results compare/(\S+) -->", path.read_text())]
    committed = {path.stem for path in (ROOT / "results/compare").glob("*/*.md")}
    assert marks
    assert set(marks) <= committed


def test_the_diff_that_adds_a_method_is_of_the_files():
    """Of new files the whole, of others each line, wherever another method has moved it."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.M | re.S)
    parts = re.findall(r"^--- (.*)\n\+\+\+ b/(.*)\n((?:[-+@ ].*\n)*?)(?=^--- |\Z)", diff, re.M)
    assert len(parts) == len(re.findall(r"^\+\+\+ ", diff, re.M)) == 4
    for before, name, body in parts:
        shown = [line[1:] for line in body.splitlines() if line[0] in "+ "]
        there = (ROOT / name).read_text(encoding="utf-8").splitlines()
        if before == "/dev/null":
            assert shown == there, f"{name}: make the diff in docs/methods.md anew"
        assert set(shown) <= set(there), f"{name}: make the diff in docs/methods.md anew"


def test_every_command_is_known_here():
    """A command that is added to the README must be added to a test below."""
    assert [arguments[0] for arguments in commands()] == ["run", "distill", "pretrain", "compare"]


@pytest.mark.slow
def test_the_plan_of_the_quickstart(tmp_path):
    """The first tutorial runs it, and checks the student; results/quickstart has a whole run."""
    (quickstart,) = (arguments for arguments in commands() if "quickstart" in arguments)
    done = fastdfkd([*quickstart, "dry_run=true"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fastdfkd (teacher only): 30 synthesis calls" in done.stdout


NETWORKS = """
from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.models import NetworkSpec

teacher = lambda: twin(NetworkSpec("resnet20", 10))
student = lambda: twin(NetworkSpec("wrn10_1", 10))
"""


@pytest.mark.slow
@pytest.mark.parity
def test_the_command_for_own_networks(shared_data, tmp_path):
    """With a real teacher and the smoke protocol."""
    (tmp_path / "net.py").write_text(NETWORKS)
    shutil.copy(shared_data / "teachers" / "resnet20-12fca82f.th", tmp_path / "teacher.pth")
    (arguments,) = (arguments for arguments in commands() if arguments[0] == "distill")
    done = fastdfkd([*arguments, "--protocol", "smoke"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "from net import student" in done.stdout
    assert (tmp_path / "runs" / "distill" / "student.pth").exists()


@pytest.mark.slow
def test_the_commands_for_the_papers_tables(shared_data, tmp_path):
    """A teacher of one epoch on a few images, and the plan of the comparison."""
    pretrain, compare = (arguments for arguments in commands() if arguments[0] in ("pretrain", "compare"))
    place = str(shared_data / "tfds")
    pretrain, compare = (
        [argument.replace("~/tensorflow_datasets", place) for argument in arguments]
        for arguments in (pretrain, compare)
    )
    few = ["arch=wrn10_1", "recipe.epochs=1", "recipe.lr_milestones=()", "data.train_split=train[:256]"]
    done = fastdfkd([*pretrain, *few, "data.test_split=test[:64]"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "teacher" / "teacher.safetensors").exists()
    done = fastdfkd([*compare, "dry_run=true", "estimate=false"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cifar10-wrn40_2-wrn16_1-fast5" in done.stdout
