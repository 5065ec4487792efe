r"""Measures the spread over seeds of Fast-5 with five forms of the student's recipe, on two CPU cores.

The protocol is `short`.

    fastdfkd compare spread --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th

The present form is the run that Tables 1, 4 and 5 show with seeds 0 to 2. It has the same folder there; each comparison
shows its own seeds of the run.

Eight seeds determine a standard deviation to within a factor of 0.66 to 2.04 (95 %, normal scores). They determine a
ratio of two such deviations to within a factor of 2.23 either way, so smaller differences are not significant.
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError

SEEDS = tuple(range(3, 11))
WARMUP_STEPS = 300  # of 3,300
EMA_DECAY = 0.99  # of the student's weights; averages about a hundred steps
WARM_UP = {"kd.rate_warmup_steps": WARMUP_STEPS}
AVERAGED = {"kd.ema_decay": EMA_DECAY}
PASSES = {"pool.draw": "passes"}
# label: (end of the run's name, changes to the present form)
FORMS = {
    "Fast-5, present form": ("", {}),
    "Fast-5, warm-up of the student's rate": ("_warmup", WARM_UP),
    "Fast-5, averaged student": ("_average", AVERAGED),
    "Fast-5, pool in shuffled passes": ("_passes", PASSES),
    "Fast-5, all three": ("_warmup_average_passes", {**WARM_UP, **AVERAGED, **PASSES}),
}


def get_config(variant=None):
    """Returns the comparison with one table, for CPUs."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: this config has none, leave it out")
    at = runs.CPU
    made = {label: form(at, ending, changes) for label, (ending, changes) in FORMS.items()}
    present = next(iter(made))
    rows = [parts.row(at.section, label, run[0], is_reference=label == present) for label, run in made.items()]
    caption = "Spread of seeds with the student's recipe in several forms."
    tables = [parts.table("spread-cpu", rows, caption=caption, spread=True)]
    return parts.comparison(runs=made.values(), tables=tables, teachers=[at.teacher])


def form(at, ending, changes):
    """Returns the run of a form; raises if the configuration lacks a changed key."""
    config = runs.fast(at, 5)[1].config
    config.lock().update_from_flattened_dict(changes)
    return at.run(f"fast5{ending}", config, seeds=SEEDS)
