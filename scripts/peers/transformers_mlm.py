"""Times a masked-LM training step of Transformers' BERT or ModernBERT, on the GPU if there is one, else on the CPU.

    python scripts/peers/transformers_mlm.py --layers=4 --width=256 --batch=32 --length=128 --bf16 --compile --sparse

One step is forward, loss on the masked tokens, backward, gradients clipped at norm 1, AdamW. Each row is one full
document. BertForMaskedLM computes the logits of every token; with --sparse its head is applied to the masked tokens
only. ModernBertForMaskedLM does so itself (sparse_prediction). On a GPU float32 products use TF32, AdamW is fused, and
5 steps are dispatched before waiting for them, as `jaxlm bench` does. Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers


def build(args: argparse.Namespace) -> torch.nn.Module:
    """Returns the model with fresh weights."""
    shared = {
        "vocab_size": args.vocab, "hidden_size": args.width, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "intermediate_size": args.feed_forward,
        "attn_implementation": args.attention,
    }  # fmt: skip
    if args.model == "modernbert":
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        positions = max(8192, args.length)
        config = transformers.ModernBertConfig(
            **shared, **tokens, max_position_embeddings=positions, sparse_prediction=True
        )
        return transformers.ModernBertForMaskedLM(config)
    config = transformers.BertConfig(
        **shared, max_position_embeddings=max(512, args.length), hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def inputs_of(args: argparse.Namespace, device: str) -> dict[str, torch.Tensor]:
    """Returns random tokens and labels, which are -100 except at the same number of positions in each row."""
    tokens = torch.randint(5, args.vocab, (args.batch, args.length), device=device)
    order = torch.rand(args.batch, args.length, device=device).argsort(1)
    masked = order < int(args.rate * args.length)
    labels = torch.where(masked, tokens, -100)
    return {
        "input_ids": torch.where(masked, 4, tokens), "attention_mask": torch.ones_like(tokens), "labels": labels,
    }  # fmt: skip


def main() -> None:
    """Prints the median seconds per step, the device and the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["bert", "modernbert"], default="bert")
    sizes = {"layers": 4, "width": 256, "heads": 4, "feed-forward": 1024, "vocab": 30_522, "batch": 32, "length": 128}
    for name, default in (sizes | {"steps": 5, "warmup": 2}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=0.15, help="share of the tokens that are predicted")
    parser.add_argument("--dropout", type=float, default=0.1, help="of BERT; ModernBERT has none")
    parser.add_argument("--attention", default="sdpa", help="eager, sdpa, or flash_attention_2 if it is installed")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile around model and loss")
    parser.add_argument("--sparse", action="store_true", help="apply BERT's head to the masked tokens only")
    parser.add_argument("--serve", action="store_true", help="stay warm, and time the steps for each line read")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    model = build(args).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=device == "cuda" or None)
    inputs = inputs_of(args, device)

    def usual(input_ids, attention_mask, labels):
        return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss

    def at_masked(input_ids, attention_mask, positions, targets):
        states = model.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = model.cls(states.flatten(0, 1).index_select(0, positions))
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    if args.sparse and args.model == "bert":
        flat = inputs.pop("labels").flatten()
        positions = torch.nonzero(flat >= 0).flatten()
        inputs |= {"positions": positions, "targets": flat[positions]}
        loss_of = at_masked
    else:
        loss_of = usual
    if args.compile:
        loss_of = torch.compile(loss_of)

    dispatched = 5 if device == "cuda" else 1

    def step() -> float:
        begin = time.perf_counter()
        for _ in range(dispatched):
            with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
                loss = loss_of(**inputs)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / dispatched

    def measure() -> None:
        seconds = [step() for _ in range(args.warmup + args.steps)][args.warmup :]
        print(json.dumps({
            "step_seconds": statistics.median(seconds),
            "seconds": seconds,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }), flush=True)  # fmt: skip

    if not args.serve:
        measure()
        return
    step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        measure()


if __name__ == "__main__":
    main()
