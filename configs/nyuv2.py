"""NYUv2 with 13 classes, Table 3 of the paper: a DeepLabv3-ResNet50 teaches a DeepLabv3-MobileNetV2.

Published mIoU: Fast-10 0.366 with 17,000 images in 0.82 GPU hours; DFAD 0.364 and DAFL 0.105 with 960,000 in 6.0 and
3.99; DFND 0.378, KD 0.380, the student on labels 0.375, the teacher 0.519. No code or teacher of it is public.

    fastdfkd run nyuv2:fast10 --workdir DIR \
        teacher.checkpoint=nyuv2_deeplabv3_resnet50.pth data.dir=FOLDER

`:METHOD`, one of fast10, deepinversion, dfad, dafl, dfnd, kd, scratch and noise, then `-smoke`, or `:smoke` alone.
FOLDER holds `NYUv2`, which docs/data.md tells how to prepare; configs/pretrain_nyuv2.py trains a teacher.
"""

from fastdfkd_jax.configs import segmentation


def get_config(variant=None):
    """The config of a method; without one, Fast-10."""
    return segmentation.make(base, variant, {"smoke": segmentation.smoke})


def base():
    """Images of 256 pixels on their shorter side, as METHOD section 4 has them; 128 are synthesised."""
    config = segmentation.base("deeplabv3_resnet50", "deeplabv3_mobilenetv2", 13)
    config.data.source, config.data.split, config.data.short_side = "nyuv2:NYUv2", "test", 256
    return config
