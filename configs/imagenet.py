"""FastDFKD on ImageNet, Table 2 of the paper: k = 50, 140,000 images, ResNet-50 as teacher (METHOD 1.4 and 1.8).

Published: 68.61 / 53.45 / 43.02 % for ResNet-50, ResNet-18 and MobileNetV2 as students, in 6.28 GPU hours. As the
paper tells it, the 140,000 images come first, without the adversarial term, as there is no student yet, and then 400
epochs of distillation as in the logs. The logs themselves begin with images that are not released, and synthesise
400,000 more while the student learns, with that term (METHOD T10): `-logs`, with a folder of images, or the workdir of
an earlier run, as pool.initial.

    fastdfkd run imagenet:resnet50_imagenet --workdir DIR \
        teacher.checkpoint=resnet50-19c8e357.pth

`:STUDENT`, resnet50_imagenet, resnet18_imagenet or mobilenetv2_imagenet, and then `-logs`, or `-tiny`: images of 64
pixels, four calls, for a trial on a CPU. The pool needs 21 GB of disk, that of `-logs` 60 beside what it begins with,
and is read as the student learns (docs/scale.md). To evaluate, `data.source=folder:DIR` with one folder a
class, or `tfds:imagenet2012` with `data.split=validation`.

`:smoke` is a trial of the whole at 224 pixels, minutes on two CPU cores, of EfficientNet-Lite0, whose real weights
docs/conversion.md tells how to get: give the imported file as teacher.checkpoint.
"""

from ml_collections import ConfigDict

from fastdfkd_jax.configs import default
from fastdfkd_jax.configs.cifar import IMAGENET_MEAN, IMAGENET_STD
from fastdfkd_jax.errors import UserError

# student: adversarial weight in the logs
STUDENTS = {"resnet50_imagenet": 0.1, "resnet18_imagenet": 1.0, "mobilenetv2_imagenet": 0.1}


def get_config(variant=None):
    """The config of a student's architecture; without one, ResNet-50."""
    if variant == "smoke":
        return smoke()
    student, _, protocol = (variant or "resnet50_imagenet").partition("-")
    if student not in STUDENTS or protocol not in ("", "logs", "tiny"):
        raise UserError(
            f"unknown variant {variant!r}: expected one of {', '.join(STUDENTS)}, then -logs, -tiny, nothing, or smoke"
        )
    config = _published(student)
    config.teacher.arch = "resnet50_imagenet"
    config.teacher.mean, config.teacher.std = IMAGENET_MEAN, IMAGENET_STD
    if protocol == "logs":
        _as_logged(config, STUDENTS[student])
    if protocol == "tiny":
        tiny(config)
    return config


def _published(student: str) -> ConfigDict:
    """All but the teacher."""
    config = default.get_config()
    config.teacher.num_classes, config.teacher.image_size = 1000, 224
    config.student.arch = student
    config.data.crop = 0.875
    config.pool.place = "disk"
    _fast50(config)
    config.inversion.adversarial_weight = 0.0
    distillation(config)
    return config


def smoke() -> ConfigDict:
    """Two calls of five steps and eight images of 224 pixels, eight KD steps: every stage runs, nothing is learned."""
    config = _published("mobilenetv2_imagenet")
    config.teacher.arch = "efficientnet_lite0"  # mean and std are in the imported file
    config.calls, config.synthesis_calls, config.warmup_calls = 4, 2, 2
    config.synthesis_batch, config.fastdfkd.num_steps = 8, 5
    config.kd.batch, config.kd.steps_per_call, config.kd.steps_per_dispatch = 8, 4, 4
    config.eval_every = config.images_every = 2
    config.data.batch = 50
    return config


def _fast50(config: ConfigDict) -> None:
    config.synthesis_calls = config.warmup_calls = 1400
    config.synthesis_batch = 100
    config.generator.kind = "spatial"
    chosen = config.fastdfkd
    chosen.num_steps, chosen.meta_rule, chosen.reptile_scale = 50, "reptile", 1.0
    chosen.latents, chosen.latents_period, chosen.latents_update = "periodic", 50, "adapted"  # METHOD T2
    chosen.reset_optimizer_with_latents, chosen.reset_first_layer_at = True, 0
    chosen.images = "last"
    config.inversion.class_weight = config.inversion.feature_weight = 0.1
    config.inversion.least_crop = 0.75
    config.inner.generator_lr, config.inner.latents_lr = 2e-4, 1e-2
    config.meta.lr = 1e-4


def distillation(config: ConfigDict) -> None:
    """400 epochs of 1,000 steps, after the synthesis of any method (METHOD 1.8)."""
    config.calls = config.synthesis_calls + 400
    config.kd.batch, config.kd.steps_per_call, config.kd.steps_per_dispatch = 100, 1000, 20
    config.kd.temperature, config.kd.lr, config.kd.final_lr = 5.0, 0.1, 0.0
    config.kd.least_crop = 0.08  # that of ImageNet's training views


def _as_logged(config: ConfigDict, adversarial_weight: float) -> None:
    """400 epochs of ten calls, 100 steps after each; evaluation and a checkpoint after each epoch."""
    config.calls, config.synthesis_calls, config.warmup_calls = 4000, 0, 0
    config.kd.steps_per_call = 100
    config.inversion.adversarial_weight = adversarial_weight


def tiny(config: ConfigDict) -> None:
    """Minutes on a CPU, for any method: every stage runs, nothing is learned."""
    config.teacher.image_size = 64
    config.calls, config.synthesis_calls, config.warmup_calls = 4, 0, 0
    config.synthesis_batch = config.kd.batch = 8
    config.fastdfkd.num_steps = 5
    config.deepinversion.half_size_steps, config.deepinversion.num_steps = 0, 5
    config.deepinversion.jitter = 8
    config.kd.steps_per_call = config.kd.steps_per_dispatch = 4
    config.eval_every = config.checkpoint_every = config.images_every = 4
