r"""Trains a teacher on CIFAR-10 by the published recipe.

    fastdfkd pretrain cifar10 --workdir DIR \
      arch=wrn40_2 data.dir=DIR
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns every key; values are from METHOD section 5 unless another source is named."""
    config = ConfigDict()
    config.arch = "wrn40_2"  # architecture, a name in docs/models.md
    config.graph = ""  # folder of a recorded PyTorch network, which replaces arch
    config.initial = ""  # weights to begin with, of such a network or of its backbone; '' to draw them
    config.mean = (0.4914, 0.4822, 0.4465)  # per channel, of images in [0, 1] (METHOD section 3)
    config.std = (0.2023, 0.1994, 0.2010)

    config.data = ConfigDict()
    config.data.source = "tfds:cifar10"  # in the form that `data.load` takes
    config.data.dir = "~/tensorflow_datasets"  # folder of the data
    config.data.short_side = 0  # pixels, of images with masks; 0 for no resizing
    config.data.train_split = "train"
    config.data.test_split = "test"  # only for reporting, never for selection

    config.recipe = ConfigDict()
    config.recipe.epochs = 200  # passes over the training split
    config.recipe.batch_size = 256  # images per step
    config.recipe.optimizer = "sgd"  # or "adamw", whose weight decay is decoupled
    config.recipe.lr = 0.1  # peak learning rate
    config.recipe.rate_warmup_epochs = 0  # epochs at the start during which the rate rises linearly
    config.recipe.schedule = "milestones"  # or "cosine", a rate that falls to 0
    config.recipe.lr_milestones = (120, 150, 180)  # epochs
    config.recipe.lr_decay = 0.2  # factor at each milestone; CMI's recipe has 0.1
    config.recipe.momentum = 0.9  # of SGD
    config.recipe.weight_decay = 1e-4  # on every parameter
    config.recipe.square = 0  # pixels, random crop of larger images
    config.recipe.least_crop = 0.0  # smallest share of the area in randomly resized crops, which replace shifts
    config.recipe.padding = 4  # pixels, random crop (METHOD section 4)
    config.recipe.flip = True  # random mirror image
    config.recipe.seed = 0
    config.recipe.eval_every = 5  # epochs
    return config
