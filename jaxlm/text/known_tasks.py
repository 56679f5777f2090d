"""Known tasks: the files, columns and metric of published data sets with labelled examples.

`--config=finetune:NAME --config.task.data=FOLDER` sets what a row of the table says; every setting may be overridden.
The rows of GLUE (arXiv 1804.07461) describe the files of its download, in which the labels of the test sets are hidden.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxlm.settings import SETTINGS


class KnownTask(NamedTuple):
    """The layout of a data set; the fields up to `bad_rows` are settings of section `task`."""

    objective: str  # train.objective
    train: str
    evaluation: tuple[str, ...]
    text: tuple[str, ...] = SETTINGS["task"]["text"].default
    label: str = "label"
    metric: str = ""
    header: bool = True
    bad_rows: str = "refuse"
    test: tuple[str, ...] = ()  # sets without labels, which task.submission adds
    test_text: tuple[str, ...] = ()  # columns of the text in test files, if they have a header and the others have none
    submissions: Mapping[str, str] = MappingProxyType({})  # the benchmark's name for the predictions on a test set

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings of section `task` that read these files."""
        names = ("train", "evaluation", "text", "label", "metric", "header", "bad_rows")
        return {name: getattr(self, name) for name in names}


def _glue(name: str, **fields: Any) -> KnownTask:
    """Returns a classification task of GLUE with its usual file names; its submission is NAME.tsv."""
    usual = {"objective": "classification", "train": "train.tsv", "evaluation": ("dev=dev.tsv",),
             "text": ("sentence1", "sentence2"), "metric": "accuracy", "test": ("test=test.tsv",),
             "submissions": {"test": name}}  # fmt: skip
    return KnownTask(**usual | fields)


_SICK = KnownTask(
    "regression", "train.tsv", ("trial=trial.tsv", "test=test.tsv"), ("sentence_A", "sentence_B"), "relatedness_score",
    "pearson",
)  # fmt: skip

_TASKS: dict[str, KnownTask] = {
    "cola": _glue("CoLA", text=("3",), label="1", header=False, metric="mcc", test_text=("sentence",)),
    "sst2": _glue("SST-2", text=("sentence",)),
    "mrpc": _glue("MRPC", text=("#1 String", "#2 String"), label="Quality"),
    "stsb": _glue("STS-B", objective="regression", label="score", metric="pearson"),
    # The published files have rows that lack columns.
    "qqp": _glue("QQP", text=("question1", "question2"), label="is_duplicate", bad_rows="skip"),
    "mnli": _glue(
        "MNLI", label="gold_label",
        evaluation=("dev_matched=dev_matched.tsv", "dev_mismatched=dev_mismatched.tsv"),
        test=("test_matched=test_matched.tsv", "test_mismatched=test_mismatched.tsv"),
        submissions={"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm", "diagnostic": "AX"},
    ),
    "qnli": _glue("QNLI", text=("question", "sentence")),
    "rte": _glue("RTE"),
    "wnli": _glue("WNLI"),
    "sick_relatedness": _SICK,
    "sick_entailment": _SICK._replace(objective="classification", label="entailment_judgment", metric="accuracy"),
    "ag_news": KnownTask("classification", "train.csv", ("valid=valid.csv",), ("title", "description")),
    # The files of Zhang et al. (arXiv 1509.01626): the class, 1 to 4, comes first, and no line names the columns.
    "ag_news_original": KnownTask("classification", "train.csv", ("test=test.csv",), ("1", "2"), "0", header=False),
    "trecqa": KnownTask("reranking", "train.csv", ("dev=dev.csv", "test=test.csv"), ("qtext", "atext")),
    "conll2003": KnownTask("tagging", "eng.train", ("testa=eng.testa", "testb=eng.testb")),
    "wnut17": KnownTask("tagging", "train.conll", ("dev=dev.conll", "test=test.conll")),
    "squad": KnownTask("span", "train-v1.1.json", ("dev=dev-v1.1.json",)),
    "squad2": KnownTask("span", "train-v2.0.json", ("dev=dev-v2.0.json",)),
}  # fmt: skip

# Those whose kind of task can be trained.
KNOWN_TASKS = {name: task for name, task in _TASKS.items() if task.objective in SETTINGS["train"]["objective"].choices}
