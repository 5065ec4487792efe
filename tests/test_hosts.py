"""Several processes on loopback: they end as one process does, stop together, and none outlives a lost one."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import ROOT
from safetensors.numpy import load_file

from fastdfkd_jax.distributed import hosts
from fastdfkd_jax.pool.shards import read_shard

CONFIG = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from runs import tiny_config


def get_config():
    return tiny_config(data__split="test[:64]", data__batch=64)
"""
# Nothing to compile, so that starts cost little; a checkpoint every other call, so that calls are lost with a process.
NOISE = ("--config.method.name=noise", "--config.mode=synthesize", "--config.calls=12", "--config.checkpoint_every=2")
NOISE += ("--config.data.source=",)
LANES = ("--config.fastdfkd.num_tasks=2", "--config.parallel.task_devices=2", "--config.parallel.batch_devices=2")
# Every file that processes share: shards of the pool, and the teacher's answers to two rounds of steps.
DISK = ("--config.pool.place=disk", "--config.synthesis_calls=1", "--config.calls=3", "--config.soft_labels.steps=4")
SECONDS = 240  # until a process is taken to hang


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the config."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


class Process:
    """One process of a run, its words in files."""

    def __init__(self, place: Path, workdir: Path, arguments: tuple[str, ...], number: int = 0):
        base = workdir.with_name(f"{workdir.name}-{number}-{time.time_ns()}")
        self.output, self.errors = base.with_suffix(".out"), base.with_suffix(".err")
        line = [sys.executable, "-m", "fastdfkd_jax.main", f"--config={place / 'tiny.py'}", f"--workdir={workdir}"]
        line += arguments
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.popen = subprocess.Popen(line, stdout=output, stderr=errors, cwd=ROOT)

    def until(self, words: str) -> None:
        """Waits for words on its standard error."""
        deadline = time.monotonic() + SECONDS
        while words not in (text := self.errors.read_text()):
            assert self.popen.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    def end(self, seconds: float = SECONDS) -> tuple[int, str, str]:
        """Waits for it; its exit status, output and errors."""
        status = self.popen.wait(seconds)
        return status, self.output.read_text(), self.errors.read_text()


@contextlib.contextmanager
def two(place: Path, workdir: Path, *arguments: str, own: tuple[str, str] = ("", "")) -> Iterator[list[Process]]:
    """Two processes with a device each; `own` are arguments of one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = (f"--config.parallel.hosts=127.0.0.1:{port}", "--config.parallel.processes=2")
    shared += ("--config.parallel.cpu_devices=1", "--config.parallel.lost_after=12.", *arguments)
    numbered = [(f"--config.parallel.process={n}", *filter(None, own[n : n + 1])) for n in range(2)]
    started = [Process(place, workdir, shared + numbered[n], n) for n in range(2)]
    try:
        yield started
    finally:
        for process in started:
            process.popen.kill()
            process.popen.wait()


def finish(place: Path, workdir: Path, *arguments: str) -> dict[str, Any]:
    """Two processes to their end: only the first prints, and only the summary."""
    with two(place, workdir, *arguments) as (first, second):
        status, output, errors = first.end()
        assert status == 0, errors
        other_status, other_output, other_errors = second.end()
    assert (other_status, other_output, other_errors) == (0, "", ""), other_errors
    (line,) = output.splitlines()
    assert json.loads(line) == json.loads((workdir / "summary.json").read_text())
    return json.loads(line)


def alone(place: Path, workdir: Path, devices: int, *arguments: str) -> str:
    """One process with so many devices, to its end; what it said."""
    layout = (f"--config.parallel.cpu_devices={devices}", f"--config.parallel.batch_devices={devices}")
    status, output, errors = Process(place, workdir, (*layout, *arguments)).end()
    assert status == 0, errors
    assert output
    return errors


def results(workdir: Path) -> dict[str, Any]:
    """Returns the files and values that a run leaves, by name, without seconds and memory."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        "student": load_file(workdir / "student.safetensors"),
        "pool": {path.name: read_shard(path)._asdict() for path in (workdir / "pool").iterdir()},
        "records": [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()],
        "summary": {name: value for name, value in summary.items() if not name.endswith(("_seconds", "_bytes"))},
        "files": sorted(
            str(path.relative_to(workdir))
            for path in workdir.rglob("*")
            if not {"checkpoints", "events"} & set(path.relative_to(workdir).parts)
        ),
    }


def assert_equal(one: Path, other: Path) -> None:
    """Bit-identical: both add the same two numbers for every sum over devices, and two numbers have one sum."""
    found, expected = results(one), results(other)
    assert found.pop("records") == expected.pop("records")  # to NumPy 0.0 and -0.0 are two numbers
    np.testing.assert_equal(found, expected)


def test_two_that_both_are_number_0_are_told_so_within_seconds(place, tmp_path):
    """JAX alone lets both listen at one port, and each waits five minutes for a process that never comes."""
    begin = time.monotonic()
    with two(place, tmp_path / "run", *NOISE, own=("", "--config.parallel.process=0")) as processes:
        while all(process.popen.poll() is None for process in processes):
            assert time.monotonic() - begin < SECONDS / 2
            time.sleep(0.1)
        ended = next(process for process in processes if process.popen.poll() is not None)
        status, _, errors = ended.end()
    assert status == 2
    assert re.search(r"error: the port of .* is in use on this machine: is another process number 0 too\?", errors)


@pytest.fixture(scope="module")
def undisturbed(place) -> Path:
    finish(place, place / "undisturbed", *NOISE)
    return place / "undisturbed"


@pytest.mark.parametrize(
    "layout", [(), pytest.param(LANES + DISK, marks=pytest.mark.slow)], ids=["batch", "tasks, on disk"]
)
def test_two_processes_end_as_one_with_two_devices(place, tmp_path, layout):
    finish(place, tmp_path / "two", *layout)
    alone(place, tmp_path / "one", 2, *layout)
    assert_equal(tmp_path / "two", tmp_path / "one")


def test_sigterm_to_one_process_stops_both_at_the_same_call(place, tmp_path, undisturbed):
    """To the one that does not write; a run of one process tests the writer."""
    with two(place, tmp_path / "run", *NOISE) as processes:
        processes[0].until("call 3:")
        processes[1].popen.send_signal(signal.SIGTERM)
        ends = [process.end() for process in processes]
    for status, output, errors in ends:
        assert (status, output) == (0, ""), errors
    assert "checkpoint saved; run the same command to continue" in ends[0][2]
    assert not (tmp_path / "run" / "summary.json").exists()
    finish(place, tmp_path / "run", *NOISE)
    assert_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_other_and_the_same_command_goes_on(place, tmp_path, undisturbed, killed):
    with two(place, tmp_path / "run", *NOISE) as processes:
        processes[0].until("call 3:")
        processes[killed].popen.kill()
        status, output, errors = processes[1 - killed].end(90)
    assert (status, output) == (2, "")
    line = errors.splitlines()[-1]
    # By the connection that is closed, or by silence, whichever is met first.
    assert re.match("error: (another process was lost|process [01] of 2 (was lost|has given no sign of life))", line)
    assert "start the same command in all processes again to continue from the last checkpoint" in line
    finish(place, tmp_path / "run", *NOISE)
    assert_equal(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_process_that_does_nothing_more_is_taken_for_lost(place, tmp_path):
    with two(place, tmp_path / "run", *NOISE) as processes:
        processes[0].until("call 1:")
        processes[1].popen.send_signal(signal.SIGSTOP)
        status, _, errors = processes[0].end(60)
        assert status == 2
        assert "error: process 1 of 2 has given no sign of life for 1" in errors.splitlines()[-1]


def test_no_word_of_a_library_follows_the_line_of_an_end():
    """JAX's service may see the lost process while this one informs the others why it ends."""
    program = """
import os
from types import SimpleNamespace
from fastdfkd_jax.distributed import hosts

hosts._link = SimpleNamespace(tell=lambda line: os.write(2, b"    @     0x7fd2046a71f5  (unknown)"))
hosts.end("process 1 was lost")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: process 1 was lost\n")


def test_an_error_of_one_process_ends_both_with_a_line_each(place, tmp_path):
    with two(place, tmp_path / "run", *NOISE, own=("", "--config.seed=1")) as processes:
        ends = [process.end() for process in processes]
    expected = (
        "the config of this process differs from that of process 0 (seed: 0 there, 1 here): give all processes the "
        "same one"
    )
    for (status, output, errors), line in zip(ends, [f"process 1 of 2 failed: {expected}", expected], strict=True):
        assert (status, output) == (2, "")
        assert errors == f"error: {line}\n"


@pytest.mark.slow
def test_processes_without_a_common_folder_are_refused(place, tmp_path):
    elsewhere = f"--workdir={tmp_path / 'elsewhere'}"
    with two(place, tmp_path / "run", *NOISE, own=("", elsewhere)) as processes:
        for process in processes:
            status, _, errors = process.end()
            assert status == 2
            assert "elsewhere is not the folder that process 0 writes to: give one that all processes share" in errors


@pytest.mark.slow
def test_a_checkpoint_of_four_devices_goes_on_with_fewer(place, tmp_path):
    """And in two processes. Equal to rounding: other sums, which momentum carries on for some steps.

    At the rate of the other tests these grow a thousandfold within the student's twenty steps.
    """
    arguments = ("--config.calls=6", "--config.checkpoint_every=3", "--config.kd.lr=0.005")
    alone(place, tmp_path / "four", 4, *arguments)
    expected = results(tmp_path / "four")
    newest = max((tmp_path / "four" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    workdir = Path(shutil.copytree(tmp_path / "four", tmp_path / "on one"))
    shutil.rmtree(workdir / "checkpoints" / newest.name)
    said = alone(place, workdir, 1, *arguments)
    assert "resumed at call 3" in said
    assert "(devices, batch devices differ): results will agree to rounding only" in said
    compare_to_rounding(results(workdir), expected)
    shutil.rmtree(newest)
    finish(place, tmp_path / "four", *arguments)
    compare_to_rounding(results(tmp_path / "four"), expected)


def compare_to_rounding(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected["student"].items():
        np.testing.assert_allclose(found["student"][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    for name, rows in expected["pool"].items():
        levels = np.abs(found["pool"][name]["images"].astype(int) - rows["images"])
        assert levels.max() <= 1, name


def test_a_run_of_one_process_asks_nobody():
    assert (hosts.count(), hosts.is_writer()) == (1, True)
    assert not hosts.any_process(False)
    assert hosts.any_process(True)
    assert hosts.from_writer("name", [1]) == [1]
    hosts.require_same("config", {"seed": 0})
    hosts.require_shared(Path("/nowhere"), "file")
    with pytest.raises(KeyError), hosts.together():
        raise KeyError
