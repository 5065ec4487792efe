r"""KD on real images: the original data ('KD' in Table 1) or others ('Places365+KD' in Table 2).

The temperature is that of the data-free rows, so that only the images differ. Released code has 1 (METHOD section 5).

    fastdfkd run kd:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

For other images without labels, give `transfer.source=folder:DIR transfer.crops=1`, or
`tfds:places365_small`.
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets 200 epochs of 50,000 images, SGD 0.1, rate times 0.1 after 120, 150 and 180; labels have weight 0.1."""
    config.method.name = "kd"
    config.transfer.source = config.data.source
    config.calls, config.warmup_calls = 200, 0
    config.kd.batch = config.synthesis_batch = 128
    config.kd.steps_per_call = 390
    config.kd.steps_per_dispatch = 39
    config.kd.lr, config.kd.milestones, config.kd.lr_decay = 0.1, (120, 150, 180), 0.1


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
