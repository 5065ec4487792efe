r"""Table 4 of the paper: DeepInversion, CMI and FastDFKD with 2, 5 and 10 steps on CIFAR-100.

The pair is WRN-40-2 -> WRN-16-1.

    fastdfkd compare table4 --workdir DIR data_dir=DATA \
        teachers.cifar100_wrn40_2=PATH

`:cpu` is ResNet-20 -> WRN-16-1 on CIFAR-10 with the protocol `short` and `teachers.resnet20=PATH`. The paper does not
give the learning rates of its few-step rows. DeepInversion uses `cifar_runs.PIXELS_LR`, and CMI its own rate.
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts, table1
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.base import ORIGINAL_DATA

STEPS = (2, 5, 10)
# row: {k: (accuracy, hours)}, copied from the paper
PAPER = {
    "DeepInversion": {2: (2.61, 0.03), 5: (4.84, 0.06), 10: (6.77, 0.11)},
    "CMI": {2: (14.62, 0.05), 5: (20.08, 0.12), 10: (32.43, 0.22)},
    "Fast": {2: (41.77, 0.03), 5: (52.90, 0.07), 10: (54.02, 0.16)},
}
METHODS = {"DeepInversion": runs.deep_inversion, "CMI": runs.contrastive, "Fast": runs.fast}
CPU_PAPER = "paper, CIFAR-100, WRN-40-2 → WRN-16-1"


def get_config(variant=None):
    """Returns the comparison as published, or of 'cpu'."""
    if variant not in (None, "cpu"):
        raise UserError(f"unknown variant {variant!r}: expected cpu, or no variant")
    at = runs.CPU if variant else runs.setting("cifar100", "wrn40_2-wrn16_1")
    made, rows = few_steps(at)
    caption = "Few-step synthesis (Table 4 of the paper)."
    name, paper = ("table4-cpu", CPU_PAPER) if variant else ("table4", "paper")
    tables = [parts.table(name, rows, caption=caption, paper=paper)]
    return parts.comparison(runs=made, tables=tables, teachers=[at.teacher])


def few_steps(at):
    """Returns runs and rows."""
    made = {(label, k): method(at, k) for label, method in METHODS.items() for k in STEPS}
    scratch, noise = runs.from_scratch(at), runs.noise_control(at)
    rows = [
        parts.row(at.section, "Teacher", shows="teacher", knows=ORIGINAL_DATA, paper=(75.83, None)),
        parts.row(at.section, "Student from scratch", scratch[0], paper=(65.31, None)),
        parts.row(at.section, "noise control", noise[0], is_control=True),
        table1.deep_inversion_row(at),
        *(
            parts.row(
                at.section,
                f"{label}, {k} steps",
                run[0],
                paper=PAPER[label][k],
                share=runs.share(at, METHODS[label], k),
            )
            for (label, k), run in made.items()
        ),
    ]
    return [*made.values(), noise, scratch], rows
