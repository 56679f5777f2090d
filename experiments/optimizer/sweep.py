"""Muon, AdamW or LAMB, each with the best of the same number of trials, on a held-out set of its own."""

from jaxlm.study import Arm, Range, Search, Sweep

RATES = Range(1e-3, 3e-2)


def get_sweep():
    return Sweep(
        question="Which optimizer ends with the lowest loss, if each is tuned with twelve trials?",
        base="../base.py",
        settings=("data.held_out=valid=corpus_en/valid.jsonl,tune=corpus_en/tune.jsonl",),
        arms=(
            Arm(
                "Muon",
                ("optimizer.name=muon",),
                {"optimizer.learning_rate": RATES, "optimizer.muon_learning_rate": Range(5e-3, 1e-1)},
            ),
            Arm(
                "AdamW",
                ("optimizer.name=adamw",),
                {"optimizer.learning_rate": RATES, "optimizer.beta2": (0.95, 0.98, 0.999)},
            ),
            Arm(
                "LAMB",
                ("optimizer.name=lamb",),
                {"optimizer.learning_rate": RATES, "optimizer.beta2": (0.95, 0.98, 0.999)},
            ),
        ),
        search=Search(trials=12, evaluation="tune"),
        seeds=5,
        evaluation="valid",
        unit="nats",
        smallest_effect=0.02,
    )
