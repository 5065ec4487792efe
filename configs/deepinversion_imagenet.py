r"""DeepInversion on ImageNet: 2,000 steps at 112 pixels, then 1,000 at 224 (METHOD 6, setting 0).

Published: 68.00 % for ResNet-50 -> ResNet-50 with 140,000 images (166 GPU hours). The authors never released how their
students were trained, so distillation is that of FastDFKD for ImageNet.

    fastdfkd run deepinversion_imagenet:resnet50_imagenet --workdir DIR \
        teacher.checkpoint=resnet50-19c8e357.pth

The variant is `:STUDENT`, resnet50_imagenet or resnet18_imagenet. The pool needs 21 GB of disk. To evaluate, give
`data.source=folder:DIR` with one folder per class, or `tfds:imagenet2012` with `data.split=validation`.

Adaptive DeepInversion synthesises another pool, of images on which teacher and student differ: `mode=synthesize
warmup_calls=0 deepinversion.adversarial_weight=0.2` and a `config.student.checkpoint`. Its divergence is the paper's.
The authors' code clamps probabilities, which can leave 1,000 classes without a gradient.
"""

from fastdfkd_jax.configs import default, imagenet
from fastdfkd_jax.configs.cifar import IMAGENET_MEAN, IMAGENET_STD
from fastdfkd_jax.errors import UserError

STUDENTS = ("resnet50_imagenet", "resnet18_imagenet")


def recipe(config):
    """Sets the authors' defaults; the feature weight and the learning rate are those of their own runs."""
    config.method.name = "deepinversion"
    config.synthesis_calls = config.warmup_calls = 2188  # 140,000 images
    config.synthesis_batch = 64
    chosen = config.deepinversion
    chosen.half_size_steps, chosen.num_steps = 2000, 1000
    chosen.lr, chosen.schedule, chosen.rate_warmup_steps = 0.25, "cosine", 100
    chosen.b1, chosen.b2 = 0.5, 0.9
    chosen.class_weight, chosen.feature_weight, chosen.first_bn_multiplier = 1.0, 0.01, 10.0
    chosen.tv_l1, chosen.tv_l2, chosen.l2 = 0.0, 1e-4, 1e-5
    chosen.adversarial, chosen.adversarial_weight, chosen.student_feature_weight = "adi", 0.0, 0.0
    chosen.jitter, chosen.flip = 30, True
    chosen.labels, chosen.images = "uniform", "best"
    imagenet.distillation(config)


def get_config(variant=None):
    """Returns the config for a student's architecture; the default is ResNet-50."""
    student = variant or STUDENTS[0]
    if student not in STUDENTS:
        raise UserError(f"unknown variant {variant!r}: expected one of {', '.join(STUDENTS)}")
    config = default.get_config()
    config.teacher.arch, config.teacher.num_classes, config.teacher.image_size = "resnet50_imagenet", 1000, 224
    config.teacher.mean, config.teacher.std = IMAGENET_MEAN, IMAGENET_STD
    config.student.arch = student
    config.data.crop = 0.875
    config.pool.place = "disk"
    recipe(config)
    return config
