"""What a study found: the values of its arms, their differences from the reference, and the answer in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.study.statistics import (
    LEVEL,
    Difference,
    Interval,
    holm,
    mean_interval,
    paired_difference,
    seeds_needed,
)

VERDICTS_SHOWN = {"open": "not settled", "single": "single run", "none": ""}  # the others as they are
VERDICTS = ("better", "worse", "equivalent", "slightly better", "slightly worse", "open", "single", "none")


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """The values of one arm by seed, and its difference from the reference; None for the reference itself."""

    name: str
    values: dict[int, float]
    interval: Interval | None  # None if no run is done
    difference: Difference | None
    p_corrected: float  # after Holm's correction over the arms
    verdict: str  # one of VERDICTS; "" for the reference
    seeds_needed: int | None  # to find the smallest effect that matters with a power of 80%, if the verdict is open


def compare_arms(
    values: Mapping[str, Mapping[int, float]], smallest_effect: float, better: str = "lower"
) -> list[ArmResult]:
    """Returns the results of the arms, the first of which is the reference."""
    reference = next(iter(values.values()), {})
    found: list[tuple[str, Mapping[int, float], Difference | None]] = []
    for index, (name, own) in enumerate(values.items()):
        shared = index > 0 and bool(own.keys() & reference.keys())
        found.append((name, own, paired_difference(own, reference, smallest_effect) if shared else None))
    corrected = holm([difference.p if difference else math.nan for _, _, difference in found])
    results = []
    for index, (name, own, difference) in enumerate(found):
        interval = mean_interval([own[seed] for seed in sorted(own)]) if own else None
        verdict = verdict_of(difference, corrected[index], better) if index else ""
        resolves = difference is not None and verdict == "open"
        needed = seeds_needed(smallest_effect, difference.deviation) if difference is not None and resolves else None
        results.append(ArmResult(name, dict(own), interval, difference, corrected[index], verdict, needed))
    return results


def verdict_of(difference: Difference | None, p_corrected: float, better: str) -> str:
    """Returns one of VERDICTS: what the tests say at LEVEL."""
    if difference is None:
        return "none"
    if difference.n < 2:
        return "single"
    differs, equivalent = p_corrected < LEVEL, difference.p_equivalent < LEVEL
    if not differs:
        return "equivalent" if equivalent else "open"
    side = "better" if (difference.mean < 0) == (better == "lower") else "worse"
    return f"slightly {side}" if equivalent else side


def number(value: float, smallest_effect: float, signed: bool = False) -> str:
    """Returns a value with the decimals that its smallest effect that matters calls for."""
    if math.isnan(value):
        return "–"
    decimals = max(0, 1 - math.floor(math.log10(smallest_effect))) if smallest_effect > 0 else 3
    return f"{value:{'+' if signed else ''}.{min(decimals, 6)}f}"


def p_text(p: float) -> str:
    """Returns a p-value as it is written: "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def describe_arm(result: ArmResult, statement: Mapping[str, Any]) -> str:
    """Returns the sentence that says what an arm did, with its interval and the number of seeds."""
    effect, unit = statement["smallest_effect"], statement.get("unit") or ""
    metric, unit = statement["metric"].replace("_", " "), f" {unit}" if unit else ""
    difference = result.difference
    if difference is None:
        return f"{result.name}: no seed is done in both this arm and the reference."
    size = number(abs(difference.mean), effect)
    if result.verdict == "single":
        signed = number(difference.mean, effect, True)
        return f"{result.name}: a difference of {signed}{unit} with one seed, which has no error bar and shows nothing."
    interval = (
        f"95% interval {number(difference.low, effect, True)} to {number(difference.high, effect, True)},"
        f" {difference.n} seeds, {p_text(result.p_corrected)}"
    )
    moved = "lowers" if difference.mean < 0 else "raises"
    within = f"±{effect:g}{unit}, the smallest effect that matters"
    match result.verdict:
        case "better" | "worse":
            return f"{result.name} {moved} the {metric} by {size}{unit} ({interval}): {result.verdict}."
        case "slightly better" | "slightly worse":
            return (
                f"{result.name} {moved} the {metric} by {size}{unit} ({interval}), less than matters: within {within}."
            )
        case "equivalent":
            return (
                f"{result.name} makes no difference that matters: the {metric} changes by less than {within}"
                f" ({interval})."
            )
    needed = f"; about {result.seeds_needed:,} seeds would tell" if result.seeds_needed else ""
    return f"{result.name}: not settled ({interval}); neither a difference nor its absence is shown{needed}."


def answer(results: Sequence[ArmResult], statement: Mapping[str, Any]) -> str:
    """Returns the answer to the question of a study in a sentence."""
    others = [result for result in results[1:] if result.difference is not None]
    if not others:
        return (
            "There is nothing to compare yet."
            if len(results) > 1
            else "There is one arm, and nothing to compare it with."
        )
    settled = [r for r in others if r.verdict in ("better", "worse")]
    improved = [r for r in settled if r.verdict == "better"]
    if improved:
        best = max(improved, key=lambda r: abs(r.difference.mean if r.difference else 0.0))
        return describe_arm(best, statement)
    if len(others) == 1:
        return describe_arm(others[0], statement)
    if settled:
        names = ", ".join(result.name for result in settled)
        rest = (
            "" if len(settled) == len(others) else "; no other arm differs by as much as matters, or it is not settled"
        )
        return f"No arm is better than {results[0].name}; worse: {names}{rest}."
    if all(r.verdict in ("equivalent", "slightly better", "slightly worse") for r in others):
        unit = f" {statement['unit']}" if statement.get("unit") else ""
        return (
            f"No arm makes a difference that matters: all are within ±{statement['smallest_effect']:g}{unit} of"
            f" {results[0].name}."
        )
    if all(r.verdict == "single" for r in others):
        return "Each arm has one seed, which has no error bar: nothing is shown."
    return (
        f"No arm differs from {results[0].name} beyond what chance explains; whether they are equivalent is not"
        " settled."
    )
