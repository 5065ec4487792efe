"""DAFL (Chen et al., ICCV 2019) as officially released: 2,000 epochs of 120 joint steps on 1,024 images.

    fastdfkd run dafl:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

`-table1` after the pair is the recipe of CMI's script instead, from which the paper's row comes. It has 92.22 / 81.10 /
65.71 / 81.33 / 81.55 % on CIFAR-10 (the five pairs of Table 1), in 2.73 / 0.73 / 1.73 / 1.53 / 1.60 h. On CIFAR-100
users of CMI's and FastDFKD's code report less than its 74.47 % for ResNet-34 -> ResNet-18. Then `-short` or `-smoke`.
"""

import math

from fastdfkd_jax.configs import cifar, cmi_scripts


def published(config):
    """METHOD section 6: Adam 0.02 for the generator; SGD 0.1, weight decay 5e-4 for the student; T = 1."""
    config.method.name = "dafl"
    if config.teacher.num_classes == 100:
        config.dafl.class_weight, config.dafl.balance_weight, config.dafl.activation_weight = 0.5, 20.0, 0.1
    config.calls, config.warmup_calls = 2000, 0
    config.synthesis_batch = config.kd.batch = 1024
    config.kd.steps_per_call, config.kd.temperature = 120, 1.0
    config.kd.lr, config.kd.milestones, config.kd.weight_decay = 0.1, (800, 1600), 5e-4


def table1(config):
    """CMI's script (METHOD section 2): latents of 512, five student steps; class 1, activation 0.001, balance 20."""
    cmi_scripts.generative(config, student_steps=5, latent_dim=512)
    config.dafl.class_weight, config.dafl.activation_weight = 1.0, 1e-3
    config.dafl.balance_weight = 20 * math.log(10)  # 20 in nats, where DAFL's own logarithm is to base 10


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"table1": table1})
