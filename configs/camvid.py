"""CamVid with 11 classes in a size for two CPU cores: a DeepLabv3-ResNet18 teaches a DeepLabv3-MobileNetV2.

Not in the paper. Frames are brought to 120x160, images of 96 pixels are synthesised, the output stride is 16.

    fastdfkd pretrain camvid --workdir TEACHER data.dir=FOLDER
    fastdfkd run camvid:fast10 --workdir DIR data.dir=FOLDER \
        teacher.checkpoint=TEACHER/teacher.safetensors

A run has one core's worth of work at a time: start two, as `configs/compare/table3.py:cpu` with `jobs=2` does.

`:METHOD` as in configs/nyuv2.py, then `-smoke`, or `:smoke` alone. FOLDER holds `camvid` (docs/data.md).
"""

from fastdfkd_jax.configs import rates, segmentation

SHORT_SIDE, SIDE = 120, 96
# Of the student's, after calls without it where images are kept; 1,200 steps in all.
CALLS, WARMUP_CALLS, STEPS_PER_CALL, BATCH = 40, 4, 30, 16


def get_config(variant=None):
    """The config of a method; without one, Fast-10."""
    return segmentation.make(base, variant, {"smoke": segmentation.smoke}, always=_short)


def base():
    """Data and pair."""
    config = segmentation.base("deeplabv3_resnet18_os16", "deeplabv3_mobilenetv2_os16", 11)
    config.teacher.image_size = SIDE
    config.dfnd.teacher_accuracy = 0.82
    config.data.source, config.data.split, config.data.short_side = "camvid:camvid", "val", SHORT_SIDE
    return config


def _short(config):
    """The same student steps and the same recipe for every method; rates fall as a cosine."""
    config.warmup_calls = WARMUP_CALLS if config.warmup_calls else 0
    config.calls, config.synthesis_calls = CALLS + config.warmup_calls, 0
    config.synthesis_batch = config.kd.batch = BATCH
    config.kd.steps_per_call = config.kd.steps_per_dispatch = STEPS_PER_CALL
    rates.cosine(config)
    config.kd.final_lr = 1e-3
    config.transfer.select = min(config.transfer.select, BATCH * (CALLS + WARMUP_CALLS))
    config.eval_every = config.checkpoint_every = 4
