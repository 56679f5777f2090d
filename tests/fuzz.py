"""Damaged and nonsensical input for the verbs, drawn from numbers so that each case can be repeated.

A case takes one file of a working set-up, damages it, and runs a verb in this process. The verb must succeed or print
one sentence; an unexpected exception or a run without an end is a fault.
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from jaxlm import cli
from jaxlm.config import default_config
from jaxlm.data.prepare import prepare
from jaxlm.huggingface.weights import write_tensors
from jaxlm.settings import SETTINGS
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.use.evaluate_task import SETTINGS as EVALUATED
from tests.conftest import ROOT, sentences, write_checkpoint, write_text
from tests.untrained import make_fine_tuned, make_workdir

FAULTS = ("unexpected", "hang")  # ways to end that are bugs
SECONDS = 60  # after which a verb counts as hanging

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 10**30, 1e30, -0.5, 1e-12, "", "1e-12", "x" * 5000, "a\0b", "\ud800", "gelu",
    [], [1], ["a"], [[]], {}, {"a": 1}, {"content": 3}, [None], [{"type": 3}],
]  # fmt: skip


class Hang(BaseException):
    """Raised in a verb that takes too long; no verb catches it."""


class Outcome(NamedTuple):
    """How a verb ended: "accepted", "refused", "unexpected" or "hang", and what it printed."""

    kind: str
    text: str


def run_verb(argv: list[str], standard_input: str = "") -> Outcome:
    """Runs `jaxlm ARGV...` in this process."""
    output, errors = io.StringIO(), io.StringIO()

    def stop(number: int, frame: object) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    original, cli.sys.stdin = cli.sys.stdin, io.StringIO(standard_input)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = cli.main(argv)
    except Hang:
        return Outcome("hang", "")
    except BaseException as error:  # also panics of libraries in Rust
        return Outcome("unexpected", f"{type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        cli.sys.stdin = original
    if "jaxlm: unexpected " in errors.getvalue():
        return Outcome("unexpected", errors.getvalue())
    return Outcome("refused" if status else "accepted", errors.getvalue() if status else output.getvalue())


# Damage to a file


def damage_json(content: bytes, where: int, what: int) -> bytes:
    """Returns JSON in which one value, chosen by `where`, is replaced by another, removed or repeated."""
    whole = json.loads(content)
    places = list(_places(whole))
    if not places:
        return content
    container, key = places[where % len(places)]
    what %= len(VALUES) + 2
    if what < len(VALUES):
        container[key] = VALUES[what]
    elif what == len(VALUES):
        del container[key]
    else:
        text = json.dumps(container[key])
        container[key] = "REPLACED"
        return json.dumps(whole).replace('"REPLACED"', f'{text}, "repeated": NaN', 1).encode()
    return json.dumps(whole).encode()


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of the values in JSON; of long containers, the first and the last few."""
    if not isinstance(value, dict | list) or depth > 6:
        return
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys if len(keys) <= 40 else keys[:4] + keys[-4:]:
        yield value, key
        yield from _places(value[key], depth + 1)


def cut(content: bytes, where: int, what: int) -> bytes:
    return content[: where % (len(content) + 1)]


def flip(content: bytes, where: int, what: int) -> bytes:
    """Returns the content with one bit flipped; half of the bits are among the first 200 bytes."""
    if not content:
        return b"x"
    position = (where // 2) % (min(200, len(content)) if where % 2 else len(content))
    return content[:position] + bytes([content[position] ^ (1 << what % 8)]) + content[position + 1 :]


_WHOLE: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: b"\0" * 64,
    lambda content: b"[" * 100_000,
    lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.replace(b"\n", b"\r"),
    lambda content: content.decode("utf-8", "replace").encode("utf-16"),
    lambda content: b"\xff\xfe" + content,
    lambda content: b"null",
    lambda content: b"[]",
    lambda content: b"{}",
    lambda content: b"[1, 2]",
    lambda content: b'"text"',
    lambda content: content + content,
    lambda content: b"1" * 5000,
    lambda content: content[::-1],
]


def replace_all(content: bytes, where: int, what: int) -> bytes:
    return _WHOLE[where % len(_WHOLE)](content)


def damage_lines(content: bytes, where: int, what: int) -> bytes:
    """Returns JSON Lines in which one line is damaged like JSON."""
    lines = content.splitlines(keepends=True)
    number = where % len(lines)
    lines[number] = damage_json(lines[number], where // len(lines), what) + b"\n"
    return b"".join(lines)


CELLS = (
    "", " ", '"', '"a', "\t", "a\tb", "x,y", "-1", "1e999", "nan", "5" * 400, "\ufeff", "\0", "\uffff", "O", "B-",
    "I-PER", "calm", "CALM ", "\u00a0", "\r", "-DOCSTART-", "# text", "[MASK] [SEP]", "x" * 5000, "x y " * 300,
)  # fmt: skip


def damage_cell(content: bytes, where: int, what: int) -> bytes:
    """Returns a table in which one cell, chosen by `where`, is replaced, removed, repeated, or followed by a line."""
    lines = content.decode().split("\n")
    number = where % len(lines)
    separator = "\t" if "\t" in lines[number] else "," if "," in lines[number] else " "
    cells = lines[number].split(separator)
    at = where // len(lines) % len(cells)
    what %= len(CELLS) + 3
    if what < len(CELLS):
        cells[at] = CELLS[what]
    elif what == len(CELLS):
        del cells[at]
    elif what == len(CELLS) + 1:
        cells.insert(at, cells[at])
    else:
        cells[at] += "\n \t"
    lines[number] = separator.join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


DAMAGE: dict[str, Callable[[bytes, int, int], bytes]] = {
    "value": damage_json, "line": damage_lines, "cell": damage_cell, "cut": cut, "flip": flip, "whole": replace_all,
}  # fmt: skip


def kinds_for(name: str) -> list[str]:
    """Returns the kinds of damage that suit a file; "place" puts something else in place of the file."""
    special = ["value"] * 4 if name.endswith(".json") else ["line"] * 2 if name.endswith(".jsonl") else []
    special += ["cell"] * 4 if name.endswith((".tsv", ".csv", ".conll")) else []
    return [*special, "cut", "flip", "whole", "place"]


@contextlib.contextmanager
def damaged(file: Path, kind: str, where: int, what: int) -> Iterator[None]:
    """Damages a file inside the body, and restores it afterwards."""
    content = file.read_bytes()
    try:
        if kind == "place":
            _put_in_place(file, where)
        else:
            file.write_bytes(DAMAGE[kind](content, where, what))
        yield
    finally:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        file.write_bytes(content)


def _put_in_place(file: Path, where: int) -> None:
    file.unlink()
    choice = where % 5
    if choice == 0:
        file.mkdir()
    elif choice == 1:
        os.mkfifo(file)
    elif choice == 2:
        file.symlink_to(file.name)
    elif choice == 3:
        file.symlink_to("/dev/full" if Path("/dev/full").exists() else os.devnull)
    # else: the file is missing


# Arguments

NUMBERS = ("0", "-1", "1", "nan", "inf", "1e9", "1e30", "1" * 400, "", "x", "1.5", "true", "[]", "\u0663")
TEXTS = ("", "a" * 5000, "a\0b", "\udcff", "base64", "zlib", "undefined", "../..", "/dev/null", "-", "\u202e", "{}")


# A set-up with every kind of file that a verb reads


class Target(NamedTuple):
    """A file, and a command that reads it."""

    file: Path
    argv: tuple[str, ...]


class World:
    """Small models and texts in a folder, and the commands that read each of their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = write_text(folder / "text.txt", 60)
        self.bert = write_checkpoint(folder / "bert", self.text)
        self.sentences = _sentence_transformer(folder / "sentences", self.text)
        self.roberta = _with_byte_level_vocabulary(folder / "bytes", self.bert)
        self.run = _run(folder / "run", self.text)
        self.tables = _tables(folder)
        self.tasks = Tasks(folder / "tasks", self.bert)
        self.targets = [*self._models(), *self._inputs(), *self.tasks.targets()]

    def _models(self) -> Iterator[Target]:
        score = ("score", "The cat sees the house.")
        for name in ("config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"):
            yield Target(self.bert / name, (*score, f"--model={self.bert}"))
        yield Target(self.bert / "config.json", ("export", f"--workdir={self.bert}", "--to={new}"))
        embed = ("embed", f"--model={self.sentences}", f"--input={self.text}", "--output={new}.npy")
        for file in sorted(self.sentences.rglob("*.json")):
            yield Target(file, embed)
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            yield Target(
                self.roberta / name, (*self._prepare(self.tables[0]), f"--config.tokenizer.path={self.roberta}")
            )
        for name in ("config.json", "token_counts.npy", "tokenizer/jaxlm_tokenizer.json", "tokenizer/tokenizer.model"):
            yield Target(self.run / name, (*score, f"--model={self.run}"))
        for name in ("metrics.jsonl", "data.json", "config.json"):
            yield Target(self.run / name, ("export", f"--workdir={self.run}", "--to={new}"))
        for name in (
            "data.json",
            "data/prepared.json",
            "data/train/0/index.json",
            "data/tokenizer/jaxlm_tokenizer.json",
        ):
            yield Target(self.run / name, ("evaluate", f"--model={self.run}", "--rows=1"))
        for name in ("_CHECKPOINT_METADATA", "params/_METADATA", "params/manifest.ocdbt"):
            yield Target(self.run / "checkpoints" / "1" / name, (*score, f"--model={self.run}"))
        yield Target(
            self.run / "config.json", ("plan", f"--config={self.run}/config.json", "--mesh=data=1", "--formula")
        )

    def _inputs(self) -> Iterator[Target]:
        for file in self.tables:
            yield Target(file, self._prepare(file))
            yield Target(file, ("embed", f"--model={self.bert}", f"--input={file}", "--output={new}.npy"))

    def _prepare(self, file: Path) -> tuple[str, ...]:
        settings = (f"data.path={file}", f"data.cache={self.folder}/cache", "data.workers=1", "tokenizer.vocab_size=60")
        return ("prepare", f"--config={ROOT}/configs/mini.py", *(f"--config.{setting}" for setting in settings))

    def arguments(self) -> list[tuple[str, ...]]:
        """Returns commands with a place, {}, for a number or a text of an argument."""
        score, embed = ("score", f"--model={self.bert}"), ("embed", f"--model={self.bert}", "--output={new}.npy")
        fill = ("fill-mask", f"--model={self.bert}")
        recipe = f"--config={ROOT}/configs/mini.py"
        return [
            *self.tasks.arguments(),
            (*fill, "The [MASK].", "--top={}"), (*fill, "The [MASK].", "--targets={}"), (*fill, "The [MASK] {}"),
            (*score, "{}"), (*embed, f"--input={self.text}", "--batch-tokens={}"),
            (*embed, f"--input={self.text}", "--encoding={}"), (*embed, f"--input={self.text}", "--layers={}"),
            (*embed, "--input={}"), ("fill-mask", "--model={}", "[MASK]"), ("embed", "--model={}", "--input=x"),
            ("export", f"--workdir={self.bert}", "--to={new}", "--dtype={}"), ("config", "{}"), ("{}",),
            ("evaluate", f"--model={self.bert}", f"--data.path={self.text}", "--data.document={}"),
            ("evaluate", f"--model={self.bert}", f"--data.path={self.text}", "--data.max_document_characters={}"),
            ("evaluate", f"--model={self.bert}", "--rows={}"), ("evaluate", f"--model={self.bert}", "--data.path={}"),
            ("bench", "--shape={}"), ("bench", "--shape=1x{}", "--device-only"), ("bench", "--shape=1x8", "--batch={}"),
            ("bench", "--shape=1x8", "--vocab={}"), ("bench", "--shape=1x8", "--length={}"),
            ("bench", "--shape=1x8", "--steps=1", "--batch=1", "--length=8", "--vocab=50", "--padding={}"),
            ("plan", recipe, "--mesh={}", "--formula"), ("plan", recipe, "--mesh=data={}", "--formula"),
            ("plan", recipe, "--mesh=data=1", "--formula", "--mfu={}"),
            ("plan", recipe, "--mesh=data=1", "--formula", "--phase={}"), ("train", "--config={}", "--workdir={new}"),
            ("train", recipe, "--workdir={new}", f"--config.data.path={self.text}", "--config.model.init_from={}"),
            *(("plan", recipe, "--mesh=data=1", "--formula", f"--config.{section}.{name}={{}}")
              for section in SETTINGS for name in SETTINGS[section]),
            *((*self._prepare(self.tables[0]), f"--config.{section}.{name}={{}}")
              for section in ("data", "tokenizer") for name in SETTINGS[section] if name not in ("cache", "workers")),
        ]  # fmt: skip

    def damage(self, target: Target, kind: str, where: int, what: int) -> Outcome:
        """Runs the command of a target while its file is damaged."""
        with damaged(target.file, kind, where, what):
            return self.call(target.argv)

    def call(self, argv: Sequence[str], standard_input: str = "") -> Outcome:
        """Runs a command; "{new}" in it is a path that does not exist yet."""
        new = self.folder / "new"
        try:
            return run_verb([argument.replace("{new}", str(new)) for argument in argv], standard_input)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            for file in self.folder.glob("new*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _sentence_transformer(directory: Path, text: Path) -> Path:
    """Writes a sentence-transformers directory with two weight files and a tokenizer.json."""
    write_checkpoint(directory, text)
    load_tokenizer(directory).save(directory / "saved")
    (directory / "saved" / "tokenizer.json").rename(directory / "tokenizer.json")
    shutil.rmtree(directory / "saved")
    content = (directory / "model.safetensors").read_bytes()
    from safetensors.numpy import load

    (directory / "model.safetensors").unlink()
    write_tensors(directory, load(content), 8000)
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": True}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 30, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "The "}, "default_prompt_name": "query"},
        "special_tokens_map.json": {"mask_token": {"content": "[MASK]"}, "pad_token": "[PAD]"},
    }
    (directory / "1_Pooling").mkdir()
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value, indent=1))
    return directory


def _with_byte_level_vocabulary(directory: Path, bert: Path) -> Path:
    directory.mkdir()
    letters = [chr(letter) for letter in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "th", "the"]
    (directory / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (directory / "tokenizer_config.json").write_text('{"add_prefix_space": false, "model_max_length": 512}')
    return directory


def _run(directory: Path, text: Path) -> Path:
    """Writes a work directory with a held-out set and a log."""
    make_workdir(directory, norm_position="post", first_norm=True, embedding_norm=True)
    settings = default_config()
    settings.data.update(path=(str(text),), document="paragraph", held_out_fraction=0.3, workers=1, sequence_length=16)
    settings.tokenizer.path = str(directory / "tokenizer")
    prepared = prepare(settings, str(directory / "data"))
    content = {"directory": str(directory / "data"), "fingerprint": prepared.fingerprint}
    (directory / "data.json").write_text(json.dumps(content))
    events = [
        {"kind": "start", "devices": 1, "device_kind": "cpu", "processor": "x", "versions": {}, "commit": "a"},
        {"kind": "train", "step": 1, "loss": 4.0, "tokens": 100, "tokens_per_second": 10.0},
        {"kind": "evaluation", "step": 1, "name": "held_out", "loss": 4.0, "accuracy": 0.1, "accuracy_top5": 0.2,
         "nats_per_byte": 1.0, "unigram_loss": 4.1},
    ]  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return directory


def _tables(folder: Path) -> list[Path]:
    """Writes the same short texts in every format that is read."""
    texts = sentences(60)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "a.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    (folder / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    with gzip.open(folder / "a.txt.gz", "wt") as file:
        file.write("\n".join(texts))
    parquet.write_table(pyarrow.table({"text": texts}), folder / "a.parquet")
    return [folder / name for name in ("a.jsonl", "a.csv", "a.tsv", "a.txt.gz", "a.parquet")]


# Fine-tuned models, and the labelled files that they are trained and used on

KINDS = {  # the verb of a kind of task, its labels and its other settings, and the files that it reads
    "classification": ("classify", ("calm", "busy"), {}, ("a.tsv", "a.csv", "a.jsonl", "a.parquet")),
    "regression": ("classify", (), {"label": "score", "text": ("sentence", "second")}, ("a.tsv", "a.jsonl")),
    "multi_label": ("classify", ("calm", "busy"), {"separator": ";"}, ("a.csv", "a.jsonl")),
    "tagging": ("tag", ("B-PER", "I-PER", "O"), {}, ("words.conll", "words.jsonl")),
    "span": ("answer", (), {"stride": 8}, ("squad.json", "squad.jsonl")),
    "reranking": ("rank", (), {"text": ("sentence", "second"), "label": "flag"}, ("a.tsv", "a.csv")),
}  # fmt: skip
OUTPUTS = (".jsonl", ".csv", ".tsv", ".parquet")


class Tasks:
    """Models of every kind of task, and labelled files in a folder."""

    def __init__(self, folder: Path, start: Path) -> None:
        self.folder, self.start = folder, start
        for kind, (_, labels, settings, _) in KINDS.items():
            make_fine_tuned(folder / kind, kind, labels, **settings)
        _labelled(folder)

    def targets(self) -> Iterator[Target]:
        for kind, (verb, _, _, names) in KINDS.items():
            model = f"--model={self.folder / kind}"
            for number, name in enumerate(names):
                file = self.folder / name
                ending = ".conll" if kind == "tagging" and number else ".json" if number and kind == "span" else (
                    ".jsonl" if kind == "tagging" else OUTPUTS[number]
                )  # fmt: skip
                yield Target(file, (verb, model, f"--input={file}", f"--output={{new}}{ending}"))
                yield Target(file, ("evaluate", model, f"--task.evaluation={file}", "--output={new}"))
                yield Target(file, self._train(kind, f"task.train={file}"))
            for name in ("config.json", "calibration/1.json"):
                if (self.folder / kind / name).exists():
                    yield Target(self.folder / kind / name, (verb, model, "the cat\tthe house"))
        for name in ("train.tsv", "dev.tsv"):
            for task in ("sst2", "cola"):
                yield Target(self.folder / task / name, self._train(task, f"task.data={self.folder / task}"))

    def _train(self, kind: str, *settings: str) -> tuple[str, ...]:
        """Returns a run that reads its files and then ends, since there is no such metric."""
        given = KINDS.get(kind, ("", (), {}, ()))[2]
        texts = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in given.items()}
        own = [f"task.{name}={value}" for name, value in texts.items()]
        all_settings = (f"init_from={self.start}", "data.sequence_length=40", "task.metric=absent", *own, *settings)
        return ("train", f"--config={ROOT}/configs/finetune.py:{kind}", "--workdir={new}",
                *(f"--config.{setting}" for setting in all_settings))  # fmt: skip

    def arguments(self) -> Iterator[tuple[str, ...]]:
        """Yields commands with a place, {}, for a number or a text of an argument."""
        for kind, (verb, _, _, names) in KINDS.items():
            model, file = f"--model={self.folder / kind}", self.folder / names[0]
            use = (verb, model, f"--input={file}")
            for option in ("--field={}", "--encoding={}", "--format={}", "--output={}", "--output={new}{}"):
                yield (*use, option)
            yield (verb, model, "--step={}", "the cat\tthe house")
            yield (verb, model, "--input={}")
            yield (verb, model, "{}")
            yield (verb, model, "a\t{}")
            yield from (("evaluate", model, f"--{name}={{}}", "--output={new}") for name in EVALUATED)
            yield ("evaluate", model, f"--task.evaluation={file}", "--rows={}")
            yield from ((*self._train(kind, f"task.train={file}"), f"--config.task.{name}={{}}")
                        for name in SETTINGS["task"])  # fmt: skip
        yield ("rank", f"--model={self.folder / 'reranking'}", "--query={}", "the cat")
        yield ("answer", f"--model={self.folder / 'span'}", "--context={}", "the cat")
        yield ("train", f"--config={ROOT}/configs/finetune.py:{{}}", "--workdir={new}")


def _labelled(folder: Path) -> None:
    """Writes the same examples in every format that tasks are read from."""
    rows = [
        {"sentence": text, "second": other, "label": ("calm", "busy")[n % 2], "score": n / 7, "flag": str(n % 2)}
        for n, (text, other) in enumerate(zip(sentences(24, seed=1), sentences(24, seed=2), strict=True))
    ]
    header = list(rows[0])
    for ending, separator in ((".tsv", "\t"), (".csv", ",")):
        lines = [separator.join(map(str, row.values())) for row in rows]
        (folder / f"a{ending}").write_text("\n".join([separator.join(header), *lines]) + "\n")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    tagged = [(words := row["sentence"].split(), ["B-PER", "I-PER", *["O"] * (len(words) - 2)]) for row in rows]
    columns = ["".join(f"{word} {tag}\n" for word, tag in zip(*pair, strict=True)) for pair in tagged]
    (folder / "words.conll").write_text("-DOCSTART- O\n\n" + "\n".join(columns))
    (folder / "words.jsonl").write_text("".join(json.dumps({"words": w, "tags": t}) + "\n" for w, t in tagged))
    questions = [
        {"id": f"q{n}", "question": "who?", "answers": [{"text": row["second"][:3], "answer_start": 0}] * (n % 3 > 0)}
        for n, row in enumerate(rows)
    ]
    contexts = [row["second"] for row in rows]
    paragraphs = [{"context": text, "qas": [one]} for text, one in zip(contexts, questions, strict=True)]
    (folder / "squad.json").write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}))
    lines = [json.dumps(one | {"context": text}) + "\n" for text, one in zip(contexts, questions, strict=True)]
    (folder / "squad.jsonl").write_text("".join(lines))
    for task, header_line in (("sst2", "sentence\tlabel\n"), ("cola", "")):
        (folder / task).mkdir()
        for name, some in (("train.tsv", rows[:16]), ("dev.tsv", rows[16:])):
            layout = "{sentence}\t{flag}\n" if header_line else "gj\t{flag}\t\t{sentence}\n"
            lines = [layout.format(**row) for row in some]
            (folder / task / name).write_text(header_line + "".join(lines))
