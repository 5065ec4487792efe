"""The runs of the CIFAR tables; each has one name wherever it stands, so that tables share it."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from fastdfkd_jax.configs import (
    cifar,
    cmi,
    dafl,
    deepinversion,
    dfad,
    dfnd,
    dfq,
    generative_dfd,
    kd,
    noise,
    scratch,
    zskt,
)
from fastdfkd_jax.configs.compare import parts

# Steps with which DeepInversion synthesises for as long as Fast-5.
EQUAL_TIME_STEPS = 9
# Of 0.1, 0.3 and 1 the rate of the lowest synthesis loss after five steps (docs/results.md), for pixels of any method;
# the paper does not give that of its few-step rows.
PIXELS_LR = 0.3
# DeepInversion and CMI as published take these numbers of steps; where they are computed, from runs of this number.
DEEPINVERSION_STEPS, CMI_STEPS, MEASURED_STEPS = 2000, 500, 10
# Images that the short protocol synthesises.
SHORT_IMAGES = 7680


class Setting(NamedTuple):
    """What the rows of a section have in common.

    Attributes:
      dataset: 'cifar10' or 'cifar100'.
      pair: 'teacher-student'.
      protocol: '' or 'short' (configs/cifar.py).
      teacher: key of `config.teachers`.
    """

    dataset: str
    pair: str
    protocol: str
    teacher: str

    @property
    def section(self) -> str:
        """The section's name."""
        teacher, student = self.pair.split("-")
        return f"{_TITLES[self.dataset]}, {_TITLES[teacher]} → {_TITLES[student]}"

    def variant(self, *between: str) -> str:
        """A variant of the methods' configs, or with 'fastK' between of `cifar.make`."""
        first = () if between else (self.dataset,)
        return "-".join([*first, self.pair, *between, *([self.protocol] if self.protocol else [])])

    @property
    def claimed_seeds(self) -> tuple[int, ...]:
        """Of the rows that a claim rests on; the published runs take too long for more than one."""
        return parts.SEEDS if self.protocol else (0,)

    def run(self, name: str, config: ConfigDict, **kwargs) -> parts.Named:
        """A run of this name within the setting."""
        return parts.run(f"{self.variant()}-{name}", config, teacher=self.teacher, **kwargs)


_TITLES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "resnet20": "ResNet-20", "resnet34": "ResNet-34",
    "resnet18": "ResNet-18", "vgg11": "VGG-11", "wrn40_2": "WRN-40-2", "wrn40_1": "WRN-40-1",
    "wrn16_1": "WRN-16-1", "wrn16_2": "WRN-16-2",
}  # fmt: skip


def setting(dataset: str, pair: str) -> Setting:
    """A column of the paper's tables."""
    return Setting(dataset, pair, "", f"{dataset}_{pair.split('-', maxsplit=1)[0]}")


# What two CPU cores can run; the ported teacher is ResNet-20.
CPU = Setting("cifar10", "resnet20-wrn16_1", "short", "resnet20")
# With whose synthesis that of `CPU` is compared; every pair's is of the same size.
PUBLISHED = setting("cifar10", "wrn40_2-wrn16_1")


def fast(at: Setting, k: int) -> parts.Named:
    """FastDFKD with k steps, as published."""
    config = cifar.make(at.dataset, at.variant(f"fast{k}"))
    return at.run(f"fast{k}", config, seeds=at.claimed_seeds if k == 5 else (0,))


def ablation(at: Setting, reuse: str, representation: str, momentum: bool = False, weight: float = 10.0) -> parts.Named:
    """A row of Table 5, with k = 5; the last of them is Fast-5 itself. `weight` is the feature term's, published 10."""
    if (reuse, representation, momentum) == ("meta", "generator", True):
        return fast(at, 5)
    config = cifar.make(at.dataset, at.variant("fast5"))
    config.fastdfkd.reuse, config.fastdfkd.representation = reuse, representation
    config.inversion.feature = "momentum" if momentum else "plain"
    config.inversion.feature_weight = weight
    if reuse != "meta":
        config.fastdfkd.reset_first_layer_at = 0  # METHOD 1.3
    if representation == "pixels":
        config.inner.latents_lr = PIXELS_LR
        if reuse == "sequential":
            config.fastdfkd.latents, config.fastdfkd.latents_update = "persistent", "adapted"
    name = f"{reuse}-{representation}" + (f"-weight{weight:g}" if weight != 10 else "")
    return at.run(name, config, seeds=at.claimed_seeds if representation == "generator" else (0,))


def noise_control(at: Setting) -> parts.Named:
    """The control: the same student and budget on Gaussian noise."""
    return at.run("noise", noise.get_config(at.variant()), seeds=at.claimed_seeds)


def deep_inversion(at: Setting, steps: int) -> parts.Named:
    """DeepInversion with so many steps."""
    config = _as_many_images(at, deepinversion.get_config(at.variant()))
    config.deepinversion.num_steps = steps
    if steps != DEEPINVERSION_STEPS:
        config.deepinversion.lr = PIXELS_LR
    return at.run(f"deepinversion{steps}", config, seeds=at.claimed_seeds if steps == 5 else (0,))


def contrastive(at: Setting, steps: int | None = None) -> parts.Named:
    """CMI with so many steps; without a number as released, 200 where the tables' label says 500."""
    config = _as_many_images(at, cmi.get_config(at.variant()))
    if at.pair.startswith("resnet34"):
        config.cmi.features = "blocks"
    if steps is not None:
        config.cmi.num_steps = steps
    return at.run(f"cmi{steps or ''}", config)


def generative(at: Setting) -> dict[str, parts.Named]:
    """The methods of one generator, and Generative DFD, by label."""
    return {
        "DAFL": _baseline(at, "dafl", dafl.get_config),
        "ZSKT": _baseline(at, "zskt", zskt.get_config),
        "DFQ": _baseline(at, "dfq", dfq.get_config),
        "DFAD": at.run("dfad", dfad.get_config(at.variant())),
        "Generative DFD": at.run("generative_dfd", _generative_dfd(at)),
    }


def _baseline(at: Setting, name: str, get_config: Callable[[str], ConfigDict]) -> parts.Named:
    """The recipe that the paper's figures come from; the short protocol starts from the official code's."""
    if at.protocol:
        return at.run(name, get_config(at.variant()))
    return at.run(f"{name}_table1", get_config(f"{at.variant()}-table1"))


def share(at: Setting, method: Callable[..., parts.Named], *choices) -> float | None:
    """A run's share of the synthesis of the paper's row of the same choices; None for published runs themselves."""
    if not at.protocol:
        return None
    return parts.share(method(at, *choices), method(PUBLISHED, *choices)[1].config)


def cmi_scripts() -> dict[str, ConfigDict]:
    """CMI's scripts, of which the paper has its figures of these methods (METHOD 8), by label.

    200 calls of 400 student steps of 256 images: 16,000 steps of the generator, 8,000 of DFQ's. DFAD, which the table
    lacks, has the official recipe in that size.
    """
    made = {label: named[1].config for label, named in generative(PUBLISHED).items()}
    dfad = made["DFAD"]
    dfad.calls, dfad.warmup_calls, dfad.synthesis_batch, dfad.kd.steps_per_call = 200, 0, 256, 400
    return {label: made[label] for label in ("DAFL", "ZSKT", "DFQ", "DFAD")}


def _generative_dfd(at: Setting) -> ConfigDict:
    config = generative_dfd.get_config(at.variant())
    if at.protocol:
        # A generator for each class in turn, of 100 steps and 384 images, twice; KD from the tenth on.
        chosen = config.generative_dfd
        chosen.classes_per_generator = chosen.calls_per_generator = 1
        chosen.steps_per_call, chosen.batches_kept = 100, 3
        config.calls, config.warmup_calls, config.kd.steps_per_call = 20, 9, 300
        config.eval_every = config.checkpoint_every = 2
    return config


def options(at: Setting) -> dict[str, parts.Named]:
    """What goes beyond the paper, by label."""
    replay = cifar.make(at.dataset, at.variant("fast5"))
    replay.replay.class_exponent, replay.replay.difficulty_exponent = 1.0, 0.5
    noisy = cifar.make(at.dataset, at.variant("fast5"))
    noisy.fastdfkd.representation = "noisy_layer"
    averaged = dfq.get_config(at.variant())
    averaged.dfq.ema_decay = 0.95
    return {
        "Fast-5, replay by class and difficulty": at.run("fast5_replay", replay),
        "Fast-5, noisy layers": at.run("fast5_noisy_layer", noisy),
        "DFQ, averaged generator": at.run("dfq_ema", averaged),
    }


def _as_many_images(at: Setting, config: ConfigDict) -> ConfigDict:
    """In the short protocol as many as FastDFKD's, some of them before the student learns."""
    if at.protocol:
        like = cifar.make(at.dataset, at.variant("fast5"))
        config.calls, config.warmup_calls = like.calls, like.warmup_calls
    return config


def from_scratch(at: Setting) -> parts.Named:
    """The student on the original data, without a teacher."""
    return at.run("scratch", scratch.get_config(at.variant()))


def original_data(at: Setting) -> parts.Named:
    """KD on the data that the teacher was trained on."""
    return at.run("kd", kd.get_config(at.variant()))


def other_data(at: Setting) -> dict[str, parts.Named]:
    """KD and DFND on crops of other pictures (`config.other_data`), as many as the short protocol synthesises."""
    return {
        "KD, other data": _on_crops(at, "kd_other", kd.get_config, crops=16),
        "DFND": _on_crops(at, "dfnd", dfnd.get_config, crops=48),
    }


def _on_crops(at: Setting, name: str, get_config: Callable[[str], ConfigDict], *, crops: int) -> parts.Named:
    config = get_config(at.variant())
    config.transfer.source, config.transfer.crops = "", crops
    if name == "dfnd":
        config.transfer.select = SHORT_IMAGES
        config.dfnd.teacher_accuracy = 0.9173  # of the ported ResNet-20
    else:
        config.transfer.limit = SHORT_IMAGES
    return at.run(name, config, other_data=True)
