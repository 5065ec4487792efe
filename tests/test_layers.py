"""Convolution gradients against XLA's own, BatchNorm and pooling against PyTorch and NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fastdfkd_jax.cpu_conv import CONV_FORMS, conv2d, kernel_gradient, square, winograd
from fastdfkd_jax.cpu_conv.dilated import dilated_conv
from fastdfkd_jax.cpu_conv.general import general_conv, merged_groups
from fastdfkd_jax.cpu_conv.square import convolve, double, doubled_conv, square_conv
from fastdfkd_jax.models import layers
from fastdfkd_jax.models.depthwise import DepthwiseConv
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators.dcgan import TransposedConv
from fastdfkd_jax.models.strides import place_strides

# Two orders of summation of some hundreds of float32 products differ by a few units in the last place.
SUMMATION = 1e-5


def draw(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


def apply(module: nn.Module, *args, **kwargs) -> Any:
    """`Module.apply`, whose declared type does not depend on `mutable`."""
    return module.apply(*args, **kwargs)


def assert_close(actual, expected, tolerance: float):
    """Largest difference relative to the largest reference value, leaf by leaf."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(float(np.abs(e).max()), 1e-30)),
        actual,
        expected,
    )


def value_and_gradients(conv, in_scan: bool):
    """Output and both gradients of a nonlinear loss; in a scan the input takes two gradient steps."""

    def loss(x, kernel):
        y = conv(x, kernel)
        return jnp.sum(jnp.sin(y)), y

    def once(x, kernel):
        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
        return y, *gradients

    def scanned(x, kernel):
        def step(x, _):
            y, dx, dkernel = once(x, kernel)
            return x - 0.1 * dx, (y, dx, dkernel)

        return lax.scan(step, x, length=2)[1]

    return jax.jit(scanned if in_scan else once)


@pytest.mark.parametrize(("size", "in_scan"), [*((size, False) for size in (1, 2, 3, 4, 7)), (1, True), (3, True)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_square_convolution_equals_xla(size, in_scan, stride):
    x, kernel, padding = draw(0, 2, 9, 8, 3), draw(1, size, size, 3, 4) / size, size // 2
    ours = value_and_gradients(lambda x, k: square_conv(x, k, stride, padding), in_scan)(x, kernel)
    xla = value_and_gradients(lambda x, k: convolve(x, k, stride, (padding, padding)), in_scan)(x, kernel)
    assert_close(ours, xla, SUMMATION)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (8, 5)])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (1, 2, 0), (3, 1, 2)])
def test_square_convolution_on_odd_sizes_and_paddings(height, width, size, stride, padding):
    if min(height, width) + 2 * padding < size:
        height, width = size, size
    x, kernel = draw(0, 2, height, width, 2), draw(1, size, size, 2, 3)
    ours = value_and_gradients(lambda x, k: square_conv(x, k, stride, padding), False)(x, kernel)
    xla = value_and_gradients(lambda x, k: convolve(x, k, stride, (padding, padding)), False)(x, kernel)
    assert_close(ours, xla, SUMMATION)


@pytest.mark.parametrize("in_scan", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (16, 13)])
@pytest.mark.parametrize("dilation", [2, 3, 4, 12])
def test_dilated_convolution_equals_xla(height, width, dilation, in_scan):
    """As small images where taps reach less than half the image, as products of overlaps otherwise."""
    x, kernel = draw(0, 2, height, width, 5), draw(1, 3, 3, 5, 4)
    ours = value_and_gradients(lambda x, k: dilated_conv(x, k, dilation), in_scan)(x, kernel)
    xla = value_and_gradients(lambda x, k: convolve(x, k, 1, (dilation, dilation), dilation), in_scan)(x, kernel)
    assert_close(ours, xla, SUMMATION)


@pytest.mark.parametrize("module", [layers.Conv(4, 3, dilation=2), DepthwiseConv(3, dilation=2, padding=0)])
def test_dilated_layers_equal_their_xla_form(module):
    x = draw(0, 2, 9, 7, 3)
    variables = module.init(jax.random.key(1), x)
    ours, xla = (apply(module.clone(forms=Forms(conv=form)), variables, x) for form in ("cpu", "xla"))
    assert ours.shape[1:3] == ((9, 7) if isinstance(module, layers.Conv) else (5, 3))
    assert_close(ours, xla, SUMMATION)


def test_strides_past_the_output_stride_become_dilations_of_what_follows():
    assert place_strides((1, 2, 2, 2), 4, 32) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert place_strides((1, 2, 2, 2), 4, 16) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]
    assert place_strides((1, 2, 2, 2), 4, 8) == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    assert place_strides((2, 1, 2, 1), 4, 8)[1:] == [(1, 1, 1), (1, 1, 2), (1, 2, 2)]


@pytest.mark.parametrize("in_scan", [False, True])
@pytest.mark.parity
def test_transposed_convolution_equals_xla_and_torch(in_scan):
    x, kernel = draw(0, 2, 5, 3, 4), draw(1, 4, 4, 4, 6)

    def conv(form):
        return lambda x, k: apply(TransposedConv(6, Forms(conv=form)), {"params": {"kernel": k}}, x)

    ours, xla = (value_and_gradients(conv(form), in_scan)(x, kernel) for form in ("cpu", "xla"))
    assert_close(ours, xla, SUMMATION)
    torch = pytest.importorskip("torch")
    arrays = (torch.tensor(np.asarray(a).transpose(axes)) for a, axes in ((x, (0, 3, 1, 2)), (kernel, (2, 3, 0, 1))))
    expected = torch.nn.functional.conv_transpose2d(*arrays, stride=2, padding=1).numpy().transpose(0, 2, 3, 1)
    assert_close(conv("cpu")(x, kernel), expected, SUMMATION)


@pytest.mark.parametrize(
    ("width", "inputs", "outputs"),
    [
        (6, 5, 3),
        (7, 5, 16),
        (8, 5, 16),
        (8, 5, 3),
        (12, 5, 3),
        (8, 5, 65),
        (8, 17, 3),
        (8, 16, 16),
        (6, 16, 8),
        (8, 8, 32),
    ],
)
def test_thin_and_thick_convolutions_are_the_same(inputs, outputs, width):
    """Few channels are computed for eight, four or two columns at a time."""
    x, kernel = draw(0, 2, 6, width, inputs), draw(1, 3, 3, inputs, outputs) / 3
    ours = value_and_gradients(lambda x, k: square_conv(x, k, 1, 1), False)(x, kernel)
    xla = value_and_gradients(lambda x, k: convolve(x, k, 1, (1, 1)), False)(x, kernel)
    assert_close(ours, xla, SUMMATION)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_few_outputs_of_many_inputs(padding):
    """The kernel gradient shifts the output gradient only."""
    x, kernel = draw(0, 4, 6, 5, 12), draw(1, 3, 3, 12, 2) / 3
    ours = value_and_gradients(lambda x, k: square_conv(x, k, 1, padding), False)(x, kernel)
    xla = value_and_gradients(lambda x, k: convolve(x, k, 1, (padding, padding)), False)(x, kernel)
    assert_close(ours, xla, SUMMATION)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("images_a_chunk", [1, 2, 5])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_convolutions_in_chunks_and_groups(monkeypatch, devices, images_a_chunk, size, stride):
    x, kernel, padding = draw(0, 12, 7, 6, 3), draw(1, size, size, 3, 4), size // 2
    rows, columns = convolve(x, kernel, stride, (padding, padding)).shape[1:3]
    copies_of_an_image = 4 * rows * columns * size * (3 + 4)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(kernel_gradient, "_CHUNK_BYTES", images_a_chunk * copies_of_an_image)
    monkeypatch.setattr(square, "_CHUNK_BYTES", images_a_chunk * 4 * x[0, :, :, 0].size * 4)
    ours = value_and_gradients(lambda x, k: square_conv(x, k, stride, padding), True)(x, kernel)
    monkeypatch.undo()
    xla = value_and_gradients(lambda x, k: convolve(x, k, stride, (padding, padding)), True)(x, kernel)
    assert_close(ours, xla, SUMMATION)


def in_double_precision(conv, *arguments):
    """Values and gradients of `conv` in float64, where another algorithm for the same numbers must show as such."""
    with jax.enable_x64(True):
        return value_and_gradients(conv, False)(*(jnp.asarray(np.asarray(a), jnp.float64) for a in arguments))


def single(conv, *arguments):
    return value_and_gradients(conv, False)(*arguments)


@pytest.mark.parametrize(
    ("devices", "images_a_chunk", "height", "width", "inputs", "outputs"),
    [(1, 1, 8, 4, 16, 32), (1, 12, 4, 12, 32, 16), (4, 2, 8, 4, 16, 32), (4, 1, 4, 12, 32, 16)],
)
def test_minimal_filtering_equals_xla(monkeypatch, devices, images_a_chunk, height, width, inputs, outputs):
    x, kernel = draw(0, 12, height, width, inputs), draw(1, 3, 3, inputs, outputs) / 12
    monkeypatch.setattr(winograd, "_FEWEST_PRODUCTS", 0)
    assert winograd.fits(x.shape, kernel.shape, x.dtype)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    tiles_of_an_image = 36 * (height // 4) * (width // 4) * max(inputs, outputs)
    monkeypatch.setattr(winograd, "_TILE_BYTES", 8 * images_a_chunk * tiles_of_an_image)
    filtered = [run(lambda x, k: square_conv(x, k, 1, 1), x, kernel) for run in (single, in_double_precision)]
    monkeypatch.undo()
    xla = [run(lambda x, k: convolve(x, k, 1, (1, 1)), x, kernel) for run in (single, in_double_precision)]
    assert_close(filtered[0], xla[0], SUMMATION)
    assert_close(filtered[1], xla[1], 1e-13)


def test_minimal_filtering_of_the_doubled_input_equals_doubling_first(monkeypatch):
    monkeypatch.setattr(winograd, "_FEWEST_PRODUCTS", 0)
    x, kernel = draw(0, 3, 6, 4, 32), draw(1, 3, 3, 32, 16) / 12
    assert winograd.fits(x.shape, kernel.shape, x.dtype, doubled=True)
    fused = in_double_precision(doubled_conv, x, kernel)
    assert_close(fused, in_double_precision(lambda x, k: convolve(double(x), k, 1, (1, 1)), x, kernel), 1e-13)


def test_minimal_filtering_is_about_as_accurate_as_the_plain_sum():
    """Largest error in float32 against float64, of a thick layer: some five times a plain convolution's."""
    x, kernel = draw(0, 8, 8, 8, 128), draw(1, 3, 3, 128, 128) / 34
    exact = np.asarray(in_double_precision(lambda x, k: convolve(x, k, 1, (1, 1)), x, kernel)[0])
    errors = [
        np.abs(np.asarray(jax.jit(conv)(x, kernel)) - exact).max()
        for conv in (winograd.convolve, lambda x, k: convolve(x, k, 1, (1, 1)))
    ]
    assert errors[0] < 10 * errors[1], errors
    assert errors[0] < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "dtype"),
    [
        ((64, 8, 8, 32), (3, 3, 32, 32), "bfloat16"),
        ((64, 8, 6, 32), (3, 3, 32, 32), "float32"),
        ((2000, 8, 8, 3), (3, 3, 3, 32), "float32"),
        ((2000, 8, 8, 8), (3, 3, 8, 32), "float32"),
        ((2000, 8, 8, 32), (1, 1, 32, 32), "float32"),
        ((64, 8, 8, 32), (5, 5, 32, 32), "float32"),
        ((2, 8, 8, 32), (3, 3, 32, 32), "float32"),
    ],
)
def test_minimal_filtering_is_not_for(x_shape, kernel_shape, dtype):
    assert winograd.fits((64, 8, 8, 32), (3, 3, 32, 32), jnp.float32)
    assert not winograd.fits(x_shape, kernel_shape, jnp.dtype(dtype))


@pytest.mark.parametrize("in_scan", [False, True])
def test_convolution_of_the_doubled_input_equals_doubling_first(in_scan):
    x, kernel = draw(0, 2, 5, 4, 3), draw(1, 3, 3, 3, 6)
    fused = value_and_gradients(doubled_conv, in_scan)(x, kernel)
    plain = value_and_gradients(lambda x, k: convolve(double(x), k, 1, (1, 1)), in_scan)(x, kernel)
    assert_close(fused, plain, SUMMATION)


def test_doubling_repeats_every_pixel():
    x = draw(0, 2, 3, 4, 2)
    np.testing.assert_array_equal(double(x), np.repeat(np.repeat(x, 2, 1), 2, 2))


@pytest.mark.parametrize("make", [layers.Conv, layers.DoubledConv])
def test_forward_mode_works_in_the_form_xla_and_is_refused_in_the_form_cpu(make):
    x, tangent = draw(0, 1, 4, 4, 2), draw(1, 1, 4, 4, 2)

    def directional(form):
        conv = make(3, forms=Forms(conv=form))
        variables = conv.init(jax.random.key(0), x)
        return lambda x: apply(conv, variables, x), tangent

    function, direction = directional("xla")
    # A convolution is linear: its derivative along a direction is its value there.
    assert_close(jax.jvp(function, (x,), (direction,))[1], function(direction), SUMMATION)
    function, direction = directional("cpu")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(function, (x,), (direction,))


@pytest.mark.parametrize("size", [8, 9])
def test_halving_equals_window_maxima_and_their_gradient(size):
    x, weights = draw(0, 2, size, size, 3), draw(1, 2, size // 2, size // 2, 3)
    reference = nn.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(layers.halve(x), reference)
    gradients = [
        jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x)
        for pool in (layers.halve, lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    ]
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("shape", [(8, 8), (9, 7)])
def test_pooling_of_three_equals_window_maxima_and_their_gradient(shape):
    x = draw(0, 2, *shape, 3)
    weights = draw(1, 2, *(-(-side // 2) for side in shape), 3)

    def reference(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    np.testing.assert_array_equal(layers.max_pool(x), reference(x))
    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x) for pool in (layers.max_pool, reference)
    )
    # Up to four windows share a largest pixel, whose sums may be taken in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_moments_equal_numpy_far_from_zero():
    # A mean of a hundred deviations: where E[x^2] - E[x]^2 would lose four digits.
    x = draw(0, 4, 6, 5, 3) + 100
    mean, var = layers.input_moments(x)
    exact = np.asarray(x, np.float64)
    # float32 rounding of the inputs' differences from the mean (100 * 2^-24 of a deviation of 1).
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)


def test_moments_have_exact_first_and_second_derivatives():
    """d var / dx = 2 (x - mean) / n; d2 var / dx dx = 2 (I - 1/n) / n; the centre is not to be differentiated."""
    x = draw(0, 6, 1)
    n = x.shape[0]

    def var(x):
        return layers.input_moments(x[:, None])[1][0]

    np.testing.assert_allclose(jax.grad(var)(x[:, 0]), 2 * (x - x.mean())[:, 0] / n, atol=1e-6)
    np.testing.assert_allclose(jax.hessian(var)(x[:, 0]), 2 * (np.eye(n) - 1 / n) / n, atol=1e-6)


@pytest.mark.parity
def test_batch_norm_in_training_equals_torch():
    torch = pytest.importorskip("torch")
    images = np.asarray(draw(0, 5, 4, 3, 6)) * 3 + 1
    scale, bias = np.asarray(draw(1, 6)), np.asarray(draw(2, 6))
    mean, var = np.asarray(draw(3, 6)), np.asarray(draw(4, 6)) ** 2 + 0.1

    reference = torch.nn.BatchNorm2d(6)
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    reference.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    expected = reference(torch.tensor(images.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)

    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    module = layers.BatchNorm(train=True)
    out, new = apply(module, variables, images, mutable=["batch_stats", "moments"])
    # The same float32 arithmetic; only the order of summation differs.
    assert_close(out, expected, 1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], reference.running_mean, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], reference.running_var, rtol=1e-6)
    # The moments are those of the input, with the biased variance.
    np.testing.assert_allclose(new["moments"]["mean"], images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(new["moments"]["var"], images.var((0, 1, 2)), rtol=1e-6)


@pytest.mark.parity
def test_batch_norm_in_evaluation_equals_torch_and_leaves_statistics():
    torch = pytest.importorskip("torch")
    images = np.asarray(draw(0, 2, 4, 3, 6))
    variables = {
        "params": {"scale": draw(1, 6), "bias": draw(2, 6)},
        "batch_stats": {"mean": draw(3, 6), "var": jnp.square(draw(4, 6)) + 0.1},
    }
    flat = {**variables["params"], **variables["batch_stats"]}
    as_torch = {name: torch.tensor(np.asarray(value)) for name, value in flat.items()}
    expected = torch.nn.functional.batch_norm(
        torch.tensor(images.transpose(0, 3, 1, 2)),
        as_torch["mean"],
        as_torch["var"],
        as_torch["scale"],
        as_torch["bias"],
    )
    out, new = apply(layers.BatchNorm(train=False), variables, images, mutable=["moments"])
    assert_close(out, expected.numpy().transpose(0, 2, 3, 1), 1e-6)
    assert set(new) == {"moments"}


def test_batch_norm_without_statistics_has_no_state_and_needs_training():
    x = draw(0, 4, 3, 3, 2) * 2 + 5
    variables = layers.BatchNorm(train=True, tracked=False).init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    out = apply(layers.BatchNorm(train=True, tracked=False), variables, x)
    # epsilon 1e-5 over a variance of about 4 and float32 rounding.
    np.testing.assert_allclose(np.mean(out, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(out, (0, 1, 2)), 1, atol=1e-5)
    with pytest.raises(ValueError, match="set train"):
        layers.BatchNorm(train=False, tracked=False).apply(variables, x)


def test_default_initialisations_have_torch_bounds_and_published_deviations():
    key, shape = jax.random.key(0), (3, 3, 64, 128)
    bound = 1 / np.sqrt(9 * 64)
    uniform = layers.torch_uniform(key, shape)
    # 73,728 draws: the extreme is within a thousandth of the bound, a deviation within one per cent.
    assert float(jnp.abs(uniform).max()) == pytest.approx(bound, rel=1e-3)
    assert float(uniform.std()) == pytest.approx(bound / np.sqrt(3), rel=0.01)
    assert float(layers.he_normal_fan_in(key, shape).std()) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.01)
    assert float(layers.he_normal_fan_out(key, shape).std()) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.01)
    bias = layers.torch_bias(16)(key, (50_000,))
    assert float(jnp.abs(bias).max()) == pytest.approx(1 / 4, rel=1e-3)


def test_flat_draw_is_the_draw_of_the_shape():
    key, shape = jax.random.key(3), (3, 2, 5)
    np.testing.assert_array_equal(layers.flat_normal(key, shape), jax.random.normal(key, shape))


GENERAL = {
    "depthwise": (6, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    "depthwise, strided": (6, 6, (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 6),
    "depthwise, rows that no window sees": (6, 6, (3, 3), (3, 2), ((0, 1), (1, 0)), (1, 1), 6),
    "depthwise, dilated": (6, 6, (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 6),
    "narrow groups": (48, 96, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 24),
    "three groups": (6, 9, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    "two filters a channel": (6, 12, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    "dilated": (6, 5, (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 1),
    "one row": (6, 5, (1, 7), (1, 2), ((0, 0), (3, 3)), (1, 1), 1),
    "padded behind": (6, 5, (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), 1),
    "usual": (6, 5, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
}


@pytest.mark.parametrize("in_scan", [False, True])
@pytest.mark.parametrize("name", GENERAL)
def test_general_convolution_equals_xla(name, in_scan):
    inputs, outputs, size, stride, edges, dilation, groups = GENERAL[name]
    x, kernel = draw(0, 2, 11, 9, inputs), draw(1, *size, inputs // groups, outputs)

    def xla(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, stride, edges, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    def general(x, kernel):
        return general_conv(x, kernel, stride, edges, dilation, groups)

    found, expected = (value_and_gradients(conv, in_scan)(x, kernel) for conv in (general, xla))
    assert_close(found, expected, SUMMATION)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"), [(3, 1, 2, 2), (3, 2, 2, 2), (3, 1, 0, 3), (2, 1, 1, 2), (1, 1, 0, 2)]
)
def test_convolutions_by_plain_numbers_equal_xla(size, stride, padding, dilation):
    """Dilated ones that keep the size have a form of their own; those that do not are general ones."""
    x, kernel = draw(0, 2, 9, 7, 3), draw(1, size, size, 3, 4)
    ours, xla = (
        value_and_gradients(lambda x, k, f=form: conv2d(x, k, stride, padding, dilation, form=f), False)(x, kernel)
        for form in CONV_FORMS
    )
    assert_close(ours, xla, SUMMATION)


@pytest.mark.parametrize(("groups", "inputs", "blocks"), [(32, 4, 4), (25, 16, 5), (3, 2, 1), (2, 64, 2), (7, 5, 1)])
def test_narrow_groups_are_merged_into_a_few_wide_ones(groups, inputs, blocks):
    merged = merged_groups(jnp.ones((3, 3, inputs, groups * 2)), groups)
    assert len(merged) == blocks
    assert {block.shape for block in merged} == {(3, 3, groups // blocks * inputs, groups // blocks * 2)}
    assert sum(int((block != 0).sum()) for block in merged) == 9 * inputs * groups * 2
