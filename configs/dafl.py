r"""DAFL (Chen et al., ICCV 2019) as released: 2,000 epochs of 120 joint steps on 1,024 images.

    fastdfkd run dafl:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

`-table1` after the pair selects the recipe of CMI's script instead, which the paper's row comes from. For the five
pairs of Table 1 on CIFAR-10 that row has:

    accuracy, %  92.22  81.10  65.71  81.33  81.55
    hours         2.73   0.73   1.73   1.53   1.60

For ResNet-34 -> ResNet-18 on CIFAR-100 it has 74.47 %; users of CMI's and FastDFKD's code report less. `-short` or
`-smoke` may follow.
"""

import math

from fastdfkd_jax.configs import cifar, cmi_scripts


def published(config):
    """Sets METHOD section 6: generator with Adam 0.02; student with SGD 0.1 and weight decay 5e-4; T = 1."""
    config.method.name = "dafl"
    if config.teacher.num_classes == 100:
        config.dafl.class_weight, config.dafl.balance_weight, config.dafl.activation_weight = 0.5, 20.0, 0.1
    config.calls, config.warmup_calls = 2000, 0
    config.synthesis_batch = config.kd.batch = 1024
    config.kd.steps_per_call, config.kd.temperature = 120, 1.0
    config.kd.lr, config.kd.milestones, config.kd.weight_decay = 0.1, (800, 1600), 5e-4


def table1(config):
    """Sets CMI's script (METHOD section 2): 512 latents, five student steps; class 1, activation 0.001, balance 20."""
    cmi_scripts.generative(config, student_steps=5, latent_dim=512)
    config.dafl.class_weight, config.dafl.activation_weight = 1.0, 1e-3
    config.dafl.balance_weight = 20 * math.log(10)  # 20 for nats; DAFL's own logarithm has base 10


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"table1": table1})
