"""scripts/compare_peers: the commands that it runs, the FLOPs that it counts, and the table that it writes."""

import sys
from argparse import Namespace

import pytest

from jaxlm.errors import UserError
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("compare_peers")


@pytest.mark.parametrize(("text", "rows"), [
    ("4x256", (32, 128, 1)), ("2x64:4x32", (4, 32, 1)), ("12x768:32x1024:8", (32, 1024, 8)),
    ("modernbert_base", (4, 512, 4)), ("bert_large:128x128:2", (128, 128, 2)),
])  # fmt: skip
def test_shapes_are_read(script, text, rows):
    shape = script.read_shape(text)
    assert (shape.batch, shape.length, shape.documents) == rows


@pytest.mark.parametrize("text", ["4y256", "4x256:32", "roberta_base", "modernbert_huge", "4x256:8x128:x"])
def test_an_invalid_shape_is_rejected(script, text):
    with pytest.raises(UserError, match="--shapes"):
        script.read_shape(text)


def test_flops_are_those_that_each_side_computes(script):
    shape, tokens = script.read_shape("4x256"), 32 * 128
    dense, sparse = shape.flops("Transformers, bf16"), shape.flops("KerasHub on JAX")
    assert sparse == shape.flops("jaxlm")
    assert sparse == shape.flops("Transformers, bf16, compiled, head at masked tokens")
    assert dense - sparse == pytest.approx(6 * (tokens - int(0.15 * tokens)) * 256 * (30_522 + 256))
    modern = script.read_shape("modernbert_base")
    # 14 of 22 layers are local, 129 of 512 tokens; ModernBERT predicts masked tokens only.
    squares = 6 * 4 * 512 * 2 * 768 * 14 * (512 - 129)
    assert modern.flops("Transformers") - modern.flops("jaxlm") == pytest.approx(squares)


def test_all_sides_get_the_same_sizes(script):
    args = Namespace(steps=3, warmup=1, python="peer")
    shape = script.read_shape("modernbert_base")
    ours, peer = (script.command_of(shape, name, args) for name in ("jaxlm", "Transformers, bf16"))
    assert {"--batch=4", "--length=512", "--steps=3", "--documents=4", "--config.masking.rate=0.15"} <= set(ours)
    sizes = {"--layers=22", "--width=768", "--heads=12", "--feed-forward=1152", "--vocab=50368", "--rate=0.15"}
    assert {"peer", "--batch=4", "--length=512", "--steps=3", "--model=modernbert", "--bf16", *sizes} <= set(peer)
    assert "--documents=1" in script.command_of(shape, "jaxlm, one document per row", args)
    assert "--config.train.compute_dtype=float32" in script.command_of(shape, "jaxlm, float32", args)


def test_the_table_has_medians_ranges_and_ratios_within_rounds(script, monkeypatch, tmp_path, capsys):
    seconds = iter([1.0, 2.0, 3.0, 6.0, 2.0, 2.0, 8.0, 2.0])
    machine = {"platform": "cpu", "processor": "P", "cores": 2, "commit": "abc", "versions": dict.fromkeys(
        ("jaxlm", "jax", "flax", "optax"), "1.0")}  # fmt: skip

    def measure(command):
        if "--bf16" in command:
            return {"error": "out of memory"}
        ours = {"mfu": 0.5, "peak_source": "the peak", "peak_flops_per_second": 2e9, "machine": machine}
        return {"step_seconds": next(seconds)} | (ours if "bench" in command else {"versions": {"keras": "3"}})

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script, "BERT_PEERS", {
        name: script.BERT_PEERS[name] for name in ("Transformers", "Transformers, bf16", "KerasHub on JAX")
    })  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["compare_peers", "--python=somewhere/python", "--rounds=2"])
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- compare_peers cpu: begin -->\nold\n<!-- compare_peers cpu: end -->\n\nAfter.\n")
    args = Namespace(
        rounds=2, steps=1, warmup=0, peers=["transformers", "keras"], python="p", section="cpu", output=page
    )
    script.compare([script.read_shape("2x64:4x32")], args)
    text = page.read_text()
    assert text.startswith("Before.\n\n<!-- compare_peers cpu: begin -->\n### 2x64, batch 4 x 32")
    assert text.endswith("<!-- compare_peers cpu: end -->\n\nAfter.\n")
    assert "old" not in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if line[:1] == "|"}
    assert rows["jaxlm"][:2] == ["96", "64 to 128"]  # 128 tokens in 1 and 2 seconds
    assert rows["jaxlm"][4:] == ["1", "0.75 (0.50 to 1.00) |"]
    assert rows["Transformers"][4] == "3.50 (3.00 to 4.00)"  # 3 / 1 and 8 / 2
    assert rows["KerasHub on JAX"][5] == "2.00 (1.00 to 3.00) |"
    assert rows["Transformers, bf16"][0].startswith("failed: out of memory")
    assert "P, 2 cores; commit abc; jaxlm 1.0" in text
    assert "`scripts/compare_peers --rounds=2`" in text
    assert "jaxlm reaches 50% of the peak" in text


def test_missing_peers_are_named(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_peers", "--python=/nowhere/python"])
    assert script.main() == 1
    assert "--python=/nowhere/python has no torch, transformers" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["compare_peers", "--peers=fairseq"])
    assert script.main() == 1
    assert "there is no peer fairseq" in capsys.readouterr().err
