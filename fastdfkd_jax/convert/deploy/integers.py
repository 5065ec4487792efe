"""Quantises an ONNX file to 8-bit integers with synthesised images: no data set is needed for this either."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdfkd_jax.convert.deploy import compared, onnx_files
from fastdfkd_jax.convert.metadata import KEY
from fastdfkd_jax.data.probe import spread
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.storage import npz

_MOST = 1024  # images that are used: half of them to calibrate, half to compare
_BATCH = 32


class Integers(NamedTuple):
    """A quantised network.

    Attributes:
      content: the ONNX file's content.
      calibrated: number of images that gave the ranges of activations.
      agreement: percentage of other images of the pool for which both networks predict the same class; for a
        segmentation network, of their pixels.
    """

    content: bytes
    calibrated: int
    agreement: float


def quantised(content: bytes, network: Network, images: np.ndarray, unit_range: bool) -> Integers:
    """Quantises weights per channel and activations per tensor, by onnxruntime's static quantisation (QDQ).

    Args:
      content: the ONNX file in float32.
      network: the network; its spec normalises the images.
      images: uint8[N, H, W, C], N at least 2; those with even numbers calibrate, the others compare.
      unit_range: as the file was made.
    """
    import onnx
    from onnxruntime import quantization

    batches = images.astype(np.float32) / 255
    batches = batches if unit_range else compared.normalised(batches, network)
    kept, others = batches[::2], batches[1::2]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(kept), _BATCH))

        def get_next(self) -> Any:
            start = next(self.starts, None)
            if start is None:
                return None
            return {onnx_files.INPUT: np.ascontiguousarray(np.moveaxis(kept[start : start + _BATCH], -1, 1))}

    with tempfile.TemporaryDirectory() as folder, onnx_files.quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "integers.onnx"
        source.write_bytes(content)
        quantization.quantize_static(source, target, Reader(), per_channel=True)
        model = onnx.load(target)
    stored = next(entry.value for entry in onnx.load_from_string(content).metadata_props if entry.key == KEY)
    result = onnx_files.with_metadata(model, json.loads(stored))
    before, after = (_classes(onnx_files.runner(file), others) for file in (content, result))
    return Integers(result, len(kept), 100 * float((before == after).mean()))


def _classes(run: compared.Run, images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), _BATCH)
    return np.concatenate([run(images[start : start + _BATCH]).argmax(-1) for start in starts])


def read_images(place: Path, network: Network) -> np.ndarray:
    """Reads images of a pool of synthesised images, at most 1,024 at equal distances.

    Args:
      place: a run's workdir, or its `pool` folder.
      network: the images must fit its input.

    Returns:
      uint8[N, H, W, C].

    Raises:
      UserError: there are fewer than 2 images, or they do not fit.
    """
    pool = place / "pool" if (place / "pool").is_dir() else place
    paths = npz.paths(pool) if pool.is_dir() else []
    if not paths:
        raise UserError(f"expected a run's workdir or its pool of images, found no shards in {pool}: check --int8")
    expected, parts = network.spec.input_shape, []
    chosen = spread(len(paths), _MOST // 2)  # at least two images of each
    for path in (paths[number] for number in chosen):
        images = read_shard(path).images
        if images.shape[1:] != expected:
            sizes = ["x".join(map(str, shape)) for shape in (expected, images.shape[1:])]
            raise UserError(f"the network takes images of {sizes[0]}, found {sizes[1]} in {path}: give its own run")
        parts.append(images[spread(len(images), -(-_MOST // len(chosen)))])  # never a large pool whole
    images = np.concatenate(parts)
    images = images[spread(len(images), _MOST)]
    if len(images) < 2:
        raise UserError(f"expected at least 2 images in {pool}, found {len(images)}: give a run that has some")
    return images
