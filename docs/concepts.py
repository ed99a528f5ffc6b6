"""From idea to line: `python docs/concepts.py` writes docs/CONCEPTS.md and its Chinese twin, with
every line number as it is now, and the links and numbers of the other pages that come from lists:
docs/DERIVATIONS.md, docs/ERRATA.md, docs/INTERVIEW.md and docs/INDEX.md; in Chinese, what other
scripts write in English: docs/MISTAKES.zh.md and docs/lab/*.zh.md; and docs/trace.html, from the
data that it holds.
"""
import ast
import functools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The rows and the other pages lie beside this file, wherever it is called from.
sys.path.insert(0, str(ROOT / "docs"))
from concept_rows import (  # noqa: E402
    GRADIENTS, GROUPS, KL, MDP, PPO, PREFERENCES, VALUES, WRONG, Concept)

PAGES = {"English": ROOT / "docs" / "CONCEPTS.md", "Chinese": ROOT / "docs" / "CONCEPTS.zh.md"}
# A \ joins two lines: the page's lines are longer than those of a source file.
INTRO = {"English": """# From idea to line

Every concept of reinforcement learning for language models that this code embodies: \
its equation, what that says, why it is so, the line that
computes it, the test that proves it, the experiment that shows it. \
Read the sections in order: text as a decision process, values, policy
gradients, PPO, KL, groups, preferences, and what goes wrong. \
Where the code has no such thing, the row says so. For an interview: cover all
but the first column, say the equation and why it is so, then open the line; \
or take the [questions](INTERVIEW.md). To look something up:
[INDEX.md](INDEX.md). English | [简体中文](CONCEPTS.zh.md)

Notation: prompt x, answer y of T tokens, state s_t, action a_t, policy π, \
the policy that sampled π_old, reference π_ref, ρ_t = π / π_old,
σ the logistic function. In the column *why*, a number such as a.12 is an equation of \
[DERIVATIONS.md](DERIVATIONS.md), and — says that the row is a
definition or a choice, which has no derivation. `python docs/concepts.py` writes this page; \
lines are looked up, not typed.
""", "Chinese": """# 从概念到代码

本仓库代码涉及的大语言模型强化学习的每个概念：公式、含义、为什么成立、计算它的代码行、证明它的测试、\
展示它的实验。请按顺序读：文本作为决策过程、价值、策略梯度、PPO、KL、组、偏好，以及会出什么问题。\
代码里没有的，如实说明。准备面试时，只看第一列，先说出公式和理由，再打开代码核对；或者直接看\
[面试题](INTERVIEW.zh.md)。按主题查找：[索引](INDEX.zh.md)。[English](CONCEPTS.md) | 简体中文

记号：提示词 x，T 个 token 的回答 y，状态 s_t，动作 a_t，策略 π，采样时的策略 π_old，参考模型 π_ref，\
ρ_t = π / π_old，σ 为 logistic 函数。“为什么”一栏里 a.12 之类的编号是[公式推导](DERIVATIONS.zh.md)里的\
公式；— 表示该行是定义或设计选择，没有推导。测试名是英文，读作一句话。本页由 \
`python docs/concepts.py` 生成，行号是查出来的，不是手写的。
"""}
SECTIONS = [
    ("Text as a Markov decision process", "文本生成作为马尔可夫决策过程", MDP),
    ("Values", "价值", VALUES),
    ("Policy gradients", "策略梯度", GRADIENTS),
    ("PPO", "近端策略优化（PPO）", PPO),
    ("KL divergence", "KL 散度", KL),
    ("Groups instead of a critic", "以组代替价值模型", GROUPS),
    ("Demonstrations and preferences", "示范与偏好", PREFERENCES),
    ("What goes wrong, and how to see it", "会出什么问题，如何发现", WRONG),
]
ROWS = [row for _, _, rows in SECTIONS for row in rows]
# The pages of DERIVATIONS.md that belong to a section.
WHY = {"Text as a Markov decision process": "a", "Values": "bde", "Policy gradients": "a",
       "PPO": "cde", "KL divergence": "f", "Groups instead of a critic": "g",
       "Demonstrations and preferences": "fg"}
HEADERS = {
    "English": "| concept | equation | what it says | why | code | proved by | shown by |\n",
    "Chinese": "| 概念 | 公式 | 含义 | 为什么 | 代码 | 由测试证明 | 由实验展示 |\n"}
PEERS = {"verl": "verl", "trl": "TRL"}
EXPERIMENTS = {"table": ("lab/results.md", "table of all methods", "全部方法的对比表"),
               "curves": ("READING_CURVES.md", "how curves look", "怎样读曲线")}


@functools.cache
def read(file: str) -> tuple[list[str], dict[str, list]]:
    """A file's lines, and its functions, classes and assignments by name."""
    if not (ROOT / file).is_file():
        raise ValueError(f"{file}: no such file")
    source = (ROOT / file).read_text(encoding="utf-8")
    tree, named = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named.setdefault(node.name, []).append(node)
    for node in tree.body:
        if isinstance(node, ast.Assign):
            named.setdefault(ast.unparse(node.targets[0]), []).append(node)
    return source.split("\n"), named


def only(found: list, what: str):
    if len(found) != 1:
        raise ValueError(f"{what}: found {len(found)} times, expected once")
    return found[0]


def line_of(file: str, name: str, text: str = "") -> int:
    """The line where `name` is defined, or the only line inside it that has `text`."""
    lines, named = read(file)
    node = only(named.get(name, []), f"{file}: {name}")
    if not text:
        return node.lineno
    inside = range(node.lineno, node.end_lineno + 1)
    return only([i for i in inside if text in lines[i - 1]], f"{file}: {text!r} in {name}")


@functools.cache
def recorded() -> list[str]:
    peers = json.loads((ROOT / "tests/peers.json").read_text(encoding="utf-8"))
    return [case["id"] for case in peers["cases"]]


def code_link(place: str) -> str:
    file, name, *text = place.split(":", 2)
    line = line_of(file, name, *text)
    label = f"{file}:{line}" if name == "main" else f"{Path(file).stem}.{name}"
    return f"[`{label}`](../{file}#L{line})"


def test_link(test: str, language: str = "English") -> str:
    """A test's name reads as a sentence; of recorded calls the library is named."""
    file, _, name = test.partition("::")
    name, _, prefix = name.removesuffix("]").partition("[")
    if prefix:
        if not any(case.startswith(prefix) for case in recorded()):
            raise ValueError(f"tests/peers.json: no case begins with {prefix}")
        library = PEERS[prefix.split(".")[0]]
        label = (f"recorded values of {library}" if language == "English"
                 else f"{library} 的记录值")
    else:
        label = name.removeprefix("test_").replace("_", " ")
    return f"[{label}](../tests/{file}#L{line_of(f'tests/{file}', name)})"


def experiment_link(name: str, language: str) -> str:
    label = f"`compare.py {name}`"
    page, english, chinese = EXPERIMENTS.get(name, (f"lab/{name}.md", label, label))
    if language == "English":
        return f"[{english}]({page})"
    return f"[{chinese}]({page.replace('.md', '.zh.md')})"


def anchor_of(heading: str) -> str:
    """GitHub's: no punctuation, a hyphen for a space."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def heading_link(letter: str, file: str) -> str:
    """A link to the heading of this page of the derivations."""
    text = (ROOT / "docs" / file).read_text(encoding="utf-8")
    starts = [line for line in text.split("\n") if line.startswith(f"## {letter}. ")]
    heading = only(starts, f"docs/{file}: page {letter}").removeprefix("## ")
    return f"[{letter}]({file}#{anchor_of(heading)})"


def equation_links(equations: str, language: str) -> list[str]:
    """Links to the pages that hold these equations, such as a.12."""
    file = "DERIVATIONS.md" if language == "English" else "DERIVATIONS.zh.md"
    text = (ROOT / "docs" / file).read_text(encoding="utf-8")
    links = []
    for number in filter(None, equations.split(", ")):
        if f"\\text{{({number})}}" not in text:
            raise ValueError(f"docs/{file}: found no equation ({number})")
        links.append(heading_link(number[0], file).replace(f"[{number[0]}]", f"[{number}]"))
    return links


def name_of(row: Concept) -> str:
    return row.term.partition(",")[0]


def anchor(row: Concept) -> str:
    """The row's place on the page, the same in both languages."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name_of(row).lower())
    return "-".join(filter(None, kept.split("-")))


def cells(row: Concept, language: str) -> list[str]:
    name, comma, rest = row.term.partition(",")
    place = f"<a id=\"{anchor(row)}\"></a>"
    if language == "English":
        first = [f"{place}**{name}**{comma}{rest}", f"`{row.equation}`", row.english]
    else:
        equation = row.equation_zh or row.equation
        first = [f"{place}**{row.chinese}**<br>{name}", f"`{equation}`", row.in_chinese]
    tests = [test_link(test, language) for test in row.tests]
    columns = [equation_links(row.why, language), map(code_link, row.code), tests]
    shown = experiment_link(row.experiment, language) if row.experiment else "—"
    return [*first, *("<br>".join(column) or "—" for column in columns), shown]


def why(section: str, language: str) -> str:
    """The derivations of a section, or nothing."""
    letters = WHY.get(section, "")
    file = "DERIVATIONS.md" if language == "English" else "DERIVATIONS.zh.md"
    links = [heading_link(letter, file) for letter in letters]
    if not links:
        return ""
    return (f"Derivations: {', '.join(links)}\n\n" if language == "English"
            else f"推导：{'、'.join(links)}\n\n")


def page(language: str) -> str:
    parts = [INTRO[language]]
    for english, chinese, rows in SECTIONS:
        title = english if language == "English" else chinese
        parts.append(f"\n## {title}\n\n{why(english, language)}{HEADERS[language]}"
                     "|---|---|---|---|---|---|---|\n")
        for row in rows:
            found = cells(row, language)
            if any("|" in cell for cell in found):
                raise ValueError(f"{row.term}: a | would end the cell, write ∣ or ‖")
            parts.append("| " + " | ".join(found) + " |\n")
    return "".join(parts)


def write() -> None:
    for language, file in PAGES.items():
        file.write_text(page(language), encoding="utf-8")


if __name__ == "__main__":
    from derivations import write as write_derivations
    from errata import write as write_errata
    from index import write as write_index
    from interview import write as write_interview
    from lab_chinese import write as write_lab
    from mistakes import write as write_mistakes
    sys.path.insert(0, str(ROOT))
    from support.trace_page import rebuild
    try:
        write()
        write_derivations()
        write_errata()
        write_interview()
        write_index()
        write_mistakes()
        write_lab()
        rebuild(ROOT / "docs" / "trace.html")
    except ValueError as error:
        sys.exit(f"concepts.py: error: {error}")
