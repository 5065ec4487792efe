"""A teacher is trained by the recipe, stored whole, and mistakes are one line."""

import dataclasses
import functools
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax import convert, data, models, pretrain
from fastdfkd_jax.cli import config_flags, signals
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.models import Network, NetworkSpec, Outputs
from fastdfkd_jax.pretrain import main
from fastdfkd_jax.training.supervised import (
    Keeping,
    Position,
    Recipe,
    TrainState,
    make_optimizer,
    train_step,
    train_teacher,
)

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DIGITS = f"--config={CONFIGS / 'pretrain_digits.py'}"
# Twelve steps of a tiny network: seconds, nearly all of them compilation.
SHORT = [
    "--config.arch=wrn10_1",
    "--config.data.train_split=train[:192]",
    "--config.data.test_split=test[:100]",
    "--config.recipe.batch_size=32",
    "--config.recipe.epochs=2",
    "--config.recipe.eval_every=1",
]

# ml_collections loads config files by an importlib method that Python 3.12 deprecates.
LOAD_MODULE = "ignore:the load_module:DeprecationWarning"

RECIPE = Recipe(
    epochs=2,
    batch_size=4,
    lr=0.1,
    lr_milestones=(1,),
    lr_decay=0.5,
    momentum=0.9,
    weight_decay=0.01,
    padding=0,
    flip=False,
    seed=0,
    eval_every=1,
)


@pytest.fixture
def command(monkeypatch):
    """Runs the command in this process; config_flags looks for overrides in the real command line."""

    def run(*arguments: str) -> None:
        argv = ["pretrain", DIGITS, *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            main(argv)

    return run


def bias_network() -> Network:
    """Logits are a bias alone, so that gradients are softmax minus frequencies."""

    def apply(variables, images, train=False, moments=False, key=None):
        logits = jnp.broadcast_to(variables["params"]["bias"], (len(images), 2))
        return Outputs(logits, logits, (), {}, {})

    return Network(
        NetworkSpec("bias", 2, 2, 1, mean=(0.5,), std=(0.5,)),
        lambda key: {"params": {"bias": jnp.array([0.3, -0.1])}, "batch_stats": {}},
        apply,
    )


def test_steps_equal_torch_sgd_by_hand():
    network, optimizer = bias_network(), make_optimizer(RECIPE, num_steps=2)
    variables = network.init(jax.random.key(0))
    state = TrainState(variables, optimizer.init(variables["params"]))
    images, labels = jnp.zeros((4, 2, 2, 1), jnp.uint8), jnp.array([0, 0, 0, 1])
    step = jax.jit(functools.partial(train_step, network, optimizer, RECIPE))
    bias, buffer = np.array([0.3, -0.1]), np.zeros(2)
    for rate in (0.1, 0.1, 0.05, 0.05):
        chances = np.exp(bias) / np.exp(bias).sum()
        expected_loss = -(np.log(chances) * [0.75, 0.25]).sum()
        buffer = 0.9 * buffer + chances - [0.75, 0.25] + 0.01 * bias
        bias = bias - rate * buffer
        state, loss = step(state, images, labels, jax.random.key(1))
        # Float32 against float64.
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        np.testing.assert_allclose(state.variables["params"]["bias"], bias, rtol=1e-5)


def test_a_short_run_improves_the_loss_and_stores_the_teacher(tmp_path, capsys, command):
    command(f"--workdir={tmp_path / 'new'}", *SHORT)
    assert json.loads(capsys.readouterr().out)["epoch"] == 2
    workdir = tmp_path / "new"
    names = {path.name for path in workdir.iterdir()}
    assert names == {"teacher.safetensors", "metrics.jsonl", "config.json", "checkpoints", ".lock"}
    assert json.loads((workdir / "config.json").read_text())["arch"] == "wrn10_1"
    first, last = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [first["epoch"], last["epoch"]] == [1, 2]
    assert last["train_loss"] < first["train_loss"]
    # What is stored is what was measured.
    network, variables = convert.load_network(workdir / "teacher.safetensors")
    assert network.spec == NetworkSpec("wrn10_1", 10, 16, 1, mean=(0.306,), std=(0.318,))
    measured = make_evaluator(network)(variables, data.load("digits", "test[:100]"))
    assert measured["accuracy"] == last["test_accuracy"]
    assert measured["loss"] == pytest.approx(last["test_loss"], rel=1e-6)


def linear_network() -> Network:
    """A random linear map of the digits' pixels."""

    def apply(variables, images, train=False, moments=False, key=None):
        logits = images.reshape(len(images), -1) @ variables["params"]["kernel"]
        return Outputs(logits, logits, (), {}, {})

    return Network(
        NetworkSpec("linear", 10, 16, 1, mean=(0.3,), std=(0.3,)),
        lambda key: {"params": {"kernel": 0.1 * jax.random.normal(key, (256, 10))}, "batch_stats": {}},
        apply,
    )


def test_training_is_a_function_of_the_seed():
    dataset, reports = data.load("digits", "train[:18]"), []
    recipe = dataclasses.replace(RECIPE, epochs=5, eval_every=2, padding=2, flip=True)

    def train(seed: int) -> np.ndarray:
        variables = train_teacher(
            linear_network(),
            dataclasses.replace(recipe, seed=seed),
            dataset,
            lambda epoch, loss, _: reports.append(epoch),
        )
        assert variables is not None
        return np.asarray(variables["params"]["kernel"])

    first = train(0)
    assert reports == [2, 4, 5]
    np.testing.assert_array_equal(first, train(0))
    assert (first != train(1)).all()


def stopped_before(step: int, positions: list[Position], begin: Position | None = None) -> Keeping:
    """Asks to stop when so many steps are done, and notes what is saved."""

    class Stop(signals.Stop):
        looks = 0 if begin is None else begin.steps

        @property
        def requested(self):
            self.looks += 1
            return self.looks > step

        @requested.setter
        def requested(self, value):
            pass

    return Keeping(lambda state: begin, positions.append, Stop())


@pytest.mark.parametrize("step", [0, 3, 4, 7])
def test_training_continues_where_it_was_stopped(step):
    """Before the first step, within an epoch, between two, and within one whose end is not reported."""
    dataset = data.load("digits", "train[:18]")
    recipe = dataclasses.replace(RECIPE, epochs=3, eval_every=2, padding=2, flip=True)

    def train(keeping: Keeping | None = None):
        reports = []
        report = lambda epoch, loss, _: reports.append((epoch, loss))  # noqa: E731
        return train_teacher(linear_network(), recipe, dataset, report, keeping), reports

    whole, expected = train()
    positions: list[Position] = []
    stopped, before = train(stopped_before(step, positions))
    assert stopped is None
    assert whole is not None
    assert [position.steps for position in positions] == [step]
    assert len(positions[0].losses) == step % 4
    ended, after = train(stopped_before(100, positions, json_and_back(positions[0])))
    assert ended is not None
    assert before + after == expected
    np.testing.assert_array_equal(ended["params"]["kernel"], whole["params"]["kernel"])
    # Once it has ended there is nothing left to do.
    again, reports = train(stopped_before(100, [], positions[-1]))
    assert again is not None
    assert reports == []
    np.testing.assert_array_equal(again["params"]["kernel"], whole["params"]["kernel"])


def json_and_back(position: Position) -> Position:
    """With the losses as a checkpoint gives them back."""
    return position._replace(losses=json.loads(json.dumps(position.losses)))


def test_a_stopped_command_ends_with_the_same_teacher_when_it_is_repeated(tmp_path, capsys, command, monkeypatch):
    command(f"--workdir={tmp_path / 'whole'}", *SHORT)
    expected = json.loads(capsys.readouterr().out)

    def stop_after_the_first_report(training, *args):
        report(training, *args)
        signal.raise_signal(signal.SIGTERM)

    report = pretrain._Training.report
    with monkeypatch.context() as patched:
        patched.setattr(pretrain._Training, "report", stop_after_the_first_report)
        command(f"--workdir={tmp_path / 'stopped'}", *SHORT)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"another configuration \(recipe.seed: 0 there, 1 now\): use a new workdir"):
        command(f"--workdir={tmp_path / 'stopped'}", *SHORT, "--config.recipe.seed=1")
    command(f"--workdir={tmp_path / 'stopped'}", *SHORT)
    found = json.loads(capsys.readouterr().out)
    assert found.pop("seconds") > 0
    assert found == {key: value for key, value in expected.items() if key != "seconds"}
    teachers = [(tmp_path / name / "teacher.safetensors") for name in ("whole", "stopped")]
    assert teachers[0].read_bytes() == teachers[1].read_bytes()
    # A training that has ended says its record again, and restores a teacher that is missing.
    teachers[1].unlink()
    command(f"--workdir={tmp_path / 'stopped'}", *SHORT)
    assert json.loads(capsys.readouterr().out)["epoch"] == 2
    assert teachers[0].read_bytes() == teachers[1].read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run():
    def apply(variables, images, train=False, moments=False, key=None):
        return bias_network().apply(variables, images)._replace(logits=jnp.full((len(images), 2), jnp.nan))

    dataset = data.Dataset(np.zeros((8, 2, 2, 1), np.uint8), np.zeros(8, np.int32))
    with pytest.raises(UserError, match="loss became nan in epoch 1: lower"):
        train_teacher(bias_network()._replace(apply=apply), RECIPE, dataset, lambda *_: None)


def test_a_run_killed_while_it_writes_leaves_the_teacher_before(tmp_path, monkeypatch, command):
    def killed(*_):
        raise KeyboardInterrupt

    def untrained(network, recipe, dataset, report, keeping):
        report(1, 0.0, network.init(jax.random.key(recipe.seed)))
        return {}

    monkeypatch.setattr("fastdfkd_jax.pretrain.train_teacher", untrained)
    command(f"--workdir={tmp_path}", *SHORT, "--config.recipe.seed=0")
    before = (tmp_path / "teacher.safetensors").read_bytes()
    # All else is written; the kill comes between the teacher's bytes and its name.
    monkeypatch.setattr("fastdfkd_jax.pretrain.write_atomically", lambda *_: None)
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        command(f"--workdir={tmp_path}", *SHORT, "--config.recipe.seed=1")
    assert (tmp_path / "teacher.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["pretrain_cifar10", "pretrain_digits"])
@pytest.mark.filterwarnings(LOAD_MODULE)
def test_configs_build(name):
    arguments = ["pretrain", f"--config={CONFIGS / f'{name}.py'}"]
    config: dict[str, Any] = config_flags.parse(arguments, "pretrain", "")[0].to_dict()
    Recipe(**config["recipe"])
    assert models.is_known(config["arch"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.recipe.epoch=3"], "epoch"),
        (["--config.recipe.epochs=many"], "many"),
        (["--confg.recipe.epochs=1"], "confg"),
        (["stray"], "stray"),
        (["--config.recipe.epochs=0"], "recipe.epochs of at least 1, found 0"),
        (["--config.recipe.lr=-1."], "recipe.lr of at least 0"),
        (["--config.recipe.batch_size=2000"], "at least a batch of 2000"),
        (["--config.mean=(0.1,0.2)"], "expected 1 numbers in mean"),
        (["--config.mean=(123.7,)"], "divide them by 255"),
        (["--config.arch=wrn11_1"], "unknown architecture"),
        (["--config.data.source=mnist"], "unknown data source"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(arguments, expected, command, tmp_path):
    with pytest.raises(UserError) as caught:
        command(f"--workdir={tmp_path / 'new'}", *arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_made(tmp_path, command):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        command(f"--workdir={tmp_path / 'file'}")


def test_a_mistake_ends_the_command_with_status_2():
    line = [sys.executable, "-m", "fastdfkd_jax.pretrain", DIGITS, "--config.data.source=mnist"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown data source 'mnist'")
    assert done.stderr.count("\n") == 1


def test_the_command_says_how_far_it_is(tmp_path):
    changes = ("recipe.epochs=1", "recipe.batch_size=8", "arch=wrn10_1", "data.train_split=train[:8]")
    line = [sys.executable, "-m", "fastdfkd_jax.pretrain", DIGITS, "--workdir", str(tmp_path)]
    line += [f"--config.{change}" for change in (*changes, "data.test_split=test[:8]")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "epoch 1/1: loss " in done.stderr
    assert json.loads(done.stdout)["epoch"] == 1
