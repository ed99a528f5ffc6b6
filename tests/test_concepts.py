"""docs/CONCEPTS.md and docs/INDEX.md, in both languages, are what docs/concepts.py would write now,
have every concept and every topic, and all that they name exists."""
import ast
import re
import sys
from pathlib import Path

import pytest

from lab.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import concepts  # noqa: E402
import index  # noqa: E402
import lab_chinese  # noqa: E402

PAGES = {language: file.read_text(encoding="utf-8") for language, file in concepts.PAGES.items()}
ROWS = concepts.ROWS
CHINESE = "[\u4e00-\u9fff]"

CONCEPTS = [
    "state", "action", "policy", "trajectory", "return", "Bellman equation", "V", "Q", "advantage",
    "TD error", "Monte Carlo", "TD", "GAE", "actor-critic", "A2C", "importance ratio", "clip",
    "trust region", "KL estimators", "reference model", "Bradley-Terry", "four models of PPO",
    "implicit reward", "group baseline", "REINFORCE++", "ReMax", "RLOO", "GSPO", "KTO",
    "reward hacking", "alignment tax", "on-policy", "off-policy", "outcome rewards",
    "process rewards", "Markov property", "Bellman optimality equation", "soft Bellman equation",
    "Q-learning and SARSA", "exploration", "log-derivative trick", "credit assignment",
    "natural gradient", "k-step sums", "gradients of the KL estimators", "optimal policy π*",
    "Z cancels", "gradient of DPO", "GRPO against DPO"]


@pytest.mark.parametrize("module", [concepts, index], ids=lambda module: module.__name__)
@pytest.mark.parametrize("language", PAGES)
def test_the_page_is_up_to_date(module, language):
    assert module.PAGES[language].read_text(encoding="utf-8") == module.page(language), (
        "lines have moved: run `python docs/concepts.py`")


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_concept_has_its_row(concept):
    assert PAGES["English"].count(f"</a>**{concept}**") == 1


def test_every_row_is_complete_in_both_languages():
    names = [concepts.name_of(row) for row in ROWS]
    assert len(names) == len(set(names)) == len(set(map(concepts.anchor, ROWS)))
    for row in ROWS:
        assert (row.equation and row.english
                and re.search(f"{CHINESE}|^k[123]", row.chinese)
                and re.search(CHINESE, row.in_chinese)), row.term
        assert not re.search(CHINESE, row.equation + row.english), row.term
        assert row.code or "Not in the code" in row.english, f"{row.term}: no code"
        assert row.tests or re.search("no test|not proved|Not measured", row.english), (
            f"{row.term}: no test, and the row doesn't say so")
        # A word of English in an equation: of the code's names, or said in Chinese as well.
        words = set(re.findall(r"\b[a-z]{4,}\b", row.equation))
        known = {"mask", "tokens", "softmax", "logits", "temperature", "argmax", "mean", "clip",
                 "score", "stop", "loss", "rewards", "whiten", "stopgrad", "horizon", "target",
                 "odds", "margin"}
        assert row.equation_zh or words <= known, f"{row.term}: {words - known}"
    for page in PAGES.values():
        assert page.count("\n| <a id=") == len(ROWS)
        for line in page.split("\n"):
            assert not line.startswith("|") or line.count("|") == 8, line


def test_links_into_the_code_resolve():
    """Looked at from the page alone: the line is there, and has the name that the link shows."""
    links = re.findall(r"\[(`?)([^\]`]+)`?\]\(\.\./([^)#]+)#L(\d+)\)", PAGES["English"])
    assert len(links) > 2 * len(ROWS)
    for code, label, file, number in links:
        line = (ROOT / file).read_text(encoding="utf-8").split("\n")[int(number) - 1]
        assert line.strip(), f"{file}:{number} is empty"
        if not code and not label.startswith("recorded values of "):
            assert line.startswith(f"def test_{label.replace(' ', '_')}("), (
                f"{file}:{number} is not the test {label!r}")


def test_experiments_exist():
    assert {row.experiment for row in ROWS} == {"", "table", "curves", "gradient", *EXPERIMENTS}
    files = ["lab/results.md", "READING_CURVES.md", "lab/gradient.md",
             *(f"lab/{name}.md" for name in EXPERIMENTS)]
    for file in files:
        for language, file in (("English", file), ("Chinese", file.replace(".md", ".zh.md"))):
            assert f"]({file})" in PAGES[language]
            assert (ROOT / "docs" / file).is_file(), f"docs/{file} is missing"


def test_every_topic_leads_somewhere():
    topics = [topic for _, _, topics in index.TOPICS for topic in topics]
    # Those that learners ask for, 32 questions, and 13 statements that are wrong.
    assert len(topics) >= 103 + 32 + 13
    for _, _, some in index.TOPICS:
        assert len({topic.english for topic in some}) == len(some)
    for topic in topics:
        assert re.search(f"{CHINESE}|β = 0|GAE|IPO", topic.chinese), topic
        # What another place does is said to be not here, with a link to that place.
        assert not topic.elsewhere or "https://" in topic.elsewhere, topic


@pytest.mark.parametrize("topic, message", [
    (index.Topic("a", "b", ["GRPO and so on"]), "found 0 rows with the name GRPO and so on"),
    (index.Topic("a", "b", [], "Why is"), "found [2-9] questions with 'Why is', expected 1"),
    (index.Topic("a", "b"), "a leads nowhere")])
def test_a_topic_that_leads_nowhere_is_named(topic, message):
    with pytest.raises(ValueError, match=message):
        index.entry(topic, "English")


def test_the_lab_in_chinese_has_the_numbers_of_the_english_pages():
    pages = lab_chinese.pages()
    assert len(pages) == len(EXPERIMENTS) + 2
    for file, text in pages.items():
        assert file.read_text(encoding="utf-8") == text, "run `python docs/concepts.py`"
        english = (file.parent / file.name.replace(".zh.md", ".md")).read_text(encoding="utf-8")
        # A set: the titles stand twice, and a setting's name may hold a number, too.
        found, expected = (set(re.findall(r"\d[\d.,]*\d|\d", page)) for page in (text, english))
        assert found == expected, file.name
        values = [re.findall(r"\d[\d.,]* ± \d[\d.,]*\d", page) for page in (text, english)]
        assert values[0] == values[1], file.name
        # What is left in English are names.
        words = set(re.findall("[a-z]{4,}", re.sub(r"\(\S*?\.(png|py)\)|`.*?`", "", text)))
        assert words <= {"pass", "mean", "token", "nats", "seq", "bfloat", "hard"}, file.name


def test_a_sentence_of_another_form_is_refused():
    with pytest.raises(ValueError, match="no Chinese for 'Against GRPO, all is well.'"):
        lab_chinese.say("Against GRPO, all is well.")


@pytest.mark.parametrize("place, message", [
    ("losses.py:kl_k4", "losses.py: kl_k4: found 0 times"),
    ("losses.py:kl_k3:expm2", "losses.py: 'expm2' in kl_k3: found 0 times"),
    ("advantages.py:gae:advantages",
     "advantages.py: 'advantages' in gae: found [2-9] times, expected once"),
    ("loss.py:gae", "loss.py: no such file")])
def test_what_is_not_found_is_named(place, message):
    with pytest.raises(ValueError, match=message):
        concepts.code_link(place)


def test_unknown_recordings_and_equations_are_named():
    with pytest.raises(ValueError, match="no case begins with verl.gea"):
        concepts.test_link("test_peers.py::test_peer[verl.gea]")
    with pytest.raises(ValueError, match=r"found no equation \(a.99\)"):
        concepts.equation_links("a.1, a.99", "English")


def test_it_is_quick_to_write():
    """Torch alone would take longer than all the rest: the scripts read sources, and import none
    of them."""
    for name in ("concepts", "concept_rows", "index", "interview", "questions", "errata",
                 "mistakes", "effects", "lab_chinese"):
        tree = ast.parse((ROOT / "docs" / f"{name}.py").read_text(encoding="utf-8"))
        assert {name.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for name in node.names} <= {"ast", "csv", "functools", "json", "math", "re",
                                            "statistics", "sys"}
