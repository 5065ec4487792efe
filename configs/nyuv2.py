r"""Segmentation on NYUv2 (13 classes): a DeepLabv3-ResNet50 teacher (Table 3 of the paper).

The student is a DeepLabv3-MobileNetV2. No code or teacher of this table is public. Published:

              mIoU   images  GPU hours
    Fast-10  0.366   17,000       0.82
    DFAD     0.364  960,000       6.0
    DAFL     0.105  960,000       3.99
    DFND     0.378
    KD       0.380
    student  0.375                      on labels
    teacher  0.519

    fastdfkd run nyuv2:fast10 --workdir DIR \
        teacher.checkpoint=nyuv2_deeplabv3_resnet50.pth data.dir=FOLDER

The variant is `:METHOD`, one of fast10, deepinversion, dfad, dafl, dfnd, kd, scratch and noise, optionally followed by
`-smoke`; or `:smoke` alone. FOLDER holds `NYUv2`; docs/data.md describes how to prepare it. configs/pretrain_nyuv2.py
trains a teacher.
"""

from fastdfkd_jax.configs import segmentation


def get_config(variant=None):
    """Returns the config of a method; the default is Fast-10."""
    return segmentation.make(base, variant, {"smoke": segmentation.smoke})


def base():
    """Returns the shared config: images with a shorter side of 256 (METHOD section 4), and 128 pixels for synthesis."""
    config = segmentation.base("deeplabv3_resnet50", "deeplabv3_mobilenetv2", 13)
    config.data.source, config.data.split, config.data.short_side = "nyuv2:NYUv2", "test", 256
    return config
