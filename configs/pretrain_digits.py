"""The quickstart's teacher: WRN-16-1 on the digits that come with the package.

fastdfkd pretrain digits --workdir DIR
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every key; the recipe of METHOD section 5, shortened to a small data set."""
    config = ConfigDict()
    config.arch = "wrn16_1"  # name in the registry
    config.mean = (0.306,)  # of the training digits in [0, 1]
    config.std = (0.318,)

    config.data = ConfigDict()
    config.data.source = "digits"  # as `data.load` takes it
    config.data.dir = "~/tensorflow_datasets"  # folder of the data; the digits need none
    config.data.short_side = 0  # of images with masks; 0: as they are
    config.data.train_split = "train"
    config.data.test_split = "test"  # for reporting, not for selection

    config.recipe = ConfigDict()
    config.recipe.epochs = 40  # passes over the training split
    config.recipe.batch_size = 64  # images a step: 20 steps an epoch
    config.recipe.lr = 0.1  # SGD
    config.recipe.lr_milestones = (24, 30, 36)  # epochs, at the same shares as 120, 150 and 180 of 200
    config.recipe.lr_decay = 0.2  # factor at each milestone
    config.recipe.momentum = 0.9
    config.recipe.weight_decay = 1e-4  # of every parameter
    config.recipe.square = 0  # pixels, random crop of larger images
    config.recipe.least_crop = 0.0  # of the area, randomly resized crops in place of shifts
    config.recipe.padding = 2  # pixels: one of the original 8x8 scan
    config.recipe.flip = False  # a mirrored digit is another sign
    config.recipe.seed = 0
    config.recipe.eval_every = 10  # epochs
    return config
