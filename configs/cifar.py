"""Shared parts of the CIFAR configs: pairs and step counts of Table 1, and protocols (METHOD section 2)."""

from collections.abc import Callable, Iterable, Mapping

from ml_collections import ConfigDict

from fastdfkd_jax.configs import default, rates
from fastdfkd_jax.errors import UserError

Change = Callable[[ConfigDict], None]

# teacher-student: (adversarial weight, class weight)
PAIRS = {
    "resnet34-resnet18": (1.33, 0.5),
    "vgg11-resnet18": (1.0, 0.5),
    "wrn40_2-wrn16_1": (1.1, 0.4),
    "wrn40_2-wrn40_1": (1.1, 0.4),
    "wrn40_2-wrn16_2": (1.1, 0.4),
    "resnet20-wrn16_1": (1.1, 0.4),
    "resnet56-wrn16_1": (1.1, 0.4),
}
# k: (generator_lr, latents_lr)
STEPS = {2: (5e-3, 0.015), 5: (3e-3, 0.01), 10: (2e-3, 0.01)}
# The ported ResNet-20 and ResNet-56 teachers were trained with ImageNet's constants.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# name: (classes, mean, std) of METHOD section 3
DATASETS = {
    "cifar10": (10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": (100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def make(dataset: str, variant: str | None) -> ConfigDict:
    """Returns FastDFKD's config of 'teacher-student-fastK[-protocol]...', or of 'smoke'."""
    variant = variant or "wrn40_2-wrn16_1-fast5"
    if variant == "smoke":
        variant = "resnet20-wrn16_1-fast2-smoke"
    teacher, student, steps, *protocols = (*variant.split("-"), "", "")
    protocols = [name for name in protocols if name]
    pair, k = f"{teacher}-{student}", steps.removeprefix("fast")
    if pair not in PAIRS or steps not in {f"fast{k}" for k in STEPS} or set(protocols) - PROTOCOLS.keys():
        raise UserError(
            f"unknown variant {variant!r}: expected teacher-student-fastK[-protocol], with teacher-student one of "
            f"{', '.join(PAIRS)}, K one of {', '.join(map(str, STEPS))}, protocol one of {', '.join(PROTOCOLS)}"
        )
    config = pair_config(dataset, pair)
    config.inversion.adversarial_weight, config.inversion.class_weight = PAIRS[pair]
    apply(config, int(k), protocols)
    return config


def make_method(published: Change, variant: str | None, recipes: Mapping[str, Change] | None = None) -> ConfigDict:
    """Returns another method's config of 'dataset-teacher-student[-protocol]...', or of 'smoke'.

    Args:
      published: sets `method.name` and the method's published hyper-parameters.
      variant: the default is WRN-40-2 -> WRN-16-1 on CIFAR-10.
      recipes: protocols of this method only, which set other hyper-parameters; they are applied before those that set
        the length of a run.
    """
    recipes = recipes or {}
    variant = variant or "cifar10-wrn40_2-wrn16_1"
    if variant == "smoke":
        variant = "cifar10-resnet20-wrn16_1-smoke"
    dataset, teacher, student, *protocols = (*variant.split("-"), "", "")
    protocols = [name for name in protocols if name]
    pair = f"{teacher}-{student}"
    if dataset not in DATASETS or pair not in PAIRS or set(protocols) - BUDGETS.keys() - recipes.keys():
        raise UserError(
            f"unknown variant {variant!r}: expected dataset-teacher-student[-protocol], with dataset one of "
            f"{', '.join(DATASETS)}, teacher-student one of {', '.join(PAIRS)}, protocol one of "
            f"{', '.join((*recipes, *BUDGETS))}"
        )
    config = pair_config(dataset, pair)
    published(config)
    for change in (known[name] for known in (recipes, BUDGETS) for name in protocols if name in known):
        change(config)
    return config


def pair_config(dataset: str, pair: str) -> ConfigDict:
    """Returns the defaults with a data set and a pair 'teacher-student'."""
    config = default.get_config()
    config.teacher.arch, config.student.arch = pair.split("-")
    config.teacher.num_classes, mean, std = DATASETS[dataset]
    small_resnet = config.teacher.arch in ("resnet20", "resnet56")
    config.teacher.mean, config.teacher.std = (IMAGENET_MEAN, IMAGENET_STD) if small_resnet else (mean, std)
    config.data.source = f"tfds:{dataset}"
    return config


def apply(config: ConfigDict, steps: int, protocols: Iterable[str]) -> None:
    """Sets k with its learning rates, then applies each protocol's changes."""
    config.fastdfkd.num_steps = steps
    config.inner.generator_lr, config.inner.latents_lr = STEPS[steps]
    config.meta.lr = STEPS[steps][0] * steps
    for name in protocols:
        PROTOCOLS[name](config)


def _short(config: ConfigDict) -> None:
    """Shortens a run to 60 calls of 128 images and 3,300 student steps.

    The first 5 calls have no KD; after each of the others come 60 KD steps of 128 images. Every method trains the
    student by the same recipe, except for its loss. A student that was published with Adam keeps Adam, whose learning
    rate belongs to that loss. A generator's learning rate falls together with the student's. A method whose student
    learns from the first call on still does so, with the same number of KD steps.
    """
    config.warmup_calls = 5 if config.warmup_calls else 0
    config.calls = 55 + config.warmup_calls
    config.synthesis_batch = config.kd.batch = 128
    config.fastdfkd.reset_first_layer_at = 0
    config.kd.steps_per_call = config.kd.steps_per_dispatch = 60
    rates.cosine(config)
    if config.kd.optimizer == "sgd":
        config.kd.lr, config.kd.final_lr = 0.1, 2e-4
        config.kd.momentum, config.kd.nesterov, config.kd.weight_decay, config.kd.clip_norm = 0.9, False, 1e-4, 0.0
    config.eval_every = config.checkpoint_every = 5


def _paper(config: ConfigDict) -> None:
    """Follows the paper's text: Eq. 6 gradient descent, Eq. 10-11 Reptile on z and theta, Eq. 13 JSD and deviations.

    The paper gives no values for alpha, eta or the period of line 5; these are ours. We tried six pairs, with alpha
    from 1e-4 to 1e-2 and eta 0.5 or 1. This pair had the lowest synthesis loss after 15 calls (docs/results.md).
    """
    config.inner.optimizer = "sgd"
    config.inner.generator_lr = config.inner.latents_lr = 3e-4
    config.fastdfkd.meta_rule = "reptile"
    config.fastdfkd.latents, config.fastdfkd.latents_period = "periodic", 10
    config.fastdfkd.latents_update = "meta"
    config.fastdfkd.images = "adapted"
    config.fastdfkd.reset_first_layer_at = 0
    config.meta.optimizer, config.meta.lr = "sgd", 0.5
    config.meta.kwargs = ConfigDict()
    config.inversion.adversarial, config.inversion.statistic = "jsd", "deviation"


def _reptile(config: ConfigDict) -> None:
    """Uses Reptile as in the released CIFAR code: the difference times 67, passed to Adam (METHOD T1)."""
    config.fastdfkd.meta_rule, config.fastdfkd.reptile_scale = "reptile", 67.0


def _fomaml_last(config: ConfigDict) -> None:
    """Uses first-order MAML with only the last inner gradient."""
    config.fastdfkd.meta_rule = "fomaml_last"


def _smoke(config: ConfigDict) -> None:
    """Shortens a run to seconds: every stage runs, but nothing is learned."""
    config.calls, config.warmup_calls = 3, 1
    config.synthesis_batch = config.kd.batch = 8
    config.fastdfkd.reset_first_layer_at = 2
    config.kd.steps_per_call, config.kd.steps_per_dispatch = 10, 2
    config.data.split = "test[:64]"
    config.data.batch = 64
    config.eval_every = config.checkpoint_every = config.images_every = 1


# Protocols that set the length of a run, for any method.
BUDGETS = {"short": _short, "smoke": _smoke}
PROTOCOLS = {**BUDGETS, "paper": _paper, "reptile": _reptile, "fomaml_last": _fomaml_last}
