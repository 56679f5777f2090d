"""curve.png: the training loss and the evaluation metrics of a run over its steps."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.storage import atomic_path

BASELINES = {"unigram_loss": "unigram baseline"}  # metrics that are losses of a reference, drawn as dashed lines
BLUES = ("#1f6fb2", "#12355b", "#5aa9e6", "#0a9396")  # of the training loss in phases that predict different things
COLORS = ("#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#3b3b3b")  # of the evaluation sets
NOT_METRICS = ("kind", "step", "name", "time")  # fields of an event


class Curves(NamedTuple):
    """What is drawn: points (step, value)."""

    train: list[tuple[int, float]]  # the training loss
    evaluations: dict[str, tuple[str, list[tuple[int, float]]]]  # by set: the metric's name, its points
    baselines: dict[tuple[str, str], float]  # by (set, metric): the latest value
    phases: list[tuple[int, str]]  # the first update of each phase, and what it predicts; [] in logs of older versions
    protocols: dict[str, str]  # by set: the masks and rows of its evaluation


def read_curves(events: Iterable[Mapping[str, Any]]) -> Curves:
    """Returns the curves in a run's events: for each evaluation set its loss, or else its first metric."""
    train: list[tuple[int, float]] = []
    metrics: dict[str, dict[str, list[tuple[int, float]]]] = {}
    phases: list[tuple[int, str]] = []
    protocols: dict[str, str] = {}
    for event in events:
        if event["kind"] == "start":
            phases = [(int(first), str(text)) for first, text in event.get("training", [])]
            protocols = dict(event.get("evaluation", {}))
        if event["kind"] == "train" and event.get("loss") is not None:
            train.append((event["step"], event["loss"]))
        if event["kind"] == "evaluation":
            curves = metrics.setdefault(event.get("name", ""), {})
            for key, value in event.items():
                points = curves.setdefault(key, [])  # also for null, which keeps the metric's place in the order
                if key not in NOT_METRICS and isinstance(value, int | float):
                    points.append((event["step"], value))
    evaluations: dict[str, tuple[str, list[tuple[int, float]]]] = {}
    baselines: dict[tuple[str, str], float] = {}
    for name, curves in metrics.items():
        drawn = [key for key, points in curves.items() if points and key not in BASELINES]
        if drawn:
            metric = "loss" if "loss" in drawn else drawn[0]
            evaluations[name] = metric, sorted(curves[metric])
        baselines |= {(name, key): curves[key][-1][1] for key in BASELINES if curves.get(key)}
    return Curves(sorted(train), evaluations, baselines, phases, protocols)


def split_by_phase(
    train: list[tuple[int, float]], phases: list[tuple[int, str]]
) -> list[tuple[str, list[tuple[int, float]]]]:
    """Returns what is predicted and the points of each part of the run; phases that predict the same are one part.

    Losses of two parts cannot be compared, so no line connects them.
    """
    parts: list[tuple[str, list[tuple[int, float]]]] = []
    for step, value in train:
        text = next((text for first, text in reversed(phases) if first <= step), "")
        if not parts or parts[-1][0] != text:
            parts.append((text, []))
        parts[-1][1].append((step, value))
    return parts


def draw_curve(events: Iterable[Mapping[str, Any]], path: Path, label: Callable[[str], str] = str) -> None:
    """Draws a run's curves to the PNG file `path`, titled with the name of its directory.

    Losses share the left axis, other metrics the right one. `label` turns the name of an evaluation set into the text
    of the legend, which also says what each training loss predicts and how each set is evaluated: a loss at another
    mask rate is another quantity. Raises UserError if the events hold no metric, or if the file cannot be written.
    """
    train, evaluations, baselines, phases, protocols = read_curves(events)
    if not train and not evaluations:
        raise UserError("the run has logged no loss and no evaluation yet, so there is nothing to draw")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    others = sorted({metric for metric, _ in evaluations.values()} - {"loss"})
    has_losses = bool(train) or any(metric == "loss" for metric, _ in evaluations.values())
    right = left.twinx() if others and has_losses else left
    losses: list[float] = []  # those that decide the range of the left axis
    for (text, points), blue in zip(split_by_phase(train, phases), itertools.cycle(BLUES)):
        steps, values = zip(*points, strict=True)
        smoothed = _smooth(values)
        name = f"training{_in_brackets(text)}"
        if smoothed != [*values]:
            left.plot(steps, values, color="#9ec5e8", linewidth=0.8, label=name)
            name += ", smoothed"
        left.plot(steps, smoothed, color=blue, linewidth=1.8, label=f"{name}: {smoothed[-1]:.3f}")
        losses += smoothed
    colors = dict(zip(evaluations, itertools.cycle(COLORS)))
    for name, (metric, points) in evaluations.items():
        steps, values = zip(*points, strict=True)
        axes, text = (left, label(name)) if metric == "loss" else (right, f"{label(name)} {_words(metric)}")
        text += _in_brackets(protocols.get(name, ""))
        axes.plot(steps, values, color=colors[name], linewidth=1.4, marker="o", markersize=3.5,
                  label=f"{text}: {values[-1]:.3f}")  # fmt: skip
        losses += values if metric == "loss" else ()
    several = len({name for name, _ in baselines}) > 1
    for (name, metric), value in baselines.items():
        text = f"{BASELINES[metric]}, {label(name)}"
        left.axhline(value, color=colors.get(name) if several else "#777777", linewidth=1.2, linestyle=(0, (5, 4)),
                     label=f"{text}: {value:.3f}")  # fmt: skip
        losses.append(value)
    if losses:  # a single outlier may leave the picture: it would flatten everything else
        margin = 0.05 * (max(losses) - min(losses)) or 0.5
        left.set_ylim(min(losses) - 2 * margin, max(losses) + margin)
        left.set_ylabel("loss (nats)")
    if others:
        right.set_ylabel(", ".join(map(_words, others)))
    left.set_xlabel("step")
    left.set_title(path.parent.resolve().name, loc="left", fontweight="bold", parse_math=False)
    left.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    left.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    left.grid(color="#e6e6e6", linewidth=0.8)
    left.set_axisbelow(True)
    for axes in {left, right}:
        axes.spines[["top"] if right is not left else ["top", "right"]].set_visible(False)
    if right is left:
        left.legend(facecolor="white", edgecolor="none", framealpha=0.9)
    else:  # inside, it would be placed by the lines of one axis and hide those of the other
        figure.legend(loc="outside lower center", ncols=2, edgecolor="none")
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a title with characters that the font lacks
        figure.savefig(temporary, format="png")  # the temporary file's name does not tell the format


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Returns a moving average over a fortieth of the values on each side, over fewer near both ends.

    The window shrinks towards the start because the loss falls fast there.
    """
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    half = len(values) // 40
    if not half:
        return list(values)
    smoothed = []
    for i in range(len(values)):
        before = min(i, half)
        first, last = i - before, min(i + before, len(values) - 1)
        smoothed.append((sums[last + 1] - sums[first]) / (last + 1 - first))
    return smoothed
