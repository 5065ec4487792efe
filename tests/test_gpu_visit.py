"""The measurements of a visit to a GPU: every command with tiny shapes, and the records made from its results."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from runs import ROOT

from benchmarks import gpu_cell
from benchmarks.torch_forms import FORMS

SCRIPT = ROOT / "benchmarks" / "gpu_visit.sh"


def test_kernels_that_overlap_are_busy_once():
    seen = gpu_cell.activity([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (1.5, 3.0)])
    assert (seen.kernels, seen.busy_seconds) == (4, pytest.approx(4.0))
    assert gpu_cell.activity([]) == (0, 0.0)


def test_a_cell_is_timed_three_times_at_least_and_then_for_its_seconds(monkeypatch):
    runs = []
    assert len(gpu_cell.timed(lambda: runs.append(1), 0.0)) == 3
    assert len(runs) == 4, "one before, which is not counted"
    monkeypatch.setattr(gpu_cell, "seconds", lambda run: 0.25)
    assert gpu_cell.timed(lambda: None, 2.0) == [0.25] * 8


def test_watts_are_read_until_the_end_and_what_is_no_number_is_left_out(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 100.5\necho '[N/A]'\necho 99.5\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with gpu_cell.power() as watts:
        subprocess.run(["sleep", "0.5"], check=True)
    assert watts == [100.5, 99.5]
    monkeypatch.setenv("PATH", "/nowhere")
    with gpu_cell.power() as watts:
        pass
    assert watts == []


# A stand-in for Python that notes what it is asked to run.
RECORDER = """#!/bin/sh
printf '%s\t' "$XLA_FLAGS" "$@" >> "$ASKED"
echo >> "$ASKED"
"""


def asked(tmp_path, *arguments, python=RECORDER):
    """Runs the script with a separate Python; its exit status, and (flags, arguments) of each cell."""
    stand_in = tmp_path / "python"
    stand_in.write_text(python)
    stand_in.chmod(0o755)
    noted = tmp_path / "asked"
    own = {"OUT": tmp_path / "out", "ASKED": noted, "PYTHON": stand_in, "XLA_FLAGS": "", "TMPDIR": tmp_path}
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)
    lines = noted.read_text().splitlines() if noted.exists() else []
    return done.returncode, [(flags.strip(), words) for flags, *words in (line.split("\t")[:-1] for line in lines)]


def came_back(tmp_path):
    """All that came back, by its name."""
    (archive,) = (tmp_path / "out").iterdir()
    assert archive.name == "visit.tar.gz"
    with tarfile.open(archive) as opened:
        files = [(member.name, opened.extractfile(member)) for member in opened]
        return {name.removeprefix("visit/"): file.read().decode() for name, file in files if file is not None}


def test_a_visit_asks_for_every_cell_and_a_failed_one_stops_nothing(tmp_path):
    status, cells = asked(tmp_path)
    assert status == 0
    names = [words[2] for _, words in cells]
    assert len(names) == len(set(names)) > 20
    assert names[:2] == ["1-ours", "1-graphed"], "what matters most comes first"
    assert all(words[:2] == ["-m", "benchmarks.gpu_cell"] for _, words in cells)
    status, _ = asked(tmp_path, python="#!/bin/sh\necho 'no GPU' >&2\nexit 3\n")
    assert status == 1
    found = came_back(tmp_path)
    failed = found["failed.txt"].splitlines()
    assert failed[0] == "1-ours: ended with status 3: no GPU"
    assert len(failed) == len(names)
    assert found.keys() == {"failed.txt", *(f"{name}.err" for name in names)}
    assert {path.name for path in tmp_path.iterdir()} == {"asked", "out", "python"}, "nothing else is left"


def test_a_visit_that_is_killed_keeps_what_it_had(tmp_path):
    """During the third cell."""
    third = """#!/bin/sh
printf '\\t%s\\t\\n' "$3" >> "$ASKED"
echo '{}' > "$5/$3.json"
[ "$(wc -l < "$ASKED")" = 3 ] && kill -9 "$(cut -d ' ' -f 4 /proc/$PPID/stat)"
exit 0
"""
    status, _ = asked(tmp_path, python=third)
    assert status == -signal.SIGKILL
    assert {"1-ours.json", "1-graphed.json"} <= came_back(tmp_path).keys()


def test_cells_for_which_no_time_is_left_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINUTES", "0")
    assert asked(tmp_path) == (0, [])
    assert came_back(tmp_path)["left_out.txt"].startswith("1-ours: no time left\n")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile itself
def test_what_a_visit_asks_for_runs_in_small(tmp_path, monkeypatch):
    """Every kind of cell in this process, with what `--rehearse` makes small; XLA's flags at the start of another."""
    import torch

    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "JAX_PLATFORMS", "TEARDOWN_CUPTI"):
        monkeypatch.setenv(name, os.environ.get(name, "cpu" if name == "JAX_PLATFORMS" else "false"))
    _, cells = asked(tmp_path, "--rehearse")
    flags = {flags for flags, _ in cells if flags}
    assert len(flags) == 3
    program = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "XLA_FLAGS": " ".join(flags)}, check=True)
    kinds = {}
    for _, words in cells:
        kind = re.sub(r" --k \w+|=4|=16| --precision bfloat16", "", " ".join(words[3:]))
        if "--side" in words and "bfloat16" in words:
            kind += " in bfloat16"
        words[words.index("--out") + 1] = str(tmp_path / "records")
        kinds.setdefault(kind, words[2:])
    with torch.compiler.set_stance("force_eager"):
        for arguments in kinds.values():
            gpu_cell.main(arguments)
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")}
    assert {record["side"] for record in records.values()} == {"ours", *FORMS}
    assert records.keys() == {words[0] for words in kinds.values()} >= {"1-ours-unrolled", "4-ours-remat", "5-ours"}
    for name, record in records.items():
        for part in {"call", "kd"} & record.keys():
            assert len(record[part]["milliseconds"]) >= 3, name
            assert record[part]["images_a_second"] > 0
            assert record[part]["kernels_a_step"] == record[part]["busy_share"] == "no GPU"
    # The second call's and later losses: what graphs replay is what the tuned form computes.
    for part in ("call", "kd"):
        values = [records[f"1-{form}"][part]["after_warm_ups"] for form in ("tuned", "graphed", "compiled")]
        assert np.allclose(values[0], values[1:], rtol=1e-3), part
    small = {"generator.width": 2, "generator.latent_dim": 8}
    assert records["6-ours-4-lanes"]["case"]["overrides"] == {"fastdfkd.num_tasks": 4, **small}
