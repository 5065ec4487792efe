"""Kills or stops a run at random moments, resumes it each time, and compares its end with an undisturbed run's.

    python -m benchmarks.kill_trial --kills 10 --workdir DIR -- --config configs/quickstart.py
    python -m benchmarks.kill_trial --signals KILL,INT,HUP --command compare --workdir DIR -- --config FILE

What follows `--` are arguments of `fastdfkd_jax.main`, or of another command that resumes. Every file of every run is
compared, but for checkpoints, events and seconds. Prints one line of JSON; exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

# Of all runs to the end there is one; these tell how it came about.
_OF_THE_WAY = {"checkpoints", "events", "logs", ".lock"}


def start(command: str, arguments: list[str], workdir: Path) -> subprocess.Popen:
    """Starts one attempt of the run; its output is appended to a log beside the workdir."""
    # A shell has what it starts in the background ignore Ctrl-C, and nohup SIGHUP; here they must not be ignored.
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    code += f"runpy.run_module('fastdfkd_jax.{command}', run_name='__main__', alter_sys=True)"
    line = [sys.executable, "-c", code, *arguments, "--workdir", str(workdir)]
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(line, stdout=log, stderr=log)


def finish(command: str, arguments: list[str], workdir: Path) -> float:
    """Runs to the end; returns the seconds it took."""
    begin = time.perf_counter()
    status = start(command, arguments, workdir).wait()
    if status:
        raise SystemExit(f"the run ended with status {status}: see {workdir.with_suffix('.log')}")
    return time.perf_counter() - begin


def outcome(workdir: Path) -> dict[str, str]:
    """Returns what must be equal: the SHA-256 of each file of each run, and its summary without seconds and memory."""
    found = {}
    for run in (path.parent for path in sorted(workdir.rglob("summary.json"))):
        for path in sorted(run.rglob("*")):
            name = path.relative_to(workdir)
            if path.is_file() and not _OF_THE_WAY & set(name.parts) and path.name != "summary.json":
                found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
        summary = json.loads((run / "summary.json").read_text())
        kept = {key: value for key, value in summary.items() if not key.endswith(("_seconds", "_bytes"))}
        found[str((run / "summary.json").relative_to(workdir))] = json.dumps(kept, sort_keys=True)
    return found


def disturb(process: subprocess.Popen, number: int) -> None:
    """Kills a process, or asks it to end and waits until it has."""
    process.send_signal(number)
    try:
        process.wait(600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise SystemExit(f"{signal.Signals(number).name} did not end the run within 600 s") from None


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--signals", default="KILL", help="names, of which each time one is drawn")
    parser.add_argument("--within", type=float, help="seconds of a start in which it is disturbed")
    parser.add_argument("--command", default="main", help="module of fastdfkd_jax")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", default=["--config", "configs/quickstart.py"])
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    seconds = finish(args.command, args.arguments, args.workdir / "undisturbed")
    drawn, disturbances = random.Random(args.seed), []
    names = args.signals.split(",")
    while len(disturbances) < args.kills:
        # Later moments would let the run end before it has been disturbed as often as asked.
        moment, name = drawn.uniform(0, args.within or seconds / 2.5), drawn.choice(names)
        process = start(args.command, args.arguments, args.workdir / "killed")
        try:
            process.wait(moment)
            break  # it ended before the moment came; the result names fewer kills
        except subprocess.TimeoutExpired:
            disturb(process, getattr(signal, f"SIG{name}"))
            disturbances.append([name, round(moment, 2), process.returncode])
    if args.command == "compare":
        time.sleep(30)  # the runs of a killed comparison save before they end
    finish(args.command, args.arguments, args.workdir / "killed")
    expected, found = outcome(args.workdir / "undisturbed"), outcome(args.workdir / "killed")
    names = expected.keys() | found.keys()
    wrong = sorted(name for name in names if expected.get(name) != found.get(name))
    result = {"disturbed": disturbances, "undisturbed_seconds": round(seconds, 1), "files": len(expected)}
    print(json.dumps(result | {"differences": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
