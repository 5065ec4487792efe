r"""DFAD (Fang et al., 2019) as released: 500 epochs of 50 generator steps, five student steps for each.

It is not in Table 1. Table 3 has 0.364 mIoU on NYUv2, from a version with dfad.generator_loss='log_l1'.

    fastdfkd run dfad:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

The scripts of CMI and Fast-Datafree have other values: dfad.generator='large', dfad.b1=0.5, dfad.milestones=(),
dfad.student_mode='eval', calls=200, kd.steps_per_call=400, kd.milestones=() and kd.weight_decay=1e-4.
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets METHOD section 6: Adam 1e-3, SGD 0.1 with weight decay 5e-4, both times 0.1 after 100 and 200 epochs."""
    config.method.name = "dfad"
    config.calls, config.warmup_calls = 500, 0
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call = 250
    config.kd.lr, config.kd.milestones, config.kd.weight_decay = 0.1, (100, 200), 5e-4


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
