"""Generative DFD (Luo et al., 2020): a generator for each class, 5,120 images of each; then the student learns.

69.75 / 54.66 / 43.15 % on ImageNet in Table 2 with 1,000 generators (about 300 h); the recipe was not released, and
this one is ours. The student begins when the last class has its images; the calls after that train a second set of
generators, which see a student no more than the first did.

    fastdfkd run generative_dfd:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

A budget of fewer calls than classes gets one generator of all classes after another.
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Two passes over the classes, the first without KD; 80,000 KD steps; a killed run repeats one call."""
    config.method.name = "generative_dfd"
    config.kd.steps_per_call = 2000
    if config.teacher.num_classes == 100:
        config.generative_dfd.calls_per_generator, config.generative_dfd.batches_kept = 2, 2
        config.kd.steps_per_call = 400
    calls = config.teacher.num_classes * config.generative_dfd.calls_per_generator
    config.calls, config.warmup_calls = 2 * calls, calls - 1
    config.checkpoint_every = 1


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    config = cifar.make_method(published, variant)
    if config.warmup_calls + 1 < config.teacher.num_classes * config.generative_dfd.calls_per_generator:
        config.generative_dfd.classes_per_generator = 0
        config.generative_dfd.calls_per_generator = max(1, config.warmup_calls)
    return config
