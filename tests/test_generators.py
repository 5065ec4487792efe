"""The published generators: their sizes, their heads, and PyTorch's layer by layer in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax import models
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators.by_kind import ALL_GENERATORS, GENERATORS, build_generator
from fastdfkd_jax.models.generators.vector import ARCHITECTURES

# Latents as published, then parameters: linear layer, BatchNorms, doubled convolutions, last convolution and BatchNorm.
SIZES = {
    "large": (256, 257 * 16_384 + 512 + 256 * 128 * 9 + 256 + 128 * 64 * 9 + 128 + 1731),
    "dafl": (1000, 1001 * 8192 + 256 + 128 * 128 * 9 + 256 + 128 * 64 * 9 + 128 + 1731),
    "zskt": (100, 101 * 8192 + 256 + 128 * 128 * 9 + 256 + 128 * 64 * 9 + 128 + 1731 + 6),
    "dfad": (256, 257 * 8192 + 256 + 128 * 128 * 9 + 256 + 128 * 64 * 9 + 128 + 1731),
    "dfq": (512, 513 * 8192 + 512 * 256 * 9 + 512 + 256 * 128 * 9 + 256 + 128 * 64 * 9 + 128 + 1731),
    "generative_dfd": (266, 266 * 8192 + 256 + 128 * 128 * 9 + 256 + 128 * 64 * 9 + 128 + 1731 + 3),
}


@pytest.mark.parametrize("kind", SIZES)
def test_a_generator_has_the_published_size(kind):
    latent_dim, count = SIZES[kind]
    generator = build_generator(32, 3, latent_dim, kind=kind)
    params = jax.eval_shape(generator.init, jax.random.key(0))
    assert models.count_parameters({"params": params}) == count
    assert generator.latent_shape == (latent_dim,)


def torch_twin(kind):
    """The layers as METHOD lists them, of width 4, for 16x16 colour images; biases before BatchNorms included."""
    from torch import nn

    def stage(inputs, outputs, epsilon, activation):
        norm = nn.BatchNorm2d(outputs, eps=epsilon)
        return [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1), norm, activation]

    leaky, last = nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 3, padding=1)
    if kind == "dfq":
        stages = [*stage(32, 16, 1e-5, nn.ReLU()), *stage(16, 8, 1e-5, nn.ReLU()), *stage(8, 4, 1e-5, nn.ReLU())]
        return 32, 2, [*stages, last, nn.Tanh(), nn.BatchNorm2d(3, affine=False)]
    if kind == "large":
        return 16, 4, [nn.BatchNorm2d(16), *stage(16, 8, 1e-5, leaky), *stage(8, 4, 1e-5, leaky), last, nn.Sigmoid()]
    epsilon = 1e-5 if kind in ("dfad", "zskt") else 0.8
    stages = [*stage(8, 8, epsilon, leaky), *stage(8, 4, epsilon, leaky), last]
    if kind == "zskt":
        return 8, 4, [nn.BatchNorm2d(8), *stages, nn.BatchNorm2d(3)]
    if kind == "generative_dfd":
        return 8, 4, [nn.BatchNorm2d(8), leaky, *stages, nn.Tanh(), nn.BatchNorm2d(3)]
    return 8, 4, [nn.BatchNorm2d(8), *stages, nn.Tanh(), nn.BatchNorm2d(3, affine=False)]


def give(layer, leaves) -> None:
    """Copies one of our layers' parameters into torch's."""
    import torch

    for name, leaf in leaves.items():
        value = np.asarray(leaf)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        (layer.bias if name == "bias" else layer.weight).data = torch.tensor(value.copy())


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parity
def test_a_generator_equals_torch(kind):
    torch = pytest.importorskip("torch")
    wide, base, layers = torch_twin(kind)
    with jax.enable_x64(True):
        generator = build_generator(16, 3, 6, 4, kind=kind, forms=Forms(jnp.float64))
        drawn = jax.jit(generator.init)(jax.random.key(0))
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) + 0.1, drawn)
        latents = np.random.default_rng(0).normal(size=(5, 6))
        out = np.asarray(jax.jit(generator.apply)(params, latents))
    linear = torch.nn.Linear(6, wide * base * base, bias="bias" in params["l1.0"])
    sequence = torch.nn.Sequential(*layers)
    give(linear, params["l1.0"])
    for name in set(params) - {"l1.0"}:
        give(sequence[int(name.removeprefix("conv_blocks."))], params[name])
    hidden = linear.double()(torch.tensor(latents)).reshape(5, wide, base, base)
    expected = sequence.double()(hidden).detach().numpy().transpose(0, 2, 3, 1)
    # Torch's biases before its BatchNorms are drawn at random: they have no effect.
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SIZES)
def test_heads_give_images_or_what_a_network_takes(kind):
    generator = build_generator(8, 3, 6, 4, kind=kind)
    latents = jax.random.normal(jax.random.key(1), (16, 6))
    images = np.asarray(jax.jit(lambda key: generator.apply(generator.init(key), latents))(jax.random.key(0)))
    assert images.shape == (16, 8, 8, 3)
    assert generator.network_input == (kind not in GENERATORS)
    if generator.network_input:
        np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-5)
        # The variance before that BatchNorm is small at the start, so that its 1e-5 shows.
        np.testing.assert_allclose(images.var((0, 1, 2)), 1, atol=2e-2)
    else:
        assert np.all((images > 0) & (images < 1))


@pytest.mark.parametrize("kind", ["dfq", "generative_dfd"])
def test_generators_without_all_parts_can_be_drawn_anew(kind):
    """One has no BatchNorm after its linear layer, the other no bias in two places."""
    generator = build_generator(8, 1, 6, 4, kind=kind)
    params = jax.eval_shape(generator.init, jax.random.key(0))
    for draw in (generator.reset, generator.reset_first_layer):
        assert jax.eval_shape(draw, jax.random.key(1), params) == params


@pytest.mark.parametrize(("kind", "factor", "size"), [("dafl", 4, 18), ("dfq", 8, 12), ("large", 4, 2)])
def test_sizes_that_cannot_be_doubled_so_often_are_refused(kind, factor, size):
    with pytest.raises(UserError, match=f"multiple of {factor}, found {size}"):
        build_generator(size, kind=kind)


def test_all_generators_are_named_once():
    assert sorted(ALL_GENERATORS) == sorted({*ARCHITECTURES, "spatial", "dcgan"})


# Linear layer to 512 channels of 8 x 8, its BatchNorm, four transposed convolutions and their BatchNorms, the last one.
_DCGAN = 257 * 512 * 64 + 2 * 512 + 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 64) + 2 * (256 + 128 + 64 + 64) + 1731
LARGE = {
    ("dcgan", 128): _DCGAN,
    ("dcgan", 256): _DCGAN + 16 * 64 * 64 + 2 * 64,
    ("dfad", 128): SIZES["dfad"][1] + 257 * 8192 * 15,  # a linear layer to 16 times the pixels
    ("linear", 256): SIZES["dfad"][1] + 257 * 8192 * 63,
    ("large", 128): SIZES["large"][1] + 257 * 16_384 * 15,
    ("spatial", 128): 1_398_403 - 256 * 3_136 - 3_136,  # the latent map grows instead
    ("spatial", 256): 1_398_403 - 256 * 3_136 - 3_136,
}


@pytest.mark.parametrize(("kind", "size"), LARGE)
def test_generators_of_large_images(kind, size):
    generator = build_generator(size, 3, 256, kind=kind)
    params = jax.eval_shape(generator.init, jax.random.key(0))
    assert models.count_parameters({"params": params}) == LARGE[kind, size]
    latents = jax.ShapeDtypeStruct((2, *generator.latent_shape), jnp.float32)
    assert jax.eval_shape(generator.apply, params, latents).shape == (2, size, size, 3)


@pytest.mark.parity
def test_the_generator_of_transposed_convolutions_equals_torch():
    torch = pytest.importorskip("torch")
    from torch import nn

    def stage(inputs, outputs):
        return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]

    layers = [nn.BatchNorm2d(32), *stage(32, 16), *stage(16, 8), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh()]
    with jax.enable_x64(True):
        generator = build_generator(32, 3, 6, 4, kind="dcgan", forms=Forms(jnp.float64))
        drawn = jax.jit(generator.init)(jax.random.key(0))
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) + 0.1, drawn)
        latents = np.random.default_rng(0).normal(size=(5, 6))
        out = np.asarray(jax.jit(generator.apply)(params, latents))
    linear, sequence = nn.Linear(6, 32 * 64), nn.Sequential(*layers)
    give(linear, params["l1.0"])
    for name in set(params) - {"l1.0"}:
        layer = sequence[int(name.removeprefix("conv_blocks."))]
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight.data = torch.tensor(params[name]["kernel"].transpose(2, 3, 0, 1).copy())
        else:
            give(layer, params[name])
    hidden = linear.double()(torch.tensor(latents)).reshape(5, 32, 8, 8)
    expected = sequence.double()(hidden).detach().numpy().transpose(0, 2, 3, 1)
    # Torch's biases before its BatchNorms are drawn at random: they have no effect.
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


def test_the_generator_of_transposed_convolutions_is_drawn_as_published():
    generator = build_generator(16, 3, 64, 8, kind="dcgan")
    params = jax.jit(generator.init)(jax.random.key(0))
    assert generator.network_input
    assert not np.any(params["l1.0"]["bias"])
    # 262,144 draws, 32 draws.
    assert float(params["l1.0"]["kernel"].std()) == pytest.approx(0.02, rel=0.01)
    assert 0 < np.abs(params["conv_blocks.2"]["scale"] - 1).max() < 0.1
    new = jax.jit(generator.reset_first_layer)(jax.random.key(1), params)
    assert {name for name in params if np.any(new[name].get("kernel", 0) != params[name].get("kernel", 0))} == {"l1.0"}


@pytest.mark.parametrize("size", [7, 100, 130])
def test_sizes_of_transposed_convolutions_that_are_refused(size):
    with pytest.raises(UserError, match=f"multiple of [0-9]+, found {size}"):
        build_generator(size, kind="dcgan")
