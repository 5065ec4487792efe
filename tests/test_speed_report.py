"""The tables of measured speeds are made from their records; measuring is a separate command, for an idle machine."""

import json

import jax
import jax.numpy as jnp
import pytest
from runs import ROOT

from benchmarks import convolutions, deployed, flops, graphs, speed_report, xla_loops
from fastdfkd_jax import models
from fastdfkd_jax.storage import markdown

RECORDS = sorted((ROOT / "results" / "speed").glob("*/speed.json"))
LEVERS = sorted((ROOT / "results" / "levers").glob("*/speed.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_the_markdown_of_a_record_is_made_from_it(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert speed_report.write_markdown(result) == path.with_suffix(".md").read_text(encoding="utf-8")


def test_the_tables_of_convolutions_are_made_from_their_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert convolutions.table(json.loads(convolutions.RECORD.read_text())) in document
    assert xla_loops.table(json.loads(xla_loops.RECORD.read_text())) in document


def test_the_table_of_recorded_graphs_is_made_from_the_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = graphs.TABLE.read_text(encoding="utf-8")
    assert text.count("\n| ours/") > 20
    assert graphs.page(text) == text, "run: python -m benchmarks.graphs --table"


def test_the_table_of_files_for_production_is_made_from_the_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = deployed.TABLE.read_text(encoding="utf-8")
    assert text.count("| ONNX, 8-bit integers |") >= 3
    assert deployed.page(text) == text, "run: python -m benchmarks.deployed --table"


def test_the_table_of_levers_is_made_from_the_records():
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = speed_report.compare({path.parent.name: json.loads(path.read_text()) for path in LEVERS})
    assert markdown.insert(document, table) == document, (
        "run: python -m benchmarks.speed_report results/levers/* and put its table between the marks"
    )


def test_convolutions_are_counted_by_hand():
    """ResNet-8: a first layer, three blocks of two, the last two of them with a shortcut that costs nothing (A)."""
    network = models.build(models.NetworkSpec("resnet8", 10), forms=models.Forms(conv="xla"))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    counted = flops.convolutions(network, variables, 2)
    assert sum(counted.values()) == 7
    macs = 32 * 32 * 9 * (3 * 16 + 2 * 16 * 16) + 16 * 16 * 9 * (16 * 32 + 32 * 32) + 8 * 8 * 9 * (32 * 64 + 64 * 64)
    assert sum(conv.flops * n for conv, n in counted.items()) == 2 * 2 * macs
    assert flops.forward_flops(lambda v, x: network.apply(v, x).logits, variables, images) == 2 * 2 * (macs + 640)
