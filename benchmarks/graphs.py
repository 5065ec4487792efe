"""Compares recorded graphs of many networks with torch: their operations, their errors, their time beside linen.

    python -m benchmarks.graphs                    # every network below, those with a record left out
    python -m benchmarks.graphs torchvision/resnet18 ours/resnet20
    python -m benchmarks.graphs --table            # writes the table of all records into docs/graphs.md

Networks of torchvision and timm need both installed. Weights are seeded, scales and shifts of BatchNorms too, and their
statistics are those of noise. Each network runs in its own process and leaves a record, results/graphs/NAME.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import seconds
from fastdfkd_jax import models
from fastdfkd_jax.convert import checkpoints, graph, naming, record, verify
from fastdfkd_jax.convert.torch_twins import classifiers
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.storage import markdown

RESULTS, TABLE = Path("results/graphs"), Path("docs/graphs.md")
_TORCHVISION = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "vgg11_bn", "mobilenet_v2")
_TORCHVISION += ("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf")
_TORCHVISION += ("regnet_y_400mf", "shufflenet_v2_x1_0", "mnasnet1_0", "googlenet", "inception_v3")
_TORCHVISION += ("deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
# Without BatchNorm, or with attention.
_ATTENTION = ("torchvision/vit_b_16", "torchvision/swin_t", "torchvision/swin_v2_t", "torchvision/convnext_tiny")
_ATTENTION += ("timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224")
_ATTENTION += ("timm/swinv2_tiny_window8_256", "timm/convnext_atto", "timm/convnextv2_atto", "timm/resnet50_gn")
_ATTENTION += ("timm/mixer_s16_224", "timm/poolformer_s12", "timm/maxvit_rmlp_pico_rw_256", "timm/mobilevit_xs")
_TIMM = ("resnet26d", "seresnet18", "skresnet18", "resnetblur18", "res2net50_26w_4s", "resnest14d", "ecaresnet26t")
_TIMM += ("efficientnet_lite0", "tf_efficientnet_b0", "mixnet_s", "ghostnet_100", "hardcorenas_a", "fbnetc_100")
_TIMM += ("cspresnet50", "cspdarknet53", "dla34", "dpn48b", "hrnet_w18_small", "repvgg_a0", "xception41", "vovnet39a")
_TIMM += ("legacy_xception", "inception_v4", "mobilenetv4_conv_small", "regnety_002", "tf_mobilenetv3_small_100")
NETWORKS = (
    *(f"ours/{name}" for name in models.arch_names()),
    *(f"torchvision/{name}" for name in _TORCHVISION),
    *(f"timm/{name}" for name in _TIMM),
    *_ATTENTION,
)
_SIDE = 128  # of images for torchvision's and timm's networks: their smallest maps are 4 x 4
# The auxiliary classifier, and the table of positions, need their usual size; names of others end in theirs.
_SIDES = {"torchvision/inception_v3": 299, "torchvision/vit_b_16": 224}
_CLASSES = 10
_BATCH, _ROUNDS = 16, 9  # of the timing


def measure(name: str) -> dict[str, Any]:
    """Records one network, verifies the graph, and times it where there is a linen model.

    Args:
      name: one of `NETWORKS`, or another 'torchvision/...' or 'timm/...'.

    Returns:
      What the record holds.
    """
    import torch

    module, size, spec = _module(name)
    with tempfile.TemporaryDirectory() as folder:
        result = record.record(module, record.fixed_images((2, 3, size, size)))
        record.write_graph(folder, record.export(module, size, 3), result, {"initial": False})
        recorded = graph.read(folder)
        opened = checkpoints.open_checkpoint(folder, needs_normalization=False)
        verified = verify.verify(folder)
    operations = Counter(node["op"] for node in recorded.description["nodes"])
    variables = naming.to_variables(opened.state, opened.build())
    found = {
        "network": name,
        "image_size": size,
        "parameters": models.count_parameters(variables),
        "batch_norms": models.count_batch_norms(variables),
        "nodes": sum(operations.values()),
        "operations": dict(operations.most_common()),
        "errors": {
            "logits": _worst(verified, "logits"),
            "moments": _worst(verified, " input "),
            "gradient of cross-entropy": _worst(verified, "cross_entropy"),
            "gradient of moments": _worst(verified, "batch_norm"),
        },
        "round_trip": _worst(verified, "round trip"),
        "versions": {package: importlib.metadata.version(package) for package in _packages(name)},
        "torch_threads": torch.get_num_threads(),
    }
    if spec is not None:
        found["seconds"] = _times(opened.build(), models.build(spec), variables)
    return found


def _packages(name: str) -> tuple[str, ...]:
    theirs = {"ours": (), "torchvision": ("torchvision",), "timm": ("timm",)}
    return ("jax", "torch", *theirs[name.partition("/")[0]])


def _worst(verified: verify.Report, part: str) -> float:
    return max((check.error for check in verified.checks if part in check.name), default=0.0)


def _module(name: str) -> tuple[Any, int, NetworkSpec | None]:
    """Returns a seeded module in evaluation mode, the side of its images, and its linen model's spec if it has one."""
    import torch

    torch.manual_seed(0)
    source, _, kind = name.partition("/")
    if source == "ours":
        spec = NetworkSpec(kind, _CLASSES, models.usual_image_size(kind))
        module, size = classifiers.twin(spec), spec.image_size
    else:
        spec, module, size = None, constructed(name, _CLASSES), side(name)
    if name in _ATTENTION:
        seed_constants(module)
    seed_norms(module, size)
    return module, size, spec


def constructed(name: str, classes: int) -> Any:
    """Constructs a network of torchvision or timm, without pretrained weights."""
    source, _, kind = name.partition("/")
    if source == "timm":
        return importlib.import_module("timm").create_model(kind, num_classes=classes)
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if kind.startswith(("deeplabv3", "fcn", "lraspp")):
        options["weights_backbone"] = None
    elif kind in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return importlib.import_module("torchvision").models.get_model(kind, **options)


def side(name: str) -> int:
    """Returns the side of a network's images in pixels."""
    usual = re.search(r"_(\d{3})$", name)
    return _SIDES.get(name, int(usual[1]) if usual else _SIDE)


def seed_constants(module: Any) -> None:
    """Leaves no parameter that is constant at first, such as a LayerNorm's, or a factor of 1e-6 that hides a block."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                zero = parameter.max() == 0
                parameter.normal_(0, 0.05) if zero else parameter.uniform_(0.5, 1.5)


def norms(module: Any) -> list[Any]:
    """Returns the BatchNorms of a module."""
    import torch

    return [layer for layer in module.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]


def seed_norms(module: Any, size: int) -> None:
    """Leaves no initial value in a BatchNorm, so that a swapped one shows; their statistics are those of noise."""
    import torch

    with torch.no_grad():
        for norm in norms(module):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    calibrate(module, size)


def calibrate(module: Any, size: int) -> None:
    """Gives every BatchNorm the statistics of noise, the mean over two batches, and leaves evaluation mode on."""
    import torch

    momenta = [norm.momentum for norm in norms(module)]
    for norm in norms(module):
        norm.momentum = None
    with torch.no_grad():
        module.train()
        for _ in range(2):
            module(torch.randn(8, 3, size, size))
    for norm, momentum in zip(norms(module), momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def _times(ours: Network, linen: Network, variables: Any) -> dict[str, float]:
    """Returns the median seconds of logits, moments and the image gradient of both, in turns."""
    images = jax.random.normal(jax.random.key(0), (_BATCH, *linen.spec.input_shape))

    def program(network: Network) -> Callable[[], Any]:
        def loss(images, variables):
            out = network.apply(variables, images, moments=True)
            moments = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(out.moments))
            return jax.nn.logsumexp(out.logits, -1).sum() + moments

        run = jax.jit(jax.value_and_grad(loss))
        return lambda: jax.block_until_ready(run(images, variables))

    programs = {"graph": program(ours), "linen": program(linen)}
    for run in programs.values():
        run()
    rounds = [{name: seconds(run) for name, run in programs.items()} for _ in range(_ROUNDS)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in programs}
    ratio = statistics.median(times["graph"] / times["linen"] for times in rounds)
    return medians | {"ratio": ratio, "batch": _BATCH, "rounds": _ROUNDS}


def write_record(name: str, folder: Path = RESULTS) -> None:
    """Measures a network and keeps its record."""
    folder.mkdir(parents=True, exist_ok=True)
    _file(name, folder).write_text(json.dumps(measure(name), indent=1) + "\n")


def _file(name: str, folder: Path = RESULTS) -> Path:
    return folder / f"{name.replace('/', '-')}.json"


def table(records: list[dict[str, Any]]) -> str:
    """Formats the records in Markdown, one row each."""
    head = (
        "network",
        "side",
        "nodes",
        "kinds",
        "logits",
        "moments",
        "gradient",
        "moments' gradient",
        "time / linen",
    )
    rows = []
    for found in records:
        times = found.get("seconds")
        cells = [
            found["network"],
            found["image_size"],
            found["nodes"],
            len(found["operations"]),
            *(
                f"{error:.0e}" if found["batch_norms"] or "moments" not in kind else ""
                for kind, error in found["errors"].items()
            ),
            f"{times['ratio']:.2f}" if times else "",
        ]
        rows.append(cells)
    return markdown.table(head, rows)


def page(text: str) -> str:
    """Returns a document with the table of all records, in the order of `NETWORKS`, between its marks."""
    paths = map(_file, NETWORKS)
    return markdown.insert(text, table([json.loads(path.read_text()) for path in paths if path.exists()]))


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", help="by default all that have no record yet")
    parser.add_argument("--table", action="store_true", help="write the table of the records")
    args = parser.parse_args()
    if args.table:
        TABLE.write_text(page(TABLE.read_text()))
        return
    for name in args.networks or [name for name in NETWORKS if not _file(name).exists()]:
        process = multiprocessing.get_context("spawn").Process(target=write_record, args=(name,))
        process.start()
        process.join()
        print(f"{name}: {'recorded' if process.exitcode == 0 else 'FAILED'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
