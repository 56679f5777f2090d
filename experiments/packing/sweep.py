"""How should documents fill rows? Published: packing without attention across documents is no worse and faster."""

from jaxlm.study import Arm, Sweep


def get_sweep():
    return Sweep(
        question="Does it matter whether a row holds several documents, and whether its tokens see them all?",
        base="../base.py",
        arms=(
            Arm("packed, own document"),
            Arm("packed, whole row", ("data.packing=across",)),
            Arm("one document and padding", ("data.packing=none",)),
        ),
        seeds=5,
        evaluation="valid",
        unit="nats",
        smallest_effect=0.02,
    )
