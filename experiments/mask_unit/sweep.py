"""Tokens, whole words or spans? All arms are judged on 15% of single tokens, and their encoders by a task."""

from jaxlm.study import Arm, Sweep


def get_sweep():
    return Sweep(
        question="Does masking whole words or spans lower the loss on single masked tokens?",
        base="../base.py",
        arms=(
            Arm("tokens"),
            Arm("whole words", ("masking.scheme=whole_word",)),
            Arm("spans", ("masking.scheme=span",)),
        ),
        seeds=5,
        evaluation="valid",
        unit="nats",
        smallest_effect=0.02,
    )
