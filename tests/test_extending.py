"""The extensions that docs/extending.md shows are applied to a copy of the package, and a run has them all."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from runs import ROOT

PROGRAM = """
import sys
from pathlib import Path

import jax
import numpy as np

sys.path[:0] = ["tests"]
from runs import tiny_config

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.training import one_run

digits = data.load("digits", "test[:16]")
np.save("test_images.npy", digits.images)
np.save("test_labels.npy", digits.labels)
spec = models.NetworkSpec("lenet", 10, 16, 1, (0.3,), (0.3,))
teacher = models.build(spec)
convert.save_network("teacher.safetensors", teacher, jax.jit(teacher.init)(jax.random.key(0)))
config = tiny_config(
    teacher__checkpoint="teacher.safetensors", teacher__arch="lenet", teacher__image_size=16, student__arch="lenet",
    data__source="npy:.", data__split="test", data__batch=16, inversion__l2_weight=1e-3, pool__newest=8,
)
one_run.run(config, Path("run"))
"""


@pytest.mark.slow
def test_the_shown_extensions_work_together(tmp_path):
    for folder in ("fastdfkd_jax", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "graphs"))
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    diffs = re.findall(r"^```diff\n(.*?)^```", text, re.M | re.S)
    assert len(diffs) == text.count("\n## ")
    for diff in diffs:
        done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [record for record in records if record["call"] == 3 and "synthesis/loss/l2" in record]
    assert last["synthesis/loss/l2"] > 0
