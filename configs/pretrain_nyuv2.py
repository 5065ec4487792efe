"""Trains a DeepLabv3-ResNet50 on NYUv2, the teacher of the rows of Table 3.

    fastdfkd pretrain nyuv2 --workdir DIR data.dir=FOLDER initial=resnet50-0676ba61.pth

This is DFAD's recipe (METHOD 6) with cross-entropy instead of its focal loss. The published teacher starts from
ImageNet weights and has mIoU 0.519. `initial` is torchvision's file of such weights, from
https://download.pytorch.org/models; without it, expect less.
"""

from fastdfkd_jax.configs import pretrain_cifar10


def get_config():
    """Returns every key."""
    config = pretrain_cifar10.get_config()
    config.arch = "deeplabv3_resnet50"
    config.mean = config.std = (0.5, 0.5, 0.5)
    config.data.source, config.data.short_side = "nyuv2:NYUv2", 256
    config.data.dir = "."
    recipe = config.recipe
    recipe.batch_size, recipe.lr, recipe.weight_decay = 16, 0.05, 5e-4
    recipe.lr_milestones, recipe.lr_decay = (100,), 0.1
    recipe.square, recipe.padding = 128, 0
    return config
