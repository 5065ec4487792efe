r"""Compares one-generator methods at the paper's ratios of synthesis seconds (Table 1), sized for CPUs.

    fastdfkd compare synthesis --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th

`table1.py:cpu` gives every method 3,300 student steps. That leaves ZSKT 1.0 % of its published synthesis, and Fast-5
13.6 %. Here, the students have the same 3,300 steps, but the generators take more steps (`generator_steps`), so that
synthesis takes as many times Fast-5's seconds as in the paper: 10.9 for ZSKT, 9.4 for DFQ and 21.6 for DAFL. DFAD is
not in that table and gets DAFL's ratio.

The numbers of steps are computed from seconds on one idle core (records in results/compare/short), where Fast-5 takes
165. A round consists of a generator step (`step`) and the rendering of the student's images (`rest`). By XLA's count of
operations, the step is 0.80 (ZSKT), 0.26 (DFQ) and 0.45 (DFAD) of a round; DAFL renders nothing else. Timing rounds of
one step and of 3 or 7 on a busy machine gives 0.75, 0.23 to 0.30 and 0.38 to 0.58.
The number of steps is (budget / rounds - rest) / step:

            rounds  recorded s  step s  rest s  budget s             steps  expected s
    DAFL     3,300       2,138   0.648       0  21.6 x 165 = 3,564    1.67    2: 4,280, 25.9 times Fast-5's
    ZSKT       330         266   0.63     0.18  10.9 x 165 = 1,799    8.4     8: 1,720, 10.4 times
    DFQ        360         796   0.58     1.63   9.4 x 165 = 1,551    4.6     5: 1,630,  9.9 times
    DFAD       660         696   0.474    0.58  21.6 x 165 = 3,564   10.2    10: 3,510, 21.3 times

Whole steps are coarse for DAFL, whose student learns after every step: one step takes 13 times Fast-5's seconds, two
take 26. The four runs take about 4.0 hours of one core, of which the student takes 0.9.
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts, table1
from fastdfkd_jax.errors import UserError

# Generator steps per round.
STEPS = {"DAFL": 2, "ZSKT": 8, "DFQ": 5, "DFAD": 10}
K = 5


def get_config(variant=None):
    """Returns the comparison with one table, for CPUs."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: this config has none, leave it out")
    made, rows = longer_synthesis(runs.CPU)
    caption = "Methods with one generator and the paper's ratios of synthesis seconds, a short protocol."
    tables = [parts.table("table1-cpu-synthesis", rows, caption=caption, paper=table1.CPU_PAPER)]
    return parts.comparison(runs=made, tables=tables, teachers=[runs.CPU.teacher])


def longer_synthesis(at):
    """Returns runs and rows."""
    noise, fast = runs.noise_control(at), runs.fast(at, K)
    scripts = runs.cmi_scripts()
    made, rows = [noise, fast], [parts.row(at.section, "noise control", noise[0], is_control=True)]
    for label, steps in STEPS.items():
        run = with_steps(at, label, steps)
        made.append(run)
        paper = table1.paper(label) if label in table1.PAPER["cifar10"] else (None, None)
        text = f"{label}, {steps} generator steps a round"
        rows.append(parts.row(at.section, text, run[0], paper=paper, share=parts.share(run, scripts[label])))
    label = f"Fast-{K}"
    share = runs.share(at, runs.fast, K)
    rows.append(parts.row(at.section, label, fast[0], paper=table1.paper(label), share=share, is_reference=True))
    return made, rows


def with_steps(at, label, steps):
    """Returns the run of `cifar_runs.generative` with this many generator steps per round."""
    config = runs.generative(at)[label][1].config
    config[config.method.name].generator_steps = steps
    return at.run(f"{config.method.name}_synthesis", config)
