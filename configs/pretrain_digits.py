"""Trains WRN-16-1, the quickstart's teacher, on the digits that come with the package.

fastdfkd pretrain digits --workdir DIR
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns every key; the recipe is that of METHOD section 5, shortened for a small data set."""
    config = ConfigDict()
    config.arch = "wrn16_1"  # architecture, a name in docs/models.md
    config.graph = ""  # folder of a recorded PyTorch network, which replaces arch
    config.initial = ""  # weights to begin with, of such a network or of its backbone; '' to draw them
    config.mean = (0.306,)  # of the training digits, scaled to [0, 1]
    config.std = (0.318,)

    config.data = ConfigDict()
    config.data.source = "digits"  # in the form that `data.load` takes
    config.data.dir = "~/tensorflow_datasets"  # folder of the data; the digits need none
    config.data.short_side = 0  # pixels, of images with masks; 0 for no resizing
    config.data.train_split = "train"
    config.data.test_split = "test"  # only for reporting, never for selection

    config.recipe = ConfigDict()
    config.recipe.epochs = 40  # passes over the training split
    config.recipe.batch_size = 64  # images per step: 20 steps per epoch
    config.recipe.optimizer = "sgd"  # or "adamw", whose weight decay is decoupled
    config.recipe.lr = 0.1  # peak learning rate
    config.recipe.rate_warmup_epochs = 0  # epochs at the start during which the rate rises linearly
    config.recipe.schedule = "milestones"  # or "cosine", a rate that falls to 0
    config.recipe.lr_milestones = (24, 30, 36)  # epochs, at the shares of 120, 150 and 180 of 200
    config.recipe.lr_decay = 0.2  # factor at each milestone
    config.recipe.momentum = 0.9  # of SGD
    config.recipe.weight_decay = 1e-4  # on every parameter
    config.recipe.square = 0  # pixels, random crop of larger images
    config.recipe.least_crop = 0.0  # smallest share of the area in randomly resized crops, which replace shifts
    config.recipe.padding = 2  # pixels, as wide as one pixel of the original 8x8 scan
    config.recipe.flip = False  # a mirrored digit is a different symbol
    config.recipe.seed = 0
    config.recipe.eval_every = 10  # epochs
    return config
