"""Text, configs and commands that several tests share."""

import atexit
import ctypes
import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and commands inherit that

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = [
    "the cat",
    "a river",
    "my brother",
    "the old captain",
    "every student",
    "the machine",
    "a small bird",
    "our neighbour",
]
VERBS = ["sees", "follows", "paints", "forgets", "carries", "repairs", "describes", "admires", "counts", "buries"]
OBJECTS = [
    "the house",
    "seven stones",
    "a letter",
    "the broken wheel",
    "his garden",
    "some music",
    "the harbour",
    "an answer",
]
PLACES = ["in the morning", "near the bridge", "without a word", "after the storm", "for no reason", "at the market"]


def pytest_configure():
    """Lets all tests and commands of a session share one cache of compiled programs, before JAX is imported.

    The workers of xdist, and `scripts/soak` in its test, inherit these variables. LLVM's optimizations would take half
    of the time of each compilation; `XLA_FLAGS= scripts/test` tests with them.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    compiled = tempfile.mkdtemp(prefix="jaxlm-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_collection_modifyitems(items):
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # long files first, so that the workers end together


@pytest.fixture(scope="module", autouse=True)
def _release_memory():
    """Frees the programs that a test file compiled; otherwise they accumulate to gigabytes in each worker."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)


PEAKS: dict[str, int] = {}  # by worker, in MiB


def pytest_sessionfinish(session):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if output := getattr(session.config, "workeroutput", None):  # a worker of xdist: sent to the main process
        output["peak_memory"] = peak
    else:
        PEAKS["main process"] = peak


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    PEAKS[f"worker {node.gateway.id}"] = getattr(node, "workeroutput", {}).get("peak_memory", 0)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    peaks = ", ".join(f"{name} {peak:,} MiB" for name, peak in sorted(PEAKS.items()))
    terminalreporter.write_line(f"peak memory: {peaks}")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Returns made-up English with enough order in it for a small model to learn."""
    rng = random.Random(seed)
    parts = (SUBJECTS, VERBS, OBJECTS, PLACES)
    return [" ".join(rng.choice(part) for part in parts).capitalize() + "." for _ in range(count)]


def write_text(path: Path, count: int) -> Path:
    """Writes paragraphs of five such sentences, and returns the path."""
    lines = sentences(count)
    path.write_text("\n\n".join(" ".join(lines[i : i + 5]) for i in range(0, len(lines), 5)) + "\n")
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A text file of 400 paragraphs, 5 sentences each."""
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 2000)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of token stores, so that runs of a session share them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def mini(text_file, cache):
    """Returns the mini recipe on the text file, with overrides such as "train.steps=20"."""
    from jaxlm.config import load_config

    def make(*overrides: str):
        return load_config(str(ROOT / "configs" / "mini.py"), [*mini_overrides(text_file, cache), *overrides])

    return make


def mini_overrides(text_file: Path, cache: Path) -> list[str]:
    """Returns what turns the mini recipe into a run of seconds on the text file.

    The schedule is constant, so that runs of any length share their compiled step, and may be cut short and prolonged.
    """
    return [
        f"data.path={text_file}", "data.document=paragraph", f"data.cache={cache}", "data.workers=1",
        "data.held_out_fraction=0.05", "tokenizer.vocab_size=80", "data.sequence_length=32", "model.width=32",
        "model.feed_forward_width=64", "train.batch_size=8", "train.steps=20", "checkpoint.every=5",
        "evaluation.every=10", "logging.every=2", "logging.tensorboard=false", "logging.curve=false",
        "schedule.name=constant", "schedule.warmup=0", "optimizer.learning_rate=0.001",
        "model.output_bias_from_frequencies=false",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def jaxlm():
    """Runs `jaxlm ARGS...` as a user does and returns the finished process; check=True demands exit status 0."""

    def run(*args: str, check: bool = False, **kwargs) -> subprocess.CompletedProcess:
        result = subprocess.run(command(*args), env=environment(), capture_output=True, text=True, **kwargs)
        assert "Traceback" not in result.stderr, result.stderr
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def jaxlm_here(capsys):
    """Runs `jaxlm ARGS...` in this process, and returns what `jaxlm` returns: the start of a program takes seconds."""
    from jaxlm.cli import main

    def run(*args: str, check: bool = False) -> subprocess.CompletedProcess:
        capsys.readouterr()
        status = main([*args])
        result = subprocess.CompletedProcess(args, status, *capsys.readouterr())
        assert "Traceback" not in result.stderr, result.stderr
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


def command(*args: object) -> list[str]:
    """Returns the command line of `jaxlm ARGS...` with this Python."""
    return [sys.executable, "-m", "jaxlm.cli", *map(str, args)]


def predictions_of(file: Path) -> list[dict]:
    """Returns the objects in a file of predictions, without the labels that a run has beside them."""
    import json

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "gold"} for row in rows]


def environment() -> dict[str, str]:
    """Returns the environment of a command that runs this checkout's jaxlm from any directory."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def write_checkpoint(directory: Path, text: Path, layers: int = 2, head: bool = True, **config) -> Path:
    """Writes a small BERT with a WordPiece vocabulary of the words of `text`, as Transformers would; returns where."""
    import json

    import jax
    import numpy as np

    from jaxlm.config import default_config
    from jaxlm.huggingface import conversion
    from jaxlm.model.config import encoder_config
    from jaxlm.model.heads import init_params

    directory.mkdir(parents=True, exist_ok=True)
    words = sorted(set(text.read_text().lower().replace(".", " ").split()))
    letters = sorted({letter for word in words for letter in word})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *[f"##{x}" for x in letters]]
    entries += [word for word in words if word not in entries][::2]
    (directory / "vocab.txt").write_text("\n".join(entries) + "\n")
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    content = {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": len(entries), "hidden_size": 24,
        "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 40, "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "id2label": {"0": "A"}, "pad_token_id": 0,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(content | config))
    source = conversion.read_source(directory)
    settings = default_config()
    settings.model.update(conversion.model_settings(source))
    encoder = encoder_config(settings.model)
    random = np.random.RandomState(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * random.standard_normal(x.shape).astype(np.float32), init_params(encoder, 0)
    )
    if not head:
        del params["head"]
    conversion.write_weights(directory, source.family, encoder, params)
    return directory
