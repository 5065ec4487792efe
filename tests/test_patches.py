"""The loss of patch similarity, against closed forms and a sum in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config
from toy_network import bare_network, toy_network

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.parts.patches import PATCHES, patch_similarity
from fastdfkd_jax.models import Forms
from fastdfkd_jax.training import build
from fastdfkd_jax.training.config_checks import require_statistics

WIDTH = 0.05  # of a Gaussian


def pair(cosine):
    """An image of two tokens at this angle, of any length."""
    return jnp.array([[[2.0, 0.0], [3 * cosine, 3 * np.sqrt(1 - cosine**2)]]])


@pytest.mark.parametrize("cosine", [-0.62, 0.0, 0.31])
def test_one_pair_has_the_entropy_of_one_gaussian(cosine):
    entropy = 0.5 * np.log(2 * np.pi * np.e * WIDTH**2)
    np.testing.assert_allclose(patch_similarity([pair(cosine)]), -entropy, rtol=1e-4)


def test_two_distant_similarities_have_one_bit_more_and_layers_add_up():
    """With weights of 1/3 and 2/3: two pairs of three tokens are at right angles."""
    tokens = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]]])
    mixture = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    expected = -(0.5 * np.log(2 * np.pi * np.e * WIDTH**2) + mixture)
    np.testing.assert_allclose(patch_similarity([tokens]), expected, rtol=1e-4)
    np.testing.assert_allclose(patch_similarity([tokens, tokens[:, :, ::-1]]), 2 * expected, rtol=1e-4)


def test_a_layer_of_one_token_adds_nothing():
    assert patch_similarity([pair(0.0), jnp.ones((1, 1, 4))]) == patch_similarity([pair(0.0)])


def test_images_are_averaged_and_the_sum_is_that_of_numpy():
    tokens = np.random.default_rng(0).normal(0.3, 1, (3, 7, 5))
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    points = np.linspace(-1.5, 1.5, 3001)
    entropies = []
    for image in unit:
        values = (image @ image.T)[np.triu_indices(7, 1)]
        density = np.exp(-0.5 * ((points[:, None] - values) / WIDTH) ** 2).mean(1) / (WIDTH * np.sqrt(2 * np.pi))
        entropies.append(-np.trapezoid(density * np.log(density + 1e-12), points))
    np.testing.assert_allclose(patch_similarity([jnp.asarray(tokens)]), -np.mean(entropies), rtol=1e-3)


def test_the_gradient_drives_like_patches_apart_and_is_finite_at_a_token_of_zeros():
    tokens = jnp.concatenate([jnp.ones((1, 6, 4)), jnp.zeros((1, 1, 4))], 1)
    tokens += 0.05 * jax.random.normal(jax.random.key(0), tokens.shape).at[:, -1].set(0)
    loss = jax.jit(jax.value_and_grad(lambda x: patch_similarity([x])))
    before, gradient = loss(tokens)
    assert np.isfinite(gradient).all()
    for _ in range(100):
        tokens = tokens - 0.002 * loss(tokens)[1]
    assert loss(tokens)[0] < before - 0.1


@pytest.mark.parametrize("name", ["fastdfkd", "nayer", "cmi", "deepinversion"])
def test_only_attention_has_patches_to_compare(name):
    section = "deepinversion" if name == "deepinversion" else "inversion"
    config = tiny_config(method__name=name, **{f"{section}__feature": PATCHES})
    setting = base.Setting(toy_network(), toy_network(), 4, 2, 0, 2, lambda x: x, Forms())
    with pytest.raises(UserError, match=rf"{section}\.feature must be another term for the teacher toy: no attention"):
        build.method_of(config, setting)
    config[section].feature_weight = 0.0
    build.method_of(config, setting)


@pytest.mark.parametrize("name", ["fastdfkd", "nayer", "cmi", "deepinversion"])
def test_patches_need_no_statistics(name):
    config = tiny_config(method__name=name)
    config["deepinversion" if name == "deepinversion" else "inversion"].feature = PATCHES
    require_statistics(config, bare_network(), bare_network().init(jax.random.key(0)))
