"""What compare configs are made of: runs, rows and tables, and the keys that apply to all runs."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from fastdfkd_jax.compare import synthesis
from fastdfkd_jax.errors import UserError

Named = tuple[str, ConfigDict]

# Seeds of the rows that a claim rests on; one elsewhere.
SEEDS = (0, 1, 2)


def comparison(*, runs: Iterable[Named], tables: Iterable[Named], teachers: Iterable[str] = ()) -> ConfigDict:
    """A compare config.

    Args:
      runs: of `run`; several of one name must be equal.
      tables: of `table`.
      teachers: keys of the teachers that must be given.
    """
    config = ConfigDict()
    config.teachers = ConfigDict(dict.fromkeys(teachers, ""))  # checkpoints, by the keys that runs name
    config.data_source = ""  # data.source of all runs, evaluation only; '' for each run's own
    config.data_dir = ""  # data.dir of all runs, and transfer.dir of those that learn from the original data
    config.other_data = ""  # transfer.source of the runs on other data than the teacher's; '' for the config's own
    config.other_data_dir = ""
    config.only = ""  # names of runs, or patterns as cifar10-*, with commas between; '' for all
    config.seeds = ""  # of all runs, as 0,1,2; '' for each run's own; tables show these alone
    config.jobs = 1  # runs at once, each on its share of the cores
    config.estimate = True  # measure each configuration once, for the plan
    config.time_all = False  # measure all of them anew and stop: times of runs that shared the machine, once it is idle
    config.dry_run = False  # print the plan and stop
    config.tables_only = False  # run nothing: make the tables of the runs or records in the workdir
    config.record = ""  # folder to which finished runs are copied as records, and the tables of these
    config.timed = True  # whether the machine did nothing else; otherwise records have the seconds of time_all, or none
    # Markdown files, with commas between, that have lines <!-- results compare/TABLE --> and <!-- /results -->
    config.into = ""

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
    """A run.

    Args:
      name: of its folder; wherever the same run is wanted, the same name.
      config: of `fastdfkd_jax.main`.
      seeds: one process each.
      teacher: key of the teacher's checkpoint; '' where the config has it.
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
    """A table.

    Args:
      name: of its files.
      rows: of `row`.
      caption: one sentence.
      paper: how its columns of the paper's figures are called.
      spread: whether a column has each row's deviation over that of the reference.
      brief: whether it has accuracies and seconds only.
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
    """A row (`fastdfkd_jax.compare.comparison.Row`); `paper` is the paper's accuracy in percent and its hours."""
    made = ConfigDict({"section": section, "label": label, "run": run, "shows": shows, "times": times, "knows": knows})
    made.is_reference, made.is_control = is_reference, is_control
    made.paper_accuracy, made.paper_hours = paper
    made.share = share
    return made


def share(run: Named, published: ConfigDict | None) -> float | None:
    """The share of a published recipe's synthesis that a run has (`Row.share`).

    None where there is no such recipe, or it synthesises nothing.
    """
    whole = 0 if published is None else synthesis.images_with_gradient(published)
    return synthesis.images_with_gradient(run[1].config) / whole if whole else None


def union(configs: Iterable[ConfigDict]) -> ConfigDict:
    """One comparison with the runs, tables and teachers of several."""
    configs = list(configs)
    return comparison(
        runs=[named for config in configs for named in config.runs.items()],
        tables=[named for config in configs for named in config.tables.items()],
        teachers=[name for config in configs for name in config.teachers],
    )
