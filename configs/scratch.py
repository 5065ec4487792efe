r"""Training from scratch on the original data: the row 'Student' of the tables (METHOD section 5).

The recipe is that of the tables' students on synthesised images, so that only the images differ.
Published for WRN-16-1 on CIFAR-10: 91.12 %.

    fastdfkd run scratch:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets 200 epochs of 50,000 images, SGD 0.1, learning rate times 0.2 after 120, 150 and 180."""
    config.method.name = "scratch"
    config.transfer.source = config.data.source
    config.calls, config.warmup_calls = 200, 0
    config.kd.batch = config.synthesis_batch = 256
    config.kd.steps_per_call = 195
    config.kd.steps_per_dispatch = 39
    config.kd.lr, config.kd.milestones, config.kd.lr_decay = 0.1, (120, 150, 180), 0.2


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
