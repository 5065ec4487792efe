"""A teacher on CIFAR-10 by the published recipe.

    fastdfkd pretrain cifar10 --workdir DIR \
      arch=wrn40_2 data.dir=DIR
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every key; METHOD section 5 unless another source is named."""
    config = ConfigDict()
    config.arch = "wrn40_2"  # name in the registry
    config.mean = (0.4914, 0.4822, 0.4465)  # of images in [0, 1], by channel (METHOD section 3)
    config.std = (0.2023, 0.1994, 0.2010)

    config.data = ConfigDict()
    config.data.source = "tfds:cifar10"  # as `data.load` takes it
    config.data.dir = "~/tensorflow_datasets"  # folder of the data
    config.data.short_side = 0  # of images with masks; 0: as they are
    config.data.train_split = "train"
    config.data.test_split = "test"  # for reporting, not for selection

    config.recipe = ConfigDict()
    config.recipe.epochs = 200  # passes over the training split
    config.recipe.batch_size = 256  # images a step
    config.recipe.lr = 0.1  # SGD
    config.recipe.lr_milestones = (120, 150, 180)  # epochs
    config.recipe.lr_decay = 0.2  # factor at each milestone; CMI's recipe has 0.1
    config.recipe.momentum = 0.9
    config.recipe.weight_decay = 1e-4  # of every parameter
    config.recipe.square = 0  # pixels, random crop of larger images
    config.recipe.least_crop = 0.0  # of the area, randomly resized crops in place of shifts
    config.recipe.padding = 4  # pixels, random crop (METHOD section 4)
    config.recipe.flip = True  # random mirror image
    config.recipe.seed = 0
    config.recipe.eval_every = 5  # epochs
    return config
