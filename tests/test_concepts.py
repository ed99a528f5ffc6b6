"""docs/CONCEPTS.md is what docs/concepts.py would write now, has every concept, and all that it
names exists."""
import ast
import re
import runpy
from pathlib import Path

import pytest

import compare

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "docs" / "concepts.py"))
PAGE = (ROOT / "docs" / "CONCEPTS.md").read_text(encoding="utf-8")
ROWS = [row for _, _, rows in SCRIPT["SECTIONS"] for row in rows]

CONCEPTS = [
    "state", "action", "policy", "trajectory", "return", "Bellman equation", "V", "Q", "advantage",
    "TD error", "Monte Carlo", "TD", "GAE", "actor-critic", "A2C", "importance ratio", "clip",
    "trust region", "KL estimators", "reference model", "Bradley-Terry", "four models of PPO",
    "implicit reward", "group baseline", "REINFORCE++", "ReMax", "RLOO", "GSPO", "KTO",
    "reward hacking", "alignment tax", "on-policy", "off-policy", "outcome rewards",
    "process rewards"]


def test_the_page_is_up_to_date():
    assert PAGE == SCRIPT["page"](), "lines have moved: run `python docs/concepts.py`"


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_concept_has_its_row(concept):
    assert PAGE.count(f"\n| **{concept}**") == 1


def test_every_row_is_complete():
    names = [row[0].partition(",")[0] for row in ROWS]
    assert len(names) == len(set(names)) and PAGE.count("\n| **") == len(ROWS)
    for row in ROWS:
        term, chinese, equation, code, tests, experiment, english, in_chinese = row
        assert (equation and code and english
                and re.search("[\u4e00-\u9fff]|^k[123]", chinese)
                and re.search("[\u4e00-\u9fff]", in_chinese)), term
        assert tests or re.search("no test|not proved|Not measured", english), (
            f"{term}: no test, and the row doesn't say so")
    for line in PAGE.split("\n"):
        assert not line.startswith("|") or line.count("|") == 6, line


def test_links_into_the_code_resolve():
    """Looked at from the page alone: the line is there, and has the name that the link shows."""
    links = re.findall(r"\[(`?)([^\]`]+)`?\]\(\.\./([^)#]+)#L(\d+)\)", PAGE)
    assert len(links) > 2 * len(ROWS)
    for code, label, file, number in links:
        line = (ROOT / file).read_text(encoding="utf-8").split("\n")[int(number) - 1]
        assert line.strip(), f"{file}:{number} is empty"
        if not code and not label.startswith("recorded: "):
            assert line.startswith(f"def test_{label.replace(' ', '_')}("), (
                f"{file}:{number} is not the test {label!r}")


def test_experiments_exist():
    assert {row[5] for row in ROWS} == {"", "table", "curves", *compare.EXPERIMENTS}
    files = {"table": "lab/results.md", "curves": "READING_CURVES.md",
             **{name: f"lab/{name}.md" for name in compare.EXPERIMENTS}}
    for name, file in files.items():
        assert f"[`{name}`]({file})" in PAGE and (ROOT / "docs" / file).is_file(), (
            f"docs/{file} is missing")


@pytest.mark.parametrize("place, message", [
    ("losses.py:kl_k4", "losses.py: kl_k4: found 0 times"),
    ("losses.py:kl_k3:expm2", "losses.py: 'expm2' in kl_k3: found 0 times"),
    ("advantages.py:gae:advantages",
     "advantages.py: 'advantages' in gae: found [2-9] times, expected once"),
    ("loss.py:gae", "loss.py: no such file")])
def test_what_is_not_found_is_named(place, message):
    with pytest.raises(ValueError, match=message):
        SCRIPT["code_link"](place)


def test_unknown_recordings_are_named():
    with pytest.raises(ValueError, match="no case begins with verl.gea"):
        SCRIPT["test_link"]("test_peers.py::test_peer[verl.gea]")


def test_it_is_quick_to_write():
    """Torch alone would take longer than all the rest: the script reads sources, and imports none
    of them."""
    tree = ast.parse((ROOT / "docs" / "concepts.py").read_text(encoding="utf-8"))
    assert {name.name for node in ast.walk(tree) if isinstance(node, ast.Import)
            for name in node.names} == {"ast", "functools", "json", "sys"}
