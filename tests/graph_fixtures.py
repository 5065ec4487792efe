"""Recorded graphs of torchvision's and timm's networks as small files, for tests that need neither.

A fixture keeps the graph, its constants, running statistics and what PyTorch computed; all other weights are drawn,
seeded by their names, and so are the images. Written by `python tests/graph_fixtures.py`, with the names of some
networks or of all, where PyTorch and the network's library are installed.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "graphs"
NETWORKS = (
    "torchvision/mobilenet_v3_small", "torchvision/shufflenet_v2_x0_5", "torchvision/googlenet",
    "torchvision/lraspp_mobilenet_v3_large", "timm/resnetblur18", "timm/skresnet18", "segmenter", "vit", "gn_resnet8",
)  # fmt: skip
SIDE, CLASSES = 32, 5
_STORED = ("running_mean", "running_var")


def drawn(shapes):
    """Weights by name: kernels of variance 2 / fan-in, scales about 1, small shifts; counters 0."""
    weights = {}
    for name, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            weights[name] = np.zeros(shape, np.int64)
        elif len(shape) > 1:
            weights[name] = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        elif name.endswith("bias"):
            weights[name] = generator.normal(0, 0.1, shape).astype(np.float32)
        else:
            weights[name] = generator.uniform(0.5, 1.5, shape).astype(np.float32)
    return weights


def unpack(path, folder):
    """Makes the folder that `convert.record --graph` would have made."""
    from fastdfkd_jax.convert import record, weight_files

    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    graph = json.loads(arrays.pop("graph").tobytes())
    stored = {name.removeprefix("weights/"): a for name, a in arrays.items() if name.startswith("weights/")}
    reference = {name: a for name, a in arrays.items() if not name.startswith("weights/")}
    reference["images"] = record.fixed_images((2, graph["channels"], graph["image_size"], graph["image_size"]))
    folder.mkdir()
    (folder / "graph.json").write_text(json.dumps(graph))
    weight_files.write_safetensors(folder / "weights.safetensors", drawn(graph["shapes"]) | stored, {})
    np.savez(folder / "reference.npz", **reference)


def write(name):
    """Records a network with drawn weights, and statistics of noise."""
    import torch

    from benchmarks import graphs
    from fastdfkd_jax.convert import record, weight_files

    if name in ("vit", "gn_resnet8"):
        from benchmarks.modules import without_batch_norm

        small = {"vit": (without_batch_norm.ViT, (1, 8, 2)), "gn_resnet8": (without_batch_norm.ResNet, (1,))}
        make, sizes = small[name]
        module, side = make(*sizes, classes=CLASSES), SIDE
    elif name == "segmenter":
        sys.path.insert(0, str(Path(__file__).with_name("parity")))
        import segmenter

        module, side = segmenter.Segmenter(), segmenter.SIDE
    else:
        module, side = graphs.constructed(name, CLASSES), SIDE
    shapes = {entry: tuple(tensor.shape) for entry, tensor in module.state_dict().items()}
    state = {entry: torch.tensor(array) for entry, array in drawn(shapes).items()}
    module.load_state_dict(state)
    for norm in graphs.norms(module):
        norm.reset_running_stats()
    graphs.calibrate(module, side)
    result = record.record(module, record.fixed_images((2, 3, side, side)))
    with tempfile.TemporaryDirectory() as folder:
        graph = record.write_graph(folder, record.export(module, side, 3), result, {"initial": False})
        weights, _ = weight_files.read_state_dict(Path(folder) / "weights.safetensors")
    kept_as_is = {entry for entry in weights if entry.endswith(_STORED) or entry not in shapes}
    stored = {f"weights/{entry}": weights[entry] for entry in kept_as_is}
    kept = {key: a for key, a in result.items() if not key.startswith("state/") and key != "images"}
    kept |= {key: a.astype(np.float32) for key, a in kept.items() if key.startswith("gradient/")}
    FOLDER.mkdir(exist_ok=True)
    text = np.frombuffer(json.dumps(graph, separators=(",", ":")).encode(), np.uint8)
    np.savez_compressed(FOLDER / f"{name.replace('/', '-')}.npz", graph=text, **stored, **kept)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    for network in sys.argv[1:] or NETWORKS:
        write(network)
        print(network, file=sys.stderr)
