"""DeepLabv3: sizes and names, dilation in place of strides, the head, and PyTorch's twin."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax import models
from fastdfkd_jax.convert import naming
from fastdfkd_jax.models import mobilenet, resnet
from fastdfkd_jax.models.deeplab import resized
from fastdfkd_jax.models.depthwise import DepthwiseConv
from fastdfkd_jax.models.layers import BatchNorm, Conv

ARCHS = tuple(name for name in models.arch_names() if name.startswith("deeplabv3_"))
SMALL = "deeplabv3_mobilenetv2_os16"


@functools.cache
def network(arch: str = SMALL, forms: models.Forms = models.Forms()) -> models.Network:
    return models.build(models.NetworkSpec(arch, 5), forms=forms)


@functools.cache
def variables_of(arch: str = SMALL) -> dict[str, Any]:
    """Kernels that keep the variance, and BatchNorms in which nothing has its initial value."""
    generator = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return generator.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        low, high = {"scale": (0.5, 1), "var": (0.5, 2)}.get(name, (-0.3, 0.3))
        return generator.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, dict(jax.eval_shape(network(arch).init, jax.random.key(0))))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*shape, 3)).astype(np.float32)


def test_the_published_sizes():
    """METHOD section 3: of 13 classes, with the counters of batches."""
    net = models.build(models.NetworkSpec("deeplabv3_resnet50", 13))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    entries = naming.expected_entries(net)
    norms = naming.batch_norm_names(entries)
    assert models.count_parameters(shapes) == 39_636_813
    assert (len(entries) + len(norms), len(norms)) == (362, 60)


def test_names_are_those_of_the_port():
    def names(arch: str) -> set[str]:
        return set(naming.expected_entries(network(arch)))

    head = {f"classifier.classifier.0.convs.{i}.0.weight" for i in range(4)}
    head |= {"classifier.classifier.0.convs.4.1.weight", "classifier.classifier.0.convs.4.2.running_var"}
    head |= {"classifier.classifier.0.project.0.weight", "classifier.classifier.0.project.1.bias"}
    head |= {"classifier.classifier.1.weight", "classifier.classifier.2.running_mean"}
    head |= {"classifier.classifier.4.weight", "classifier.classifier.4.bias"}
    resnet50, mobile = names("deeplabv3_resnet50"), names("deeplabv3_mobilenetv2")
    assert head <= resnet50 & mobile
    assert {"backbone.conv1.weight", "backbone.layer4.2.bn3.bias", "backbone.layer1.0.downsample.1.weight"} <= resnet50
    assert {"backbone.low_level_features.3.conv.0.0.weight", "backbone.high_level_features.4.conv.0.0.weight"} <= mobile
    assert {"backbone.low_level_features.0.1.bias", "backbone.high_level_features.17.conv.3.weight"} <= mobile
    # No convolution has a bias beside the last.
    convolutions = {name for name, entry in naming.expected_entries(network(SMALL)).items() if len(entry.shape) == 4}
    assert [n for n in convolutions if n.replace("weight", "bias") in mobile] == ["classifier.classifier.4.weight"]
    assert names("deeplabv3_resnet50_os16") == resnet50


@pytest.mark.parametrize("arch", ARCHS)
def test_the_task_is_the_architectures_own(arch):
    assert network(arch).spec.task == models.task_of(arch) == "segmentation"
    assert models.usual_image_size(arch) == 128


@pytest.mark.parametrize("arch", ["resnet18", "unheard_of"])
def test_other_architectures_classify_whatever_the_spec_says(arch):
    assert models.task_of(arch) == "classification"
    if models.is_known(arch):
        assert models.build(models.NetworkSpec(arch, 5, task="segmentation")).spec.task == "classification"


class Trunk(nn.Module):
    """A backbone alone, of any output stride."""

    name_of_backbone: str
    output_stride: int

    @nn.compact
    def __call__(self, x: jax.Array):
        """The output of the last stage."""
        norm = functools.partial(BatchNorm, False)
        if self.name_of_backbone == "mobilenetv2":
            return mobilenet.trunk(Conv, norm, DepthwiseConv, x, self.output_stride, True)[0]
        depth = int(self.name_of_backbone.removeprefix("resnet"))
        return resnet.trunk(Conv, norm, x, depth, True, output_stride=self.output_stride)[0]


@pytest.mark.parametrize("output_stride", [16, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_dilated_backbone_computes_what_the_strided_one_does_where_that_looks(backbone, output_stride):
    """Its output at every other pixel is the strided network's, whose padding is as far away."""
    x = images(1, 64, 96)
    variables = jax.jit(Trunk(backbone, 32).init)(jax.random.key(0), x)
    strided, dilated = (jax.jit(Trunk(backbone, s).apply)(variables, x) for s in (32, output_stride))
    step = 32 // output_stride
    assert dilated.shape[1:3] == (64 // output_stride, 96 // output_stride)
    # float32 through as many layers, of which some sum in another order
    np.testing.assert_allclose(dilated[:, ::step, ::step], strided, rtol=0, atol=1e-4 * np.abs(strided).max())


def test_features_are_the_mean_of_what_the_last_convolution_takes():
    """Enlarging by a whole factor keeps the mean over pixels, and the last convolution is linear."""
    variables = variables_of()
    out = jax.jit(network().apply)(variables, images(2, 32, 64))
    assert out.logits.shape == (2, 32, 64, 5)
    last = variables["params"]["classifier.classifier.4"]
    expected = out.features @ last["kernel"][0, 0] + last["bias"]
    np.testing.assert_allclose(out.logits.mean((1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_for_training_with_a_key():
    variables, x = variables_of(), images(2, 32, 32)
    train = jax.jit(functools.partial(network().apply, train=True))
    still, again = train(variables, x), train(variables, x)
    first, second = (train(variables, x, key=jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(still.logits, again.logits)
    assert np.any(first.logits != still.logits)
    assert np.any(first.logits != second.logits)
    # What comes before the dropout is the same.
    name = "classifier.classifier.0.project.1"
    np.testing.assert_allclose(first.batch_stats[name]["mean"], still.batch_stats[name]["mean"], rtol=1e-5, atol=1e-6)
    evaluate = jax.jit(network().apply)
    np.testing.assert_array_equal(evaluate(variables, x, key=jax.random.key(0)).logits, evaluate(variables, x).logits)


def test_bfloat16_gives_float32_logits():
    net = network(forms=models.Forms(jnp.bfloat16))
    out = jax.eval_shape(functools.partial(net.apply, moments=True), variables_of(), images(2, 32, 32))
    assert {leaf.dtype for leaf in jax.tree.leaves((out.logits, out.features, out.moments))} == {np.dtype("float32")}
    assert out.blocks[-1].dtype == jnp.bfloat16


@pytest.mark.parametrize(("small", "large"), [((1, 1), (5, 3)), ((4, 6), (32, 48)), ((3, 5), (20, 33))])
@pytest.mark.parity
def test_resizing_is_pytorchs(small, large):
    torch = pytest.importorskip("torch")
    x = images(2, *small)
    expected = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)), large, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resized(jnp.asarray(x), *large), expected.permute(0, 2, 3, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("conv", ["cpu", "xla"])
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("deeplabv3_mobilenetv2_os16", (48, 80)),
        ("deeplabv3_mobilenetv2", (50, 35)),
        pytest.param("deeplabv3_resnet18", (33, 64), marks=pytest.mark.slow),
        pytest.param("deeplabv3_resnet50_os16", (48, 80), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parity
def test_images_of_any_size_equal_torch(arch, size, conv):
    torch = pytest.importorskip("torch")
    from fastdfkd_jax.convert.torch_twins.classifiers import twin

    net, variables = network(arch, models.Forms(conv=conv)), variables_of(arch)
    module = twin(net.spec).eval()
    state = naming.to_state_dict(variables)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)
    x = images(2, *size)
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()
    out = jax.jit(net.apply)(variables, x)
    assert out.logits.shape == (2, *size, 5)
    # float32 sums in another order, through some fifty layers
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert all(np.ptp(expected[..., c]) > 0.01 for c in range(5)), "the map depends on the image"


@pytest.mark.slow
def test_gradients_are_the_same_in_both_forms():
    """Inside a scan, as synthesis takes it; in double precision, so that no ReLU is decided by rounding."""
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables_of())

        def gradients(form: str):
            net = network(forms=models.Forms(jnp.float64, form))

            def loss(x, params):
                out = net.apply({**variables, "params": params}, x, moments=True)
                return jnp.sum(jnp.sin(out.logits)) + sum(jnp.sum(m) for m in jax.tree.leaves(out.moments))

            def step(x, _):
                return x, jax.grad(loss, argnums=(0, 1))(x, variables["params"])

            return jax.jit(lambda x: jax.lax.scan(step, x, length=1)[1])(jnp.asarray(images(2, 32, 32), jnp.float64))

        for ours, xla in zip(*(jax.tree.leaves(gradients(f)) for f in ("cpu", "xla")), strict=True):
            np.testing.assert_allclose(ours, xla, rtol=0, atol=1e-9 * float(jnp.abs(xla).max()))
