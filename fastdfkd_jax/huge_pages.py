"""Memory in huge pages, for commands on Linux.

A compiled program passes over arrays of megabytes. In pages of 4 kB a CPU spends a tenth of a synthesis call, and a
quarter of a KD step of thin networks, on finding them. The C library can ask for larger ones, but takes the wish only
from the environment that a process starts with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SYSTEM_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts the running command again, in the same process, with huge pages asked for.

    Returns where there is nothing to ask: the system gives huge pages always or never, or the environment says
    already, as `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` does to keep small ones. To be called before anything large is
    imported and anything is opened.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables or not sys.executable or not _on_request():
        return
    os.environ[_TUNABLES] = ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    try:
        return "[madvise]" in _SYSTEM_MODE.read_text()
    except OSError:
        return False
