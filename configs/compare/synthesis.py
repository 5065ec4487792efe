"""Methods with one generator at the paper's ratios of synthesis seconds: Table 1 in a size for CPUs, once more.

    fastdfkd compare synthesis --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th

`table1.py:cpu` gives every method 3,300 student steps, which leaves ZSKT 1.0 % of its published synthesis and Fast-5
13.6 %. Here the students have the same 3,300 steps, and the generators more of theirs (`generator_steps`), so that
synthesis takes as many times Fast-5's seconds as in the paper: ZSKT 10.9, DFQ 9.4, DAFL 21.6, and DFAD, which that
table lacks, as DAFL.

The numbers of steps come from seconds of one idle core (records in results/compare/short), of which Fast-5 takes 165.
A round is a step of the generator (`step`) and the rendering of the student's images (`rest`). XLA counts the step's
share of a round's operations as 0.80 (ZSKT), 0.26 (DFQ) and 0.45 (DFAD); DAFL renders nothing else. Rounds of one step
and of 3 or 7, timed on a busy machine, give 0.75, 0.23 to 0.30 and 0.38 to 0.58. (budget / rounds - rest) / step:

            rounds  recorded s  step s  rest s  budget s             steps  expected s
    DAFL     3,300       2,138   0.648       0  21.6 x 165 = 3,564    1.67    2: 4,280, 25.9 times Fast-5's
    ZSKT       330         266   0.63     0.18  10.9 x 165 = 1,799    8.4     8: 1,720, 10.4 times
    DFQ        360         796   0.58     1.63   9.4 x 165 = 1,551    4.6     5: 1,630,  9.9 times
    DFAD       660         696   0.474    0.58  21.6 x 165 = 3,564   10.2    10: 3,510, 21.3 times

A whole number of steps is coarse for DAFL, whose student learns after every step: one would be 13 times Fast-5's
seconds, two are 26. The four runs take about 4.0 hours of one core, of which 0.9 are the student's.
"""

from fastdfkd_jax.configs.compare import cifar_runs as runs
from fastdfkd_jax.configs.compare import parts, table1
from fastdfkd_jax.errors import UserError

# The generator's steps in a round.
STEPS = {"DAFL": 2, "ZSKT": 8, "DFQ": 5, "DFAD": 10}
K = 5


def get_config(variant=None):
    """One table, for CPUs."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: expected none")
    made, rows = longer_synthesis(runs.CPU)
    caption = "Methods with one generator and the paper's ratios of synthesis seconds, a short protocol."
    tables = [parts.table("table1-cpu-synthesis", rows, caption=caption, paper=table1.CPU_PAPER)]
    return parts.comparison(runs=made, tables=tables, teachers=[runs.CPU.teacher])


def longer_synthesis(at):
    """Runs and rows."""
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
    """The run of `cifar_runs.generative` with so many generator steps in a round."""
    config = runs.generative(at)[label][1].config
    config[config.method.name].generator_steps = steps
    return at.run(f"{config.method.name}_synthesis", config)
