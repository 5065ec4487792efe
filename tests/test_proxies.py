"""Statistics for teachers without BatchNorm: measured at their own layers, or another network's."""

import graph_fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import tiny_config
from toy_network import bare_network, toy_network

from fastdfkd_jax import convert, losses, models
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.parts.patches import PATCHES
from fastdfkd_jax.models import ProxyOptions, proxies
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.training import build, dry_run
from fastdfkd_jax.training import given_statistics as given


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Folders of recorded networks without BatchNorm."""
    place = tmp_path_factory.mktemp("graphs")
    for name in ("vit", "gn_resnet8"):
        graph_fixtures.unpack(graph_fixtures.FOLDER / f"{name}.npz", place / name)
    return place


def loaded(folder):
    return convert.load_network(folder, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def pictures(tmp_path):
    """A folder of eleven pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, image in enumerate(np.random.default_rng(1).integers(0, 256, (11, 32, 32, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


@pytest.mark.parametrize(("name", "layers"), [("vit", 3), ("gn_resnet8", 7)])
def test_statistics_of_pictures_are_met_by_the_same_pictures(graphs, pictures, name, layers, monkeypatch):
    """In whatever parts they were measured; by other images they are not."""
    teacher, variables = loaded(graphs / name)
    assert len(teacher.other_norms) == layers
    assert " 0 BatchNorm layers" in dry_run._network("teacher", teacher, variables)
    assert not teacher.apply(variables, jnp.zeros((1, 32, 32, 3)), moments=True).moments
    monkeypatch.setattr(given, "_MOST_PIXELS", 4 * 32 * 32)
    chosen = ProxyOptions(images=str(pictures))
    joined, theirs = given.applied(chosen, teacher, variables, Forms())
    assert jax.tree.structure(jax.eval_shape(joined.init, jax.random.key(0))) == jax.tree.structure(theirs)
    assert f" {layers} layers with statistics of config.proxy" in dry_run._network("teacher", joined, theirs)
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(pictures.iterdir())])
    view = (images / 255 - 0.5) / 0.25
    seen, other = (joined.apply(theirs, x, moments=True) for x in (view, view[::-1] * 0.5))
    for layer, statistics in theirs["batch_stats"].items():
        for key, value in statistics.items():
            np.testing.assert_allclose(value, seen.moments[layer][key], rtol=2e-4, atol=2e-5)
    far = losses.feature(other.moments, theirs["batch_stats"])
    assert losses.feature(seen.moments, theirs["batch_stats"]) < 0.01 * far
    np.testing.assert_array_equal(seen.logits, teacher.apply(variables, view).logits)


def test_tokens_of_a_transformer_have_all_heads(graphs):
    teacher, variables = loaded(graphs / "vit")
    assert [x.shape for x in teacher.apply(variables, jnp.zeros((2, 32, 32, 3)), tokens=True).tokens] == [(2, 64, 8)]
    assert teacher.apply(variables, jnp.zeros((2, 32, 32, 3))).tokens == ()


def test_another_network_gives_moments_and_statistics_of_what_it_expects():
    """The teacher's answers stay; images are brought into the proxy's range, and to its size."""
    teacher, proxy = bare_network(), toy_network()
    proxy = proxy._replace(spec=models.NetworkSpec("toy", 10, 8, 1, (0.1,), (0.6,)))
    teacher_vars, proxy_vars = teacher.init(jax.random.key(0)), proxy.init(jax.random.key(1))
    images = jax.random.uniform(jax.random.key(2), (5, 8, 8, 1))
    theirs, ours = ((images - spec.mean[0]) / spec.std[0] for spec in (proxy.spec, teacher.spec))
    joined = proxies.with_proxy(teacher, proxy)
    variables = proxies.proxy_variables(teacher_vars, proxy_vars)
    seen = jax.jit(lambda x: joined.apply(variables, x, moments=True, image_means=True))(ours)
    expected = proxy.apply(proxy_vars, theirs, moments=True, image_means=True)
    np.testing.assert_allclose(seen.logits, teacher.apply(teacher_vars, ours).logits, rtol=1e-6)
    for found, wanted in ((seen.moments, expected.moments), (seen.image_means, expected.image_means)):
        for key, value in wanted["bn"].items():
            np.testing.assert_allclose(found["bn"][key], value, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(jax.eval_shape(joined.init, jax.random.key(0))) == jax.tree.structure(variables)
    flat = jnp.broadcast_to(ours[:, :1, :1], ours.shape)
    larger = proxies.with_proxy(teacher._replace(apply=lambda v, x, **_: teacher.apply(v, flat)), proxy, 8)
    doubled = jnp.broadcast_to(ours[:, :1, :1], (5, 16, 16, 1))
    seen = (network.apply(variables, x, moments=True).moments for network, x in ((joined, flat), (larger, doubled)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *seen)


@pytest.mark.parametrize("feature", ["plain", PATCHES])
def test_a_call_lowers_what_is_asked_of_a_transformers_images(graphs, pictures, feature):
    """From the options to the record, for the term alone."""
    config = tiny_config(teacher__checkpoint="", data__source="", student__arch="wrn10_1", inversion__feature=feature)
    config.teacher.graph, config.teacher.mean, config.teacher.std = str(graphs / "vit"), (0.5,) * 3, (0.25,) * 3
    config.proxy.images = "" if feature == PATCHES else str(pictures)
    config.fastdfkd.num_steps, config.inversion.crop_padding, config.inversion.flip = 20, 0, False
    config.inversion.class_weight = config.inversion.adversarial_weight = 0.0
    parts = build.assemble(config)
    assert parts.method.knows == (base.TEACHER_ONLY if feature == PATCHES else base.OTHER_DATA)
    state = jax.jit(parts.method.init)(jax.random.key(0), parts.teacher_vars)
    student_vars = parts.student.init(jax.random.key(1))
    _, _, info = jax.jit(parts.method.synthesize)(state, parts.teacher_vars, student_vars, jax.random.key(2))
    records = info.records()
    assert records["loss/last"] < records["loss/first"]
    assert ("moment_gap" in records) == (feature != PATCHES)


def refused(match, teacher, **changes):
    network = {"toy": toy_network, "bare": bare_network}[teacher]()
    with pytest.raises(UserError, match=match):
        given.applied(ProxyOptions(**changes), network, network.init(jax.random.key(0)), Forms())


def test_what_does_not_fit_is_refused_in_one_line(pictures, graphs):
    refused(r"proxy\.images must be '' for the teacher toy, which has BatchNorm, found", "toy", images=str(pictures))
    refused(r"proxy\.images must be '' for the teacher bare: no LayerNorm", "bare", images=str(pictures))
    teacher, variables = loaded(graphs / "vit")
    chosen = ProxyOptions(graph=str(graphs / "gn_resnet8"), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(UserError, match=r"must be of a network with BatchNorm, found graph:gn_resnet8, which has none"):
        given.applied(chosen, teacher, variables, Forms())
    with pytest.raises(UserError, match=r"proxy\.images must be '' with proxy\.checkpoint"):
        ProxyOptions(images="a", checkpoint="b")
