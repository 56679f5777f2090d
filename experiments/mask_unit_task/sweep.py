"""The encoders of experiments/mask_unit, fine-tuned on SST-2; run that sweep first, with --workdir=runs/mask_unit."""

from jaxlm.study import Arm, Sweep


def start(arm: str) -> tuple[str, ...]:
    return (f"init_from=runs/mask_unit/by_seed/{arm}/{{seed}}",)


def get_sweep():
    return Sweep(
        question="Do encoders that were trained on whole words or spans do better on SST-2?",
        base="finetune:sst2",
        settings=("train.epochs=1", "logging.tensorboard=false", "logging.curve=false"),
        arms=(
            Arm("tokens", start("tokens")),
            Arm("whole words", start("whole-words")),
            Arm("spans", start("spans")),
        ),
        seeds=5,
        evaluation="dev",
        metric="accuracy",
        better="higher",
        smallest_effect=0.01,
    )
