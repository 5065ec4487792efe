"""The documentation site: `sphinx-build -W docs site`.

Executes the tutorials, and generates the pages of commands and metrics.
"""

import contextlib
import io
import pathlib
import tomllib

from docutils import nodes
from sphinx import addnodes

from fastdfkd_jax import __main__ as command
from fastdfkd_jax import __version__
from fastdfkd_jax.cli.parser import PROGRAM
from fastdfkd_jax.training import described

project, copyright, release = "fastdfkd_jax", "the fastdfkd_jax authors, Apache-2.0", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "tutorials/runs"]
html_theme, html_title = "furo", "fastdfkd_jax"
html_static_path, html_css_files = ["_static"], ["site.css"]

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "auto", 900, True
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


# --- Links to files outside this folder, which GitHub resolves by itself

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Such as https://github.com/NAME/fastdfkd_jax; without one, the site has copies of the files.
_REPOSITORY = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"].get("Repository")


def _link_files_of_the_repository(app, doctree):
    """Turns links to files outside docs/ into links to the repository, or to copies of the files."""
    for node in list(doctree.findall(lambda node: getattr(node, "attributes", {}).get("reftype") == "myst")):
        if node.get("refdomain") == "doc":  # of a Markdown file: MyST counts from docs/, and leaves out the suffix
            path = _ROOT / "docs" / f"{node['reftarget']}.md"
        else:
            path = (_ROOT / "docs" / node["refdoc"]).parent / node["reftarget"]
        path = path.resolve()
        if not path.is_file() or path.is_relative_to(_ROOT / "docs"):
            continue
        place = path.relative_to(_ROOT).as_posix()
        if _REPOSITORY:
            link = nodes.reference("", "", *node.children, refuri=f"{_REPOSITORY}/blob/main/{place}", internal=False)
        else:
            link = addnodes.download_reference("", "", *node.children, reftarget=f"/../{place}", refdoc=node["refdoc"])
        node.replace_self(link)


def setup(app):
    app.connect("doctree-read", _link_files_of_the_repository, priority=400)  # before Sphinx collects the copies
