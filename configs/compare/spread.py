"""The spread of seeds: Fast-5 by the protocol `short` with five forms of the student's recipe; for two CPU cores.

    fastdfkd compare spread --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th

The present form is the run that Tables 1, 4 and 5 show with seeds 0 to 2, and has the same folder; each comparison
shows its own seeds of it.

Of eight seeds a deviation is known to a factor of 0.66 to 2.04 (95 %, normal scores), and a ratio
of two such deviations to a factor of 2.23 either way: a smaller difference says nothing.
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError

SEEDS = tuple(range(3, 11))
WARMUP_STEPS = 300  # of 3,300
EMA_DECAY = 0.99  # of the student's weights: the mean of about a hundred steps
WARM_UP = {"kd.rate_warmup_steps": WARMUP_STEPS}
AVERAGED = {"kd.ema_decay": EMA_DECAY}
PASSES = {"pool.draw": "passes"}
# label: (end of the run's name, what differs from the present form)
FORMS = {
    "Fast-5, present form": ("", {}),
    "Fast-5, warm-up of the student's rate": ("_warmup", WARM_UP),
    "Fast-5, averaged student": ("_average", AVERAGED),
    "Fast-5, pool in shuffled passes": ("_passes", PASSES),
    "Fast-5, all three": ("_warmup_average_passes", {**WARM_UP, **AVERAGED, **PASSES}),
}


def get_config(variant=None):
    """One table, for CPUs."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: expected none")
    at = runs.CPU
    made = {label: form(at, ending, changes) for label, (ending, changes) in FORMS.items()}
    present = next(iter(made))
    rows = [parts.row(at.section, label, run[0], is_reference=label == present) for label, run in made.items()]
    caption = "Spread of seeds with the student's recipe in several forms."
    tables = [parts.table("spread-cpu", rows, caption=caption, spread=True)]
    return parts.comparison(runs=made.values(), tables=tables, teachers=[at.teacher])


def form(at, ending, changes):
    """The run of a form; a key that the configuration lacks is refused."""
    config = runs.fast(at, 5)[1].config
    config.lock().update_from_flattened_dict(changes)
    return at.run(f"fast5{ending}", config, seeds=SEEDS)
