r"""ZSKT (Micaelli and Storkey, NeurIPS 2019) as released: 80,000 batches, ten student steps on each.

A batch has 128 images.

    fastdfkd run zskt:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

Attention transfer was published for pairs of WRNs. It is off if the stages of teacher and student differ in kind.

`-table1` after the pair selects the recipe of CMI's script instead, which the paper's row comes from. For the five
pairs of Table 1 on CIFAR-10 that row has:

    accuracy, %  93.32  89.46  83.74  86.07  89.66
    hours         1.67   0.33   0.87   0.87   0.87

`-short` or `-smoke` may follow.
"""

from fastdfkd_jax.configs import cifar, cmi_scripts
from fastdfkd_jax.models import stages_of


def published(config):
    """Sets METHOD section 6: Adam 1e-3 (generator) and 2e-3 (student), cosine to 0; gradients clipped at 5."""
    config.method.name = "zskt"
    teacher, student = config.teacher.arch, config.student.arch
    if teacher and stages_of(teacher) != stages_of(student):  # without a name, the checkpoint decides
        config.zskt.attention_weight = 0.0
    config.calls, config.warmup_calls = 800, 0
    config.synthesis_batch = config.kd.batch = 128
    config.kd.steps_per_call, config.kd.temperature = 1000, 1.0
    config.kd.optimizer, config.kd.lr, config.kd.final_lr, config.kd.weight_decay = "adam", 2e-3, 0.0, 0.0
    config.kd.clip_norm = 5.0


def table1(config):
    """Sets CMI's script (METHOD 2 and 8): five student steps, KL summed over classes, no attention transfer."""
    cmi_scripts.generative(config, student_steps=5)
    config.zskt.attention_weight, config.zskt.kl_reduction = 0.0, "batchmean"


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"table1": table1})
