"""Commands that start again with huge pages."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
from fastdfkd_jax import huge_pages
huge_pages._SYSTEM_MODE = Path(sys.argv[1])
with open(sys.argv[2], "a") as file:
    file.write("started\\n")
huge_pages.restart_with_huge_pages()
print(json.dumps({"tunables": os.environ.get("GLIBC_TUNABLES", ""), "pid": os.getpid(), "argv": sys.argv[1:]}))
"""


def run(folder, mode, tunables):
    """What the script printed, how many times it was started, and its process's number."""
    if mode:
        (folder / "mode").write_text(mode)
    arguments = [str(folder / "mode"), str(folder / "starts"), "a word", "--flag=x"]
    environment = os.environ | {"GLIBC_TUNABLES": tunables}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        said, _ = process.communicate()
    assert process.returncode == 0
    said = json.loads(said)
    assert said["argv"] == arguments
    assert said["pid"] == process.pid
    return said["tunables"], len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("mode", "before", "after", "starts"),
    [
        ("always [madvise] never", "", "glibc.malloc.hugetlb=1", 2),
        ("always [madvise] never", "glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1", 2),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0", 1),
        ("[always] madvise never", "", "", 1),
        ("always madvise [never]", "", "", 1),
        ("", "", "", 1),
    ],
)
def test_a_command_starts_again_once_where_huge_pages_are_given_on_request(tmp_path, mode, before, after, starts):
    assert run(tmp_path, mode, before) == (after, starts)
