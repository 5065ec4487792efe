"""The page of all options, generated from their classes: `python tests/options_page.py docs/options.md`."""

import dataclasses
import pathlib
import sys

import runs  # noqa: F401 - makes configs importable

from fastdfkd_jax.configs import default
from fastdfkd_jax.options import Options, by_section, part, ranges, said, section
from fastdfkd_jax.storage import markdown
from fastdfkd_jax.training.run_options import every_kind

_HEAD = """# Every option

Generated from the classes that `configs/default.py` names (`python tests/options_page.py docs/options.md`).
Set one on the command line by `KEY=VALUE`.
"""


def sections() -> list[type[Options]]:
    """The class of each section, in the order of the default config."""
    found = by_section(every_kind())
    names = ["", *(name for name, value in default.get_config().items() if hasattr(value, "items"))]
    return [found[name] for name in names]


def page() -> str:
    """The page."""
    out = [_HEAD]
    for kind in sections():
        summary = (kind.__doc__ or "").splitlines()[0]
        out.append(f"## {kind.section or 'The run itself'}\n{summary} `{kind.__name__}` in `{_file(kind)}`.\n")
        values, rows = section(kind), []
        for each in dataclasses.fields(kind):
            if part(each) is None:
                key = f"{kind.section}.{each.name}".lstrip(".")
                about = said(kind, each.name)["about"]
                rows.append((f"`{key}`", f"`{values[each.name]!r}`", ranges(kind, each.name), about))
        out.append(markdown.table(("key", "default", "range", ""), rows))
    return "\n".join(out)


def _file(kind: type[Options]) -> str:
    return kind.__module__.replace(".", "/") + ".py"


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(page(), encoding="utf-8")
