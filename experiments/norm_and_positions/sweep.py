"""Pre- or post-norm, and which positions? MosaicBERT has post-norm and ALiBi, ModernBERT pre-norm and rotary."""

from jaxlm.study import Arm, Sweep

POST = "model.norm_position=post"


def get_sweep():
    return Sweep(
        question="Which place of the norms and which position encoding give the lowest loss?",
        base="../base.py",
        arms=(
            Arm("pre-norm, rotary"),
            Arm("pre-norm, learned", ("model.positions=learned",)),
            Arm("pre-norm, ALiBi", ("model.positions=alibi",)),
            Arm("post-norm, rotary", (POST,)),
            Arm("post-norm, ALiBi", (POST, "model.positions=alibi")),
        ),
        seeds=5,
        evaluation="valid",
        unit="nats",
        smallest_effect=0.02,
    )
