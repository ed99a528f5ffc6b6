"""What the README, in English and in Chinese, says of the files and of the lab's numbers is true,
both give the same commands and outputs, and the scripts take every command of theirs and of the
recipes."""
import functools
import importlib
import re
import runpy
import shlex
import textwrap
from pathlib import Path

import pytest

from lab import report
from lab.experiments import EXPERIMENTS, METHODS, PPO_RM
from support import hub
from support.cli import parse
from support.memory import Config, Plan, Sizes
from support.plot import read_csv

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
LAB_PAGES = [ROOT / "docs/lab/README.md", ROOT / "docs/lab/README.zh-CN.md"]
RECIPES = sorted((ROOT / "recipes").glob("*.md"))
CALCULATOR = ROOT / "examples/calculator.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_line_counts(page):
    rows = re.findall(r"^\| \[`(\S+)`\]\(\S+\) \| (\d+) \|",
                      page.read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in rows} == {p.name for p in ROOT.glob("*.py")}
    for name, count in rows:
        assert abs(
            len((ROOT / name).read_text(encoding="utf-8").splitlines()) - int(count)
        ) <= max(5, 0.05 * int(count)), name


def test_local_links_resolve():
    for page in [*PAGES, *RECIPES, *(ROOT / "docs").rglob("*.md")]:
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
                 if "://" not in link]
        assert all((page.parent / link).exists() for link in links), page


@functools.cache
def anchors(page: Path) -> set[str]:
    """What can stand behind a # in a link to this page, on GitHub."""
    text = page.read_text(encoding="utf-8")
    headings = [re.sub("<.*?>", "", line) for line in re.findall(r"^#+ (.*)", text, re.M)]
    kept = ["".join(c for c in heading.lower() if c.isalnum() or c in "-_ ")
            for heading in headings]
    return {*re.findall(r'<a id="(.*?)">', text), *(x.replace(" ", "-") for x in kept)}


def test_links_to_places_in_pages_resolve():
    n_links = 0
    for page in [*PAGES, *RECIPES, *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            target = (page.parent / file).resolve() if file else page
            if target.suffix == ".md":
                n_links += 1
                assert anchor in anchors(target), f"{page.name}: {file}#{anchor}"
    assert n_links > 500


def test_every_page_of_docs_is_linked_from_the_readme_in_its_language():
    """So that every topic of the index is two clicks away."""
    english, chinese = (page.read_text(encoding="utf-8") for page in PAGES)
    for page in (ROOT / "docs").glob("*.md"):
        if page.name.endswith(".zh.md"):
            assert f"(docs/{page.name})" in chinese, page.name
        else:
            assert f"(docs/{page.name})" in english, page.name


@pytest.mark.parametrize("pages", [PAGES, [ROOT / "docs/RUNNING.md", ROOT / "docs/RUNNING.zh.md"]],
                         ids=lambda pages: pages[0].name)
def test_both_languages_have_the_same_code_blocks(pages):
    english, chinese = (
        re.findall(r"^```.*?^```|^ {4}[^\n]+", page.read_text(encoding="utf-8"), re.M | re.S)
        for page in pages)
    assert english and english == chinese


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_smaller_torch_is_the_one_that_is_required(page):
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    version = re.search(r"`pip install (torch==\S+) ", page.read_text(encoding="utf-8"))[1]
    assert f"\n{version}\n" in required


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_example_s_reward_function_scores(page):
    text = page.read_text(encoding="utf-8")
    code = re.search(r"^    # my_reward.py.*?(?=^\S)", text, re.M | re.S)[0]
    names = {}
    exec(textwrap.dedent(code), names)
    scores = names["score"](["7 + 0 ="] * 4, ["so: 7", "so: 17", "so: 7", ""],
                            finished=[True, True, False, True], answer=["7"] * 4, level=[1] * 4)
    assert scores == [1.0, 0.0, 0.0, 0.0]


def read_commands(page) -> list[list[str]]:
    """The words after `python` of each command in a page's code blocks."""
    lines = re.findall(r"^ {4}(.*)", page.read_text(encoding="utf-8"), re.M)
    # A \ at the end of a line joins it to the next one.
    text = "\n".join(lines).replace("\\\n", " ")
    commands = re.findall(r"(?:^|&& )python (\S+\.py.*)", text, re.M)
    return [shlex.split(command, comments=True) for command in commands]


@pytest.mark.parametrize("page", [*PAGES, *RECIPES, CALCULATOR], ids=lambda page: page.name)
def test_the_scripts_take_the_commands(page):
    """Every flag exists, with a value in its range, and may stand beside the others."""
    commands = read_commands(page)
    assert len(commands) >= (4 if page == CALCULATOR else 10)
    for file, *arguments in commands:
        if file == "examples/gsm8k.py":
            runpy.run_path(str(ROOT / file))["make_parser"]().parse_args(arguments)
        elif "/" in file:
            assert (ROOT / file).is_file() and not arguments, file
        else:
            module = importlib.import_module(file.removesuffix(".py"))
            if file == "evaluate.py":
                # The run or the model.
                del arguments[0]
            parse(module.Config, module.__doc__, arguments)


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.name)
def test_a_recipe_s_commands_read_what_earlier_ones_wrote(page):
    written = set()
    for file, *arguments in read_commands(page):
        if file == "examples/gsm8k.py":
            written |= set(runpy.run_path(str(ROOT / file))["WRITTEN"])
            continue
        flags = dict(zip(arguments, arguments[1:]))
        model = arguments[0] if file == "evaluate.py" else flags["--model"]
        assert flags["--data"] in written
        assert model in written or hub.is_name(model)
        if "--out" in flags:
            written.add(flags["--out"])


def test_the_recipe_s_memory_is_what_the_plan_says():
    models = runpy.run_path(str(ROOT / "docs/memory.py"))["MODELS"]
    page = (ROOT / "recipes/gsm8k.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+?)(?:-Instruct)? \| (\S+) B \| (\d+) × (\d+) \| (\d+) "
                      r"\| (\S+) GB \| (\S+) GB \|", page, re.M)
    assert len(rows) == 3
    for name, parameters, prompts, group, answer, memory, card in rows:
        config = Config(prompt_tokens=250, max_new_tokens=int(answer), micro_batch_tokens=16384,
                        rows=int(prompts) * int(group), grad_checkpoint=True)
        sizes = Sizes(models[name])
        peak = Plan(sizes, config, "grpo").peak() / 1e9
        assert parameters == f"{sizes.parameters / 1e9:.2f}"
        assert (memory, card) == (f"{peak:.1f}", f"{1.1 * peak + 1:.1f}"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_results_are_the_lab_s(page):
    method = {command.replace(PPO_RM, "train_ppo.py"): name
              for name, (_, command) in METHODS.items()}
    found = report.grouped(read_csv(ROOT / "docs/lab/results.csv"), lambda row: row["method"])
    rows = re.findall(r"^\| [^|]+ \| `(train_[^`]+)` \| (.*?) \| (.*?) \| (.*?) \|",
                      page.read_text(encoding="utf-8"), re.M)
    assert len(rows) >= 8
    for command, *cells in rows:
        numbers = [[float(row[column]) for row in found[method[command]] if row[column]]
                   for column in ("seconds", "greedy", "sampled")]
        forms = (".0f", ".2f", ".2f")
        assert cells == [
            report.shown(values, form) + (" s" if form == ".0f" else "") if values else ""
            for values, form in zip(numbers, forms)]


@pytest.mark.parametrize("page", LAB_PAGES, ids=lambda page: page.name)
def test_the_lab_s_sentences_have_its_numbers(page):
    """Each number is one of the page that the sentence is about, with as many digits or fewer."""
    found = re.findall(r"^\* \[\w+\]\((\w+)(?:\.zh)?\.md\)(.*(?:\n  .*)*)",
                       page.read_text(encoding="utf-8"), re.M)
    assert sorted(name for name, _ in found) == sorted([*EXPERIMENTS, "gradient"])
    for name, text in found:
        numbers = [float(x) for x in re.findall(
            r"\d+\.\d+", (page.parent / f"{name}.md").read_text(encoding="utf-8"))]
        for number in re.findall(r"\d+\.\d+", text):
            n_digits = len(number.split(".")[1])
            # Half a digit, and what the page itself has rounded.
            near = 0.51 * 10 ** -n_digits + 1e-9
            assert any(abs(x - float(number)) < near for x in numbers), (name, number)
