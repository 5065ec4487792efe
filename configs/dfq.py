"""DFQ (Choi et al., CVPR workshops 2020): a warm-up of the generator alone, then ten student steps for each of its own.

    fastdfkd run dfq:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

There is no official code; these are the values of an unofficial one. That code renders the student's images with the
generator's running statistics. Ours has none: every batch is normalised with its own.

`-table1` after the pair is the recipe of CMI's script instead, from which the paper's row comes. It has 94.61 / 90.84 /
86.14 / 91.69 / 92.01 % on CIFAR-10 (the five pairs of Table 1), in 8.79 / 1.50 / 0.75 / 0.75 / 0.75 h. On CIFAR-100
users of CMI's and FastDFKD's code report less than its 77.01 % for ResNet-34 -> ResNet-18. Then `-short` or `-smoke`.
"""

from fastdfkd_jax.configs import cifar, cmi_scripts


def published(config):
    """METHOD section 6: 50 + 200 calls of 400 rounds; Adam 1e-3, SGD 0.1 with Nesterov momentum, both as a cosine.

    Without weight decay (METHOD section 8).
    """
    config.method.name = "dfq"
    config.calls, config.warmup_calls = 250, 50
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call, config.kd.temperature = 4000, 1.0
    config.kd.lr, config.kd.final_lr, config.kd.nesterov, config.kd.weight_decay = 0.1, 0.0, True, 0.0


def table1(config):
    """CMI's script (METHOD sections 2 and 8): no warm-up; cross-entropy 1, L2 statistics 1, balance 20.

    For ResNet-34 -> ResNet-18 on CIFAR-100 the student's rate is 0.05.
    """
    cmi_scripts.generative(config, student_steps=10)
    config.dfq.adversarial_weight, config.dfq.balance_weight = 1.0, 20.0
    config.dfq.class_term, config.dfq.class_weight = "argmax", 1.0
    config.dfq.statistics, config.dfq.statistics_weight = "l2", 1.0
    if (config.teacher.num_classes, config.teacher.arch, config.student.arch) == (100, "resnet34", "resnet18"):
        config.kd.lr = 0.05


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"table1": table1})
