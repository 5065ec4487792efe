"""The student's recipe (METHOD 1.8) as options: its steps, its optimizer, and how it is shown images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fastdfkd_jax.augmentation.augment import ViewOptions
from fastdfkd_jax.options import option

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class KDOptions(ViewOptions, section="kd"):
    """The student's recipe; the first fields are those of the views that it is shown."""

    square: int = option(
        0, "side in pixels of what is first cut out of larger images at random; 0 for whole ones", at_least=0
    )
    steps_per_call: int = option(400, "t, student steps of a call", at_least=1)
    batch: int = option(256, "images of a step", at_least=1)
    temperature: float = option(20.0, "of the softmax", above=0)
    optimizer: str = option("sgd", "'sgd' or 'adam'", choices=OPTIMIZERS)
    lr: float = option(0.2, "peak of the learning rate", above=0)
    final_lr: float = option(2e-4, "end of the cosine over the calls with KD", at_least=0)
    milestones: tuple[int, ...] = option(
        (), "instead of the cosine: numbers of calls with KD after which the rate is multiplied by lr_decay"
    )
    lr_decay: float = option(0.1, "the factor at each milestone", above=0)
    rate_warmup_steps: int = option(
        0, "first steps, in which the rate rises linearly to that of its schedule", at_least=0
    )
    momentum: float = option(0.9, "of SGD", at_least=0)
    nesterov: bool = option(False, "whether SGD's momentum is Nesterov's")
    weight_decay: float = option(1e-4, "added to the gradient, as PyTorch does", at_least=0)
    clip_norm: float = option(0.0, "largest norm of the whole gradient; 0 for any", at_least=0)
    ema_decay: float = option(
        0.0, "of an average of the student's weights, which is evaluated and exported; 0 for none", within="[0, 1)"
    )
    steps_per_dispatch: int = option(20, "steps compiled into one program", at_least=1)
    unroll: int | bool = option(1, "steps unrolled in the compiled loop; True for all", at_least=1)

    @property
    def views(self) -> ViewOptions:
        """Returns the fields that set how images are augmented for the student."""
        names = [each.name for each in dataclasses.fields(ViewOptions)]
        return ViewOptions(**{name: getattr(self, name) for name in names})
