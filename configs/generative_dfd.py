r"""Generative DFD (Luo et al., 2020): one generator per class makes 5,120 images for the student.

Table 2 has 69.75 / 54.66 / 43.15 % on ImageNet with 1,000 generators (about 300 h). The recipe was not released; this
one is ours. The student starts once the last class has its images. The calls after that train a second set of
generators, which sees no student either.

    fastdfkd run generative_dfd:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

If there are fewer calls than classes, each generator makes all classes, one generator after another.
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets two passes over the classes, the first without KD; 80,000 KD steps; a killed run repeats one call."""
    config.method.name = "generative_dfd"
    config.kd.steps_per_call = 2000
    if config.teacher.num_classes == 100:
        config.generative_dfd.calls_per_generator, config.generative_dfd.batches_kept = 2, 2
        config.kd.steps_per_call = 400
    calls = config.teacher.num_classes * config.generative_dfd.calls_per_generator
    config.calls, config.warmup_calls = 2 * calls, calls - 1
    config.checkpoint_every = 1


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    config = cifar.make_method(published, variant)
    if config.warmup_calls + 1 < config.teacher.num_classes * config.generative_dfd.calls_per_generator:
        config.generative_dfd.classes_per_generator = 0
        config.generative_dfd.calls_per_generator = max(1, config.warmup_calls)
    return config
