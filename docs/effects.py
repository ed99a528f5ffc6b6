"""What each mistake does to a run, in words and curves, from docs/mistakes/runs.csv alone.

Of a number, the healthy runs' spread is their standard deviation, but not less than the same
number's typical one over all commands, as that of three seeds may be small by luck. A difference
counts from four times that spread on, and from a least difference on that is worth a word.
"""
import math
import statistics
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

from mutations import MUTATIONS, NUMBERS, Mutation  # noqa: E402
from support.plot import read_csv  # noqa: E402
from svg import GREY, INK, PALE_LINE, QUIET, Drawing, text_width  # noqa: E402

RUNS_CSV = ROOT / "docs" / "mistakes" / "runs.csv"
FOUR_TIMES = 4.0
RED = "#cf222e"


@dataclass
class Number:
    english: str            # what stands before its value
    chinese: str
    least: float            # difference; of a logarithmic one the factor
    # Differences are those of logarithms, of values of at least this; 0: of the values.
    floor: float = 0.0

    def scale(self, x: float) -> float:
        return math.log(max(x, self.floor)) if self.floor else x


# Of the trained model, measured by the project itself.
OF_MODEL = {
    "right": Number("sampled answers right", "采样回答正确率", 0.05),
    "tokens": Number("tokens per answer", "每个回答的 token 数", 1.5),
    "ended": Number("answers that end", "自己结束的回答", 0.05),
}
# The first also of the model; then what the run itself logs, its mean over the last half of the
# steps.
OTHERS = {
    "kl_at_end": Number("KL per answer at the end", "最后每个回答的 KL", 1.5, 0.01),
    "reward": Number("logged reward", "记录的奖励", 0.08),
    "response_length": Number("logged length", "记录的长度", 1.5),
    "finished": Number("logged finished", "记录的 finished", 0.05),
    "no_signal": Number("groups without signal", "没有信号的组", 0.15),
    "kl_first": Number("kl (k3) in the first step", "第一步的 kl（k3）", 2.0, 0.001),
    "kl": Number("kl (k3)", "kl（k3）", 2.0, 0.001),
    "kl_exact": Number("kl_exact", "kl_exact", 2.0, 0.001),
    "answer_kl": Number("answer_kl", "answer_kl", 0.5),
    "kl_coef": Number("β", "β", 1.3, 0.001),
    "entropy": Number("entropy", "熵", 1.5, 0.001),
    "clip_fraction": Number("clip fraction", "裁剪比例", 2.0, 0.001),
    "approx_kl": Number("approx_kl", "approx_kl", 3.0, 0.001),
    "grad_norm": Number("gradient norm", "梯度范数", 1.5, 0.01),
    "explained_variance": Number("explained variance", "解释方差", 0.2),
    "value_error": Number("value error", "价值误差", 1.5, 0.001),
    "value_clip_fraction": Number("values clipped", "价值裁剪比例", 0.05),
    "loss": Number("loss", "损失", 1.1, 0.01),
    "accuracy": Number("pairs ranked right", "排对的偏好对", 0.05),
    "margin": Number("margin", "差值", 1.5, 0.01),
    "chosen_reward": Number("chosen reward", "被选中的回答的隐式奖励", 0.3),
    "rejected_reward": Number("rejected reward", "被拒绝的回答的隐式奖励", 0.5),
}
NUMBERS_OF_RUNS = {**OF_MODEL, **OTHERS}


@cache
def runs() -> dict[tuple[str, str], dict[int, list[dict]]]:
    """(run, mistake, "" for the healthy one) -> seed -> a row for each step."""
    found = {}
    for row in read_csv(RUNS_CSV):
        seeds = found.setdefault((row["run"], row["mistake"]), {})
        seeds.setdefault(int(row["seed"]), []).append(row)
    return found


def value(rows: list[dict], column: str) -> float | None:
    """Of one run: what was measured at the end, or the mean of what was logged in its last half."""
    if column == "kl_first":
        rows, column = rows[:1], "kl"
    elif column in OF_MODEL or column == "kl_at_end":
        rows = rows[-1:]
    values = [float(row[column]) for row in rows[len(rows) // 2:] if row[column]]
    return statistics.mean(values) if values else None


def values(run: str, mistake: str, column: str) -> list[float]:
    """Of each seed that has it."""
    found = [value(rows, column) for rows in runs().get((run, mistake), {}).values()]
    return [x for x in found if x is not None]


@cache
def typical_spread(column: str) -> float:
    """The root mean square of the healthy runs' standard deviations, over all commands."""
    number, variances = NUMBERS_OF_RUNS[column], []
    for run, mistake in runs():
        scaled = [number.scale(x) for x in values(run, "", column)] if not mistake else []
        if len(scaled) > 1:
            variances.append(statistics.variance(scaled))
    return math.sqrt(statistics.mean(variances)) if variances else 0.0


def distance(mutation: Mutation, column: str) -> float:
    """How many times the spread it is from the healthy runs; 0 if it doesn't count."""
    number = NUMBERS_OF_RUNS[column]
    healthy = [number.scale(x) for x in values(mutation.run, "", column)]
    found = [number.scale(x) for x in values(mutation.run, mutation.name, column)]
    # What a model writes that was nothing sixty steps ago is chance.
    if not healthy or not found or mutation.run == "sft" and column in OF_MODEL:
        return 0.0
    difference = statistics.mean(found) - statistics.mean(healthy)
    spread = statistics.stdev(healthy) if len(healthy) > 1 else 0.0
    spread = max(spread, typical_spread(column), 1e-9)
    least = math.log(number.least) if number.floor else number.least
    far = abs(difference) / spread
    return far if far > FOUR_TIMES and abs(difference) >= least else 0.0


def show(x: float, column: str = "") -> str:
    if column in ("tokens", "response_length"):
        return f"{x:.1f}"
    if column in OF_MODEL:
        return f"{x:.2f}"
    if abs(x) < 1e-6:
        return "0"
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.2f}" if abs(x) >= 0.1 else f"{x:.1g}"


def compared(mutation: Mutation, column: str, language: str) -> str:
    """sampled answers right 0.41 instead of 0.88 ± 0.02"""
    number = NUMBERS_OF_RUNS[column]
    found = show(statistics.mean(values(mutation.run, mutation.name, column)), column)
    healthy = healthy_value(mutation.run, column)
    if language == "English":
        return f"{number.english} {found} instead of {healthy}"
    return f"{number.chinese} {found}，正常为 {healthy}"


def healthy_value(run: str, column: str) -> str:
    """0.88 ± 0.02"""
    found = values(run, "", column)
    spread = f" ± {show(statistics.stdev(found), column)}" if len(found) > 1 else ""
    return show(statistics.mean(found), column) + spread


# What an effect is: in the model, in other numbers alone, none beyond the spread, none at all, no
# run that could show it.
KINDS = ("model", "numbers", "spread", "same", "unseen")


def kind(mutation: Mutation) -> str:
    if not mutation.run:
        return "unseen"
    if stopped_at(mutation) or any(distance(mutation, column) for column in OF_MODEL):
        return "model"
    if any(distance(mutation, column) for column in OTHERS):
        return "numbers"
    return "same" if is_same(mutation) else "spread"


def is_same(mutation: Mutation) -> bool:
    """Whether each number of each step is that of the healthy run with the same seed."""
    healthy = runs()[mutation.run, ""]

    def numbers(rows):
        return [{**row, "mistake": ""} for row in rows]
    return all(numbers(rows) == numbers(healthy[seed])
               for seed, rows in runs()[mutation.run, mutation.name].items())


def stopped_at(mutation: Mutation) -> int:
    """The step after which training ended in an error; 0 if it came to its end."""
    [rows] = runs()[mutation.run, mutation.name].values()
    return 0 if rows[-1]["right"] else int(rows[-1]["step"])


def strongest(mutation: Mutation, columns, most: int) -> list[str]:
    far = {column: distance(mutation, column) for column in columns}
    return sorted(filter(far.get, far), key=far.get, reverse=True)[:most]


def effect(mutation: Mutation, language: str, unseen: str) -> str:
    """What the mistake does, in words. unseen: why nothing shows, in this language."""
    is_english = language == "English"
    what = kind(mutation)
    if what == "unseen":
        return f"only a test sees it: {unseen}" if is_english else f"只有测试能发现：{unseen}"
    prefix = f"`{mutation.run}`: "
    if what == "same":
        return prefix + (f"the same numbers in every step: {unseen}" if is_english
                         else f"每一步的数字都一样：{unseen}")
    if step := stopped_at(mutation):
        return prefix + (f"training ends with an error in step {step + 1}" if is_english
                         else f"第 {step + 1} 步报错退出")
    right = healthy_value(mutation.run, "right")
    found = show(statistics.mean(values(mutation.run, mutation.name, "right")), "right")
    if what == "spread":
        return prefix + (
            f"within the spread of the seeds ({found} right; without it {right})" if is_english
            else f"在种子的波动之内（正确率 {found}，没有这个错误时 {right}）")
    parts = [column for column in OF_MODEL if distance(mutation, column)]
    parts += strongest(mutation, OTHERS, 3 - len(parts))
    words = [compared(mutation, column, language) for column in parts]
    if "right" not in parts and statistics.mean(values(mutation.run, "", "right")) > 0.02:
        words.append(f"right answers within the spread ({found}, {right})" if is_english
                     else f"正确率在波动之内（{found}，{right}）")
    return prefix + ("; " if is_english else "；").join(words)


# ----------------------------------------------------------------------------------------- curves

def curve(rows: list[dict], column: str) -> dict[int, float]:
    """step -> value, where there is one."""
    return {int(row["step"]): float(row[column]) for row in rows if row[column]}


def healthy_band(run: str, column: str) -> dict[int, tuple[float, float]]:
    """step -> the lowest and the highest of the seeds that have no mistake."""
    curves = [curve(rows, column) for rows in runs()[run, ""].values()]
    return {step: (min(c[step] for c in curves if step in c),
                   max(c[step] for c in curves if step in c)) for step in curves[0]}


def draw_panel(drawing: Drawing, x: float, y: float, width: float, height: float, band: dict,
               line: dict, ends: tuple[float, float]) -> None:
    """The band in grey and the line in colour, with an axis from ends[0] to ends[1]."""
    low, high = ends
    steps = sorted(set(band) | set(line))

    def place(step, value):
        across = (step - steps[0]) / max(steps[-1] - steps[0], 1)
        up = (min(max(value, low), high) - low) / (high - low)
        return x + across * width, y + (1 - up) * height

    drawing.rect(x, y, width, height, fill="white", stroke=PALE_LINE, line=1, radius=0)
    edge = [place(step, band[step][0]) for step in sorted(band)]
    edge += [place(step, band[step][1]) for step in sorted(band, reverse=True)]
    drawing.add("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in edge), fill="#c9d1d9",
                stroke=GREY, stroke_width=0.8)
    drawing.line([place(step, line[step]) for step in sorted(line)], color=RED, width=2.2)
    for value, level in ((high, y + 7), (low, y + height - 6)):
        drawing.text(x - 4, level, f"{value:.3g}", size=9, fill=QUIET, anchor="end")
    for step in (steps[0], steps[-1]):
        drawing.text(place(step, low)[0], y + height + 8, str(step), size=9, fill=QUIET)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of at most `width`. Chinese may break anywhere."""
    lines = [""]
    for word in text.split(" ") if text.isascii() or " " in text else text:
        space = " " if lines[-1] and (text.isascii() or " " in text) else ""
        if lines[-1] and text_width(lines[-1] + space + word, size) > width:
            lines.append(word)
        else:
            lines[-1] += space + word
    return lines


def telling() -> list[Mutation]:
    """Those that change the model, where the verifier's accuracy is logged at each step."""
    return [m for m in MUTATIONS if kind(m) == "model" and m.run != "ppo_rm"
            and values(m.run, "", "reward")]


def figure(language: str) -> str:
    """Small multiples of accuracy in training, as SVG."""
    from mistakes import ROWS
    wide, high, columns = 205, 92, 4
    drawn = telling()
    n_lines = math.ceil(len(drawn) / columns)
    title = {"English": "Sampled answers right (share) over the steps of a run: with the mistake "
                        "in red, the seeds without it in grey",
             "Chinese": "训练各步中采样回答的正确率：红色有错误，灰色是没有错误的几个种子"}[language]
    drawing = Drawing(columns * (wide + 42) + 16, n_lines * (high + 78) + 44, title)
    drawing.text(16, 22, title, size=13, anchor="start", bold=True)
    for i, mutation in enumerate(drawn):
        x, y = 42 + i % columns * (wide + 42), 44 + i // columns * (high + 78)
        name = mutation.mistake if language == "English" else ROWS[mutation.mistake][0]
        lines = wrapped(f"{NUMBERS[mutation.name]}. {name}", wide + 8, 10)[:3]
        for j, text in enumerate(lines):
            drawing.text(x, y + 8 + 14 * j, text, size=11, fill=INK, anchor="start")
        [rows] = runs()[mutation.run, mutation.name].values()
        draw_panel(drawing, x, y + 48, wide, high, healthy_band(mutation.run, "reward"),
                   curve(rows, "reward"), (0.0, 1.0))
    return drawing.svg()
