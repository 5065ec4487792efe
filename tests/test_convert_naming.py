"""Names and layouts, and what is told from them; no torch needed."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import logging

from fastdfkd_jax import convert, models
from fastdfkd_jax.convert import from_state_dict, naming, to_state_dict, weight_files
from fastdfkd_jax.convert.guess import guess_arch, guess_channels, guess_classes
from fastdfkd_jax.convert.messages import LongError
from fastdfkd_jax.convert.naming import Naming, common_prefix, expected_entries, find_naming
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec, arch_names, architectures, build
from fastdfkd_jax.models.layers import BatchNorm, Conv


def zeros_like(arch: str, num_classes: int = 10, channels: int = 3) -> dict[str, np.ndarray]:
    """A state dictionary of the right names and shapes, which is all that guessing looks at."""
    entries = expected_entries(build(NetworkSpec(arch, num_classes, channels=channels)))
    return {name: np.zeros(entry.shape, np.float32) for name, entry in entries.items()}


@pytest.fixture(scope="module")
def network():
    return build(NetworkSpec("wrn10_1", 10))


@pytest.fixture(scope="module")
def state(network):
    return to_state_dict(network.init(jax.random.key(0)))


@pytest.mark.parametrize("arch", [*arch_names(), "wrn10_3", "resnet50a", "resnet14b", "resnet14x4a"])
def test_the_architecture_classes_and_channels_are_told_from_the_entries(arch):
    state = zeros_like(arch, 17, 1)
    # Strides and epsilons are not among the entries: Keras's ResNet-50 must be named, and an output stride of 16.
    told = arch.replace("resnet50v1", "resnet50").removesuffix("_os16")
    assert guess_arch(state) == told
    assert guess_classes(state) == 17
    assert guess_channels(state) == 1
    prefixed = {f"module.{name}": array for name, array in state.items()}
    assert (guess_arch(prefixed), guess_classes(prefixed), guess_channels(prefixed)) == (told, 17, 1)


def test_the_aliases_of_other_code_bases_do_not_hide_the_architecture():
    renames = Naming("module.", (("linear", "fc"), ("shortcut", "downsample")))
    state = {renames.to_source(name): array for name, array in zeros_like("resnet8x4").items()}
    assert "module.layer1.0.downsample.0.weight" in state
    assert guess_arch(state) == "resnet8x4"
    assert find_naming(state, zeros_like("resnet8x4")) == renames


@pytest.mark.parametrize(
    "change",
    [
        {"conv1.weight": np.zeros((64, 3, 5, 5), np.float32)},  # neither stem
        {"layer1.2.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)},  # 3, 2, 2, 2 blocks
    ],
)
def test_an_architecture_that_cannot_be_told_is_asked_for(change):
    with pytest.raises(UserError, match=r"cannot be recognised.*--arch"):
        guess_arch(zeros_like("resnet18") | change)


def test_there_and_back_is_bit_equal(network, state):
    variables = from_state_dict(state, network)
    again = to_state_dict(variables)
    assert again.keys() == state.keys()
    for name, array in state.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, variables) == jax.tree.map(lambda a: a.shape, dict(shapes))


def test_layouts_by_hand():
    kernel, matrix = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5), np.arange(6.0).reshape(2, 3)
    variables = {"params": {"a.0": {"kernel": kernel}, "b": {"kernel": matrix, "bias": np.ones(3)}}, "batch_stats": {}}
    state = to_state_dict(variables)
    assert set(state) == {"a.0.weight", "b.weight", "b.bias"}
    assert state["a.0.weight"].shape == (5, 4, 2, 3)
    assert state["a.0.weight"][4, 3, 1, 2] == kernel[1, 2, 3, 4]
    assert state["b.weight"][2, 1] == matrix[1, 2]


def test_statistics_and_counters(network, state):
    assert state["bn1.num_batches_tracked"].dtype == np.int64
    assert state["bn1.num_batches_tracked"].shape == ()
    changed = state | {"bn1.running_var": np.arange(1, 65, dtype=np.float32)}
    variables = from_state_dict(changed, network)
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["var"], np.arange(1, 65))
    without = {name: array for name, array in state.items() if not name.endswith(naming.COUNTER)}
    assert from_state_dict(without, network).keys() == {"params", "batch_stats"}
    assert to_state_dict(variables, num_batches_tracked=None).keys() == without.keys()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_names_there_and_back(state, prefix):
    theirs = Naming(prefix, (("fc", "linear"),))
    named = {theirs.to_source(name) for name in state}
    assert f"{prefix}linear.weight" in named
    assert find_naming(named, state) == theirs
    assert {theirs.to_ours(name) for name in named} == set(state)


def test_two_heads_in_one_checkpoint_are_not_taken_for_an_alias(state):
    names = [name for name in state if not name.startswith("fc")]
    assert find_naming([*names, "linear.weight", "classifier.weight"], state) == Naming()


def test_everything_that_is_wrong_is_said_at_once(network, state):
    wrong = {f"module.{name}": array for name, array in state.items() if name != "bn1.bias"}
    wrong["module.conv1.weight"] = np.zeros((64, 3, 7, 7), np.float32)
    wrong["module.extra.weight"] = np.zeros(3, np.float32)
    wrong["module.fc.bias"] = np.full(10, np.nan, np.float32)
    wrong["module.bn1.running_var"] = np.full(64, -1, np.float32)
    wrong["module.bn1.weight"] = np.ones(64, np.int32)
    with pytest.raises(UserError) as caught:
        from_state_dict(wrong, network)
    assert len(str(caught.value)) <= 280
    assert isinstance(caught.value, LongError)
    message = caught.value.full
    assert "\n" not in message
    assert "missing (1): module.bn1.bias;" in message
    assert "not used (1): module.extra.weight;" in message
    assert "module.conv1.weight (found 64x3x7x7, expected 16x3x3x3)" in message
    assert "module.bn1.weight (found 64 int32, expected 64)" in message
    assert "not finite (1): module.fc.bias" in message
    assert "negative variance (1): module.bn1.running_var" in message


def test_long_lists_are_short_and_whole_on_request(network, state):
    with pytest.raises(LongError) as caught:
        from_state_dict({"conv1.weight": state["conv1.weight"]}, network)
    for name in expected_entries(network):
        assert name == "conv1.weight" or f"{name}," in f"{caught.value.full},".replace(";", ",")
    assert "missing (38): block1.layer.0.bn1.bias, " in str(caught.value)
    assert str(caught.value).endswith("record its graph: fastdfkd convert record")
    placed = caught.value.within("/data/" + "long_name/" * 30 + "teacher.pth")
    assert len(str(placed)) <= 280
    assert "teacher.pth: not a valid" in str(placed)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["backbone.conv1.weight", "backbone.bn1.weight"], "backbone."),
        (["module.model.conv1.weight", "module.model.bn1.weight"], "module.model."),
        (["1.conv1.weight", "1.fc.bias"], "1."),
        (["conv1.weight", "conv1.bias"], ""),  # a layer's own name
        (["conv1.weight"], ""),
        (["module.weight"], "module."),
        (["conv1.weight", "bn1.weight"], ""),
        ([], ""),
    ],
)
def test_the_prefix_is_what_all_names_begin_with(names, prefix):
    assert common_prefix(names) == prefix


def test_a_zero_variance_warns_and_passes(network, state, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    dead = np.ones(64, np.float32)
    dead[:3] = 0
    from_state_dict(state | {"bn1.running_var": dead}, network)
    assert len(said) == 1
    assert "bn1.running_var (3 channels)" in said[0]


def test_a_safetensors_file_is_read_in_its_order(tmp_path):
    """Of two layers with unusual names the last counts as the classifier."""
    arrays = {f"fc{i}.weight": np.ones((i, 2), np.float32) for i in range(1, 9)}
    weight_files.write_safetensors(tmp_path / "net.safetensors", arrays, {})
    state, _ = weight_files.read_state_dict(tmp_path / "net.safetensors")
    assert list(state) == list(arrays)
    assert guess_classes(state) == 8


class Own(nn.Module):
    """A network whose first layer has no usual name and whose classifier is no dense layer."""

    num_classes: int
    train: bool = False
    forms: models.Forms = models.Forms()

    @nn.compact
    def __call__(self, x):
        x = BatchNorm(self.train, dtype=self.forms.dtype, name="norm")(Conv(4, forms=self.forms, name="stem")(x))
        return Conv(self.num_classes, 1, forms=self.forms, name="head")(x).mean((1, 2)), x.mean((1, 2)), (x,)


def test_of_an_architecture_of_one_s_own_nothing_is_told_from_names(tmp_path, monkeypatch):
    monkeypatch.setattr(architectures, "_registered", {})
    models.register("own", Own, image_size=16)
    network = build(NetworkSpec("own", 5, 16, channels=1, mean=(0.5,), std=(0.5,)))
    variables = network.init(jax.random.key(0))
    convert.save_network(tmp_path / "own.safetensors", network, variables)
    again, loaded = convert.load_network(tmp_path / "own.safetensors")
    assert again.spec == network.spec
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
    with pytest.raises(UserError, match="has 5 classes, expected 4: check --num-classes"):
        convert.load_network(tmp_path / "own.safetensors", num_classes=4)
