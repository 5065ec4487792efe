r"""DFQ (Choi et al., CVPRW 2020): ten student steps for each generator step, after a warm-up.

The warm-up trains only the generator.

    fastdfkd run dfq:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

There is no official code; the values are those of an unofficial one. That code renders the student's images with the
generator's running statistics. Our generator has none: it normalises every batch with the batch's own statistics.

`-table1` after the pair selects the recipe of CMI's script instead, which the paper's row comes from. For the five
pairs of Table 1 on CIFAR-10 that row has:

    accuracy, %  94.61  90.84  86.14  91.69  92.01
    hours         8.79   1.50   0.75   0.75   0.75

For ResNet-34 -> ResNet-18 on CIFAR-100 it has 77.01 %; users of CMI's and FastDFKD's code report less. `-short` or
`-smoke` may follow.
"""

from fastdfkd_jax.configs import cifar, cmi_scripts


def published(config):
    """Sets METHOD section 6: 50 + 200 calls of 400 rounds; Adam 1e-3 and Nesterov SGD 0.1, both falling as a cosine.

    There is no weight decay (METHOD section 8).
    """
    config.method.name = "dfq"
    config.calls, config.warmup_calls = 250, 50
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call, config.kd.temperature = 4000, 1.0
    config.kd.lr, config.kd.final_lr, config.kd.nesterov, config.kd.weight_decay = 0.1, 0.0, True, 0.0


def table1(config):
    """Sets CMI's script (METHOD sections 2 and 8): no warm-up; cross-entropy 1, L2 statistics 1, balance 20.

    For ResNet-34 -> ResNet-18 on CIFAR-100 the student's learning rate is 0.05.
    """
    cmi_scripts.generative(config, student_steps=10)
    config.dfq.adversarial_weight, config.dfq.balance_weight = 1.0, 20.0
    config.dfq.class_term, config.dfq.class_weight = "argmax", 1.0
    config.dfq.statistics, config.dfq.statistics_weight = "l2", 1.0
    if (config.teacher.num_classes, config.teacher.arch, config.student.arch) == (100, "resnet34", "resnet18"):
        config.kd.lr = 0.05


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"table1": table1})
