"""CIFAR-10, Table 1 of the paper: FastDFKD with k of 2, 5 or 10 for five pairs, as the tables were made.

220 calls of 256 images, 20 without KD, then 400 KD steps of 256 after each; about 0.1 GPU hours of synthesis and one or
two of distillation on one GPU. Published for wrn40_2-wrn16_1-fast5: 88.90 % (best epoch on the test set).

    fastdfkd run cifar10:wrn40_2-wrn16_1-fast5 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

`:teacher-student-fastK`, then any of `-short` (60 calls of 128 images; for CPUs), `-paper` (the paper's letter),
`-reptile`, `-fomaml_last`, `-smoke`; or `:smoke` alone.
"""

from fastdfkd_jax.configs import cifar


def get_config(variant=None):
    """The config of a variant; without one, WRN-40-2 -> WRN-16-1 with k = 5."""
    return cifar.make("cifar10", variant)
