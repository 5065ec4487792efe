"""CMI, contrastive model inversion, on CIFAR: a generator trained from scratch for every batch (METHOD 1.5).

Published for wrn40_2-wrn16_1: 90.01 % on CIFAR-10 and 57.91 % on CIFAR-100 (best epoch on the test set). The row's
label says 500 steps, the released script 200; these are the script's values.

    python -m fastdfkd_jax.main --config configs/cmi.py:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        --config.teacher.checkpoint=cifar10_wrn40_2.pth

`:dataset-teacher-student`, then `-short` or `-smoke`. The bank of features is 1.8 GB for WRN-40-2, in memory and in
every checkpoint (`--config.dry_run=true` tells what is held); for ResNet-34 the released code compares stages rather
than BatchNorms, `--config.cmi.features=blocks`. The few-step rows of Table 4 are `--config.cmi.num_steps=2`, 5 and 10;
published for CIFAR-100 14.62, 20.08 and 32.43 %.
"""

from configs import cifar


def published(config):
    """200 calls of 256 images, 400 KD steps after each, rate 0.1."""
    config.method.name = "cmi"
    config.calls, config.warmup_calls = 200, 0
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call, config.kd.lr, config.kd.final_lr = 400, 0.1, 2e-4
    config.cmi.num_steps, config.cmi.learning_rate = 200, 1e-3
    config.cmi.contrastive_weight, config.cmi.temperature = 0.8, 0.2
    config.inversion.class_weight = config.inversion.feature_weight = 1.0
    config.inversion.adversarial_weight, config.inversion.adversarial = 0.5, "kl"
    config.inversion.feature = "plain"


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
