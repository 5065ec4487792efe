r"""FastDFKD on CIFAR-10: five pairs of networks with k of 2, 5 or 10 (Table 1 of the paper).

The protocol is that of the published tables: 220 calls of 256 images. The first 20 have no KD; 400 KD steps of 256
images follow each of the others. On one GPU, synthesis takes about 0.1 hours and distillation one or two. Published for
wrn40_2-wrn16_1-fast5: 88.90 % (best epoch on the test set).

    fastdfkd run cifar10:wrn40_2-wrn16_1-fast5 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

The variant is `:teacher-student-fastK`, then any of `-short` (60 calls of 128 images; for CPUs), `-paper` (as the
paper's text describes), `-reptile`, `-fomaml_last` and `-smoke`; or `:smoke` alone.
"""

from fastdfkd_jax.configs import cifar


def get_config(variant=None):
    """Returns the config of a variant; the default is WRN-40-2 -> WRN-16-1 with k = 5."""
    return cifar.make("cifar10", variant)
