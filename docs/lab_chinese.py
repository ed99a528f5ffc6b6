"""The lab's pages in Chinese: `python docs/concepts.py` writes docs/lab/NAME.zh.md from NAME.md,
which compare.py writes. Every number is taken over; a sentence of another form is refused.
"""
import re
from pathlib import Path

from concepts import ROOT

LAB = ROOT / "docs" / "lab"
TITLES = {
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
}
QUANTITIES = {
    "right answers, sampled (share)": "采样正确率",
    "KL to the SFT model (nats per answer)": "与 SFT 模型的 KL（每个回答的 nats）",
    "groups without signal (share)": "无信号组的比例",
    "explained variance of the critic": "价值模型的解释方差",
    "answer length (tokens)": "回答长度（token）",
    "samples per step": "每步样本数",
}
# Of settings; what is not here, such as G = 8, stays as it is.
SETTINGS = {
    "critic from the policy": "价值模型从策略开始",
    "critic from the reward model": "价值模型从奖励模型开始",
    "clip 0.2": "裁剪 0.2", "no clip": "不裁剪", "epochs = ": "遍数 = ",
    "none": "不加惩罚", "k1 in the loss": "k1 放进损失", "k2 in the loss": "k2 放进损失",
    "k3 in the loss": "k3 放进损失", "k1 in the reward": "k1 放进奖励",
    "frozen": "冻结", "EMA 0.9": "EMA 0.9 跟随", "synced every 10": "每 10 步替换",
    "left out": "跳过", "replaced": "补上",
}
COLUMNS = {"greedy": "贪心", "sampled": "采样", "length": "长度", "kl to sft": "与 SFT 的 KL",
           "samples": "样本数", "seconds": "秒", "models": "模型数", "peak greedy": "最好时贪心",
           "peak sampled": "最好时采样", "score at peak": "最好时打分", "score": "打分",
           "PPO on RM": "PPO（RM）", "PPO on RM, no KL": "PPO（RM），不加 KL",
           "DPO without NLL": "DPO，不加 NLL"}
VALUE = r"[\d.,]+(?: ± [\d.,]+)?"


def setting(text: str, comma: str = "，") -> str:
    for english, chinese in SETTINGS.items():
        text = text.replace(english, chinese)
    return text.replace(", ", comma)


def against(sentence: str) -> str:
    """What differs from one setting, and to which side."""
    match = re.fullmatch(r"Against (.*?), no difference beyond the seeds' spread", sentence)
    if match:
        return f"与“{setting(match[1])}”相比，差别都没有超出种子间的波动。"
    match = re.fullmatch(r"Against (.*?), beyond the seeds' spread: (.*)", sentence)
    if not match:
        raise ValueError(f"docs/lab_chinese.py: no Chinese for {sentence!r}")
    sides = []
    for side in match[2].split("; "):
        word, _, names = side.partition(" with ")
        names = re.sub("PPO on RM, no KL", "PPO（RM，不加 KL）", names)
        names = names.replace("DPO without NLL", "DPO（不加 NLL）")
        names = setting(names, "、")
        space = " " if names[0].isascii() else ""
        sides.append({"higher": "更高的是", "lower": "更低的是"}[word] + space + names)
    return f"与“{setting(match[1])}”相比，超出种子间波动的：{'；'.join(sides)}。"


def stated(text: str) -> str:
    """`At the end, ...: value (setting), ...` and what differs, for each quantity."""
    parts = []
    for sentence in re.split(r"(?<=\.) (?=At the end, )", text):
        match = re.fullmatch(r"At the end, (.*?): (.*)\. (Against .*)\.", sentence)
        if not match:
            raise ValueError(f"docs/lab_chinese.py: no Chinese for {sentence[:60]!r}")
        told = [f"{value}（{setting(which)}）"
                for value, which in re.findall(rf"({VALUE}) \((.*?)\)(?:, |$)", match[2])]
        parts.append(f"训练结束时，{QUANTITIES[match[1]]}：{'，'.join(told)}。{against(match[3])}")
    return "".join(parts)


def hump(text: str) -> str:
    """How accuracy falls while the score rises."""
    found = re.findall(rf"({VALUE} → {VALUE}) \(({VALUE} → {VALUE})\) with (β = [\d.]+\d|β = 0)",
                       text)
    match = re.search(r"Accuracy falls beyond the seeds' spread while the score rises with (.*)\.$",
                      text)
    if not (found and match):
        raise ValueError(f"docs/lab_chinese.py: no Chinese for {text[:60]!r}")
    told = "，".join(f"{beta} 时 {accuracy}（{score}）" for accuracy, score, beta in found)
    return (f"贪心正确率（括号里是奖励模型的打分），从最好的一次评估到最后一次：{told}。打分上升而正确率下降，"
            f"且超出种子间波动的：{setting(match[1])}。")


def experiment(text: str) -> str:
    body, picture = text.strip().split("\n\n")
    title, sentences = re.fullmatch(r"\*\*(.*?)\*\* (.*)", body).groups()
    told = stated(sentences) if sentences.startswith("At the end") else hump(sentences)
    file = re.search(r"\((\w+\.png)\)", picture)[1]
    return f"**{TITLES[title]}** {told}\n\n![{TITLES[title]}]({file})\n"


def table(text: str) -> str:
    def cell(word):
        return COLUMNS.get(word, word)
    lines = [" | ".join(map(cell, line.strip("| ").split(" | ")))
             for line in text.split("\n") if not line.startswith("|---")]
    width = text.split("\n")[1]
    return "\n".join([f"| | {lines[0]} |", width, *(f"| {line} |" for line in lines[1:])])


def results(text: str) -> str:
    seeds, methods, _, right, model, hacked = text.strip().split("\n\n")
    [n_seeds] = re.fullmatch(r"Seeds: (\d+)\. Mean ± standard deviation\.", seeds).groups()
    ranked = re.match(rf"The reward model ranks ({VALUE}) of held-out pairs right\.", model)
    held = against(right.removeprefix("Right answers, sampled: ").rstrip("."))
    return "\n\n".join([
        f"种子数：{n_seeds}。均值 ± 标准差。",
        table(methods),
        "长度：每个回答的 token 数。与 SFT 的 KL：精确值，每个回答的 nats。样本数：策略为学习而采样的回答数；DPO 一类"
        "方法从偏好对学习。秒：训练脚本的用时。模型数：训练时内存里完整模型的个数。",
        f"采样正确率：{held}",
        f"奖励模型对留出的偏好对，排序正确的比例为 {ranked[1]}。用它打分的 PPO（RM），在最好的一次评估和最后一次：",
        table(hacked)]) + "\n"


def page(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return results(text) if file.stem == "results" else experiment(text)


def pages() -> dict[Path, str]:
    """Each Chinese page, by its file."""
    # gradient.md has paragraphs of its own, and no Chinese page yet.
    english = [file for file in sorted(LAB.glob("*.md"))
               if not file.name.endswith(".zh.md") and file.stem != "gradient"]
    return {file.with_suffix(".zh.md"): page(file) for file in english}


def write() -> None:
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
