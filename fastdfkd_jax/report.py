"""Makes the table of recorded runs.

`fastdfkd report results` prints a Markdown table of recorded runs. With `--into README.md`, the table replaces the text
between the lines `<!-- results -->` and `<!-- /results -->`. With `--add WORKDIR --as NAME/SEED`, the command first
records a finished run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import PROGRAM, OneLineParser
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.markdown import insert_all
from fastdfkd_jax.training.run_records import add, table


def main(argv: Sequence[str]) -> None:
    """Parses the command line, records a run if asked, and prints or inserts the table."""
    parser = OneLineParser(prog=f"{PROGRAM} report", description="A table of recorded runs.")
    parser.add_argument("results", type=Path, help="folder of records, NAME/SEED/summary.json")
    parser.add_argument("--into", type=Path, help="Markdown file to insert the table into")
    parser.add_argument("--add", type=Path, metavar="WORKDIR", help="a finished run to record first")
    parser.add_argument("--as", dest="name", metavar="NAME/SEED", help="name of the record in the folder")
    parser.add_argument("--untimed", action="store_true", help="leave out the seconds, as the machine was busy")
    args = parser.parse_args(argv[1:])
    if args.add is not None:
        if not args.name:
            raise UserError("--add needs the place of the record: give --as NAME/SEED")
        add(args.add, args.results / args.name, timed=not args.untimed)
    block = table(args.results)
    if args.into is None:
        print(block, end="")
        return
    insert_all(args.into, {"": block})


if __name__ == "__main__":
    run_command(main)
