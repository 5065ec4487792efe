"""Links and quotations of the documents: anchors exist, on GitHub and on the site; quoted errors are the program's."""

import ast
import re

import pytest
from runs import ROOT

from fastdfkd_jax.training import described

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {ROOT / line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith(".md")}
DOCUMENTS = [path for path in DOCUMENTS if path not in GENERATED]


def prose(path):
    """The text of a document without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(path):
    """The anchors that GitHub, and MyST likewise, gives to headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(path), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def links(path):
    """The relative links of a document, each as file and anchor."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:", target):
            file, _, anchor = target.partition("#")
            yield target, (path.parent / file).resolve() if file else path, anchor


def broken(path):
    for target, file, anchor in links(path):
        if not file.exists() or file in GENERATED or (anchor and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_anchors_lead_somewhere(path):
    assert not list(broken(path))


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[x](#a-b-c) [y](#nothing) [z](none.md) [w](https://a.org)\n```\n# no\n```\n[v](#no)\n")
    assert list(broken(page)) == ["#nothing", "none.md", "#no"]


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^[\w/-]+$", (ROOT / "docs/index.md").read_text(encoding="utf-8"), re.M)
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages | {"commands"} == {"index", "commands", *listed}
    assert len(listed) == len(set(listed))


def test_the_page_of_metrics_is_generated():
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == described.page(), "run: sphinx-build docs site"


# --- Errors in docs/troubleshooting.md


def said():
    """Every text in the package's source; `…` stands for what an f-string inserts."""
    for path in (ROOT / "fastdfkd_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


QUOTED = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)


@pytest.fixture(scope="module")
def texts():
    return list(said())


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_errors_are_the_programs(quoted, texts):
    """A message may be made of several texts, such as require's frame and what it expected."""
    fixed = [part.strip(" ,") for part in quoted.split("…") if len(part.strip(" ,.:")) > 3]
    assert sum(map(len, fixed)) > 12
    whole = re.compile(".*".join(map(re.escape, fixed)), re.S)
    in_parts = all(any(part in text for text in texts) for part in fixed)
    assert any(whole.search(text) for text in texts) or (quoted.startswith("config.…") and in_parts)


def test_many_errors_are_quoted():
    assert len(QUOTED) > 20
