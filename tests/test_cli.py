"""The commands as users run them: killed, stopped, resumed, and with invalid input."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from jaxlm.cli import main
from tests.conftest import ROOT, command, environment, mini_overrides

RECIPE = ROOT / "configs" / "mini.py"


def train_arguments(text_file, cache, workdir, *overrides) -> list[str]:
    settings = [f"--config.{override}" for override in (*mini_overrides(text_file, cache), *overrides)]
    return ["train", f"--config={RECIPE}", f"--workdir={workdir}", *settings]


def checksum(output: str) -> str:
    return output.rpartition("params sha256 ")[2].split()[0]


def entries(workdir: Path, kind: str) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def wait_for(condition, process, seconds: float = 120) -> bool:
    """Waits until the condition holds; returns False if the process ends first."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def trained(text_file, cache, tmp_path_factory) -> Path:
    """A small trained run."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    learns = ("optimizer.name=muon", "optimizer.learning_rate=0.01", "model.embedding_norm=true", "model.dropout=0")
    settings = ("train.steps=300", "train.batch_size=32", "checkpoint.every=150", *learns)
    assert main(train_arguments(text_file, cache, workdir, *settings)) == 0
    return workdir


def test_help_takes_less_than_a_second():
    best = float("inf")
    for _ in range(3):
        begin = time.monotonic()
        result = subprocess.run([sys.executable, "-m", "jaxlm.cli", "--help"], capture_output=True, text=True, cwd=ROOT)
        best = min(best, time.monotonic() - begin)
    assert result.returncode == 0
    assert "fill-mask" in result.stdout
    assert best < 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("verb", ["--help", "completion", "completion --help"])
def test_a_full_device_is_an_error_for_every_output(verb):
    buffered = environment() | {"PYTHONUNBUFFERED": ""}  # argparse ignores an error of an unbuffered write
    with open("/dev/full", "w") as full:
        result = subprocess.run(command(*verb.split()), stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    assert result.returncode == 1
    assert result.stderr == "jaxlm: output: No space left on device; fix that and run the same command again\n"


def test_control_characters_in_a_message_are_escaped(capsys):
    assert main(["\x1b[2Jverb\r\u202e"]) == 1
    assert "there is no verb \\x1b[2Jverb\\r\\u202e; the verbs are" in capsys.readouterr().err


@pytest.mark.slow
def test_a_work_directory_in_use_is_rejected(jaxlm_here, text_file, cache, tmp_path):
    arguments = train_arguments(text_file, cache, tmp_path, "train.steps=100000", "checkpoint.every=1000")
    process = subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: entries(tmp_path, "train"), process)
        second = jaxlm_here(*arguments)
    finally:
        process.kill()
        process.wait()
    assert second.returncode == 1
    assert "in use by another process" in second.stderr


@pytest.mark.slow
def test_fill_mask_prints_words_and_filled_sentences(jaxlm, jaxlm_here, trained):
    result = jaxlm_here(
        "fill-mask", f"--model={trained}", "The cat sees the [MASK].", "A [MASK] follows a [MASK].", check=True
    )
    first = result.stdout.splitlines()[1].split()  # probability, word, filled sentence
    assert " ".join(first[2:]) in (f"The cat sees the {first[1]}.", f"The cat sees the{first[1]}.")
    assert float(first[0].rstrip("%")) > 15  # the objects begin with few pieces
    assert "mask 2" in result.stdout
    answer = jaxlm(
        "fill-mask", f"--model={trained}", "--json", "--top=3", input="The cat [MASK] the house.\n", check=True
    )
    masks = json.loads(answer.stdout)["texts"][0]["masks"]
    assert len(masks) == 1
    assert len(masks[0]) == 3
    assert all(candidate["text"].startswith("The cat") for candidate in masks[0])


@pytest.mark.slow
def test_fill_mask_reads_long_texts_through_a_window(jaxlm_here, trained):
    text = "The cat sees the house in the morning. " * 40 + "The cat sees the [MASK]. " + "A letter. " * 40
    result = jaxlm_here("fill-mask", f"--model={trained}", "--json", text, check=True)
    assert len(json.loads(result.stdout)["texts"][0]["masks"]) == 1


@pytest.mark.slow
def test_evaluate_judges_the_held_out_set_and_any_text(jaxlm_here, trained, text_file, cache):
    own = json.loads(jaxlm_here("evaluate", f"--model={trained}", "--rows=32", "--json", check=True).stdout)
    end = [entry for entry in entries(trained, "evaluation") if entry["step"] == 300][-1]
    assert own["held_out"]["loss"] == pytest.approx(end["loss"], rel=0.02)  # float32 here, the run's dtype there
    other = jaxlm_here("evaluate", f"--model={trained}", f"--data.path={text_file}", "--json", check=True)
    figures = json.loads(other.stdout)[str(text_file)]
    assert 0 < figures["loss"] < figures["unigram_loss"]


@pytest.mark.slow
def test_three_lines_of_python_do_the_same(trained):
    import jaxlm

    candidates = jaxlm.load(trained).fill_mask("The cat sees the [MASK].", top=2)[0]
    assert len(candidates) == 2
    assert candidates[0].probability >= candidates[1].probability
    assert candidates[0].text in (f"The cat sees the {candidates[0].word}.", f"The cat sees the{candidates[0].word}.")


@pytest.mark.slow
def test_bench_of_a_shape_reports_its_figures(jaxlm_here):
    result = jaxlm_here(
        "bench", "--shape=2x64", "--vocab=500", "--batch=4", "--length=32", "--steps=3", "--json", check=True
    )
    figures = json.loads(result.stdout)
    assert {"tokens_per_second", "step_seconds", "model_flops_per_second", "mfu", "peak_bytes"} <= set(figures)
    assert figures["tokens_per_second"] == pytest.approx(4 * 32 / figures["step_seconds"])
    assert 0 < figures["mfu"] < 1


WRONG = [
    ((), "", "VERB"),
    (("trian",), "there is no verb trian", None),
    (("train", "--config=configs/min.py", "--workdir=w"), "did you mean the recipe mini?", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.train.stepz=3"), "did you mean train.steps", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.masking.rate=15"), "masking.rate=15", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.model.heads=3"), "model.heads=3 does not divide", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.data.path=nowhere/*.txt"), "nowhere", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.data.path=bad.txt"), "bad.txt, line 2", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.data.path=broken.jsonl"), "broken.jsonl, line 2", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.data.path=other.jsonl"), "text", None),
    (("train", f"--config={RECIPE}", "--workdir=w", "--config.data.path=small.txt"), "tokenizer.vocab_size", None),
    (("train", f"--config={RECIPE}", "--workdir=file.txt"), "is a file", None),
    (("fill-mask", "--model=nowhere", "x [MASK]"), "there is no directory nowhere", None),
    (("fill-mask", "--model=.", "x [MASK]"), "config.json", None),
    (("evaluate", "--model=nowhere", "--data.pth=small.txt"), "did you mean data.path", None),
    (("bench",), "--config=FILE or --shape", None),
    (("bench", "--shape=4y256"), "LAYERSxWIDTH", None),
]


@pytest.mark.parametrize(("arguments", "error", "output"), WRONG)
def test_invalid_input_gets_one_sentence_and_status_one(jaxlm_here, monkeypatch, tmp_path, arguments, error, output):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mini.py").write_text(RECIPE.read_text())
    (tmp_path / "bad.txt").write_bytes(b"good\ncaf\xe9 bad\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "other.jsonl").write_text('{"body": "fine"}\n')
    (tmp_path / "small.txt").write_text("Three lines.\nOf text.\nAnd no more.\n")
    (tmp_path / "file.txt").write_text("x")
    extra = ["--config.data.cache=cache", "--config.data.workers=1"] if arguments[:1] == ("train",) else []
    monkeypatch.chdir(tmp_path)
    result = jaxlm_here(*arguments, *extra)
    if output:
        assert result.returncode == 0
        assert output in result.stdout
        return
    assert result.returncode == 1
    assert error in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 400


@pytest.mark.slow
def test_the_program_ends_with_the_sentence_and_the_status(jaxlm, tmp_path):
    result = jaxlm("fill-mask", "--model=nowhere", "x [MASK]", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("jaxlm: there is no directory nowhere")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.slow
def test_a_text_without_a_mask_is_rejected(jaxlm_here, trained):
    result = jaxlm_here("fill-mask", f"--model={trained}", "No mask here.")
    assert result.returncode == 1
    assert "no mask in" in result.stderr


@pytest.mark.slow
def test_a_truncated_shard_is_named_and_can_be_replaced(jaxlm_here, text_file, cache, tmp_path):
    arguments = train_arguments(
        text_file, cache, tmp_path / "run", f"data.cache={tmp_path / 'stores'}", "train.steps=4"
    )
    first = jaxlm_here(*arguments, check=True)
    shard = next((tmp_path / "stores").glob("*/train/0/tokens-*.bin"))
    os.truncate(shard, shard.stat().st_size // 2)
    second = jaxlm_here(*arguments)
    assert second.returncode == 1
    assert shard.name in second.stderr
    advised = second.stderr.rpartition("remove ")[2].partition(" and prepare the data again")[0]
    shutil.rmtree(advised)
    third = jaxlm_here(*arguments, check=True)
    assert checksum(third.stdout) == checksum(first.stdout)


@pytest.mark.parametrize(("number", "name"), [(errno.ENOSPC, None), (errno.EROFS, "a/b"), (errno.EMFILE, "a/b")])
def test_an_error_of_the_machine_is_one_sentence(monkeypatch, capsys, number, name):
    from jaxlm import cli
    from jaxlm.use import show_config

    def fail(argv):
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(show_config, "main", fail)
    assert cli.main(["config"]) == 1
    fix = "fix that and run the same command again"
    assert capsys.readouterr().err == f"jaxlm: {name or 'output'}: {os.strerror(number)}; {fix}\n"
    monkeypatch.setattr(show_config, "main", lambda argv: Path("/nowhere/at/all").read_text())
    with pytest.raises(FileNotFoundError):
        cli.main(["config", "--debug"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_with_a_sentence(monkeypatch, capsys, name):
    from jaxlm import cli
    from jaxlm.use import show_config

    number = getattr(signal, name)
    monkeypatch.setattr(show_config, "main", lambda argv: os.kill(os.getpid(), number))
    usual = signal.getsignal(number)
    assert cli.main(["config"]) == 1
    assert capsys.readouterr().err == f"jaxlm: stopped by {name}\n"
    assert signal.getsignal(number) == usual


def start_in_terminal(arguments: list[str]) -> tuple[subprocess.Popen, int]:
    """Starts a command as the foreground program of a new terminal; closing the descriptor closes the terminal."""

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    terminal, own_end = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), own_end)
    process = subprocess.Popen(
        command(*arguments), env=environment() | {"TERM": "xterm"}, preexec_fn=take_terminal, **streams
    )
    os.close(own_end)
    return process, terminal


@pytest.mark.slow
def test_a_closed_terminal_saves_the_run(jaxlm_here, text_file, cache, tmp_path):
    endless = train_arguments(text_file, cache, tmp_path / "run", "train.steps=100000", "checkpoint.every=100000")
    process, terminal = start_in_terminal(endless)
    os.set_blocking(terminal, False)

    def has_trained() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 2**16)  # otherwise the command waits until there is room for its output
        return len(entries(tmp_path / "run", "train")) > 2

    assert wait_for(has_trained, process)
    os.close(terminal)
    assert process.wait(60) == 1
    (saved,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved >= entries(tmp_path / "run", "train")[-1]["step"] > 0
    resumed = jaxlm_here(*endless[:-2], f"--config.train.steps={saved + 1}", endless[-1], check=True)
    assert f"resuming after step {saved}" in resumed.stdout
    assert "compiling the training step" in resumed.stdout


@pytest.mark.slow
def test_a_truncated_compiled_program_is_compiled_again(tmp_path):
    code = """
from jaxlm import cli
cli._set_environment()
import jax
print(int(jax.jit(lambda x: x * 2 + 1)(20)))
"""
    cache = tmp_path / "compiled"
    settings = environment() | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    runs = []
    for number in range(3):
        runs.append(subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True))
        entries = [entry for entry in cache.iterdir() if entry.name.startswith("jit__lambda")]
        sizes = [entry.stat().st_size for entry in entries]
        if number == 0:
            whole = sizes
            for entry in entries:
                os.truncate(entry, entry.stat().st_size // 2)
    assert [run.stdout for run in runs] == ["41\n"] * 3
    assert whole
    assert sizes == whole
    assert ["is damaged and is compiled again" in run.stderr for run in runs] == [False, True, False]


def test_an_option_whose_value_is_two_dashes_is_rejected(capsys):
    from jaxlm import cli

    assert cli.main(["bench", "--shape=1x16", "--batch=--"]) == 1
    assert capsys.readouterr().err == "jaxlm: --batch=--: expected a value after the equals sign\n"
