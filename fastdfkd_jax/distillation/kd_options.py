"""The student's recipe (METHOD 1.8) as options: its steps, its optimizer, and how it is shown images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fastdfkd_jax.augmentation.augment import ViewOptions
from fastdfkd_jax.distillation.kd_losses import LOSSES
from fastdfkd_jax.options import option

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class KDOptions(ViewOptions, section="kd"):
    """Options of the student's training: its views of the images, its KD steps and its optimizer."""

    square: int = option(
        0, "side in pixels of a random square that is first cut out of larger images; 0 keeps whole images", at_least=0
    )
    steps_per_call: int = option(400, "student steps per call (t in the paper)", at_least=1)
    batch: int = option(256, "images per student step", at_least=1)
    temperature: float = option(20.0, "temperature of the softmax in the KD loss", above=0)
    loss: str = option(
        "kl",
        "loss of KD: 'kl' (Eq. 12) or 'decoupled', which weighs the classes beside the teacher's first apart",
        choices=LOSSES,
    )
    others_weight: float = option(8.0, "weight of these other classes in loss='decoupled'", at_least=0)
    standardize: bool = option(
        False, "bring the logits of each network to mean 0 and deviation 1 over the classes before the KD loss"
    )
    optimizer: str = option("sgd", "optimizer of the student: 'sgd' or 'adam'", choices=OPTIMIZERS)
    lr: float = option(0.2, "peak learning rate of the student", above=0)
    final_lr: float = option(
        2e-4, "learning rate at the end of the cosine schedule, which covers the calls with KD", at_least=0
    )
    milestones: tuple[int, ...] = option(
        (),
        "numbers of calls with KD after which the learning rate is multiplied by lr_decay; replaces the cosine "
        "schedule",
    )
    lr_decay: float = option(0.1, "factor on the learning rate at each milestone", above=0)
    rate_warmup_steps: int = option(
        0, "student steps at the start during which the learning rate rises linearly to its schedule", at_least=0
    )
    momentum: float = option(0.9, "momentum of the student's SGD", at_least=0)
    nesterov: bool = option(False, "use Nesterov momentum in the student's SGD")
    weight_decay: float = option(1e-4, "weight decay of the student, added to the gradient as in PyTorch", at_least=0)
    clip_norm: float = option(0.0, "largest norm of the student's whole gradient; 0 disables clipping", at_least=0)
    ema_decay: float = option(
        0.0,
        "decay of a running average of the student's weights, which is then evaluated and exported; 0 for none",
        within="[0, 1)",
    )
    steps_per_dispatch: int = option(20, "student steps compiled into one program", at_least=1)
    unroll: int | bool = option(1, "student steps unrolled in the compiled loop; True for all", at_least=1)

    @property
    def views(self) -> ViewOptions:
        """Returns the fields that set how images are augmented for the student."""
        names = [each.name for each in dataclasses.fields(ViewOptions)]
        return ViewOptions(**{name: getattr(self, name) for name in names})
