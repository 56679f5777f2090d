"""Rows of labelled files in a template, and the words of their labels."""

import pytest

from jaxlm.config import default_config
from jaxlm.data.tasks.table import check_task, read_task
from jaxlm.data.tasks.template import given_words, label_tokens, resolve_template, words_of_labels
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer

ROWS = "sentence\tother\tlabel\nthe cat sees\ta river\tgood\nmy brother\tthe house\tBad\nthe cat\tx\tgood\n"
ENTRIES = "[PAD] [UNK] [CLS] [SEP] [MASK] . , ? the cat sees a river my brother house it was great fine poor good bad"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter != "a"]
    entries = [*ENTRIES.split(), *letters, *[f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    return folder


@pytest.fixture
def make_config(vocabulary, tmp_path):
    """Returns a config on a training file, with settings of section `task`."""
    (tmp_path / "train.tsv").write_text(ROWS)

    def make(template="{sentence} it was [MASK].", words=("good=great/fine", "Bad=poor"), **task):
        config = default_config()
        config.train.objective = "template"
        config.tokenizer.path = str(vocabulary)
        config.data.sequence_length = 16
        config.evaluation.select = "none"
        config.task.update(train=str(tmp_path / "train.tsv"), template=template, label_words=words, **task)
        resolve_template(config)
        return config

    return make


def ids_of(data, text):
    tokenizer = data.tokenizer
    return [tokenizer.begin_id, *tokenizer.encode(text, find_special=True).ids.tolist(), tokenizer.end_id]


def test_rows_fill_the_template_and_labels_have_the_tokens_of_their_words(make_config):
    config = make_config("{sentence}? [MASK], {other}")
    assert config.task.text == ("sentence", "other")
    check_task(config)
    data = read_task(config)
    assert data.labels == ("Bad", "good")
    assert data.train.columns["labels"].tolist() == [1, 0, 1]
    assert data.train.tokens[0].tolist() == ids_of(data, "the cat sees? [MASK], a river")
    assert [[data.tokenizer.token(id) for id in ids] for ids in data.label_tokens] == [["poor"], ["great", "fine"]]
    assert data.facts.label_tokens == data.label_tokens


@pytest.mark.parametrize("template", ["{sentence2}? [MASK], {sentence1}", "{sentence2}: [MASK]"])
def test_a_template_orders_and_chooses_the_columns_of_a_known_task(make_config, template):
    config = make_config(template, name="rte", text=("sentence1", "sentence2"))
    assert config.task.text == (("sentence2", "sentence1") if "sentence1" in template else ("sentence2",))
    with pytest.raises(UserError, match=r"name the columns in task\.template, and remove"):
        make_config(template, name="rte", text=("sentence1", "other"))


def test_words_of_labels():
    task = default_config().task
    assert words_of_labels(task, ("bad", "good")) == {"bad": ("bad",), "good": ("good",)}
    task.label_words = ("GOOD = great / fine", "bad")
    assert words_of_labels(task, ("bad", "good")) == {"bad": ("bad",), "good": ("great", "fine")}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("good=",), "expected LABEL=WORD or LABEL=WORD/WORD"),
        (("=great",), "expected LABEL=WORD or LABEL=WORD/WORD"),
        (("good=great//fine",), "expected LABEL=WORD or LABEL=WORD/WORD"),
        (("good=great", "Good=fine"), "names the label Good twice; join its words, as Good=WORD/WORD"),
    ],
)
def test_malformed_words_are_refused(entries, message):
    with pytest.raises(UserError, match=message):
        given_words(entries)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("good=great",), r"task\.label_words has no word for the label Bad; add it, as Bad=WORD"),
        (("good=great", "bad=poor", "x=fine"), r"task\.label_words names x, which is not among the labels Bad, good"),
        (
            ("good=greatest", "bad=poor"),
            r"the word 'greatest' of the label good is not one token but great ##e ##s ##t, and a",
        ),
        (("good=!", "bad=poor"), r"the vocabulary lacks the word '!' of the label good, and has only \[UNK\]; give"),
        (("good=Great", "bad=great"), r"the labels Bad and good have the same word, great; set different ones"),
        (("good=great/GREAT", "bad=poor"), r"good has the same word, great twice; set different ones"),
    ],
)
def test_words_that_do_not_fit_are_refused(make_config, words, message):
    with pytest.raises(UserError, match=message):
        read_task(make_config(words=words, text=("sentence",)))


def test_the_names_of_labels_are_their_words_by_default(make_config):
    data = read_task(make_config(words=()))
    assert [[data.tokenizer.token(id) for id in ids] for ids in data.label_tokens] == [["bad"], ["good"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": ""}, r"needs task\.template, a text with columns and a mask, such as"),
        ({"template": "{sentence} it was."}, r"task\.template has no masks, and needs one"),
        ({"template": "[MASK] {sentence} it was [MASK]."}, r"task\.template has 2 masks, and needs one"),
        ({"template": "{body} it was [MASK]."}, r"line 1: there is no column body; the columns are sentence, other"),
        ({"template": "{label} it was [MASK]."}, r"task\.text=label and task\.label=label: must be different columns"),
        ({"text": ("other",)}, r"task\.text=other, but the template has the columns sentence; name the columns in"),
    ],
)
def test_wrong_templates_are_refused(make_config, settings, message):
    def run():
        config = make_config(**settings)
        check_task(config)
        read_task(config)

    with pytest.raises(UserError, match=message):
        run()


def test_a_template_that_another_objective_would_ignore_is_refused(make_config):
    config = make_config()
    config.train.objective = "classification"
    with pytest.raises(UserError, match=r"task\.template needs train\.objective=template, not classification; set"):
        check_task(config)
    assert label_tokens(config, ("a", "b"), load_tokenizer(config.tokenizer.path)) == ()


def test_a_known_task_of_classes_can_be_put_into_a_template(make_config, tmp_path):
    config = make_config(name="sst2", evaluation=("dev=dev.tsv",), data=str(tmp_path), words=("0=poor", "1=great"))
    rows = "sentence\tlabel\nthe cat\t1\nthe house\t0\n"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(rows)
    config.task.train = "train.tsv"
    check_task(config)
    data = read_task(config)
    assert data.labels == ("0", "1")
    assert data.sets["dev"].tokens[0].tolist() == ids_of(data, "the cat it was [MASK].")
