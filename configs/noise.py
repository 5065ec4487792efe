r"""The control: the student's whole recipe, on images of Gaussian noise.

    fastdfkd run noise:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets the calls, batches and student steps of the published tables, which are the defaults."""
    config.method.name = "noise"


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
