r"""Screens changes of Fast-10's recipe, all in one design, at a third of the short protocol, on two CPU cores.

    fastdfkd compare screening --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th

Students are scored on 5,000 images of the training split, so that no choice is made on the test split. The runs have
20 calls of 128 images and some 1,100 student steps. All use what lets seeds differ least: the student's rate rises at
first, its weights are averaged, and its batches are shuffled passes over the pool.

The design is Plackett and Burman's (1946) for twelve runs: each of eleven changes is made in half of them, and any two
are made together in a quarter. A change's effect is the mean of the runs with it minus the mean of those without, so
each effect is as sure as if all twelve runs had been for that change alone. The `mirrored` runs make just the changes
that their counterparts leave out; in the two halves together, no effect is confounded with the interaction of two
others. `benchmarks/screening.py` makes the table of effects from the records.
"""

from fastdfkd_jax.configs import cifar, noise
from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError

AT = runs.CPU
K = 10
CALLS, STEPS = 20, 1100  # a third of 60 and 3,300
BASE = {
    "calls": CALLS,
    "eval_every": CALLS,
    "held_out": False,
    "data.split": "train[45000:]",
    "kd.rate_warmup_steps": 100,
    "kd.ema_decay": 0.99,
    "pool.draw": "passes",
}
# What is changed: (values of Fast-10, values that are tried). Warm-up calls change the steps a call too.
CHANGES = {
    "class weight": ({"inversion.class_weight": 0.4}, {"inversion.class_weight": 2.0}),
    "feature weight": ({"inversion.feature_weight": 10.0}, {"inversion.feature_weight": 3.0}),
    "adversarial weight": ({"inversion.adversarial_weight": 1.1}, {"inversion.adversarial_weight": 0.4}),
    "generator's rate": (
        {"inner.generator_lr": 2e-3, "meta.lr": 2e-3 * K},
        {"inner.generator_lr": 4e-3, "meta.lr": 4e-3 * K},
    ),
    "CutMix": ({"kd.cutmix": 0.0}, {"kd.cutmix": 0.5}),
    "temperature": ({"kd.temperature": 20.0}, {"kd.temperature": 4.0}),
    "loss": ({"kd.loss": "kl"}, {"kd.loss": "decoupled"}),
    "student's rate": ({"kd.lr": 0.1}, {"kd.lr": 0.2}),
    "warm-up calls": ({"warmup_calls": 2}, {"warmup_calls": 8}),
    "weight decay": ({"kd.weight_decay": 1e-4}, {"kd.weight_decay": 5e-4}),
    "least crop": ({"kd.least_crop": 0.0}, {"kd.least_crop": 0.5}),
}
# The first row of the design; each next one is shifted by one, and the last makes no change.
_FIRST = (True, True, False, True, True, True, False, False, False, True, False)
# The mirrored half has another seed, so that seeds are not confounded with the changes of one half.
SEEDS = {"": 0, "mirrored": 1}


def design(half=""):
    """Returns which changes each of the twelve runs of a half makes, in the order of `CHANGES`."""
    rows = [tuple(_FIRST[(column - shift) % 11] for column in range(11)) for shift in range(11)] + [(False,) * 11]
    return rows if half == "" else [tuple(not made for made in row) for row in rows]


def name_of(half, number):
    """Returns the name of a half's run with this number, from 0."""
    return f"{AT.variant()}-screening-{half}{'-' if half else ''}{number:02d}"


def get_config(variant=None):
    """Returns the comparison with one table, for CPUs."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: this config has none, leave it out")
    made, rows = [], []
    for half, seed in SEEDS.items():
        for number, row in enumerate(design(half)):
            made.append(_run(name_of(half, number), row, seed))
            changed = ", ".join(name for name, is_made in zip(CHANGES, row, strict=True) if is_made)
            rows.append(parts.row(AT.section, changed or "Fast-10, a third", made[-1][0], is_reference=not changed))
    control = noise.get_config(AT.variant())
    _set(control, (False,) * 11)
    made.append(AT.run("screening-noise", control))
    rows.append(parts.row(AT.section, "noise control", made[-1][0], is_control=True))
    caption = "Changes of Fast-10's recipe, scored on 5,000 images of the training split."
    tables = [parts.table("screening-cpu", rows, caption=caption, brief=True)]
    return parts.comparison(runs=made, tables=tables, teachers=[AT.teacher])


def _run(name, row, seed):
    config = cifar.make(AT.dataset, AT.variant(f"fast{K}"))
    _set(config, row)
    return parts.run(name, config, seeds=(seed,), teacher=AT.teacher)


def _set(config, row):
    values = dict(BASE)
    for (base, tried), is_made in zip(CHANGES.values(), row, strict=True):
        values |= tried if is_made else base
    # As many whole calls with the student as there are, so at most a few steps less than STEPS.
    steps = STEPS // (CALLS - values["warmup_calls"])
    values |= {"kd.steps_per_call": steps, "kd.steps_per_dispatch": steps}
    config.lock().update_from_flattened_dict(values)
