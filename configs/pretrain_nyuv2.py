"""A DeepLabv3-ResNet50 on NYUv2, which the rows of Table 3 need as teacher.

    fastdfkd pretrain nyuv2 --workdir DIR data.dir=FOLDER

DFAD's recipe (METHOD 6) with cross-entropy in place of its focal loss. Published with ImageNet's weights to begin with:
mIoU 0.519. Those are not public in a form that this command could begin with, so expect less.
"""

from fastdfkd_jax.configs import pretrain_cifar10


def get_config():
    """Every key."""
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
