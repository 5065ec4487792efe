r"""FastDFKD on CIFAR-100 (Table 1 of the paper), with the variants and protocol of cifar10.

Published for wrn40_2-wrn16_1-fast5: 52.90 % (best epoch on the test set).

    fastdfkd run cifar100:wrn40_2-wrn16_1-fast5 --workdir DIR \
        teacher.checkpoint=cifar100_wrn40_2.pth
"""

from fastdfkd_jax.configs import cifar


def get_config(variant=None):
    """Returns the config of a variant; the default is WRN-40-2 -> WRN-16-1 with k = 5."""
    return cifar.make("cifar100", variant)
