"""Makes `digits.npz` from scikit-learn's copy: `python -m fastdfkd_jax.data.make_digits [FILE]`.

The file is part of the package; this module documents its origin. It needs scikit-learn, which is not a
dependency.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fastdfkd_jax.data.digits import PATH


def make(path: Path) -> None:
    """Writes images, uint8[1797, 8, 8] of 0 to 16, and labels, uint8[1797]."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8)
    np.savez_compressed(path, images=images, labels=np.asarray(labels, np.uint8))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH)
