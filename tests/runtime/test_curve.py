import pytest

from jaxlm.errors import UserError
from jaxlm.runtime import curve
from jaxlm.runtime.curve import draw_curve, read_curves, split_by_phase

TRAIN = [{"kind": "train", "step": step, "loss": 9 / step, "time": 1.5} for step in range(1, 100)]


def evaluation(step, name, **metrics):
    return {"kind": "evaluation", "step": step, "name": name, **metrics, "time": 1.5}


def test_an_evaluation_set_is_drawn_by_its_loss_or_else_its_first_metric():
    curves = read_curves([
        evaluation(10, "dev", accuracy=0.5, loss=0.7, n=4),
        evaluation(10, "similarity", spearman=None, pearson=None, n=8),
        {"kind": "train", "step": 10, "loss": 2.0, "mfu": 0.4},
        {"kind": "train", "step": 11, "loss": None},
        {"kind": "checkpoint", "step": 10, "loss": 5.0},
        evaluation(20, "similarity", spearman=0.8, pearson=0.9, n=8),
        evaluation(20, "dev", accuracy=0.6, loss=None, n=4),
        evaluation(20, "text", unigram_loss=7.0, loss=3.0),
    ])  # fmt: skip
    assert curves.train == [(10, 2.0)]
    assert curves.evaluations == {
        "dev": ("loss", [(10, 0.7)]), "similarity": ("spearman", [(20, 0.8)]), "text": ("loss", [(20, 3.0)]),
    }  # fmt: skip
    assert curves.baselines == {("text", "unigram_loss"): 7.0}


def start(phases, **protocols):
    return {"kind": "start", "step": 0, "training": phases, "evaluation": protocols}


def test_the_start_of_the_latest_run_says_what_is_predicted():
    curves = read_curves([
        start([[1, "causal"]], dev="all rows"), TRAIN[0], start([[1, "causal"], [51, "15% of tokens masked"]], dev="b"),
    ])  # fmt: skip
    assert curves.phases == [(1, "causal"), (51, "15% of tokens masked")]
    assert curves.protocols == {"dev": "b"}
    assert read_curves([{"kind": "start", "step": 0}]).phases == []


def test_a_line_never_connects_losses_of_different_predictions():
    points = [(step, float(step)) for step in (10, 20, 30, 40)]
    phases = [(1, "causal"), (21, "15% masked"), (35, "15% masked")]
    assert split_by_phase(points, phases) == [("causal", points[:2]), ("15% masked", points[2:])]
    assert split_by_phase(points, []) == [("", points)]
    assert split_by_phase([], phases) == []


def test_the_legend_says_how_training_and_evaluation_are_masked(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    legends, save = [], Figure.savefig

    def record(figure, *arguments, **options):
        legends.append(figure.axes[0].get_legend_handles_labels()[1])
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    phases = [[1, "causal, with dropout"], [41, "40% to 15% of tokens masked, with dropout"]]
    events = [
        start(phases, held_out="15% of tokens masked, all rows"), *TRAIN[9::10],
        evaluation(99, "held_out", loss=5.0, unigram_loss=4.9),
    ]  # fmt: skip
    draw_curve(events, tmp_path / "curve.png", lambda name: name.replace("_", "-"))
    assert legends == [[
        "training (causal, with dropout): 0.225",
        "training (40% to 15% of tokens masked, with dropout): 0.100",
        "held-out (15% of tokens masked, all rows): 5.000",
        "unigram baseline, held-out: 4.900",
    ]]  # fmt: skip


def test_every_part_of_the_curve_is_visible(tmp_path):
    pictures = [TRAIN]
    pictures.append([*pictures[-1], evaluation(50, "a", loss=5.0)])
    pictures.append([*pictures[-1], evaluation(99, "b", loss=5.0)])
    pictures.append([*pictures[-1], evaluation(99, "c", accuracy=0.5)])
    pictures.append([*pictures[-1], evaluation(99, "b", loss=5.0, unigram_loss=4.9)])
    pictures.append([evaluation(50, "c", accuracy=0.5), evaluation(99, "c", accuracy=0.6)])
    pictures.append([evaluation(50, "c", accuracy=0.5), evaluation(99, "c", accuracy=0.7)])
    drawn = set()
    for events in pictures:
        draw_curve(events, tmp_path / "curve.png", lambda name: f"held-out {name}")
        drawn.add((tmp_path / "curve.png").read_bytes())
    assert len(drawn) == len(pictures)


@pytest.mark.parametrize("name", ["plain", "cost_$^$", "医学"])
def test_any_directory_name_can_be_the_title(tmp_path, name):
    (tmp_path / name).mkdir()
    draw_curve(TRAIN, tmp_path / name / "curve.png")
    assert (tmp_path / name / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / name).iterdir()] == ["curve.png"]


def test_a_run_without_metrics_has_no_curve(tmp_path):
    with pytest.raises(UserError, match="nothing to draw"):
        draw_curve([{"kind": "start", "step": 0}, {"kind": "train", "step": 1, "loss": None}], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*curve\.png"):
        draw_curve(TRAIN, tmp_path / "nowhere" / "curve.png")


@pytest.mark.parametrize("length", [1, 2, 39, 40, 400])
def test_smoothing_preserves_a_straight_line_and_the_first_value(length):
    line = tuple(5 - 0.01 * step for step in range(length))
    smoothed = curve._smooth(line)
    assert len(smoothed) == length
    edge = length // 40
    assert smoothed[0] == pytest.approx(line[0])
    assert smoothed[: length - edge] == pytest.approx(line[: length - edge])
    assert smoothed == pytest.approx(line, abs=0.01 * (edge + 1))
