r"""DFND: KD on the 600,000 ImageNet images the teacher is surest of, with a model of its mistakes.

The images are scaled to 32 pixels.

    fastdfkd run dfnd:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth transfer.source=folder:IMAGENET
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets METHOD section 6: T = 4, SGD 0.1, weight decay 5e-4, batches of 256; 34 epochs of the selected images.

    The learning rate falls to a tenth at 40 % and at 80 % of the epochs (METHOD section 8).
    """
    config.method.name = "dfnd"
    config.transfer.source, config.transfer.crops, config.transfer.select = "tfds:imagenet2012", 1, 600_000
    config.dfnd.teacher_accuracy = 0.9523 if config.teacher.num_classes != 100 else 0.7774
    config.calls, config.warmup_calls = 34, 0
    config.kd.batch = config.synthesis_batch = 256
    config.kd.steps_per_call = 2343
    config.kd.steps_per_dispatch = 33
    config.kd.temperature, config.kd.lr, config.kd.weight_decay = 4.0, 0.1, 5e-4
    config.kd.milestones, config.kd.lr_decay = (14, 27), 0.1


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
