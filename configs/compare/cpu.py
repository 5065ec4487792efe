"""Tables 1, 4 and 5 in a size for CPUs: CIFAR-10, ResNet-20 -> WRN-16-1, one KD budget for every row.

    python -m fastdfkd_jax.compare --config configs/compare/cpu.py --workdir DIR --config.jobs=2 \
        --config.teachers.resnet20=resnet20-12fca82f.th --config.data_dir=DIR --config.other_data=folder:PICTURES

`:table1`, `:table4` or `:table5` for one of them. The protocol is `-short` (configs/cifar.py): 3,300 KD steps of 128
images, and 7,680 synthesised ones where images stay in D'. The rows on other data take 40 random crops of each picture.
"""

from configs import cifar, cmi, dafl, deepinversion, dfad, dfnd, dfq, generative_dfd, kd, scratch, zskt
from configs.compare import parts
from fastdfkd_jax.errors import UserError

PAIR = "resnet20-wrn16_1"
SECTION = "CIFAR-10, ResNet-20 → WRN-16-1, short protocol"
PAPER = "paper, WRN-40-2 → WRN-16-1"
METHOD = f"cifar10-{PAIR}-short"
# Of 0.1, 0.3 and 1 the rate of the lowest synthesis loss after five steps (docs/results.md), for pixels of any method.
PIXELS_LR = 0.3
# Method, label, and the paper's accuracy and hours by steps on CIFAR-100 (Table 4).
FEW_STEPS = (
    ("deepinversion", "DeepInversion", {2: (2.61, 0.03), 5: (4.84, 0.06), 10: (6.77, 0.11)}),
    ("cmi", "CMI", {2: (14.62, 0.05), 5: (20.08, 0.12), 10: (32.43, 0.22)}),
    ("fast", "FastDFKD", {2: (41.77, 0.03), 5: (52.90, 0.07), 10: (54.02, 0.16)}),
)
_PLAIN = {"inversion.feature": "plain"}
_PIXELS = {**_PLAIN, "fastdfkd.representation": "pixels", "inner.latents_lr": PIXELS_LR}
_KEPT = {"fastdfkd.latents": "persistent", "fastdfkd.latents_update": "adapted"}
# Run, label, changes of Fast-5's config, and the paper's accuracies on CIFAR-10 and CIFAR-100 (Table 5).
ABLATIONS = (
    ("none-pixels", "No reuse + pixels", {"fastdfkd.reuse": "none", **_PIXELS}, (44.74, 3.11)),
    ("none-generator", "No reuse + generator", {"fastdfkd.reuse": "none", **_PLAIN}, (87.33, 35.48)),
    ("sequential-pixels", "Sequential + pixels", {"fastdfkd.reuse": "sequential", **_KEPT, **_PIXELS}, (71.97, 10.93)),
    ("sequential-generator", "Sequential + generator", {"fastdfkd.reuse": "sequential", **_PLAIN}, (90.91, 59.38)),
    ("meta-generator", "Meta + generator", _PLAIN, (91.79, 61.43)),
    ("fast5", "Meta + generator + momentum", {}, (91.96, 63.83)),
)
# Steps of DeepInversion that take as long as Fast-5's.
SAME_SECONDS = 8


def get_config(variant=None):
    """All three tables, or one."""
    makers = {"table1": _table1, "table4": _table4, "table5": _table5}
    if variant and variant not in makers:
        raise UserError(f"unknown variant {variant!r}: expected one of {', '.join(makers)}, or none")
    tables = [makers[name]() for name in ([variant] if variant else makers)]
    shown = {row.run for _, table in tables for row in table.rows.values()}
    runs = [made for made in _runs() if made[0] in shown]
    return parts.comparison(runs=runs, tables=tables, teachers=["resnet20"])


def _runs():
    three = parts.SEEDS
    for name, _, changes, _ in ABLATIONS:
        yield _run(name, _fast(changes), (0,) if name.endswith("pixels") else three)
    yield _run("deepinversion5", _few_steps(5), three)
    yield _run("noise", _fast({"method.name": "noise"}), three)
    yield _run("scratch", scratch.get_config(METHOD))
    yield _run("kd", kd.get_config(METHOD))
    yield _run("kd-other", _changed(kd.get_config(METHOD), _OTHER), other_data=True)
    chosen = {**_OTHER, "transfer.select": 10_000, "dfnd.teacher_accuracy": 0.9173}
    yield _run("dfnd", _changed(dfnd.get_config(METHOD), chosen), other_data=True)
    yield _run("fast2", _fast(k=2))
    yield _run("fast10", _fast(k=10))
    for k in (2, SAME_SECONDS, 10):
        yield _run(f"deepinversion{k}", _few_steps(k))
    for k in (2, 5, 10):
        yield _run(f"cmi{k}", _pooled(cmi, {"cmi.num_steps": k}))
    for module in (zskt, dfq, dfad):
        yield _run(module.__name__.rpartition(".")[2], module.get_config(METHOD))
    yield _run("dafl", dafl.get_config(METHOD))
    yield _run("generative_dfd", _generative_dfd())
    yield _run("fast5-replay", _fast({"replay.class_exponent": 1.0, "replay.difficulty_exponent": 0.5}))
    yield _run("fast5-noisy_layer", _fast({"fastdfkd.representation": "noisy_layer"}))
    yield _run("dfq-ema", _changed(dfq.get_config(METHOD), {"dfq.ema_decay": 0.95}))


_OTHER = {"transfer.source": "", "transfer.crops": 40}


def _run(name, config, seeds=(0,), other_data=False):
    return parts.run(name, config, seeds=seeds, teacher="resnet20", other_data=other_data)


def _changed(config, changes):
    config.update_from_flattened_dict(changes)
    return config


def _fast(changes=None, k=5):
    return _changed(cifar.make("cifar10", f"{PAIR}-fast{k}-short"), changes or {})


def _pooled(module, changes):
    """As many images as FastDFKD's rows have: 60 calls, 5 of them before the student learns."""
    return _changed(module.get_config(METHOD), {"calls": 60, "warmup_calls": 5, **changes})


def _few_steps(k):
    return _pooled(deepinversion, {"deepinversion.num_steps": k, "deepinversion.learning_rate": PIXELS_LR})


def _generative_dfd():
    """A generator for each class in turn, 100 steps and 384 images each, twice; KD from the tenth on."""
    config = generative_dfd.get_config(METHOD)
    chosen = config.generative_dfd
    chosen.classes_per_generator = chosen.calls_per_generator = 1
    chosen.steps_per_call, chosen.batches_kept = 100, 3
    config.calls, config.warmup_calls, config.kd.steps_per_call = 20, 9, 300
    config.eval_every = config.checkpoint_every = 2
    return config


def _table1():
    def row(label, run="", **more):
        return parts.row(SECTION, label, run, **more)

    rows = [
        row("Teacher", shows="teacher", knows="the teacher's training data", paper=(94.87, None)),
        row("Student, from scratch", "scratch", paper=(91.12, None)),
        row("KD", "kd", paper=(95.20, None)),
        row("KD on other data", "kd-other"),
        row("DFND", "dfnd"),
        row("Noise control", "noise", is_control=True),
        row("DeepInversion, 2,000 steps", "deepinversion5", times=400, is_reference=True, paper=(83.04, 16.9)),
        row("DeepInversion, 5 steps", "deepinversion5"),
        row(f"DeepInversion, {SAME_SECONDS} steps (as long as Fast-5)", f"deepinversion{SAME_SECONDS}"),
        row("CMI, 5 steps (paper: 500)", "cmi5", paper=(90.01, 13.3)),
        row("DAFL", "dafl", paper=(65.71, 1.73)),
        row("ZSKT", "zskt", paper=(83.74, 0.87)),
        row("DFQ", "dfq", paper=(86.14, 0.75)),
        row("DFAD", "dfad"),
        row("Generative DFD", "generative_dfd"),
        row("Fast-2", "fast2", paper=(88.36, 0.03)),
        row("Fast-5", "fast5", paper=(88.90, 0.08)),
        row("Fast-10", "fast10", paper=(89.29, 0.15)),
        row("Fast-5, replay by class and difficulty", "fast5-replay"),
        row("Fast-5, noisy layers", "fast5-noisy_layer"),
        row("DFQ, EMA generator", "dfq-ema"),
    ]
    return parts.table("table1", rows, caption="Table 1 in a size for CPUs", paper=PAPER)


def _table4():
    rows = [
        parts.row(SECTION, f"{label}, {k} steps", f"{method}{k}", paper=figures)
        for method, label, by_steps in FEW_STEPS
        for k, figures in by_steps.items()
    ]
    rows.append(parts.row(SECTION, "Noise control", "noise", is_control=True))
    return parts.table("table4", rows, caption="Table 4 in a size for CPUs", paper="paper, CIFAR-100")


def _table5():
    made = [parts.row(SECTION, label, name, paper=(paper[0], None)) for name, label, _, paper in ABLATIONS]
    made.append(parts.row(SECTION, "Noise control", "noise", is_control=True))
    return parts.table("table5", made, caption="Table 5 in a size for CPUs", paper="paper, WRN-40-2 → WRN-16-2")
