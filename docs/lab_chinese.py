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
    "An answer may run on after its reward is decided: what makes it longer?":
        "奖励定下之后，回答还可以继续：什么使它变长？",
    "Answers sampled by something else than the policy: what does it cost?":
        "回答出自别的采样器，而不是策略：代价是什么？",
    # What was expected.
    "What follows the verdict can't change the reward, so an unbiased gradient leaves "
    "length alone, but for a random walk. seq-mean divides an answer's gradient by the "
    "answer's own length: a wrong token costs less the longer its answer is, and a right "
    "one earns more the shorter its answer is. So wrong answers should grow towards the "
    "limit of 48 tokens, and right ones shrink towards 3, the least there can be. seq-sum "
    "divides by a constant, so neither should move. token-mean divides by the tokens of "
    "all 256 answers, of which an answer's own are a small part: its bias is smaller by "
    "about that factor, so it should do as seq-sum does.":
        "判定之后写什么都改变不了奖励，所以无偏的梯度不会改变长度，只会随机游走。seq-mean"
        " 把每个回答的梯度除以它自己的长度：回答越长，错误的 token 代价越小；回答越短，正"
        "确的 token 收益越大。所以错误的回答应当增长到 48 个 token 的上限，正确"
        "的应当缩短到最少的 3 个。seq-sum 除以常数，两者都不该变。token-mean"
        " 除以全部 256 个回答的 token 数，其中一个回答自己的只占一小部分：它的偏差大"
        "约小这么多倍，所以应当与 seq-sum 相同。",
    "The policy gradient is an expectation over the policy's own answers; over another "
    "sampler's it is biased, and the more so the further that sampler is away. bfloat16 "
    "only rounds: the log-ratio of a token should spread by about a hundredth, and "
    "accuracy should not suffer. The older the weights, the slower the policy should "
    "learn, and with 4 steps it should not reach what fresh answers teach. GRPO's own "
    "ratio can't help: its old log-probs are computed anew. The sampler's log-probs in "
    "the ratio should help, because the clip leaves out tokens that have already moved; "
    "truncated weights should help too, and neither in full, since a token's weight "
    "leaves out the tokens before it. At temperature 0.8 the sampler is surer than the "
    "policy that is scored: answers are less varied, and we expect a small loss that the "
    "weights repair.":
        "策略梯度是对策略自己的回答求期望；换成别的采样器的回答就有偏，采样器离得越远，偏得越多。"
        "bfloat16 只有舍入：每个 token 的对数比率应当只散开约百分之一，正确率不该"
        "受损。权重越旧，策略应当学得越慢；旧 4 步时，不该达到新鲜回答能教会的水平。GRPO "
        "自己的比率帮不上忙：它的旧对数概率是重新计算的。把采样器的对数概率放进比率应当有帮助，因"
        "为裁剪会略过已经移动的 token；截断的权重也应当有帮助；两者都不能完全弥补，因为一个"
        " token 的权重不含它之前的 token。温度 0.8 时，采样器比被打分的策略更确"
        "定：回答更单一，我们预期有小的损失，权重可以补上。",
    # What is measured.
    "right answers, sampled (share)": "采样正确率",
    "KL to the SFT model (nats per answer)": "与 SFT 模型的 KL（每个回答的 nats）",
    "groups without signal (share)": "无信号组的比例",
    "explained variance of the critic": "价值模型的解释方差",
    "answer length (tokens)": "回答长度（token）",
    "samples per step": "每步样本数",
    "length of wrong answers (tokens)": "错误回答的长度（token）",
    "length of right answers (tokens)": "正确回答的长度（token）",
    "wrong answers longer by (tokens)": "错误的比正确的长（token）",
    "KL of the sampler to the policy (nats per answer)": "采样器与策略的 KL（每个回答的 nats）",
    "spread of a token's log-ratio (nats)": "每个 token 对数比率的标准差（nats）",
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
    "fresh": "新鲜", "temperature 0.8": "温度 0.8", "1 step old": "旧 1 步",
    "2 steps old": "旧 2 步", "4 steps old": "旧 4 步", "the ratio": "放进比率",
    "truncated weights": "截断权重",
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
