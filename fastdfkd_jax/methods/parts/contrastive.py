"""Contrast between images (CMI, Fang et al. 2021): a head on the teacher's features, and a bank of earlier ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.models.layers import torch_bias, torch_uniform

Array = jax.Array
Tree = Any

_NEVER = -1e30  # a logit of probability 0, whose gradient is 0 rather than NaN


class Bank(NamedTuple):
    """The features of the latest images, first in first out.

    Attributes:
      rows: f32[size, 2, D], features of each image's local and global view; rows from `filled` on are undefined.
      filled: i32[], number of valid rows.
      position: i32[], the next row to write.
    """

    rows: Array
    filled: Array
    position: Array


def init_bank(size: int, dim: int) -> Bank:
    """Returns an empty bank of fixed size."""
    zero = jnp.zeros((), jnp.int32)
    return Bank(jnp.zeros((size, 2, dim)), zero, zero)


def bank_bytes(size: int, dim: int) -> int:
    """Returns the memory of a bank: size rows x 2 views x dim features x 4 bytes."""
    return size * 2 * dim * 4


def push(bank: Bank, rows: Array) -> Bank:
    """Writes f32[B, 2, D] over the oldest rows; B is at most the bank's size."""
    size, count = len(bank.rows), len(rows)
    places = (bank.position + jnp.arange(count)) % size
    written = bank.rows.at[places].set(rows, unique_indices=True)
    return Bank(written, jnp.minimum(bank.filled + count, size), (bank.position + count) % size)


def draw(key: Array, bank: Bank, count: int) -> tuple[Array, Array]:
    """Draws distinct rows of the bank at random.

    Args:
      key: random key.
      bank: the bank, which may be empty or partly filled.
      count: rows to draw; a smaller bank is returned whole.

    Returns:
      f32[N, 2, D], and bool[N] that marks the valid rows. All are valid once N rows are filled.
    """
    size = len(bank.rows)
    numbers = jnp.where(jnp.arange(size) < bank.filled, jax.random.uniform(key, (size,)), -1.0)
    chances, places = lax.top_k(numbers, min(count, size))
    return bank.rows[places], chances >= 0


def init_head(key: Array, dim: int, width: int) -> Tree:
    """Draws a linear layer dim -> dim and one dim -> width with PyTorch's initialisation (METHOD 1.5)."""

    def layer(key: Array, outputs: int) -> dict[str, Array]:
        kernel_key, bias_key = jax.random.split(key)
        return {"kernel": torch_uniform(kernel_key, (dim, outputs)), "bias": torch_bias(dim)(bias_key, (outputs,))}

    hidden_key, output_key = jax.random.split(key)
    return {"hidden": layer(hidden_key, dim), "output": layer(output_key, width)}


def embed(head: Tree, features: Array) -> Array:
    """Maps f32[N, D] to unit vectors f32[N, width]: the head with a ReLU between its layers."""
    hidden = jax.nn.relu(features @ head["hidden"]["kernel"] + head["hidden"]["bias"])
    vectors = hidden @ head["output"]["kernel"] + head["output"]["bias"]
    return vectors * lax.rsqrt(jnp.square(vectors).sum(-1, keepdims=True) + 1e-12)


def contrastive_loss(head: Tree, views: Array, others: Array, valid: Array, temperature: float) -> Array:
    """Returns the contrastive loss between an image's local view and all images' global views (METHOD 1.5).

    Over the batch and the others, logits = local · stopgrad(global)^T / temperature. The loss is the cross-entropy with
    each row's own image: its mean over the batch plus its mean over the others.

    Args:
      head: parameters as returned by `init_head`.
      views: f32[B, 2, D], local and global features of the batch.
      others: f32[N, 2, D], features of earlier images.
      valid: bool[N], marks the others that count, as rows and as columns; with none, only the batch's loss remains.
      temperature: divides the logits.
    """
    count = len(views)
    features = jnp.concatenate([views, others])
    local, whole = embed(head, features[:, 0]), lax.stop_gradient(embed(head, features[:, 1]))
    counts = jnp.concatenate([jnp.ones(count, bool), valid])
    logits = jnp.where(counts, local @ whole.T / temperature, _NEVER)
    by_row = jax.nn.logsumexp(logits, axis=-1) - jnp.diagonal(logits)
    of_others = jnp.where(valid, by_row[count:], 0).sum() / jnp.maximum(valid.sum(), 1)
    return by_row[:count].mean() + of_others
