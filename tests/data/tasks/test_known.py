"""The files of known tasks in their published layouts."""

import pytest

from jaxlm.config import load_config
from jaxlm.data.tasks.table import check_task, read_task
from jaxlm.errors import UserError

NLI = "index\tpromptID\tpairID\tgenre\tp1\tp2\tp3\tp4\tsentence1\tsentence2\t"
PAIR = "a cat\tthe dog\t"
NLI_ROW = f"0\t1\t2\tg\tp\tp\tp\tp\t{PAIR}"
MRPC = "#1 ID\t#2 ID\t#1 String\t#2 String\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
FILES = {
    "cola": {
        "train.tsv": 'g\t1\t\ta cat\ng\t0\t*\tthe "dog\n',
        "dev.tsv": "g\t1\t\tthe cat\n",
        "test.tsv": "index\tsentence\n0\ta dog\n1\tthe dog\n",
    },
    "sst2": {
        "train.tsv": "sentence\tlabel\na cat \t0\nthe dog\t1\n",
        "dev.tsv": "sentence\tlabel\nthe cat\t1\n",
        "test.tsv": "index\tsentence\n0\ta dog\n",
    },
    "mrpc": {
        "train.tsv": f"\ufeffQuality\t{MRPC}1\t1\t2\t{PAIR[:-1]}\n0\t1\t2\ta\tthe\n",
        "dev.tsv": f"\ufeffQuality\t{MRPC}1\t1\t2\t{PAIR[:-1]}\n",
        "test.tsv": f"\ufeffindex\t{MRPC}0\t1\t2\t{PAIR[:-1]}\n",
    },
    "stsb": {
        "train.tsv": f"index\tgenre\tsentence1\tsentence2\tscore\n0\tg\t{PAIR}5.000\n1\tg\t{PAIR}0.25\n",
        "dev.tsv": f"index\tgenre\tsentence1\tsentence2\tscore\n0\tg\t{PAIR}1\n",
        "test.tsv": f"index\tgenre\tsentence1\tsentence2\n0\tg\t{PAIR[:-1]}\n",
    },
    "qqp": {
        "train.tsv": f"{QQP}0\t1\t2\t{PAIR}0\n1\t1\t2\ta\n2\t1\t2\t{PAIR}1\n",
        "dev.tsv": f"{QQP}0\t1\t2\t{PAIR}0\n",
        "test.tsv": f"id\tquestion1\tquestion2\n0\t{PAIR[:-1]}\n",
    },
    "mnli": {
        "train.tsv": f"{NLI}label1\tgold_label\n"
        + "".join(f"{NLI_ROW}x\t{label}\n" for label in ("neutral", "entailment", "contradiction")),
        "dev_matched.tsv": f"{NLI}label1\tlabel2\tgold_label\n{NLI_ROW}x\tx\tneutral\n",
        "dev_mismatched.tsv": f"{NLI}label1\tlabel2\tgold_label\n{NLI_ROW}x\tx\tentailment\n",
        "test_matched.tsv": f"{NLI[:-1]}\n{NLI_ROW[:-1]}\n",
        "test_mismatched.tsv": f"{NLI[:-1]}\n{NLI_ROW[:-1]}\n",
    },
    "qnli": {
        "train.tsv": f"index\tquestion\tsentence\tlabel\n0\t{PAIR}entailment\n1\t{PAIR}not_entailment\n",
        "dev.tsv": f"index\tquestion\tsentence\tlabel\n0\t{PAIR}entailment\n",
        "test.tsv": f"index\tquestion\tsentence\n0\t{PAIR[:-1]}\n",
    },
}
FILES["rte"] = {
    name: text.replace("question\tsentence", "sentence1\tsentence2") for name, text in FILES["qnli"].items()
}
FILES["wnli"] = {
    name: text.replace("not_entailment", "0").replace("entailment", "1") for name, text in FILES["rte"].items()
}
LABELS = {"stsb": (), "mnli": ("contradiction", "entailment", "neutral"), "qnli": ("entailment", "not_entailment"),
          "rte": ("entailment", "not_entailment")}  # fmt: skip


@pytest.fixture
def known(tmp_path, task_tokenizer_directory):
    """Returns the config of a known task on made-up files in a folder, with overrides."""

    def make(name, *overrides, files=FILES):
        for file, text in files.get(name, {}).items():
            (tmp_path / file).write_text(text, encoding="utf-8")
        settings = [f"task.data={tmp_path}", f"tokenizer.path={task_tokenizer_directory}", "evaluation.select=none"]
        return load_config(f"finetune:{name}", ["init_from=x", "data.sequence_length=64", *settings, *overrides])

    return make


@pytest.mark.parametrize("name", FILES)
def test_the_published_layouts_of_glue_are_read(known, name, caplog):
    config = known(name, "task.submission=true")
    check_task(config)
    data = read_task(config)
    assert data.labels == LABELS.get(name, ("0", "1"))
    evaluation = ["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"]
    assert list(data.sets) == evaluation + [found.replace("dev", "test") for found in evaluation]
    assert ("1 row does not have 6 columns (line 3): skipped" in caplog.text) == (name == "qqp")
    for set_name, examples in data.sets.items():
        assert (examples.columns["weights"] > 0).all() == set_name.startswith("dev")
    assert data.tokenizer.decode(data.train.tokens[0][1:-1]).startswith("a cat")


def test_a_test_file_of_cola_has_a_header_and_other_columns(known):
    data = read_task(known("cola", "task.test=test.tsv"))
    assert len(data.sets["test"]) == 2
    assert data.tokenizer.decode(data.sets["test"].tokens[1][1:-1]) == "the dog"
    assert data.train.rows[1].values["3"] == 'the "dog'


def test_all_missing_files_are_named_with_the_expected_paths(known, tmp_path):
    (tmp_path / "train.tsv").write_text("")
    config = known("mnli", files={})
    with pytest.raises(UserError) as refused:
        check_task(config)
    message = str(refused.value)
    assert f"mnli: {tmp_path}/dev_matched.tsv and {tmp_path}/dev_mismatched.tsv do not exist" in message
    assert f"({tmp_path} has train.tsv); set task.data" in message
    config.task.data = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"train\.tsv and .* \(there is no {tmp_path}/nowhere\); set task\.data"):
        check_task(config)


def test_test_files_are_needed_for_a_submission_only(known):
    files = {"sst2": {name: text for name, text in FILES["sst2"].items() if name != "test.tsv"}}
    check_task(known("sst2", files=files))
    with pytest.raises(UserError, match=r"sst2: .*/test\.tsv does not exist"):
        check_task(known("sst2", "task.submission=true", files=files))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("classification", "task.submission=true", r"^task\.submission: this task has no format of submissions; these"),
        ("sst2", "task.name=sick_entailment", "submission: sick_entailment has no format of submissions"),
        ("sst2", "task.name=stsb", r"^task\.name=stsb is for train\.objective=regression, not classification; set"),
    ],
)
def test_settings_that_do_not_fit_a_known_task_are_one_sentence(known, name, override, message):
    settings = ["task.train=train.tsv", "task.submission=true"] if "sick" in override else ["task.train=train.tsv"]
    with pytest.raises(UserError, match=message):
        check_task(known(name, *settings, override))
