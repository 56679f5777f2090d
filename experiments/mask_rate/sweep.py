"""Which share of the tokens should be masked? Published: more than 15%, up to 40% (arXiv 2202.08005, large models)."""

from jaxlm.study import Arm, Sweep


def get_sweep():
    return Sweep(
        question="Does masking more than 15% of the tokens, or a falling share, lower the loss at 15%?",
        base="../base.py",
        arms=(
            Arm("15%"),
            Arm("20%", ("masking.rate=0.2",)),
            Arm("30%", ("masking.rate=0.3",)),
            Arm("40%", ("masking.rate=0.4",)),
            Arm("40% to 15%", ("masking.rate=0.4", "masking.final_rate=0.15")),
        ),
        seeds=5,
        evaluation="valid",
        unit="nats",
        smallest_effect=0.02,
    )
