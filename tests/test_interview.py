"""docs/INTERVIEW.md and its Chinese twin are what docs/concepts.py would write now, and their
numbers are the lab's."""
import math
import re
import sys
from pathlib import Path

import pytest

from lab import report
from support.plot import read_csv

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import interview  # noqa: E402
from questions import QUESTIONS  # noqa: E402

# Examples that are worked out in an answer.
WORKED = {
    "0.00004": 0.99 ** 999,
    "0.511": 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1),
    "0.368": 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5),
    "0.012": 1.2 * 0.01,
    "0.6": 1.2 * 0.5}
# Settings and given probabilities, which stand for themselves.
GIVEN = {"0.99", "0.95", "0.05", "0.5", "0.9", "0.1", "0.28", "1.2", "0.01", "0.2", "0.0003"}


@pytest.mark.parametrize("language", interview.PAGES)
def test_the_page_is_up_to_date(language):
    assert interview.PAGES[language].read_text(encoding="utf-8") == interview.page(language), (
        "lines have moved: run `python docs/concepts.py`")


def places(text):
    return re.findall(r"\{(.*?)\}", text)


def expected(place):
    """The number, by the lab's own functions and not by the page's."""
    file, *path, column = place.split("/")
    if file == "curve":
        run, step = path
        [row] = [row for row in read_csv(ROOT / "docs/curves/curves.csv")
                 if row["run"] == run and row["step"] == step]
        return row[column]
    rows = read_csv(ROOT / f"docs/lab/{file}.csv")
    if file == "results":
        found = [float(row[column]) for row in
                 report.grouped(rows, lambda row: row["method"])[path[0]]]
    else:
        found = report.ends(rows, column)[path[0]]
    forms = {"seconds": ".0f", "samples": ",.0f", "models": ".0f", "entropy": ".3f"}
    return report.shown(found, forms.get(column, ".2f"))


def test_the_numbers_are_the_lab_s():
    found = [place for question in QUESTIONS for place in places(question.numbers)]
    assert len(found) > 60
    for place in found:
        if place.startswith("curve/"):
            shown, exact = float(interview.number(place)), float(expected(place))
            # Two digits after the point, or the first digit of a smaller number.
            assert abs(shown - exact) <= max(0.005, 0.005 * abs(exact)), place
            assert exact == 0 or shown != 0, place
        else:
            assert interview.number(place) == expected(place), place


def test_both_languages_have_the_same_numbers():
    for question in QUESTIONS:
        assert sorted(places(question.numbers)) == sorted(places(question.numbers_zh)), question


def test_no_other_number_is_typed():
    for value, computed in WORKED.items():
        digits = len(value.split(".")[1])
        assert f"{computed:.{digits}f}" == value
    for question in QUESTIONS:
        for text in question:
            if isinstance(text, str) and text != question.why:
                typed = re.findall(r"\d+\.\d+", re.sub(r"\{.*?\}", "", text))
                assert set(typed) <= {*WORKED, *GIVEN}, text


def test_every_question_is_complete_in_both_languages():
    assert len({question.question for question in QUESTIONS}) == len(QUESTIONS) > 62
    for question in QUESTIONS:
        fields = question._asdict()
        for name in ("question", "answer", "follow_up", "wrong"):
            assert not re.search("[\u4e00-\u9fff]", fields[name]), fields[name]
            assert re.search("[\u4e00-\u9fff]", fields[f"{name}_zh"]), fields[name]
        assert question.code and (question.tests or question.numbers or question.why), question
        # Thirty seconds: about eighty words.
        assert len(question.answer.split()) <= 85, question.question


@pytest.mark.parametrize("place, message", [
    ("results/GRPO2/sampled", "results/GRPO2/sampled: not in the files of docs/lab"),
    ("kl/k4 in the loss/sampled", "kl/k4 in the loss/sampled: not in"),
    ("curve/grpo/999/reward", "curve/grpo/999/reward: not in docs/curves/curves.csv")])
def test_a_number_that_is_not_there_is_named(place, message):
    with pytest.raises(ValueError, match=message):
        interview.number(place)
