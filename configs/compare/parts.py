"""Building blocks of compare configs: runs, rows, tables, and the keys that apply to all runs."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from fastdfkd_jax.compare import synthesis
from fastdfkd_jax.compare.keys import KEYS
from fastdfkd_jax.errors import UserError

Named = tuple[str, ConfigDict]

# Seeds of the rows that support a claim; other rows have one.
SEEDS = (0, 1, 2)


def comparison(*, runs: Iterable[Named], tables: Iterable[Named], teachers: Iterable[str] = ()) -> ConfigDict:
    """Returns a compare config.

    Args:
      runs: results of `run`; runs of the same name must be equal.
      tables: results of `table`.
      teachers: keys of the teachers that the user must give.
    """
    config = ConfigDict()
    config.teachers = ConfigDict(dict.fromkeys(teachers, ""))  # checkpoints, by the keys that runs name
    for name, key in KEYS.items():
        config[name] = key.default
    config.runs = ConfigDict(sort_keys=False)
    for name, entry in runs:
        if name in config.runs and config.runs[name] != entry:
            raise UserError(f"two different runs are called {name!r}: give them different names")
        config.runs[name] = entry
    config.tables = ConfigDict(sort_keys=False)
    for name, entry in tables:
        config.tables[name] = entry
    return config


def run(
    name: str, config: ConfigDict, *, seeds: tuple[int, ...] = (0,), teacher: str = "", other_data: bool = False
) -> Named:
    """Returns a named run.

    Args:
      name: name of its folder; the same run has the same name in every table.
      config: config of `fastdfkd_jax.main`.
      seeds: random seeds, one process each.
      teacher: key of the teacher's checkpoint; '' if the config has it.
      other_data: whether `other_data` replaces the config's `transfer.source`.
    """
    entry = ConfigDict({"seeds": seeds, "teacher": teacher, "other_data": other_data})
    entry.config = config
    return name, entry


def table(
    name: str,
    rows: Iterable[ConfigDict],
    *,
    caption: str,
    paper: str = "paper",
    spread: bool = False,
    brief: bool = False,
) -> Named:
    """Returns a named table.

    Args:
      name: name of its files.
      rows: results of `row`.
      caption: one sentence.
      paper: heading of the columns with the paper's figures.
      spread: whether to add a column with each row's deviation divided by that of the reference.
      brief: whether to show only accuracies and seconds.
    """
    entry = ConfigDict({"caption": caption, "paper": paper, "spread": spread, "brief": brief})
    entry.rows = ConfigDict({f"row{i:03d}": made for i, made in enumerate(rows)})
    return name, entry


def row(
    section: str,
    label: str,
    run: str = "",
    *,
    paper: tuple[float | None, float | None] = (None, None),
    shows: str = "student",
    times: float = 0.0,
    knows: str = "",
    is_reference: bool = False,
    is_control: bool = False,
    share: float | None = None,
) -> ConfigDict:
    """Returns a row (`fastdfkd_jax.compare.comparison.Row`); `paper` is the paper's accuracy in percent and hours."""
    made = ConfigDict({"section": section, "label": label, "run": run, "shows": shows, "times": times, "knows": knows})
    made.is_reference, made.is_control = is_reference, is_control
    made.paper_accuracy, made.paper_hours = paper
    made.share = share
    return made


def share(run: Named, published: ConfigDict | None) -> float | None:
    """Returns a run's synthesis as a share of a published recipe's (`Row.share`).

    None if there is no such recipe, or if it synthesises nothing.
    """
    whole = 0 if published is None else synthesis.images_with_gradient(published)
    return synthesis.images_with_gradient(run[1].config) / whole if whole else None


def union(configs: Iterable[ConfigDict]) -> ConfigDict:
    """Returns one comparison with the runs, tables and teachers of several."""
    configs = list(configs)
    return comparison(
        runs=[named for config in configs for named in config.runs.items()],
        tables=[named for config in configs for named in config.tables.items()],
        teachers=[name for config in configs for name in config.teachers],
    )
