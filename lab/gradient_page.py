"""The page and figure of lab/gradient.py, from its csv files alone, and what was expected."""
import math
from pathlib import Path

from lab.report import how_to_rerun, title
from support.plot import read_csv, save_figure

BATCH = 256                     # answers of one estimate
NONE = "none found"
SFT, HALFWAY = "the SFT model", "halfway through GRPO"
IN_TABLE = ["REINFORCE", "REINFORCE, mean of the batch", "REINFORCE++", "ReMax", "RLOO, G = 2",
            "RLOO, G = 8", "RLOO, G = 64", "GRPO, G = 2", "GRPO, G = 8", "GRPO, G = 64",
            "PPO, new critic, λ = 0.95", "PPO, warmed-up critic, λ = 0.95",
            "PPO, warmed-up critic, λ = 1", "PPO, exact critic, λ = 0", "PPO, exact critic, λ = 1"]

MEAN, RLOO, GRPO = "REINFORCE, mean of the batch", "RLOO, G = 8", "GRPO, G = 8"
# What is it worth? What and whose answers are counted; against what, and whose.
WORTH = [
    ("the batch's mean as a baseline", MEAN, "no baseline", "REINFORCE"),
    ("a mean for each problem (RLOO, G = 8)", RLOO, "the batch's mean", MEAN),
    ("GRPO, G = 8", GRPO, "RLOO", RLOO),
    ("of GRPO, only the division by the standard deviation", f"{GRPO}, only / std", "RLOO", RLOO),
    ("of GRPO, only the division by the length", f"{GRPO}, only / length", "RLOO", RLOO),
    ("an exact critic, λ = 0", "PPO, exact critic, λ = 0", "RLOO", RLOO)]


class Found:
    """The numbers of gradient.csv, by policy, method and column."""

    def __init__(self, rows: list[dict]):
        self.policies = list(dict.fromkeys(row["policy"] for row in rows))
        self.rows = {(row["policy"], row["method"]): row for row in rows}

    def __call__(self, policy: str, method: str, column: str) -> float:
        return float(self.rows[policy, method][column])

    def times(self, method: str, base: str, column: str = "needed") -> list[float]:
        """How often the base's number of answers (or noise) a method needs, at each policy."""
        return [self(p, method, column) / self(p, base, column) for p in self.policies]

    def limit(self, policy: str, method: str) -> float:
        """The cosine of the mean estimate with the truth; nan if it is known to no better than
        ±0.25: a mean that is short against its noise."""
        error = self(policy, method, "direction_error")
        return self(policy, method, "direction") if error < 0.25 else math.nan

    def limits(self, *methods: str) -> list[float]:
        return [self.limit(p, method) for method in methods for p in self.policies]


def expectations(found: Found) -> list[tuple[str, list[float], bool]]:
    """What was written down before the run, the numbers that decide, and whether it came out.
    Numbers are those of the first policy, then of the second."""
    baseline = found.times("REINFORCE", MEAN, "noise")
    group = found.times(RLOO, MEAN)
    two, many = found.times("RLOO, G = 2", RLOO), found.times("RLOO, G = 64", RLOO)
    dr_grpo = found.times("Dr. GRPO, G = 8", RLOO)
    both = found.limits(GRPO)
    std = found.limits(f"{GRPO}, only / std")
    remax = found.times("ReMax", MEAN)
    plus = found.times("REINFORCE++", MEAN, "noise")
    new = found.limits("PPO, new critic, λ = 0")
    exact = found.times("PPO, exact critic, λ = 0", RLOO)
    exact_mean = found.times("PPO, exact critic, λ = 1", RLOO)
    warm = found.limits("PPO, warmed-up critic, λ = 1", "PPO, warmed-up critic, λ = 0.95",
                        "PPO, warmed-up critic, λ = 0")
    return [
        ("The batch's mean as a baseline leaves E[(r - b)²] = p (1 - p) of E[r²] = p: without it "
         "there is 1 / (1 - p) times the noise, 1.7 times at the SFT model (1.3 to 2.2), over 5 "
         "times halfway.", baseline, 1.3 < baseline[0] < 2.2 and baseline[1] > 5),
        ("A mean for each problem (RLOO, G = 8) adds little to that of the batch: 0.8 to 1.3 times "
         "the answers. What an answer earns depends on whether it thinks, not on the problem.",
         group, all(0.8 < x < 1.3 for x in group)),
        ("Two answers make a noisy mean: G = 2 needs over 1.3 times the answers of G = 8.",
         two, min(two) > 1.3),
        ("And 64 answers leave four problems: G = 64 needs over 1.2 times the answers of G = 8.",
         many, min(many) > 1.2),
        ("Dr. GRPO is RLOO times (G - 1) / G: the same, on the same batches.",
         dr_grpo, all(abs(x - 1) < 0.01 for x in dr_grpo)),
        ("GRPO divides by length, and where right answers are the long ones that bends: its mean "
         "has a cosine under 0.95 at the SFT model, over 0.95 halfway, where all are long.",
         both, both[0] < 0.95 < both[1]),
        ("The standard deviation alone bends less: over 0.95 at both.", std, min(std) > 0.95),
        ("ReMax's greedy answer is a coarse baseline and a sample more: over 1.5 times the answers "
         "of the batch's mean.", remax, min(remax) > 1.5),
        ("REINFORCE++ is the batch's mean, by token: 0.75 to 1.25 times its noise.",
         plus, all(0.75 < x < 1.25 for x in plus)),
        ("λ = 0 with a new critic credits the last token only: the mean's cosine is under 0.5.",
         new, max(new) < 0.5),
        ("λ = 0 with an exact critic credits the token that decides: at most a third of the "
         "answers of RLOO with G = 8.", exact, max(exact) < 1 / 3),
        ("λ = 1 with an exact critic is only a better baseline: a third of them to as many.",
         exact_mean, all(1 / 3 < x < 1 for x in exact_mean)),
        ("A warmed-up critic has no bias with λ = 1 (over 0.95), hardly any with 0.95 (over 0.95), "
         "and too much with 0 (under 0.9).", warm, min(warm[:4]) > 0.95 and max(warm[4:]) < 0.9),
    ]


def count(x: float) -> str:
    """A number of answers, to two digits."""
    if not math.isfinite(x):
        return NONE
    digits = max(0, math.floor(math.log10(max(x, 1))) - 1)
    return f"{round(x, -digits):,.0f}"


def with_interval(found: Found, policy: str, method: str) -> str:
    """The answers needed, and the 95 % interval; "?" if that is wider than a factor of 20."""
    needed, error = found(policy, method, "needed"), found(policy, method, "needed_error")
    if not math.isfinite(needed):
        return count(needed)
    if not error < 3:
        return "?"
    factor = math.exp(error)
    return f"{count(needed)} ({count(needed / factor)} to {count(needed * factor)})"


def list_of(values: list[float], joint: str) -> str:
    return joint.join(shown(x) for x in values)


def shown(x: float) -> str:
    return "?" if math.isnan(x) else f"{x:.2f}"


def headline(found: Found) -> str:
    """The figure's title: a line for each policy."""
    lines = []
    for p in found.policies:
        needed = [count(found(p, method, "needed"))
                  for method in ("REINFORCE", MEAN, RLOO, "PPO, exact critic, λ = 0")]
        lines.append("At {}, a cosine of 0.9 takes {} answers without a baseline, {} with the "
                     "batch's mean, {} with RLOO's groups of 8, {} with an exact critic."
                     .format(p, *needed))
    return "\n".join(lines).replace("At halfway", "Halfway")


def worth(found: Found, say=str) -> list[str]:
    """A table: how many times the answers of another method each needs."""
    lines = [f"| | {say('against')} | {' | '.join(map(say, found.policies))} |",
             "|---" * (2 + len(found.policies)) + "|"]
    for what, method, base_name, base in WORTH:
        numbers = " | ".join(shown(x) for x in found.times(method, base))
        lines.append(f"| {say(what)} | {say(base_name)} | {numbers} |")
    return lines


def on_baselines(policies: list[dict], say=str) -> list[str]:
    """Why the mean reward is not the best baseline, where it is not."""
    if not all(float(row["best_baseline"]) < float(row["accuracy"]) / 2 for row in policies):
        return []
    where = say("{:.2f} where {:.2f} of answers are right")
    numbers = [where.format(float(row["best_baseline"]), float(row["accuracy"]))
               for row in policies]

    def of_all(column):
        return list_of([float(row[column]) for row in policies], say(" and "))

    text = say(
        "The mean reward is not the best baseline. A baseline b leaves the noise "
        "E[(r - b)² |∇log π|²]. Wrong answers are improbable, so their ∇log π is long: with b = 0 "
        "they do not count, with b > 0 they do. The best constant is "
        "E[r |∇log π|²] / E[|∇log π|²]: {}. By this formula it leaves {} of the noise of no "
        "baseline, and the mean reward {}. A verifier that says 0 and 1 is near the best by "
        "itself. One that says -1 and 1 is the same with a baseline of a half.")
    return [text.format(say(", ").join(numbers), of_all("best_leaves"), of_all("mean_leaves")), ""]


def on_continuations(found: Found, policy: str, say=str) -> str:
    """What the exact critic's own noise costs: it falls as 1 / (number of continuations)."""
    exact = found(policy, "PPO, exact critic, λ = 0", "noise")
    half = found(policy, "PPO, exact critic, half of the continuations, λ = 0", "noise")
    if math.isnan(exact + half):
        return say("What its own noise costs was not measured.")
    return say("With λ = 0 its noise per answer is {:.1f} times |∇J|², with half of the "
               "continuations {:.1f}, so with endless ones about {:.1f}.").format(
                   exact, half, 2 * exact - half)


def on_policy(found: Found, row: dict, say) -> str:
    """A policy's own numbers."""
    number = {column: float(x) for column, x in row.items() if column != "policy"}
    told = say(
        "{}: {:.2f} of answers are right, {:.1f} tokens long (right ones {:.1f}). The truth: {:,} "
        "answers to {:,} problems; its halves have cosine {:.3f}. A right answer's |∇log π|² is "
        "{:.3f} of a wrong one's. The exact critic is off by {:.2f} (root mean square), and "
        "explains {:.2f} of the rewards' variance; the warmed-up one {:.2f}. {}")
    return told.format(
        say(row["policy"]), number["accuracy"], number["length"], number["length_right"],
        int(number["answers"]), int(number["problems"]), number["halves"],
        number["score_right"] / number["score_wrong"], number["value_error"],
        number["exact_explains"], number["warm_up_explains"],
        on_continuations(found, row["policy"], say))


def page(found: Found, policies: list[dict], say=str) -> str:
    """gradient.md. say: turns an English text into the page's language, see lab/report.py."""
    lines = [title("What are a baseline, a group and a critic worth?", say), "",
             say("Each method's gradient from 256 answers, against the true one, at two fixed "
                 "policies. How many times the answers of another method does it need, until the "
                 "cosine of the two is 0.9?"), "",
             *worth(found, say), "", *on_baselines(policies, say)]
    header = [say("{}: limit | at 256 | for 0.9").format(say(p)) for p in found.policies]
    lines += [f"| | {' | '.join(header)} |", "|---" * (1 + 3 * len(header)) + "|"]
    for method in IN_TABLE:
        cells = []
        for p in found.policies:
            interval = with_interval(found, p, method)
            cells += [shown(found.limit(p, method)), shown(found(p, method, "batches")),
                      interval.replace(" to ", say(" to ")).replace(NONE, say(NONE))]
        lines.append(f"| {say(method)} | {' | '.join(cells)} |")
    lines += ["", say(
        "limit: the cosine of the mean estimate with the truth, 1 without bias (more is the noise "
        "of measuring; ?: known to no better than ±0.25). at 256: the cosine of one batch, the "
        "mean of many. for 0.9: answers needed for that cosine; a greedy answer counts, what a "
        "critic learned from does not. In brackets: 95 %, from one block of problems to another; "
        "critics are measured on fewer answers. All this is of one gradient, in the plain metric "
        "of the parameters. It says nothing of Adam's steps, or of a second update on the same "
        "answers."), ""]
    lines += [f"* {on_policy(found, row, say)}" for row in policies]
    lines += ["", say(
        "What was expected, written down before this run (after a trial with 32 problems, and not "
        "changed for it); the numbers, first policy, then second; and whether it came out:"), ""]
    for claim, numbers, is_so in expectations(found):
        verdict = "yes" if is_so else "no"
        if all(math.isnan(x) for x in numbers):
            verdict = "too noisy to say"
        lines.append(say("* {} {}: **{}**.").format(
            say(claim), list_of(numbers, say(", ")), say(verdict)))
    lines += ["", f"![{say('Cosine at 256 answers, and answers for a cosine of 0.9')}]"
                  "(gradient.png)", "",
              how_to_rerun("compare.py gradient", "lab/gradient.py",
                           "the SFT model of seed 0, and GRPO after 25 of its 50 steps", say)]
    return "\n".join(lines) + "\n"


def draw(file: Path, rows: list[dict], title: str) -> None:
    """Methods as rows: the cosine of a batch, and how many answers 0.9 takes."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = [row for row in rows if "half of" not in row["method"]]
    names = list(dict.fromkeys(row["method"] for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.27 * len(names) + 1.8), sharey=True,
                                         layout="constrained")
    finite = [float(row["needed"]) for row in rows if math.isfinite(float(row["needed"]))]
    edge = 3 * max(finite)
    for row in rows:
        i = policies.index(row["policy"])
        y = -names.index(row["method"]) + 0.16 - 0.32 * i
        number = {key: float(x) for key, x in row.items() if key not in ("policy", "method")}
        left.plot([number["low"], number["high"]], [y, y], color=f"C{i}", linewidth=1)
        left.plot(number["batches"], y, "o", color=f"C{i}", ms=4)
        if number["direction_error"] < 0.25:
            left.plot(number["direction"], y, "D", color=f"C{i}", ms=4, fillstyle="none")
        if math.isfinite(number["needed"]):
            # An interval that has no end, or more than a factor of 20, is drawn as one of 20.
            error = number["needed_error"] if math.isfinite(number["needed_error"]) else 3
            factor = math.exp(min(error, 3))
            ends = number["needed"] / factor, min(number["needed"] * factor, edge)
            right.plot(ends, [y, y], color=f"C{i}", linewidth=1)
            right.plot(number["needed"], y, "o", color=f"C{i}", ms=4)
        else:
            right.plot(edge, y, ">", color=f"C{i}", ms=4)
    for i, policy in enumerate(policies):
        left.plot([], [], "o-", color=f"C{i}", ms=4, label=policy)
    left.plot([], [], "D", color="0.4", ms=4, fillstyle="none", label="of the mean: the limit")
    right.plot([], [], ">", color="0.4", ms=4, label="no number of answers found")
    left.set_yticks([-i for i in range(len(names))], names, fontsize=8)
    left.set(xlim=(-0.25, 1.1), ylim=(-len(names) + 0.4, 0.6),
             xlabel="cosine of one batch with the truth (line: 5 to 95 % of batches)")
    right.set(xscale="log", xlabel="answers for a cosine of 0.9 (line: 95 % interval)")
    right.axvline(BATCH, color="0.6", linewidth=0.8, linestyle="--")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        for i in range(len(names) - 1):
            if names[i].split()[0].strip(",") != names[i + 1].split()[0].strip(","):
                axis.axhline(-i - 0.5, color="0.8", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    save_figure(figure, file, [rows, title, draw], dpi=110)
    plt.close(figure)


def report(out: Path) -> None:
    """The page and the figure, from the csv files alone."""
    rows, policies = read_csv(out / "gradient.csv"), read_csv(out / "gradient_policies.csv")
    found = Found(rows)
    draw(out / "gradient.png", rows, headline(found))
    text = page(found, policies)
    (out / "gradient.md").write_text(text, encoding="utf-8")
    print(text)
