"""The evaluator against NumPy, and the command on real checkpoints."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import bordered, write_jpegs
from PIL import Image

from fastdfkd_jax import convert, data, models
from fastdfkd_jax.data import Dataset, digits
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.evaluate import main
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.models import Network, NetworkSpec, Outputs

TEACHER = str(digits.TEACHER_PATH)
IMAGENET = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


def linear_network(classes: int, traces: list[int] | None = None) -> Network:
    """Logits are the first pixels of the image times the variables; every trace leaves a mark."""
    spec = NetworkSpec("linear", classes, 4, 1, mean=(0.25,), std=(0.5,))

    def apply(variables, images, train=False, moments=False, key=None):
        if traces is not None:
            traces.append(1)
        logits = images.reshape(len(images), -1)[:, :classes] * variables["params"]["scale"]
        return Outputs(logits, logits, (), {}, {})

    return Network(spec, lambda key: {"params": {"scale": jnp.ones(())}, "batch_stats": {}}, apply)


def random_dataset(count: int, classes: int) -> Dataset:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
    return Dataset(images, rng.integers(0, classes, count, np.int32))


# 37 is no multiple of 8: the last batch is padded.
@pytest.mark.parametrize(("count", "batch_size"), [(37, 8), (37, 64), (16, 8), (1, 8)])
def test_measurements_equal_numpy(count, batch_size):
    network, dataset = linear_network(7), random_dataset(count, 7)
    measured = make_evaluator(network, batch_size)(network.init(jax.random.key(0)), dataset)

    logits = (dataset.images.reshape(count, -1)[:, :7] / 255.0 - 0.25) / 0.5
    order = np.argsort(-logits, axis=1, kind="stable")
    right = order == dataset.labels[:, None]
    log_sum = np.log(np.exp(logits).sum(1))
    loss = (log_sum - logits[np.arange(count), dataset.labels]).mean()
    assert measured["count"] == count
    assert measured["accuracy"] == pytest.approx(100 * right[:, 0].mean(), abs=1e-9)
    assert measured["top5"] == pytest.approx(100 * right[:, :5].any(1).mean(), abs=1e-9)
    # Float32 logits and sums of up to 64 terms against float64.
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)


def test_top5_is_left_out_where_it_says_nothing():
    network = linear_network(5)
    measured = make_evaluator(network)(network.init(jax.random.key(0)), random_dataset(9, 5))
    assert set(measured) == {"accuracy", "loss", "count"}


def test_a_network_that_gives_nan_scores_zero():
    network = linear_network(7)
    variables = {"params": {"scale": jnp.full((), jnp.nan)}, "batch_stats": {}}
    measured = make_evaluator(network)(variables, random_dataset(30, 7))
    assert measured["accuracy"] == measured["top5"] == 0
    assert np.isnan(measured["loss"])


def test_one_compilation_suffices_for_several_data_sets():
    traces: list[int] = []
    network = linear_network(7, traces)
    evaluate = make_evaluator(network, batch_size=8)
    variables = network.init(jax.random.key(0))
    for count in (37, 5, 8):
        evaluate(variables, random_dataset(count, 7))
    assert len(traces) == 1


def test_a_data_set_that_does_not_fit_is_refused():
    network = linear_network(7)
    with pytest.raises(UserError, match="expects images of 4x4x1, the data set has 16x16x1"):
        make_evaluator(network)(network.init(jax.random.key(0)), data.load("digits"))


def test_the_shipped_teacher_knows_real_digits(capsys):
    main(["evaluate", TEACHER, "--data", "digits", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["count"] == 497
    assert result["arch"] == "wrn16_1"
    # 492 of 497 where it was trained; another CPU may round two digits across a boundary.
    assert result["accuracy"] == pytest.approx(100 * 492 / 497, abs=100 * 2.5 / 497)
    assert digits.TEACHER_PATH.stat().st_size < 800_000
    network, _ = convert.load_network(digits.TEACHER_PATH)
    assert network.spec == NetworkSpec("wrn16_1", 10, 16, 1, mean=(0.306,), std=(0.318,))


def test_the_command_prints_one_line(capsys):
    main(["evaluate", TEACHER, "--data", "digits", "--split", "test[:50]", "--batch-size", "50"])
    out = capsys.readouterr().out
    assert out.startswith("wrn16_1 on digits test[:50]: accuracy ")
    assert out.endswith("50 images\n")


def test_pictures_of_any_size_are_cut_to_the_network(tmp_path, capsys):
    network = models.build(NetworkSpec("wrn10_1", 2, image_size=24))
    convert.save_network(tmp_path / "a.safetensors", network, jax.jit(network.init)(jax.random.key(0)))
    write_jpegs(tmp_path / "pictures.npz", bordered(64, 48, 8), bordered(32, 32, 4))
    command = ["evaluate", str(tmp_path / "a.safetensors"), "--data", f"npz:{tmp_path / 'pictures.npz'}", "--json"]
    with pytest.raises(UserError, match=r"2 sizes .* give a crop"):
        main(command)
    main([*command, "--crop", "0.75"])
    assert json.loads(capsys.readouterr().out)["count"] == 2


def test_a_part_of_the_classes_is_scored_by_the_names_of_all(tmp_path, capsys):
    test = data.load("digits", "test")
    ten = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for digit in (3, 7):
        (tmp_path / ten[digit]).mkdir()
        for number in np.flatnonzero(test.labels == digit)[:20]:
            Image.fromarray(test.images[number, ..., 0]).save(tmp_path / ten[digit] / f"{number}.png")
    (tmp_path / "names.txt").write_text("\n".join(ten) + "\n")
    with pytest.raises(UserError, match="has 10 classes, the data set 2"):
        main(["evaluate", TEACHER, "--data", f"folder:{tmp_path}"])
    main(["evaluate", TEACHER, "--data", f"folder:{tmp_path}", "--class-names", str(tmp_path / "names.txt"), "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["count"] == 40
    assert measured["accuracy"] > 90  # by the folders' own numbers, 0 and 1, it would be 0


def test_agreement_with_a_teacher(tmp_path, capsys):
    network, variables = convert.load_network(TEACHER)
    head = variables["params"]["fc"]
    # The other network never predicts class 0, and is otherwise the same.
    bias = np.array(head["bias"])
    bias[0] = -1e4
    changed = {**head, "bias": bias}
    convert.save_network(
        tmp_path / "b.safetensors", network, {**variables, "params": {**variables["params"], "fc": changed}}
    )
    test = data.load("digits", "test")
    for number in range(20):
        Image.fromarray(test.images[number, ..., 0]).save(tmp_path / f"{number}.png")
    command = ["evaluate", TEACHER, "--teacher", str(tmp_path / "b.safetensors"), "--probe", str(tmp_path)]
    main([*command, "--data", "digits", "--split", "test", "--json"])
    found = json.loads(capsys.readouterr().out)
    predicted = np.argmax(network_logits(network, variables, test.images), -1)
    assert found["agreement"] == pytest.approx(100 * np.mean(predicted != 0))
    assert found["agreement_probe"] == pytest.approx(100 * np.mean(predicted[:20] != 0))
    main(command)
    share = found["agreement_probe"]
    assert capsys.readouterr().out == f"agreement with the teacher on the pictures of --probe: {share:.2f} %\n"


def network_logits(network, variables, images):
    spec = network.spec
    return network.apply(variables, (images / 255.0 - np.array(spec.mean)) / np.array(spec.std)).logits


def test_a_teacher_for_other_images_is_refused(tmp_path):
    colour = models.build(NetworkSpec("wrn10_1", 10, image_size=16))
    convert.save_network(tmp_path / "c.safetensors", colour, jax.jit(colour.init)(jax.random.key(0)))
    message = r"a teacher for classification of 16x16x1 in .*, found one for classification of 16x16x3"
    with pytest.raises(UserError, match=message):
        main(["evaluate", TEACHER, "--teacher", str(tmp_path / "c.safetensors"), "--data", "digits"])


@pytest.mark.parity
def test_a_torch_checkpoint_on_real_cifar(shared_data, capsys):
    pytest.importorskip("torch")
    checkpoint = shared_data / "teachers" / "resnet20-12fca82f.th"
    where = [
        "--data",
        "tfds:cifar10",
        "--data-dir",
        str(shared_data / "tfds"),
        "--split",
        "test[:200]",
        "--batch-size",
        "100",
    ]
    main(["evaluate", str(checkpoint), *where, *IMAGENET, "--json"])
    # 91.73 % of all; three standard errors of 200 images are 6 points.
    assert json.loads(capsys.readouterr().out)["accuracy"] > 85


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parity
def test_the_published_accuracy(shared_data, capsys):
    pytest.importorskip("torch")
    checkpoint = shared_data / "teachers" / "resnet20-12fca82f.th"
    where = ["--data", "tfds:cifar10", "--data-dir", str(shared_data / "tfds")]
    main(["evaluate", str(checkpoint), *where, *IMAGENET, "--json"])
    # One image of 10,000, and room for the binary fraction.
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(91.73, abs=0.0101)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required"),
        ([TEACHER], "expected --data SOURCE for labelled images, or --teacher and --probe"),
        ([TEACHER, "--probe", "."], "expected --teacher with --probe"),
        ([TEACHER, "--teacher", TEACHER, "--probe", "no/such"], "found no folder no/such"),
        ([TEACHER, "--teacher", "no_such.pth", "--data", "digits"], "no_such.pth"),
        ([TEACHER, "--data", "digits", "--splt", "test"], "--splt"),
        ([TEACHER, "--data", "digits", "--mean", "a,b"], "--mean"),
        ([TEACHER, "--data", "digits", "--batch-size", "0"], "batch size"),
        ([TEACHER, "--data", "digits", "--split", "val"], "no split 'val'"),
        ([TEACHER, "--data", "mnist"], "unknown data source 'mnist'"),
        ([TEACHER, "--data", "tfds:cifar10", "--data-dir", "no/such"], "expected the data directory no/such"),
        ([TEACHER, "--data", "digits", "--num-classes", "9"], "classes"),
        ([TEACHER, "--data", "digits", "--image-size", "32"], "expects images of 32x32x1"),
        (["no_such.safetensors", "--data", "digits"], "no_such.safetensors"),
    ],
)
def test_mistakes_are_one_line(arguments, expected):
    with pytest.raises(UserError) as caught:
        main(["evaluate", *arguments])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_command_with_status_2():
    command = [sys.executable, "-m", "fastdfkd_jax.evaluate", TEACHER, "--data", "mnist"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown data source 'mnist'")
    assert done.stderr.count("\n") == 1
