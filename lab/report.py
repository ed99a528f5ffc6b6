"""The lab's numbers, tables, verdicts and figures, from csv files alone.

A row of an experiment's csv file is a step of a run: line, setting, seed, step, and what was
measured. A number of a setting is, for each seed, the mean of the last fifth of the steps.
"""
import csv
import io
import os
import textwrap
from math import nan
from pathlib import Path
from statistics import correlation, mean, stdev

from lab.experiments import EXPERIMENTS, KL, RIGHT, Experiment
from support.plot import read_csv, save_figure

# The columns of results.csv, and how results.md shows them: of all methods, and of those that a
# reward model rewards. pairs: the share of held-out ones that it ranks right. peak: see peaks.
OF_ALL = {
    "greedy": ".3f", "sampled": ".3f", "pass@8": ".3f", "length": ".1f", "kl_to_sft": ".2f",
    "samples": ",.0f", "seconds": ".0f", "models": ".0f",
}
REWARDED_BY_MODEL = {
    "pairs": ".3f", "peak_greedy": ".3f", "peak_sampled": ".3f", "score_at_peak": ".2f",
    "score": ".2f",
}
COLUMNS = OF_ALL | REWARDED_BY_MODEL
# Student's t at 5 %, two-sided, by degrees of freedom.
T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
LENGTH = ("answer length (tokens)", "setting", "length")
# What stands below a panel, by what it is drawn over.
XLABELS = {
    "step": "step",
    "answer_kl": "√KL to the start (√nats per answer)",
    "trained": "right answers at the trained task (share)",
}


# ------------------------------------------------------------------------------------------ numbers

def write_whole(file: Path, text: str) -> None:
    """Under another name first: the file is there only when all of it is."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8", newline="")
    os.replace(part, file)


def write_csv(file: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue())


def grouped(rows: list[dict], key) -> dict:
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def name(row: dict) -> str:
    return ", ".join(filter(None, (row["line"], row["setting"])))


def by_seed(rows: list[dict]) -> list[list[dict]]:
    return list(grouped(rows, lambda row: row["seed"]).values())


def ends(rows: list[dict], column: str) -> dict[str, list[float]]:
    """name -> for each seed, the mean of what was measured in the last fifth of the steps."""
    found = {}
    for which, some in grouped(rows, name).items():
        for mine in by_seed(some):
            measured = [row for row in mine if row[column]]
            after = 0.8 * int(measured[-1]["step"])
            late = [float(row[column]) for row in measured if int(row["step"]) > after]
            found.setdefault(which, []).append(mean(late))
    return found


def std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def shown(values: list[float], form: str = "") -> str:
    form = form or (".2f" if mean(values) < 100 else ".0f")
    spread = f" ± {std(values):{form}}" if std(values) else ""
    # z: no minus before a zero.
    return f"{mean(values):z{form}}{spread}"


def student_t(freedom: int) -> float:
    """T, and beyond it the first terms of an expansion in 1 / freedom: good to 0.003."""
    return T.get(freedom) or 1.96 + 2.37 / freedom + 2.82 / freedom ** 2


def difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """The mean of the differences, seed by seed, and the half-width of its 95 % interval.

    By Student's t of the n differences, with n - 1 degrees of freedom."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n = len(differences)
    half_width = student_t(n - 1) * std(differences) / n ** 0.5 if n > 1 else 0.0
    return mean(differences), half_width


def apart(a: list[float], b: list[float]) -> bool:
    """Do they differ beyond the seeds' spread?"""
    by, half_width = difference(a, b)
    return abs(by) > half_width


def peaks(runs: list[list[dict]]) -> list[dict]:
    """Of each seed's run the best evaluation, by greedy accuracy.

    It is taken to be where the other seeds are best: picked by the seed's own accuracy it would be
    partly luck, and a fall from it nothing but the luck's end."""
    found = []
    for mine in runs:
        others = [run for run in runs if run is not mine] or runs
        accuracy = [mean(float(run[at]["eval_greedy"]) for run in others)
                    for at in range(len(mine))]
        found.append(mine[accuracy.index(max(accuracy))])
    return found


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's: the correlation of the ranks; nan where all values of one side are equal."""
    def ranks(values):
        # Equal values share the mean of their ranks.
        return [sum(y < x for y in values) + (sum(y == x for y in values) - 1) / 2
                for x in values]
    a, b = ranks(a), ranks(b)
    constant = len(set(a)) == 1 or len(set(b)) == 1
    return nan if constant else correlation(a, b)


# -------------------------------------------------------------------------------------------- pages
# `say` turns an English text of a page into the page's language: docs/lab_chinese.py.

def against(found: dict[str, list[float]], base: str, say=str) -> str:
    """Which settings differ from `base` beyond the seeds' spread, and to which side.

    found: name -> a number for each seed"""
    if len(found[base]) == 1:
        return say("One seed, so there is no spread to hold differences against.")
    higher, lower = [], []
    for which, values in found.items():
        if apart(values, found[base]):
            (higher if mean(values) > mean(found[base]) else lower).append(say(which))
    if not higher and not lower:
        return say("Against {}, no difference beyond the seeds' spread.").format(say(base))
    told = []
    if higher:
        told.append(say("higher with {}").format(say(", ").join(higher)))
    if lower:
        told.append(say("lower with {}").format(say(", ").join(lower)))
    text = say("Against {}, beyond the seeds' spread: {}.")
    return text.format(say(base), say("; ").join(told))


def table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|",
                      *(f"| {' | '.join(cells)} |" for cells in lines)])


def measured(e: Experiment) -> dict[str, str]:
    """What the panels show -> its column. Two panels may draw one column over different things."""
    return {label: y for label, _, y in e.panels}


def table_of_ends(rows: list[dict], e: Experiment, say) -> str:
    """A line for each setting; bold where it differs from e.base beyond the seeds' spread."""
    columns = {label: ends(rows, y) for label, y in measured(e).items()}
    lines = []
    for which in grouped(rows, name):
        cells = [say(which)]
        for label, found in columns.items():
            form = ".3f" if "(share)" in label or "entropy" in label else ""
            cell = shown(found[which], form)
            differs = len(found[which]) > 1 and apart(found[which], found[e.base])
            cells.append(f"**{cell}**" if differs else cell)
        lines.append(cells)
    return table(["", *map(say, columns)], lines)


def table_of_humps(rows: list[dict], say) -> str:
    """Greedy accuracy and the reward model's score, at the best evaluation and at the last; bold
    where true accuracy falls beyond the seeds' spread while the score rises."""
    lines = []
    for which, some in grouped(rows, name).items():
        runs = [[row for row in mine if row["eval_greedy"] and row["reward"]]
                for mine in by_seed(some)]
        at_best, at_end = peaks(runs), [mine[-1] for mine in runs]
        best = [float(row["eval_greedy"]) for row in at_best]
        last = [float(row["eval_greedy"]) for row in at_end]
        score = [float(row["reward"]) for row in at_best]
        last_score = [float(row["reward"]) for row in at_end]
        has_fallen = (len(best) > 1 and mean(last) < mean(best) and apart(best, last)
                      and mean(last_score) > mean(score))
        end = shown(last, ".3f")
        lines.append([say(which), shown(best, ".3f"), f"**{end}**" if has_fallen else end,
                      shown(score), shown(last_score)])
    header = ["greedy accuracy at its best", "at the end", "score at the best", "score at the end"]
    return table(["", *map(say, header)], lines)


def title(text: str, say=str) -> str:
    return f"# {say(text)}"


def how_to_rerun(command: str, file: str, settings: str = "", say=str) -> str:
    """A page's last line."""
    place = f"[`{file}`](../../{file})"
    if settings:
        place = say("{} ({})").format(place, say(settings))
    return say("Settings: {}. Again: {}.").format(place, f"`python {command}`")


def experiment_page(which: str, rows: list[dict], say=str) -> str:
    e = EXPERIMENTS[which]
    n_seeds = len({row["seed"] for row in rows})
    paragraphs = [title(e.question, say)]
    if e.expected:
        paragraphs.append(say("Expected, written before the runs: {}").format(say(e.expected)))
    if e.base:
        paragraphs += [
            table_of_ends(rows, e, say),
            say("Mean ± standard deviation over {} seeds; of what is measured at several steps, "
                "the last fifth of them. Bold: differs from {} beyond the seeds' spread.").format(
                    n_seeds, say(e.base))]
        # Of more settings the bold numbers tell more than a sentence does.
        if len(grouped(rows, name)) <= 8:
            verdicts = [f"{say(label)}{say(': ')}{against(ends(rows, y), e.base, say)}"
                        for label, y in measured(e).items()]
            paragraphs.append("\n".join(f"* {verdict}" for verdict in verdicts))
    else:
        paragraphs += [
            table_of_humps(rows, say),
            say("Mean ± standard deviation over {} seeds. Bold: falls beyond the seeds' spread "
                "while the score rises.").format(n_seeds)]
    file = "lab/experiments.py" if e.runs else f"lab/{which}.py"
    paragraphs += [f"![{say(e.question)}]({which}.png)",
                   how_to_rerun(f"compare.py {which}", file, e.settings, say)]
    return "\n\n".join(paragraphs) + "\n"


def results_page(rows: list[dict], say=str) -> str:
    """Means and standard deviations over the seeds."""
    methods = grouped(rows, lambda row: row["method"])
    policies = [m for m in methods if methods[m][0]["sampled"]]

    def values(method, column):
        return [float(row[column]) for row in methods[method] if row[column]]

    def cell(method, column):
        found = values(method, column)
        return shown(found, COLUMNS[column]) if found else ""

    def of_columns(columns, names):
        header = [say(column.replace("_", " ")) for column in columns]
        lines = [[say(method), *(cell(method, column) for column in columns)] for method in names]
        return table(["", *header], lines)

    n_seeds = len({row["seed"] for row in rows})
    sampled = {method: values(method, "sampled") for method in policies}
    peaks = ["peak_greedy", "greedy", "peak_sampled", "sampled", "score_at_peak", "score"]
    return "\n\n".join([
        title("All methods, from the same SFT models", say),
        say("Mean ± standard deviation over {} seeds.").format(n_seeds),
        of_columns(OF_ALL, policies),
        say("length: tokens per answer. kl to sft: exact, in nats per answer. samples: answers "
            "that the policy sampled to learn from; with DPO and its relatives, those that its "
            "pairs were found among. seconds: of processor time, of the training script. models: "
            "full models in memory while it trains; DPO's reference is gone by then, its "
            "log-probs were taken before."),
        f"{say(RIGHT[0])}{say(': ')}{against(sampled, 'GRPO', say)}",
        say("The reward model ranks {} of held-out pairs right. PPO on it (RM), at its best "
            "evaluation (the one at which the other seeds are best) and at the end:").format(
                cell("reward model", "pairs")),
        of_columns(peaks, [m for m in policies if values(m, "score")]),
        f"![{say(RIGHT[0])}](methods.png)",
        how_to_rerun("compare.py", "lab/experiments.py", say=say),
    ]) + "\n"


# ------------------------------------------------------------------------------------------ figures

def over_settings(axis, rows: list[dict], label: str, y: str, base: str) -> None:
    """Each setting's difference to `base`: a dot for each seed, the mean and its 95 % interval."""
    found = ends(rows, y)
    differences = [[x - b for x, b in zip(values, found[base])] for values in found.values()]
    low, high = limits(differences, least=0.1 if "(share)" in label else 0.0)
    for at, (values, mine) in enumerate(zip(found.values(), differences)):
        by, half_width = difference(values, found[base])
        color = "C1" if len(values) > 1 and abs(by) > half_width else "0.45"
        if low < by < high:
            axis.plot(mine, [-at] * len(mine), ".", color=color, ms=4, alpha=0.5)
            axis.plot([by - half_width, by + half_width], [-at, -at], color=color)
            axis.plot(by, -at, "o", color=color, ms=5)
        else:
            edge, side = (low, "left") if by < 0 else (high, "right")
            axis.text(edge, -at, f" {by:+.3g} ", ha=side, va="center", color=color, fontsize=8)
    axis.set_yticks([-at for at in range(len(found))], list(found), fontsize=8)
    axis.set(xlim=(low, high), ylim=(0.6 - len(found), 0.6))
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_xlabel(f"{label}:\ndifference to {base} ({mean(found[base]):.3g})", fontsize=9)


def limits(differences: list[list[float]], least: float) -> tuple[float, float]:
    """The ends of an axis: wide enough for all seeds, and never so narrow that it makes a mountain
    of noise. Where a quarter of the settings or fewer would squeeze the others, without those."""
    largest = sorted(max(map(abs, mine)) for mine in differences)
    usual = largest[3 * (len(largest) - 1) // 4]
    if 0 < 4 * usual < largest[-1]:
        differences = [mine for mine in differences if max(map(abs, mine)) <= usual]
    low, high = min(map(min, differences)), max(map(max, differences))
    room = max(0.2 * (high - low), (least - (high - low)) / 2) or 1.0
    return low - room, high + room


def over_steps(axis, rows: list[dict], y: str, color: str, label: str) -> None:
    """The seeds' mean and range."""
    steps = grouped([row for row in rows if row[y]], lambda row: int(row["step"]))
    found = [[float(row[y]) for row in at] for at in steps.values()]
    axis.plot([*steps], [mean(v) for v in found], color=color, label=label,
              marker="o" if y.startswith("eval") else None, ms=3)
    axis.fill_between([*steps], [min(v) for v in found], [max(v) for v in found],
                      color=color, alpha=0.2)


def over_way(axis, rows: list[dict], x: str, y: str, color: str, label: str) -> None:
    """One measurement over another, or over the root of the KL: each seed's way, faint, and the
    mean of the seeds step by step."""
    def place(row):
        value = float(row[x])
        return max(0.0, value) ** 0.5 if x == "answer_kl" else value
    rows = [row for row in rows if row[y]]
    for way in by_seed(rows):
        axis.plot(list(map(place, way)), [float(row[y]) for row in way], color=color,
                  linewidth=0.7, alpha=0.3)
    steps = grouped(rows, lambda row: int(row["step"])).values()
    axis.plot([mean(map(place, at)) for at in steps],
              [mean(float(row[y]) for row in at) for at in steps],
              ".-", color=color, ms=5, label=label)


def spread(places: list[float], low: float, high: float, gap: float) -> list[float]:
    """Sorted places, moved so that any two are at least `gap` apart: up from `low`, and where that
    goes above `high`, down again."""
    moved = []
    for place in places:
        lowest = moved[-1] + gap if moved else low
        moved.append(max(place, lowest))
    for i in reversed(range(len(moved))):
        highest = moved[i + 1] - gap if i + 1 < len(moved) else high
        moved[i] = min(moved[i], highest)
    return moved


def label_lines(axis) -> None:
    """Each line's name beside its end, moved up or down where two would overlap."""
    lines = [line for line in axis.get_lines() if not line.get_label().startswith("_")]
    lines.sort(key=lambda line: line.get_ydata()[-1])
    low, high = axis.get_ylim()
    gap = (high - low) / 16
    places = spread([line.get_ydata()[-1] for line in lines], low, high - gap / 2, gap)
    for line, place in zip(lines, places):
        axis.annotate(line.get_label(), (line.get_xdata()[-1], place), xytext=(5, 0),
                      textcoords="offset points", color=line.get_color(), fontsize=8,
                      verticalalignment="center")
    # Room for the names, without numbers below it: a letter takes about a 64th of the axis.
    left, right = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if left <= tick <= right]
    widths = [right - left]
    for line in lines:
        share = min(0.03 + len(line.get_label()) / 64, 0.6)
        widths.append((line.get_xdata()[-1] - left) / (1 - share))
    axis.set_xlim(left, left + max(widths))
    axis.set_xticks(ticks)


def panel(axis, rows: list[dict], label: str, x: str, y: str, title: str = "",
          base: str = "") -> None:
    """A column over steps, over another column, or setting by setting against one of them."""
    if x == "setting":
        over_settings(axis, rows, label, y, base)
        axis.grid(axis="x", alpha=0.3)
    else:
        for i, (line, some) in enumerate(grouped(rows, name).items()):
            if x == "step":
                over_steps(axis, some, y, f"C{i}", line)
            else:
                over_way(axis, some, x, y, f"C{i}", line)
        axis.set_xlabel(XLABELS[x])
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if "(share)" in label:
            axis.set_ylim(-0.02, 1.02)
        label_lines(axis)
    axis.set_title(title, loc="left", fontsize=9)


def draw(file: Path, panels: list[tuple], title: str = "") -> None:
    """A figure of panels: (rows, y label, x, y, a title, what settings are held against).

    Four stand two by two. Panels of settings stand side by side, and share the settings' names."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    high, wide = (2, 2) if len(panels) == 4 else (1, len(panels))
    n_settings = [len(grouped(rows, name)) for rows, _, x, *_ in panels if x == "setting"]
    height = max([3.8, *(0.26 * n + 1.6 for n in n_settings)])
    figure, axes = plt.subplots(high, wide, figsize=(4.2 * wide + 1, height * high),
                                layout="constrained", squeeze=False)
    for at, (axis, arguments) in enumerate(zip(axes.flat, panels)):
        panel(axis, *arguments)
        if at % wide and arguments[2] == "setting" and panels[at - 1][2] == "setting":
            axis.set_yticklabels([])
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    code = [draw, panel, over_settings, limits, over_steps, over_way, spread, label_lines, name,
            by_seed, ends, std, student_t, difference]
    save_figure(figure, file, [panels, title, *code], dpi=110)
    plt.close(figure)


def draw_experiment(file: Path, which: str, rows: list[dict]) -> None:
    e = EXPERIMENTS[which]
    panels = []
    for label, x, y in [panel for panel in e.panels if panel[1]]:
        title = against(ends(rows, y), e.base) if e.base else ""
        # Over settings, the figure shows which differ.
        panels.append((rows, label, x, y, "" if x == "setting" else wrapped(title), e.base))
    draw(file, panels, e.question)


def wrapped(text: str, width: int = 62) -> str:
    return "\n".join(textwrap.wrap(text, width))


def draw_results(folder: Path, rows: list[dict]) -> None:
    drawn = read_csv(folder / "curves.csv")
    right = [row for row in drawn if "RM" not in row["setting"]]
    fooled = [row for row in drawn if "RM" in row["setting"]]
    draw(folder / "compare.png", [
        (right, "right answers, sampled (share)", "step", "eval_sampled",
         "rewarded for right answers"),
        (right, "answer length (tokens)", "step", "response_length",
         "… it comes to think first"),
        (fooled, "the reward model's score", "step", "reward",
         "rewarded by a model of them"),
        (fooled, "right answers, greedy (share)", "step", "eval_greedy",
         "… which it learns to fool")])
    methods = [{"line": "", "setting": row["method"], "step": "1", **row}
               for row in rows if row["sampled"]]
    draw(folder / "methods.png",
         [(methods, *shown_as, "", "GRPO") for shown_as in (RIGHT, KL, LENGTH)])


def report(folder: Path, which: str) -> None:
    """Figures and the page, from the csv files alone."""
    rows = read_csv(folder / f"{which}.csv")
    if which == "results":
        draw_results(folder, rows)
        text = results_page(rows)
    else:
        draw_experiment(folder / f"{which}.png", which, rows)
        text = experiment_page(which, rows)
    (folder / f"{which}.md").write_text(text, encoding="utf-8")
    print(text)
