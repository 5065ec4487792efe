"""Convolutions as pure functions whose gradients XLA compiles well on CPU.

Every array is NHWC, every kernel HWIO, every stride and padding the same on both axes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.cpu_conv import chunks, winograd
from fastdfkd_jax.cpu_conv.kernel_gradient import kernel_gradient

Array = jax.Array
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_THIN = 16  # up to this number of channels, several columns at a time are faster than minimal filtering
_CHUNK_BYTES = 600_000  # of the input in one chunk, or of the output if that has more channels; for 1 MB of L2


def convolve(x: Array, kernel: Array, stride: int, padding: tuple[int, int], dilation: int = 1) -> Array:
    """Applies a plain 2-D convolution; `padding` is zeros before and after, the same for both axes."""
    far = (dilation, dilation)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [padding, padding], rhs_dilation=far, dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def square_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Applies a 2-D convolution of equal strides, with gradients in forms that XLA compiles well on CPU.

    XLA's own gradient convolutions run 20 times slower inside a `while` body on CPU, because they are
    canonicalised in the entry computation only. Here the input gradient is an ordinary
    convolution with the flipped kernel, and the kernel gradient a loop of matrix products. `custom_vjp` does not
    support forward mode (`jvp`), so second derivatives and forward mode need XLA's own form.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[h, w, I, O].
      stride: the stride of both axes.
      padding: zeros added on each side of both axes.

    Returns:
      f32[B, H', W', O].
    """
    return _convolve_fast(x, kernel, stride, padding)


def _conv_forward(x, kernel, stride, padding):
    return square_conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    return (
        _input_gradient(dy, kernel, x.shape, stride, padding),
        kernel_gradient(x, dy, kernel.shape, stride, padding),
    )


square_conv.defvjp(_conv_forward, _conv_backward)


def _convolve_fast(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Computes the same as `convolve` by minimal filtering, or otherwise a few images at a time.

    A chunk of images and its result stay in the cache between the operations that need them: XLA pads a copy for a
    strided convolution, and moves the columns of a thin one.
    """
    thin = max(kernel.shape[2:]) <= _THIN
    if stride == padding == 1 and not thin and winograd.fits(x.shape, kernel.shape, x.dtype):
        return winograd.convolve(x, kernel)
    if kernel.shape[0] == stride == 1:
        return convolve(x, kernel, 1, (padding, padding))
    return _in_chunks(lambda x: _convolve_columns(x, kernel, stride, padding), x, kernel)


def _in_chunks(f: Callable[[Array], Array], x: Array, kernel: Array) -> Array:
    """Applies `f`, a convolution by a kernel, to a few images of x at a time."""
    bytes_of_image = math.prod(x.shape[1:3]) * max(kernel.shape[2:]) * x.dtype.itemsize
    return chunks.concatenated(f, x, chunks.images_a_chunk(x.shape[0], _CHUNK_BYTES // bytes_of_image))


def _convolve_columns(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Computes the same as `convolve`, with several columns at a time in thin layers.

    XLA uses a slower library for convolutions of few channels, so neighbouring output columns become channels. This
    needs more products, but each takes a fraction of the time.
    """
    width, inputs, outputs = kernel.shape[1:]
    columns = x.shape[2] + 2 * padding - width + 1
    enough = 64 if inputs < 8 else 32  # channels for which XLA uses the faster library
    at_once = [n for n in (2, 4, 8) if columns % n == 0 and n * outputs < 2 * enough]
    if stride > 1 or inputs > _THIN or outputs >= 32 or not at_once:
        return convolve(x, kernel, stride, (padding, padding))
    n = at_once[-1]
    shifted = [jnp.pad(kernel, ((0, 0), (k, n - 1 - k), (0, 0), (0, 0))) for k in range(n)]
    y = lax.conv_general_dilated(
        x, jnp.concatenate(shifted, axis=-1), (1, n), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )
    return y.reshape(*y.shape[:2], columns, outputs)


def _input_gradient(dy: Array, kernel: Array, x_shape, stride: int, padding: int) -> Array:
    """Computes the transposed convolution by plain convolutions."""
    size = kernel.shape[0]
    transposed = kernel.swapaxes(2, 3)
    if stride == 1:
        return _convolve_fast(dy, jnp.flip(transposed, (0, 1)), 1, size - 1 - padding)
    if size == 1:
        dx = _in_chunks(lambda dy: convolve(dy, transposed, 1, (0, 0)), dy, kernel)
        between = [
            (-padding, side + padding - stride * (length - 1) - 1, stride - 1)
            for side, length in zip(x_shape[1:3], dx.shape[1:3], strict=True)
        ]
        return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *between, (0, 0, 0)])
    return _strided_input_gradient(dy, transposed, x_shape, stride, padding)


def _strided_input_gradient(dy: Array, transposed: Array, x_shape, stride: int, padding: int) -> Array:
    """Applies a small convolution per phase of the rows, whose channels are all phases of the columns.

    On either axis dx[stride r + a] = sum over o of kernel[a + padding - stride o] dy[r + o]. One convolution of dy
    with zeros between its rows and columns would give the same result, but three of four products would be with zero.
    """
    size, _, outputs, inputs = transposed.shape
    rows, cols = (-(-side // stride) for side in x_shape[1:3])
    neighbours = [
        range(-((size - 1 - a - padding) // stride), (a + padding) // stride + 1)  # o, for each phase a
        for a in range(stride)
    ]
    first, last = min(o[0] for o in neighbours if o), max(o[-1] for o in neighbours if o)
    nothing = jnp.zeros((size, outputs, inputs), transposed.dtype)
    columns = [
        jnp.stack(
            [transposed[:, a + padding - stride * o] if o in phase else nothing for o in range(first, last + 1)], 1
        )
        for a, phase in enumerate(neighbours)
    ]
    by_row = jnp.concatenate(columns, axis=-1)
    around = (-first, cols + last - dy.shape[2])
    phases = []
    for a, phase in enumerate(neighbours):
        if phase:
            kernel = jnp.stack([by_row[a + padding - stride * o] for o in phase])
            padding_of_rows = (-phase[0], rows + phase[-1] - dy.shape[1])
            phases.append(
                lax.conv_general_dilated(dy, kernel, (1, 1), [padding_of_rows, around], dimension_numbers=_DIMENSIONS)
            )
        else:
            phases.append(jnp.zeros((dy.shape[0], rows, cols, stride * inputs), dy.dtype))
    dx = jnp.stack(phases, axis=2).reshape(dy.shape[0], rows * stride, cols * stride, inputs)
    return dx[:, : x_shape[1], : x_shape[2]]


@jax.custom_vjp
def transposed_conv(x: Array, kernel: Array) -> Array:
    """Applies the transposed 4x4 convolution of stride 2 and padding 1, with gradients as in `square_conv`.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[4, 4, I, O].

    Returns:
      f32[B, 2H, 2W, O].
    """
    height, width = (2 * side for side in x.shape[1:3])
    return _strided_input_gradient(x, kernel, (x.shape[0], height, width, kernel.shape[3]), 2, 1)


def _transposed_forward(x, kernel):
    return transposed_conv(x, kernel), (x, kernel)


def _transposed_backward(residuals, dy):
    x, kernel = residuals
    strided = kernel.swapaxes(2, 3)
    return _convolve_fast(dy, strided, 2, 1), kernel_gradient(dy, x, strided.shape, 2, 1).swapaxes(2, 3)


transposed_conv.defvjp(_transposed_forward, _transposed_backward)


def double(x: Array) -> Array:
    """Upsamples by two with nearest neighbours: [B, H, W, C] to [B, 2H, 2W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


@jax.custom_vjp
def doubled_conv(x: Array, kernel: Array) -> Array:
    """Applies a 3x3 convolution with padding 1 to the doubled input, without ever doubling it.

    An even output row sees the rows r-1, r, r of the small input, an odd one r, r, r+1. Each has two taps, one of
    which is a sum. All four phases are therefore one 2x2 convolution of the small input with four times the
    outputs, which needs 2.25 times fewer products. The gradients are those of one 4x4 convolution of stride 2 from the
    large array to the small one, which rearranges no phases.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[3, 3, I, O].

    Returns:
      f32[B, 2H, 2W, O].
    """
    if winograd.fits(x.shape, kernel.shape, x.dtype, doubled=True):
        return winograd.convolve_doubled(x, kernel)
    batch, height, width, _ = x.shape
    phases = [both for rows in _halves(kernel, 0) for both in _halves(rows, 1)]
    small = jnp.concatenate(phases, axis=-1)
    y = convolve(x, small, 1, (1, 1)).reshape(batch, height + 1, width + 1, 4, -1)
    rows = [jnp.stack([y[:, r : r + height, c : c + width, 2 * r + c] for c in (0, 1)], axis=3) for r in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _doubled_forward(x, kernel):
    return doubled_conv(x, kernel), (x, kernel)


def _doubled_backward(residuals, dy):
    x, kernel = residuals
    transposed = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    if winograd.fits(x.shape, kernel.shape, x.dtype, doubled=True):
        return winograd.convolve_halved(dy, transposed), winograd.kernel_gradient(x, dy, doubled=True)
    strided = _blur(_blur(transposed, 0), 1)
    dx = convolve(dy, strided, 2, (1, 1))
    d_strided = kernel_gradient(dy, x, strided.shape, 2, 1)
    d_transposed = d_strided[:3, :3] + d_strided[1:, :3] + d_strided[:3, 1:] + d_strided[1:, 1:]
    return dx, jnp.flip(d_transposed.swapaxes(2, 3), (0, 1))


doubled_conv.defvjp(_doubled_forward, _doubled_backward)


def _blur(kernel: Array, axis: int) -> Array:
    """Returns a kernel with one more tap along an axis, which sums two neighbours first, or last."""
    before = [(0, 0)] * kernel.ndim
    behind = list(before)
    before[axis], behind[axis] = (1, 0), (0, 1)
    return jnp.pad(kernel, before) + jnp.pad(kernel, behind)


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Returns the two taps of even and of odd outputs along one axis."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return (
        jnp.concatenate([first, middle + last], axis),
        jnp.concatenate([first + middle, last], axis),
    )
