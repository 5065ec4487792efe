"""The rooms of the package as its imports make them; `python tests/structure.py docs/rooms.svg` draws them."""

import ast
import collections
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "fastdfkd_jax"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
# Each imports itself and those before it. A door is a command: the rooms know nothing of it.
ROOMS = ("errors", "options", "cli", "storage", "cpu_conv", "augmentation", "models", "moments", "losses", "meta")
ROOMS += ("distributed", "distillation", "data", "pool", "convert", "evaluation", "methods", "training")
DOORS = ("evaluate", "export", "report", "overlay", "pretrain", "main", "own_networks", "compare", "__main__")

_WIDTH, _HEIGHT, _GAP, _RISE = 118, 40, 18, 64  # of a box, and from box to box and row to row


def tree_of(parts):
    """The syntax of a module."""
    return ast.parse(PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8"))


def imports(parts):
    """Full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(tree_of(parts)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(parts):
    """The rooms of ours that a file imports; the package itself has the version and no room."""
    names = [name.split(".") for name in imports(parts) if name.startswith("fastdfkd_jax.")]
    return {name[1] for name in names} - {"__version__"}


def graph():
    """Returns the imports of each room, by name."""
    found = collections.defaultdict(set)
    for parts in MODULES:
        if parts != ("__init__",):
            found[parts[0]] |= rooms(parts) - {parts[0]}
    return dict(found)


def rows(of):
    """Rooms by how many stand below them, the lowest first."""
    depth = {}
    for room in ROOMS + DOORS:
        depth[room] = 1 + max((depth[below] for below in of[room]), default=-1)
    return [[room for room in ROOMS + DOORS if depth[room] == level] for level in range(max(depth.values()) + 1)]


def reach(of, room):
    """All that a room imports, itself or by others."""
    return of[room].union(*(reach(of, below) for below in of[room]))


def direct(of, room):
    """The imports of a room that none of its other imports has."""
    return {below for below in of[room] if not any(below in reach(of, other) for other in of[room] - {below})}


def lines_of(room):
    """How many lines a room has, and how many files."""
    paths = [PACKAGE.joinpath(*parts).with_suffix(".py") for parts in MODULES if parts[0] == room]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths), len(paths)


def svg():
    """The picture: a line goes down to each room that is imported, unless another import has it already."""
    of = graph()
    levels = rows(of)
    most = max(map(len, levels))
    width, height = most * (_WIDTH + _GAP) + _GAP, len(levels) * _RISE + _GAP
    place = {}
    for level, names in enumerate(levels):
        left = (width - len(names) * (_WIDTH + _GAP) + _GAP) / 2
        for number, name in enumerate(names):
            place[name] = left + number * (_WIDTH + _GAP), height - (level + 1) * _RISE + (_RISE - _HEIGHT) / 2
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for name, (x, y) in place.items():
        for below in sorted(direct(of, name)):
            to_x, to_y = place[below]
            ends = f'x1="{x + _WIDTH / 2:g}" y1="{y + _HEIGHT:g}" x2="{to_x + _WIDTH / 2:g}" y2="{to_y:g}"'
            out.append(f'<line {ends} stroke="#999"/>')
    for name, (x, y) in place.items():
        fill = "#dbe9f6" if name in ROOMS else "#fde9c9"
        out.append(
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="{fill}" stroke="#555"/>'
        )
        out.append(f'<text x="{x + _WIDTH / 2:g}" y="{y + 25:g}" font-size="14" text-anchor="middle">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(svg(), encoding="utf-8")
    for room in ROOMS + DOORS:
        print("{:14} {:6,} lines in {:2} files".format(room, *lines_of(room)))
