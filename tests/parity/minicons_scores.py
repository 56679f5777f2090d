"""Records minicons' pseudo-log-likelihoods for machines without it: run `python -m tests.parity.minicons_scores`.

They are those of a small BERT whose weights depend on nothing but the names and shapes of its tensors.
"""

import json
import tempfile
from pathlib import Path

from safetensors.numpy import load_file, save_file

from tests.conftest import sentences, write_checkpoint
from tests.parity.cases import weights

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "minicons.json"
METRICS = ("original", "within_word_l2r")
TEXTS = [
    *sentences(32, seed=5),
    "The captain hasn't forgotten my brother's letter.",
    "Every student's well-known answer isn't his.",
    '"No music," the student says; "no machine (yet)."',
    "the_harbour and the cat-like bird aren't 3.14 stones",
    "Unforgettable neighbourhoods describe themselves.",
    "a",
    "A bird sees the cat",
    "Ça, c'est l'été: naïve café.",
]


def make_checkpoint(directory: Path) -> Path:
    """Writes the BERT as a Hugging Face directory, which is returned."""
    directory.mkdir(parents=True)
    text = directory / "words.txt"
    text.write_text(" ".join(["'-,;:()\"_?0123456789 bcdfghjklmnpqrstuvwxyz", *sentences(200)]))
    write_checkpoint(directory, text, type_vocab_size=2, max_position_embeddings=64)
    file = directory / "model.safetensors"
    save_file({name: weights(name, tensor.shape) for name, tensor in load_file(file).items()}, file)
    return directory


def minicons_scores(directory: Path) -> dict[str, list[float]]:
    """Returns minicons' score of each text in nats, by its name of the variant."""
    import transformers
    from minicons.scorer import MaskedLMScorer

    base = transformers.PreTrainedTokenizerBase
    if not hasattr(base, "batch_encode_plus"):  # minicons 0.3.39 calls it; Transformers 5 has removed it
        base.batch_encode_plus = lambda self, texts, **more: self(texts, **more)
    scorer = MaskedLMScorer(str(directory), "cpu")
    total = lambda values: values.sum(0).item()  # noqa: E731
    return {metric: scorer.sequence_score(TEXTS, reduction=total, PLL_metric=metric) for metric in METRICS}


def main() -> None:
    """Writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        found = minicons_scores(make_checkpoint(Path(folder) / "bert"))
    record = {name: [round(value, 5) for value in values] for name, values in found.items()}
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
