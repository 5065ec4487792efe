"""3x3 convolutions with a quarter of the products: minimal filtering F(4x4, 3x3), for CPUs.

Four outputs of a filter of three taps need six products instead of twelve, because both are polynomials that can be
multiplied at six points (Winograd 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). On
both axes a tile of 4x4 outputs takes 36 products per pair of channels instead of 144. With `B` for inputs, `G` for
kernels, `A` for outputs

    tile of y = A ((G kernel G') * (B tile of x B')) A',

whose sum over channels is one matrix product for each of the 36 points. Every transform is a small matrix product
too, which XLA's CPU compiler does faster than the same sums written out. A few images are done at a time, so that
tiles stay in the cache.

Arrays are NHWC and kernels HWIO; a padding of one row and column of zeros goes all around.
"""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastdfkd_jax.cpu_conv import chunks

Array = jax.Array

_OUTPUTS, _TAPS = 4, 3
_POINTS = 6
_TILE_BYTES = 1_200_000  # of the input in one chunk; best on a core with 1 MB of L2
_FEWEST_PRODUCTS = 25_000_000  # of a plain convolution: half a millisecond


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns matrices B [6, 6], G [6, 3] and A [4, 6] of the points 0, ±3/4, ±3/2 and infinity (Cook and Toom).

    With these points the largest float32 error is a fifth of that with the usual 0, ±1, ±2, and five times that of a
    plain convolution.
    """
    points = [Fraction(0), *(sign * Fraction(n, 4) for n in (3, 6) for sign in (1, -1))]

    def from_roots(roots: list[Fraction]) -> list[Fraction]:
        coefficients = [Fraction(1)]
        for root in roots:
            shifted, scaled = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
            coefficients = [high - root * low for high, low in zip(shifted, scaled, strict=True)]
        return coefficients

    others = [[q for q in points if q != p] for p in points]
    b = [[*from_roots(rest), Fraction(0)] for rest in others] + [from_roots(points)]
    g = [
        [p**tap / math.prod(p - q for q in rest) for tap in range(_TAPS)]
        for p, rest in zip(points, others, strict=True)
    ]
    g.append([Fraction(tap == _TAPS - 1) for tap in range(_TAPS)])
    a = [[*(p**row for p in points), Fraction(row == _OUTPUTS - 1)] for row in range(_OUTPUTS)]
    return np.array(b, np.float64), np.array(g, np.float64), np.array(a, np.float64)


_B, _G, _A = _transforms()
# For an input whose rows and columns are doubled first: six rows are four of the small input, two of them twice.
_B_DOUBLED = _B @ np.repeat(np.eye(4), (1, 2, 2, 1), axis=0)
# For outputs whose pairs of rows and columns are added, the adjoint of doubling.
_A_HALVED = np.repeat(np.eye(2), 2, axis=1) @ _A


def fits(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype, *, doubled: bool = False) -> bool:
    """Returns True if this module computes a convolution of stride 1 and padding 1: whole tiles, enough work, no bf16.

    With few channels the transforms take longer than the saved products. A small convolution does not repay the longer
    compilation. bf16 and other short floats would lose digits.
    """
    whole = all(side % (2 if doubled else _OUTPUTS) == 0 for side in x_shape[1:3])
    products = math.prod(x_shape[:3]) * (4 if doubled else 1) * math.prod(kernel_shape)
    enough = min(kernel_shape[2:]) >= 16 and products >= _FEWEST_PRODUCTS
    return whole and kernel_shape[:2] == (_TAPS, _TAPS) and enough and jnp.finfo(dtype).bits >= 32


def convolve(x: Array, kernel: Array) -> Array:
    """Convolves [B, H, W, I] with [3, 3, I, O] to [B, H, W, O]; H and W are multiples of 4."""
    return _filter(x, kernel, _B, _A)


def convolve_doubled(x: Array, kernel: Array) -> Array:
    """Convolves the doubled input, [B, H, W, I] to [B, 2H, 2W, O]; H and W are even."""
    return _filter(x, kernel, _B_DOUBLED, _A)


def convolve_halved(x: Array, kernel: Array) -> Array:
    """Convolves and then adds the outputs in pairs on both axes: [B, H, W, I] to [B, H/2, W/2, O]."""
    return _filter(x, kernel, _B, _A_HALVED)


def kernel_gradient(x: Array, dy: Array, *, doubled: bool = False) -> Array:
    """Returns the adjoint of `convolve`, or of `convolve_doubled`, in the kernel: [3, 3, I, O]."""
    b = _B_DOUBLED if doubled else _B
    chunk = _images_a_chunk(x, b)
    points, inputs, outputs = _POINTS**2, x.shape[-1], dy.shape[-1]

    def of_chunk(x: Array, dy: Array, groups: int) -> Array:
        tiles = _tiles(x, b, overlap=2).reshape(points, groups, -1, inputs)
        d_tiles = _tiles(dy, _A.T, overlap=0).reshape(points, groups, -1, outputs)
        return lax.dot_general(tiles, d_tiles, (((2,), (2,)), ((1, 0), (1, 0))))

    total = chunks.summed(of_chunk, x, dy, chunk)
    kernel = jnp.asarray(np.kron(_G, _G).T, x.dtype) @ total.reshape(points, -1)
    return kernel.reshape(_TAPS, _TAPS, inputs, outputs)


def _filter(x: Array, kernel: Array, b: np.ndarray, a: np.ndarray) -> Array:
    """Transforms input tiles by `b`, multiplies, and transforms output tiles by `a`, chunk by chunk."""
    inputs, outputs = kernel.shape[2:]
    points = jnp.asarray(np.kron(_G, _G), x.dtype) @ kernel.reshape(_TAPS**2, -1)
    points = points.reshape(_POINTS**2, inputs, outputs)

    def of_chunk(x: Array) -> Array:
        products = lax.dot_general(_tiles(x, b, overlap=2), points, (((2,), (1,)), ((0,), (0,))))
        return _untiled(products, a, x.shape[0], x.shape[1] // _stride(b), x.shape[2] // _stride(b))

    return chunks.concatenated(of_chunk, x, _images_a_chunk(x, b))


def _images_a_chunk(x: Array, b: np.ndarray) -> int:
    batch, height, width, channels = x.shape
    tiles = (height // _stride(b)) * (width // _stride(b))
    return chunks.images_a_chunk(batch, _TILE_BYTES // (_POINTS**2 * tiles * channels * x.dtype.itemsize))


def _stride(b: np.ndarray) -> int:
    """Returns the distance between input tiles; neighbours share two rows."""
    return b.shape[1] - 2


def _tiles(x: Array, matrix: np.ndarray, overlap: int) -> Array:
    """Applies `matrix` to the rows and columns of every tile: [N, H, W, C] to [36, N * tiles, C].

    Tiles that overlap by two begin one row and column before the image. Other tiles get rows of zeros around them too,
    because XLA then copies the chunk before it takes rows from it, which is three times as fast.
    """
    images, height, width, channels = x.shape
    size, stride = matrix.shape[1], matrix.shape[1] - overlap
    rows, cols = height // stride, width // stride
    transform = jnp.asarray(matrix, x.dtype)
    edge = overlap // 2
    width += overlap
    x = jnp.pad(x, ((0, 0), (1, 1), (edge, edge), (0, 0))).reshape(images, height + 2, width * channels)
    first = range(1 - edge, 1 - edge + size)
    by_row: Array = jnp.stack([x[:, k : k + stride * (rows - 1) + 1 : stride] for k in first])
    by_row = (transform @ by_row.reshape(size, -1)).reshape(_POINTS, images, rows, width, channels)
    by_col: Array = jnp.stack([by_row[:, :, :, k : k + stride * (cols - 1) + 1 : stride] for k in range(size)], axis=1)
    return _from_left(transform, by_col.reshape(_POINTS, size, -1)).reshape(_POINTS**2, -1, channels)


def _untiled(tiles: Array, matrix: np.ndarray, images: int, rows: int, cols: int) -> Array:
    """Applies `matrix` [p, 6] to both axes of points: [36, N * tiles, O] to [N, p rows, p cols, O]."""
    size, channels = matrix.shape[0], tiles.shape[-1]
    transform = jnp.asarray(matrix, tiles.dtype)
    # Images stay the first part of their shared axis; otherwise a batch divided among devices would be gathered here.
    y = jnp.tensordot(transform, tiles.reshape(_POINTS, _POINTS, -1), 1)
    y = _from_left(transform, y).reshape(size, size, images, rows, cols, channels)
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(images, rows * size, cols * size, channels)


def _from_left(matrix: Array, x: Array) -> Array:
    """Multiplies every x[i] by one matrix; it is broadcast, because XLA would otherwise move the long axis."""
    matrices = jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    return lax.dot_general(matrices, x, (((2,), (1,)), ((0,), (0,))))
