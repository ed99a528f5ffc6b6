"""The figures of docs/figures/, in English and Chinese: `python docs/figures.py` writes them.

What they say of shapes and gradients is held against real steps by tests/test_figures_svg.py.
Curves, bars and the table of methods are computed by the project's own functions.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import torch  # noqa: E402

import methods  # noqa: E402
from advantages import gae, token_rewards  # noqa: E402
from losses import ppo_policy_loss  # noqa: E402
from svg import (BLUE, GREEN, GREY, INK, LINE, ORANGE, PALE_BLUE, PALE_GREEN,  # noqa: E402
                 PALE_GREY, PALE_LINE, PALE_ORANGE, QUIET, Drawing, text_width)

FOLDER = ROOT / "docs" / "figures"
TENSOR, TENSOR_LINE = "#f6f8fa", "#c4cbd3"

# ------------------------------------------------------------------------- the models of a script

# Of each script: the models that it holds, and whether they learn.
LEARNS = {
    "ppo": {"policy": True, "reference": False, "reward model": False, "critic": True},
    "grpo": {"policy": True, "reference": False},
    "dpo": {"policy": True, "reference": False}}
# The tensors of each script's `main`, by their names there. B answers, T tokens of the longest
# row; P pairs.
SHAPES = {
    "ppo": {"tokens": "B, T", "mask": "B, T", "old_logp": "B, T", "ref_logp": "B, T",
            "rewards": "B,", "old_values": "B, T", "rewards_t": "B, T", "advantages": "B, T",
            "returns": "B, T"},
    "grpo": {"tokens": "B, T", "mask": "B, T", "old_logp": "B, T", "ref_logp": "B, T",
             "rewards": "B,", "advantages": "B, T"},
    "dpo": {"tokens": "2, P, T", "mask": "2, P, T", "logp": "2, P", "ref_logp": "2, P"}}
# What each function of a script is given, of these tensors.
INPUTS = {
    "ppo": {"token_rewards": {"rewards", "old_logp", "ref_logp"},
            "gae": {"rewards_t", "old_values"},
            "ppo_policy_loss": {"old_logp", "advantages"},
            "value_loss": {"old_values", "returns"}},
    "grpo": {"grpo_advantages": {"rewards"},
             "grpo_loss": {"old_logp", "ref_logp", "advantages"}}}
# tensor -> the model that computes it
COMPUTED_BY = {
    "ppo": {"old_logp": "policy", "ref_logp": "reference", "old_values": "critic"},
    "grpo": {"old_logp": "policy", "ref_logp": "reference"}}
# loss -> the models that its gradient reaches
GRADIENTS = {
    "ppo": {"ppo_policy_loss": {"policy"}, "value_loss": {"critic"}},
    "grpo": {"grpo_loss": {"policy"}},
    "dpo": {"dpo_loss": {"policy"}}}

# Columns: left edge and width of each. Every panel has the same, so that what is missing shows.
COLUMNS = [(20, 112), (164, 112), (308, 108), (444, 128), (598, 110), (734, 128)]
ROW, HEIGHT = 58, 42


class Panel:
    """One script: boxes stand in columns and rows."""

    def __init__(self, drawing, script, top, bottom):
        self.drawing, self.script, self.top = drawing, script, top
        drawing.rect(8, top - 70, 864, bottom - top + 70, "none", PALE_LINE, 1, 8)

    def place(self, column, row, rows=1):
        """x, y, width and height of a box."""
        x, width = COLUMNS[column]
        return x, self.top + ROW * row, width, HEIGHT + ROW * (rows - 1)

    def middle(self, row):
        return self.top + ROW * row + HEIGHT / 2

    def model(self, column, row, name, label, note):
        learns = LEARNS[self.script][name]
        self.drawing.box(*self.place(column, row), {"text": label, "bold": True},
                         {"text": note, "size": 12},
                         fill=PALE_BLUE if learns else PALE_GREY,
                         stroke=BLUE if learns else LINE, line=2 if learns else 1.2)

    def tensor(self, column, row, *names, note=""):
        """Tensors of one shape."""
        [shape] = {SHAPES[self.script][name] for name in names}
        self.given(column, row, ", ".join(names), f"({shape}) {note}".strip())

    def given(self, column, row, name, note):
        self.drawing.box(*self.place(column, row), {"text": name, "size": 12, "code": True},
                         {"text": note, "size": 12, "fill": QUIET}, fill=TENSOR,
                         stroke=TENSOR_LINE)

    def function(self, column, row, name, note, rows=1, loss=False):
        notes = [{"text": line, "size": 12} for line in note.split("\n")]
        self.drawing.box(*self.place(column, row, rows),
                         {"text": name, "size": 12, "code": True, "bold": True}, *notes,
                         fill=PALE_ORANGE if loss else "white", stroke=ORANGE if loss else INK)

    def link(self, column, row, to_column, to_row, in_row=None):
        """An arrow from a box's right edge to another's left edge, at the height of in_row."""
        x, _, width, _ = self.place(column, row)
        end = COLUMNS[to_column][0]
        y, to_y = self.middle(row), self.middle(to_row if in_row is None else in_row)
        self.drawing.arrow((x + width, y), (end - 1, to_y))

    def down(self, column, row):
        """An arrow from a box to the one below it."""
        x, y, width, height = self.place(column, row)
        self.drawing.arrow((x + width / 2, y + height), (x + width / 2, y + ROW - 1))

    def fan(self, row, to_rows):
        """Arrows from the tokens, in the first column, to the models in the second."""
        x, _, width, _ = self.place(0, row)
        bus, end = x + width + 12, COLUMNS[1][0] - 1
        for to_row in to_rows:
            y, to_y = self.middle(row), self.middle(to_row)
            self.drawing.arrow((x + width, y), (bus, y), (bus, to_y), (end, to_y))

    def gradient(self, row, loss_row, lane, label):
        """From a loss to the model in the second column, through a lane above or below all."""
        x, y, width, height = self.place(1, row)
        loss_x, loss_y, loss_width, loss_height = self.place(5, *loss_row)
        above = lane < y
        start = loss_y if above else loss_y + loss_height
        end = y - 1 if above else y + height + 1
        self.drawing.arrow((loss_x + loss_width / 2, start), (loss_x + loss_width / 2, lane),
                           (x + width / 2, lane), (x + width / 2, end), color=ORANGE, dash="6 4")
        self.drawing.text((x + loss_x + loss_width) / 2, lane - 10, label, 12, ORANGE)


def models(say):
    drawing = Drawing(880, 838, say("The models of PPO, GRPO and DPO", "PPO、GRPO、DPO 的模型"))
    samples = say("samples", "采样")
    scores = say("scores them", "打分")
    policy, reference = say("policy", "策略"), say("reference", "参考模型")
    frozen = say("frozen", "冻结")
    through_logp = say("gradient through log π of the actions", "梯度，经过各动作的 log π")

    _legend(drawing, say)
    panel = Panel(drawing, "ppo", 118, 384)
    _panel_title(drawing, 118, "PPO", "train_ppo.py", say(
        "four models: two learn, two are frozen", "四个模型：两个学习，两个冻结"))
    panel.given(0, 0, "prompts", say("B lists of ids", "B 个 id 列表"))
    panel.model(0, 1, "policy", policy, samples)
    panel.tensor(0, 2, "tokens", "mask")
    panel.down(0, 0)
    panel.down(0, 1)
    panel.model(1, 0, "policy", say("policy (actor)", "策略（演员）"), scores)
    panel.model(1, 1, "reference", reference, frozen)
    panel.model(1, 2, "reward model", say("reward model", "奖励模型"), frozen)
    panel.model(1, 3, "critic", say("critic", "价值模型"), say("V of each state", "各状态的 V"))
    panel.fan(2, range(4))
    for row, name in enumerate(("old_logp", "ref_logp", "rewards", "old_values")):
        panel.tensor(2, row, name)
        panel.link(1, row, 2, row)
    panel.function(3, 1, "token_rewards", f"rewards_t ({SHAPES['ppo']['rewards_t']})")
    panel.function(3, 2, "gae", "δ = r + γV′ − V")
    panel.link(2, 0, 3, 1, 0.8)
    panel.link(2, 1, 3, 1)
    panel.link(2, 2, 3, 1, 1.2)
    panel.link(2, 3, 3, 2, 2.2)
    panel.down(3, 1)
    panel.tensor(4, 1, "advantages", note=say("whitened", "白化"))
    panel.tensor(4, 2, "returns")
    panel.link(3, 2, 4, 1, 1.2)
    panel.link(3, 2, 4, 2)
    panel.function(5, 0, "ppo_policy_loss", say("ratio π / π_old,\nclipped", "比率 π / π_old，\n裁剪"),
                   rows=2, loss=True)
    panel.function(5, 2, "value_loss", say("V against\nreturns, clipped", "V 与 returns 之差，\n裁剪"),
                   rows=2, loss=True)
    panel.link(2, 0, 5, 0)
    panel.link(4, 1, 5, 1)
    panel.link(4, 2, 5, 2)
    panel.link(2, 3, 5, 3)
    panel.gradient(0, (0, 2), 98, through_logp)
    panel.gradient(3, (2, 2), 366, say("gradient through V", "梯度，经过 V"))

    panel = Panel(drawing, "grpo", 466, 636)
    _panel_title(drawing, 466, "GRPO", "train_grpo.py", say(
        "two models: the group's mean replaces the critic, an exact check the reward model",
        "两个模型：组均值代替价值模型，精确检验代替奖励模型"))
    panel.given(0, 0, "prompts", say("G times each", "每个重复 G 次"))
    panel.model(0, 1, "policy", policy, samples)
    panel.tensor(0, 2, "tokens", "mask")
    panel.down(0, 0)
    panel.down(0, 1)
    panel.model(1, 0, "policy", policy, scores)
    panel.model(1, 1, "reference", reference, frozen)
    panel.function(1, 2, "verifier", say("1 if right", "答对为 1"))
    panel.fan(2, range(3))
    for row, name in enumerate(("old_logp", "ref_logp", "rewards")):
        panel.tensor(2, row, name)
        panel.link(1, row, 2, row)
    panel.function(3, 2, "grpo_advantages", say("(r − mean) / std", "(r − 均值) / 标准差"))
    panel.tensor(4, 2, "advantages")
    panel.function(5, 0, "grpo_loss", say("ratio π / π_old,\nclipped;\nβ k3 to reference",
                                          "比率 π / π_old，\n裁剪；\nβ k3（对参考模型）"),
                   rows=3, loss=True)
    panel.link(2, 0, 5, 0)
    panel.link(2, 1, 5, 1)
    panel.link(2, 2, 3, 2)
    panel.link(3, 2, 4, 2)
    panel.link(4, 2, 5, 2)
    panel.gradient(0, (0, 3), 446, through_logp)

    panel = Panel(drawing, "dpo", 718, 830)
    _panel_title(drawing, 718, "DPO", "train_dpo.py", say(
        "two models: no sampling; the reference's log-probs are taken once, before training",
        "两个模型：不采样；参考模型的对数概率在训练前只算一次"))
    panel.given(0, 0, "pairs", say("chosen/rejected", "被选/被拒"))
    panel.tensor(0, 1, "tokens", "mask")
    panel.down(0, 0)
    panel.model(1, 0, "policy", policy, say("scores both", "给两者打分"))
    panel.model(1, 1, "reference", reference, frozen)
    panel.fan(1, range(2))
    for row, name in enumerate(("logp", "ref_logp")):
        panel.tensor(2, row, name)
        panel.link(1, row, 2, row)
        panel.link(2, row, 5, row)
    panel.function(5, 0, "dpo_loss", say("−log σ(β margin)\n+ NLL of chosen",
                                         "−log σ(β 差距)\n+ 被选答案的 NLL"),
                   rows=2, loss=True)
    panel.gradient(0, (0, 2), 698, through_logp)
    return drawing


def _legend(drawing, say):
    entries = [
        (PALE_BLUE, BLUE, 2, say("a model that learns", "学习的模型")),
        (PALE_GREY, LINE, 1.2, say("a frozen model", "冻结的模型")),
        (TENSOR, TENSOR_LINE, 1.2, say("a tensor", "张量")),
        ("white", INK, 1.2, say("computed, no gradient", "计算，无梯度")),
        (PALE_ORANGE, ORANGE, 1.2, say("a loss", "损失"))]
    for i, (fill, stroke, line, label) in enumerate(entries):
        x = (20, 210, 370, 500, 740)[i]
        drawing.rect(x, 14, 24, 16, fill, stroke, line, 4)
        drawing.text(x + 32, 22, label, 12, anchor="start")


def _panel_title(drawing, top, name, file, note):
    drawing.text(20, top - 52, name, 16, anchor="start", bold=True)
    drawing.text(80, top - 52, file, 12, QUIET, "start", code=True)
    drawing.text(196, top - 52, note, 13, QUIET, "start")


# ------------------------------------------------------------------------------- one row, one cache

# The row in `generate`'s docstring, then padding. Of a part: its tokens, and whether they are
# sampled. `=` and `.` are stop tokens; `12]` is what the tool writes.
PARTS = [("prompt", "3*4=", False), ("answer", "[3*4=", True), ("tool", "12]", False),
         ("more", "12.", True), ("padding", "000", False)]
LOGP = [-0.2, -0.1, -0.3, -0.1, -0.2, -0.4, -0.1, -0.3]
REF_LOGP = [-0.5, -0.2, -0.3, -0.1, -0.4, -0.2, -0.1, -0.3]
VALUES = [0.4, 0.5, 0.5, 0.6, 0.6, 0.8, 0.9, 0.8]
SCORE, BETA, GAMMA, LAMBDA = 1.0, 0.1, 1.0, 0.95
# Two rows as `tokens` and as the KV cache has them: letters, "." for padding.
IN_TOKENS = ["abcde..", "fghijkl"]
IN_CACHE = ["ab..cde", "fghijkl"]
CACHE_PROMPTS = [2, 4]


def row_tensors() -> dict:
    """The row's tensors, (1, T) each."""
    is_action = []
    for _, part, sampled in PARTS:
        is_action += [sampled] * len(part)
    mask = torch.tensor([is_action])

    def at_actions(numbers):
        found = torch.zeros(mask.shape, dtype=torch.float64)
        found[mask] = torch.tensor(numbers, dtype=torch.float64)
        return found
    logp, ref_logp, values = map(at_actions, (LOGP, REF_LOGP, VALUES))
    rewards = token_rewards(torch.tensor([SCORE]).double(), logp, ref_logp, mask, BETA)
    advantages, _ = gae(rewards, values, mask, GAMMA, LAMBDA)
    return {"mask": mask.long(), "logp": logp, "ref_logp": ref_logp, "rewards": rewards,
            "values": values, "advantages": advantages}


def row(say):
    drawing = Drawing(880, 624, say("One row of tokens, and the KV cache", "一行 tokens 与 KV 缓存"))
    _tokens(drawing, say)
    drawing.line([(20, 404), (860, 404)], PALE_LINE)
    drawing.text(20, 423, say("Two rows in tokens: the answer follows its prompt",
                              "tokens 中的两行：回答紧接提示词"), 13, anchor="start", bold=True)
    drawing.text(460, 423, say("The same in the KV cache: a column is a step",
                               "KV 缓存中的同样两行：一列是一步"), 13, anchor="start", bold=True)
    _grid(drawing, say, 20, IN_TOKENS, in_cache=False)
    _grid(drawing, say, 460, IN_CACHE, in_cache=True)
    drawing.text(20, 604, say("Small numbers are positions: they count a row's own tokens, so they "
                              "are the same in both.",
                              "小数字是位置：只数本行的 token，所以两边相同。"), 13, QUIET, "start")
    return drawing


def _tokens(drawing, say):
    """The row, the states before its actions, and its tensors."""
    left, width, height = 142, 40, 26
    looks = {"prompt": (PALE_GREY, LINE, say("prompt", "提示词")),
             "answer": (PALE_BLUE, BLUE, say("answer: sampled", "回答：采样得到")),
             "tool": (PALE_ORANGE, ORANGE, say("tool's output", "工具的输出")),
             "more": (PALE_BLUE, BLUE, say("answer goes on", "回答（续）")),
             "padding": ("white", PALE_LINE, say("padding", "填充"))}

    def label(y, text, code=True):
        drawing.text(20, y + height / 2, text, 12, anchor="start", code=code)

    T = sum(len(part) for _, part, _ in PARTS)
    states_y, tokens_y = 44, 112
    label(states_y, say("state after t", "读完 t 后的状态"), code=False)
    label(tokens_y, "tokens")
    for t in range(T - 1):
        drawing.box(left + width * t, states_y, width, height, {"text": f"h{t}", "code": True},
                    size=12)
    drawing.text(20, 24, say("The one shift: the state at t − 1, which has seen tokens[:, :t], "
                             "scores token t. Only actions are scored.",
                             "唯一的错位：t − 1 处的状态读过 tokens[:, :t]，由它给第 t 个 token 打分。"
                             "只给动作打分。"),
                 13, anchor="start")
    t = 0
    for name, part, sampled in PARTS:
        fill, stroke, words = looks[name]
        start = left + width * t
        drawing.line([(start + 3, tokens_y + height + 6),
                      (start + width * len(part) - 3, tokens_y + height + 6)], stroke, 2.5)
        drawing.text(start + width * len(part) / 2, tokens_y + height + 18, words, 12,
                     ORANGE if name == "tool" else QUIET)
        for token in part:
            x = left + width * t
            if sampled:
                drawing.arrow((x - width / 2, states_y + height), (x + width / 2, tokens_y - 1),
                              color=BLUE)
            drawing.box(x, tokens_y, width, height,
                        {"text": token, "code": True, "bold": sampled},
                        fill=fill, stroke=stroke, ink=LINE if name == "padding" else INK)
            t += 1
    tensors = row_tensors()
    for i, (name, numbers) in enumerate(tensors.items()):
        y = 178 + 30 * i
        label(y, name)
        for t, number in enumerate(numbers[0].tolist()):
            is_action = tensors["mask"][0, t]
            drawing.box(left + width * t, y, width, height,
                        {"text": str(number) if name == "mask" else _shown(number), "code": True},
                        fill=PALE_BLUE if is_action else "white", stroke=PALE_LINE,
                        ink=INK if is_action else LINE, size=11)
    drawing.text(20, 370, say("Holes are skipped: no gradient, reward or discount. "
                              "The last action, the stop token, earns the score, 1.",
                              "空洞一律跳过：没有梯度、没有奖励、不折扣。"
                              "得分 1 记在最后一个动作，即结束符上。"), 13, QUIET, "start")
    drawing.text(20, 388, f"rewards: β = {BETA:g};  advantages: γ = {GAMMA:g}, λ = {LAMBDA:g}", 12,
                 QUIET, "start", code=True)


def cache_cells(rows: list[str]) -> list[list[tuple]]:
    """Of each cell: its letter, its position or None where it is padding."""
    cells = []
    for letters in rows:
        positions = iter(range(len(letters)))
        cells.append([(c, None if c == "." else next(positions)) for c in letters])
    return cells


def _grid(drawing, say, left, rows, in_cache):
    width, height, top = 50, 44, 462
    if in_cache:
        split = left + width * max(CACHE_PROMPTS)
        drawing.text((left + split) / 2, top - 14, say("prompts: columns 0 to P − 1",
                                                       "提示词：第 0 至 P − 1 列"), 12, QUIET)
        drawing.text((split + left + width * 7) / 2, top - 14, say("new tokens", "新 token"),
                     12, QUIET)
    for r, cells in enumerate(cache_cells(rows)):
        for c, (letter, position) in enumerate(cells):
            x, y = left + width * c, top + (height + 8) * r
            is_prompt = position is not None and position < CACHE_PROMPTS[r]
            if position is None:
                drawing.box(x, y, width, height,
                            {"text": "−∞" if in_cache else "0", "code": True, "fill": LINE},
                            fill="white", stroke=PALE_LINE)
            else:
                drawing.box(x, y, width, height, {"text": letter, "code": True, "bold": True},
                            {"text": str(position), "size": 11, "fill": QUIET},
                            fill=PALE_GREY if is_prompt else PALE_BLUE,
                            stroke=LINE if is_prompt else BLUE)
    if in_cache:
        drawing.line([(split, top - 6), (split, top + 2 * height + 14)], INK, 2)
        drawing.text(left, 580, say("−∞: what attention adds there", "−∞：注意力在此加上的偏置"),
                     12, QUIET, "start")


def _shown(number: float) -> str:
    """Two digits; 0 where it is nothing but 0."""
    return f"{number:.2f}".replace("-", "−") if number else "0"


# --------------------------------------------------------------------------------------- the clip

EPSILON, DUAL = 0.2, 2.0
# Between the corners of the loss, 0.8, 1.2 and 2, where there is no derivative.
RATIOS = [(i + 0.5) / 100 for i in range(250)]
LARGEST = 2.5


def clip_curve(advantage: float, dual: float | None = None) -> list[tuple[float, float, float]]:
    """ratio, loss and its derivative to log π, of one token, for each of RATIOS."""
    points = []
    for ratio in RATIOS:
        logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
        old_logp, mask = torch.zeros_like(logp), torch.ones_like(logp)
        given = torch.full_like(old_logp, advantage)
        loss, _ = ppo_policy_loss(logp, old_logp, given, mask, EPSILON, EPSILON, dual)
        [slope] = torch.autograd.grad(loss, logp)
        points.append((ratio, loss.item(), slope.item()))
    return points


def clip_zones(points) -> list[tuple[float, float, bool]]:
    """From where to where the ratio goes, and whether there is a gradient."""
    zones, start = [], 0.0
    for (ratio, _, slope), (next_ratio, _, next_slope) in zip(points, points[1:]):
        if (slope != 0) != (next_slope != 0):
            border = (ratio + next_ratio) / 2
            zones.append((start, border, slope != 0))
            start = border
    return [*zones, (start, LARGEST, points[-1][2] != 0)]


def clip(say):
    drawing = Drawing(880, 506, say("PPO's clip", "PPO 的裁剪"))
    drawing.text(20, 26, say("loss = −min(ρA, clip(ρ, 1 − ε, 1 + ε) A) of one token, ε = 0.2",
                             "单个 token 的损失 = −min(ρA, clip(ρ, 1 − ε, 1 + ε) A)，ε = 0.2"),
                 14, anchor="start", bold=True)
    drawing.rect(20, 44, 22, 14, PALE_GREEN, "#aceebb", 1, 3)
    drawing.text(50, 51, say("gradient", "有梯度"), 12, anchor="start")
    drawing.rect(130, 44, 22, 14, PALE_GREY, LINE, 1, 3)
    drawing.text(160, 51, say("no gradient", "无梯度"), 12, anchor="start")
    for x, advantage in ((64, 1.0), (504, -1.0)):
        _clip_panel(drawing, say, x, advantage)
    return drawing


def _clip_panel(drawing, say, left, advantage):
    width, top, height, below, low_height = 350, 96, 240, 376, 86
    sign = 1 if advantage > 0 else -1
    points = clip_curve(advantage)

    def x(ratio):
        return left + width * ratio / LARGEST

    def y(value, top=top, height=height):
        """From 0 to 2.5, or from -2.5 to 0."""
        share = value / LARGEST
        return top + height * -share if sign > 0 else top + height * (1 - share)

    def slope_y(value):
        return y(value, below, low_height)

    title = "A = 1 > 0" if sign > 0 else "A = −1 < 0"
    drawing.text(left + width / 2, top - 16, title, 14, bold=True)
    for start, end, has_gradient in clip_zones(points):
        for zone_top, zone_height in ((top, height), (below, low_height)):
            drawing.rect(x(start), zone_top, x(end) - x(start), zone_height,
                         PALE_GREEN if has_gradient else PALE_GREY, "none", 0, 0)
    for zone_top, zone_height in ((top, height), (below, low_height)):
        drawing.rect(left, zone_top, width, zone_height, "none", LINE, 1, 0)
    # What the loss would be without the clip, and the four quadrants' border.
    drawing.line([(x(0), y(0)), (x(LARGEST), y(-advantage * LARGEST))], LINE, 1.2, "3 4")
    drawing.line([(x(1), top), (x(1), top + height)], LINE, 1.2)
    drawing.line([(x(1), below), (x(1), below + low_height)], LINE, 1.2)
    drawing.line([(x(ratio), y(loss)) for ratio, loss, _ in points], BLUE, 2.5)
    drawing.line([(x(ratio), slope_y(slope)) for ratio, _, slope in points], ORANGE, 2.2)
    if sign < 0:
        dual = clip_curve(advantage, DUAL)
        drawing.line([(x(ratio), y(loss)) for ratio, loss, _ in dual if ratio > DUAL],
                     BLUE, 2.2, "6 4")
        drawing.line([(x(ratio), slope_y(slope)) for ratio, _, slope in dual if ratio > DUAL],
                     ORANGE, 2.2, "6 4")
        drawing.text(x(2.46), y(0.88), say("dashed: dual clip, c = 2", "虚线：dual clip，c = 2"),
                     12, BLUE, "end")
    for ratio in (0, 0.8, 1, 1.2, 2, 2.5):
        drawing.text(x(ratio), below + low_height + 12, f"{ratio:g}", 11, QUIET)
    for value in (0, -1 * sign, -2 * sign):
        shown = f"{value:g}".replace("-", "−") if value else "0"
        drawing.text(left - 8, y(value), shown, 11, QUIET, "end")
        drawing.text(left - 8, slope_y(value), shown, 11, QUIET, "end")
    drawing.text(left + width / 2, below + low_height + 30, say("ratio ρ = π / π_old",
                                                                "比率 ρ = π / π_old"), 12)
    drawing.text(left, below - 14, say("gradient: ∂ loss / ∂ log π", "梯度：∂ 损失 / ∂ log π"),
                 12, ORANGE, "start")
    drawing.text(left, top - 16, say("loss", "损失"), 12, BLUE, "start")
    # One label in each quadrant: what a step downhill does to the token.
    if sign > 0:
        labels = [(0.5, -2.2, say("becomes\nmore likely", "变得更可能")),
                  (1.85, -0.35, say("risen enough:\nno further push", "涨够了：\n不再推"))]
    else:
        labels = [(0.42, 2.1, say("fallen enough:\nno push", "降够了：\n不再推")),
                  (1.75, 0.35, say("becomes\nless likely", "变得更不可能"))]
    for ratio, value, words in labels:
        for i, line in enumerate(words.split("\n")):
            drawing.text(x(ratio), y(value) + 16 * i - 8, line, 12)


# ----------------------------------------------------------------------------------- λ's weights

STEPS, LAMBDAS = 10, (0.0, 0.5, 0.95, 1.0)


def step_weights(lam: float) -> list[float]:
    """The weight of each k-step return, k = 1 to STEPS, in the advantage of the first action.

    With γ = 1 the reward i steps later is in the returns of more than i steps, so its weight in
    `gae` is the sum of theirs: neighbours' differences are the weights."""
    rewards = torch.zeros(1, STEPS, dtype=torch.float64, requires_grad=True)
    nothing, mask = torch.zeros_like(rewards), torch.ones_like(rewards)
    advantages, _ = gae(rewards, nothing, mask, gamma=1.0, lam=lam)
    [sums] = torch.autograd.grad(advantages[0, 0], rewards)
    sums = [*sums[0].tolist(), 0.0]
    return [more - less for more, less in zip(sums, sums[1:])]


def lambda_weights(say):
    drawing = Drawing(880, 300, say("λ's weights", "λ 的权重"))
    drawing.text(20, 28, say(f"GAE is a mean of k-step estimates. Their weights, {STEPS} actions "
                             "before the end:",
                             f"GAE 是各个 k 步估计的平均。距结尾 {STEPS} 个动作时它们的权重："),
                 13, anchor="start", bold=True)
    notes = {0.0: say("one-step TD:\nthe critic decides", "单步 TD：\n全信价值模型"),
             1.0: say("Monte Carlo:\nonly what was earned", "蒙特卡洛：\n只看真实所得")}
    for i, lam in enumerate(LAMBDAS):
        left, width, bottom, height = 30 + 212 * i, 186, 232, 140
        drawing.text(left + width / 2, 60, f"λ = {lam:g}", 14, bold=True)
        drawing.line([(left, bottom), (left + width, bottom)])
        pitch = width / STEPS
        for k, weight in enumerate(step_weights(lam), 1):
            x = left + pitch * (k - 1)
            if weight > 0:
                drawing.rect(x + 3, bottom - height * weight, pitch - 6, height * weight,
                             PALE_BLUE, BLUE, 1.2, 1)
            if weight > 0 and k in (1, STEPS):
                drawing.text(x + pitch / 2, bottom - height * weight - 9, f"{weight:.2g}", 11,
                             BLUE)
            drawing.text(x + pitch / 2, bottom + 12, str(k), 11, QUIET)
        for j, line in enumerate(notes.get(lam, "").splitlines()):
            drawing.text(left + width / 2, 130 + 16 * j, line, 12)
    drawing.text(440, 264, say("k: so many rewards are taken as they were, "
                               "then the critic is asked",
                               "k：先取这么多步的真实奖励，之后问价值模型"), 12, QUIET)
    drawing.text(440, 284, say("bars sum to 1: (1 − λ) λ^(k − 1), and the last takes the rest",
                               "各柱之和为 1：(1 − λ) λ^(k − 1)，最后一柱取余下的全部"), 12, QUIET)
    return drawing


# --------------------------------------------------------------------------------- the methods

# What the values of methods.METHODS mean, where a word more helps.
MEANINGS = {
    "group/std": ("(r − mean) / std", "(r−均值) / 标准差"), "group": ("r − mean", "r − 均值"),
    "batch/std": ("batch mean, std", "全批的均值、标准差"),
    "others": ("r − others' mean", "r − 其余的均值"),
    "greedy": ("r − greedy's r", "r − 贪心回答的 r"), "none": ("r itself", "r 本身"),
    "grpo": ("clip each token", "逐 token 裁剪"), "gspo": ("ratio per answer", "每个回答一个比率"),
    "cispo": ("clipped weight", "裁剪后的权重"), "reinforce": ("A log π", "A log π"),
    "token-mean": ("over all tokens", "所有 token"), "seq-mean": ("answer by answer", "先每个回答，再平均"),
    "seq-sum": ("sum / constant", "求和，除以常数"),
    "drop": ("left out", "丢弃"), "replace": ("sampled anew", "重新采样")}


def terms_of(method: str) -> dict[str, str]:
    """What a method chooses: a term -> its value as text."""
    row = dict(zip(methods.COLUMNS, methods.METHODS[method]))
    low, high = row["clip_low"], row["clip_high"]
    return {"baseline": row["baseline"],
            "loss": row["loss"],
            "aggregate": row["aggregate"],
            "clip": "−" if low is None else f"−{_short(low)}, +{_short(high)}",
            "kl": f"{row['kl_in']}, {row['kl_coef']:g}" if row["kl_coef"] else "−",
            "no_signal": row["no_signal"]}


def _short(number: float) -> str:
    """3e-4 for 0.0003."""
    return f"{number:g}" if number >= 0.01 else f"{number:.0e}".replace("e-0", "e-")


def parent_of(method: str) -> str | None:
    """REINFORCE for methods without a ratio, and for GRPO; GRPO for all others."""
    if method == "reinforce":
        return None
    has_ratio = methods.METHODS[method][methods.COLUMNS.index("loss")] != "reinforce"
    return "grpo" if has_ratio and method != "grpo" else "reinforce"


def family(parent=None, depth=0) -> list[tuple[str, int]]:
    """Methods with their depth, each before its children."""
    children = [method for method in methods.METHODS if parent_of(method) == parent]
    found = []
    # GRPO, which has children of its own, comes last.
    for method in sorted(children, key=lambda method: method == "grpo"):
        found += [(method, depth), *family(method, depth + 1)]
    return found


def methods_tree(say):
    order = family()
    top, pitch, left, width, height = 96, 44, 158, 118, 36
    drawing = Drawing(880, top + pitch * len(order) + 12, say("The methods of train_grpo.py",
                                                              "train_grpo.py 的各种方法"))
    drawing.text(20, 26, say("What each --method changes against the one that it hangs on",
                             "每个 --method 相对其上级改变了什么"), 14, anchor="start", bold=True)
    drawing.rect(640, 17, 22, 16, PALE_ORANGE, ORANGE, 1.2, 4)
    drawing.text(670, 26, say("changed", "改变"), 12, anchor="start")
    drawing.rect(760, 17, 22, 16, "white", PALE_LINE, 1.2, 4)
    drawing.text(790, 26, say("as above", "同上级"), 12, anchor="start")
    heads = {"baseline": say("advantage", "优势"), "loss": say("loss", "损失"),
             "aggregate": say("average", "平均"), "clip": say("clip of the ratio", "比率的裁剪"),
             "kl": say("KL in, with β", "KL 的位置，β"),
             "no_signal": say("all rewards equal", "全组奖励相同")}
    for c, head in enumerate(heads.values()):
        drawing.text(left + width * c + width / 2, 60, head, 12, QUIET)
    drawing.line([(20, 76), (864, 76)], PALE_LINE)
    rows = {method: i for i, (method, _) in enumerate(order)}
    for method, depth in order:
        y, parent = top + pitch * rows[method] - 8, parent_of(method)
        x = 20 + 18 * depth
        if parent:
            parent_y = top + pitch * rows[parent] - 8
            drawing.line([(x - 10, parent_y + height / 2 + 10), (x - 10, y + height / 2),
                          (x - 3, y + height / 2)])
        drawing.text(x, y + height / 2, method, 12, anchor="start", bold=True, code=True)
        inherited = terms_of(parent) if parent else {}
        for c, (term, value) in enumerate(terms_of(method).items()):
            is_new = bool(parent) and value != inherited[term]
            lines = [{"text": value, "code": True, "bold": is_new}]
            if value in MEANINGS:
                lines.append({"text": say(*MEANINGS[value]), "size": 11})
            drawing.box(left + width * c + 3, y, width - 6, height, *lines, size=12,
                        fill=PALE_ORANGE if is_new else "white",
                        stroke=ORANGE if is_new else PALE_LINE,
                        ink=GREY if parent and not is_new else INK)
    return drawing


# ---------------------------------------------------------------------------------- a step in time

# What train_grpo.py does in a step of two updates, in its order.
STAGES = ["prefill", "decode", "rewards", "reference", "policy", "advantages", "update",
          "optimizer", "update", "optimizer"]
# An example: two prompts, three answers each, of so many tokens; and the rows of each update.
GROUP, LENGTHS = 3, [3, 6, 4, 2, 5, 3]
UPDATES = [(0, 2, 5), (1, 3, 4)]


def timeline(say):
    drawing = Drawing(880, 396, say("A GRPO step over time", "一个 GRPO 步的时间线"))
    top, pitch, height, token = 96, 32, 24, 31
    bottom = top + pitch * len(LENGTHS)
    decode = 146
    spans = {"prefill": (74, 62), "rewards": (342, 60), "reference": (410, 78),
             "policy": (494, 60), "advantages": (562, 82)}
    heads = {"prefill": say("prompts", "提示词"), "rewards": say("rewards", "奖励"),
             "reference": say("reference", "参考模型"), "policy": say("policy", "策略"),
             "advantages": say("advantages", "优势")}
    notes = {"reference": say("scores", "打分"),
             "policy": say("scores", "打分"), "advantages": say("by group", "按组")}
    drawing.text(20, 26, say("One GRPO step, from left to right (widths are not to scale)",
                             "一个 GRPO 步，从左到右（宽度不成比例）"), 14, anchor="start", bold=True)
    for row in range(len(LENGTHS)):
        drawing.text(20, top + pitch * row + height / 2, say(f"row {row}", f"行 {row}"), 12, QUIET,
                     "start")
    for name, (x, width) in spans.items():
        drawing.text(x + width / 2, 78, heads[name], 12, bold=True)
        is_whole = name in ("reference", "policy")
        size = len(LENGTHS) if is_whole else GROUP
        fill, stroke = {"reference": (PALE_GREY, LINE), "policy": (PALE_BLUE, BLUE),
                        "prefill": (PALE_BLUE, BLUE)}.get(name, ("white", INK))
        if name == "rewards":
            size = 1
        for first in range(0, len(LENGTHS), size):
            words = ["r"] if name == "rewards" else [notes.get(name, say("once", "一次"))]
            drawing.box(x, top + pitch * first, width, pitch * (size - 1) + height, *words,
                        fill=fill, stroke=stroke, size=12)
    drawing.text(decode + token * max(LENGTHS) / 2, 78, say("tokens, one by one", "逐个 token"), 12,
                 bold=True)
    for row, length in enumerate(LENGTHS):
        for i in range(max(LENGTHS)):
            x, y = decode + token * i, top + pitch * row
            if i < length:
                drawing.box(x, y, token - 3, height, {"text": str(i), "code": True},
                            fill=PALE_BLUE, stroke=BLUE, size=11)
    for n, rows in enumerate(UPDATES):
        x = 652 + 110 * n
        drawing.text(x + 50, 78, say(f"update {n + 1}", f"更新 {n + 1}"), 12, bold=True)
        for row in rows:
            drawing.box(x, top + pitch * row, 72, height, say("∇ loss", "∇ 损失"),
                        fill=PALE_ORANGE, stroke=ORANGE, size=12)
        drawing.rect(x + 78, top, 22, bottom - top - 8, PALE_BLUE, BLUE, 2)
        drawing.text(x + 89, (top + bottom) / 2 - 4, "θ", 14, BLUE, bold=True)
    braces = [
        (74, 136, GREEN, say("parallel", "并行")),
        (146, 328, ORANGE, say("sequential: each token\nwaits for the one before;\n"
                               "rows leave as they end",
                               "串行：每个 token\n都要等前一个；\n结束的行先离开")),
        (410, 554, GREEN, say("parallel: all tokens\nin one pass", "并行：一遍算完\n所有 token")),
        (652, 864, GREEN, say("parallel within an update,\none update after another",
                              "一次更新之内并行，\n更新之间有先后"))]
    for start, end, color, words in braces:
        drawing.line([(start, bottom + 6), (end, bottom + 6)], color, 3)
        for i, line in enumerate(words.splitlines()):
            drawing.text((start + end) / 2, bottom + 26 + 17 * i, line, 12, color)
    drawing.text(20, 376, say("θ: an optimizer step. Scoring and updates need no KV cache: the "
                              "answers are known.",
                              "θ：优化器走一步。打分和更新不需要 KV 缓存：回答已经全部知道。"),
                 12, QUIET, "start")
    return drawing


FIGURES = {"models": models, "row": row, "clip": clip, "lambda": lambda_weights,
           "methods": methods_tree, "timeline": timeline}


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        for i, ending in enumerate(("", ".zh")):
            drawing = draw(lambda *both: both[i])
            (folder / f"{name}{ending}.svg").write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    write()
