"""ZSKT (Micaelli and Storkey, NeurIPS 2019) as officially released: 80,000 batches of 128, ten student steps on each.

    fastdfkd run zskt:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

Attention transfer was published for pairs of WRNs. It is off where the stages of teacher and student are of two kinds.

`-table1` after the pair is the recipe of CMI's script instead, from which the paper's row comes. It has 93.32 / 89.46 /
83.74 / 86.07 / 89.66 % on CIFAR-10 (the five pairs of Table 1), in 1.67 / 0.33 / 0.87 / 0.87 / 0.87 h. Then `-short` or
`-smoke`.
"""

from fastdfkd_jax.configs import cifar, cmi_scripts
from fastdfkd_jax.models import stages_of


def published(config):
    """METHOD section 6: Adam 1e-3 and 2e-3 for generator and student, both to 0 as a cosine; gradients clipped at 5."""
    config.method.name = "zskt"
    teacher, student = config.teacher.arch, config.student.arch
    if teacher and stages_of(teacher) != stages_of(student):  # a teacher without a name is what its checkpoint says
        config.zskt.attention_weight = 0.0
    config.calls, config.warmup_calls = 800, 0
    config.synthesis_batch = config.kd.batch = 128
    config.kd.steps_per_call, config.kd.temperature = 1000, 1.0
    config.kd.optimizer, config.kd.lr, config.kd.final_lr, config.kd.weight_decay = "adam", 2e-3, 0.0, 0.0
    config.kd.clip_norm = 5.0


def table1(config):
    """CMI's script (METHOD sections 2 and 8): five student steps, KL summed over classes, no attention transfer."""
    cmi_scripts.generative(config, student_steps=5)
    config.zskt.attention_weight, config.zskt.kl_reduction = 0.0, "batchmean"


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"table1": table1})
