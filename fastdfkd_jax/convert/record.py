"""Records what a PyTorch network computes, so that a conversion can be verified where torch is not.

    python record.py file.py:factory --checkpoint teacher.pth --out reference.npz
    python record.py file.py:factory --checkpoint teacher.pth --graph folder
    python record.py program.pt2 --trust --graph folder

This file needs only torch and numpy and may be copied alone. `factory` is a function (or class) in `file.py` that
returns the module when called without arguments. `program.pt2` is a file from `torch.export.save`. The checkpoint is
read with `weights_only=True`. Both file.py and program.pt2 are code, and recording them runs it.

The network runs in evaluation mode on fixed noise as network input. Recorded are the logits, the mean and biased
variance of every BatchNorm's input, the gradients of two losses with respect to the image, and the state dictionary.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import pathlib
import secrets
import signal
import sys
import traceback
import warnings
from unittest import mock

import numpy as np

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
FORMAT, GRAPH, WEIGHTS, REFERENCE = 3, "graph.json", "weights.safetensors", "reference.npz"  # of a recorded folder
BATCH_NORMS = ("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default")
DROPOUTS = {"aten.dropout": False, "aten.feature_dropout": True}  # whether whole channels are dropped
CHECKPOINT_OPTIONS = ("use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state")
LOGITS = ("logits", "out")  # usual names of the logits among several outputs
MAX_MESSAGE = 299  # characters, unless --verbose
_LIBRARIES = []  # kept, because garbage collection of a library removes its operations


class RecordError(Exception):
    """An input error, with a message of one line."""


def load_factory(target):
    """Calls `factory` of 'file.py:factory' with seed 0 and returns its torch.nn.Module."""
    import torch

    path, separator, name = target.rpartition(":")
    if not separator or not os.path.isfile(path):
        raise RecordError(f"expected FILE.py:FACTORY that names an existing file, found {target!r}")
    spec = importlib.util.spec_from_file_location("user_network", path)
    if spec is None or spec.loader is None:
        raise RecordError(f"{path} is not a Python file: give FILE.py:FACTORY")
    source = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # the file may import its neighbours
    try:
        spec.loader.exec_module(source)
        if not hasattr(source, name):
            raise RecordError(f"{path} has no {name!r}: give the name of a function or class in it")
        torch.manual_seed(0)
        module = getattr(source, name)()
    except RecordError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise RecordError(f"{target} failed: {type(error).__name__}: {_one_line(error)} (line {line})") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, torch.nn.Module):
        raise RecordError(f"{target} gave a {type(module).__name__}, expected a torch.nn.Module")
    return module


def read_checkpoint(path):
    """Returns the tensors of a PyTorch file, bare or in a container; only tensors are unpickled."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise RecordError(f"{path} is not a state dictionary that loads with weights_only=True: {reason}") from error
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise RecordError(f"{path} is not a state dictionary: expected tensors by name, bare or in a container")
    return {str(name): value for name, value in content.items()}


def load_weights(module, state):
    """Loads a state dictionary with strict=True; a wrapper's prefix such as 'module.' may differ."""
    own = list(module.state_dict())
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not all(name.startswith(prefix) for name in own):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    try:
        # A plain dictionary has no version, so the batch counters may be absent.
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise RecordError(f"the checkpoint does not fit the PyTorch module: {_one_line(error)}") from error


def fixed_images(shape, seed=0):
    """Returns standard normal noise of this shape, f32, as network input for any normalisation."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def record(module, images, output=None, classes=None):
    """Records the module's outputs for NCHW images in evaluation mode.

    Args:
      module: a torch.nn.Module, or the module of an exported program.
      images: f32[B, C, H, W].
      output: name or position of the logits among several outputs (`answer`).
      classes: number of classes, if known and no output is chosen.

    Returns:
      NumPy arrays: 'images', 'labels', 'logits', 'moments/NAME/mean' and '/var' of every BatchNorm,
      'state/NAME', and 'gradient/cross_entropy' and 'gradient/batch_norm' of `losses`. The gradients are in double
      precision, because in single precision rounding decides the ReLUs nearest to their kink. Labels are
      [batch], or [batch, height, width] if the logits are a map.
    """
    import torch

    module = (module if _is_exported(module) else module.eval()).float()
    result = {"images": images}
    if others := [name for name, value in module.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise RecordError(f"the state dictionary has entries that are not tensors: {', '.join(others)}")
    result |= {f"state/{name}": _to_numpy(value) for name, value in module.state_dict().items()}
    with torch.no_grad():
        logits, moments, _ = _run(module, torch.from_numpy(np.array(images)), output, classes)
    labels = _labels(logits.shape)
    result |= {"labels": labels.numpy(), "logits": _to_numpy(logits)}
    for name, (mean, var) in moments.items():
        result |= {f"moments/{name}/mean": _to_numpy(mean), f"moments/{name}/var": _to_numpy(var)}

    x = torch.from_numpy(np.array(images)).double().requires_grad_()
    logits, moments, statistics = _run(module.double(), x, output, classes)
    try:
        for name, loss in losses(logits, labels, moments, statistics).items():
            gradient = torch.autograd.grad(loss, x, retain_graph=True)[0] if loss.requires_grad else 0 * x
            result[f"gradient/{name}"] = gradient.detach().numpy()
    except RuntimeError as error:
        raise RecordError(f"the module has no gradient with respect to the image: {_one_line(error)}") from error
    module.float()
    return result


def _labels(shape):
    """Returns a different class for every image and, in a map, for successive pixels."""
    import torch

    batch, classes, *size = shape
    labels = torch.arange(batch)
    for length in size:
        labels = labels[..., None] + torch.arange(length)
    return labels % classes


def _run(module, x, output, classes):
    """Returns the logits, and by BatchNorm the moments of its input and its running statistics."""
    moments, statistics = {}, {}

    def see(name, x, mean, var):
        x = x.clone()  # a later in-place operation must not change values that the gradient needs
        axes = [axis for axis in range(x.ndim) if axis != 1]
        moments[name] = (x.mean(axes), x.var(axes, unbiased=False))
        statistics[name] = (mean, var)

    try:
        with _bare():
            given = _run_exported(module, x, see) if _is_exported(module) else _run_watched(module, x, see)
    except Exception as error:
        shape = "x".join(map(str, x.shape))
        raise RecordError(f"the module fails on {x.dtype} images of {shape}: {_one_line(error)}") from error
    outputs = outputs_of(given)
    return outputs[answer(outputs, output, classes)], moments, statistics


@contextlib.contextmanager
def _bare():
    """Disables activation checkpointing, no_grad and autocast, which only save memory and time.

    Both gradients come from one pass, which checkpoints do not support, and belong to the exact function.
    """
    import torch
    import torch.utils.checkpoint

    def direct(function, *args, **options):
        return function(*args, **{key: value for key, value in options.items() if key not in CHECKPOINT_OPTIONS})

    original = torch.utils.checkpoint.checkpoint
    rooms = [(room, list(getattr(room, "__dict__", {}).items())) for room in list(sys.modules.values())]
    with contextlib.ExitStack() as stack:
        for room, name in [(room, name) for room, content in rooms for name, value in content if value is original]:
            stack.enter_context(mock.patch.object(room, name, direct))
        for kind in (torch.no_grad, torch.inference_mode, torch.autocast):
            stack.enter_context(mock.patch.object(kind, "__enter__", lambda self: self))
            stack.enter_context(mock.patch.object(kind, "__exit__", return_value=None))
        yield


def outputs_of(given, place=""):
    """Returns a module's outputs by place in tuples, lists and dictionaries: 'logits', '1', 'auxiliary.0'."""
    if isinstance(given, dict):
        items = given.items()
    elif isinstance(given, tuple | list):
        items = zip(getattr(given, "_fields", range(len(given))), given, strict=True)
    else:
        return {place: given}
    return {
        name: value for key, inner in items for name, value in outputs_of(inner, f"{place}.{key}".strip(".")).items()
    }


def answer(outputs, wanted=None, classes=None):
    """Returns the output that holds the logits.

    Args:
      outputs: tensors by place (`outputs_of`).
      wanted: a place, or its position; by default the only output of a classifier's shape, or the one of `LOGITS`.
      classes: of several outputs, the first with this many classes is taken.

    Raises:
      RecordError: there is none, or there are several.
    """
    import torch

    fitting = [n for n, t in outputs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    fitting = [name for name in fitting if outputs[name].ndim in (2, 4)]
    listed = ", ".join(f"{name or '0'} {_shape(value)}" for name, value in outputs.items())
    if wanted is not None:
        position = int(wanted) if wanted.isdecimal() else len(outputs)
        place = wanted if wanted in outputs else dict(enumerate(outputs)).get(position, "none")
        if place not in fitting:
            raise RecordError(f"--output must name logits [batch, classes] or [batch, classes, h, w] among: {listed}")
        return place
    if not fitting:
        raise RecordError(f"expected logits [batch, classes] or [batch, classes, h, w], the module gives {listed}")
    usual = [name for name in fitting if name in LOGITS]
    if classes:
        return next((name for name in usual + fitting if outputs[name].shape[1] == classes), fitting[0])
    if len(fitting) > 1 and len(usual) != 1:
        raise RecordError(f"several outputs may be logits: choose one with --output, by name or position, of {listed}")
    return usual[0] if usual else fitting[0]


def _shape(value):
    return f"[batch{''.join(f', {n}' for n in value.shape[1:])}]" if hasattr(value, "shape") else type(value).__name__


def _run_watched(module, x, see):
    """Runs a module whose BatchNorms are modules, and calls `see(name, input, mean, var)` for each."""
    import torch

    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:

            def hook(layer, inputs, name=name):
                see(name, inputs[0], layer.running_mean, layer.running_var)

            handles.append(layer.register_forward_pre_hook(hook))
    try:
        return module(x)
    finally:
        for handle in handles:
            handle.remove()


def _run_exported(module, x, see):
    """Runs an exported program's module, where BatchNorms are calls; otherwise does the same as `_run_watched`."""
    import torch

    class Watched(torch.fx.Interpreter):
        def call_module(self, target, args, kwargs):
            return None  # guards of shapes and types would fail in double precision

        def run_node(self, node):
            if str(node.target) in BATCH_NORMS and getattr(node.args[3], "op", None) in ("get_attr", "placeholder"):
                image, mean, var = (node.args[i] for i in (0, 3, 4))
                see(mean.target.removesuffix(".running_mean"), *(self.env[n] for n in (image, mean, var)))
            return super().run_node(node)

    return Watched(module).run(x)


def _is_exported(module):
    import torch

    return isinstance(module, torch.fx.GraphModule)


def losses(logits, labels, moments, statistics):
    """Returns mean cross-entropy, and the sum over BatchNorms of ||mean - running|| + ||var - running||."""
    import torch

    distance = torch.zeros((), dtype=logits.dtype)
    for name, pair in moments.items():
        for batch, running in zip(pair, statistics[name], strict=True):
            distance = distance + torch.linalg.vector_norm(batch - running)
    return {"cross_entropy": torch.nn.functional.cross_entropy(logits, labels), "batch_norm": distance}


def export(module, image_size, channels):
    """Exports the module as ATen operations for any batch size (`torch.export`, evaluation mode)."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise RecordError("the module is TorchScript, which cannot be exported: give the Python module it came from")
    example = torch.zeros(2, channels, image_size, image_size)
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with _quiet():
            return torch.export.export(module.eval().float(), (example,), dynamic_shapes=shapes)
    except Exception as error:
        raise RecordError(f"torch.export cannot export the module, change what it names: {_one_line(error)}") from error


@contextlib.contextmanager
def _quiet():
    """Suppresses PyTorch's warnings about itself, and the programs that it prints before refusing one."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def load_program(path, trust):
    """Loads a program that `torch.export.save` wrote. Unpickling it is unrestricted and runs any code in it.

    Args:
      path: path of the program.
      trust: whether the user has allowed it to run.
    """
    import torch

    if not os.path.isfile(path):
        raise RecordError(f"there is no program {path}: check the path")
    if not trust:
        raise RecordError(f"{path} is code: loading a .pt2 executes it; add --trust if you trust its origin")
    try:
        with _quiet():
            program = torch.export.load(path)
    except Exception as error:
        raise RecordError(f"{path} is not a program that torch.export.save wrote: {_one_line(error)}") from error
    norms = [node for node in program.graph.nodes if str(node.target) == BATCH_NORMS[0]]
    trains = any(node.args[5] and node.args[3] is not None for node in norms)  # without statistics this is always set
    if trains or program.graph_signature.buffers_to_mutate:
        raise RecordError(f"{path} was exported in training mode: export module.eval()")
    batch, *_ = _image_shape(program)
    if isinstance(batch, int):
        raise RecordError(
            f"{path} takes batches of {batch} only: export with dynamic_shapes=({{0: torch.export.Dim('batch')}},)"
        )
    return program


def _image_shape(program):
    """Returns [batch, channels, height, width] of a program's only input; sizes that may vary are not ints."""
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise RecordError(f"the module takes {len(inputs)} inputs: expected images alone")
    shape = inputs[0].meta["val"].shape
    if len(shape) != 4:
        raise RecordError(f"the module's input has {len(shape)} axes: expected images [batch, channels, height, width]")
    return tuple(shape)


def describe(program, output=None):
    """Describes a program as plain data.

    Args:
      program: the result of `export`.
        output: as in `record`.

      Returns:
        A description for JSON: 'nodes', each with its operation and all arguments of the operation's schema by name;
        'entries', the names of the weights that nodes use, by placeholder; 'parameters', those that train; 'shapes' of
        all weights by name; 'state', the names in the state dictionary; 'ties', from each entry that shares another's
        tensor to the other's name; and the names of the 'images' and of the 'output'. Second, the weights by name: the
        state dictionary and other constants.
    """
    try:
        with _quiet():
            program = _marked(program).run_decompositions({})
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"the exported program cannot be decomposed: {_one_line(error)}") from error
    signature = program.graph_signature
    if mutated := signature.buffers_to_mutate:
        raise RecordError(f"the module changes {', '.join(mutated.values())} in evaluation mode: expected a function")
    entries = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    nodes, logits = [], None
    for node in program.graph.nodes:
        if node.op == "output":
            logits = _output_node(program, node.args[0], output)
        elif node.op == "call_function" and not str(node.target).startswith("aten._assert"):
            nodes.append({"name": node.name, "op": _operation(node.target), "args": _arguments(node)})
        elif node.op not in ("placeholder", "call_function"):
            raise RecordError(f"the exported graph has a node of kind {node.op!r}, expected calls only")
    nodes = _needed(nodes, logits)
    used = {name for node in nodes for name in references(node["args"])}
    entries = {name: entry for name, entry in entries.items() if name in used}
    state = {name: _to_numpy(value) for name, value in program.state_dict.items()}
    constants = {n: _to_numpy(program.constants[n]) for n in entries.values() if n not in state}
    graph = {
        "format": FORMAT,
        "images": signature.user_inputs[0],
        "entries": entries,
        "parameters": sorted(set(signature.inputs_to_parameters.values())),
        "shapes": {name: list(array.shape) for name, array in (state | constants).items()},
        "state": list(state),
        "ties": _ties(program.state_dict, entries.values()),
        "nodes": nodes,
        "output": logits,
    }
    return graph, state | constants


def _marked(program):
    """Renames dropouts to a name that survives decomposition; otherwise they would leave no trace."""
    import torch

    if not hasattr(torch.ops.fastdfkd_jax, "dropout"):
        library = torch.library.Library("fastdfkd_jax", "DEF")
        library.define("dropout(Tensor input, float p, bool channels) -> Tensor")
        library.impl("dropout", lambda input, p, channels: input.clone(), "CompositeExplicitAutograd")
        _LIBRARIES.append(library)
    for node in program.graph.nodes:
        kind = str(node.target).removesuffix(".default").removesuffix("_")
        if kind in DROPOUTS:
            if node.args[2]:
                raise RecordError(
                    "the module drops values in evaluation mode, as F.dropout(x) does: pass self.training"
                )
            node.args = (node.args[0], node.args[1], DROPOUTS[kind])
            node.target = torch.ops.fastdfkd_jax.dropout.default
    return program


def _ties(state, used):
    """Returns the entries that share another entry's tensor; the other is one that is used, if there is one."""
    used, owners, ties = set(used), {}, {}
    for name in sorted(state, key=lambda name: name not in used):
        value = state[name]
        owner = owners.setdefault((value.data_ptr(), tuple(value.shape), value.stride()), name)
        if owner != name and value.numel():
            ties[name] = owner
    return ties


def _needed(nodes, logits):
    """Returns the nodes that lead to the logits or a BatchNorm; others, such as an auxiliary loss, may be unknown."""
    wanted, kept = {logits}, []
    for node in reversed(nodes):
        if node["name"] in wanted or node["op"] in BATCH_NORMS:
            wanted |= references(node["args"])
            kept.append(node)
    return kept[::-1]


def _output_node(program, leaves, wanted):
    """Returns the name of the node with the logits; leaves are the program's flattened outputs."""
    from torch.utils import _pytree

    nodes = outputs_of(_pytree.tree_unflatten(list(leaves), program.call_spec.out_spec))
    tensors = {place: getattr(node, "meta", {}).get("val") for place, node in nodes.items()}
    return nodes[answer(tensors, wanted)].name


def _operation(target):
    return f"operator.{target.__name__}" if not hasattr(target, "_schema") else str(target)


def _arguments(node):
    """Returns every argument by name, including defaults; for Python operators by position."""
    if not hasattr(node.target, "_schema"):
        return {str(i): _encoded(value) for i, value in enumerate(node.args)}
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: _encoded(given.get(a.name, a.default_value)) for a in node.target._schema.arguments}


def _encoded(value):
    import torch

    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    return {"other": str(value)}  # a dtype, device or layout, on which a network's values do not depend here


def references(argument):
    """Returns the names of the nodes that an encoded argument refers to."""
    if isinstance(argument, dict):
        return {argument["node"]} if "node" in argument else set().union(*map(references, argument.values()))
    return set().union(*map(references, argument)) if isinstance(argument, list) else set()


def _to_numpy(value):
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy().copy()


def _one_line(error):
    return " ".join(str(error).split())


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise RecordError(f"{message}; see {self.prog} --help")


def _numbers(text):
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}") from None


def _count(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _parse(arguments, program):
    parser = _Parser(prog=program, description="Record what a PyTorch network computes.")
    path = os.path.expanduser
    parser.add_argument(
        "network",
        metavar="FILE.py:FACTORY | PROGRAM.pt2",
        type=path,
        help="function that returns the module, or a program; both are executed",
    )
    parser.add_argument("--checkpoint", type=path, help="weights to load (default: the factory's own)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=path, help="the .npz to write")
    what.add_argument("--graph", type=path, help="the folder for graph.json, weights.safetensors and reference.npz")
    parser.add_argument("--trust", action="store_true", help="load the .pt2, which executes any code in it")
    parser.add_argument("--output", help="output with the logits, by name or position, if there are several")
    parser.add_argument("--image-size", type=_count, help="side in pixels (default: the network's, else 32)")
    parser.add_argument("--channels", type=_count, help="channels of the images (default: the first layer's)")
    parser.add_argument("--batch", type=_count, default=2, help="recorded images (default: %(default)s)")
    parser.add_argument("--mean", type=_numbers, help="mean per channel of images in [0, 1], a,b,c; kept in the graph")
    parser.add_argument("--std", type=_numbers, help="standard deviation per channel of images in [0, 1]")
    parser.add_argument("--verbose", action="store_true", help="print errors in full")
    return parser.parse_args(arguments)


def _untouched(module):
    """Returns True if a module's BatchNorms have seen no batch, so that its weights are the initial ones."""
    moved = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    ends = ((name.rpartition(".")[2], value) for name, value in module.state_dict().items())
    return not _is_exported(module) and all((value == moved[end]).all() for end, value in ends if end in moved)


def unwrap(module):
    """Returns the module inside DataParallel, DistributedDataParallel and torch.compile."""
    import torch

    wrappers = torch.nn.parallel.DataParallel, torch.nn.parallel.DistributedDataParallel
    while isinstance(module, wrappers) or hasattr(module, "_orig_mod"):
        module = getattr(module, "module" if isinstance(module, wrappers) else "_orig_mod")
    return module


def fold(module):
    """Replaces computed weights, as in weight and spectral norm, by their values in evaluation."""
    from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm

    older = {"WeightNorm": remove_weight_norm, "SpectralNorm": remove_spectral_norm}
    for layer in list(module.eval().modules()):
        if parametrize.is_parametrized(layer):
            for name in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        for hook in list(layer._forward_pre_hooks.values()):
            if remove := older.get(type(hook).__name__):
                remove(layer, hook.name)
    return module


def images_of(module, channels=None, size=None, batch=2):
    """Returns channels and side of a module's images; lazy layers get their shapes.

    Args:
      module: the module, which is run on zeros in evaluation mode.
      channels: by default the first convolution's, else 3, else 1.
      size: by default from 'default_cfg' (timm) or 'image_size', else 32.
      batch: number of images.
    """
    import torch

    layer = next((layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)), None)
    told = getattr(module, "default_cfg", None)
    told = told.get("input_size") if isinstance(told, dict) else getattr(module, "image_size", None)
    told = told[-1] if isinstance(told, tuple | list) and told else told
    size = size or (told if isinstance(told, int) and told > 0 else 32)
    counts = [channels] if channels else list(dict.fromkeys([getattr(layer, "in_channels", 0) or 3, 3, 1]))
    errors = []
    for count in counts:
        try:
            with torch.no_grad():
                module.eval().float()(torch.zeros(batch, count, size, size))
            return count, size
        except Exception as error:
            errors.append(error)
    raise RecordError(
        f"the module fails on {batch} images of {counts[0]}x{size}x{size} (set others with --batch, --channels "
        f"and --image-size): {_one_line(errors[0])}"
    ) from errors[0]


def _prepare(module, graph, channels, image_size, batch):
    """Returns the same as `_open`, for a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = fold(module) if graph else module
        channels, size = images_of(module, channels, image_size, batch)
    return module, channels, size, export(module, size, channels) if graph else None


def record_graph(module, folder, channels=None, image_size=None, normalisation=None, initial=False):
    """Records a module of this process as a graph.

    Args:
      module: a torch.nn.Module; computed weights, as in weight norm, are folded in place.
      folder: the folder to write.
      channels, image_size: those of its images; by default from `images_of`.
      normalisation: {'mean': [...], 'std': [...]} of images in [0, 1], if known.
      initial: whether the weights are its constructor's, so that a student draws others from the same distribution.

    Raises:
      RecordError: the module cannot be recorded.
    """
    module, channels, size, program = _prepare(unwrap(module), True, channels, image_size, 2)
    known = dict(normalisation or {})
    _check_normalisation(known, channels)
    result = record(module, fixed_images((2, channels, size, size)))
    write_graph(folder, program, result, {**known, "initial": initial and _untouched(module)})
    _warn_of_probabilities(result["logits"])


def _open(options):
    """Returns the module to run, channels and side of its images, and its program if a graph is recorded."""
    if not options.network.endswith(".pt2"):
        module = unwrap(load_factory(options.network))
        if options.checkpoint:
            load_weights(module, read_checkpoint(options.checkpoint))
        return _prepare(module, options.graph, options.channels, options.image_size, options.batch)
    if options.checkpoint:
        raise RecordError(f"{options.network} has its weights: leave --checkpoint out")
    program = load_program(options.network, options.trust)
    _, *image = _image_shape(program)
    wanted = (options.channels, options.image_size, options.image_size)
    shape = [own if isinstance(own, int) else given for own, given in zip(image, wanted, strict=True)]
    if None in shape:
        raise RecordError(f"{options.network} takes images of any size: give --image-size (and --channels)")
    if shape[1] != shape[2] or any(given not in (None, own) for own, given in zip(shape, wanted, strict=True)):
        raise RecordError(f"{options.network} takes images of {'x'.join(map(str, shape))}: expected squares as given")
    return program.module(), shape[0], shape[1], program if options.graph else None


def _write(path, arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    _write_bytes(path, content.getvalue())


def write_graph(folder, program, result, known, output=None):
    """Writes the folder, with graph.json last. If fastdfkd_jax is installed, it must know every operation.

    Args:
      folder: the folder to write.
      program: the result of `export`.
      result: the result of `record`.
      known: 'initial', whether the weights are a constructor's initial ones, and if known 'mean' and 'std' of images.
      output: as in `record`.

    Returns:
      The content of graph.json.
    """
    graph, weights = describe(program, output)
    logits = result["logits"].shape
    *_, channels, _, image_size = result["images"].shape
    graph |= {"classes": logits[1], "channels": channels, "image_size": image_size, **known}
    graph["task"] = "classification" if len(logits) == 2 else "segmentation"
    _require_known(folder, graph, weights)
    os.makedirs(folder, exist_ok=True)
    kept = {name: array for name, array in result.items() if not name.startswith("state/")}
    _write(os.path.join(folder, REFERENCE), kept)
    _write_bytes(os.path.join(folder, WEIGHTS), _safetensors(weights))
    _write_bytes(os.path.join(folder, GRAPH), json.dumps(graph, indent=1).encode())
    return graph


def _require_known(folder, graph, weights):
    """Refuses graphs that every later command would refuse; if this file is used alone, those commands do."""
    try:
        from fastdfkd_jax.convert.graph import read_graph
        from fastdfkd_jax.errors import UserError
    except ImportError:
        return
    try:
        read_graph.check(read_graph.Recorded(pathlib.Path(folder), json.loads(json.dumps(graph)), weights))
    except UserError as error:
        raise RecordError(str(error)) from error


def _safetensors(state):
    """Writes the safetensors format directly, because this script may run with only torch and numpy."""
    header, offset = {}, 0
    for name, array in state.items():
        kind = {"f": "F", "i": "I", "u": "U", "b": "BOOL"}[array.dtype.kind]
        kind += "" if kind == "BOOL" else str(8 * array.itemsize)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in state.values())


def _write_bytes(path, content):
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:  # a new file, so that no existing link is followed
            file.write(content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _warn_of_probabilities(logits):
    rows = logits.astype(np.float64)
    if (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3):
        print(
            "warning: the output has the form of probabilities (no entry is negative, every row sums to one), expected "
            "logits: return what comes before the softmax, or choose another output with --output",
            file=sys.stderr,
        )


def _check_normalisation(known, channels):
    for key, numbers in known.items():
        if len(numbers) != channels:
            raise RecordError(f"--{key} has {len(numbers)} numbers, expected {channels}: give one for each channel")
    if min(known.get("std", [1])) <= 0:
        raise RecordError(f"--std must be positive, found {known['std']}")


def _run_command(options):
    """Records as requested; returns the line to print."""
    known = {key: value for key in ("mean", "std") if (value := getattr(options, key))}
    module, channels, size, program = _open(options)
    _check_normalisation(known, channels)
    result = record(module, fixed_images((options.batch, channels, size, size)), options.output)
    if program is None:
        _write(options.out, result)
        nodes = ""
    else:
        known["initial"] = not options.checkpoint and _untouched(module)
        nodes = f"{len(write_graph(options.graph, program, result, known, options.output)['nodes'])} nodes, "
    _warn_of_probabilities(result["logits"])
    norms = sum(name.startswith("moments/") and name.endswith("/mean") for name in result)
    shape = f"images of {channels}x{size}x{size}"
    return f"{options.graph or options.out}: {nodes}{result['logits'].shape[1]} classes, {norms} BatchNorms, {shape}"


def main(arguments=None, program=None):
    """Runs the command under this name; returns its exit status, 2 if the input is wrong."""
    verbose = False
    try:
        options = _parse(arguments, program)
        verbose = options.verbose
        print(_run_command(options))
    except (RecordError, OSError, MemoryError) as error:
        _complain(_one_line(error) or "not enough memory: choose a smaller --image-size or --batch", verbose)
        return 2
    except KeyboardInterrupt:
        _complain("stopped by a signal: nothing was recorded", verbose)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _complain(f"unexpected {type(error).__name__}: {_one_line(error)} (--verbose prints where)", verbose)
        return 1
    return 0


def _complain(message, verbose):
    """Prints an error on one line; the end of a long one is cut, because PyTorch names the failure first."""
    message = f"error: {message}"
    if not verbose and len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE - 3]}..."
    print(message, file=sys.stderr)


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):  # end as with Ctrl-C, which removes half-written files
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), signal.default_int_handler)
    sys.exit(main())
