"""Predictions in the format of GLUE."""

from types import SimpleNamespace

from jaxlm.evaluation.submission import submission_file, write_glue
from jaxlm.text.labelled import Row


def test_lines_have_the_index_of_the_test_file_and_the_label(tmp_path):
    rows = [Row("t, line 2", {"index": "0"}), Row("t, line 3", {"index": "7"}), Row("t, line 4", {"id": "9"})]
    labels = ["entailment", "not_entailment", "1"]
    file = tmp_path / "submission" / "RTE.tsv"
    write_glue(file, rows, [{"label": label, "probability": 0.5} for label in labels])
    assert file.read_text() == "index\tprediction\n0\tentailment\n7\tnot_entailment\n9\t1\n"


def test_scores_have_three_digits_and_stay_on_the_scale_of_sts_b(tmp_path):
    file = tmp_path / "submission" / "STS-B.tsv"
    write_glue(file, [Row("", {})] * 3, [{"value": value} for value in (-0.2, 2.34567, 5.1)])
    assert file.read_text() == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"


def test_files_are_named_as_the_server_expects(tmp_path):
    def name(task, found, submission=True):
        file = submission_file(tmp_path, SimpleNamespace(name=task, submission=submission), found)
        return file and file.relative_to(tmp_path).as_posix()

    assert name("mnli", "test_matched") == "submission/MNLI-m.tsv"
    assert name("mnli", "test_mismatched") == "submission/MNLI-mm.tsv"
    assert name("mnli", "diagnostic") == "submission/AX.tsv"
    assert name("stsb", "test") == "submission/STS-B.tsv"
    assert name("stsb", "dev") is None
    assert name("stsb", "test", submission=False) is None
    assert name("none", "test") is None
