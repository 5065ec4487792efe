"""The noise control: its images, and its config."""

import jax
import numpy as np
import pytest
import runs  # noqa: F401 - makes configs importable

from fastdfkd_jax.configs import noise as noise_config
from fastdfkd_jax.configs import quickstart
from fastdfkd_jax.methods import base, noise
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.training.config_checks import validate


@pytest.mark.parametrize("lanes", [1, 2])
def test_noise_has_the_data_s_moments_and_stays_in_range(lanes):
    spec = NetworkSpec("wrn10_1", 10, 16, 3, (0.4, 0.5, 0.6), (0.1, 0.1, 0.1))
    network = Network(spec, lambda key: {}, lambda *_: None)
    setting = base.Setting(network, network, 64, 1, 0, 1, lambda x: x, Forms())
    method = noise.build(base.LaneOptions(num_tasks=lanes), setting)
    _, batch, info = method.synthesize(method.init(jax.random.key(0), {}), {}, {}, jax.random.key(1))
    assert batch.images.shape == (method.images_per_call, *spec.input_shape) == (64 * lanes, 16, 16, 3)
    assert batch.labels.shape == (64 * lanes,)
    # 64 x 16 x 16 draws of deviation 0.1: the standard error of a channel's mean is 0.0008.
    np.testing.assert_allclose(batch.images.mean((0, 1, 2)), [0.4, 0.5, 0.6], atol=0.004)
    np.testing.assert_allclose(batch.images.std((0, 1, 2)), [0.1, 0.1, 0.1], atol=0.004)
    assert np.all((batch.images >= 0) & (batch.images <= 1))
    assert info == base.Info()


@pytest.mark.parametrize("variant", [None, "smoke", "cifar100-resnet34-resnet18-short"])
def test_the_config_is_the_tables_recipe(variant):
    config = noise_config.get_config(variant)
    validate(config)
    assert config.method.name == "noise"
    assert variant or (config.calls, config.warmup_calls, config.kd.steps_per_call) == (220, 20, 400)
    assert quickstart.get_config("noise").method.name == "noise"
