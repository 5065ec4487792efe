r"""Table 3 of the paper: segmentation on NYUv2, DeepLabv3-ResNet50 to DeepLabv3-MobileNetV2.

    fastdfkd compare table3 --workdir DIR data_dir=FOLDER \
        teachers.nyuv2=nyuv2_deeplabv3_resnet50.pth other_data=folder:IMAGENET

`:cpu` is the same on CamVid at a size for two CPU cores (configs/camvid.py). It needs `teachers.camvid=` and, for DFND,
other pictures as `other_data=npz:FILE`. Its noise control takes as many student steps as all other rows.
"""

from fastdfkd_jax.configs import camvid, nyuv2
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.base import ORIGINAL_DATA

# row: (method of the config, mIoU in percent and hours, copied from the paper)
ROWS = {
    "Student": ("scratch", (37.5, None)),
    "KD": ("kd", (38.0, None)),
    "DFND": ("dfnd", (37.8, None)),
    "DFAD": ("dfad", (36.4, 6.0)),
    "DAFL": ("dafl", (10.5, 3.99)),
    "Fast-10": ("fast10", (36.6, 0.82)),
}
CONTROLS = {"DeepInversion, 10 steps": "deepinversion", "noise control": "noise"}
CROPS = 2


def get_config(variant=None):
    """Returns the comparison as published, or of 'cpu'."""
    if variant not in (None, "cpu"):
        raise UserError(f"unknown variant {variant!r}: expected cpu, or no variant")
    return on_camvid() if variant else published()


def published():
    """Returns all rows of the paper on NYUv2."""
    section = "NYUv2, DeepLabv3-ResNet50 → DeepLabv3-MobileNetV2"
    made = {label: run("nyuv2", nyuv2, method) for label, (method, _) in ROWS.items()}
    rows = [parts.row(section, "Teacher", shows="teacher", knows=ORIGINAL_DATA, paper=(51.9, None))]
    rows += [
        parts.row(section, label, named[0], paper=ROWS[label][1], is_reference=label == "DFAD")
        for label, named in made.items()
    ]
    return comparison("table3", "nyuv2", made, rows, "Segmentation on NYUv2 (Table 3 of the paper).")


def on_camvid():
    """Returns the same rows on CamVid, with few-step DeepInversion and the noise control."""
    section = "CamVid at 120x160, 101 validation images, DeepLabv3-ResNet18 → DeepLabv3-MobileNetV2"
    claimed = ("Fast-10", "noise control")
    methods = {label: method for label, (method, _) in ROWS.items()} | CONTROLS
    made = {
        label: run("camvid", camvid, method, seeds=parts.SEEDS if label in claimed else (0,))
        for label, method in methods.items()
    }
    rows = [parts.row(section, "Teacher", shows="teacher", knows=ORIGINAL_DATA)]
    published = {label: run("nyuv2", nyuv2, ROWS[label][0])[1].config for label in ROWS}
    rows += [
        parts.row(
            section,
            label,
            named[0],
            is_reference=label == "DFAD",
            is_control=label in CONTROLS,
            share=parts.share(named, published.get(label)),
        )
        for label, named in made.items()
    ]
    return comparison("table3-cpu", "camvid", made, rows, "Segmentation on CamVid, in a size for CPUs.")


def run(dataset, module, method, **kwargs):
    """Returns a run of a method's config."""
    config = module.get_config(method)
    if method == "dfnd":
        config.transfer.source, config.transfer.crops = "", CROPS if dataset == "camvid" else 1
    if method == "deepinversion" and dataset == "camvid":
        config.deepinversion.num_steps, config.deepinversion.lr = 10, 0.3
    return parts.run(f"{dataset}-{method}", config, teacher=dataset, other_data=method == "dfnd", **kwargs)


def comparison(name, teacher, made, rows, caption):
    """Returns the comparison of the runs with their one table."""
    table = parts.table(name, rows, caption=caption)
    return parts.comparison(runs=made.values(), tables=[table], teachers=[teacher])
