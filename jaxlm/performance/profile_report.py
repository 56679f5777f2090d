"""Tables and a figure of a profile."""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxlm.performance.profile import Profile
from jaxlm.storage import atomic_path


def profile_table(profile: Profile, peak: float | None = None) -> list[list[str]]:
    """Returns the rows of a table by kind of kernel, heading first: milliseconds per step, share, GFLOP/s of products.

    With `peak`, in FLOP/s, the last column is the share of it that the products reach.
    """
    rows = [["kind", "ms per step", "share", "GFLOP/s", "of peak"]]
    for kind, time in sorted(profile.kinds.items(), key=lambda entry: -entry[1].seconds):
        rate = time.flops / time.product_seconds if time.product_seconds else 0.0
        rows.append([
            kind, f"{time.seconds * 1e3:,.1f}", f"{time.seconds / profile.step_seconds:.1%}",
            f"{rate / 1e9:,.0f}" if rate else "", f"{rate / peak:.0%}" if rate and peak else "",
        ])  # fmt: skip
    gap = profile.uncovered
    rows.append(["no kernel", f"{gap * 1e3:,.1f}", f"{gap / profile.step_seconds:.1%}", "", ""])
    return [*rows, ["whole step", f"{profile.step_seconds * 1e3:,.1f}", "100.0%", "", ""]]


def slowest_table(profile: Profile, count: int = 15) -> list[list[str]]:
    """Returns the rows of a table of the `count` slowest kernels, heading first."""
    rows = [["kernel", "kind", "ms per step", "result", "from"]]
    for name, kind, seconds, shape, op_name in profile.slowest[:count]:
        rows.append([name, kind, f"{seconds * 1e3:,.2f}", shape, op_name.partition("/")[2]])
    return rows


def align(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows as text in aligned columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(re.match(r"[\d,.%]*$", cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    )


def draw(profile: Profile, path: Path, title: str) -> None:
    """Writes a bar chart of the milliseconds per kind of kernel; the part in kernels with products is darker."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = sorted(profile.kinds.items(), key=lambda entry: entry[1].seconds)
    names = ["no kernel", *(kind for kind, _ in kinds)]
    total = [profile.uncovered * 1e3, *(time.seconds * 1e3 for _, time in kinds)]
    products = [0.0, *(time.product_seconds * 1e3 for _, time in kinds)]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(names) + 1.2), layout="constrained")
    axes.barh(names, total, color="#9fb8d9", label="other kernels")
    axes.barh(names, products, color="#2b5c9e", label="kernels with a matrix product")
    for bar, value in enumerate(total):
        axes.annotate(f" {value / profile.step_seconds / 10:.1f}%", (value, bar), va="center", fontsize=8)
    axes.set_xlabel(f"milliseconds, of {profile.step_seconds * 1e3:,.0f} per step")
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.removeprefix("."))
    pyplot.close(figure)
