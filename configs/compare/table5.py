r"""Table 5 of the paper: the contributions of reuse, the generator and momentum.

They are measured with k = 5 on WRN-40-2 -> WRN-16-2.

    fastdfkd compare table5 --workdir DIR data_dir=DATA \
        teachers.cifar10_wrn40_2=PATH teachers.cifar100_wrn40_2=PATH

`:cpu` is ResNet-20 -> WRN-16-1 on CIFAR-10 with the protocol `short` and `teachers.resnet20=PATH`. Momentum is off in
all rows but the last. Rows without a script in the released code follow METHOD 1.3.

Momentum also divides the feature term's gradient on the images by ten, because the loss's gradient has the factor
1 - a = 0.1 (METHOD 8), while the paper's weight is 10 in every row. So `:cpu` has one more row, without momentum and
with weight 1. The effect of momentum itself is the difference between that row and the last.
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError

# label: (arguments of `cifar_runs.ablation`, the paper's accuracies on CIFAR-10 and CIFAR-100)
ROWS = {
    "no reuse, pixels": (("none", "pixels"), 44.74, 3.11),
    "no reuse, generator": (("none", "generator"), 87.33, 35.48),
    "sequential, pixels": (("sequential", "pixels"), 71.97, 10.93),
    "sequential, generator": (("sequential", "generator"), 90.91, 59.38),
    "meta, generator": (("meta", "generator"), 91.79, 61.43),
    "meta, generator, momentum": (("meta", "generator", True), 91.96, 63.83),
}
# The additional row of `:cpu`, before the last.
WEIGHT_1 = "meta, generator, feature weight 1"
CPU_PAPER = "paper, CIFAR-10, WRN-40-2 → WRN-16-2"


def get_config(variant=None):
    """Returns the comparison of both data sets as published, or of 'cpu'."""
    if variant not in (None, "cpu"):
        raise UserError(f"unknown variant {variant!r}: expected cpu, or no variant")
    pair = "wrn40_2-wrn16_2"
    settings = [runs.CPU] if variant else [runs.setting("cifar10", pair), runs.setting("cifar100", pair)]
    made, rows = [], []
    for at in settings:
        more_runs, more_rows = ablation(at)
        made, rows = made + more_runs, rows + more_rows
    name, paper = ("table5-cpu", CPU_PAPER) if variant else ("table5", "paper")
    tables = [parts.table(name, rows, caption="Ablation of FastDFKD (Table 5 of the paper).", paper=paper)]
    return parts.comparison(runs=made, tables=tables, teachers=dict.fromkeys(at.teacher for at in settings))


def ablation(at):
    """Returns runs and rows of one data set."""
    noise = runs.noise_control(at)
    made, rows = [noise], [parts.row(at.section, "noise control", noise[0], is_control=True)]
    for label, (choices, *accuracies) in ROWS.items():
        run = runs.ablation(at, *choices)
        accuracy = accuracies[0 if at.dataset == "cifar10" else 1]
        share = runs.share(at, runs.ablation, *choices)
        made.append(run)
        rows.append(parts.row(at.section, label, run[0], paper=(accuracy, None), share=share))
    if at == runs.CPU:
        run = runs.ablation(at, "meta", "generator", weight=1.0)
        made.append(run)
        rows.insert(-1, parts.row(at.section, WEIGHT_1, run[0]))
    return made, rows
