"""The compiled programs of a run: one dispatch a call, no transfer to the host, bf16 for a GPU."""

import gzip
import json
import re
from collections import Counter

import jax
import numpy as np
import pytest
from runs import options_of, tiny_config

from benchmarks.flops import equations
from fastdfkd_jax import models
from fastdfkd_jax.configs import imagenet
from fastdfkd_jax.pool import on_device, on_disk
from fastdfkd_jax.training import build as assemble_module
from fastdfkd_jax.training import one_run
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.programs import Programs, initial_state

pytestmark = pytest.mark.optimized


def programs_and_arguments(config):
    parts = assemble(config)
    programs, state = Programs(parts, options_of(config)), initial_state(jax.random.key(0), parts)
    filled = on_device.empty(config.synthesis_batch, parts.teacher.spec.input_shape)
    key, student = jax.random.key(1), state["student"].variables
    return {
        "synthesize": (
            programs.synthesize,
            (state["method"], filled, parts.teacher_vars, student, key, np.int32(1)),
        ),
        "distill": (programs.distill, (state["student"], parts.teacher_vars, filled, key)),
    }


@pytest.fixture(scope="module")
def gpu_programs():
    """The programs as a GPU gets them, at bf16."""
    networks = {"teacher__checkpoint": "digits", "student__arch": "wrn10_1"}
    return programs_and_arguments(tiny_config(precision="bfloat16", conv_gradient="xla", **networks))


@pytest.fixture(scope="module")
def imagenet_programs():
    """Those of the published ImageNet run, 50 steps of 100 images of 224 pixels; of shapes, nothing is computed."""
    config = imagenet.get_config("resnet50_imagenet")
    config.precision, config.conv_gradient = "bfloat16", "xla"

    def load_teacher(given, forms):
        spec = models.NetworkSpec("resnet50_imagenet", 1000, 224, mean=given.mean, std=given.std)
        teacher = models.build(spec, forms=forms)
        return teacher, jax.eval_shape(teacher.init, jax.random.key(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble_module, "load_teacher", load_teacher)
        parts = assemble(config)
    programs = Programs(parts, options_of(config))
    state = jax.eval_shape(lambda key: initial_state(key, parts), jax.random.key(0))
    key, index = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), np.int32)
    images = jax.ShapeDtypeStruct((programs.steps, config.kd.batch, 224, 224, 3), np.uint8)
    batches = on_disk.Batches(images, jax.ShapeDtypeStruct(images.shape[:2], np.int32))
    return {
        "synthesize": (
            programs.synthesize,
            (state["method"], None, parts.teacher_vars, state["student"].variables, key, index),
        ),
        "distill": (programs.distill, (state["student"], parts.teacher_vars, batches, key)),
    }


@pytest.fixture(params=["gpu_programs", "imagenet_programs"])
def bf16_programs(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", ["synthesize", "distill"])
def test_nothing_calls_back_to_the_host(bf16_programs, name):
    step, arguments = bf16_programs[name]
    primitives = {equation.primitive.name for equation in equations(jax.make_jaxpr(step.jitted)(*arguments).jaxpr)}
    assert "conv_general_dilated" in primitives, "the walk went past the networks"
    assert not {primitive for primitive in primitives if "callback" in primitive or "feed" in primitive}


@pytest.mark.parametrize("name", ["synthesize", "distill"])
def test_lowered_for_cuda_every_convolution_takes_bf16(bf16_programs, name):
    step, arguments = bf16_programs[name]
    text = step.jitted.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    operands = re.findall(r"stablehlo\.convolution.*: \(tensor<([\dx]+)x(\w+)>, tensor<([\dx]+)x(\w+)>\)", text)
    assert len(operands) == text.count("stablehlo.convolution(") > 10
    assert {dtype for _, left, _, right in operands for dtype in (left, right)} == {"bf16"}
    assert "callback" not in text


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_rematerialisation_reaches_both_programs(remat):
    for step, arguments in programs_and_arguments(tiny_config(remat=remat)).values():
        found = Counter(e.primitive.name for e in equations(jax.make_jaxpr(step.jitted)(*arguments).jaxpr))
        assert ("remat2" in found or "checkpoint" in found) == (remat != "none"), found


def test_a_call_is_one_dispatch_and_kd_one_for_several_steps(tmp_path):
    """Counted in the trace that the program itself writes of its second full call."""
    config = tiny_config(profile=True)
    one_run.run(config, tmp_path)
    (path,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    with gzip.open(path) as file:
        names = Counter(event.get("name", "") for event in json.load(file)["traceEvents"])
    assert names["CommonPjRtLoadedExecutable::ExecuteHelperOnSingleDevice"] == (
        1 + config.kd.steps_per_call // config.kd.steps_per_dispatch
    )
    programs = {name for name in names if name.startswith("PjitFunction")}
    assert programs == {"PjitFunction(jit(synthesize))", "PjitFunction(jit(distill_steps))"}
