"""Records what a PyTorch network computes, so that a conversion can be verified where torch is not.

    python record.py file.py:factory --checkpoint teacher.pth --out reference.npz
    python record.py file.py:factory --checkpoint teacher.pth --graph folder
    python record.py program.pt2 --graph folder

This file needs only torch and numpy and may be copied alone. `factory` is a function (or class) in
`file.py` that gives the module when called without arguments. Recorded in evaluation mode, on fixed noise as network
input: the logits, the mean and biased variance of every BatchNorm's input, the gradients of two losses
with respect to the image, and the state dictionary. `program.pt2` is what `torch.export.save` wrote. The
checkpoint is read with `weights_only=True`; the file.py itself is executed, so name only code that you trust.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import os
import sys
import traceback
import warnings

import numpy as np

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
FORMAT, GRAPH, WEIGHTS, REFERENCE = 3, "graph.json", "weights.safetensors", "reference.npz"  # of a recorded folder
BATCH_NORMS = ("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default")
DROPOUTS = {"aten.dropout": False, "aten.feature_dropout": True}  # whether whole channels are dropped
_LIBRARIES = []  # kept, because a library that is collected takes its operations with it


class RecordError(Exception):
    """A mistake of the input; the message is one line."""


def load_factory(target):
    """Calls `factory` of 'file.py:factory' and returns its torch.nn.Module, drawn with seed 0."""
    import torch

    path, separator, name = target.rpartition(":")
    if not separator or not os.path.isfile(path):
        raise RecordError(f"expected FILE.py:FACTORY that names an existing file, found {target!r}")
    spec = importlib.util.spec_from_file_location("user_network", path)
    if spec is None or spec.loader is None:
        raise RecordError(f"{path} is not a Python file")
    source = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # the file may import its neighbours
    try:
        spec.loader.exec_module(source)
        if not hasattr(source, name):
            raise RecordError(f"{path} has no {name!r}")
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
    """The tensors of a PyTorch file, bare or in a container; nothing but tensors is ever unpickled."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(error)[-300:]}"
        raise RecordError(f"{path} cannot be loaded with weights_only=True: {reason}") from error
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
        # A plain dictionary has no version, which lets the counters of batches be absent.
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise RecordError(f"the checkpoint does not fit the PyTorch module: {_one_line(error)}") from error


def fixed_images(shape, seed=0):
    """Standard normal noise of this shape, f32: network input, whatever the normalisation."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def record(module, images):
    """What the module computes from NCHW images in evaluation mode.

    Returns:
      NumPy arrays: 'images', 'labels', 'logits', 'moments/NAME/mean' and '/var' of every BatchNorm,
      'state/NAME', and 'gradient/cross_entropy' and 'gradient/batch_norm' of `losses` in double
      precision, because in single precision rounding decides the ReLUs nearest to their kink. Labels are
      [batch], or [batch, height, width] where the logits are a map.
    """
    import torch

    module = (module if _is_exported(module) else module.eval()).float()
    result = {"images": images}
    if others := [name for name, value in module.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise RecordError(f"the state dictionary has entries that are no tensors: {', '.join(others)}")
    result |= {f"state/{name}": _to_numpy(value) for name, value in module.state_dict().items()}
    with torch.no_grad():
        logits, moments, _ = _run(module, torch.from_numpy(np.array(images)))
    labels = _labels(logits.shape)
    result |= {"labels": labels.numpy(), "logits": _to_numpy(logits)}
    for name, (mean, var) in moments.items():
        result |= {f"moments/{name}/mean": _to_numpy(mean), f"moments/{name}/var": _to_numpy(var)}

    x = torch.from_numpy(np.array(images)).double().requires_grad_()
    logits, moments, statistics = _run(module.double(), x)
    for name, loss in losses(logits, labels, moments, statistics).items():
        gradient = torch.autograd.grad(loss, x, retain_graph=True)[0] if loss.requires_grad else 0 * x
        result[f"gradient/{name}"] = gradient.detach().numpy()
    module.float()
    return result


def _labels(shape):
    """Another class for every image, and in a map for every pixel from one to the next."""
    import torch

    batch, classes, *size = shape
    labels = torch.arange(batch)
    for length in size:
        labels = labels[..., None] + torch.arange(length)
    return labels % classes


def _run(module, x):
    """Logits, and by BatchNorm the moments of its input and its running statistics."""
    import torch

    moments, statistics = {}, {}

    def see(name, x, mean, var):
        x = x.clone()  # a later in-place operation must not reach what the gradient needs
        axes = [axis for axis in range(x.ndim) if axis != 1]
        moments[name] = (x.mean(axes), x.var(axes, unbiased=False))
        statistics[name] = (mean, var)

    try:
        logits = _run_exported(module, x, see) if _is_exported(module) else _run_watched(module, x, see)
    except Exception as error:
        shape = "x".join(map(str, x.shape))
        raise RecordError(f"the module fails on {x.dtype} images of {shape}: {_one_line(error)}") from error
    logits = next(iter(logits.values()), None) if isinstance(logits, dict) else logits
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    if not isinstance(logits, torch.Tensor) or logits.ndim not in (2, 4):
        raise RecordError("the module gives logits neither of shape [batch, classes] nor [batch, classes, h, w]")
    return logits, moments, statistics


def _run_watched(module, x, see):
    """Runs a module whose BatchNorms are modules; `see(name, input, mean, var)` is told of each."""
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
    """Runs an exported program's module, where BatchNorms are calls; otherwise as `_run_watched`."""
    import torch

    class Watched(torch.fx.Interpreter):
        def call_module(self, target, args, kwargs):
            return None  # guards of shapes and types, which double precision would not pass

        def run_node(self, node):
            if str(node.target) in BATCH_NORMS:
                image, mean, var = (node.args[i] for i in (0, 3, 4))
                see(mean.target.removesuffix(".running_mean"), *(self.env[n] for n in (image, mean, var)))
            return super().run_node(node)

    return Watched(module).run(x)


def _is_exported(module):
    import torch

    return isinstance(module, torch.fx.GraphModule)


def losses(logits, labels, moments, statistics):
    """Mean cross-entropy, and the sum over BatchNorms of ||mean - running|| + ||var - running||."""
    import torch

    distance = torch.zeros((), dtype=logits.dtype)
    for name, pair in moments.items():
        for batch, running in zip(pair, statistics[name], strict=True):
            distance = distance + torch.linalg.vector_norm(batch - running)
    return {"cross_entropy": torch.nn.functional.cross_entropy(logits, labels), "batch_norm": distance}


def export(module, image_size, channels):
    """The module's program of ATen operations for any number of images (`torch.export`, evaluation mode)."""
    import torch

    example = torch.zeros(2, channels, image_size, image_size)
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            return torch.export.export(module.eval().float(), (example,), dynamic_shapes=shapes)
    except Exception as error:
        raise RecordError(f"torch.export cannot export the module: {_one_line(error)[:500]}") from error


def load_program(path):
    """A program that `torch.export.save` wrote."""
    import torch

    if not os.path.isfile(path):
        raise RecordError(f"there is no program {path}: check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as error:
        raise RecordError(f"{path} is not a program that torch.export.save wrote: {_one_line(error)[:300]}") from error
    trains = any(str(node.target) == BATCH_NORMS[0] and node.args[5] for node in program.graph.nodes)
    if trains or program.graph_signature.buffers_to_mutate:
        raise RecordError(f"{path} was exported in training mode: export module.eval()")
    batch, *_ = _image_shape(program)
    if isinstance(batch, int):
        raise RecordError(
            f"{path} takes batches of {batch} only: export with dynamic_shapes=({{0: torch.export.Dim('batch')}},)"
        )
    return program


def _image_shape(program):
    """[batch, channels, height, width] of a program's only input; what may be of any size is no int."""
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise RecordError(f"the module takes {len(inputs)} inputs: expected images alone")
    shape = inputs[0].meta["val"].shape
    if len(shape) != 4:
        raise RecordError(f"the module's input has {len(shape)} axes: expected images [batch, channels, height, width]")
    return tuple(shape)


def describe(program):
    """A program as plain data.

    Returns:
      What JSON can hold: 'nodes', each with its operation and all arguments of the operation's schema by name;
      'entries', the names of the weights that nodes use by placeholder; 'parameters', those that train; 'shapes' of
      all weights by name; 'state', the names of the state dictionary; 'ties', of its entries that are another's tensor,
      to the other's name; the names of the 'images' and of the 'output'. And the weights by name: the state dictionary,
      and constants that are not in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = _marked(program).run_decompositions({})
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"the exported program cannot be decomposed: {_one_line(error)[:500]}") from error
    signature = program.graph_signature
    if mutated := signature.buffers_to_mutate:
        raise RecordError(f"the module changes {', '.join(mutated.values())} in evaluation mode: expected a function")
    entries = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    nodes, output = [], None
    for node in program.graph.nodes:
        if node.op == "output":
            output = _first_tensor(node.args[0])
        elif node.op == "call_function" and not str(node.target).startswith("aten._assert"):
            nodes.append({"name": node.name, "op": _operation(node.target), "args": _arguments(node)})
        elif node.op not in ("placeholder", "call_function"):
            raise RecordError(f"the exported graph has a node of kind {node.op!r}, expected calls only")
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
        "output": output,
    }
    return graph, state | constants


def _marked(program):
    """Dropouts under a name of their own, which decomposing leaves; as themselves they would leave no trace."""
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
    """Entries that are the tensor of another one; the other is one that is used, if any is."""
    used, owners, ties = set(used), {}, {}
    for name in sorted(state, key=lambda name: name not in used):
        value = state[name]
        owner = owners.setdefault((value.data_ptr(), tuple(value.shape), value.stride()), name)
        if owner != name and value.numel():
            ties[name] = owner
    return ties


def _first_tensor(outputs):
    """The name of what a module gives first: logits may come with features, in a tuple or a dictionary."""
    import torch

    for value in outputs.values() if isinstance(outputs, dict) else outputs:
        if isinstance(value, torch.fx.Node):
            return value.name
    raise RecordError("the module gives no tensor")


def _operation(target):
    return f"operator.{target.__name__}" if not hasattr(target, "_schema") else str(target)


def _arguments(node):
    """Every argument by name, defaults included; of an operator of Python by position."""
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
    return {"other": str(value)}  # a dtype, device or layout: nothing that a network's values depend on here


def references(argument):
    """Names of the nodes that an encoded argument refers to."""
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


def _parse(arguments):
    parser = _Parser(description="Record what a PyTorch network computes.")
    parser.add_argument("network", metavar="FILE.py:FACTORY | PROGRAM.pt2", help="what gives the module, or a program")
    parser.add_argument("--checkpoint", help="weights to load; by default those the factory gives")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", help="the .npz to write")
    what.add_argument("--graph", help="the folder to write: graph.json, weights.safetensors and reference.npz")
    parser.add_argument("--image-size", type=_count, help="side in pixels (default: the program's, else 32)")
    parser.add_argument("--channels", type=_count, help="of the images (default: the program's, else 3)")
    parser.add_argument("--batch", type=_count, default=2, help="recorded images (default: %(default)s)")
    parser.add_argument("--mean", type=_numbers, help="of images in [0, 1], a,b,c: kept in the graph")
    parser.add_argument("--std", type=_numbers, help="likewise")
    return parser.parse_args(arguments)


def _untouched(module):
    """Whether a module's BatchNorms have met no batch yet, so that its weights are those of its constructor."""
    moved = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    ends = ((name.rpartition(".")[2], value) for name, value in module.state_dict().items())
    return not _is_exported(module) and all((value == moved[end]).all() for end, value in ends if end in moved)


def _open(options):
    """The module to run, the channels and the side of its images, and its program where a graph is wanted."""
    if not options.network.endswith(".pt2"):
        module = load_factory(options.network)
        if options.checkpoint:
            load_weights(module, read_checkpoint(options.checkpoint))
        size, channels = options.image_size or 32, options.channels or 3
        return module, channels, size, export(module, size, channels) if options.graph else None
    if options.checkpoint:
        raise RecordError(f"{options.network} has its weights: leave --checkpoint out")
    program = load_program(options.network)
    _, *image = _image_shape(program)
    wanted = (options.channels, options.image_size, options.image_size)
    shape = [own if isinstance(own, int) else given for own, given in zip(image, wanted, strict=True)]
    if None in shape:
        raise RecordError(f"{options.network} takes images of any size: give --image-size (and --channels)")
    if shape[1] != shape[2] or any(given not in (None, own) for own, given in zip(shape, wanted, strict=True)):
        raise RecordError(f"{options.network} takes images of {'x'.join(map(str, shape))}: expected a square as asked")
    return program.module(), shape[0], shape[1], program if options.graph else None


def _write(path, arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    _write_bytes(path, content.getvalue())


def write_graph(folder, program, result, known):
    """Writes the folder; graph.json comes last.

    Args:
      folder: to write.
      program: what `export` gave.
      result: what `record` gave.
      known: 'initial', whether the weights are a constructor's initial ones, and if known 'mean' and 'std' of images.

    Returns:
      What graph.json holds.
    """
    graph, weights = describe(program)
    logits = result["logits"].shape
    *_, channels, _, image_size = result["images"].shape
    graph |= {"classes": logits[1], "channels": channels, "image_size": image_size, **known}
    graph["task"] = "classification" if len(logits) == 2 else "segmentation"
    os.makedirs(folder, exist_ok=True)
    kept = {name: array for name, array in result.items() if not name.startswith("state/")}
    _write(os.path.join(folder, REFERENCE), kept)
    _write_bytes(os.path.join(folder, WEIGHTS), _safetensors(weights))
    _write_bytes(os.path.join(folder, GRAPH), json.dumps(graph, indent=1).encode())
    return graph


def _safetensors(state):
    """The file format in a few lines, because this script may be where only torch and numpy are."""
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
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def main(arguments=None):
    """Runs the command; returns its exit status, 2 for a mistake of the input."""
    try:
        options = _parse(arguments)
        known = {key: value for key in ("mean", "std") if (value := getattr(options, key))}
        module, channels, size, program = _open(options)
        for key, numbers in known.items():
            if len(numbers) != channels:
                raise RecordError(f"--{key} has {len(numbers)} numbers, expected {channels}: one for each channel")
        if min(known.get("std", [1])) <= 0:
            raise RecordError(f"--std must be positive, found {known['std']}")
        result = record(module, fixed_images((options.batch, channels, size, size)))
        if program is None:
            _write(options.out, result)
            nodes = ""
        else:
            known["initial"] = not options.checkpoint and _untouched(module)
            nodes = f"{len(write_graph(options.graph, program, result, known)['nodes'])} nodes, "
    except (RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    norms = sum(name.startswith("moments/") and name.endswith("/mean") for name in result)
    print(f"{options.graph or options.out}: {nodes}{result['logits'].shape[1]} classes, {norms} BatchNorms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
