"""Records what a PyTorch network computes, so that a conversion can be verified where torch is not.

    python record.py file.py:factory --checkpoint teacher.pth --out reference.npz
    python record.py file.py:factory --checkpoint teacher.pth --graph folder

This file needs only torch and numpy and may be copied alone. `factory` is a function (or class) in
`file.py` that gives the module when called without arguments. Recorded in evaluation mode, on fixed noise as network
input: the logits, the mean and biased variance of every BatchNorm's input, the gradients of two losses
with respect to the image, and the state dictionary. The checkpoint is read with `weights_only=True`; the
file.py itself is executed, so name only code that you trust.
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

CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


class RecordError(Exception):
    """A mistake of the input; the message is one line."""


def load_factory(target):
    """Calls `factory` of 'file.py:factory' and returns its torch.nn.Module."""
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
    return content


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
      precision, because in single precision rounding decides the ReLUs nearest to their kink.
    """
    import torch

    module = module.eval().float()
    result = {"images": images}
    result |= {f"state/{name}": _to_numpy(value) for name, value in module.state_dict().items()}
    with torch.no_grad():
        logits, moments, _ = _run(module, torch.from_numpy(np.array(images)))
    labels = torch.arange(len(logits)) % logits.shape[1]
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


def _run(module, x):
    """Logits, and by BatchNorm the moments of its input and its running statistics."""
    import torch

    moments, statistics, handles = {}, {}, []

    def watch(name, layer):
        def hook(_, inputs):
            x = inputs[0].clone()  # a later in-place operation must not reach what the gradient needs
            moments[name] = (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False))
            statistics[name] = (layer.running_mean, layer.running_var)

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(watch(name, layer)))
    try:
        logits = module(x)
    except Exception as error:
        shape = "x".join(map(str, x.shape))
        raise RecordError(f"the module fails on {x.dtype} images of {shape}: {_one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise RecordError("the module does not give logits of shape [batch, classes]")
    return logits, moments, statistics


def losses(logits, labels, moments, statistics):
    """Mean cross-entropy, and the sum over BatchNorms of ||mean - running|| + ||var - running||."""
    import torch

    distance = torch.zeros((), dtype=logits.dtype)
    for name, pair in moments.items():
        for batch, running in zip(pair, statistics[name], strict=True):
            distance = distance + torch.linalg.vector_norm(batch - running)
    return {"cross_entropy": torch.nn.functional.cross_entropy(logits, labels), "batch_norm": distance}


def export(module, image_size, channels):
    """The module's graph of ATen operations for any number of images, as `torch.export` gives it in evaluation mode.

    Returns:
      What JSON can hold: 'nodes', each with its operation and all arguments of the operation's schema by name;
      'entries', the name in the state dictionary of every parameter and buffer that a node uses; the names of the
      'images' and of the 'output'; 'image_size' and 'channels'.
    """
    import torch

    example = torch.zeros(2, channels, image_size, image_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            program = torch.export.export(
                module.eval().float(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
            graph = _described(program.run_decompositions({}))
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"torch.export cannot export the module: {_one_line(error)[:500]}") from error
    return graph | {"image_size": image_size, "channels": channels}


def _described(program):
    """An exported program as plain data."""
    signature = program.graph_signature
    entries = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    if signature.inputs_to_lifted_tensor_constants:
        raise RecordError("the module makes tensors of its own while it runs: register them as buffers")
    nodes, images, output = [], None, None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in entries:
                if images is not None:
                    raise RecordError("the module takes more than one input: expected images alone")
                images = node.name
        elif node.op == "output":
            output = _first_tensor(node.args[0])
        elif node.op == "call_function":
            nodes.append({"name": node.name, "op": _operation(node.target), "args": _arguments(node)})
        else:
            raise RecordError(f"the exported graph has a node of kind {node.op!r}, expected calls only")
    used = {name for node in nodes for name in _references(node["args"])}
    return {
        "format": 1,
        "images": images,
        "entries": {name: entry for name, entry in entries.items() if name in used},
        "nodes": nodes,
        "output": output,
    }


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


def _references(value):
    if isinstance(value, dict):
        return {value["node"]} if "node" in value else {n for v in value.values() for n in _references(v)}
    return {n for v in value for n in _references(v)} if isinstance(value, list) else set()


def _to_numpy(value):
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy().copy()


def _one_line(error):
    return " ".join(str(error).split())


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise RecordError(f"{message}; see {self.prog} --help")


def _parse(arguments):
    parser = _Parser(description="Record what a PyTorch network computes.")
    parser.add_argument("factory", metavar="FILE.py:FACTORY")
    parser.add_argument("--checkpoint", help="weights to load; by default those the factory gives")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", help="the .npz to write")
    what.add_argument("--graph", help="the folder to write: graph.json, weights.safetensors and reference.npz")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    return parser.parse_args(arguments)


def _write(path, arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    _write_bytes(path, content.getvalue())


def _write_graph(folder, module, graph, result):
    os.makedirs(folder, exist_ok=True)
    _write(os.path.join(folder, "reference.npz"), result)
    state = {name: _to_numpy(value) for name, value in module.state_dict().items()}
    _write_bytes(os.path.join(folder, "weights.safetensors"), _safetensors(state))
    graph = graph | {"classes": result["logits"].shape[1]}
    _write_bytes(os.path.join(folder, "graph.json"), json.dumps(graph, indent=1).encode())


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
        module = load_factory(options.factory)
        if options.checkpoint:
            load_weights(module, read_checkpoint(options.checkpoint))
        images = fixed_images((options.batch, options.channels, options.image_size, options.image_size))
        result = record(module, images)
        if options.graph:
            _write_graph(options.graph, module, export(module, options.image_size, options.channels), result)
        else:
            _write(options.out, result)
    except (RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.graph or options.out}: {len(result)} arrays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
