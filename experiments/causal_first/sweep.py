"""Causal first, then masked, at equal tokens. Published: better than masked alone (arXiv 2507.00994)."""

from jaxlm.study import Arm, Sweep


def causal(steps: int) -> tuple[str, ...]:
    """Returns the settings of a run whose first updates predict each token from those before it."""
    return (f'train.phases=[{{"steps": {steps}, "objective": "causal"}}, {{}}]',)


def get_sweep():
    return Sweep(
        question="Does a run that first predicts the next token end with a lower loss on masked tokens?",
        base="../base.py",
        arms=(
            Arm("masked alone"),
            Arm("a tenth causal", causal(20)),
            Arm("a quarter causal", causal(50)),
            Arm("half causal", causal(100)),
        ),
        seeds=5,
        evaluation="valid",
        unit="nats",
        smallest_effect=0.02,
    )
