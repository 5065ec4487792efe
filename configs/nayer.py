"""NAYER (Tran et al., CVPR 2024): noisy layers between label embeddings and a generator (METHOD section 6).

    fastdfkd run nayer:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

The label embeddings are the rows of the teacher's last linear layer. The released code embeds the classes' names with
CLIP. To use such embeddings, save them as an array [classes, dimension] with numpy.save, and give the file as
`nayer.embeddings=FILE`; the run then records that it knows the names of the classes.

The release has 10 batches in each of the 20 epochs before KD and 2 in each later epoch. A synthesis call is a batch
here, so there are 200 calls before KD. The number of epochs and of KD steps is that of FastDFKD's recipe: 200 epochs of
400 steps.

The variant is `:dataset-teacher-student`, then optionally `-short` (60 calls of 128 images; for CPUs) or `-smoke`.
"""

from fastdfkd_jax.configs import cifar


def published(config):
    """Sets the released weights, rates and batches; the number of epochs and of KD steps is FastDFKD's."""
    config.method.name = "nayer"
    config.calls, config.warmup_calls = 20 * 10 + 200 * 2, 20 * 10
    config.synthesis_batch = 400
    config.kd.steps_per_call, config.kd.batch = 400 // 2, 512
    config.kd.temperature, config.kd.lr = 20.0, 0.2
    config.generator.latent_dim = 1000
    config.nayer.num_steps = 40 if config.teacher.num_classes == 100 else 30
    config.inversion.class_weight, config.inversion.adversarial_weight = 0.5, 1.33
    config.inversion.feature_weight, config.inversion.accumulator_weight = 10.0, 0.9


def get_config(variant=None):
    """Returns the config of 'dataset-teacher-student[-protocol]'; the default is WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant)
