r"""Table 1 of the paper: students on CIFAR-10 and CIFAR-100 for five pairs, and their synthesis cost.

    fastdfkd compare table1 --workdir DIR data_dir=DATA \
        teachers.cifar10_wrn40_2=PATH ...

These are about a hundred runs at published size, for GPUs; `only='cifar10-wrn40_2-wrn16_1-*'` selects some of them.
DAFL, ZSKT and DFQ follow CMI's scripts, the source of the paper's figures (`-table1` of their configs). CMI follows
FastDFKD's code, without the images that the paper's run started from (configs/cmi.py).

`:cpu` is one pair for two CPU cores, ResNet-20 -> WRN-16-1 on CIFAR-10 with the protocol `short`. It has more methods
than the paper:

    fastdfkd compare table1:cpu --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th other_data=folder:PICTURES
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.base import ORIGINAL_DATA

PAIRS = ("resnet34-resnet18", "vgg11-resnet18", "wrn40_2-wrn16_1", "wrn40_2-wrn40_1", "wrn40_2-wrn16_2")
NONE = (None,) * 5
# data set: {row: (accuracies by pair, hours by pair)}, from the paper; 'KD' of CIFAR-10 as printed there (METHOD T13)
PAPER = {
    "cifar10": {
        "Teacher": ((95.70, 92.25, 94.87, 94.87, 94.87), NONE),
        "Student": ((95.20, 95.20, 91.12, 93.94, 93.95), NONE),
        "KD": ((95.20, 95.20, 95.20, 95.20, 95.20), NONE),
        "DeepInversion": ((93.26, 90.36, 83.04, 86.85, 89.72), (42.1, 20.2, 16.9, 21.9, 18.2)),
        "CMI": ((94.84, 91.13, 90.01, 92.78, 92.52), (19.0, 11.6, 13.3, 14.1, 13.6)),
        "DAFL": ((92.22, 81.10, 65.71, 81.33, 81.55), (2.73, 0.73, 1.73, 1.53, 1.60)),
        "ZSKT": ((93.32, 89.46, 83.74, 86.07, 89.66), (1.67, 0.33, 0.87, 0.87, 0.87)),
        "DFQ": ((94.61, 90.84, 86.14, 91.69, 92.01), (8.79, 1.50, 0.75, 0.75, 0.75)),
        "Fast-2": ((92.62, 84.67, 88.36, 89.56, 89.68), (0.06, 0.03, 0.03, 0.03, 0.03)),
        "Fast-5": ((93.63, 89.94, 88.90, 92.04, 91.96), (0.14, 0.08, 0.08, 0.09, 0.08)),
        "Fast-10": ((94.05, 90.53, 89.29, 92.51, 92.45), (0.28, 0.15, 0.15, 0.17, 0.17)),
    },
    "cifar100": {
        "Teacher": ((78.05, 71.32, 75.83, 75.83, 75.83), NONE),
        "Student": ((77.10, 77.10, 65.31, 72.19, 73.56), NONE),
        "KD": ((77.87, 75.07, 64.06, 68.58, 70.79), NONE),
        "DeepInversion": ((61.32, 54.13, 53.77, 61.33, 61.34), (42.1, 20.1, 17.0, 21.9, 18.2)),
        "CMI": ((77.04, 70.56, 57.91, 68.88, 68.75), (19.2, 11.6, 13.3, 14.2, 13.9)),
        "DAFL": ((74.47, 54.16, 20.88, 42.83, 43.70), (2.73, 0.73, 1.67, 1.80, 1.73)),
        "ZSKT": ((67.74, 54.31, 36.66, 53.60, 54.59), (1.67, 0.33, 0.87, 0.87, 0.87)),
        "DFQ": ((77.01, 66.21, 51.27, 54.43, 64.79), (8.79, 1.54, 0.75, 0.75, 0.75)),
        "Fast-2": ((69.76, 62.83, 41.77, 53.15, 57.08), (0.06, 0.03, 0.03, 0.04, 0.04)),
        "Fast-5": ((72.82, 65.28, 52.90, 61.80, 63.83), (0.14, 0.08, 0.07, 0.09, 0.08)),
        "Fast-10": ((74.34, 67.44, 54.02, 63.91, 65.12), (0.27, 0.16, 0.16, 0.17, 0.17)),
    },
}
STEPS = (2, 5, 10)
# The pair with the student of `:cpu`, and the heading of its figures there.
CPU_PAIR = "wrn40_2-wrn16_1"
CPU_PAPER = "paper, CIFAR-10, WRN-40-2 → WRN-16-1"

# Rows of the table in README.md: the methods that were run, best first, between KD on original data and noise.
BRIEF = (
    "KD, original data", "Fast-10", "CMI, 10 steps", "Fast-5", "Generative DFD",
    "DFQ", "DeepInversion, 10 steps", "noise control",
)  # fmt: skip


def get_config(variant=None):
    """Returns the comparison of both data sets as published, or of 'cpu'."""
    if variant == "cpu":
        made, rows = cpu()
        teachers = [runs.CPU.teacher]
        caption = "Methods on equal terms, a short protocol."
        few = [row for label in BRIEF for row in rows if row.label == label]
        tables = [
            parts.table("table1-cpu", rows, caption=caption, paper=CPU_PAPER),
            parts.table("table1-cpu-brief", few, caption=caption, brief=True),
        ]
    elif variant is None:
        made, rows = [], []
        settings = [runs.setting(dataset, pair) for dataset in PAPER for pair in PAIRS]
        for at in settings:
            more_runs, more_rows = published(at)
            made, rows = made + more_runs, rows + more_rows
        teachers = dict.fromkeys(at.teacher for at in settings)
        tables = [parts.table("table1", rows, caption="Student accuracy on CIFAR (Table 1 of the paper).")]
    else:
        raise UserError(f"unknown variant {variant!r}: expected cpu, or no variant")
    return parts.comparison(runs=made, tables=tables, teachers=teachers)


def paper(row: str, dataset: str = "cifar10", pair: str = CPU_PAIR):
    """Returns the paper's accuracy and hours of a row."""
    accuracies, hours = PAPER[dataset][row]
    return accuracies[PAIRS.index(pair)], hours[PAIRS.index(pair)]


def published(at):
    """Returns runs and rows of one data set and pair."""
    one_generator = runs.generative(at)
    made = {
        "Student": runs.from_scratch(at),
        "KD": runs.original_data(at),
        "DeepInversion": runs.deep_inversion(at, runs.DEEPINVERSION_STEPS),
        "CMI": runs.contrastive(at),
        **{label: one_generator[label] for label in ("DAFL", "ZSKT", "DFQ")},
        **{f"Fast-{k}": runs.fast(at, k) for k in STEPS},
    }
    noise = runs.noise_control(at)
    rows = [
        parts.row(
            at.section, "Teacher", shows="teacher", knows=ORIGINAL_DATA, paper=paper("Teacher", at.dataset, at.pair)
        ),
        *(
            parts.row(
                at.section,
                label,
                run[0],
                paper=paper(label, at.dataset, at.pair),
                is_reference=label == "DeepInversion",
            )
            for label, run in made.items()
        ),
        parts.row(at.section, "noise control", noise[0], is_control=True),
    ]
    return [*made.values(), noise], rows


def cpu():
    """Returns runs and rows of `:cpu`."""
    at, measured = runs.CPU, runs.MEASURED_STEPS
    deep, cmi = runs.deep_inversion(at, measured), runs.contrastive(at, measured)
    equal = runs.deep_inversion(at, runs.EQUAL_TIME_STEPS)
    scratch, kd, noise = runs.from_scratch(at), runs.original_data(at), runs.noise_control(at)
    few = runs.deep_inversion(at, 5)
    others, one_generator, options = runs.other_data(at), runs.generative(at), runs.options(at)
    scripts = runs.cmi_scripts()
    fast = {f"Fast-{k}": runs.fast(at, k) for k in STEPS}

    def row(label, run="", published="", **kwargs):
        return parts.row(at.section, label, run, paper=paper(published) if published else (None, None), **kwargs)

    rows = [
        row("Teacher", published="Teacher", shows="teacher", knows=ORIGINAL_DATA),
        row("Student from scratch", scratch[0], "Student"),
        row("KD, original data", kd[0], "KD"),
        *(row(label, run[0]) for label, run in others.items()),
        row("noise control", noise[0], is_control=True),
        deep_inversion_row(at, paper("DeepInversion")),
        row("DeepInversion, 5 steps", few[0], share=runs.share(at, runs.deep_inversion, 5)),
        row(f"DeepInversion, {measured} steps", deep[0], share=runs.share(at, runs.deep_inversion, measured)),
        row(f"DeepInversion, {runs.EQUAL_TIME_STEPS} steps (the seconds of Fast-5)", equal[0]),
        row(
            f"CMI, {runs.CMI_STEPS} steps",
            cmi[0],
            "CMI",
            times=runs.CMI_STEPS / measured,
            share=runs.share(at, runs.contrastive, runs.CMI_STEPS),
        ),
        row(f"CMI, {measured} steps", cmi[0], share=runs.share(at, runs.contrastive, measured)),
        *(
            row(
                label,
                run[0],
                label if label in PAPER["cifar10"] else "",
                share=parts.share(run, scripts.get(label)),
            )
            for label, run in one_generator.items()
        ),
        *(
            row(label, run[0], label, share=runs.share(at, runs.fast, k))
            for k, (label, run) in zip(STEPS, fast.items(), strict=True)
        ),
        *(row(label, run[0]) for label, run in options.items()),
    ]
    first = [*fast.values(), noise, few, deep, equal, cmi, scratch, kd, *others.values()]
    return [*first, *one_generator.values(), *options.values()], rows


def deep_inversion_row(at, published=(None, None)):
    """Returns the reference row of all speed-ups: the published steps, extrapolated from a run of few."""
    steps, measured = runs.DEEPINVERSION_STEPS, runs.MEASURED_STEPS
    return parts.row(
        at.section,
        f"DeepInversion, {steps:,} steps",
        runs.deep_inversion(at, measured)[0],
        times=steps / measured,
        is_reference=True,
        paper=published,
        share=runs.share(at, runs.deep_inversion, steps),
    )
