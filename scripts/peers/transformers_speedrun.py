"""Pretrains Transformers' BERT for minutes of wall clock on token ids that jaxlm has prepared, and evaluates it.

    python scripts/peers/transformers_speedrun.py --data=DIR --minutes=5 --seed=0 --rate=1e-3 --bf16

DIR holds rows.npy (int32 [R, L], the rows of the training text), held_out.npz (inputs int32 [N, L], positions int32
[N, P], labels int32 [N, P], weights float32 [N, P]: the masked rows on which jaxlm evaluates), and facts.json. 15% of
the tokens of each batch are masked, 80/10/10; AdamW with linear warm-up and decay by the clock. BertForMaskedLM's own
head is applied to the masked tokens only, the step that an expert would write. Prints one JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers


def masked_batch(rows: torch.Tensor, facts: dict, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Returns inputs [B, L], the flat positions of the masked tokens [M], and their labels [M]."""
    special = torch.tensor(facts["special_ids"])
    ordinary = ~torch.isin(rows, special)
    order = torch.rand(rows.shape, generator=generator).masked_fill(~ordinary, 2.0).argsort(1).argsort(1)
    chosen = (order < int(0.15 * rows.shape[1])) & ordinary
    kind = torch.rand(rows.shape, generator=generator)
    random = torch.randint(facts["first_ordinary"], facts["vocab_size"], rows.shape, generator=generator)
    inputs = torch.where(chosen & (kind < 0.8), facts["mask_id"], rows)
    inputs = torch.where(chosen & (kind >= 0.8) & (kind < 0.9), random, inputs)
    index = chosen.flatten().nonzero().squeeze(1)
    return inputs, index, rows.flatten()[index]


@torch.no_grad()
def evaluate(model: torch.nn.Module, held_out: dict, bf16: bool, batch: int = 32) -> dict:
    """Returns nats per masked token, accuracy, and n."""
    model.eval()
    loss, correct, count = 0.0, 0.0, 0.0
    for first in range(0, len(held_out["inputs"]), batch):
        part = {
            name: torch.from_numpy(array[first : first + batch]).long()
            for name, array in held_out.items()
            if name != "weights"
        }
        weights = torch.from_numpy(held_out["weights"][first : first + batch]).flatten()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states = model.bert(input_ids=part["inputs"]).last_hidden_state
            states = torch.take_along_dim(states, part["positions"][:, :, None], 1)
            logits = model.cls(states.flatten(0, 1)).float()
        labels = part["labels"].flatten()
        loss += float((torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum())
        correct += float(((logits.argmax(-1) == labels) * weights).sum())
        count += float(weights.sum())
    return {"loss": loss / count, "accuracy": correct / count, "n": int(count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.05, help="fraction of the time")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    begin = time.monotonic()
    torch.manual_seed(args.seed)
    facts = json.loads((args.data / "facts.json").read_text())
    rows = np.load(args.data / "rows.npy", mmap_mode="r")
    held_out = dict(np.load(args.data / "held_out.npz"))
    config = transformers.BertConfig(
        vocab_size=facts["vocab_size"], hidden_size=args.width, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64, intermediate_size=4 * args.width,
        max_position_embeddings=rows.shape[1], hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).train()
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=args.rate,
        betas=(0.9, 0.98),
    )
    generator = torch.Generator().manual_seed(args.seed)
    order, place, steps = torch.randperm(len(rows), generator=generator).numpy(), 0, 0
    while (done := (time.monotonic() - begin) / (60 * args.minutes)) < 1:
        if place + args.batch > len(order):
            order, place = torch.randperm(len(rows), generator=generator).numpy(), 0
        chosen = np.sort(order[place : place + args.batch])
        place += args.batch
        inputs, index, labels = masked_batch(torch.from_numpy(rows[chosen]).long(), facts, generator)
        for group in optimizer.param_groups:
            group["lr"] = args.rate * (done / args.warmup if done < args.warmup else (1 - done) / (1 - args.warmup))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            states = model.bert(input_ids=inputs).last_hidden_state
            logits = model.cls(states.flatten(0, 1)[index])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(evaluate(model, held_out, args.bf16) | {"steps": steps, "versions": versions}))


if __name__ == "__main__":
    main()
