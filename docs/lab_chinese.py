"""The lab's pages in Chinese: `python docs/concepts.py` writes docs/lab/NAME.zh.md from the csv
files that compare.py wrote, by the functions that make the English pages (lab/report.py).
"""
import re
import sys
from pathlib import Path

from concepts import ROOT

sys.path.append(str(ROOT))
from lab.report import experiment_page, results_page
from support.plot import read_csv

LAB = ROOT / "docs" / "lab"
CHINESE = {
    # What an experiment asks.
    "PPO on a reward model: when does pleasing it stop being right?":
        "用奖励模型的 PPO：讨好它，到什么时候就不再答对？",
    "GRPO, 256 samples per step: many prompts, or many answers to each?":
        "GRPO，每步 256 个样本：多些提示词，还是每个提示词多些回答？",
    "Dr. GRPO with β = 0.5: which penalty keeps the policy near its start?":
        "Dr. GRPO，β = 0.5：哪种惩罚使策略留在起点附近？",
    "GRPO: how many passes over a batch, and what does the clip do?":
        "GRPO：每批样本过几遍，裁剪起什么作用？",
    "PPO on the verifier: λ of GAE, and what the critic starts as":
        "用校验器的 PPO：GAE 的 λ，以及价值模型从哪里开始",
    "Dr. GRPO with β = 0.5: a reference that stays, follows, or is replaced":
        "Dr. GRPO，β = 0.5：参考模型冻结、跟随，还是定期替换",
    "GRPO: what is averaged over what, and what that does to length":
        "GRPO：对什么求平均，对长度有什么影响",
    "DAPO: groups without signal, left out or replaced": "DAPO：无信号的组，跳过还是补上",
    # What was expected.
    # What is measured.
    "right answers, sampled (share)": "采样正确率",
    "KL to the SFT model (nats per answer)": "与 SFT 模型的 KL（每个回答的 nats）",
    "groups without signal (share)": "无信号组的比例",
    "explained variance of the critic": "价值模型的解释方差",
    "answer length (tokens)": "回答长度（token）",
    "samples per step": "每步样本数",
    # Settings; what is neither here nor in PARTS, such as G = 8, stays as it is.
    "none": "不加惩罚", "k1 in the loss": "k1 放进损失", "k2 in the loss": "k2 放进损失",
    "k3 in the loss": "k3 放进损失", "k1 in the reward": "k1 放进奖励",
    "frozen": "冻结", "EMA 0.9": "EMA 0.9 跟随", "synced every 10": "每 10 步替换",
    "left out": "跳过", "replaced": "补上",
    "PPO on RM": "PPO（RM）", "PPO on RM, no KL": "PPO（RM），不加 KL",
    "DPO without NLL": "DPO，不加 NLL",
    # Columns of tables.
    "greedy": "贪心", "sampled": "采样", "pass@8": "pass@8", "length": "长度",
    "kl to sft": "与 SFT 的 KL", "samples": "样本数", "seconds": "秒", "models": "模型数",
    "peak greedy": "最好时贪心", "peak sampled": "最好时采样", "score at peak": "最好时打分",
    "score": "打分", "greedy accuracy at its best": "贪心正确率：最好的一次评估",
    "at the end": "最后一次", "score at the best": "打分：最好的一次评估",
    "score at the end": "打分：最后一次",
    # Sentences.
    "One seed, so there is no spread to hold differences against.":
        "只有一个种子，没有波动可比。",
    "Against {}, no difference beyond the seeds' spread.":
        "与“{}”相比，差别都没有超出种子间的波动。",
    "Against {}, beyond the seeds' spread: {}.": "与“{}”相比，超出种子间波动的：{}。",
    "higher with {}": "更高的是 {}", "lower with {}": "更低的是 {}", "; ": "；",
    "Expected, written before the runs: {}": "运行之前写下的预期：{}",
    "Mean ± standard deviation over {} seeds, in the last fifth of the steps. Bold: differs from "
    "{} beyond the seeds' spread.":
        "{} 个种子的均值 ± 标准差，取最后五分之一的步。粗体：与“{}”的差别超出种子间的波动。",
    "Mean ± standard deviation over {} seeds. Bold: falls beyond the seeds' spread while the score "
    "rises.": "{} 个种子的均值 ± 标准差。粗体：打分上升而正确率下降，且超出种子间的波动。",
    "Mean ± standard deviation over {} seeds.": "{} 个种子的均值 ± 标准差。",
    "length: tokens per answer. kl to sft: exact, in nats per answer. samples: answers that the "
    "policy sampled to learn from; DPO and its relatives learn from pairs. seconds: of the "
    "training script. models: full models in memory while it trains.":
        "长度：每个回答的 token 数。与 SFT 的 KL：精确值，每个回答的 nats。样本数：策略为学习而采样的回答数；"
        "DPO 一类方法从偏好对学习。秒：训练脚本的用时。模型数：训练时内存里完整模型的个数。",
    "The reward model ranks {} of held-out pairs right. PPO on it (RM), at its best evaluation and "
    "at the end:":
        "奖励模型对留出的偏好对，排序正确的比例为 {}。用它打分的 PPO（RM），在最好的一次评估和最后一次：",
}
# Of settings that are made of parts.
PARTS = {
    "critic from the policy": "价值模型从策略开始",
    "critic from the reward model": "价值模型从奖励模型开始",
    "clip 0.2": "裁剪 0.2", "no clip": "不裁剪", "epochs = ": "遍数 = ",
}


def say(text: str) -> str:
    """A text of an English page in Chinese."""
    if text in CHINESE:
        return CHINESE[text]
    said = text
    for english, chinese in PARTS.items():
        said = said.replace(english, chinese)
    if said != text:
        return said.replace(", ", "，")
    # Names of methods and settings such as β = 0.01 are the same in both languages.
    if re.search(r"[a-z]{3} [a-z]|\w\.$", text):
        raise ValueError(f"docs/lab_chinese.py: no Chinese for {text!r}")
    return text


def pages() -> dict[Path, str]:
    """Each Chinese page, by its file."""
    # gradient.md has paragraphs of its own, and no Chinese page yet.
    english = [file for file in sorted(LAB.glob("*.md"))
               if not re.search(r"\.zh|README", file.name) and file.stem != "gradient"]
    found = {}
    for file in english:
        rows = read_csv(file.with_suffix(".csv"))
        is_table = file.stem == "results"
        text = results_page(rows, say) if is_table else experiment_page(file.stem, rows, say)
        found[file.with_suffix(".zh.md")] = text
    return found


def write() -> None:
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
