r"""Segmentation on CamVid (11 classes), sized for two CPU cores; not in the paper.

A DeepLabv3-ResNet18 teaches a DeepLabv3-MobileNetV2. Frames are resized to 120x160. The synthesised images are 96
pixels wide and high. The output stride is 16.

    fastdfkd pretrain camvid --workdir TEACHER data.dir=FOLDER
    fastdfkd run camvid:fast10 --workdir DIR data.dir=FOLDER \
        teacher.checkpoint=TEACHER/teacher.safetensors

A run keeps only one core busy. Start two at a time, as `configs/compare/table3.py:cpu` with `jobs=2` does.

The variant is `:METHOD` as in configs/nyuv2.py, optionally followed by `-smoke`, or `:smoke` alone. FOLDER holds
`camvid` (docs/data.md).
"""

from fastdfkd_jax.configs import rates, segmentation

SHORT_SIDE, SIDE = 120, 96
# Calls with student steps, which follow warm-up calls for methods that keep images; 1,200 student steps in all.
CALLS, WARMUP_CALLS, STEPS_PER_CALL, BATCH = 40, 4, 30, 16


def get_config(variant=None):
    """Returns the config of a method; the default is Fast-10."""
    return segmentation.make(base, variant, {"smoke": segmentation.smoke}, always=_short)


def base():
    """Returns the default config with the data and the pair of networks."""
    config = segmentation.base("deeplabv3_resnet18_os16", "deeplabv3_mobilenetv2_os16", 11)
    config.teacher.image_size = SIDE
    config.dfnd.teacher_accuracy = 0.82
    config.data.source, config.data.split, config.data.short_side = "camvid:camvid", "val", SHORT_SIDE
    return config


def _short(config):
    """Gives every method the same student steps and recipe, with learning rates that fall as a cosine."""
    config.warmup_calls = WARMUP_CALLS if config.warmup_calls else 0
    config.calls, config.synthesis_calls = CALLS + config.warmup_calls, 0
    config.synthesis_batch = config.kd.batch = BATCH
    config.kd.steps_per_call = config.kd.steps_per_dispatch = STEPS_PER_CALL
    rates.cosine(config)
    config.kd.final_lr = 1e-3
    config.transfer.select = min(config.transfer.select, BATCH * (CALLS + WARMUP_CALLS))
    config.eval_every = config.checkpoint_every = 4
