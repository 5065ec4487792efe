"""Shared parts of the segmentation configs: the rows of Table 3, each with the same number of student steps."""

from collections.abc import Callable

from ml_collections import ConfigDict

from fastdfkd_jax.configs import cifar, default, rates
from fastdfkd_jax.configs.cifar import Change
from fastdfkd_jax.errors import UserError


def make(
    base: Callable[[], ConfigDict], variant: str | None, budgets: dict[str, Change], always: Change | None = None
) -> ConfigDict:
    """Returns the config of 'METHOD[-BUDGET]', or of 'smoke'.

    Args:
      base: returns the data, the pair and the student's recipe.
      variant: the default is FastDFKD.
      budgets: changes to any method's config, by name.
      always: changes applied to every config, before the budgets.
    """
    if variant == "smoke":
        variant = "fast10-smoke"
    name, *chosen = (variant or "fast10").split("-")
    if name not in METHODS or set(chosen) - budgets.keys():
        raise UserError(
            f"unknown variant {variant!r}: expected METHOD[-BUDGET], with METHOD one of {', '.join(METHODS)}, BUDGET "
            f"one of {', '.join(budgets)}, or smoke"
        )
    config = base()
    METHODS[name](config)
    if always is not None:
        always(config)
    for budget in chosen:
        budgets[budget](config)
    return config


def base(teacher: str, student: str, classes: int) -> ConfigDict:
    """Returns DFAD's recipe for NYUv2: SGD 0.1, weight decay 5e-5, rate times 0.3 at each third (METHOD 6).

    It has 300 epochs of 250 steps on 64 images. The paper gives no other recipe for its rows. KD has no temperature.
    """
    config = default.get_config()
    config.teacher.arch, config.student.arch, config.teacher.num_classes = teacher, student, classes
    config.teacher.image_size = 128
    config.teacher.mean = config.teacher.std = (0.5, 0.5, 0.5)
    config.calls, config.warmup_calls = 300, 0
    config.synthesis_batch = config.kd.batch = 64
    config.kd.steps_per_call, config.kd.steps_per_dispatch, config.kd.temperature = 250, 25, 1.0
    config.kd.lr, config.kd.milestones, config.kd.lr_decay, config.kd.weight_decay = 0.1, (100, 200), 0.3, 5e-5
    config.kd.crop_padding = 0
    config.dfnd.teacher_accuracy = 0.7  # share of pixels; that of the published teacher is unknown
    config.data.batch = 16
    return config


def fast10(config: ConfigDict) -> None:
    """Sets k = 10, 17,024 images, and the feature and adversarial terms (paper, 'Results on Segmentation').

    Weights and learning rates are those of the CIFAR rows; none are published for segmentation.
    """
    config.method.name = "fastdfkd"
    config.calls, config.synthesis_calls, config.warmup_calls = 310, 266, 10
    config.inversion.class_weight = 0.0
    config.inversion.adversarial_weight, config.inversion.feature_weight = 1.1, 10.0
    config.inversion.crop_padding = 0
    cifar.apply(config, 10, ())
    config.fastdfkd.reset_first_layer_at = 0
    config.eval_every = config.checkpoint_every = 5


def deepinversion(config: ConfigDict) -> None:
    """Optimises the pixels of as many images with the same two terms; no row of Table 3."""
    fast10(config)
    config.method.name = "deepinversion"
    config.deepinversion.class_weight = 0.0
    config.deepinversion.num_steps, config.deepinversion.lr = 2000, 0.1
    config.deepinversion.jitter = config.teacher.image_size // 8


def dfad(config: ConfigDict) -> None:
    """Sets 300 epochs of 50 rounds (one generator step, five student steps), -log(1 + L1), Adam 1e-3 (METHOD 6)."""
    config.method.name = "dfad"
    config.dfad.generator, config.dfad.generator_loss = "dcgan", "log_l1"
    config.dfad.milestones, config.dfad.lr_decay = (100, 200), 0.3


def dafl(config: ConfigDict) -> None:
    """Sets as many rounds, with DFAD's learning rates; the terms of DAFL for classifiers become means over pixels."""
    config.method.name = "dafl"
    config.dafl.generator, config.dafl.latent_dim, config.dafl.lr = "dcgan", 256, 1e-3
    config.dafl.student_images, config.dafl.student_steps = "fresh", 5
    config.dafl.milestones, config.dafl.lr_decay = (100, 200), 0.3


def kd(config: ConfigDict) -> None:
    """Sets KD on mirrored random squares of the training images (METHOD section 4); labels have weight 0.1."""
    _on_data(config, "kd")


def scratch(config: ConfigDict) -> None:
    """Trains only on the labels of the training images."""
    _on_data(config, "scratch")


def _on_data(config: ConfigDict, name: str) -> None:
    config.method.name = name
    config.transfer.source = config.data.source  # also resized to data.short_side
    config.kd.square = config.teacher.image_size


def dfnd(config: ConfigDict) -> None:
    """Uses other pictures (`transfer.source=folder:DIR`): one random crop of each, of which the surest are kept."""
    config.method.name = "dfnd"
    config.transfer.source, config.transfer.crops, config.transfer.select = "tfds:imagenet2012", 1, 17_024


def noise(config: ConfigDict) -> None:
    """Trains the student of `fast10` on Gaussian noise, as a control."""
    fast10(config)
    config.method.name = "noise"


def smoke(config: ConfigDict) -> None:
    """Shortens a run to minutes on a CPU: every stage runs, but nothing is learned."""
    config.calls, config.synthesis_calls, config.warmup_calls = 3, 0, min(1, config.warmup_calls)
    config.synthesis_batch = config.kd.batch = 2
    config.kd.steps_per_call = config.kd.steps_per_dispatch = 5
    rates.cosine(config)
    config.fastdfkd.num_steps, config.deepinversion.num_steps = 2, 2
    config.transfer.limit, config.transfer.select = 64, min(config.transfer.select, 8)
    config.data.split = f"{config.data.split}[:4]"
    config.data.batch = 2
    config.eval_every = config.checkpoint_every = config.images_every = 1


METHODS = {made.__name__: made for made in (fast10, deepinversion, dfad, dafl, dfnd, kd, scratch, noise)}
