"""Name that bug: the curves of a run whose code has one mistake. Which of docs/MISTAKES.md is it?

    python exercises/bug.py                  which bugs there are
    python exercises/bug.py 3                its numbers beside those of healthy runs; a picture too
    python exercises/bug.py 3 --hint         a hint; --hint 2 gives another
    python exercises/bug.py 3 --guess 17     checks a guess: a number of docs/MISTAKES.md
    python exercises/bug.py 3 --answer       which one it is, and how one could have seen it

Nothing is trained: the runs are those of docs/mistakes/runs.csv. To learn what the numbers mean,
read docs/READING_CURVES.md first.
"""
import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests")]

from effects import (NUMBERS_OF_RUNS, curve, draw_panel, effect, healthy_band, kind,  # noqa: E402
                     runs, show, typical_spread, value)
from mutation_runs import RUNS  # noqa: E402
from mutations import MUTATIONS, NUMBERS, Mutation  # noqa: E402
from svg import Drawing  # noqa: E402

PICTURES = ROOT / "runs"


@dataclass
class Bug:
    mistake: str            # its name in tests/mutations.py
    columns: tuple          # of metrics.csv, which to show
    hints: tuple
    explanation: str        # how these numbers tell it


# Not in the order of their numbers.
BUGS = [
]


def mistake_of(bug: Bug) -> Mutation:
    return MUTATIONS[NUMBERS[bug.mistake] - 1]


def script_of(mutation: Mutation) -> str:
    return RUNS[mutation.run].split()[0] if mutation.run else ""


def curves_of(bug: Bug) -> list[dict]:
    mutation = mistake_of(bug)
    [rows] = runs()[mutation.run, mutation.name].values()
    return rows


def table(bug: Bug) -> str:
    """A row for each step: of each number the bug's, * where no healthy run has it, and the lowest
    and highest of the healthy runs."""
    rows, run = curves_of(bug), mistake_of(bug).run
    bands = {column: healthy_band(run, column) for column in bug.columns}
    lines = ["step" + "".join(f"{column:>20}" for column in bug.columns)]
    # Of a long run, every fourth step.
    for row in rows[::max(1, len(rows) // 10)]:
        cells = []
        for column in bug.columns:
            found = curve([row], column).get(int(row["step"]))
            low, high = bands[column].get(int(row["step"]), (None, None))
            if found is None:
                cells.append("")
                continue
            mark = "*" if low is None or not low <= found <= high else " "
            between = "" if low is None else f"{show(low)}..{show(high)}"
            cells.append(f"{show(found)}{mark} {between:<12}")
        lines.append(f"{row['step']:>4}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def picture(number: int, bug: Bug) -> Path:
    """The same as curves, as SVG."""
    rows, run = curves_of(bug), mistake_of(bug).run
    wide, high = 190, 120
    drawing = Drawing(len(bug.columns) * (wide + 50) + 10, high + 70, f"bug {number}")
    for i, column in enumerate(bug.columns):
        x, line, band = 46 + i * (wide + 50), curve(rows, column), healthy_band(run, column)
        drawing.text(x, 20, column, size=12, anchor="start", bold=True)
        ends = [*line.values(), *(end for pair in band.values() for end in pair)]
        low, top = min(ends), max(ends)
        draw_panel(drawing, x, 36, wide, high, band, line, (low, top if top > low else low + 1))
    PICTURES.mkdir(exist_ok=True)
    file = PICTURES / f"bug_{number}.svg"
    file.write_text(drawing.svg(), encoding="utf-8")
    return file


def describe(number: int, bug: Bug) -> str:
    mutation = mistake_of(bug)
    candidates = [m for m in MUTATIONS if script_of(m) == script_of(mutation)]
    return "\n".join([
        f"Bug {number}: python {RUNS[mutation.run]}",
        "",
        "Of each number: the run with the mistake, and lowest..highest of the healthy runs;",
        "* is outside of them.",
        "",
        table(bug),
        "",
        f"As curves: {picture(number, bug)}",
        "",
        "Which mistake is it? Those that this script's runs were made with:",
        "",
        *(f"{NUMBERS[m.name]:>4}  {m.mistake}" for m in candidates),
        "",
        f"python exercises/bug.py {number} --guess NUMBER        or --hint, or --answer"])


def check(bug: Bug, guess: int) -> str:
    """"" if the guess is right, else in words why not."""
    mutation, guessed = mistake_of(bug), MUTATIONS[guess - 1]
    if mutation is guessed:
        return ""
    name = f"mistake {guess} ({guessed.mistake})"
    if script_of(guessed) and script_of(guessed) != script_of(mutation):
        return f"no: {name} was made in {script_of(guessed)}; this run is {script_of(mutation)}'s"
    if kind(guessed) in ("same", "unseen"):
        return f"no: {name} changes no number of such a run, and here some are outside of the band"
    if guessed.run != mutation.run:
        return f"no: {name} acts in `{RUNS[guessed.run]}`; this run has other settings"
    [rows] = runs()[mutation.run, guessed.name].values()

    def difference(column):
        found, other = value(curves_of(bug), column), value(rows, column)
        if found is None or other is None:
            return 0.0
        scale = NUMBERS_OF_RUNS[column].scale
        return abs(scale(found) - scale(other)) / max(typical_spread(column), 1e-9)
    column = max(NUMBERS_OF_RUNS, key=difference)
    return (f"no: {name} gives {NUMBERS_OF_RUNS[column].english} "
            f"{show(value(rows, column), column)} in this command; here it is "
            f"{show(value(curves_of(bug), column), column)}")


def answer(bug: Bug) -> str:
    mutation = mistake_of(bug)
    return "\n".join([
        f"It is mistake {NUMBERS[bug.mistake]}: {mutation.mistake}.",
        bug.explanation,
        f"Measured: {effect(mutation, 'English', mutation.unseen)}.",
        f"Made in {mutation.file}; see docs/MISTAKES.md."])


def one_of(n: int, what: str):
    """A number from 1 to n, for argparse."""
    def read(text: str) -> int:
        if not text.isdigit() or not 1 <= int(text) <= n:
            raise argparse.ArgumentTypeError(f"{what} is {text}, expected 1 to {n}")
        return int(text)
    return read


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"bug.py: error: {message}\n")


def main(argv=None) -> int:
    parser = OneLineParser(prog="bug.py", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bug", nargs="?", type=one_of(len(BUGS), "the bug"))
    parser.add_argument("--hint", nargs="?", const=1, type=one_of(2, "the hint"))
    parser.add_argument("--guess", type=one_of(len(MUTATIONS), "the mistake"))
    parser.add_argument("--answer", action="store_true")
    given = parser.parse_args(argv)
    if given.bug is None:
        if given.hint or given.guess or given.answer:
            parser.error("of which bug? expected its number first")
        for number, bug in enumerate(BUGS, start=1):
            print(f"{number:>3}  python {RUNS[mistake_of(bug).run]}")
        return 0
    bug = BUGS[given.bug - 1]
    if given.guess:
        message = check(bug, given.guess)
        print(message or f"right: {mistake_of(bug).mistake}. {bug.explanation}")
        return 1 if message else 0
    if given.hint:
        print(bug.hints[given.hint - 1])
    elif given.answer:
        print(answer(bug))
    else:
        print(describe(given.bug, bug))
    return 0


if __name__ == "__main__":
    sys.exit(main())
