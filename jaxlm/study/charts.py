"""The charts of a report, as Vega-Lite specifications that altair writes: for a page, and as SVG files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.study.analysis import ArmResult
from jaxlm.study.records import Point, RunRecord, at_steps, common_grid

# One color for each arm, at least 3:1 against white and against the page's dark background.
COLORS = ("#1f77b4", "#d1495b", "#2e8b57", "#9467bd", "#b8741a", "#0a8f9c", "#c2529b", "#7a7a7a", "#6b8e23", "#a0522d")
AXES = {"step": "updates", "tokens": "tokens", "seconds": "seconds of training"}  # what x may be
MOST_POINTS = 200  # of a curve


def curve_rows(arms: Mapping[str, Sequence[RunRecord]], metric: str, evaluation: str | None) -> list[dict[str, Any]]:
    """Returns the rows of a chart of curves: for each arm and step the mean over its runs, the lowest and the highest.

    The steps are those that all runs of the arm share; `evaluation` is None for a metric of training, whose values are
    then means over neighbouring steps.
    """
    rows = []
    for arm, records in arms.items():
        curves = [record.curve(metric, evaluation) for record in records]
        curves = [_thinned(curve) if evaluation is None else curve for curve in curves if curve]
        steps = common_grid(curves, MOST_POINTS)
        if not steps:
            continue
        values = np.array([at_steps(curve, steps) for curve in curves], dtype=float)
        times = np.array(
            [at_steps([p._replace(value=p.seconds) for p in curve], steps) for curve in curves], dtype=float
        )
        for column, step in enumerate(steps):
            own = values[:, column]
            rows.append({
                "arm": arm, "step": step, "tokens": records[0].tokens(step),
                "seconds": round(float(times[:, column].mean()), 2), "mean": float(own.mean()),
                "low": float(own.min()), "high": float(own.max()), "runs": len(curves),
            })  # fmt: skip
    return rows


def _thinned(curve: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """Returns a curve of at most `most` points, each the mean of the neighbours that it stands for."""
    if len(curve) <= most:
        return curve
    groups = np.array_split(np.array(curve), most)
    return [Point(int(group[-1][0]), float(group[-1][1]), float(group[:, 2].mean())) for group in groups]


def curves_chart(rows: list[dict[str, Any]], arms: Sequence[str], title: str, log: bool = False) -> dict[str, Any]:
    """Returns the chart of curves against the step, with a band from the lowest to the highest run of an arm."""
    import altair as alt

    scale = alt.Scale(zero=False, type="log" if log else "linear")
    color = alt.Color(
        "arm:N",
        sort=None,
        title=None,
        scale=_scale(alt, arms),
        legend=alt.Legend(orient="top", columns=3, labelLimit=240),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("step:Q", title=AXES["step"], scale=alt.Scale(zero=False)), color=color
    )
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("step:Q", format=","), alt.Tooltip("mean:Q", format=".4f"),
            alt.Tooltip("low:Q", format=".4f"), alt.Tooltip("high:Q", format=".4f"), alt.Tooltip("runs:Q")]  # fmt: skip
    band = base.mark_area(opacity=0.22).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean:Q", title=title, scale=scale))
    points = base.mark_point(size=60, opacity=0, filled=True).encode(
        y=alt.Y("mean:Q", title=title, scale=scale), tooltip=tips
    )
    chosen = alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]")
    return _finished(alt.layer(band, line, points.add_params(chosen)).properties(width="container", height=320))


def differences_chart(results: Sequence[ArmResult], smallest_effect: float, title: str) -> dict[str, Any]:
    """Returns the chart of differences from the reference: a dot and its 95% interval for each arm, a tick for each
    seed, and a band within which a difference does not matter."""
    import altair as alt

    names = [result.name for result in results if result.difference]
    reference = results[0].values
    rows = [
        {"arm": r.name, "mean": r.difference.mean, "low": r.difference.low, "high": r.difference.high,
         "n": r.difference.n,
         "p": r.p_corrected, "verdict": r.verdict}
        for r in results if r.difference
    ]  # fmt: skip
    for row in rows:  # one run has no interval
        row |= {name: row["mean"] for name in ("low", "high") if row[name] != row[name]}
        row["p"] = None if row["p"] != row["p"] else row["p"]
    ticks = [
        {"arm": r.name, "seed": seed, "difference": r.values[seed] - reference[seed]}
        for r in results if r.difference for seed in r.difference.seeds
    ]  # fmt: skip
    y = alt.Y("arm:N", sort=names, title=None, axis=alt.Axis(labelLimit=220))
    color = alt.Color("arm:N", sort=None, scale=_scale(alt, [result.name for result in results]), legend=None)
    band = alt.Chart(alt.Data(values=[{"low": -smallest_effect, "high": smallest_effect}])).mark_rect(
        opacity=0.15, color="#888888"
    ).encode(x=alt.X("low:Q", title=title), x2="high:Q")  # fmt: skip
    zero = (
        alt.Chart(alt.Data(values=[{"x": 0}]))
        .mark_rule(strokeDash=[4, 3], color="#888888")
        .encode(x=alt.X("x:Q", title=title))
    )
    seeds = alt.Chart(alt.Data(values=ticks)).mark_tick(thickness=1.5, opacity=0.55, size=14).encode(
        x=alt.X("difference:Q", title=title), y=y, color=color,
        tooltip=[alt.Tooltip("arm:N"), alt.Tooltip("seed:Q"), alt.Tooltip("difference:Q", format="+.4f")],
    )  # fmt: skip
    whole = alt.Chart(alt.Data(values=rows)).encode(y=y, color=color)
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("mean:Q", format="+.4f"), alt.Tooltip("low:Q", format="+.4f"),
            alt.Tooltip("high:Q", format="+.4f"), alt.Tooltip("n:Q", title="seeds"),
            alt.Tooltip("p:Q", title="p (Holm)", format=".3g"), alt.Tooltip("verdict:N")]  # fmt: skip
    line = whole.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    dots = whole.mark_point(filled=True, size=110, opacity=1).encode(x=alt.X("mean:Q", title=title), tooltip=tips)
    return _finished(
        alt.layer(band, zero, seeds, line, dots).properties(width="container", height=46 * max(len(rows), 1) + 20)
    )


def _scale(alt: Any, arms: Sequence[str]) -> Any:
    return alt.Scale(domain=list(arms), range=[COLORS[index % len(COLORS)] for index in range(len(arms))])


def _finished(chart: Any) -> dict[str, Any]:
    """Returns the specification, with text in the color of the page around it."""
    own = "currentColor"
    axis = {"labelColor": own, "titleColor": own, "tickColor": own, "domainColor": own, "gridColor": "#8884",
            "labelFontSize": 12,
            "titleFontSize": 12, "titleFontWeight": "normal", "gridOpacity": 0.5, "labelOverlap": True}  # fmt: skip
    chart = chart.configure(background="transparent", font="system-ui, sans-serif").configure_axis(**axis)
    chart = chart.configure_legend(
        labelColor=own, titleColor=own, labelFontSize=12, symbolStrokeWidth=3, symbolOpacity=1
    )
    return chart.configure_view(stroke=None).to_dict()


def as_svg(spec: dict[str, Any], width: int = 720, color: str | None = "#333333") -> str:
    """Returns a chart as SVG; text has this color, or that of the page around it if it is None."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(spec | {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}})
    return svg if color is None else svg.replace("currentColor", color)


def script() -> str:
    """Returns the JavaScript of Vega, Vega-Lite and vega-embed, without references to other files."""
    import vl_convert

    return vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub lacks the default
