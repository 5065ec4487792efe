"""Networks and the generator: published sizes, shapes, moments as data, gradients, re-initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax import models
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models.cifar_resnet import stride_and_pad

# Parameters with 10 classes, BatchNorms, blocks and features. Counts without a source of their own follow
# from the published layer tables.
PUBLISHED = {
    "wrn16_1": (175_066, 13, 3, 64),
    "wrn16_2": (691_674, 13, 3, 128),
    "wrn40_1": (563_930, 37, 3, 64),
    "wrn40_2": (2_243_546, 37, 3, 128),
    "resnet18": (11_173_962, 20, 4, 512),
    "resnet34": (21_282_122, 36, 4, 512),
    "resnet50": (23_520_842, 53, 4, 2048),
    "resnet18_imagenet": (11_181_642, 20, 4, 512),
    "resnet34_imagenet": (21_289_802, 36, 4, 512),
    "resnet50_imagenet": (23_528_522, 53, 4, 2048),
    "resnet50v1_imagenet": (23_528_522, 53, 4, 2048),
    "resnet8": (75_290, 7, 3, 64),
    "resnet20": (269_722, 19, 3, 64),
    "resnet20b": (272_474, 21, 3, 64),
    "resnet32": (464_154, 31, 3, 64),
    "resnet44": (658_586, 43, 3, 64),
    "resnet56": (853_018, 55, 3, 64),
    "resnet110": (1_727_962, 109, 3, 64),
    "resnet8x4": (1_210_410, 10, 3, 256),
    "resnet32x4": (7_410_730, 34, 3, 256),
    "mobilenetv2_imagenet": (2_236_682, 52, 7, 1280),
    "efficientnet_lite0": (3_383_818, 49, 7, 1280),
    **dict.fromkeys(("deeplabv3_resnet50", "deeplabv3_resnet50_os16"), (39_636_042, 60, 4, 256)),
    **dict.fromkeys(("deeplabv3_resnet18", "deeplabv3_resnet18_os16"), (15_901_258, 27, 4, 256)),
    **dict.fromkeys(("deeplabv3_mobilenetv2", "deeplabv3_mobilenetv2_os16"), (5_111_050, 58, 7, 256)),
    "vgg8": (3_918_858, 5, 5, 512),
    "vgg11": (9_231_114, 8, 5, 512),
    "vgg13": (9_416_010, 10, 5, 512),
}
# One small member of each family, for what is computed and not only shaped.
SMALL = ("wrn10_1", "resnet8", "resnet8b")
# Deeper ones of the same blocks: one size of images suffices.
DEEPER = ("wrn40_1", "wrn40_2", "resnet34", "resnet34_imagenet", "resnet32", "resnet44", "resnet56", "resnet110")
DEEPER += ("resnet32x4", "resnet50", "vgg11", "vgg13")


def network(arch: str, **kwargs) -> models.Network:
    return models.build(models.NetworkSpec(arch, 10, **kwargs))


@functools.cache
def shapes_of(arch: str):
    return jax.eval_shape(network(arch).init, jax.random.key(0))


@functools.cache
def variables_of(arch: str):
    """Random variables with statistics that are not the initial ones, so that none passes for another."""
    variables = jax.jit(network(arch).init)(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    stats = jax.tree.map(lambda s: s + 0.5 * jax.random.uniform(next(keys), s.shape), variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


@functools.cache
def compiled(arch: str, train: bool = False, moments: bool = False, dtype: str = "float32"):
    """`apply` of a network, compiled once for all tests."""
    net = models.build(models.NetworkSpec(arch, 10), forms=models.Forms(jnp.dtype(dtype)))
    return jax.jit(functools.partial(net.apply, train=train, moments=moments))


def images(batch: int = 2, size: int = 8):
    return jax.random.normal(jax.random.key(2), (batch, size, size, 3))


def test_every_usual_member_has_published_counts():
    assert set(models.arch_names()) == set(PUBLISHED)


@pytest.mark.parametrize("arch", PUBLISHED)
def test_parameter_and_batch_norm_counts(arch):
    parameters, batch_norms, _, _ = PUBLISHED[arch]
    assert models.count_parameters(shapes_of(arch)) == parameters
    assert models.count_batch_norms(shapes_of(arch)) == batch_norms


@pytest.mark.parametrize(
    ("arch", "size"),
    [*((arch, 32) for arch in PUBLISHED), *((arch, 64) for arch in PUBLISHED if arch not in DEEPER)],
)
def test_shapes(arch, size):
    _, _, blocks, features = PUBLISHED[arch]
    net = network(arch, image_size=size)
    batch = jax.ShapeDtypeStruct((2, *net.spec.input_shape), jnp.float32)
    out = jax.eval_shape(functools.partial(net.apply, moments=True), shapes_of(arch), batch)
    assert out.logits.shape == ((2, size, size, 10) if net.spec.task == "segmentation" else (2, 10))
    assert out.features.shape == (2, features)
    assert len(out.blocks) == blocks
    sides = [block.shape[1] for block in out.blocks]
    if arch.startswith("vgg"):
        assert sides == ([32, 16, 8, 4, 4] if size == 32 else [64, 32, 16, 8, 4])
    elif arch.startswith("deeplabv3"):
        stride = 16 if arch.endswith("_os16") else 8
        steps = (2, 4, 8, 16, 16, 32, 32) if "mobilenet" in arch else (4, 8, 16, 32)
        # The port's MobileNetV2 has a stem without padding.
        assert sides == [size // min(step, stride) - (step == 2) for step in steps]
    elif arch.startswith(("mobilenet", "efficientnet")):
        assert sides == [size // step for step in (2, 4, 8, 16, 16, 32, 32)]
    else:
        stem = 4 if arch.endswith("_imagenet") else 1
        assert sides == [size // stem // 2**stage for stage in range(blocks)]
    stats = shapes_of(arch)["batch_stats"]
    assert jax.tree.map(jnp.shape, out.moments) == jax.tree.map(jnp.shape, stats)
    assert jax.tree.structure(out.batch_stats) == jax.tree.structure(stats)


def test_sizes_of_the_network_do_not_depend_on_the_image_size():
    small, large = (network("vgg8", image_size=size) for size in (32, 64))
    shapes = [jax.eval_shape(net.init, jax.random.key(0)) for net in (small, large)]
    assert shapes[0] == shapes[1]


def test_names_are_those_of_the_published_ports():
    def modules(arch):
        return set(shapes_of(arch)["params"])

    assert {"conv1", "block1.layer.0.convShortcut", "block3.layer.5.bn2", "bn1", "fc"} <= modules("wrn40_2")
    assert {"conv1", "bn1", "layer2.0.shortcut.0", "layer2.0.shortcut.1", "linear"} <= modules("resnet18")
    assert {"layer1.0.shortcut.0", "layer4.2.conv3", "layer4.2.bn3"} <= modules("resnet50")
    assert {"conv1", "layer1.0.downsample.0", "layer4.0.downsample.1", "fc"} <= modules("resnet50_imagenet")
    assert not any("shortcut" in name for name in modules("resnet50_imagenet"))
    assert modules("resnet20b") - modules("resnet20") == {f"layer{s}.0.shortcut.{i}" for s in (2, 3) for i in (0, 1)}
    assert "layer1.0.shortcut.0" in modules("resnet8x4")
    assert modules("vgg11") == {
        *(f"block{b}.{i}" for b in range(5) for i in ((0, 1) if b < 2 else (0, 1, 3, 4))),
        "classifier",
    }


@pytest.mark.parametrize(("thin", "depth_name"), [("resnet50a", 50), ("resnet14", 14), ("resnet20x4a", 20)])
def test_other_members_of_the_thin_family_exist(thin, depth_name):
    convolutions = [m for m in shapes_of(thin)["params"] if "conv" in m]
    assert len(convolutions) == depth_name - 1


@pytest.mark.parametrize(("arch", "size"), [("wrn10_1", 8), ("resnet8", 8), ("resnet18", 8), ("vgg8", 32)])
def test_the_kind_of_a_network_s_stages_says_whether_they_are_activated(arch, size):
    """Outputs of a ReLU are nowhere negative; sums before it are."""
    network = models.build(models.NetworkSpec(arch, 10, size))
    variables = jax.jit(network.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    least = [float(block.min()) for block in jax.jit(network.apply)(variables, images).blocks]
    assert all((value < 0) == (models.stages_of(arch) == "sums") for value in least)
    assert models.stages_of("graph:net") == ""


@pytest.mark.parametrize("arch", ["resnet21", "wrn17_1", "vgg16", "resnet2", "wrn16_0", "lenet", ""])
def test_unknown_architecture_is_named(arch):
    assert not models.is_known(arch)
    with pytest.raises(UserError, match=f"unknown architecture '{arch}': the nearest are "):
        network(arch)


def test_an_unknown_form_of_convolutions_is_refused():
    with pytest.raises(UserError, match="one of cpu, xla, found 'fast'"):
        models.Forms(conv="fast")
    with pytest.raises(UserError, match="found 'native', the old name of 'xla'"):
        models.Forms(conv="native")


def test_option_a_shortcut_strides_and_adds_zero_channels_on_both_sides():
    x = np.arange(1, 2 * 5 * 4 * 2 + 1, dtype=np.float32).reshape(2, 5, 4, 2)
    out = np.asarray(stride_and_pad(jnp.asarray(x), 2, 4))
    assert out.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(out[..., 1:3], x[:, ::2, ::2])
    assert not out[..., 0].any()
    assert not out[..., 3].any()


def test_thin_resnet_equals_a_plain_statement_of_it():
    """ResNet-8 written with XLA's convolution and the formula of BatchNorm alone."""
    variables, x = variables_of("resnet8"), images()
    params, stats = variables["params"], variables["batch_stats"]

    def conv(name, x, stride=1):
        return jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (stride,) * 2, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(name, x):
        mean, var = stats[name]["mean"], stats[name]["var"]
        return (x - mean) / jnp.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["bias"]

    def plain(x):
        h = jax.nn.relu(norm("bn1", conv("conv1", x)))
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            name = f"layer{stage}.0"
            out = jax.nn.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", h, stride)))
            out = norm(f"{name}.bn2", conv(f"{name}.conv2", out))
            h = jax.nn.relu(out + stride_and_pad(h, stride, out.shape[-1]))
        return h.mean((1, 2)) @ params["linear"]["kernel"] + params["linear"]["bias"]

    logits = jax.jit(plain)(x)
    # BatchNorm is folded to one product and one sum in the network: other roundings of the same numbers.
    np.testing.assert_allclose(compiled("resnet8")(variables, x).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", SMALL)
def test_evaluation_returns_the_statistics_that_came_in(arch):
    variables = variables_of(arch)
    out = compiled(arch, moments=True)(variables, images())
    jax.tree.map(np.testing.assert_array_equal, out.batch_stats, variables["batch_stats"])
    plain = compiled(arch)(variables, images())
    assert plain.moments == {}
    # Compiled apart, the same products may be summed in another order.
    np.testing.assert_allclose(plain.logits, out.logits, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_the_batch_norms_input():
    """The first BatchNorm of a thin ResNet sees the first convolution's output."""
    variables, x = variables_of("resnet8"), images()
    kernel = variables["params"]["conv1"]["kernel"]
    first = np.asarray(
        jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    for train in (False, True):
        moments = compiled("resnet8", train, True)(variables, x).moments["bn1"]
        # Sums of 128 float32 numbers in two orders.
        np.testing.assert_allclose(moments["mean"], first.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments["var"], first.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("arch", SMALL)
def test_training_moves_the_statistics_by_a_tenth_towards_the_batch(arch):
    variables, x = variables_of(arch), images()
    out = compiled(arch, True, True)(variables, x)
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables["batch_stats"], out.moments)
    for name, new in out.batch_stats.items():
        np.testing.assert_allclose(new["mean"], expected[name]["mean"], rtol=1e-5, atol=1e-6)
        # The running variance takes the unbiased one, larger by n / (n - 1) <= 8 / 7 in the last stage.
        assert np.all(new["var"] > expected[name]["var"])
        assert np.all(new["var"] <= expected[name]["var"] * (1 + 1 / 7))


@pytest.mark.parametrize("arch", ["wrn10_1", "resnet8b"])
def test_whole_gradients_are_equal_in_both_forms(arch):
    variables, x = variables_of(arch), images()

    def gradients(form):
        net = models.build(models.NetworkSpec(arch, 10), forms=models.Forms(conv=form))

        def loss(params, x):
            out = net.apply({**variables, "params": params}, x, moments=True)
            feature = sum(jnp.sum(jnp.square(m)) for m in jax.tree.leaves(out.moments))
            return jnp.sum(jnp.sin(out.logits)) + 0.1 * feature

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x)

    for ours, xla in zip(*(jax.tree.leaves(gradients(f)) for f in ("cpu", "xla")), strict=True):
        # Roundings of a dozen layers add up: each is about 1e-6 of the largest entry.
        np.testing.assert_allclose(ours, xla, rtol=0, atol=1e-4 * float(jnp.abs(xla).max()) + 1e-9)


def test_forward_mode_through_a_native_network():
    net = models.build(models.NetworkSpec("resnet8", 10), forms=models.Forms(conv="xla"))
    variables, x = variables_of("resnet8"), images()
    direction = jax.random.normal(jax.random.key(5), x.shape)

    def loss(x):
        return jnp.sum(jnp.sin(net.apply(variables, x).logits))

    forward = jax.jit(lambda x: jax.jvp(loss, (x,), (direction,))[1])(x)
    reverse = jnp.vdot(jax.jit(jax.grad(loss))(x), direction)
    # Two orders of the same products of float32.
    assert float(forward) == pytest.approx(float(reverse), rel=1e-4)


def test_bfloat16_computes_coarsely_but_returns_float32():
    variables, x = variables_of("resnet8"), images()
    out = compiled("resnet8", moments=True, dtype="bfloat16")(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((out.logits, out.features, out.moments))} == {np.dtype("float32")}
    assert out.blocks[0].dtype == jnp.bfloat16
    exact = compiled("resnet8")(variables, x).logits
    # Eight bits of mantissa and eight layers: a few per cent of the largest logit.
    np.testing.assert_allclose(out.logits, exact, rtol=0, atol=0.1 * float(jnp.abs(exact).max()))


def small_generator(**kwargs) -> models.Generator:
    return models.build_generator(16, 3, 6, 4, **kwargs)


def test_generator_has_the_published_size_and_names():
    generator = models.build_generator()
    params = jax.eval_shape(generator.init, jax.random.key(0))
    assert models.count_parameters({"params": params}) == 2_328_899
    assert set(params) == {"l1.0", *(f"conv_blocks.{i}" for i in (0, 2, 3, 6, 7, 9))}
    assert generator.latent_shape == (256,)


def test_the_generator_for_imagenet_has_the_published_size_and_names():
    generator = models.build_generator(224, kind="spatial")
    params = jax.eval_shape(generator.init, jax.random.key(0))
    # Published: 1,398,403, of which a linear layer of 256 to 3,136 is never used.
    assert models.count_parameters({"params": params}) == 1_398_403 - 256 * 3_136 - 3_136
    assert set(params) == {f"conv_blocks.{i}" for i in (0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 19)}
    assert generator.latent_shape == (14, 14, 256)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3)])
def test_generator_makes_images_between_zero_and_one(size, channels):
    generator = models.build_generator(size, channels, 6, 4)
    latents = 10 * jax.random.normal(jax.random.key(1), (3, 6))
    out = jax.jit(lambda key: generator.apply(generator.init(key), latents))(jax.random.key(0))
    assert out.shape == (3, size, size, channels)
    assert out.dtype == jnp.float32
    assert 0 <= float(out.min()) < float(out.max()) <= 1


@pytest.mark.parametrize(("kind", "factor", "size"), [("linear", 4, 0), ("linear", 4, 30), ("spatial", 16, 40)])
def test_generator_refuses_sizes_that_cannot_be_doubled_so_often(kind, factor, size):
    with pytest.raises(UserError, match=f"multiple of {factor}, found {size}"):
        models.build_generator(size, kind=kind)


def test_unknown_generator_is_refused():
    with pytest.raises(UserError, match=r"linear, spatial, large, .*found 'deep'"):
        models.build_generator(kind="deep")


def load_generator(reference, params) -> None:
    """Gives a torch module a generator's parameters; only running statistics may be missing."""
    import torch

    state = {}
    for module, leaves in params.items():
        for name, leaf in leaves.items():
            value = np.asarray(leaf)
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[f"{module}.{'bias' if name == 'bias' else 'weight'}"] = torch.tensor(value.copy())
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("running" in name or "num_batches" in name for name in missing)


@pytest.mark.parity
def test_the_generator_for_imagenet_equals_torch():
    torch = pytest.importorskip("torch")
    from torch import nn

    def activated(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]

    layers = activated(6, 8)
    for inputs, outputs in ((8, 8), (8, 4), (4, 4), (4, 4)):
        layers += [nn.Upsample(scale_factor=2), *activated(inputs, outputs)]
    layers += [nn.Conv2d(4, 3, 3, padding=1), nn.Sigmoid()]
    reference = nn.ModuleDict({"conv_blocks": nn.Sequential(*layers)})

    generator = models.build_generator(32, 3, 6, 4, kind="spatial")
    params = jax.jit(generator.init)(jax.random.key(0))
    load_generator(reference, params)
    latents = np.asarray(jax.random.normal(jax.random.key(1), (5, 2, 2, 6)))
    expected = reference["conv_blocks"](torch.tensor(latents.transpose(0, 3, 1, 2))).detach().numpy()
    out = jax.jit(generator.apply)(params, jnp.asarray(latents))
    # float32 sums in another order through five BatchNorms of the batch's own statistics.
    np.testing.assert_allclose(out, expected.transpose(0, 2, 3, 1), rtol=0, atol=2e-5)
    new = jax.jit(generator.reset_first_layer)(jax.random.key(2), params)
    changed = {name for name in params if np.any(new[name].get("kernel", 1) != params[name].get("kernel", 1))}
    assert changed == {"conv_blocks.0"}
    assert np.abs(new["conv_blocks.1"]["scale"]).max() < 0.1


@pytest.mark.parity
def test_generator_equals_torch():
    torch = pytest.importorskip("torch")
    from torch import nn

    wide, width, base = 8, 4, 4
    reference = nn.ModuleDict(
        {
            "l1": nn.Sequential(nn.Linear(6, wide * base * base)),
            "conv_blocks": nn.Sequential(
                nn.BatchNorm2d(wide),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(wide, wide, 3, padding=1, bias=False),
                nn.BatchNorm2d(wide),
                nn.LeakyReLU(0.2),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(wide, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 3, 3, padding=1),
                nn.Sigmoid(),
            ),
        }
    )
    params = jax.jit(small_generator().init)(jax.random.key(0))
    load_generator(reference, params)

    latents = np.asarray(jax.random.normal(jax.random.key(1), (5, 6)))
    hidden = reference["l1"](torch.tensor(latents)).reshape(5, wide, base, base)
    expected = reference["conv_blocks"](hidden).detach().numpy().transpose(0, 2, 3, 1)
    for form in ("cpu", "xla"):
        out = jax.jit(small_generator(forms=models.Forms(conv=form)).apply)(params, jnp.asarray(latents))
        # The doubled convolutions add two kernel entries first: roundings of a few units in the last place.
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


def test_generator_gradients_are_equal_in_both_forms():
    params = jax.jit(small_generator().init)(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (5, 6))
    target = jax.random.uniform(jax.random.key(2), (5, 16, 16, 3))

    def gradients(form):
        def loss(params, latents):
            return jnp.sum(jnp.square(small_generator(forms=models.Forms(conv=form)).apply(params, latents) - target))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, latents)

    ours, xla = gradients("cpu"), gradients("xla")
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(xla))
    # The linear layer's bias before a BatchNorm hardly matters: compare with the largest gradient of all.
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * largest), ours, xla)


def test_reset_draws_everything_anew():
    generator = models.build_generator(16, 3, 64, 32)
    params = jax.tree.map(lambda leaf: leaf + 7, jax.jit(generator.init)(jax.random.key(0)))
    new = jax.jit(generator.reset)(jax.random.key(1), params)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, params)
    for module, leaves in new.items():
        assert not np.any(leaves.get("bias", 0)), module
        if (kernel := leaves.get("kernel")) is not None and kernel.size > 10_000:
            # Over 10,000 draws: the deviation is known to one per cent, three times that is allowed.
            assert float(kernel.std()) == pytest.approx(0.02, rel=0.03)
            assert abs(float(kernel.mean())) < 1e-3
        if (scale := leaves.get("scale")) is not None:
            # At least 32 draws of deviation 0.02: none lies five deviations away, the mean within 0.02.
            assert np.abs(scale - 1).max() < 0.1
            assert 0.01 < float(scale.std()) < 0.03
    other = jax.jit(generator.reset)(jax.random.key(2), params)
    assert np.any(other["l1.0"]["kernel"] != new["l1.0"]["kernel"])
    assert np.any(new["conv_blocks.0"]["scale"] != new["conv_blocks.3"]["scale"])


def test_reset_of_the_first_layer_leaves_the_rest_and_centres_the_scale_at_zero():
    generator = models.build_generator(16, 3, 64, 32)
    params = jax.tree.map(lambda leaf: leaf + 7, jax.jit(generator.init)(jax.random.key(0)))
    new = jax.jit(generator.reset_first_layer)(jax.random.key(1), params)
    assert jax.tree.structure(new) == jax.tree.structure(dict(params))
    for name in set(params) - {"l1.0", "conv_blocks.0"}:
        jax.tree.map(np.testing.assert_array_equal, new[name], params[name])
    assert not np.any(new["l1.0"]["bias"])
    assert not np.any(new["conv_blocks.0"]["bias"])
    # 65,536 draws of the kernel, 64 of the scale.
    assert float(new["l1.0"]["kernel"].std()) == pytest.approx(0.02, rel=0.03)
    assert np.abs(new["conv_blocks.0"]["scale"]).max() < 0.1
    assert 0.01 < float(new["conv_blocks.0"]["scale"].std()) < 0.03


@pytest.mark.parametrize("arch", ["wrn10_1", "resnet8", "resnet18", "vgg8"])
def test_rematerialisation_keeps_less(arch):
    """Of one member of each family: what the backward pass is left, without the weights, in bytes."""
    plain = network(arch)
    batch = jax.ShapeDtypeStruct((64, *plain.spec.input_shape), jnp.float32)

    def kept(net: models.Network) -> int:
        def backward(images, variables):
            return jax.vjp(lambda images: net.apply(variables, images).logits, images)[1]

        shapes = jax.tree.leaves(jax.eval_shape(backward, batch, shapes_of(arch)))
        weights = models.count_parameters(shapes_of(arch))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes) - 4 * weights

    activations, blocks = (kept(models.rematerialised(plain, kind)) for kind in ("activations", "blocks"))
    assert blocks < activations < 0.7 * kept(plain)


@pytest.mark.parametrize(("arch", "kind"), [("wrn10_1", "activations"), ("resnet8", "blocks")])
def test_rematerialisation_changes_no_gradient(arch, kind):
    def gradients(net: models.Network):
        def loss(images, params):
            variables = {"params": params, "batch_stats": variables_of(arch)["batch_stats"]}
            out = net.apply(variables, images, train=True, moments=True)
            moments = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out.moments))
            return jnp.sum(out.logits**2) + moments, out.batch_stats

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(images(), variables_of(arch)["params"])

    plain, less = gradients(network(arch)), gradients(models.rematerialised(network(arch), kind))
    # The same operations; compiled apart, sums may be taken in another order.
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(less), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


@pytest.mark.parametrize(("batch", "most"), [(6, 4), (5, 4), (2, 8)])
def test_predictions_in_chunks_are_those_of_the_whole_batch(batch, most):
    variables, x = variables_of("resnet8"), images(batch)
    whole = compiled("resnet8")(variables, x)
    chunked = jax.jit(models.in_chunks(network("resnet8"), most).apply)(variables, x)
    for name in ("logits", "features", "blocks", "batch_stats", "moments"):
        for a, b in zip(jax.tree.leaves(getattr(chunked, name)), jax.tree.leaves(getattr(whole, name)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_needs_the_whole_batch_is_not_done_in_chunks():
    variables, x = variables_of("resnet8"), images(6)
    chunked = models.in_chunks(network("resnet8"), 2).apply
    for train, moments in ((True, False), (False, True), (True, True)):
        out = jax.jit(functools.partial(chunked, train=train, moments=moments))(variables, x)
        expected = compiled("resnet8", train, moments)(variables, x)
        for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
