"""FastDFKD at 224 pixels: the published recipe, and the whole path with a teacher that nobody trained."""

import jax
import pytest
from pictures import bordered, write_jpegs
from PIL import Image
from runs import options_of  # makes configs importable too

from fastdfkd_jax import convert, models
from fastdfkd_jax.configs import imagenet
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool.shards import Shards
from fastdfkd_jax.training import held_out, one_run
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.schedule import count_kd_steps, last_synthesis_call


@pytest.mark.parametrize("student", imagenet.STUDENTS)
@pytest.mark.parametrize("protocol", ["", "-tiny"])
def test_the_published_recipe(student, protocol):
    """METHOD 1.4 and 1.8."""
    config = imagenet.get_config(student + protocol)
    validate(config)
    assert config.student.arch == student
    if not protocol:
        assert (config.synthesis_calls * config.synthesis_batch, config.fastdfkd.num_steps) == (140_000, 50)
        assert config.warmup_calls == config.synthesis_calls
        assert config.inversion.adversarial_weight == 0
        assert count_kd_steps(options_of(config)) == 400_000
        assert (config.inversion.least_crop, config.kd.least_crop, config.data.crop) == (0.75, 0.08, 0.875)


@pytest.mark.parametrize("student", imagenet.STUDENTS)
def test_the_logged_way(student):
    """METHOD T10: 400 epochs of ten calls, each with 100 steps."""
    config = imagenet.get_config(f"{student}-logs")
    validate(config)
    assert last_synthesis_call(options_of(config)) * config.synthesis_batch == 400_000
    assert count_kd_steps(options_of(config)) == 400_000
    assert config.warmup_calls == 0
    assert config.inversion.adversarial_weight == (1.0 if student == "resnet18_imagenet" else 0.1)


@pytest.mark.slow
def test_the_whole_path_at_224_pixels(tmp_path, monkeypatch):
    """`imagenet.py:smoke` with a teacher that nobody trained, smaller networks and pictures of two sizes."""
    monkeypatch.setattr(held_out, "_NOISE", 2)
    config = imagenet.get_config("smoke")
    config.teacher.arch = config.student.arch = "wrn10_1"
    config.calls, config.synthesis_calls, config.warmup_calls = 2, 1, 1
    config.synthesis_batch, config.fastdfkd.num_steps = 2, 2
    config.kd.batch, config.kd.steps_per_call, config.kd.steps_per_dispatch = 2, 2, 2
    config.eval_every = config.images_every = 1
    config.data.source, config.data.batch = f"npz:{tmp_path / 'pictures.npz'}", 2
    config.teacher.checkpoint = str(tmp_path / "teacher.safetensors")
    spec = models.NetworkSpec(config.teacher.arch, 1000, 224)
    network = models.build(spec)
    convert.save_network(config.teacher.checkpoint, network, jax.jit(network.init)(jax.random.key(0)))
    write_jpegs(tmp_path / "pictures.npz", bordered(256, 300, 20), bordered(256, 256, 60))

    summary = one_run.run(config.lock(), tmp_path / "run")
    assert summary["images"] == 2
    assert summary["student_accuracy_last"] is not None
    with Image.open(tmp_path / "run" / "images" / "000001.png") as grid:
        assert grid.size[1] >= 224
    assert next(iter(Shards(tmp_path / "run" / "pool").read(1))).images.shape == (2, 224, 224, 3)


@pytest.mark.parametrize("variant", ["resnet50", "resnet50_imagenet-short"])
def test_there_are_three_students(variant):
    with pytest.raises(UserError, match=f"unknown variant '{variant}': expected one of resnet50_imagenet, "):
        imagenet.get_config(variant)
