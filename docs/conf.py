"""The documentation site: `sphinx-build -W docs site`.

Executes the tutorials, and generates the pages of commands and metrics.
"""

import contextlib
import io
import pathlib

from fastdfkd_jax import __main__ as command
from fastdfkd_jax import __version__
from fastdfkd_jax.cli.parser import PROGRAM
from fastdfkd_jax.training import described

project, copyright, release = "fastdfkd_jax", "the fastdfkd_jax authors, Apache-2.0", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "tutorials/runs"]
html_theme, html_title = "furo", "fastdfkd_jax"

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which tests/test_readme.py checks
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "auto", 300, True
nb_execution_in_temp, nb_merge_streams = True, True

napoleon_use_ivar = True
autodoc_member_order, autodoc_typehints = "bysource", "description"

# --- The page of commands, from their own help

_BELOW = ("import", "verify", "export", "record")  # of convert
_LISTED = [[], *([name] for name in command.COMMANDS), *(["convert", name] for name in _BELOW)]


def _help(arguments: list[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command.main([PROGRAM, *arguments, "--help"])
    return printed.getvalue().rstrip()


def _commands() -> str:
    parts = ["# Commands\n\nGenerated from `--help`.\n"]
    for arguments in _LISTED:
        title = " ".join([PROGRAM, *arguments])
        parts.append(f"## {title}\n\n```text\n{_help(arguments)}\n```\n")
    return "\n".join(parts)


for _name, _page in (("commands.md", _commands()), ("metrics.md", described.page())):
    pathlib.Path(__file__).with_name(_name).write_text(_page, encoding="utf-8")
