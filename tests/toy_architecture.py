"""Architectures whose runs cost a fraction of the smallest published network's, and a teacher of digits."""

from pathlib import Path

import flax.linen as nn

from fastdfkd_jax import models
from fastdfkd_jax.models.layers import BatchNorm, Conv, Dense

# Made by: fastdfkd pretrain tests/pretrain_toy.py --workdir DIR; DIR/teacher.safetensors
CHECKPOINT = Path(__file__).with_name("toy_teacher.safetensors")


class Toy(nn.Module):
    """One convolution, one BatchNorm and one dense layer, on images of 16 pixels."""

    num_classes: int
    train: bool = False
    forms: models.Forms = models.Forms()

    @nn.compact
    def __call__(self, x):
        x = Conv(8, 3, 2, forms=self.forms, name="conv1")(x)
        x = nn.relu(BatchNorm(self.train, dtype=self.forms.dtype, name="bn1")(x))
        features = x.reshape(len(x), -1)
        return Dense(self.num_classes, name="fc")(features), features, (x,)


class ToyMap(nn.Module):
    """A class for every pixel, by one convolution, one BatchNorm and one more."""

    num_classes: int
    train: bool = False
    forms: models.Forms = models.Forms()

    @nn.compact
    def __call__(self, x):
        x = Conv(8, 3, forms=self.forms, name="conv1")(x)
        x = nn.relu(BatchNorm(self.train, dtype=self.forms.dtype, name="bn1")(x))
        return Conv(self.num_classes, 1, forms=self.forms, name="fc")(x), x.mean((1, 2)), (x,)


models.register("toy", Toy, stages="activations", image_size=16)
models.register("toy_map", ToyMap, stages="activations", image_size=32, task="segmentation")
