"""Calls and KD steps against recorded values of the released PyTorch code, in double precision.

The record holds the released code's weights, latents, labels and views, so that what follows is arithmetic: the first
call has the plain feature loss and no adversarial term, the second all terms, and from the third on the student learns.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from benchmarks.agreement import double
from fastdfkd_jax import convert
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.augmentation.augment import View
from fastdfkd_jax.augmentation.crops import Shift
from fastdfkd_jax.configs import cifar
from fastdfkd_jax.convert import naming
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.methods import fastdfkd
from fastdfkd_jax.models.first_batch_norms import first_batch_norms
from fastdfkd_jax.training import build

pytestmark = pytest.mark.optimized

CALLS, BATCH, STEPS, KD_STEPS, PADDING = 5, 8, 5, 4, 4
# Double precision leaves 1e-16; Adam divides gradients by their own size, BatchNorms of 8 images by small deviations.
RTOL = 1e-9


@pytest.fixture(scope="module")
def record(shared_data):
    return dict(np.load(shared_data / "released_reference" / "released_float64_small.npz"))


def view_of(rows, columns, mirrored):
    """The record counts windows in the padded image, from 0."""
    return View(Shift(jnp.asarray(rows - PADDING), jnp.asarray(columns - PADDING)), None, jnp.asarray(mirrored))


def part(record, prefix):
    return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}


def our_layout(value):
    """A kernel as [..., I, O]; vectors are alike on both sides."""
    return jnp.asarray(value.transpose(naming.from_torch_axes(value.ndim)) if value.ndim > 1 else value)


def generator_params(state):
    """A generator's parameters from PyTorch's state dictionary, in double precision."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        layer, leaf = name.rsplit(".", 1)
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
        tree.setdefault(layer, {})[leaf] = our_layout(value)
    return tree


def student_variables(state, network):
    """`convert.from_state_dict` without its rounding to single precision."""
    leaves = {}
    for name, entry in naming.expected_entries(network).items():
        if name in state:
            leaves[entry.path] = our_layout(state[name])
    return unflatten_dict(leaves)


def assert_close(ours, theirs, what):
    """Relative to the largest value: single small ones are differences of large ones."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=RTOL * np.abs(theirs).max(), err_msg=what)


def assert_same_state(variables, theirs, what):
    ours = convert.to_state_dict(variables, num_batches_tracked=None)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert_close(value, theirs[name], f"{what} {name}")


@pytest.fixture
def config(shared_data):
    config = cifar.make("cifar10", "resnet20-wrn16_1-fast5-short")
    config.teacher.checkpoint = str(shared_data / "teachers" / "resnet20-12fca82f.th")
    config.data.source, config.precision = "", "float64"
    config.calls, config.warmup_calls, config.synthesis_batch = CALLS, 2, BATCH
    config.generator.latent_dim, config.generator.width = 32, 8
    config.kd.batch, config.kd.steps_per_call = BATCH, KD_STEPS
    # The latents are those that the test puts into the state.
    config.fastdfkd.latents = "persistent"
    return config


def test_calls_and_steps_are_those_of_the_released_code(record, config, monkeypatch):
    """From the recorded state before each call: images, losses, meta weights, accumulators and student."""
    views, asked = {}, {}
    monkeypatch.setattr(fastdfkd, "asked_classes", lambda key, count, spec: asked["labels"])
    monkeypatch.setattr(augment, "random_crop_flip", lambda key, images, *_: augment.apply_view(images, recorded(key)))
    monkeypatch.setattr(augment, "draw_view", lambda key, shape, options: views["student"])

    def recorded(key):
        step = (jax.random.key_data(key) == views["keys"]).all(-1).argmax()  # which of the call's views this key draws
        return jax.tree.map(lambda rows: rows[step], views["call"])

    def synthesize(state, student_vars, labels, call_views, key):
        asked["labels"], views["call"] = labels, call_views
        _, lanes_key = jax.random.split(key)
        _, view_key = jax.random.split(jax.random.split(lanes_key, 1)[0])
        views["keys"] = jax.random.key_data(jax.random.split(view_key, STEPS + 1)[:-1])
        return parts.method.synthesize(state, teacher_vars, student_vars, key)

    def learn(state, images, view):
        views["student"] = view
        step = distill.make_step(parts.teacher, parts.student, parts.optimizer, parts.objective.loss)
        return step(state, teacher_vars, images, jax.random.key(0))

    with jax.enable_x64(True):
        parts = build.assemble(config)
        teacher_vars = double(parts.teacher_vars)
        order = forward_order(parts.teacher)
        state = double(jax.jit(parts.method.init)(jax.random.key(0), teacher_vars))
        variables = student_variables(part(record, "call1/before/student/"), parts.student)
        student = distill.from_variables(variables, parts.optimizer)
        synthesize, learn = jax.jit(synthesize), jax.jit(learn)
        for call in range(1, CALLS + 1):
            name = f"call{call}/"
            state = with_generator(state, record, name, call)._replace(latents=jnp.asarray(record[name + "z"])[None])
            call_views = view_of(*(record[name + f"view_{axis}"] for axis in "ijf"))
            labels = jnp.asarray(record[name + "y"], jnp.int32)
            state, batch, info = synthesize(state, student.variables, labels, call_views, jax.random.key(call))
            assert_close(jnp.transpose(batch.images, (0, 3, 1, 2)), record[name + "images"], f"{name} images")
            for index, term in enumerate(("class", "feature", "adversarial")):
                if term != "adversarial" or call >= config.warmup_calls:
                    assert_close(info.losses[term], record[name + "losses"][-1, index], f"{name} {term}")
            assert_same_state({"params": state.generator, "batch_stats": {}}, part(record, name + "meta/"), name)
            for index, layer in enumerate(order):
                for moment in ("mean", "var"):
                    ours = state.accumulators.moments[layer][moment]
                    assert_close(ours, record[name + f"acc/{index}/{moment}"], f"{name} {layer} {moment}")
            if call <= config.warmup_calls:
                continue
            if call > config.warmup_calls + 1:
                student = with_student(student, record, call, parts.student)
            for step in range(KD_STEPS):
                pixels = jnp.asarray(record[name + "kd_images"][step].transpose(0, 2, 3, 1) / 255)
                view = view_of(*(record[name + f"kd_{axis}"][step] for axis in "ijf"))
                student, info = learn(student, pixels, view)
                assert_close(info["loss"], record[name + "kd_loss"][step], f"{name} step {step}")
            assert_same_state(student.variables, part(record, name + "student/"), name)


def with_generator(state, record, name, call):
    """The recorded outer parameters, and Adam's moments of so many calls before."""
    generator = generator_params(part(record, name + "before/meta/"))
    assert jax.tree.structure(generator) == jax.tree.structure(state.generator)
    if call == 1:
        return state._replace(generator=generator)
    mu, nu = (
        {"generator": generator_params(part(record, name + f"before/meta_{moment}/"))}
        for moment in ("exp_avg", "exp_avg_sq")
    )
    adam = optax.ScaleByAdamState(jnp.asarray(call - 1, jnp.int32), mu, nu)
    return state._replace(generator=generator, opt_state=replaced(state.opt_state, adam))


def with_student(student, record, call, network):
    """The recorded student, and its momentum where that was recorded; the rate follows from the steps taken."""
    variables = student_variables(part(record, f"call{call - 1}/student/"), network)
    assert jax.tree.structure(variables) == jax.tree.structure(student.variables)
    student = student._replace(**variables)
    momentum = part(record, f"call{call}/before/student_momentum/")
    if not momentum:
        return student
    trace = optax.TraceState(student_variables(momentum, network)["params"])
    return student._replace(opt_state=replaced(student.opt_state, trace))


def replaced(opt_state, part):
    """An optimizer's state with the part of this type replaced."""

    def is_part(node):
        return isinstance(node, type(part))

    assert sum(map(is_part, jax.tree.leaves(opt_state, is_leaf=is_part))) == 1
    return jax.tree.map(lambda old: part if is_part(old) else old, opt_state, is_leaf=is_part)


def forward_order(teacher):
    """Names of a CIFAR ResNet's BatchNorms in the order of its forward pass."""
    names = ["bn1", *(f"layer{i}.{j}.bn{k}" for i in (1, 2, 3) for j in range(3) for k in (1, 2))]
    variables = jax.eval_shape(teacher.init, jax.random.key(0))
    assert set(names) == set(variables["batch_stats"])
    assert sum(first_batch_norms(teacher)) == 1
    return names
