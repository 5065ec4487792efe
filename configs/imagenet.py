r"""FastDFKD on ImageNet: ResNet-50 as teacher, k = 50, 140,000 images (Table 2 of the paper).

Sources are METHOD 1.4 and 1.8. Published: 68.61 / 53.45 / 43.02 % for ResNet-50, ResNet-18 and MobileNetV2 as
students, in 6.28 GPU hours.

By default, the run follows the paper. It first makes the 140,000 images, without the adversarial term because there is
no student yet. Then come 400 epochs of distillation, as in the logs. The logs differ from the paper (METHOD T10): they
start with images that are not released, and synthesise 400,000 more while the student learns, with the adversarial
term. `-logs` selects that; it needs a folder of images, or the workdir of an earlier run, as pool.initial.

    fastdfkd run imagenet:resnet50_imagenet --workdir DIR \
        teacher.checkpoint=resnet50-19c8e357.pth

The variant is `:STUDENT`, resnet50_imagenet, resnet18_imagenet or mobilenetv2_imagenet, then optionally `-logs` or
`-tiny` (a trial on a CPU: images of 64 pixels, four calls). The pool needs 21 GB of disk; with `-logs`, 60 GB besides
the initial images. It is read from disk during training (docs/memory.md). To evaluate, give `data.source=folder:DIR`
with one folder per class, or `tfds:imagenet2012` with `data.split=validation`.

`:smoke` tries everything at 224 pixels with EfficientNet-Lite0, in minutes on two CPU cores. docs/conversion.md
describes how to get its real weights: give the imported file as teacher.checkpoint.
"""

from ml_collections import ConfigDict

from fastdfkd_jax.configs import default
from fastdfkd_jax.configs.cifar import IMAGENET_MEAN, IMAGENET_STD
from fastdfkd_jax.errors import UserError

# student: adversarial weight in the logs
STUDENTS = {"resnet50_imagenet": 0.1, "resnet18_imagenet": 1.0, "mobilenetv2_imagenet": 0.1}


def get_config(variant=None):
    """Returns the config for a student's architecture; the default is ResNet-50."""
    if variant == "smoke":
        return smoke()
    student, _, protocol = (variant or "resnet50_imagenet").partition("-")
    if student not in STUDENTS or protocol not in ("", "logs", "tiny"):
        raise UserError(
            f"unknown variant {variant!r}: expected one of {', '.join(STUDENTS)}, alone or with -logs or "
            "-tiny, or smoke"
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
    """Returns the published config, except for the teacher."""
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
    """Returns a trial: two calls (five steps, eight images of 224 pixels) and eight KD steps. It learns nothing."""
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
    """Sets 400 epochs of 1,000 student steps, after the synthesis of any method (METHOD 1.8)."""
    config.calls = config.synthesis_calls + 400
    config.kd.batch, config.kd.steps_per_call, config.kd.steps_per_dispatch = 100, 1000, 20
    config.kd.temperature, config.kd.lr, config.kd.final_lr = 5.0, 0.1, 0.0
    config.kd.least_crop = 0.08  # as in ImageNet training


def _as_logged(config: ConfigDict, adversarial_weight: float) -> None:
    """Sets 400 epochs of ten calls, each followed by 100 steps; evaluates and checkpoints after each epoch."""
    config.calls, config.synthesis_calls, config.warmup_calls = 4000, 0, 0
    config.kd.steps_per_call = 100
    config.inversion.adversarial_weight = adversarial_weight


def tiny(config: ConfigDict) -> None:
    """Shortens any method's run to minutes on a CPU: every stage runs, but nothing is learned."""
    config.teacher.image_size = 64
    config.calls, config.synthesis_calls, config.warmup_calls = 4, 0, 0
    config.synthesis_batch = config.kd.batch = 8
    config.fastdfkd.num_steps = 5
    config.deepinversion.half_size_steps, config.deepinversion.num_steps = 0, 5
    config.deepinversion.jitter = 8
    config.kd.steps_per_call = config.kd.steps_per_dispatch = 4
    config.eval_every = config.checkpoint_every = config.images_every = 4
