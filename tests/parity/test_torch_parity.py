"""Two synthesis calls and three KD steps against PyTorch in double precision: nothing that matters differs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from runs import tiny_config

from benchmarks import torch_fastdfkd, torch_tuned
from benchmarks.agreement import double
from benchmarks.case import places_of
from fastdfkd_jax import convert, data
from fastdfkd_jax.augmentation.augment import ViewOptions
from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.distillation.kd_losses import kd_loss
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.training import build

pytestmark = [
    pytest.mark.optimized,
    # torch.compile raises these itself, and hides the second one unless warnings are errors.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

# Double precision leaves 1e-16; Adam, which divides gradients by their own size, and the learning rate, which is
# float32 here, raise that.
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}
STEPS, BATCH, TEMPERATURE = 3, 6, 20.0


@pytest.fixture(scope="module")
def config():
    """The digits teacher, a WRN-10-1 student and FastDFKD's default options, all in double precision."""
    config = tiny_config(
        teacher__checkpoint="digits", student__arch="wrn10_1", fastdfkd__num_steps=STEPS, synthesis_batch=BATCH,
        data__source="",
    )  # fmt: skip
    config.warmup_calls, config.precision = 2, "float64"
    config.inversion.flip = True
    return config


@pytest.fixture(scope="module")
def parts(config):
    with jax.enable_x64(True):
        yield build.assemble(config)


@pytest.fixture(scope="module")
def teacher_vars(parts):
    return double(parts.teacher_vars)


@pytest.fixture(scope="module")
def student_vars(parts):
    return double(jax.jit(parts.student.init)(jax.random.key(1)))


@pytest.fixture(scope="module")
def calls(parts, teacher_vars, student_vars):
    """Our state before three calls, and of each call its key, the state after it, its batch and its info."""
    begun = state = double(jax.jit(parts.method.init)(jax.random.key(0), teacher_vars))
    step, made = jax.jit(parts.method.synthesize), []
    for call in range(3):
        key = jax.random.fold_in(jax.random.key(3), call)
        state, batch, info = step(state, teacher_vars, student_vars, key)
        made.append((key, state, batch, info))
    return begun, made


@pytest.fixture(scope="module")
def kd_steps(parts, teacher_vars, student_vars):
    """The images of three KD steps, the loss of each, and the student after them."""
    step = jax.jit(
        distill.make_step(
            parts.teacher, parts.student, parts.optimizer, kd_loss(TEMPERATURE), views=ViewOptions(0, False)
        )
    )
    state, losses = distill.from_variables(student_vars, parts.optimizer), []
    digits = data.load("digits", "train").images[: 3 * BATCH].astype(np.float64) / 255
    for images in np.split(digits, 3):
        state, info = step(state, teacher_vars, jnp.asarray(images), jax.random.key(0))
        losses.append(info["loss"])
    return np.split(digits, 3), losses, state


def to_torch(module, variables):
    state = {name: torch.from_numpy(np.array(value)) for name, value in convert.to_state_dict(variables).items()}
    missing, unexpected = module.double().load_state_dict(state, strict=False)
    assert not unexpected
    assert all("running" in name or "num_batches" in name for name in missing), missing
    return module


def normalization(network: Network):
    spec = network.spec
    return [torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (spec.mean, spec.std)]


def assert_same_weights(ours, module):
    theirs = module.state_dict()
    for name, value in convert.to_state_dict(ours).items():
        if not name.endswith("num_batches_tracked"):  # a counter that PyTorch does not use here, and we do not keep
            np.testing.assert_allclose(value, theirs[name].numpy(), err_msg=name, **CLOSE)


class Plain:
    """The plain form, behind the face of the others."""

    def __init__(self, teacher, student, meta, outer, mean, std):
        self._inner = torch_fastdfkd.Synthesizer(teacher, student, meta, outer(meta.parameters()), mean, std)

    def synthesize(self, *arguments, places):
        images, observed = self._inner.synthesize(*arguments, torch_fastdfkd.viewer(places))
        return images, observed["loss/class"], observed["loss/feature"]

    @property
    def accumulated(self):
        return [mean for mean, _ in self._inner.accumulated], [var for _, var in self._inner.accumulated]


class Tuned:
    """The tuned form, with the same interface."""

    form = "tuned"

    def __init__(self, *arguments):
        self._inner = torch_tuned.Synthesizer(*arguments, form=self.form)

    def synthesize(self, *arguments, places):
        images = self._inner.synthesize(*arguments, lambda images, step: torch_fastdfkd.shown(images, places[step]))
        return images, self._inner.last.class_loss, self._inner.last.feature

    @property
    def accumulated(self):
        moments: Any = self._inner.accumulated
        return moments[: len(moments) // 2], moments[len(moments) // 2 :]


class Compiled(Tuned):
    """The compiled form, with the same interface."""

    form = "compiled"


@pytest.fixture
def traced(monkeypatch):
    """`torch.compile` traces and differentiates programs as always, and then runs them without generating code."""
    monkeypatch.setattr(torch_tuned, "mode", lambda on_gpu: {"backend": "aot_eager"})
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("form", [Plain, Tuned, Compiled])
def test_three_calls_of_synthesis_are_pytorchs(form, config, parts, teacher_vars, student_vars, calls, traced):
    """The first call has the plain feature loss and no adversarial term, the others the momentum loss and all terms."""
    begun, made = calls
    meta = torch_fastdfkd.generator(16, 8, 16, 1)
    to_torch(meta, {"params": begun.generator, "batch_stats": {}})
    teacher = to_torch(twin(parts.teacher.spec), teacher_vars)
    student = to_torch(twin(parts.student.spec), student_vars)
    outer = functools.partial(torch.optim.Adam, lr=0.015, betas=(0.5, 0.999))
    synthesizer = form(teacher, student, meta, outer, *normalization(parts.teacher))
    for call, (key, state, batch, info) in enumerate(made):
        places = torch.from_numpy(places_of(key, config, parts.teacher.spec))
        latents = torch.from_numpy(np.array(state.latents[0]))
        labels = torch.from_numpy(np.array(batch.labels, np.int64))
        images, class_loss, feature = synthesizer.synthesize(latents, labels, STEPS, call > 0, places=places)
        np.testing.assert_allclose(batch.images, images.permute(0, 2, 3, 1).numpy(), **CLOSE)
        np.testing.assert_allclose(info.losses["class"], class_loss, **CLOSE)
        np.testing.assert_allclose(info.losses["feature"], feature, **CLOSE)
        assert_same_weights({"params": state.generator, "batch_stats": {}}, meta)
        names = [name for name, layer in teacher.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)]
        for name, mean, var in zip(names, *synthesizer.accumulated, strict=True):
            ours = state.accumulators.moments[name]
            np.testing.assert_allclose(ours["mean"], mean.numpy(), **CLOSE)
            np.testing.assert_allclose(ours["var"], var.numpy(), **CLOSE)


@pytest.mark.parametrize("form", ["plain", "tuned", "compiled"])
def test_kd_steps_are_pytorchs(form, parts, teacher_vars, student_vars, kd_steps, traced):
    """Three steps: momentum, weight decay, BatchNorm's running statistics and the rate's schedule take part."""
    batches, losses, state = kd_steps
    teacher, student = (
        to_torch(twin(parts.teacher.spec), teacher_vars),
        to_torch(twin(parts.student.spec), student_vars),
    )
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)
    given = []
    distiller = torch_tuned.Distiller(teacher, student, sgd, TEMPERATURE, given.pop, form)
    optimizer = sgd(student.parameters())
    mean, std = normalization(parts.teacher)
    for images, expected in zip(batches, losses, strict=True):
        inputs = (torch.from_numpy(images.copy()).permute(0, 3, 1, 2) - mean) / std
        if form != "plain":
            given.append(inputs)
            distiller.step()
            loss = distiller.loss
        else:
            loss = torch_fastdfkd.kd_step(teacher, student, optimizer, inputs, TEMPERATURE)
        np.testing.assert_allclose(expected, loss, **CLOSE)
    assert_same_weights(state.variables, student)
    assert not np.allclose(student_vars["params"]["fc"]["kernel"], state.params["fc"]["kernel"], **CLOSE)


def test_a_synthesizer_of_the_tuned_form_sees_what_the_student_learns():
    torch.manual_seed(0)
    teacher, student = (twin(NetworkSpec("wrn10_1", 10)) for _ in range(2))
    meta = torch_fastdfkd.generator(4, 4, 32, 3)
    mean = torch.zeros(1, 3, 1, 1)
    synthesizer = torch_tuned.Synthesizer(teacher, student, meta, torch.optim.Adam, mean, mean + 1)
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    distiller = torch_tuned.Distiller(teacher, student, sgd, TEMPERATURE, lambda: torch.rand(4, 3, 32, 32))
    before = {name: value.clone() for name, value in synthesizer.student.state_dict().items()}
    distiller.step()
    after = synthesizer.student.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in student.state_dict().items())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved >= {"fc.weight", "bn1.running_mean"}
    assert not synthesizer.student.training
    # A capture needs gradients' nodes that are made in it: nothing may hold those of a call that has ended.
    synthesizer.synthesize(torch.randn(4, 4), torch.zeros(4, dtype=torch.long), 2, True, lambda images, step: images)
    assert not synthesizer.teacher._seen
