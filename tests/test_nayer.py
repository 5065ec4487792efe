"""NAYER: its noisy layers and embeddings, the generator's life, its loss, embeddings from a file, and whole runs."""

import dataclasses
import functools
import itertools
import json
from typing import Any

import graph_fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import Runs, tiny_config
from safetensors.numpy import load_file
from test_without_batch_norm import dense_generator
from toy_network import SPEC, share_on_target, toy_network

from fastdfkd_jax import convert, losses, models, moments
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.configs import nayer as config_file
from fastdfkd_jax.configs import quickstart
from fastdfkd_jax.data import digits, label_embeddings
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, nayer
from fastdfkd_jax.methods.parts.inversion_loss import InversionOptions
from fastdfkd_jax.models import Forms
from fastdfkd_jax.models.generators.by_kind import GeneratorOptions
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.loop import Training

BATCH, LATENT = 24, 5
# Without a random view, so that the images that are judged are those that are kept.
STILL = InversionOptions(0.5, 1.33, 10.0, crop_padding=0, flip=False)
TINY = nayer.NAYEROptions(
    num_steps=1, lr=0.01, generator_life=2, generator=GeneratorOptions(latent_dim=LATENT), inversion=STILL
)
MOVED = 0.011  # Adam moves a parameter by little more than its rate in a step


@pytest.fixture(autouse=True)
def small_generator(monkeypatch):
    monkeypatch.setattr(nayer, "build_generator", dense_generator)


def method_of(teacher=None, label_embeddings=None, batch=BATCH, warmup_calls=0, **changes):
    network = teacher or toy_network()
    setting = base.Setting(network, toy_network(), batch, 9, warmup_calls, 2, lambda x: x, Forms(conv="xla"))
    setting = setting._replace(label_embeddings=label_embeddings)
    return nayer.build(dataclasses.replace(TINY, **changes), setting)


@functools.cache
def variables():
    init = jax.jit(toy_network().init)
    return init(jax.random.key(0)), init(jax.random.key(1))


def key_of(call):
    return jax.random.fold_in(jax.random.key(3), call)


def run(calls=2, **changes):
    """States (the initial one first), batches and infos of some calls."""
    method = method_of(**changes)
    step: Any = jax.jit(method.synthesize)
    states, batches, infos = [jax.jit(method.init)(jax.random.key(2), variables()[0])], [], []
    for call in range(calls):
        state, batch, info = step(states[-1], *variables(), key_of(call))
        states.append(state)
        batches.append(batch)
        infos.append(info)
    assert step._cache_size() == 1, "one compilation must suffice for every call"
    return states, batches, infos


def drawn_in(call, count=3):
    """The noisy layers of a call and its order of the classes, by the keys that the method splits."""
    _, noise_key, order_key, _ = jax.random.split(key_of(call), 4)
    return nayer.noisy_layers(noise_key, count, 16, LATENT), jax.random.permutation(order_key, 10)


def rendered(state, call):
    noisy, order = drawn_in(call)
    latents = nayer.latents_of(noisy, state.embeddings[order])[:BATCH]
    generator = dense_generator(8, 1, LATENT)
    return generator.apply(state.generator, latents)


def test_a_latent_is_a_linear_map_of_its_class_s_standardised_embedding():
    embeddings = np.random.default_rng(0).normal(3, 2, (10, 4)).astype(np.float32)
    noisy = nayer.noisy_layers(jax.random.key(0), 3, 4, 6)
    noisy["norm"] = {"scale": jnp.arange(1.0, 5.0), "bias": jnp.arange(4.0)}
    latents = np.asarray(nayer.latents_of(noisy, jnp.asarray(embeddings)))
    assert latents.shape == (30, 6)
    standard = (embeddings - embeddings.mean(0)) / np.sqrt(embeddings.var(0) + 1e-5)
    standard = standard * np.arange(1, 5) + np.arange(4)
    for image in (0, 7, 13, 29):
        layer, label = divmod(image, 10)
        expected = standard[label] @ noisy["kernel"][layer] + noisy["bias"][layer]
        np.testing.assert_allclose(latents[image], expected, rtol=1e-4, atol=1e-5)


def test_noisy_layers_are_standard_normal():
    noisy = nayer.noisy_layers(jax.random.key(0), 2, 100, 200)
    # 40,000 draws: the standard errors of mean and deviation are 0.005 and 0.0035.
    assert abs(float(noisy["kernel"].mean())) < 0.025
    assert abs(float(noisy["kernel"].std()) - 1) < 0.02
    assert not np.array_equal(noisy["kernel"][0], noisy["kernel"][1])


def test_each_call_renders_the_images_of_new_noisy_layers_in_the_order_of_its_labels():
    states, batches, _ = run()
    for call, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.labels, np.resize(drawn_in(call)[1], BATCH))
        # The same sums in two programs.
        np.testing.assert_allclose(batch.images, rendered(states[call], call), atol=1e-5)
    assert batches[0].images.shape == (BATCH, *SPEC.input_shape)
    assert np.all((batches[0].images >= 0) & (batches[0].images <= 1))
    sorted_images = [np.asarray(batch.images)[np.argsort(batch.labels, kind="stable")] for batch in batches]
    assert np.abs(sorted_images[0][0] - sorted_images[1][0]).max() > 0.1, "another image of the same class"
    assert np.abs(sorted_images[0][0] - sorted_images[0][1]).max() > 0.1, "and another in the same batch"


def test_labels_are_balanced_and_no_class_is_left_out_where_a_batch_is_smaller():
    _, batches, _ = run()
    assert sorted(np.bincount(batches[0].labels)) == [2] * 6 + [3] * 4
    _, batches, _ = run(calls=8, batch=4)
    assert all(len(set(np.asarray(batch.labels).tolist())) == 4 for batch in batches)
    assert len(np.unique([batch.labels for batch in batches])) == 10


def test_generator_and_noisy_layers_are_trained_and_only_the_generator_is_kept():
    follows = dataclasses.replace(STILL, class_weight=10.0, feature_weight=1.0)
    states, _, infos = run(num_steps=150, inversion=follows)
    assert infos[0].losses["last"] < infos[0].losses["first"]
    assert infos[0].on_target > 0.5, "chance is a tenth"
    assert states[1]._fields == ("generator", "embeddings", "accumulators", "call")
    np.testing.assert_array_equal(states[1].embeddings, states[0].embeddings)
    assert [int(state.accumulators.count) for state in states] == [0, 1, 2]


@pytest.mark.parametrize(("life", "anew"), [(2, [3, 5]), (1, [2, 3, 4, 5]), (0, [])])
def test_a_generator_is_drawn_anew_after_its_life(life, anew):
    states, _, _ = run(calls=5, generator_life=life)
    kernels = [np.asarray(state.generator["kernel"]) for state in states]
    jumps = [float(np.abs(after - before).max()) for before, after in itertools.pairwise(kernels)]
    assert [call for call, jump in enumerate(jumps, 1) if jump > MOVED] == anew
    assert all(jump > 0 for jump in jumps), "it is trained in every call"
    assert len({kernel.tobytes() for kernel in kernels}) == 6


def test_the_loss_is_the_weighted_sum_of_the_shared_terms():
    """In the second call, where the accumulators are not empty."""
    states, batches, infos = run()
    (teacher_vars, student_vars), batch, accumulators = variables(), batches[1], states[1].accumulators
    view = augment.normalize(batch.images, SPEC.mean, SPEC.std)
    taught = toy_network().apply(teacher_vars, view, moments=True)
    learned = toy_network().apply(student_vars, view).logits
    terms = {
        "class": losses.cross_entropy(taught.logits, batch.labels),
        "adversarial": losses.adversarial_kl(taught.logits, learned),
        "feature": losses.momentum_feature(taught.moments, teacher_vars["batch_stats"], accumulators, 0.9, "variance"),
    }
    found = infos[1].losses
    for name, value in terms.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    total = 0.5 * terms["class"] + 1.33 * terms["adversarial"] + 10 * terms["feature"]
    np.testing.assert_allclose(found["first"], total, rtol=1e-4)
    after = moments.update(accumulators, taught.moments, 0.9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), after.moments, states[2].accumulators.moments
    )


def test_the_adversarial_term_waits_for_the_call_before_kd():
    _, _, infos = run(calls=3, warmup_calls=2)
    for call, info in enumerate(infos, 1):
        adversarial = 1.33 * info.losses["adversarial"] * (call >= 2)
        rest = 0.5 * info.losses["class"] + 10 * info.losses["feature"]
        np.testing.assert_allclose(info.losses["first"], rest + adversarial, rtol=1e-5)


def test_what_is_measured_is_of_the_images():
    _, batches, infos = run()
    share = share_on_target(toy_network(), variables()[0], batches[0])
    assert infos[0].on_target == pytest.approx(share)
    assert 0 < share < 1
    assert infos[0].predicted.sum() == BATCH
    np.testing.assert_allclose(infos[0].moment_gap_by_step[-1], infos[0].moment_gap, rtol=1e-5)


# --- the embeddings of the teacher


def assert_rows_make_logits(network, values, rows, side):
    """The logits are the features' products with the rows, and a constant."""
    seen = jax.jit(network.apply)(values, jax.random.normal(jax.random.key(5), (3, side, side, network.spec.channels)))
    bias = seen.logits - seen.features @ rows.T
    # Sums of a thousand products in float32.
    np.testing.assert_allclose(bias, np.broadcast_to(bias[0], bias.shape), atol=1e-3)


def test_the_embeddings_are_the_rows_of_the_teacher_s_last_layer():
    states, _, _ = run(calls=1)
    np.testing.assert_array_equal(states[0].embeddings, variables()[0]["params"]["readout"].T)


@pytest.mark.parametrize(("arch", "features"), [("wrn10_1", 64), ("resnet8", 64), ("vgg8", 512)])
def test_the_last_layer_of_the_published_networks_is_found(arch, features):
    network = models.build(models.NetworkSpec(arch, 7, 32), forms=Forms(conv="xla"))
    rows = models.last_linear(network)
    assert rows is not None
    values = jax.jit(network.init)(jax.random.key(0))
    assert rows(values).shape == (7, features)
    assert_rows_make_logits(network, values, rows(values), 32)
    remat = models.last_linear(models.rematerialised(network, "activations"))
    assert remat is not None
    np.testing.assert_array_equal(remat(values), rows(values))


def test_the_last_layer_of_a_converted_checkpoint_is_its_entry():
    network, values = convert.load_network(digits.TEACHER_PATH)
    rows = models.last_linear(network)
    assert rows is not None
    np.testing.assert_array_equal(rows(values), load_file(digits.TEACHER_PATH)["fc.weight"])


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("torchvision-mobilenet_v3_small", "classifier.3"),
        ("torchvision-shufflenet_v2_x0_5", "fc"),
        ("timm-skresnet18", "fc"),
    ],
)
def test_the_last_layer_of_a_recorded_graph_is_its_entry(name, entry, tmp_path):
    graph_fixtures.unpack(graph_fixtures.FOLDER / f"{name}.npz", tmp_path / "graph")
    network, values = convert.load_network(tmp_path / "graph", mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = models.last_linear(network)
    assert rows is not None
    np.testing.assert_array_equal(
        rows(values), load_file(tmp_path / "graph" / "weights.safetensors")[f"{entry}.weight"]
    )


def without_features():
    """A teacher whose features are its logits, as in a recorded graph that ends in a convolution."""
    toy = toy_network()

    def apply(*args, **asked):
        seen = toy.apply(*args, **asked)
        return seen._replace(features=seen.logits)

    return toy._replace(apply=apply)


def test_a_teacher_without_a_last_layer_is_refused_unless_there_are_embeddings():
    with pytest.raises(UserError) as caught:
        method_of(without_features())
    assert str(caught.value) == (
        "config.nayer.embeddings must be a file of label embeddings for the teacher toy, whose last linear layer was "
        "not found, found ''"
    )
    assert method_of(without_features(), np.eye(10, dtype=np.float32)).knows == base.LABEL_NAMES


def test_a_generator_of_latent_maps_is_refused(monkeypatch):
    monkeypatch.undo()
    big = toy_network()
    big = big._replace(spec=dataclasses.replace(big.spec, image_size=16))
    with pytest.raises(UserError, match=r"config\.generator\.kind must be 'linear' or 'large' for the method nayer"):
        method_of(big, np.eye(10, dtype=np.float32), generator=GeneratorOptions("spatial"))


# --- embeddings from a file


def test_embeddings_of_the_names_are_used_and_declared():
    given = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    states, batches, _ = run(calls=1, label_embeddings=given)
    np.testing.assert_array_equal(states[1].embeddings, given)
    assert batches[0].images.shape == (BATCH, *SPEC.input_shape)
    assert (method_of().knows, method_of(label_embeddings=given).knows) == (base.TEACHER_ONLY, base.LABEL_NAMES)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
@pytest.mark.parametrize("kind", ["npy", "npz", "packed.npz"])
def test_an_array_of_numbers_is_read(kind, dtype, tmp_path):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    path = tmp_path / f"names.{kind}"
    {"npy": np.save, "npz": np.savez, "packed.npz": np.savez_compressed}[kind](path, array)
    found = label_embeddings.read(path, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def spoilt(write):
    def make(path):
        with path.open("wb") as file:
            write(file)

    return make


def cut(path):
    np.save(path, np.ones((3, 4)))
    path.write_bytes(path.read_bytes()[:-8])


REFUSED = {
    "no file": (lambda path: None, "expected a file of label embeddings at .*, found none: check the path"),
    "a folder": (lambda path: path.mkdir(), "is not a regular file"),
    "text": (lambda path: path.write_text("cat, dog"), "cannot read .* as an array of numbers .*: write it with numpy"),
    "nothing": (lambda path: path.touch(), "cannot read .* as an array of numbers"),
    "cut off": (cut, "cannot read .* as an array of numbers .*its header asks for"),
    "objects": (spoilt(lambda file: np.save(file, np.array([{}], object))), "cannot read .* holds Python objects"),
    "objects in an archive": (
        spoilt(lambda file: np.savez(file, a=np.array([{}], object))),
        "cannot read .* holds Python objects",
    ),
    "two arrays": (
        spoilt(lambda file: np.savez(file, text=np.ones((3, 4)), image=np.ones((3, 4)))),
        "expected one array in .*, found text, image: save the embeddings alone",
    ),
    "no array": (spoilt(lambda file: np.savez(file)), "expected one array in .*, found nothing"),
    "other classes": (
        spoilt(lambda file: np.save(file, np.ones((4, 4)))),
        r"expected finite numbers \[3, dimension\] in .*, found float64\[4, 4\]: give a row for each output",
    ),
    "one row": (spoilt(lambda file: np.save(file, np.ones(3))), r"found float64\[3\]"),
    "empty rows": (spoilt(lambda file: np.save(file, np.ones((3, 0)))), r"found float64\[3, 0\]"),
    "text in an array": (spoilt(lambda file: np.save(file, np.full((3, 4), "a"))), r"found <U1\[3, 4\]"),
    "NaN": (spoilt(lambda file: np.save(file, np.full((3, 4), np.nan))), "found numbers that are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_in_one_line(name, tmp_path):
    make, expected = REFUSED[name]
    path = tmp_path / "names.npy"
    make(path)
    with pytest.raises(UserError, match=expected) as caught:
        label_embeddings.read(path, 3)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_too_many_numbers_for_the_memory_are_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "names.npy", np.ones((3, 400)))
    monkeypatch.setenv("FASTDFKD_MAX_GB", "1e-6")
    with pytest.raises(UserError, match=r"names\.npy would take .* of memory"):
        label_embeddings.read(tmp_path / "names.npy", 3)


# --- whole runs and configs

shared = Runs()


def tiny(**changes):
    return tiny_config(
        method__name="nayer", calls=5, nayer__num_steps=2, nayer__generator_life=2, **changes
    )  # it is drawn anew in calls 3 and 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nayer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nayer, "build_generator", dense_generator)
        summary = shared.run(tiny(), folder)
    return folder, summary


def contents(workdir):
    shards = {path.name: read_shard(path) for path in sorted((workdir / "pool").iterdir())}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return shards, load_file(workdir / "student.safetensors"), lines


def test_a_run_says_what_it_knows_and_keeps_its_images(finished):
    folder, summary = finished
    assert (summary["method"], summary["knows"], summary["images"]) == ("nayer", "teacher only", 5 * 8)
    lines = contents(folder)[2]
    assert len([line for line in lines if "synthesis/on_target" in line]) == 5


@pytest.mark.parametrize(
    ("place", "method", "call"),
    [
        ("device", "_end_call", 2), ("device", "_begin_call", 2), ("device", "_distill", 3), ("device", "_end_call", 4),
        ("disk", "_begin_call", 2), ("disk", "_distill", 3),
    ],
)  # fmt: skip
def test_a_run_that_crashes_about_a_new_generator_ends_the_same(place, method, call, finished, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    original, done = getattr(Training, method), []

    def crash_once(training, *args):
        if training.progress.call == call and not done:
            done.append(True)
            raise Stop
        return original(training, *args)

    monkeypatch.setattr(Training, method, crash_once)
    with pytest.raises(Stop):
        shared.run(tiny(pool__place=place), tmp_path)
    shared.run(tiny(pool__place=place), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, contents(tmp_path)[:2], contents(finished[0])[:2])
    assert contents(tmp_path)[2] == contents(finished[0])[2]


def test_a_run_with_embeddings_of_the_names_records_it(tmp_path):
    np.save(tmp_path / "names.npy", np.random.default_rng(0).normal(size=(10, 7)))
    config = tiny(nayer__embeddings=str(tmp_path / "names.npy"))
    summary = Runs().run(config, tmp_path / "run")
    assert summary["knows"] == "teacher and names of classes"


@pytest.mark.parametrize("variant", [None, "smoke", "cifar100-resnet34-resnet18", "cifar10-resnet20-wrn16_1-short"])
def test_the_config_has_the_released_values(variant):
    config = config_file.get_config(variant)
    validate(config)
    assert config.method.name == "nayer"
    weights = config.inversion
    assert (weights.class_weight, weights.adversarial_weight, weights.feature_weight) == (0.5, 1.33, 10.0)
    assert (weights.feature, weights.accumulator_weight) == ("momentum", 0.9)
    assert (config.nayer.lr, config.generator.latent_dim) == (4e-3, 1000)
    assert config.nayer.num_steps == (40 if variant == "cifar100-resnet34-resnet18" else 30)
    assert config.kd.temperature == 20
    if variant in (None, "cifar100-resnet34-resnet18"):
        assert (config.synthesis_batch, config.kd.batch, config.kd.lr) == (400, 512, 0.2)
        # 20 epochs of 10 batches, then 2 an epoch; a generator lives for 10 epochs.
        assert (config.warmup_calls, config.calls, config.nayer.generator_life) == (200, 600, 20)
    assert quickstart.get_config("nayer").method.name == "nayer"
