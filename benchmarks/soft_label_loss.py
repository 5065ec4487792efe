"""Measures the loss in a teacher's answers when fewer of their bytes are stored.

    python -m benchmarks.soft_label_loss --teacher FILE --data npz:FILE --out results/soft_labels/kept.json

KL(p || kept) as a share of KL(p || uniform), means over random views of real pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import convert, data, losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import soft_labels
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.storage import files

BATCH = 60
TEMPERATURES = (1.0, 5.0)
TOP_K = (0, 200, 50, 10)  # 0: all logits


def measure(teacher_path: Path, source: str, directory: str, views: int) -> dict[str, Any]:
    """Returns the shares, by temperature and number of kept probabilities."""
    teacher, variables = convert.load_network(teacher_path)
    classes, size = teacher.spec.num_classes, teacher.spec.image_size
    images = data.load(source, "test", data_dir=directory or None, image_size=size, crop=0.875).images
    options = augment.ViewOptions(least_crop=0.08, cutmix=0.5)

    @jax.jit
    def answer(images: jax.Array, key: jax.Array) -> jax.Array:
        view = augment.draw_view(key, images.shape, augment.ViewOptions(least_crop=0.08))
        shown = augment.normalize(augment.apply_view(images, view), teacher.spec.mean, teacher.spec.std)
        return teacher.apply(variables, shown).logits

    rows = np.random.default_rng(0).permutation(len(images))[:views]
    batches = rows[: views // BATCH * BATCH].reshape(-1, BATCH)
    logits = jnp.concatenate(
        [answer(on_device.to_float(jnp.asarray(images[some])), jax.random.key(i)) for i, some in enumerate(batches)]
    )
    kept: dict[str, Any] = {}
    for top_k in TOP_K:
        shares = {}
        for temperature in TEMPERATURES:
            stored = soft_labels.encode(logits, temperature, top_k)
            decoded = soft_labels.decode(stored, classes, temperature)
            lost = losses.kl_divergence(logits / temperature, decoded / temperature).mean()
            most = losses.kl_divergence(logits / temperature, jnp.zeros_like(logits)).mean()
            shares[f"lost_at_temperature_{temperature:g}"] = float(lost / most)
        name = f"{top_k} probabilities" if top_k else "all logits"
        kept[name] = {"bytes_a_view": soft_labels.bytes_per_view(classes, top_k, options, 100), **shares}
    return {"teacher": teacher.spec.arch, "views": len(logits), "least_crop": 0.08, "kept": kept}


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", required=True, help="as config.data.source")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--views", type=int, default=480)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = measure(args.teacher, args.data, args.data_dir, args.views)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
