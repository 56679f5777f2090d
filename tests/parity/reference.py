"""The results of Transformers for a case: tensors, outputs and gradients as NumPy arrays."""

import numpy as np
import torch
import transformers

from tests.parity.cases import CASES, batch, weights
from tests.parity.head_cases import HEAD_CASES

transformers.logging.set_verbosity_error()


def make(case: str):
    """Returns a model with the case's weights, in evaluation mode."""
    return _filled(*CASES[case])


def _filled(name: str, config: dict):
    model = getattr(transformers, name)
    model = model(model.config_class(**config)).eval()
    with torch.no_grad():
        for tensor_name, tensor in parameters(model).items():
            tensor.copy_(torch.from_numpy(weights(tensor_name, tuple(tensor.shape))))
    return model


def parameters(model) -> dict[str, torch.nn.Parameter]:
    """Returns the parameters by their names in a checkpoint; tied ones have the name of the embedding."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    first = {min(group, key=lambda name: ("embeddings" not in name, "decoder" in name)) for group in names.values()}
    return {name: t for name, t in model.named_parameters(remove_duplicate=False) if name in first}


def pad_id(model) -> int:
    return model.config.pad_token_id


def run(model, gradients: bool = True):
    """Returns outputs float32 [B, L, ...], the mean loss at the masked tokens, and its gradients by tensor name.

    The outputs are logits, or states if the model has no head; the loss is then their mean square.
    """
    data = {name: torch.from_numpy(array) for name, array in batch(pad_id(model)).items()}
    inputs = {"input_ids": data["tokens"], "attention_mask": data["attention"]}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = data["types"]
    output = model(**inputs)
    if type(model).__name__.endswith(("MaskedLM", "BertForPreTraining")):
        values = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
        loss = torch.nn.functional.cross_entropy(values.flatten(0, 1), data["labels"].flatten())
    else:
        values = output.last_hidden_state if "last_hidden_state" in output else output.logits[..., None]
        loss = values[data["attention"] == 1].square().mean()
    found: dict[str, np.ndarray] = {}
    if gradients:
        model.zero_grad()
        loss.backward()
        found = {name: p.grad.numpy() for name, p in parameters(model).items() if p.grad is not None}
    return values.detach().numpy(), loss.item(), found


def make_head(case: str):
    """Returns the model of a case with a task's head, with weights by name, in evaluation mode."""
    return _filled(*HEAD_CASES[case])


def head_outputs_of(model) -> np.ndarray:
    """Returns the outputs of a task's head, [B, C] of texts or choices and [B, L, C] of tokens."""
    data = {name: torch.from_numpy(array) for name, array in batch(pad_id(model)).items()}
    inputs = {"input_ids": data["tokens"], "attention_mask": data["attention"]}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = data["types"]
    choice = type(model).__name__.endswith("ForMultipleChoice")
    with torch.no_grad():
        output = model(**{name: array[None] for name, array in inputs.items()} if choice else inputs)
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1).numpy()
    return output.logits.numpy().T if choice else output.logits.numpy()
