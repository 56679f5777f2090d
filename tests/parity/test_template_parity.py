"""Templates against the fill-mask logits of Transformers, which tokenizes the filled text itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")

from jaxlm.text.labelled import Row  # noqa: E402
from jaxlm.use.loading import load_trained  # noqa: E402
from jaxlm.use.task_model import TaskModel  # noqa: E402
from jaxlm.use.zero_shot import with_template  # noqa: E402
from tests.conftest import sentences, write_checkpoint, write_text  # noqa: E402

WORDS = {"calm": ["harbour", "house"], "busy": ["music"]}
TEXTS = [("the cat sees the house", "a river"), ("Without a word.", "my brother"), ("", "near the bridge?")]


@pytest.mark.slow
def test_the_logits_of_labels_are_those_of_transformers_at_the_mask(tmp_path):
    directory = write_checkpoint(tmp_path / "bert", write_text(tmp_path / "text.txt", 200))
    entries = [f"{label}={'/'.join(words)}" for label, words in WORDS.items()]
    model = TaskModel(with_template(load_trained(directory), "{a}? [MASK], {b}.", entries))
    short = [[" ".join(text.split()[:5]) for text in sentences(5, seed)] for seed in (1, 2)]  # nothing is truncated
    texts = [*TEXTS, *zip(*short, strict=True)]
    rows = [Row("a row", {"a": first, "b": second}) for first, second in texts]
    found = list(model.predict(rows, "the texts"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(directory).eval()
    for one, (first, second) in zip(found, texts, strict=True):
        inputs = tokenizer(f"{first}? [MASK], {second}.", return_tensors="pt")
        assert inputs["input_ids"].shape[1] <= 40
        with torch.no_grad():
            logits = theirs(**inputs).logits[0, (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]]
        ids = [tokenizer.convert_tokens_to_ids(words) for words in WORDS.values()]
        wanted = torch.stack([logits[these].logsumexp(0) for these in ids]).softmax(0).numpy()
        np.testing.assert_allclose(list(one["probabilities"].values()), wanted, atol=1e-5)
