r"""Table 2 of the paper: students on ImageNet, with ResNet-50 as teacher.

    fastdfkd compare table2 --workdir DIR \
        teachers.resnet50_imagenet=resnet50-19c8e357.pth data_source=folder:VALIDATION

The paper's other rows need too much for one machine. 'Scratch' and all of Places365 would hold a million pictures of
224 pixels in memory. A generator of that size for each of 1,000 classes takes 2 TB of disk. KD on other pictures is run
on as many crops as FastDFKD synthesises images (`other_data=tfds:places365_small`).

`:cpu` tries FastDFKD and DeepInversion in minutes, with 64 pixels and four calls. It learns nothing, but its timings
are real.
"""

from fastdfkd_jax.configs import deepinversion_imagenet, imagenet
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.base import ORIGINAL_DATA, OTHER_DATA

TEACHER = "resnet50_imagenet"
STUDENTS = {"resnet50_imagenet": "ResNet-50", "resnet18_imagenet": "ResNet-18", "mobilenetv2_imagenet": "MobileNetV2"}
# row: (accuracies by student, hours), copied from the paper
PAPER = {
    "Scratch": ((75.45, 68.45, 70.01), None),
    "Places365 + KD": ((55.74, 45.53, 39.89), None),
    "Generative DFD": ((69.75, 54.66, 43.15), 300.0),
    "DeepInversion, 2,000 steps": ((68.00, None, None), 166.0),
    "Fast-50": ((68.61, 53.45, 43.02), 6.28),
}
IMAGES = 140_000
CPU_STEPS, STEPS = 5, 2000


def get_config(variant=None):
    """Returns the comparison as published, or of 'cpu'."""
    if variant not in (None, "cpu"):
        raise UserError(f"unknown variant {variant!r}: expected cpu, or no variant")
    made, rows = trial() if variant else published()
    name = "table2-cpu" if variant else "table2"
    tables = [parts.table(name, rows, caption="Students on ImageNet (Table 2 of the paper).")]
    return parts.comparison(runs=made, tables=tables, teachers=[TEACHER])


def published():
    """Returns runs and rows of all students."""
    made, rows = [], []
    for i, (student, title) in enumerate(STUDENTS.items()):
        section = f"ImageNet, ResNet-50 → {title}"
        found = {"Fast-50": run(student, "fast50", imagenet.get_config(student))}
        found["Places365 + KD"] = run(student, "kd_other", on_other_pictures(student), other_data=True)
        if student in deepinversion_imagenet.STUDENTS:
            config = deepinversion_imagenet.get_config(student)
            found["DeepInversion, 2,000 steps"] = run(student, "deepinversion", config)
        made.extend(found.values())
        for label, (accuracies, hours) in PAPER.items():
            knows = {"Scratch": ORIGINAL_DATA, "Places365 + KD": OTHER_DATA}.get(label, "")
            name = found[label][0] if label in found else ""
            is_reference = label.startswith("DeepInversion")
            paper = (accuracies[i], hours if accuracies[i] else None)
            rows.append(parts.row(section, label, name, paper=paper, knows=knows, is_reference=is_reference))
    return made, rows


def run(student, name, config, **kwargs):
    """Returns a run of this name."""
    return parts.run(f"imagenet-resnet50-{student.removesuffix('_imagenet')}-{name}", config, teacher=TEACHER, **kwargs)


def on_other_pictures(student):
    """Returns the recipe of Fast-50 for KD on crops of other pictures, as many as Fast-50 synthesises."""
    config = imagenet.get_config(student)
    config.method.name = "kd"
    config.calls, config.synthesis_calls, config.warmup_calls = config.calls - config.warmup_calls, 0, 0
    config.pool.place = "device"  # these pictures are read into memory as a whole
    config.transfer.source, config.transfer.crops, config.transfer.limit = "", 1, IMAGES
    return config


def trial():
    """Returns runs and rows of `:cpu`."""
    student = "resnet18_imagenet"
    fast = imagenet.get_config(f"{student}-tiny")
    noise = imagenet.get_config(f"{student}-tiny")
    noise.method.name = "noise"
    deep = deepinversion_imagenet.get_config(student)
    imagenet.tiny(deep)
    made = {
        f"Fast-{CPU_STEPS}": run(student, f"tiny-fast{CPU_STEPS}", fast),
        f"DeepInversion, {CPU_STEPS} steps": run(student, f"tiny-deepinversion{CPU_STEPS}", deep),
        "noise control": run(student, "tiny-noise", noise),
    }
    section = "ImageNet at 64 pixels, ResNet-50 → ResNet-18"
    rows = [parts.row(section, label, named[0], is_control=label == "noise control") for label, named in made.items()]
    label, source = f"DeepInversion, {STEPS:,} steps", made[f"DeepInversion, {CPU_STEPS} steps"][0]
    rows.insert(0, parts.row(section, label, source, times=STEPS / CPU_STEPS, is_reference=True))
    return list(made.values()), rows
