"""Training that begins with given weights, from a recorded network, and with a transformer's optimizer."""

import json
import math

import graph_fixtures
import jax
import numpy as np
import pretrain_toy
import pytest
from flax.traverse_util import flatten_dict
from test_pretrain import RECIPE, bias_network

from fastdfkd_jax import convert, pretrain
from fastdfkd_jax.configs import pretrain_cifar10
from fastdfkd_jax.convert import naming, weight_files
from fastdfkd_jax.convert.checkpoints import load_described
from fastdfkd_jax.convert.initial import starting_from
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, build
from fastdfkd_jax.training import supervised
from fastdfkd_jax.training.supervised import Recipe, TrainState, make_optimizer, train_step

KEY = jax.random.key(7)


def saved(path, spec, key=3):
    """A network with other weights than `init` draws with KEY, and its entries as saved."""
    network = build(spec)
    variables = network.init(jax.random.key(key))
    convert.save_network(path, network, variables)
    return naming.to_state_dict(variables, None)


def begun(network, path):
    """The entries that the network begins with, and what was said of them."""
    said = []
    start = starting_from(network, path, said.append)
    return naming.to_state_dict(start.init(KEY), None), "".join(said)


def test_another_head_is_drawn_and_all_else_is_given(tmp_path):
    given = saved(tmp_path / "given.safetensors", NetworkSpec("wrn10_1", 5, 16))
    network = build(NetworkSpec("wrn10_1", 7, 16))
    found, said = begun(network, tmp_path / "given.safetensors")
    drawn = naming.to_state_dict(network.init(KEY), None)
    for name, array in found.items():
        np.testing.assert_array_equal(array, drawn[name] if name.startswith("fc.") else given[name], err_msg=name)
    assert said.endswith("drawn: fc.bias, fc.weight")
    # The tree is that of the network, so optimizers and checkpoints fit.
    assert (
        flatten_dict(dict(starting_from(network, tmp_path / "given.safetensors").init(KEY))).keys()
        == flatten_dict(dict(network.init(KEY))).keys()
    )


def test_a_backbone_goes_into_a_segmentation_network(tmp_path):
    """With the names of torchvision's module, which has 'downsample' and 'fc'."""
    given = saved(tmp_path / "given.safetensors", NetworkSpec("resnet18_imagenet", 9, 64))
    naming_of = {"shortcut": "downsample", "linear": "fc"}
    theirs = {".".join(naming_of.get(part, part) for part in name.split(".")): a for name, a in given.items()}
    weight_files.write_safetensors(tmp_path / "theirs.safetensors", theirs, {})
    network = build(NetworkSpec("deeplabv3_resnet18_os16", 5, 64))
    found, said = begun(network, tmp_path / "theirs.safetensors")
    backbone = {name: array for name, array in found.items() if name.startswith("backbone.")}
    for entry, array in backbone.items():
        np.testing.assert_array_equal(array, given[entry.removeprefix("backbone.")], err_msg=entry)
    assert len(backbone) == len(given) - 2
    assert f"begins with {len(backbone)} of the {len(found)} entries" in said


def test_weights_of_another_network_are_refused(tmp_path):
    saved(tmp_path / "given.safetensors", NetworkSpec("vgg8", 5, 32))
    with pytest.raises(UserError, match=r"given.safetensors does not fit wrn10_1: \d of its \d+ entries have a name"):
        starting_from(build(NetworkSpec("wrn10_1", 5, 16)), tmp_path / "given.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [("conv1.weight", np.nan), ("bn1.running_var", -1.0), ("bn1.weight", np.int64(1))],
)
def test_what_cannot_be_weights_is_refused(name, value, tmp_path):
    given = saved(tmp_path / "given.safetensors", NetworkSpec("wrn10_1", 5, 16))
    given[name] = np.full(given[name].shape, value, np.asarray(value).dtype)
    weight_files.write_safetensors(tmp_path / "given.safetensors", given, {})
    with pytest.raises(UserError, match=f"expected finite weights and variances .* found others in {name}: give"):
        starting_from(build(NetworkSpec("wrn10_1", 5, 16)), tmp_path / "given.safetensors")


@pytest.mark.parametrize("kept", [["fc.bias"], ["bn1.num_batches_tracked"]])
def test_a_file_of_next_to_nothing_is_refused(kept, tmp_path):
    given = saved(tmp_path / "given.safetensors", NetworkSpec("wrn10_1", 5, 16)) | {kept[0]: np.zeros(5, np.float32)}
    weight_files.write_safetensors(tmp_path / "given.safetensors", {name: given[name] for name in kept}, {})
    with pytest.raises(UserError, match="does not fit wrn10_1"):
        starting_from(build(NetworkSpec("wrn10_1", 5, 16)), tmp_path / "given.safetensors")


# --- The recipe


def rates(steps, **changes):
    recipe = Recipe(**{**vars(RECIPE), "epochs": 5, "lr_milestones": (3,), **changes})
    schedule = supervised._rates(recipe, 2)
    return [float(schedule(step)) for step in range(steps)]


def test_a_rate_rises_then_falls_at_its_milestones():
    expected = [0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    np.testing.assert_allclose(rates(10, rate_warmup_epochs=1), expected, rtol=1e-6)


def test_a_rate_rises_then_falls_along_a_cosine():
    falling = [0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    np.testing.assert_allclose(rates(11, rate_warmup_epochs=1, schedule="cosine"), [0, 0.05, *falling], atol=1e-8)


def test_a_step_of_adamw_is_pytorchs():
    recipe = Recipe(**{**vars(RECIPE), "optimizer": "adamw", "lr_milestones": ()})
    network, optimizer = bias_network(), make_optimizer(recipe, 2)
    variables = network.init(KEY)
    state = TrainState(variables, optimizer.init(variables["params"]))
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 0, 1])
    bias, first, second = np.array([0.3, -0.1]), np.zeros(2), np.zeros(2)
    for number in (1, 2, 3):
        chances = np.exp(bias) / np.exp(bias).sum()
        gradient = chances - [0.75, 0.25]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.9**number) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
        bias = bias - 0.1 * (step + 0.01 * bias)
        state, _ = train_step(network, optimizer, recipe, state, images, labels, KEY)
        np.testing.assert_allclose(state.variables["params"]["bias"], bias, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer": "lion"}, "recipe.optimizer to be one of sgd, adamw, found 'lion'"),
        ({"schedule": "linear"}, "recipe.schedule to be one of milestones, cosine, found 'linear'"),
        ({"rate_warmup_epochs": 2}, "recipe.rate_warmup_epochs in 0..1, fewer than all epochs, found 2"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes, expected):
    with pytest.raises(UserError, match=expected):
        Recipe(**{**vars(RECIPE), **changes})


# --- A recorded network


@pytest.mark.slow
def test_a_recorded_network_is_trained_and_becomes_a_teacher(tmp_path):
    graph = tmp_path / "graph"
    graph_fixtures.unpack(graph_fixtures.FOLDER / "torchvision-mobilenet_v3_small.npz", graph)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(8) % graph_fixtures.CLASSES)
    config = pretrain_cifar10.get_config().to_dict()
    config |= {"graph": str(graph), "initial": str(graph)}
    config["data"] |= {
        "source": f"npz:{tmp_path / 'data.npz'}",
        "dir": "",
        "train_split": "train",
        "test_split": "test",
    }
    config["recipe"] |= {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "lr": 1e-3, "eval_every": 1}
    record = pretrain.run(config, tmp_path / "run")
    assert np.isfinite(record["train_loss"])
    teacher = tmp_path / "run" / "teacher.safetensors"
    spec = json.loads((tmp_path / "run" / "config.json").read_text())
    described = {"graph": str(graph), "mean": spec["mean"], "std": spec["std"]}
    network, variables = load_described(teacher, described)
    recorded = load_described(graph, described)[1]
    # The weights have moved from the recorded ones, but not far.
    moved = np.abs(variables["params"]["classifier.3"]["kernel"] - recorded["params"]["classifier.3"]["kernel"]).max()
    assert 1e-4 < moved < 0.01
    assert network.spec.arch == "graph:graph"


def test_a_training_with_a_config_of_before_continues(tmp_path):
    """Neither an older config nor an older checkpoint has the later keys."""
    present = pretrain_toy.get_config().to_dict()
    present["recipe"] |= {"epochs": 1, "lr_milestones": ()}
    later = (*pretrain._LATER, *pretrain._LATER_IN_RECIPE)
    older = {key: value for key, value in present.items() if key not in later}
    older["recipe"] = {key: value for key, value in present["recipe"].items() if key not in later}
    first = pretrain.run(older, tmp_path)
    assert pretrain.run(present, tmp_path) == first
    with pytest.raises(UserError, match=r"another configuration \(recipe.optimizer: None there, 'adamw' now\)"):
        pretrain.run(present | {"recipe": present["recipe"] | {"optimizer": "adamw"}}, tmp_path)
