"""What fine-tuning takes over from another model: its encoder, and what fits of its head."""

from jaxlm.model.task_model import SEGMENT_HEADS, HeadStyle
from jaxlm.objectives.objective import Params


def inherited(params: Params, style: HeadStyle) -> Params:
    """Returns the encoder, and the head of the same task or the layers of a head that was pretrained with it.

    `params` has "task_head" if the model was fine-tuned for this task. A head of `style` can begin with BERT's pooler,
    or with ModernBERT's layers before the vocabulary logits.
    """
    given, pretrained = {"encoder": params["encoder"]}, params.get("head", {})
    if "task_head" in params:
        return given | {"head": params["task_head"]}
    if style == SEGMENT_HEADS["bert"] and "pooler" in params:
        return given | {"head": {"transform": params["pooler"]}}
    if style.norm and {"transform", "norm"} <= pretrained.keys():
        return given | {"head": {name: pretrained[name] for name in ("transform", "norm")}}
    return given
