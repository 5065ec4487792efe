"""Measures a pool on disk: its memory, and images written and read a second, beside the needs of eight GPUs.

    python -m benchmarks.pool_on_disk --images 30000 --folder DIR --record FILE

Writes shards of 100 images of 224 pixels in DIR, as a run does, with the student's random batches read between them,
and reads on when all are there: from the page cache, and from the disk once the kernel was asked to drop that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.methods.base import Batch
from fastdfkd_jax.pool.on_disk import DiskFeed
from fastdfkd_jax.pool.shards import Shards

SHAPE = (224, 224, 3)
SHARD, BATCH, STEPS = 100, 100, 4
READS = 30  # dispatches that each rate is of

# Computed, not measured: what student steps of ResNet-50 with a ResNet-50 teacher need (8.2 GFLOP a forward pass, a
# step is three of the student's and one of the teacher's) on H100s of 989 TFLOP/s in bfloat16. Networks with BatchNorm
# are bound by memory and reach about a tenth; 40 % is a bound that they will not pass.
GFLOP_AN_IMAGE, GPUS, PEAK = 4 * 8.2, 8, 989e3
SHARES_OF_PEAK = (0.1, 0.4)


def peak_memory() -> float:
    """Returns the peak memory of the process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def random_images(seed: int) -> np.ndarray:
    """Draws noise, which no layer between here and the disk can compress."""
    return np.random.default_rng(seed).integers(0, 256, (SHARD, *SHAPE), np.uint8)


def drop_from_cache(folder: Path) -> None:
    """Asks the kernel to forget what it holds of these files."""
    for path in folder.glob("*.npz"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def read_rate(store: DiskFeed) -> float:
    """Images a second that reach the device."""
    start = time.perf_counter()
    for step in range(READS):
        store.take(step * STEPS, (step + 1) * STEPS).images.block_until_ready()
    return READS * STEPS * BATCH / (time.perf_counter() - start)


def measure(images: int, folder: Path) -> dict[str, Any]:
    """Times writing and reading."""
    shards, draws = Shards(folder), np.random.default_rng(0)
    place = parallel.placer(parallel.devices(1))

    def draw(step: int, size: int) -> np.ndarray:
        return draws.integers(0, size, (STEPS, BATCH))

    store = DiskFeed(shards, None, folder / "initial", SHAPE, True, draw, place)
    memory, write_seconds = {}, 0.0
    for index in range(images // SHARD):
        rows: Any = random_images(index)
        start = time.perf_counter()
        store.add(Batch(rows, jnp.zeros(SHARD, jnp.int32)))
        write_seconds += time.perf_counter() - start
        if (index + 1) % 10 == 0:
            store.take(index * STEPS, None)
        if (index + 1) * SHARD in (1000, 3000, 10_000, 20_000, 30_000, 140_000):
            memory[(index + 1) * SHARD] = round(peak_memory())
    start = time.perf_counter()
    shards.locate(images // SHARD)
    verify_seconds = time.perf_counter() - start
    cached = read_rate(store)
    drop_from_cache(folder)
    cold = read_rate(store)
    store.close()
    size = images * int(np.prod(SHAPE))
    return {
        "images": images,
        "disk_gb": size / 1e9,
        "peak_memory_mb_by_images": memory,
        "write_images_per_second": images / write_seconds,
        "write_mb_per_second": size / 1e6 / write_seconds,
        "verify_mb_per_second": size / 1e6 / verify_seconds,
        "read_images_per_second_cached": cached,
        "read_images_per_second_after_dropping_the_cache": cold,
        "computed_images_per_second_of_eight_h100": {
            f"{share:.0%} of peak": round(share * PEAK * GPUS / GFLOP_AN_IMAGE) for share in SHARES_OF_PEAK
        },
        "machine": {"cores": os.cpu_count(), "system": platform.system()},
    }


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--folder", type=Path, required=True, help="for the shards; they stay there")
    parser.add_argument("--record", type=Path, help="also write the result here")
    args = parser.parse_args()
    found = json.dumps(measure(args.images, args.folder), indent=2)
    print(found)
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.write_text(found + "\n")


if __name__ == "__main__":
    main()
