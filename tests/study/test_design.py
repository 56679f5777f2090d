import pytest

from jaxlm.errors import UserError
from jaxlm.study.design import read_sweep

HEAD = "from jaxlm.study import Arm, Range, Search, Sweep\n\n\ndef get_sweep():\n    return "
GOOD = {
    "question": "'Does it help?'", "base": "'mini'", "arms": "(Arm('a'), Arm('b', ('train.steps=5',)))",
    "evaluation": "'held_out'", "smallest_effect": "0.02",
}  # fmt: skip
SEARCHED = "(Arm('a', search={'optimizer.learning_rate': Range(1e-4, 1e-2)}),)"


def write(folder, **changes):
    fields = GOOD | changes
    (folder / "sweep.py").write_text(f"{HEAD}Sweep({', '.join(f'{k}={v}' for k, v in fields.items())})\n")
    return folder


def test_a_sweep_is_read_from_its_folder_or_its_file(tmp_path):
    folder = write(tmp_path, seeds="3")
    sweep, file = read_sweep(folder)
    assert sweep.seed_numbers == (0, 1, 2)
    assert [arm.name for arm in sweep.arms] == ["a", "b"]
    assert read_sweep(file)[0] == sweep


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": "()"}, "there is no arm; give at least one, the reference first"),
        ({"arms": "(Arm('a'), Arm('a', ('train.steps=5',)))"}, "two arms are called a"),
        ({"arms": "('a',)"}, "'a' is not an Arm with a name"),
        ({"arms": "(Arm(''),)"}, "is not an Arm with a name"),
        ({"arms": "(Arm('a', ('train.steps=5')),)"}, "is one text; write ('train.steps=5',), with the comma"),
        ({"arms": "(Arm('a', ('train.steps',)),)"}, "expected a tuple such as"),
        ({"seeds": "0"}, "seeds=0: expected a number of seeds, at least 1"),
        ({"seeds": "(1, 1)"}, "a seed occurs twice"),
        ({"seeds": "(1, -1)"}, "expected whole numbers that are not negative"),
        ({"smallest_effect": "0"}, "smallest_effect=0: expected a number above 0"),
        ({"better": "'up'"}, "better='up': expected lower or higher"),
        ({"at": "0"}, "at=0: expected an update"),
        ({"question": "''"}, "question='': expected a text"),
        ({"arms": SEARCHED}, "it has settings to search for, but the sweep has no search"),
        (
            {"arms": SEARCHED, "search": "Search(3, 'held_out')"},
            "the search would choose by the evaluation set held_out",
        ),
        ({"arms": SEARCHED, "search": "Search(0, 'other')"}, "search.trials=0"),
        (
            {"arms": SEARCHED.replace("1e-4, 1e-2", "1e-2, 1e-4"), "search": "Search(3, 'other')"},
            "expected a low and a higher bound",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_in_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError) as error:
        read_sweep(write(tmp_path, **changes))
    assert sentence.replace("('", '("').replace("',)", '",)') in str(error.value).replace("('", '("').replace(
        "',)", '",)'
    )
    assert str(error.value).startswith(str(tmp_path / "sweep.py"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("def get_sweep():\n    return 1 / 0\n", "sweep.py, line 2: ZeroDivisionError: division by zero"),
        ("def get_sweep(:\n", "sweep.py, line 1: "),
        ("def other():\n    pass\n", "sweep.py has no function get_sweep()"),
        ("def get_sweep(arg):\n    pass\n", "get_sweep takes arguments; the grid must be a function of the file alone"),
        ("def get_sweep():\n    return {}\n", "get_sweep returned dict; it must return a jaxlm.study.Sweep"),
        (f"{HEAD}Sweep(question='q')\n", "sweep.py, line 5: "),
        (f"{HEAD}Sweep(sedes=3, {', '.join(f'{k}={v}' for k, v in GOOD.items())})\n", "'sedes'"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, content, sentence):
    (tmp_path / "sweep.py").write_text(content)
    with pytest.raises(UserError) as error:
        read_sweep(tmp_path)
    assert sentence in str(error.value)


def test_a_folder_without_a_sweep_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*sweep\.py; a sweep is a folder with sweep\.py"):
        read_sweep(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*nothing"):
        read_sweep(tmp_path / "nothing")
