"""Augmentation against slicing, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import augment

IMAGES = jax.random.uniform(jax.random.key(0), (64, 6, 7, 3))


def shifted(image, top, left):
    """A window of the zero-padded image, by slicing."""
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    return padded[2 + top : 8 + top, 2 + left : 9 + left]


def test_random_crop_gives_every_shift_exactly():
    cropped = np.asarray(augment.random_crop(jax.random.key(1), IMAGES, 2))
    seen = set()
    for image, found in zip(np.asarray(IMAGES), cropped, strict=True):
        shifts = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if np.array_equal(shifted(image, i, j), found)]
        assert len(shifts) == 1
        seen.update(shifts)
    # 64 draws out of 25: fewer than 18 different ones has a probability below 1e-6.
    assert len(seen) >= 18


def test_no_padding_gives_the_images_back():
    assert augment.random_crop(jax.random.key(1), IMAGES, 0) is IMAGES


def test_random_flip_mirrors_about_half():
    flipped = np.asarray(augment.random_flip(jax.random.key(2), IMAGES))
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(np.asarray(IMAGES), flipped, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(np.asarray(IMAGES), flipped, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 16 <= sum(mirrored) <= 48  # four deviations around 32


def test_the_gradient_goes_back_to_the_pixels_that_were_kept():
    key = jax.random.key(3)
    gradient = jax.grad(lambda x: augment.random_crop_flip(key, x, 2).sum())(IMAGES)
    kept = augment.random_crop(jax.random.split(key)[0], jnp.ones_like(IMAGES), 2).sum((1, 2, 3))
    assert set(np.unique(gradient)) <= {0.0, 1.0}
    np.testing.assert_allclose(gradient.sum((1, 2, 3)), kept)


def test_normalize_and_back():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normal = augment.normalize(IMAGES, mean, std)
    np.testing.assert_allclose(normal[..., 1], (IMAGES[..., 1] - 0.5) / 0.3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(augment.denormalize(normal, mean, std), IMAGES, atol=1e-6)
