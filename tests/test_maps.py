"""Pictures and their maps of labels stay together: on their way to a student, to a teacher that learns, to a score."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs  # noqa: F401 - makes configs importable
from PIL import Image

from fastdfkd_jax import convert, data, pretrain
from fastdfkd_jax.augmentation.augment import ViewOptions
from fastdfkd_jax.configs import pretrain_camvid
from fastdfkd_jax.distillation import distill
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.methods import base, real_data
from fastdfkd_jax.models import Network, NetworkSpec, Outputs
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.options import Options
from fastdfkd_jax.training.supervised import Recipe, TrainState, train_step

SIDE = 24
SURE = 30.0  # of a logit: a wrong label costs twice as much


def network_of_colours(outputs: int = 2) -> Network:
    """A pixel's class is its colour: 0 for black, 1 for white, and nothing is learned."""

    def apply(variables, images, train=False, moments=False, key=None):
        logits = SURE * variables["params"]["sign"] * jnp.concatenate([-images, images], -1)
        logits = jnp.pad(logits, ((0, 0), (0, 0), (0, 0), (0, outputs - 2)), constant_values=-2 * SURE)
        return Outputs(logits, logits, (), {}, {})

    spec = NetworkSpec("colours", outputs, SIDE, 1, (0.5,), (0.5,), task="segmentation")
    return Network(spec, lambda key: {"params": {"sign": jnp.ones(())}, "batch_stats": {}}, apply)


def coarse_pictures(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Black and white squares of six pixels, so that few pixels lie at an edge, and their classes."""
    squares = np.random.default_rng(0).integers(0, 2, (count, 6, 8), np.uint8)
    labels = np.kron(squares, np.ones((6, 6), np.uint8))
    return 255 * labels[..., None], labels


SHOWN = {
    "whole": {},
    "square": {"square": SIDE},
    "flip": {"flip": True},
    "shift": {"crop_padding": 5},
    "crop": {"least_crop": 0.3},
    "all": {"square": SIDE, "flip": True, "least_crop": 0.3},
}


def check(shown, loss):
    """Each pixel's class is the one of its colour, however it is shown; only between two squares may it be unsure."""
    labels = coarse_pictures()[1]
    assert max(loss(number, labels) for number in range(4)) < 0.2
    others = [loss(number, labels[::-1]) for number in range(4)]
    assert min(others) > SURE / 2, "the maps of other pictures"
    if set(shown) - {"flip"}:
        assert len(set(others)) == 4, "shown each time in another way"


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_a_student_meets_picture_and_map_alike(shown):
    images, _ = coarse_pictures()
    network = network_of_colours()
    views = {"crop_padding": 0, "flip": False, **shown}
    square = views.pop("square", 0)
    setting = base.Setting(network, network, 6, 1, 0, 1, lambda x: x, Forms())
    objective = real_data.scratch(Options(), setting).objective
    assert objective is not None
    step = distill.make_step(
        network, network, optax.sgd(0.0), objective.loss, views=ViewOptions(**views), square=square
    )
    variables = network.init(jax.random.key(0))
    state = distill.from_variables(variables, optax.sgd(0.0))
    learn = jax.jit(lambda key, labels: step(state, variables, images / np.float32(255), key, labels)[1]["loss"])
    check(shown, lambda number, labels: float(learn(jax.random.key(number), labels)))


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_a_teacher_meets_picture_and_map_alike(shown):
    images, _ = coarse_pictures()
    network = network_of_colours()
    known = {"square": 0, "flip": False, "padding": shown.get("crop_padding", 0)}
    known |= {name: value for name, value in shown.items() if name != "crop_padding"}
    recipe = Recipe(
        epochs=1, batch_size=6, lr=0.0, lr_milestones=(), lr_decay=0.1, momentum=0.0, weight_decay=0.0, seed=0,
        eval_every=1, **known,
    )  # fmt: skip
    optimizer, variables = optax.sgd(0.0), network.init(jax.random.key(0))
    state = TrainState(variables, optimizer.init(variables["params"]))
    learn = jax.jit(functools.partial(train_step, network, optimizer, recipe, state))
    check(shown, lambda number, labels: float(learn(images, labels, jax.random.key(number))[1]))


@pytest.mark.parametrize("names", [("black", "white"), None])
def test_an_output_that_the_data_have_no_class_for_is_no_class_of_the_score(names):
    images, labels = coarse_pictures()
    variables = {"params": {"sign": jnp.ones(())}, "batch_stats": {}}
    found = make_evaluator(network_of_colours(outputs=3), 4)(variables, data.Dataset(images, labels, names))
    assert (found["miou"], found["iou"]) == (100.0, [100.0, 100.0, None])

    def third_first(variables, images):
        outputs = network_of_colours(outputs=3).apply(variables, images)
        return outputs._replace(logits=outputs.logits.at[:, 0, 0, 2].set(2 * SURE))

    found = make_evaluator(network_of_colours(outputs=3)._replace(apply=third_first), 4)(
        variables, data.Dataset(images, labels, names)
    )
    missed = [(labels[:, 0, 0] == number).sum() / (labels == number).sum() for number in range(2)]
    np.testing.assert_allclose(found["miou"], 100 - 100 * np.mean(missed))


def test_a_teacher_learns_maps_without_names_whose_void_is_no_class(tmp_path):
    """Images that are tested may lack a class that was learned, and not the other way round."""
    rng = np.random.default_rng(0)
    for split, classes in (("train", 3), ("val", 2)):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
        for number in range(2):
            mask = rng.integers(0, classes, (32, 32), np.uint8)
            mask[0], mask[1, 0] = data.VOID, classes - 1
            Image.fromarray(mask).save(tmp_path / "masks" / split / f"{number}.png")
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
                tmp_path / "images" / split / f"{number}.png"
            )
    config = pretrain_camvid.get_config()
    config.arch, config.data.source, config.data.dir = "toy_map", "pairs:.", str(tmp_path)
    config.data.short_side = 0
    config.recipe.epochs, config.recipe.batch_size, config.recipe.square = 1, 2, 0
    config.recipe.lr_milestones = ()
    swapped = config.to_dict()
    swapped["data"] |= {"train_split": "val", "test_split": "train"}
    with pytest.raises(UserError, match="network has 2 classes, the data set 3: give the data set"):
        pretrain.run(swapped, tmp_path / "swapped")
    assert not (tmp_path / "swapped").exists()
    found = pretrain.run(config.to_dict(), tmp_path / "teacher")
    assert len(found["test_iou"]) == 3
    assert found == json.loads((tmp_path / "teacher" / "metrics.jsonl").read_text())
    network, _ = convert.load_network(tmp_path / "teacher" / "teacher.safetensors")
    assert (network.spec.num_classes, network.spec.task, network.spec.image_size) == (3, "segmentation", 32)
