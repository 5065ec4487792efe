"""What inversion may match in networks without BatchNorm equals what PyTorch's layers are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.modules import without_batch_norm
from fastdfkd_jax import convert
from fastdfkd_jax.convert import record

NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm)
SIDE = 32


class ByHand(without_batch_norm.Attention):
    """The same attention as a softmax and two products."""

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        shares = functional.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        return self.out((functional.dropout(shares, 0.1, self.training) @ v).transpose(1, 2).reshape(x.shape))


def vit(by_hand=False):
    module = without_batch_norm.ViT(2, 8, 2, 5)
    for layer in module.layers if by_hand else ():
        assert isinstance(layer, without_batch_norm.Layer)
        made = ByHand(8, 2)
        made.load_state_dict(layer.attention.state_dict())
        layer.attention = made
    return module


NETWORKS = {
    "vit": vit,
    "attention by hand": lambda: vit(by_hand=True),
    "groups": lambda: without_batch_norm.ResNet(1, 5),
}


def seen_by(module, images):
    """The inputs of all normalisation layers by name, and of all attention's last linear layers."""
    inputs, tokens = {}, []
    for name, layer in module.named_modules():
        if isinstance(layer, NORMS):
            layer.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0]))
        if name.endswith("attention.out"):
            layer.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    with torch.no_grad():
        module.eval()(images)
    return inputs, tokens


@pytest.mark.parametrize("name", NETWORKS)
def test_moments_and_tokens_are_those_of_pytorchs_layers(tmp_path, name):
    torch.manual_seed(0)
    module = NETWORKS[name]()
    fixed = record.fixed_images((2, 3, SIDE, SIDE))
    result = record.record(module, fixed)
    record.write_graph(tmp_path, record.export(module, SIDE, 3), result, {"initial": False})
    network, variables = convert.load_network(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)
    inputs, tokens = seen_by(module, torch.tensor(fixed))

    assert set(network.other_norms) == set(inputs)
    asked = {norm: {"mean": np.zeros(()), "var": np.zeros(())} for norm in inputs}
    images = jnp.asarray(fixed.transpose(0, 2, 3, 1))
    out = jax.jit(lambda x: network.apply(variables | {"batch_stats": asked}, x, moments=True, tokens=True))(images)
    for norm, given in inputs.items():
        channels = given.movedim(1, -1) if given.ndim == 4 else given
        rows = channels.reshape(-1, channels.shape[-1]).numpy()
        np.testing.assert_allclose(out.moments[norm]["mean"], rows.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.moments[norm]["var"], rows.var(0), rtol=1e-4, atol=1e-5)
    assert len(out.tokens) == len(tokens) == (0 if name == "groups" else 2)
    for found, given in zip(out.tokens, tokens, strict=True):
        np.testing.assert_allclose(found, given, rtol=1e-4, atol=1e-5)
