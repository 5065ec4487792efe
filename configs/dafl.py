"""DAFL (Chen et al., ICCV 2019) as officially released: 2,000 epochs of 120 joint steps on 1,024 images.

92.22 / 81.10 / 65.71 / 81.33 / 81.55 % on CIFAR-10 in Table 1 (its five pairs), in 2.73 / 0.73 / 1.73 / 1.53 / 1.60 h.

    python -m fastdfkd_jax.main --config configs/dafl.py:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        --config.teacher.checkpoint=cifar10_wrn40_2.pth

The scripts of CMI and Fast-Datafree have other values: dafl.generator='large', dafl.latent_dim=512, dafl.lr=1e-3,
dafl.b1=0.5, dafl.student_images='fresh', dafl.student_steps=5, dafl.class_weight=1, dafl.activation_weight=1e-3,
dafl.balance_weight=46 (20 in nats); and batches of 256, calls=200, kd.steps_per_call=400, kd.milestones=().
"""

from configs import cifar


def published(config):
    """METHOD section 6: Adam 0.02 for the generator; SGD 0.1, weight decay 5e-4 for the student; T = 1."""
    config.method.name = "dafl"
    if config.teacher.num_classes == 100:
        config.dafl.class_weight, config.dafl.balance_weight, config.dafl.activation_weight = 0.5, 20.0, 0.1
    config.calls, config.warmup_calls = 2000, 0
    config.synthesis_batch = config.kd.batch = 1024
    config.kd.steps_per_call, config.kd.temperature = 120, 1.0
    config.kd.lr, config.kd.milestones, config.kd.weight_decay = 0.1, (800, 1600), 5e-4


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
