"""DFQ (Choi et al., CVPR workshops 2020): a warm-up of the generator alone, then ten student steps for each of its own.

94.61 / 90.84 / 86.14 / 91.69 / 92.01 % on CIFAR-10 in Table 1 (its five pairs), in 8.79 / 1.50 / 0.75 / 0.75 / 0.75 h.

    python -m fastdfkd_jax.main --config configs/dfq.py:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        --config.teacher.checkpoint=cifar10_wrn40_2.pth

There is no official code; these are the values of an unofficial one. The scripts of CMI and Fast-Datafree have others:
dfq.generator='large', dfq.latent_dim=256, dfq.cosine=False, dfq.balance_weight=20, dfq.class_weight=0 (with one-hot
and L2 statistics terms of weight 1 in place of the entropy and the Gaussian KL); and kd.steps_per_call=400.
"""

from configs import cifar


def published(config):
    """METHOD section 6: 50 + 200 calls of 400 rounds; Adam 1e-3, SGD 0.1 with Nesterov momentum, both as a cosine."""
    config.method.name = "dfq"
    config.calls, config.warmup_calls = 250, 50
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call, config.kd.temperature = 4000, 1.0
    config.kd.lr, config.kd.final_lr, config.kd.nesterov = 0.1, 0.0, True


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
