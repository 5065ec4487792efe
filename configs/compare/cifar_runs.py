"""The runs of the CIFAR tables; a run has the same name in every table, so that tables share it."""

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
    nayer,
    noise,
    scratch,
    zskt,
)
from fastdfkd_jax.configs.compare import parts

# Steps at which DeepInversion's synthesis takes as long as that of Fast-5.
EQUAL_TIME_STEPS = 9
# Learning rate of pixels, for any method. Of 0.1, 0.3 and 1 it gives the lowest synthesis loss after five steps
# (docs/results.md). The paper does not give the rate of its few-step rows.
PIXELS_LR = 0.3
# Published steps of DeepInversion and CMI, and the steps of the runs that their times are extrapolated from.
DEEPINVERSION_STEPS, CMI_STEPS, MEASURED_STEPS = 2000, 500, 10
# Images synthesised in the short protocol.
SHORT_IMAGES = 7680


class Setting(NamedTuple):
    """The properties that the rows of a section share.

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
        """Returns a variant of the methods' configs or, with 'fastK' between, of `cifar.make`."""
        first = () if between else (self.dataset,)
        return "-".join([*first, self.pair, *between, *([self.protocol] if self.protocol else [])])

    @property
    def claimed_seeds(self) -> tuple[int, ...]:
        """Seeds of the rows that support a claim; published runs take too long for more than one."""
        return parts.SEEDS if self.protocol else (0,)

    def run(self, name: str, config: ConfigDict, **kwargs) -> parts.Named:
        """Returns a run of this name within the setting."""
        return parts.run(f"{self.variant()}-{name}", config, teacher=self.teacher, **kwargs)


_TITLES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "resnet20": "ResNet-20", "resnet34": "ResNet-34",
    "resnet18": "ResNet-18", "vgg11": "VGG-11", "wrn40_2": "WRN-40-2", "wrn40_1": "WRN-40-1",
    "wrn16_1": "WRN-16-1", "wrn16_2": "WRN-16-2",
}  # fmt: skip


def setting(dataset: str, pair: str) -> Setting:
    """Returns the setting of a column of the paper's tables."""
    return Setting(dataset, pair, "", f"{dataset}_{pair.split('-', maxsplit=1)[0]}")


# A size for two CPU cores; the ported teacher is ResNet-20.
CPU = Setting("cifar10", "resnet20-wrn16_1", "short", "resnet20")
# The published setting that `CPU` is compared with; synthesis has the same size for every pair.
PUBLISHED = setting("cifar10", "wrn40_2-wrn16_1")


def fast(at: Setting, k: int) -> parts.Named:
    """Returns the run of FastDFKD with k steps, as published."""
    config = cifar.make(at.dataset, at.variant(f"fast{k}"))
    return at.run(f"fast{k}", config, seeds=at.claimed_seeds if k == 5 else (0,))


def ablation(at: Setting, reuse: str, representation: str, momentum: bool = False, weight: float = 10.0) -> parts.Named:
    """Returns the run of a row of Table 5, with k = 5; the last row is Fast-5 itself.

    `weight` is that of the feature term; the published value is 10.
    """
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
    """Returns the control: the same student and budget on Gaussian noise."""
    return at.run("noise", noise.get_config(at.variant()), seeds=at.claimed_seeds)


def deep_inversion(at: Setting, steps: int) -> parts.Named:
    """Returns the run of DeepInversion with this many steps."""
    config = _as_many_images(at, deepinversion.get_config(at.variant()))
    config.deepinversion.num_steps = steps
    if steps != DEEPINVERSION_STEPS:
        config.deepinversion.lr = PIXELS_LR
    return at.run(f"deepinversion{steps}", config, seeds=at.claimed_seeds if steps == 5 else (0,))


def contrastive(at: Setting, steps: int | None = None) -> parts.Named:
    """Returns the run of CMI with this many steps; by default the released 200, where the tables' label says 500."""
    config = _as_many_images(at, cmi.get_config(at.variant()))
    if at.pair.startswith("resnet34"):
        config.cmi.features = "blocks"
    if steps is not None:
        config.cmi.num_steps = steps
    return at.run(f"cmi{steps or ''}", config)


def generative(at: Setting) -> dict[str, parts.Named]:
    """Returns the runs of the one-generator methods, of Generative DFD and of NAYER, by label."""
    return {
        "DAFL": _baseline(at, "dafl", dafl.get_config),
        "ZSKT": _baseline(at, "zskt", zskt.get_config),
        "DFQ": _baseline(at, "dfq", dfq.get_config),
        "DFAD": at.run("dfad", dfad.get_config(at.variant())),
        "Generative DFD": at.run("generative_dfd", _generative_dfd(at)),
        "NAYER": at.run("nayer", nayer.get_config(at.variant())),
    }


def _baseline(at: Setting, name: str, get_config: Callable[[str], ConfigDict]) -> parts.Named:
    """Returns the recipe behind the paper's figures; the short protocol starts from the official code's recipe."""
    if at.protocol:
        return at.run(name, get_config(at.variant()))
    return at.run(f"{name}_table1", get_config(f"{at.variant()}-table1"))


def share(at: Setting, method: Callable[..., parts.Named], *choices) -> float | None:
    """Returns a run's synthesis as a share of that of the paper's row with the same choices.

    None for the published runs themselves.
    """
    if not at.protocol:
        return None
    return parts.share(method(at, *choices), method(PUBLISHED, *choices)[1].config)


def cmi_scripts() -> dict[str, ConfigDict]:
    """Returns the configs of CMI's scripts, the source of the paper's figures of these methods (METHOD 8), by label.

    They have 200 calls of 400 student steps of 256 images, and 16,000 generator steps (8,000 for DFQ). DFAD, which is
    not in the table, gets the official recipe at that size.
    """
    made = {label: named[1].config for label, named in generative(PUBLISHED).items()}
    dfad = made["DFAD"]
    dfad.calls, dfad.warmup_calls, dfad.synthesis_batch, dfad.kd.steps_per_call = 200, 0, 256, 400
    return {label: made[label] for label in ("DAFL", "ZSKT", "DFQ", "DFAD")}


def _generative_dfd(at: Setting) -> ConfigDict:
    config = generative_dfd.get_config(at.variant())
    if at.protocol:
        # Trains a generator for each class in turn (100 steps, 384 images), twice; KD starts with the tenth.
        chosen = config.generative_dfd
        chosen.classes_per_generator = chosen.calls_per_generator = 1
        chosen.steps_per_call, chosen.batches_kept = 100, 3
        config.calls, config.warmup_calls, config.kd.steps_per_call = 20, 9, 300
        config.eval_every = config.checkpoint_every = 2
    return config


def options(at: Setting) -> dict[str, parts.Named]:
    """Returns the runs that go beyond the paper, by label."""
    replay = cifar.make(at.dataset, at.variant("fast5"))
    replay.replay.class_exponent, replay.replay.difficulty_exponent = 1.0, 0.5
    averaged = dfq.get_config(at.variant())
    averaged.dfq.ema_decay = 0.95
    return {
        "Fast-5, replay by class and difficulty": at.run("fast5_replay", replay),
        "DFQ, averaged generator": at.run("dfq_ema", averaged),
    }


def _as_many_images(at: Setting, config: ConfigDict) -> ConfigDict:
    """In the short protocol, synthesises as many images as FastDFKD, some of them before the student learns."""
    if at.protocol:
        like = cifar.make(at.dataset, at.variant("fast5"))
        config.calls, config.warmup_calls = like.calls, like.warmup_calls
    return config


def from_scratch(at: Setting) -> parts.Named:
    """Returns the run of the student on the original data, without a teacher."""
    return at.run("scratch", scratch.get_config(at.variant()))


def original_data(at: Setting) -> parts.Named:
    """Returns the run of KD on the data that the teacher was trained on."""
    return at.run("kd", kd.get_config(at.variant()))


def other_data(at: Setting) -> dict[str, parts.Named]:
    """Returns KD and DFND on crops of other pictures (`config.other_data`), by label.

    They use as many crops as the short protocol synthesises images.
    """
    return {
        "KD, other data": _on_crops(at, "kd_other", kd.get_config, crops=16),
        "DFND": _on_crops(at, "dfnd", dfnd.get_config, crops=48),
    }


def _on_crops(at: Setting, name: str, get_config: Callable[[str], ConfigDict], *, crops: int) -> parts.Named:
    config = get_config(at.variant())
    config.transfer.source, config.transfer.crops = "", crops
    if name == "dfnd":
        config.transfer.select = SHORT_IMAGES
        config.dfnd.teacher_accuracy = 0.9173  # accuracy of the ported ResNet-20
    else:
        config.transfer.limit = SHORT_IMAGES
    return at.run(name, config, other_data=True)
