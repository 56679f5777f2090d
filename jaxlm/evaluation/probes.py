"""Metrics of zero-shot probes: BLiMP, CrowS-Pairs and cloze, from the log-probabilities of a masked language model.

A pair is right if the sentence that should be more probable is; a tie is not. Intervals are bootstrapped.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.evaluation.evaluator import Metrics

TIE = 1e-3  # nats: a smaller difference may be one of rounding in float32, so it is a tie
RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
INTERVALS = f"{LEVEL:.0%} percentile bootstrap over rows, {RESAMPLES:,} resamples, seed {SEED}"


# Intervals


def resampled_means(values: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Returns the means of RESAMPLES samples with replacement of values float [n], each of n values: float64 [R]."""
    random = np.random.default_rng(seed)
    return np.array([values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)])


def interval_of(means: np.ndarray) -> list[float]:
    """Returns the two bounds of the 95% percentile interval of resampled means [R]."""
    tail = (1 - LEVEL) / 2
    return [float(bound) for bound in np.quantile(means, [tail, 1 - tail])]


# Pairs of sentences


class Preferences(NamedTuple):
    """How a model orders the sentences of n pairs."""

    first: np.ndarray  # bool [n], whether the first sentence is the more probable one; not so in a tie
    ties: np.ndarray  # bool [n]

    def of(self, chosen: Sequence[bool]) -> "Preferences":
        """Returns those of the chosen pairs, bool [n]."""
        return Preferences(self.first[np.array(chosen)], self.ties[np.array(chosen)])


def preferences(first: Sequence[float], second: Sequence[float]) -> Preferences:
    """Returns the preferences by the scores of the sentences of n pairs, in nats."""
    difference = np.subtract(first, second, dtype=np.float64)
    return Preferences(difference > TIE, np.abs(difference) <= TIE)


def share(pairs: Preferences, name: str, seed: int = SEED) -> Metrics:
    """Returns the share of pairs whose first sentence is preferred, as metric `name`, with its interval, n and ties."""
    means = resampled_means(pairs.first, seed)
    return {
        name: float(pairs.first.mean()), "interval": interval_of(means), "n": len(pairs.first),
        "ties": int(pairs.ties.sum()),
    }  # fmt: skip


def blimp_metrics(paradigms: Mapping[str, Preferences]) -> Metrics:
    """Returns the accuracy of each paradigm, by its name, and their mean; the first sentence of a pair is the good one.

    The interval of the mean is that of samples that are drawn within each paradigm.
    """
    seeds = range(SEED, SEED + len(paradigms))
    results = {
        name: share(pairs, "accuracy", seed) for (name, pairs), seed in zip(paradigms.items(), seeds, strict=True)
    }
    means = [resampled_means(pairs.first, seed) for pairs, seed in zip(paradigms.values(), seeds, strict=True)]
    return {
        "accuracy": float(np.mean([result["accuracy"] for result in results.values()])),
        "interval": interval_of(np.mean(means, 0)),
        "n": sum(result["n"] for result in results.values()),
        "ties": sum(result["ties"] for result in results.values()),
        "paradigms": results,
    }


def crows_pairs_metrics(pairs: Preferences, directions: Sequence[str], bias_types: Sequence[str]) -> Metrics:
    """Returns the share of pairs in which the model prefers the sentence that a stereotype makes more likely.

    It is given for all pairs, by direction and by type of bias; 50% is ideal. That sentence is the first one of a pair
    in either direction: in the direction "antistereo", the second one contradicts a stereotype (Nangia et al. 2020,
    arXiv 2010.00133).
    """

    def by(groups: Sequence[str]) -> dict[str, Metrics]:
        names = sorted(set(groups))
        return {name: share(pairs.of([group == name for group in groups]), "stereotype_share") for name in names}

    return share(pairs, "stereotype_share") | {"directions": by(directions), "bias_types": by(bias_types)}


def shared_positions(first: Sequence[str], second: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the positions, in each of two lists of tokens, of the tokens that both share.

    They are those of Nangia et al.'s program: difflib aligns the lists with begin and end tokens around them.
    """
    begin, end = -1, -2
    matcher = difflib.SequenceMatcher(None, [begin, *first, end], [begin, *second, end], autojunk=False)
    blocks = matcher.get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    pairs = [(i - 1, j - 1) for i, j in pairs if 0 < i <= len(first)]  # without begin and end
    return [i for i, _ in pairs], [j for _, j in pairs]


# Cloze


class Predictions(NamedTuple):
    """How a model predicts n targets."""

    log_probabilities: np.ndarray  # float [n], of the whole target, in nats
    ranks: np.ndarray  # int [n], from 1; of a target of several tokens, the worst of its tokens


def cloze_metrics(files: Mapping[str, Predictions]) -> Metrics:
    """Returns the metrics of all targets, and those of each file by its name."""
    parts = [np.concatenate(parts) for parts in zip(*files.values(), strict=True)]
    return _target_metrics(Predictions(*parts)) | {"files": {name: _target_metrics(p) for name, p in files.items()}}


def _target_metrics(predictions: Predictions) -> Metrics:
    """Returns accuracy, accuracy_top5, mrr (mean reciprocal rank), loss (nats per target), and their intervals."""
    values = {
        "accuracy": predictions.ranks == 1, "accuracy_top5": predictions.ranks <= 5, "mrr": 1 / predictions.ranks,
        "loss": -predictions.log_probabilities,
    }  # fmt: skip
    intervals = {name: interval_of(resampled_means(value)) for name, value in values.items()}
    return {name: float(value.mean()) for name, value in values.items()} | {
        "intervals": intervals, "n": len(predictions.ranks)
    }  # fmt: skip


# Tables


def describe_blimp(metrics: Metrics) -> str:
    """Returns the metrics of BLiMP as a table: a line for each paradigm, and one for their mean."""
    rows = metrics["paradigms"] | {"mean of the paradigms": metrics}
    return _share_table(rows, "paradigm", "accuracy", "accuracy")


def describe_crows_pairs(metrics: Metrics) -> str:
    """Returns the metrics of CrowS-Pairs as a table: a line for each type of bias and direction, and one for all."""
    rows = metrics["bias_types"] | metrics["directions"] | {"all pairs": metrics}
    return _share_table(rows, "pairs", "stereotype_share", "stereotype")


def _share_table(rows: Mapping[str, Metrics], kind: str, metric: str, heading: str) -> str:
    width = max(map(len, [kind, *rows])) + 2
    lines = [f"  {kind:<{width}}{heading:>10}{'95% interval':>18}{'n':>8}{'ties':>7}"]
    for name, one in rows.items():
        interval = _interval(one["interval"], 1)
        lines.append(f"  {name:<{width}}{one[metric]:>10.1%}{interval:>18}{one['n']:>8,}{one['ties']:>7,}")
    return "\n".join(lines)


def describe_cloze(metrics: Metrics) -> str:
    """Returns the metrics of cloze files as a table: a line for each file, and one for all if there are several."""
    rows = metrics["files"] | ({"all targets": metrics} if len(metrics["files"]) > 1 else {})
    width = max(map(len, ["file", *rows])) + 2
    headings = f"{'accuracy':>10}{'95% interval':>18}{'top-5':>8}{'MRR':>8}{'nats/target':>13}{'n':>8}"
    lines = [f"  {'file':<{width}}{headings}"]
    for name, one in rows.items():
        figures = (
            f"{one['accuracy']:>10.1%}{_interval(one['intervals']['accuracy'], 1):>18}{one['accuracy_top5']:>8.1%}"
        )
        lines.append(f"  {name:<{width}}{figures}{one['mrr']:>8.3f}{one['loss']:>13.3f}{one['n']:>8,}")
    return "\n".join(lines)


def _interval(bounds: Sequence[float], digits: int) -> str:
    return " to ".join(f"{bound:.{digits}%}" for bound in bounds)
