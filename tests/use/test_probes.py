"""`jaxlm evaluate --tasks`: zero-shot probes of a small model."""

import json

import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.loading import load_trained
from jaxlm.use.probes import probe
from jaxlm.use.score import score
from tests.parity.minicons_scores import make_checkpoint

PAIRS = [
    ("a bird sees the cat", "a bird see the cat"),
    ("the harbour is old", "the harbour are old"),
    ("the same", "the same"),
    ("a small bird counts the stones", "a bird counts"),
]
CROWS_PAIRS = [
    ("the cat forgets the house", "a small bird forgets the house", "stereo", "age"),
    ("every student counts the letter", "my brother counts the letter", "antistereo", "age"),
    ("the machine sees an answer", "the machine sees an answer", "stereo", "gender"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("probes") / "bert")


@pytest.fixture(scope="module")
def data(model):
    """A folder with the data of all tasks."""
    folder = model.parent / "data"
    (folder / "blimp").mkdir(parents=True)
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in PAIRS]
    (folder / "blimp" / "all.jsonl").write_text("".join(lines))
    (folder / "blimp" / "first.jsonl").write_text(lines[0])
    (folder / "crows_pairs").mkdir()
    rows = [f"{number},{','.join(row)}\n" for number, row in enumerate(CROWS_PAIRS)]
    header = ",sent_more,sent_less,stereo_antistereo,bias_type\n"
    (folder / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(header + "".join(rows))
    (folder / "cloze.tsv").write_text("text\ttarget\na [MASK] sees the cat\tbird\nthe cat <mask> a bird\tsees\n")
    return folder


@pytest.fixture
def evaluated(model, data, capsys):
    def call(*options):
        status = main(["evaluate", f"--model={model}", f"--data={data}", "--json", *options])
        output = capsys.readouterr()
        return json.loads(output.out) if status == 0 else output.err

    return call


def test_all_tasks_in_one_object(evaluated, model):
    found = evaluated("--tasks=blimp,crows_pairs,cloze")
    assert [result["variant"] for result in found.values()] == ["within_word_l2r", "original", "within_word_l2r"]
    trained = load_trained(model)
    texts = list(dict.fromkeys(text for pair in PAIRS for text in pair))
    totals = {result.text: result.total for result in score(trained, texts, "within_word_l2r")}
    right = [totals[good] - totals[bad] > 1e-3 for good, bad in PAIRS]
    blimp = found["blimp"]
    assert blimp["paradigms"]["all"]["accuracy"] == sum(right) / 4
    assert blimp["paradigms"]["first"]["accuracy"] == right[0]
    assert blimp["accuracy"] == pytest.approx((sum(right) / 4 + right[0]) / 2)
    assert (blimp["n"], blimp["ties"], blimp["scores"]) == (5, 1, "sum over tokens")
    assert found["cloze"]["n"] == 2

    # The shared words are the last ones, of one length in both sentences.
    crows, shared = found["crows_pairs"], {"stereo": " forgets the house", "antistereo": " counts the letter"}
    results = {
        result.text: result for result in score(trained, [text for row in CROWS_PAIRS for text in row[:2]], "original")
    }
    for more, less, direction, _ in CROWS_PAIRS[:2]:
        count = len(trained.tokenizer.encode(shared[direction]).ids)
        sums = [sum(results[text].log_probabilities[-count:]) for text in (more, less)]
        share = crows["directions"][direction]
        assert share["stereotype_share"] * share["n"] == (sums[0] > sums[1])
    assert (crows["n"], crows["ties"], crows["bias_types"]["gender"]["stereotype_share"]) == (3, 1, 0.0)


def test_options_change_the_scores(evaluated):
    found = evaluated("--tasks=blimp", "--variant=original", "--per-token", "--rows=1")["blimp"]
    assert (found["variant"], found["scores"], found["n"]) == ("original", "mean per token", 2)


def test_the_table_names_its_protocol(model, data, capsys):
    assert main(["evaluate", f"--model={model}", f"--data={data}", "--tasks=crows_pairs,cloze"]) == 0
    output = capsys.readouterr().out
    assert "variant: original masks one token at a time (Salazar et al., arXiv 1910.14659)" in output
    assert "score: sum over the tokens that both sentences share" in output
    assert "95% percentile bootstrap over rows, 2,000 resamples, seed 0" in output
    assert output.count("\n\n") == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--tasks=blmp",), "--tasks=blmp: there is no task 'blmp'; did you mean blimp?"),
        (("--tasks=sst",), "there is no task 'sst'; did you mean sst2?"),
        (("--tasks=",), "there is no task ''"),
        (("--tasks=blimp,blimp",), "blimp is given twice"),
        (("--tasks=cloze", "--per-token"), "--per-token has no effect on cloze: remove it; it applies to blimp"),
        (("--tasks=cloze", "--whole-documents"), "--whole-documents has no effect on --tasks: remove it"),
        (("--tasks=cloze", "--no-whole-documents"), "--no-whole-documents has no effect on --tasks"),
        (("--tasks=cloze", "--data.path=x"), "--data.path=x has no effect on --tasks"),
        (("--tasks=cloze", "--config.train.steps=3"), "--config.train.steps=3 has no effect on --tasks"),
        (("--tasks=cloze", "--rows=-1"), "--rows=-1: it cannot be negative"),
        (("--tasks=cloze", "--data=nowhere"), "--data=nowhere does not exist; name the folder with the data of cloze"),
        (("--tasks=cloze", "--data="), "--data= is empty"),
        ((), "--data applies to --tasks, which is not given; a text is read with --data.path"),
    ],
)
def test_options_that_are_invalid_or_without_effect_are_rejected(evaluated, options, error):
    assert error in evaluated(*options)


def test_options_need_each_other(model, capsys):
    for options, error in [
        (["--tasks=blimp"], "--tasks=blimp needs --data, the folder with their data"),
        (["--variant=original"], "--variant applies to --tasks, which is not given"),
        (["--per-token"], "--per-token applies to --tasks, which is not given"),
    ]:
        assert main(["evaluate", f"--model={model}", *options]) == 1
        assert error in capsys.readouterr().err


def test_a_sentence_that_cannot_be_scored_is_named_by_its_line(evaluated, data, tmp_path):
    long = json.dumps({"sentence_good": "the cat " * 60, "sentence_bad": "the cat"})
    (tmp_path / "a.jsonl").write_text(long + "\n")
    error = evaluated("--tasks=blimp", f"--data={tmp_path}")
    assert f"{tmp_path}/a.jsonl, line 1: sentence_good has 120 tokens, but the model reads at most 62" in error


def test_models_that_predict_no_masked_tokens_are_refused(model):
    trained = load_trained(model)
    with pytest.raises(UserError, match="has no masked-LM head, so it predicts no tokens"):
        probe(trained._replace(has_head=False), {})
    with trained.config.unlocked():
        trained.config.train.objective = "causal"
    with pytest.raises(UserError, match=r"was trained to predict next tokens \(train.objective=causal\)"):
        probe(trained, {})
