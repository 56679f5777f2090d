import html
import json
import random
import re
import shutil
import subprocess

import pytest

from jaxlm import cli
from jaxlm.config import config_to_dict, load_config
from jaxlm.study.sweep import run_sweep
from tests.study.made_up import replace_training, write_run, write_sweep

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
OFFLINE = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"]


def config(*overrides):
    return config_to_dict(load_config("mini", list(overrides)))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Returns the directory of a sweep with five seeds; the arm "broken <b>" fails."""
    arms = (
        'Arm("slow"), Arm("fast", ("optimizer.learning_rate=0.01",)), Arm("30 %", ("masking.rate=0.3",)),'
        ' Arm("broken <b>", ("masking.rate=0.9",)),'
    )
    replace_training(monkeypatch, lambda c: "no </script> here" if c["masking"]["rate"] == 0.9 else None)
    run_sweep(write_sweep(tmp_path / "sweep", arms=arms, seeds=5), tmp_path / "dir")
    return tmp_path / "dir"


def text_of(page: str) -> str:
    """Returns what a reader sees of a page, without its scripts and styles."""
    body = re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", body)).split())


def test_the_page_of_a_sweep_has_the_question_the_answer_and_the_tables(sweep, capsys):
    assert cli.main(["report", str(sweep)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(sweep / "report.html")
    text = text_of((sweep / "report.html").read_text())
    assert text.startswith(
        "Does a higher rate lower the loss? Does a higher rate lower the loss? fast lowers the loss by 0.070 nats"
    )
    assert (
        "before any run was done: the loss on held_out, at the end of the run; lower is better; 5 seeds; the smallest"
        " effect that matters is 0.02 nats." in text
    )
    assert re.search(r"30 % 5 4\.321 4\.\d+ to 4\.\d+ \+0\.150 \+0\.150 to \+0\.150 < 0\.001 worse", text)
    assert "optimizer.learning_rate 0.003 0.01 0.003" in text
    assert "masking.rate 0.15 0.15 0.3" in text
    assert text.count("train.seed") == 0
    assert "broken-b-seed0" in text
    assert "no </script> here" in text
    assert "All runs: processor a processor, cores 2, jaxlm 0.1.0." in text


def test_the_page_needs_nothing_from_outside(sweep):
    cli.main(["report", str(sweep)])
    page = (sweep / "report.html").read_text()
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"'$]""", re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
    )
    assert page.count("window.vegaEmbed=") == 1  # the library is embedded once
    assert "<b>" not in text_of(page).replace("broken <b>", "")
    assert len(page) < 1.5e6


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("window", ["1200,1800", "390,2400"])
def test_a_browser_draws_the_charts_without_a_network_and_without_errors(sweep, tmp_path, window):
    cli.main(["report", str(sweep)])
    common = [
        BROWSER,
        *OFFLINE,
        f"--window-size={window}",
        "--virtual-time-budget=10000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    page = f"file://{sweep / 'report.html'}"
    done = subprocess.run(
        [*common, "--enable-logging=stderr", "--dump-dom", page],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert 'data-drawn="yes"' in done.stdout
    for name in ("differences", "curves"):
        chart = re.search(rf'id="{name}".*?</svg>', done.stdout, re.DOTALL)[0]
        assert chart.count("<path") > 5
        assert "graphics-document" in chart  # drawn by the page, in place of the fixed picture
        assert re.search(rf'role="img" aria-label="[^"]+"><div id="{name}"', done.stdout)
    # The page must not be wider than the window: phones would shrink it.
    measure = (
        "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script></body>"
    )
    (sweep / "wide.html").write_text(measure.join((sweep / "report.html").read_text().rsplit("</body>", 1)))
    done = subprocess.run(
        [*common, "--dump-dom", f"file://{sweep / 'wide.html'}"], capture_output=True, text=True, timeout=120
    )
    width, window_width = map(int, re.search(r"<title>(\d+) of (\d+)", done.stdout).groups())
    assert width <= window_width


def test_figures_and_the_table_come_from_the_same_results(sweep, tmp_path, capsys):
    assert cli.main(["report", str(sweep), f"--figures={tmp_path / 'figures'}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["arms"]] == ["slow", "fast", "30 %"]
    table = (tmp_path / "figures" / "table.md").read_text().splitlines()
    assert table[0] == "| arm | n | loss, nats | 95% interval | difference | 95% interval | p (Holm) |  |"
    assert len({line.count("|") for line in table}) == 1
    for name in ("curves", "differences"):
        svg = (tmp_path / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert "currentColor" not in svg


def test_two_runs_are_compared_by_what_differs(tmp_path, capsys):
    write_run(tmp_path / "a", config(), [5.0, 4.0])
    write_run(tmp_path / "b", config("masking.rate=0.3"), [5.0, 3.5])
    output = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b"), f"--output={output}"]) == 0
    assert capsys.readouterr().out.startswith("rate=0.3: a difference of -0.500 with one seed, which has no error bar")
    text = text_of(output.read_text())
    assert "nothing was stated before the runs, so this is a description and not a test" in text
    assert "rate=0.15 1 4.000 single run" in text


def test_classifiers_are_compared_over_seeds_and_examples(tmp_path, capsys):
    rng = random.Random(0)
    for arm, rate in (("a", 0.15), ("b", 0.3)):
        for seed in range(4):
            workdir = tmp_path / f"{arm}{seed}"
            write_run(workdir, config(f"masking.rate={rate}", f"train.seed={seed}"), [5.0, 4.0])
            (workdir / "predictions").mkdir()
            rows = [{"label": "x", "gold": "x" if rng.random() < 0.5 + rate else "y"} for _ in range(200)]
            (workdir / "predictions" / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [str(tmp_path / f"{arm}{seed}") for arm in "ab" for seed in range(4)]
    assert cli.main(["report", *runs, "--metric=accuracy", f"--output={tmp_path / 'page.html'}"]) == 0
    text = text_of((tmp_path / "page.html").read_text())
    found = re.search(
        r"rate=0.3, over other seeds and other examples: 95% interval (\S+) to (\S+), p = 0.002"
        r" \(Multi-Bootstrap of 4 seeds and 200 examples\)",
        text,
    )
    assert 0 < float(found[1]) < 0.15 < float(found[2]) < 0.3


def test_a_fine_tuned_run_is_described_by_the_metric_of_its_task(tmp_path, capsys):
    write_run(tmp_path / "a", config(), [5.0, 4.0])
    selection = {"set": "selection", "metric": "accuracy", "direction": "highest"}
    (tmp_path / "a" / "results.json").write_text(json.dumps({"protocol": {"selection": selection}}))
    assert cli.main(["report", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.startswith("Accuracy on held_out: 0.500")
    assert "accuracy on held_out, higher is better" in text_of((tmp_path / "a" / "report.html").read_text())


def test_one_run_is_described(tmp_path, capsys):
    write_run(tmp_path / "a", config(), [5.0, 4.0], done=False)
    assert cli.main(["report", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.startswith("Loss on held_out: 4.000 (in a single run, without an error bar).")
    text = text_of((tmp_path / "a" / "report.html").read_text())
    assert f"Not finished, so read at the last evaluation: {tmp_path / 'a'}." in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a", "nothing"], "there is no directory"),
        (["a", "empty"], "is no work directory: it lacks config.json or metrics.jsonl"),
        (
            ["a", "other_masks"],
            "cannot be compared: the evaluation of held_out differs (15% of tokens masked; 30% of tokens masked)",
        ),
        (["a", "other_tokens"], "cannot be compared: the tokenizer differs (t; u); compare nats_per_byte (--metric)"),
        (["a", "other_set"], "the runs share no evaluation set, so there is nothing to compare"),
        (["a", "a"], "has the same settings and seed as another run; leave one of them out"),
        (["a", "--metric=f1"], "has no metric f1 of held_out; it has loss, accuracy, n"),
        (["a", "--evaluation=dev"], "has no evaluation set dev; it has held_out"),
        (["a", "--smallest_effect=0"], "--smallest_effect=0: must be above 0"),
        (["a", "--output=mine.html"], "exists and is not a report; set another file"),
        (["a", "--output=nothing/page.html"], "does not exist"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", config(), [5.0, 4.0])
    other = config("masking.rate=0.3")
    write_run(tmp_path / "other_masks", other, [5.0], evaluation="held_out")
    events = [json.loads(line) for line in (tmp_path / "other_masks" / "metrics.jsonl").read_text().splitlines()]
    events[0]["evaluation"] = {"held_out": "30% of tokens masked"}
    (tmp_path / "other_masks" / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    write_run(tmp_path / "other_tokens", other, [5.0], tokenizer="u")
    write_run(tmp_path / "other_set", other, [5.0], evaluation="dev")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.html").write_text("<p>my page</p>")
    assert cli.main(["report", *arguments]) == 1
    _, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("jaxlm: ")
    assert err.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "<p>my page</p>"


def test_a_sweep_is_read_as_it_states(sweep, capsys):
    assert cli.main(["report", str(sweep), "--metric=accuracy"]) == 1
    assert "--metric has no effect on a sweep, which states how it is read in sweep.py" in capsys.readouterr().err
    assert cli.main(["report", str(sweep), str(sweep)]) == 1
    assert "report on one sweep, or on single runs" in capsys.readouterr().err
