"""What interviewers ask: `python docs/concepts.py` writes docs/INTERVIEW.md and its Chinese twin
from docs/questions.py, with the numbers of the lab's files and every line number as they are now.
"""
import functools
import re
import sys

from concepts import ROOT, code_link, equation_links, test_link
from errata import ERRATA
from errata import link as erratum_link
from questions import SECTIONS

sys.path.append(str(ROOT))
from lab import report
from support.plot import read_csv

PAGES = {"English": ROOT / "docs" / "INTERVIEW.md", "Chinese": ROOT / "docs" / "INTERVIEW.zh.md"}
SEEDS = {"English": {1: "one seed", 2: "two seeds", 3: "three seeds", 5: "five seeds"},
         "Chinese": {1: "一个种子", 2: "两个种子", 3: "三个种子", 5: "五个种子"}}
FORMS = {"seconds": ".0f", "samples": ",.0f", "models": ".0f", "entropy": ".3f"}
# A \ joins two lines: the page's lines are longer than those of a source file.
INTRO = {"English": """# Interview questions

What is asked about reinforcement learning for language models, each with an answer for thirty \
seconds, what is asked next, the usual wrong
answer, and the evidence in this repository. Cover the answer, say your own, then compare. Why an \
equation is so: [DERIVATIONS.md](DERIVATIONS.md);
what a term means and which line computes it: [CONCEPTS.md](CONCEPTS.md). English | \
[简体中文](INTERVIEW.zh.md)

Numbers are means ± standard deviations over five seeds on the built-in task, where not said \
otherwise. They are shares of right answers,
sampled ones if nothing else is said; times are those of one CPU core. They come from \
[`results.csv`](lab/results.csv), the other files of
[`lab/`](lab), and [`curves.csv`](curves/curves.csv).
""", "Chinese": """# 面试题

关于大语言模型的强化学习，面试常问的问题。每题包括三十秒的回答、接下来会追问什么、常见的错误回答，\
以及本仓库里的证据。先遮住答案自己说一遍，再对照。公式为什么成立，见[公式推导](DERIVATIONS.zh.md)；\
术语的含义和对应的代码行，见[概念](CONCEPTS.zh.md)。[English](INTERVIEW.md) | 简体中文

没有另外说明时，数字是内置任务上五个种子的均值 ± 标准差，指正确回答的比例（默认为采样），用时是单个 \
CPU 核上的时间。它们来自 [`results.csv`](lab/results.csv)、[`lab/`](lab) 里的其他文件和 \
[`curves.csv`](curves/curves.csv)。
"""}
LABELS = {
    "English": {
        "answer": "**Answer.** ", "follow_up": "**Asked next.** ",
        "wrong": "**Often said wrongly.** ",
        "evidence": "**Evidence.** ", "code": "Code: ", "tests": "Tests: ", "why": "Derived in ",
        "errata": "What the wrong formula does: ", "and": ", ", "end": ". "},
    # A bold text that ends with a full-width colon would not be bold.
    "Chinese": {
        "answer": "**回答**：", "follow_up": "**追问**：", "wrong": "**常见的错误回答**：",
        "evidence": "**证据**：", "code": "代码：", "tests": "测试：", "why": "推导：",
        "errata": "把错误的公式跑一遍：", "and": "、", "end": "。"}}


@functools.cache
def rows_of(file: str) -> list[dict]:
    return read_csv(ROOT / "docs" / file)


def number(place: str) -> str:
    """results/METHOD/COLUMN, an experiment's NAME/SETTING/COLUMN, or curve/RUN/STEP/COLUMN."""
    file, *path, column = place.split("/")
    if file == "curve":
        run, step = path
        found = [row[column] for row in rows_of("curves/curves.csv")
                 if (row["run"], row["step"]) == (run, step)]
        if not found:
            raise ValueError(f"{place}: not in docs/curves/curves.csv")
        return of_curve(float(found[0]))
    if file == "results":
        found = [float(row[column]) for row in rows_of("lab/results.csv")
                 if row["method"] == path[0]]
    else:
        rows = [row for row in rows_of(f"lab/{file}.csv") if report.name(row) == path[0]]
        found = report.ends(rows, column).get(path[0])
    if not found:
        raise ValueError(f"{place}: not in the files of docs/lab")
    return report.shown(found, FORMS.get(column, ".2f"))


def of_curve(x: float) -> str:
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.2f}" if abs(x) >= 0.1 else f"{x:.1g}"


def seeds(experiment: str, language: str) -> str:
    """How many seeds an experiment's csv file has, in words: it may be run again with more."""
    n = len({row["seed"] for row in rows_of(f"lab/{experiment}.csv")})
    return SEEDS[language][n]


def filled(text: str, language: str) -> str:
    text = re.sub(r"<seeds of (\w+)>", lambda match: seeds(match[1], language), text)
    return re.sub(r"\{(.*?)\}", lambda match: number(match[1]), text)


def erratum(n: int, language: str) -> str:
    """A wrong statement of ERRATA.md by its number, and what came out when it was run."""
    if language == "English":
        return f"{erratum_link(n, str(n), language)}: {ERRATA[n - 1].run.rstrip('.')}"
    return f"{erratum_link(n, str(n), language)}：{ERRATA[n - 1].run_zh.rstrip('。')}"


def evidence(question, language: str) -> str:
    label = LABELS[language]
    numbers = question.numbers if language == "English" else question.numbers_zh
    parts = [filled(numbers, language)]
    if numbers and language == "English":
        parts.append(" ")
    links = {"code": map(code_link, question.code),
             "tests": [test_link(test, language) for test in question.tests],
             "why": equation_links(question.why, language),
             "errata": [erratum(n, language) for n in question.errata]}
    for name, found in links.items():
        between = label["end"] if name == "errata" else label["and"]
        joined = between.join(found)
        if joined:
            parts.append(f"{label[name]}{joined}{label['end']}")
    return "".join(parts).strip()


def entry(n: int, question, language: str) -> str:
    """A question as its section of the page."""
    fields, label = question._asdict(), LABELS[language]
    suffix = "" if language == "English" else "_zh"
    lines = [label[name] + fields[name + suffix] for name in ("answer", "follow_up", "wrong")]
    lines.append(label["evidence"] + evidence(question, language))
    title = fields["question" + suffix]
    return f"\n### <a id=\"q{n}\"></a>{n}. {title}\n\n" + "\n\n".join(lines) + "\n"


def page(language: str) -> str:
    parts, n = [INTRO[language]], 0
    for english, chinese, questions in SECTIONS:
        parts.append(f"\n## {english if language == 'English' else chinese}\n")
        for question in questions:
            n += 1
            parts.append(entry(n, question, language))
    return "".join(parts)


def write() -> None:
    for language, file in PAGES.items():
        file.write_text(page(language), encoding="utf-8")
