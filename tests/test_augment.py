"""Augmentation against slicing, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax.augmentation import augment

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


def test_a_view_of_a_least_area_is_the_resized_crop():
    key = jax.random.key(4)
    expected = augment.random_resized_crop(jax.random.split(key)[0], IMAGES, (0.4, 1.0))
    np.testing.assert_array_equal(augment.random_crop_flip(key, IMAGES, 2, False, 0.4), expected)
    flipped = np.asarray(augment.random_crop_flip(key, IMAGES, 2, True, 0.4))
    same = [np.array_equal(a, b) for a, b in zip(flipped, np.asarray(expected), strict=True)]
    assert 16 <= sum(same) <= 48


def test_normalize_and_back():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normal = augment.normalize(IMAGES, mean, std)
    np.testing.assert_allclose(normal[..., 1], (IMAGES[..., 1] - 0.5) / 0.3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(augment.denormalize(normal, mean, std), IMAGES, atol=1e-6)


def test_random_roll_moves_the_whole_batch_alike():
    seen = set()
    for seed in range(40):
        rolled = np.asarray(augment.random_roll(jax.random.key(seed), IMAGES, 1))
        shifts = [
            (i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if np.array_equal(np.roll(IMAGES, (i, j), (1, 2)), rolled)
        ]
        assert len(shifts) == 1
        seen.update(shifts)
    # 40 draws out of 9: missing one of them has a probability below 0.1, two below 0.002.
    assert len(seen) >= 7
    assert augment.random_roll(jax.random.key(0), IMAGES, 0) is IMAGES


def test_a_batch_is_mirrored_as_a_whole():
    flipped = [np.asarray(augment.random_batch_flip(jax.random.key(seed), IMAGES)) for seed in range(20)]
    mirrored = [np.array_equal(images, IMAGES[:, :, ::-1]) for images in flipped]
    assert all(m or np.array_equal(images, IMAGES) for m, images in zip(mirrored, flipped, strict=True))
    assert 0 < sum(mirrored) < 20


def test_half_size_is_the_mean_of_two_by_two():
    x = np.asarray(IMAGES)
    expected = (x[:, ::2, :6:2] + x[:, 1::2, :6:2] + x[:, ::2, 1:7:2] + x[:, 1::2, 1:7:2]) / 4
    np.testing.assert_allclose(augment.half_size(IMAGES), expected, rtol=1e-6)


@pytest.mark.parity
def test_a_resized_crop_is_torch_s_bilinear_of_the_same_window():
    torch = pytest.importorskip("torch")
    draws = augment.random_boxes(jax.random.key(4), IMAGES.shape, (0.05, 1.0), (0.5, 2.0))
    found = np.asarray(augment.resized_crop(IMAGES, draws))
    for i, (top, left, height, width) in enumerate(zip(*map(np.asarray, draws), strict=True)):
        window = np.asarray(IMAGES)[i, top : top + height, left : left + width].transpose(2, 0, 1)
        assert window.shape[1:] == (height, width)
        expected = torch.nn.functional.interpolate(
            torch.tensor(window[None]), size=(6, 7), mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(found[i].transpose(2, 0, 1), expected[0], atol=2e-6)


def test_windows_have_the_areas_and_shapes_that_were_asked_for():
    boxes = augment.random_boxes(jax.random.key(5), (2000, 100, 100, 3), (0.25, 1.0), (3 / 4, 4 / 3))
    top, left, height, width = map(np.asarray, boxes)
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 100) & (left + width <= 100))
    share, aspect = height * width / 1e4, width / height
    # A side is rounded to a pixel of about fifty.
    assert 0.24 < share.min() < 0.27
    assert 0.73 < aspect.min() < 0.78
    assert 1.29 < aspect.max() < 1.36
    # Uniform in area but for large windows that do not fit: the mean would be 0.625 of all.
    assert 0.56 < share.mean() < 0.62
    assert np.all((top == 0) | (height < 100))
    assert len(np.unique(top)) > 30


def test_a_window_that_never_fits_is_the_whole_image():
    boxes = augment.random_boxes(jax.random.key(6), (8, 10, 10, 1), (1.0, 1.0), (4.0, 4.0))
    assert all(np.all(field == value) for field, value in zip(boxes, (0, 0, 10, 10), strict=True))
    np.testing.assert_array_equal(augment.resized_crop(jnp.ones((8, 10, 10, 1)), boxes), 1)
    key = jax.random.key(7)
    whole = augment.random_resized_crop(key, IMAGES[:, :, :6], (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(whole, IMAGES[:, :, :6])


def test_the_gradient_of_a_resized_crop_is_its_transpose():
    key = jax.random.key(8)
    crop = lambda x: augment.random_resized_crop(key, x)  # noqa: E731
    direction = jax.random.normal(jax.random.key(9), IMAGES.shape)
    gradient = jax.grad(lambda x: (crop(x) * direction).sum())(IMAGES)
    np.testing.assert_allclose((gradient * IMAGES).sum(), (crop(IMAGES) * direction).sum(), rtol=1e-4)
    assert np.all(gradient.sum((1, 2, 3)) != 0)


def cropped_and_flipped(key, images, padding, flip, least_crop):
    """The formula of the first release, in one: shifts or a resized crop drawn by one key, mirrors by the other."""
    crop_key, flip_key = jax.random.split(key)
    batch, height, width, _ = images.shape
    if least_crop:
        images = augment.random_resized_crop(crop_key, images, (least_crop, 1.0))
    elif padding:
        shifts = jax.random.randint(crop_key, (2, batch, 1, 1), -padding, padding + 1)
        rows, columns = (
            (jnp.arange(size)[None, None, :] == jnp.arange(size)[:, None] + shift).astype(jnp.float32)
            for size, shift in zip((height, width), shifts, strict=True)
        )
        images = jnp.einsum("bip,bpqc,bjq->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)
    if flip:
        images = jnp.where(jax.random.bernoulli(flip_key, 0.5, (batch, 1, 1, 1)), images[:, :, ::-1], images)
    return images


VIEWS = [(2, True, 0.0), (2, False, 0.0), (0, True, 0.0), (0, False, 0.0), (2, True, 0.3)]


@pytest.mark.parametrize("choices", VIEWS)
def test_views_are_those_that_earlier_runs_drew_to_the_bit(choices):
    for seed in range(3):
        key = jax.random.key(seed)
        expected = jax.jit(cropped_and_flipped, static_argnums=(2, 3, 4))(key, IMAGES, *choices)
        found = jax.jit(augment.random_crop_flip, static_argnums=(2, 3, 4))(key, IMAGES, *choices)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("choices", VIEWS)
def test_a_view_that_was_kept_in_few_bytes_shows_the_same(choices):
    options = augment.ViewOptions(*choices, cutmix=1.0)
    view = augment.draw_view(jax.random.key(10), IMAGES.shape, options)
    small = augment.compact(view)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(small)}
    assert kinds <= {"int16", "uint16", "bool"}
    assert jax.tree.structure(small) == jax.tree.structure(view)
    np.testing.assert_array_equal(augment.apply_view(IMAGES, small), augment.apply_view(IMAGES, view))


def test_mixing_changes_nothing_else_of_a_view():
    plain, mixed = (
        augment.draw_view(jax.random.key(11), IMAGES.shape, augment.ViewOptions(2, cutmix=p)) for p in (0.0, 1.0)
    )
    assert plain.mix is None
    assert mixed.mix is not None
    jax.tree.map(np.testing.assert_array_equal, plain, mixed._replace(mix=None))
    for used in jax.random.split(jax.random.key(11)):
        assert np.any(augment.random_mix(used, IMAGES.shape, 1.0).partner != mixed.mix.partner), "its own key"
    shown = augment.apply_view(IMAGES, plain)
    np.testing.assert_array_equal(augment.apply_view(IMAGES, mixed), augment.cutmix(shown, mixed.mix))


def test_a_mixed_image_is_its_own_outside_the_box_and_its_partner_s_within():
    box = augment.Box(*map(jnp.int32, (1, 2, 3, 4)))
    partner = jnp.roll(jnp.arange(64), 5)
    mix = augment.Mix(partner, box)
    expected = np.array(IMAGES)
    expected[:, 1:4, 2:6] = np.asarray(IMAGES)[np.asarray(partner), 1:4, 2:6]
    np.testing.assert_array_equal(augment.cutmix(IMAGES, mix), expected)
    np.testing.assert_allclose(augment.own_share(mix, IMAGES.shape), 1 - 12 / 42, rtol=1e-6)
    small = augment.compact(augment.View(mix=mix)).mix
    assert augment.own_share(small, IMAGES.shape) == augment.own_share(mix, IMAGES.shape)
    # Each pixel is shown once where it stays and once where it is lent, so gradients count how often.
    kept = np.asarray(jax.grad(lambda x: augment.cutmix(x, mix).sum())(IMAGES))
    np.testing.assert_array_equal(kept, 1)
    first = np.asarray(jax.grad(lambda x: augment.cutmix(x, mix)[0].sum())(IMAGES))
    lender = int(partner[0])
    assert first[0].sum() == 3 * (42 - 12)
    assert first[lender, 1:4, 2:6].sum() == first[lender].sum() == 3 * 12


def original_box(height, width, share, centre):
    """Box of CutMix's own code, in NumPy."""
    cut = np.sqrt(1 - share)
    tall, wide = int(height * cut) // 2, int(width * cut) // 2
    top, bottom = np.clip([centre[0] - tall, centre[0] + tall], 0, height)
    left, right = np.clip([centre[1] - wide, centre[1] + wide], 0, width)
    return top, left, bottom - top, right - left


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_boxes_are_cutmix_s(alpha):
    shape, count = (5, 20, 30, 1), 3000
    mixes = jax.jit(jax.vmap(lambda key: augment.random_mix(key, shape, 1.0, alpha)))(
        jax.random.split(jax.random.key(12), count)
    )
    np.testing.assert_array_equal(np.sort(mixes.partner, -1), np.tile(np.arange(5), (count, 1)))
    assert len(np.unique(np.asarray(mixes.partner), axis=0)) == 120, "every permutation of five"
    rng = np.random.default_rng(0)
    draws = zip(rng.beta(alpha, alpha, count), rng.integers(0, shape[1:3], (count, 2)), strict=True)
    expected = np.array([original_box(20, 30, share, centre) for share, centre in draws])
    found = np.stack(mixes.box, -1)
    assert np.all((found[:, :2] >= 0) & (found[:, 2:] >= 0))
    assert np.all(found[:, :2] + found[:, 2:] <= [20, 30])
    area, theirs = found[:, 2] * found[:, 3] / 600, expected[:, 2] * expected[:, 3] / 600
    # Empirical distributions of two samples of 3,000 differ by more than 0.05 once in 1,000 times.
    edges = np.linspace(0, 1, 21)
    gaps = np.searchsorted(np.sort(area), edges) - np.searchsorted(np.sort(theirs), edges)
    assert np.abs(gaps).max() < 0.05 * count
    np.testing.assert_allclose(found.mean(0), expected.mean(0), rtol=0.07)


def test_so_many_batches_are_mixed_as_was_asked_for():
    draw = jax.jit(jax.vmap(lambda key: augment.random_mix(key, (2, 16, 16, 1), 0.25).box))
    box = draw(jax.random.split(jax.random.key(13), 2000))
    mixed = np.asarray(box.height * box.width > 0)
    # 500 less those whose box is empty by itself, below a tenth; four deviations of 19.
    assert 380 < mixed.sum() < 580
    never = jax.jit(lambda key: augment.random_mix(key, IMAGES.shape, 0.0))(jax.random.key(1))
    np.testing.assert_array_equal(augment.cutmix(IMAGES, never), IMAGES)
    assert augment.own_share(never, IMAGES.shape) == 1


LABELS = jax.random.randint(jax.random.key(20), IMAGES.shape[:3], 0, 9)


@pytest.mark.parametrize("options", [{}, {"crop_padding": 2}, {"flip": False, "cutmix": 1.0}, {"cutmix": 1.0}])
def test_labels_are_shown_as_their_pixels(options):
    view = augment.draw_view(jax.random.key(21), IMAGES.shape, augment.ViewOptions(**options))
    # Of one more than the label an image shows where nothing is known as 0.
    shown = augment.apply_view(LABELS[..., None].astype(jnp.float32) + 1, view)[..., 0]
    found = augment.apply_view_to_labels(LABELS.astype(jnp.uint8), view)
    np.testing.assert_array_equal(found, shown - 1)
    assert (np.asarray(found) == -1).any() or options.get("crop_padding") == 0


@pytest.mark.parity
def test_labels_of_a_resized_crop_are_the_nearest_pixels_of_torch():
    torch = pytest.importorskip("torch")
    view = augment.draw_view(jax.random.key(22), IMAGES.shape, augment.ViewOptions(flip=False, least_crop=0.2))
    found, box = np.asarray(augment.apply_view_to_labels(LABELS, view)), view.window
    assert box is not None
    for i in range(len(LABELS)):
        top, left, height, width = (int(side[i]) for side in box)
        window = torch.tensor(np.asarray(LABELS[i, top : top + height, left : left + width], np.float32))
        expected = torch.nn.functional.interpolate(window[None, None], LABELS.shape[1:], mode="nearest-exact")[0, 0]
        np.testing.assert_array_equal(found[i], expected)


def test_a_square_is_cut_out_of_images_and_maps_alike():
    images, labels = augment.random_squares(jax.random.key(23), IMAGES, LABELS, 4)
    assert images.shape == (64, 4, 4, 3)
    assert labels.shape == (64, 4, 4)
    places = set()
    for image, label, whole, map_ in zip(images, labels, IMAGES, LABELS, strict=True):
        found = [(y, x) for y in range(3) for x in range(4) if np.array_equal(whole[y : y + 4, x : x + 4], image)]
        ((top, left),) = found
        np.testing.assert_array_equal(label, map_[top : top + 4, left : left + 4])
        places.add((top, left))
    assert len(places) == 12, "every place within the images is drawn"


def test_no_square_leaves_images_and_labels_of_images_alone():
    classes = jnp.arange(64)
    assert augment.random_squares(jax.random.key(24), IMAGES, classes, 0) == (IMAGES, classes)
    assert augment.random_squares(jax.random.key(24), IMAGES, classes, 4)[1] is classes
