#!/usr/bin/env python3
"""Fine-tunes with Transformers for tagging or for answering questions, and writes predictions, which the caller scores.

    python transformers_tokens.py --kind=tagging --model=DIR --train=T.jsonl --reported=R.jsonl --output=P.jsonl

A line of a file is {"words": [...], "tags": [...]}, or {"question", "context", "answers": [{"text", "answer_start"}]};
a line of the output is {"tags": [...]}, with a tag for each word, or {"text": ...}. Batches are of --batch lines with
similar lengths, in bfloat16; AdamW, a linear schedule and clipping are those of the peer for classification. A word's
tag is that of its first token. Contexts are read in windows that overlap by half of the context's part.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

IGNORED = -100  # label of tokens without a loss
LONGEST_ANSWER = 30  # tokens


class Tagging:
    """A tag for the first token of each word."""

    model = transformers.AutoModelForTokenClassification

    def __init__(self, tokenizer: Any, train: list[dict[str, Any]], length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.tags = sorted({tag for line in train for tag in line["tags"]})
        self.outputs = len(self.tags)

    def encode(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.tokenizer(line["words"], is_split_into_words=True, truncation=True, max_length=self.length)
        words = found.word_ids()
        first = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
        labels = [self.tags.index(line["tags"][word]) if at else IGNORED for at, word in zip(first, words, strict=True)]
        places = {"words": [word if at else None for at, word in zip(first, words, strict=True)]}
        return [{"inputs": dict(found), "labels": {"labels": labels}, "places": places}]

    def predict(self, line: dict[str, Any], windows: list[dict[str, Any]], logits: list[np.ndarray]) -> dict[str, Any]:
        tags = ["O"] * len(line["words"])
        for word, tag in zip(windows[0]["places"]["words"], logits[0].argmax(-1), strict=True):
            if word is not None:
                tags[word] = self.tags[tag]
        return {"tags": tags}


class Answers:
    """The first and the last token of the answer; the begin token twice where a window does not have all of it."""

    model = transformers.AutoModelForQuestionAnswering
    outputs = 2

    def __init__(self, tokenizer: Any, train: list[dict[str, Any]], length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def encode(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        question = len(self.tokenizer(line["question"], add_special_tokens=False)["input_ids"])
        found = self.tokenizer(
            line["question"], line["context"], truncation="only_second", max_length=self.length,
            stride=(self.length - question - 3) // 2, return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        answer = line["answers"][0]
        begin, end = answer["answer_start"], answer["start"] + len(answer["text"])
        windows = []
        for number, offsets in enumerate(found["offset_mapping"]):
            context = [part == 1 for part in found.sequence_ids(number)]
            inside = [n for n, (a, b) in enumerate(offsets) if context[n] and b > begin and a < end]
            whole = inside and offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= end
            first, last = (inside[0], inside[-1]) if whole else (0, 0)
            windows.append({
                "inputs": {name: found[name][number] for name in self.tokenizer.model_input_names},
                "labels": {"start_positions": first, "end_positions": last},
                "places": {"offsets": offsets, "context": context},
            })  # fmt: skip
        return windows

    def predict(self, line: dict[str, Any], windows: list[dict[str, Any]], logits: list[np.ndarray]) -> dict[str, Any]:
        best, text = -math.inf, ""
        for window, values in zip(windows, logits, strict=True):
            at = np.flatnonzero(window["places"]["context"])
            sums = values[at, 0][:, None] + values[at, 1][None]
            sums[np.tril(np.ones_like(sums), -1) + np.triu(np.ones_like(sums), LONGEST_ANSWER) > 0] = -math.inf
            first, last = np.unravel_index(sums.argmax(), sums.shape)
            if sums[first, last] > best:
                best = sums[first, last]
                offsets = window["places"]["offsets"]
                text = line["context"][offsets[at[first]][0] : offsets[at[last]][1]]
        return {"text": text}


KINDS = {"tagging": Tagging, "span": Answers}


def batch_of(windows: list[dict[str, Any]], tokenizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns the padded inputs and the labels of some windows."""
    inputs = tokenizer.pad([window["inputs"] for window in windows], return_tensors="pt")
    width, labels = inputs["input_ids"].shape[1], {}
    for name in windows[0]["labels"]:
        values = [window["labels"][name] for window in windows]
        if isinstance(values[0], list):
            values = [value + [IGNORED] * (width - len(value)) for value in values]
        labels[name] = torch.tensor(values)
    return dict(inputs), labels


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the lines of each batch of an epoch: of similar lengths among those of 50 batches, in random order."""
    order, found = rng.permutation(len(lengths)), []
    for begin in range(0, len(order), size * 50):
        part = order[begin : begin + size * 50]
        part = part[np.argsort(lengths[part], kind="stable")]
        found += [part[n : n + size] for n in range(0, len(part), size)]
    rng.shuffle(found)
    return found


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def train(model: Any, encoded: list[list[dict[str, Any]]], tokenizer: Any, args: argparse.Namespace) -> float:
    """Trains for --epochs epochs and returns the lines per second."""
    rng = np.random.default_rng(args.seed)
    lengths = np.array([len(windows[0]["inputs"]["input_ids"]) for windows in encoded])
    total = math.ceil(len(encoded) / args.batch * args.epochs)
    matrices = [value for value in model.parameters() if value.ndim > 1]
    vectors = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.1 * total), total)
    step, lines, begin = 0, 0, time.perf_counter()
    model.train()
    while step < total:
        for batch in batches(lengths, args.batch, rng)[: total - step]:
            inputs, labels = batch_of([window for line in batch for window in encoded[line]], tokenizer)
            with autocast():
                loss = model(**inputs, **labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, lines = step + 1, lines + len(batch)
    return lines / (time.perf_counter() - begin)


def logits_of(model: Any, windows: list[dict[str, Any]], tokenizer: Any) -> list[np.ndarray]:
    """Returns the logits of each window, [tokens, C] float32."""
    inputs, _ = batch_of(windows, tokenizer)
    with torch.no_grad(), autocast():
        found = model(**inputs)
    values = found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)
    return [
        row[: len(window["inputs"]["input_ids"])].float().numpy() for row, window in zip(values, windows, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    for name in ("model", "train", "reported", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    lines, reported = (
        [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for path in (args.train, args.reported)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    kind = KINDS[args.kind](tokenizer, lines, args.length)
    model = kind.model.from_pretrained(args.model, num_labels=kind.outputs)
    rate = train(model, [kind.encode(line) for line in lines], tokenizer, args)
    model.eval()
    with open(args.output, "w", encoding="utf-8") as file:
        for line in reported:
            windows = kind.encode(line)
            file.write(json.dumps(kind.predict(line, windows, logits_of(model, windows, tokenizer))) + "\n")
    print(json.dumps({"examples_per_second": rate}))


if __name__ == "__main__":
    main()
