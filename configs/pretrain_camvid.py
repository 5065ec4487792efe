"""Trains a DeepLabv3-ResNet18 on CamVid at 120x160, the teacher of configs/camvid.py.

    fastdfkd pretrain camvid --workdir DIR data.dir=FOLDER

CamVid is licensed CC BY-NC 4.0, which also covers weights trained on it: use them for research only.
"""

from fastdfkd_jax.configs import camvid, pretrain_cifar10


def get_config():
    """Returns every key."""
    config = pretrain_cifar10.get_config()
    config.arch = "deeplabv3_resnet18_os16"
    config.mean = config.std = (0.5, 0.5, 0.5)
    config.data.source, config.data.short_side, config.data.test_split = "camvid:camvid", camvid.SHORT_SIDE, "val"
    config.data.dir = "."
    recipe = config.recipe
    recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay = 60, 16, 0.05, 5e-4
    recipe.lr_milestones, recipe.lr_decay = (40, 54), 0.1
    recipe.square, recipe.padding = camvid.SIDE, 0
    return config
