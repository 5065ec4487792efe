"""The student's optimizer and rate are PyTorch's, and a KD step changes the student and nothing else."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import options_of, tiny_config
from toy_network import SPEC, toy_network, toy_parts

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import distill, kd_losses
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.models import Outputs
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.training.programs import Programs, initial_state

PEAK, FINAL, CALLS, STEPS = 0.2, 2e-4, 5, 3
TEMPERATURE = 4.0


@functools.cache
def network():
    """One network, and weights for a teacher and a student."""
    built = toy_network()
    init = jax.jit(built.init)
    return built, init(jax.random.key(0)), init(jax.random.key(1))


@functools.cache
def images(batch=6):
    return jax.random.uniform(jax.random.key(2), (batch, *SPEC.input_shape))


def rates(schedule, steps):
    return [float(np.asarray(schedule(jnp.int32(step)))) for step in steps]


def test_the_rate_is_constant_within_a_call_and_ends_after_the_last():
    schedule = distill.cosine_by_call(PEAK, FINAL, CALLS, STEPS)
    second = FINAL + (PEAK - FINAL) * (1 + np.cos(np.pi / CALLS)) / 2
    # Float32 cosines, here and below.
    np.testing.assert_allclose(rates(schedule, range(6)), [PEAK] * 3 + [second] * 3, rtol=1e-6)
    np.testing.assert_allclose(rates(schedule, [15, 16, 1000]), [FINAL] * 3, rtol=1e-6)
    assert rates(schedule, [14])[0] > 10 * FINAL, "the last call still learns"


@pytest.mark.parity
def test_the_rate_is_pytorchs_cosine_stepped_once_a_call():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CALLS, eta_min=FINAL)
    expected = []
    for _ in range(CALLS):
        for _ in range(STEPS):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    schedule = distill.cosine_by_call(PEAK, FINAL, CALLS, STEPS)
    np.testing.assert_allclose(rates(schedule, range(CALLS * STEPS)), expected, rtol=1e-5)


def test_the_rate_rises_linearly_in_the_first_steps():
    schedule = distill.warmed_up(distill.cosine_by_call(PEAK, FINAL, CALLS, STEPS), 4)
    plain = rates(distill.cosine_by_call(PEAK, FINAL, CALLS, STEPS), range(8))
    np.testing.assert_allclose(
        rates(schedule, range(8)), np.multiply(plain, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]), rtol=1e-6
    )


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_rate_is_of_the_precision_asked_for(precision):
    with jax.enable_x64(precision == "float64"):
        schedule = distill.warmed_up(distill.cosine_by_call(PEAK, FINAL, CALLS, STEPS), 7)
        rate: Any = schedule(jnp.int32(3))
    assert rate.dtype == precision
    expected = (FINAL + (PEAK - FINAL) * (1 + np.cos(np.pi / CALLS)) / 2) * 4 / 7
    # Each rounds differently; the wider one would not be met from a fraction in the narrower.
    np.testing.assert_allclose(float(rate), expected, rtol=1e-6 if precision == "float32" else 1e-14)


def test_the_average_is_that_of_its_recursion_and_soon_forgets_where_it_began():
    decay, values = 0.9, [3.0, -1.0, 4.0, 1.0, 5.0]
    ours, expected = {"w": jnp.array(100.0)}, 100.0
    for step, value in enumerate(values, start=1):
        ours = distill.average(ours, {"w": jnp.array(value)}, jnp.int32(step), decay)
        kept = min(decay, step / (step + 9))
        expected = kept * expected + (1 - kept) * value
    np.testing.assert_allclose(ours["w"], expected, rtol=1e-6)
    assert abs(expected) < 5, "100 has nearly gone after five steps"
    late = distill.average({"w": jnp.array(1.0)}, {"w": jnp.array(2.0)}, jnp.int32(10_000), decay)
    np.testing.assert_allclose(late["w"], 1.1, rtol=1e-6)


def test_the_averaged_student_is_the_result_and_the_latest_learns_on():
    built, teacher_vars, start = network()
    optimizer = optax.sgd(0.5)
    steps = {
        decay: jax.jit(distill.make_step(built, built, optimizer, kd_loss(TEMPERATURE), ema_decay=decay))
        for decay in (0.0, 0.5)
    }
    states = {decay: distill.from_variables(start, optimizer, ema_decay=decay) for decay in steps}
    followed = [start]
    for number in range(2):
        key = jax.random.key(number)
        states = {decay: steps[decay](states[decay], teacher_vars, images(), key)[0] for decay in steps}
        followed.append(states[0.0].variables)
    jax.tree.map(np.testing.assert_array_equal, states[0.5].variables, states[0.0].variables)
    assert states[0.0].result is not states[0.0].averaged
    first, second, third = map(jax.tree.leaves, followed)
    # The shares that stay are 1/10 and 2/11, as these are below the decay.
    kept = [(0.1 * a + 0.9 * b) * 2 / 11 + c * 9 / 11 for a, b, c in zip(first, second, third, strict=True)]
    for ours, theirs in zip(jax.tree.leaves(states[0.5].result), kept, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(states[0.5].result), third, strict=True))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parity
def test_the_optimizer_is_pytorchs(momentum):
    torch = pytest.importorskip("torch")
    start, schedule = np.array([1.0, -2.0, 0.5], np.float32), distill.cosine_by_call(PEAK, FINAL, 4, 2)
    theirs = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=PEAK, momentum=momentum, weight_decay=0.1)
    ours, transform = jnp.array(start), distill.sgd(schedule, momentum, 0.1)
    state = transform.init(ours)
    for step in range(6):
        (optimizer.param_groups[0]["lr"],) = rates(schedule, [step])
        theirs.grad = torch.cos(theirs.detach())
        optimizer.step()
        updates, state = transform.update(jnp.cos(ours), state, ours)
        ours = ours + jnp.asarray(updates)
    # Six steps of float32, whose cosine is not the same to the last bit.
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)
    assert np.abs(ours - start).min() > 0.05


@functools.cache
def stepped(steps=2):
    """The first state, the one after some steps on one batch, and the last info; nothing is augmented."""
    built, teacher_vars, student_vars = network()
    optimizer = distill.sgd(lambda _: 0.05, 0.9, 1e-4)
    loss = kd_loss(TEMPERATURE)
    step = jax.jit(distill.make_step(built, built, optimizer, loss, views=augment.ViewOptions(0, False)))
    states, infos = [distill.from_variables(student_vars, optimizer)], []
    for index in range(steps):
        state, info = step(states[-1], teacher_vars, images(), jax.random.key(index))
        states.append(state)
        infos.append(info)
    return states, infos


def test_a_step_counts_and_updates_weights_and_statistics():
    states, infos = stepped()
    assert [int(state.step) for state in states] == [0, 1, 2]
    for part in ("params", "batch_stats"):
        trees = [jax.tree.leaves(getattr(state, part)) for state in states]
        assert all(np.any(a != b) for a, b in zip(trees[0], trees[1], strict=True)), part
    assert states[1].variables == {"params": states[1].params, "batch_stats": states[1].batch_stats}
    assert [set(info) for info in infos] == [{"loss", "agreement"}] * 2
    assert infos[1]["loss"] < infos[0]["loss"], "two steps on one batch come nearer to the teacher"


def test_a_step_leaves_the_teacher_and_the_given_student_alone():
    before = jax.tree.map(np.array, network()[1:])
    stepped.cache_clear()
    stepped()
    jax.tree.map(np.testing.assert_array_equal, before, network()[1:])


def test_without_augmentation_the_loss_is_that_of_the_images_themselves():
    built, teacher_vars, student_vars = network()
    inputs = augment.normalize(images(), SPEC.mean, SPEC.std)
    teacher = jax.jit(built.apply)(teacher_vars, inputs).logits
    student = jax.jit(functools.partial(built.apply, train=True))(student_vars, inputs).logits
    expected = losses.distillation(teacher, student, TEMPERATURE).mean()
    info = stepped()[1][0]
    # The same program compiled with and without its gradient rounds differently.
    np.testing.assert_allclose(info["loss"], expected, rtol=1e-4)
    assert info["agreement"] == (teacher.argmax(-1) == student.argmax(-1)).mean()


@pytest.mark.parametrize("view", [{"crop_padding": 2}, {"crop_padding": 0, "flip": False, "least_crop": 0.5}])
def test_views_are_drawn_by_the_key(view):
    built, teacher_vars, student_vars = network()
    optimizer = distill.sgd(lambda _: 0.0, 0.0, 0.0)
    seen = jax.jit(distill.make_step(built, built, optimizer, kd_loss(1.0), views=augment.ViewOptions(**view)))
    state = distill.from_variables(student_vars, optimizer)
    values = [float(seen(state, teacher_vars, images(), jax.random.key(key))[1]["loss"]) for key in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_a_new_student_is_drawn_from_its_key_and_a_given_one_is_kept():
    built, _, student_vars = network()
    optimizer = distill.sgd(lambda _: 0.05, 0.9, 1e-4)
    drawn = jax.jit(lambda key: distill.from_variables(built.init(key), optimizer))(jax.random.key(1))
    given = distill.from_variables(student_vars, optimizer)
    assert drawn.step == given.step == 0
    jax.tree.map(np.testing.assert_array_equal, drawn.variables, given.variables)


def mixed_step(loss, labels, weights=None, **views):
    """Returns the losses of a first step with CutMix, and the images that it must have shown."""
    built, teacher_vars, student_vars = network()
    optimizer = distill.sgd(lambda _: 0.0, 0.0, 0.0)
    step = jax.jit(distill.make_step(built, built, optimizer, loss, views=augment.ViewOptions(0, False, **views)))
    key = jax.random.key(30)
    _, info = step(distill.from_variables(student_vars, optimizer), teacher_vars, images(), key, labels, weights)
    options = augment.ViewOptions(0, False, **views)
    view = jax.jit(lambda key: augment.draw_view(key, images().shape, options))(key)
    shown = augment.normalize(augment.apply_view(images(), view), SPEC.mean, SPEC.std)
    student = jax.jit(functools.partial(built.apply, train=True))(student_vars, shown).logits
    return info, view.mix, jax.jit(built.apply)(teacher_vars, shown).logits, student


def test_the_teacher_answers_for_the_mixed_image():
    info, mix, teacher, student = mixed_step(kd_loss(TEMPERATURE), None, cutmix=1.0)
    assert mix.box.height * mix.box.width > 8, "a box that matters"
    expected = losses.distillation(teacher, student, TEMPERATURE).mean()
    np.testing.assert_allclose(info["loss"], expected, rtol=1e-4)
    plain = mixed_step(kd_loss(TEMPERATURE), None, cutmix=1e-9)[0]["loss"]
    assert plain == stepped()[1][0]["loss"]
    assert abs(plain - info["loss"]) > 0.01 * plain


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_labels_are_mixed_by_the_area_that_is_shown(alpha):
    def loss(extra, student, teacher, labels):
        known = jnp.where(labels < 0, 0.0, losses.cross_entropies(student.logits, labels))
        return losses.distillation(teacher.logits, student.logits, TEMPERATURE) + 0.3 * known

    labels, weights = jnp.array([3, 1, 4, -1, 5, 9]), jnp.arange(6.0)
    info, mix, teacher, student = mixed_step(loss, labels, weights, cutmix=1.0, cutmix_alpha=alpha)
    share = 1 - mix.box.height * mix.box.width / 64
    assert 0.1 < share < 0.95, "a box that matters"
    own, lent = (np.where(x < 0, 0, losses.cross_entropies(student, x)) for x in (labels, labels[mix.partner]))
    expected = losses.distillation(teacher, student, TEMPERATURE) + 0.3 * (share * own + (1 - share) * lent)
    np.testing.assert_allclose(info["loss"], (weights * expected).mean(), rtol=1e-4)


def test_a_run_mixes_as_its_config_says():
    config = tiny_config(method__name="noise", parallel__batch_devices=1)
    parts = toy_parts(config)
    rows = jax.random.randint(jax.random.key(0), (16, *SPEC.input_shape), 0, 256).astype(jnp.uint8)
    filled = on_device.append(on_device.empty(16, SPEC.input_shape), rows, jnp.zeros(16, jnp.int32))
    start, seen = initial_state(jax.random.key(1), parts)["student"], []
    for config.kd.cutmix, config.kd.cutmix_alpha in ((1.0, 1.0), (1.0, 0.2)):
        state = parallel.copy(start)  # the program takes it over
        _, _, info = Programs(parts, options_of(config)).distill(state, parts.teacher_vars, filled, jax.random.key(2))
        seen.append(float(info["loss"]))
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda t, s: losses.distillation(t, s, 4.0)),
        ({"loss": "decoupled", "others_weight": 3.0}, lambda t, s: kd_losses.decoupled(t, s, 4.0, 3.0)),
        (
            {"standardize": True},
            lambda t, s: losses.distillation(kd_losses.standardized(t), kd_losses.standardized(s), 4.0),
        ),
    ],
    ids=["kl", "decoupled", "standardised"],
)
def test_the_loss_is_the_one_that_is_asked_for(changes, expected):
    config = tiny_config(kd__temperature=4.0, **{f"kd__{name}": value for name, value in changes.items()})
    objective = toy_parts(config).objective
    teacher, student = (jax.random.normal(jax.random.key(seed), (6, 10)) for seed in (0, 1))
    found = objective.loss((), *(Outputs(logits, logits, (), {}, {}) for logits in (student, teacher)), None)
    np.testing.assert_allclose(found, expected(teacher, student), rtol=1e-6)
