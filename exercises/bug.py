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
sys.path += [str(ROOT), str(ROOT / "docs"), str(ROOT / "tests")]

from effects import (NUMBERS_OF_RUNS, curve, draw_panel, effect, healthy_band, kind,  # noqa: E402
                     runs, show, typical_spread, value)
from mutation_runs import RUNS  # noqa: E402
from mutations import MUTATIONS, NUMBERS, Mutation  # noqa: E402
from support.cli import quiet_pipe  # noqa: E402
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
    Bug("groups_interleaved", ("reward", "response_length", "no_signal", "entropy"),
        ("The reward rises, but at half the speed: there is a signal, and something dilutes it.",
         "Late in training all answers to an easy prompt are right, and such a group should have "
         "no signal. Here every group has one until the end: what is in a group?"),
        "no_signal is 0 to the end, while more than half of the answers are right: groups whose "
        "answers are all to one prompt would often agree. Compared with answers to other prompts, "
        "one to an easy prompt is good whatever it says."),
    Bug("k1_reversed", ("answer_kl", "kl", "kl_exact", "grad_norm", "reward"),
        ("One of these is an estimate that may be negative now and then, by chance. In every step?",
         "Compare kl with kl_exact: one is an estimate from the samples, the other a sum over the "
         "vocabulary. Which of them can't be wrong by the sign of x?"),
        "answer_kl is negative in every step, where a mean of log π - log ref must be positive up "
        "to noise; kl_exact, which doesn't use that difference, is positive. k3 of the wrong x "
        "explodes where the policy is much surer than the reference, and the gradient with it."),
    Bug("score_on_last_column", ("value_error", "explained_variance", "value_clip_fraction",
                                 "reward"),
        ("The policy learns, somewhat worse. Look at what the critic is asked to predict.",
         "In the first step V is 0, so value_error is the mean squared return. It is a third of "
         "what it should be: most answers got no reward, right or not."),
        "In the first step the value error is 0.09, where healthy runs have 0.25: most returns "
        "are 0, as only the longest answers of a batch reach the last column. Whether an answer "
        "is among them the critic can't know, so its error stays."),
    Bug("one_noise", ("reward", "response_length", "no_signal", "grad_norm"),
        ("The reward jumps between 0 and 1: as if there were one answer in a batch, not 64.",
         "no_signal is 1 from the first step on. Groups all right and all wrong: the answers of a "
         "group agree even before anything was learned."),
        "no_signal is 1 in every step, and grad_norm next to 0: all answers of a group are the "
        "same, so no answer is better than its group."),
    Bug("temperature_not_trained", ("clip_fraction", "approx_kl", "kl", "reward"),
        ("The reward looks right. Which number should be near 0 when a step makes two small "
         "updates, and isn't?",
         "approx_kl is the distance from the policy that sampled to the one that is trained. The "
         "updates are no larger than in a healthy run: see kl."),
        "approx_kl is 0.02 in every step, a hundred times the healthy one late in the run, "
        "without a larger kl: the two policies differ before any update, as one has the sampling "
        "temperature and the other has not."),
    Bug("tool_trained_on", ("reward", "kl_exact", "answer_kl", "entropy"),
        ("It learns more slowly, and goes further from its reference than healthy runs do.",
         "Entropy stays high: it is counted over tokens that the policy can't be sure of, for it "
         "has no way of knowing them."),
        "KL and entropy are counted over what is trained on. Both are high, because a "
        "calculator's result is among it, which the policy need not know and can't guess."),
    Bug("targets_whitened", ("value_error", "explained_variance", "value_clip_fraction",
                             "reward"),
        ("A reward is 0 or 1. How large can the square of V - R become, if R is such a reward?",
         "The critic is asked for something that is not in units of reward, and that changes with "
         "each batch: its mean is 0 and its variance 1 whatever the answers are."),
        "A value error near 1 can't come from rewards of 0 and 1 that are half known: the targets "
        "hold whitened advantages, whose variance is 1 in every batch. The critic then predicts "
        "nothing of use, and learning is slower."),
    Bug("micro_means", ("grad_norm", "reward", "response_length", "kl_exact"),
        ("The curves of what is learned are healthy. One other number is not.",
         "The gradient is clipped to norm 1 afterwards, and Adam divides by its size: a gradient "
         "that is n times too long is hard to see elsewhere. Where does n come from?"),
        "Only grad_norm differs: each micro-batch's loss is a mean of its own, so that their sum "
        "is too long by about the number of micro-batches."),
    Bug("padding_is_action", ("response_length", "finished", "answer_kl", "reward"),
        ("All answers end by themselves, yet the mean length is near the limit from the first "
         "step on.",
         "The reference and the policy agree on real answers. On what do they disagree by twenty "
         "nats, with the wrong sign?"),
        "response_length is 27 before anything was learned, where healthy answers have 11, and "
        "hardly changes: it counts all columns. answer_kl is far below 0, because the policy is "
        "pushed on tokens that were never sampled from it."),
    Bug("cut_off_verified", ("reward", "finished", "response_length", "no_signal"),
        ("Answers have 24 tokens at most here. Which share of them ends by itself, and which share "
         "earns something?",
         "In the healthy run the share that ends goes up, as nothing else is paid. Here it goes "
         "down, and the reward goes up."),
        "In some steps the reward is as high as finished, or higher: an answer that was cut off "
        "earns as much as one that ended, if its last number happens to be right. So the policy "
        "has no reason to end in time."),
    Bug("no_shift", ("reward", "clip_fraction", "kl_exact", "answer_kl"),
        ("The reward falls, although sampling and rewards are healthy. What is pushed up, if not "
         "the sampled tokens?",
         "kl_exact is computed from the same states as the log-probs, and hardly moves at first, "
         "while answer_kl runs away: the log-probs are not those of the sampled tokens."),
        "clip_fraction is ten times the healthy one from the first step, and answer_kl runs to 26 "
        "nats: log-probs of tokens that the state has already seen are tiny, and any step changes "
        "them much. What is learned has nothing to do with the reward."),
    Bug("adaptive_kl_reversed", ("kl_coef", "answer_kl", "kl_exact", "reward"),
        ("The reward is healthy in these few steps. One number goes the other way.",
         "The target is 0.5 nats per answer. What should β do while answer_kl is below it?"),
        "answer_kl is below its target of 0.5, and β grows: a controller that is turned round "
        "pays the policy for what it should allow. In a longer run it comes to a standstill, or "
        "loses all hold."),
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
    lines = ["step" + "".join(f"{column:>22}" for column in bug.columns)]
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
        lines.append(f"{row['step']:>4}" + "".join(f"{cell:>22}" for cell in cells))
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
        return f"no: {name} was run in {script_of(guessed)}; this run is {script_of(mutation)}'s"
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
    with quiet_pipe():
        sys.exit(main())
