"""What the README shows is true: commands and Python run, the table is the records', links lead somewhere."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import runs  # noqa: F401 - makes configs importable

from benchmarks import against_released
from configs.compare import all as compare_all
from configs.compare import table3
from fastdfkd_jax import report
from fastdfkd_jax.compare import comparison, outputs, tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_DATA = "npz:imagenet_even500_256_q90.npz"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S) if kind == language]


def commands():
    """Every `python -m` command, continuation lines joined, split into arguments."""
    text = "\n".join(blocks("")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in line.split("&&")]
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("python -m")]


def python(arguments, cwd):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_python_examples_run():
    examples = blocks("python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_table_of_runs_is_made_from_the_records():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert report.insert(text, report.table(ROOT / "results")) == text, (
        "run: python -m fastdfkd_jax.report results --into docs/results.md"
    )


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_the_table_beside_the_released_code_is_made_from_the_records(document):
    text, records = (ROOT / document).read_text(encoding="utf-8"), ROOT / "results"
    made = against_released.table(against_released.accuracies(records), against_released.released(records))
    assert report.insert(text, made, against_released.MARK) == text, (
        "run: python -m benchmarks.against_released results --into docs/results.md README.md"
    )


@pytest.mark.parametrize(
    ("name", "config", "records"),
    [
        ("all.py", compare_all.get_config(), "results/compare/short"),
        ("table3.py:cpu", table3.get_config("cpu"), "results/compare/camvid"),
    ],
)
def test_the_comparison_is_made_from_the_records(name, config, records):
    config.other_data = OTHER_DATA
    compared = comparison.read(config)
    figures = outputs.figures_of(ROOT / records, compared, compared.tables, {})
    shown = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for table, sections in figures:
            mark = f"compare/{table.name}"
            if report.start_mark(mark) in text:
                shown += 1
                made = tables.markdown(table, sections)
                assert report.insert(text, made, mark) == text, (
                    f"run: python -m fastdfkd_jax.compare --config configs/compare/{name} --workdir {records} "
                    f"--config.tables_only=true --config.other_data={OTHER_DATA} "
                    f"--config.into={document.relative_to(ROOT)}"
                )
    assert shown


def test_the_diff_that_adds_a_method_is_of_the_files(tmp_path):
    """Undone, the diff takes away whole files and nothing but its own lines of the others."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.M | re.S)
    names = re.findall(r"^\+\+\+ b/(.*)$", diff, re.M)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(["git", "apply", "--reverse", "-"], cwd=tmp_path, input=diff, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (left,) = [name for name in names if (tmp_path / name).exists()]
    assert (tmp_path / left).read_text().count("noise") == 0


def test_every_command_is_known_here():
    """A command that is added to the README must be added to a test below."""
    modules = [arguments[1] for arguments in commands()]
    assert sorted(set(modules)) == [
        "fastdfkd_jax.convert", "fastdfkd_jax.evaluate", "fastdfkd_jax.main"
    ]  # fmt: skip


@pytest.mark.slow
def test_quickstart(tmp_path):
    (quickstart,) = (arguments for arguments in commands() if "configs/quickstart.py" in arguments)
    done = python([*quickstart, "--workdir", str(tmp_path / "run")], ROOT)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["student_accuracy_last"] > summary["teacher_accuracy"] - 5
    assert summary["student_accuracy_last"] > summary["noise_student_accuracy_last"] + 30
    assert list((tmp_path / "run" / "images").glob("*.png"))


@pytest.mark.slow
def test_cifar_commands(shared_data, tmp_path):
    """The commands for CIFAR and for a teacher from elsewhere, with a real teacher and the smoke protocol."""
    teacher = shared_data / "teachers" / "resnet20-12fca82f.th"
    (tmp_path / "network.py").write_text(
        "from fastdfkd_jax.convert.twins import twin\nfrom fastdfkd_jax.models import NetworkSpec\n"
        "make = lambda: twin(NetworkSpec('resnet20', 10, 32, 3, (0.5,) * 3, (0.5,) * 3))\n"
    )
    places = {
        "cifar10_wrn40_2.pth": str(teacher),
        "~/tensorflow_datasets": str(shared_data / "tfds"),
        "configs/cifar10.py:wrn40_2-wrn16_1-fast5": f"{ROOT}/configs/cifar10.py:resnet20-wrn16_1-fast5-smoke",
        "0.4914,0.4822,0.4465": "0.485,0.456,0.406",
        "0.2023,0.1994,0.2010": "0.229,0.224,0.225",
    }
    for arguments in commands():
        if "configs/quickstart.py" in arguments:
            continue
        for old, new in places.items():
            arguments = [argument.replace(old, new) for argument in arguments]
        arguments = [str(teacher) if argument == "teacher.pth" else argument for argument in arguments]
        if arguments[1] == "fastdfkd_jax.evaluate":
            arguments += ["--data-dir", str(shared_data / "tfds"), "--split", "test[:200]"]
        done = python(arguments, tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    assert (tmp_path / "runs" / "first" / "student.safetensors").exists()
