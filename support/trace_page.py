"""The page of trace.py: names, formulas and sources of its numbers, in English and Chinese.

The layout, with its style and script, is trace.html beside this file. A page holds its data as
JSON, so that `python docs/concepts.py` brings the one in docs up to date without a model.
"""
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LAYOUT = Path(__file__).parent / "trace.html"


class Quantity(NamedTuple):
    """A number that the page shows.

    numbers: the formula with places for numbers. {k1} is this token's k1, {A+1} the A of the next
    token, 0 behind the last; {a.length} is the answer's, other names are in the settings. Empty
    where a network says the number."""
    key: str
    symbol: str
    english: str
    chinese: str
    formula: str
    numbers: str
    source: str             # file:function
    signed: bool = False    # coloured by its sign


CLIP = ("Whether a second update on the same answers would be clipped at this token. If the second "
        "number is the larger one, the loss does not depend on ρ any more: no gradient.",
        "如果在同一批回答上再更新一次，这个 token 会不会被裁剪。若第二个数更大，损失就不再依赖 ρ，没有梯度。",
        "max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε))")
ANSWER = [
    Quantity("reward", "r", "The reward of the answer: 1 if the number after the last </think>, or "
             "the whole answer, is the right sum.",
             "回答的奖励：最后一个 </think> 之后的数（没有则是整个回答）等于正确的和，就是 1，否则是 0。",
             "1 if right, else 0", "", "task.py:verify_answer"),
    Quantity("length", "|y|", "Sampled tokens of the answer; the stop token counts.",
             "回答中采样得到的 token 数，包括结束符。", "Σ mask", "", "rollout.py:generate"),
    Quantity("grpo", "A GRPO", "GRPO's advantage: the reward against the group, in standard "
             "deviations.", "GRPO 的优势：奖励比组均值高多少个标准差。",
             "(r − mean) / (std + 1e-4)", "({a.reward} − {mean}) / ({std} + 1e-4)",
             "advantages.py:grpo_advantages", signed=True),
    Quantity("dr_grpo", "A Dr. GRPO", "Dr. GRPO's advantage: without the division.",
             "Dr. GRPO 的优势：不除以标准差。", "r − mean", "{a.reward} − {mean}",
             "advantages.py:grpo_advantages", signed=True),
    Quantity("rloo", "A RLOO", "RLOO's advantage: the reward minus the mean of the other answers.",
             "RLOO 的优势：奖励减去其余回答的平均奖励。", "r − (sum − r) / (G − 1)",
             "{a.reward} − ({sum} − {a.reward}) / ({group} − 1)",
             "advantages.py:rloo_advantages", signed=True)]
GROUP = [
    Quantity("mean", "mean", "The mean reward of the group: GRPO's baseline.",
             "组均值：组内奖励的平均，GRPO 的基线。", "Σ r / G", "{mean_numbers}",
             "advantages.py:grpo_advantages"),
    Quantity("std", "std", "The standard deviation of the group's rewards, with G − 1.",
             "组内奖励的标准差，分母为 G − 1。", "sqrt(Σ (r − mean)² / (G − 1))", "{std_numbers}",
             "advantages.py:grpo_advantages")]
STEPS = [
    ("sampling", "1 Sampling", "1 采样",
     "The prompt's tokens have mask 0: the policy did not choose them. All other numbers are 0 "
     "there, and the other tables leave them out. The stop token is an action like any other.",
     "提示词的 token 掩码为 0，因为它们不是策略模型选的；其他数在这些位置都是 0，后面的表不再列出。"
     "结束符也是动作，与别的 token 一样。", [
         Quantity("mask", "mask", "1: the policy sampled this token, so it is an action. 0: it "
                  "belongs to the prompt.", "掩码。1：这个 token 由策略模型采样，是动作；0：属于提示词。",
                  "1 if sampled, else 0", "", "rollout.py:generate"),
         Quantity("p", "p", "The probability with which the token was sampled.",
                  "采样时这个 token 的概率。", "softmax(logits)[id]", "exp({sampled_logp})",
                  "rollout.py:sample"),
         Quantity("sampled_logp", "log p", "The log-prob at sampling, from the pass with the KV "
                  "cache.", "采样时的对数概率，由带 KV 缓存的前向计算得到。", "log p", "log({p})",
                  "rollout.py:sample")]),
    ("scoring", "2 Log-probs and KL", "2 对数概率与 KL",
     "The whole answer goes once through policy and reference. The reference is where the policy "
     "was {steps} steps before. GRPO has β k3 in its loss, PPO has −β k1 in its reward.",
     "整个回答一次通过策略模型和参考模型。参考模型是 {steps} 步更新之前的策略模型。GRPO 在损失里加 β k3，"
     "PPO 在奖励里加 −β k1。", [
         Quantity("old_logp", "log π_old", "The policy's log-prob, before it moves. It is that of "
                  "the sampling, but for rounding.",
                  "更新之前策略模型的对数概率（old log-prob）。除了舍入误差，与采样时相同。",
                  "log softmax(logits)[id]", "", "rollout.py:token_log_probs"),
         Quantity("ref_logp", "log π_ref", "The reference's log-prob of the same token.",
                  "参考模型对同一个 token 的对数概率。", "log softmax(logits)[id]", "",
                  "rollout.py:token_log_probs"),
         Quantity("k1", "k1", "The KL estimate that PPO has in its reward. It may be negative.",
                  "PPO 放进奖励的 KL 估计量，可以为负。", "log π_old − log π_ref",
                  "{old_logp} − {ref_logp}", "losses.py:kl_k1"),
         Quantity("k3", "k3", "The KL estimate that GRPO has in its loss. It is never negative.",
                  "GRPO 放进损失的 KL 估计量，不会为负。", "exp(−k1) − 1 + k1",
                  "exp(−{k1}) − 1 + {k1}", "losses.py:kl_k3")]),
    ("values", "3 Rewards and values (PPO)", "3 奖励与价值（PPO）",
     "The answer's score stands at its last token, and a KL penalty at each. V is what the critic "
     "expects before the token. δ is the surprise of one token; it is also A with λ = 0.",
     "回答的得分记在最后一个 token 上，每个 token 另有 KL 惩罚。V 是价值模型（critic）在这个 token "
     "之前的预期。δ 是一个 token 带来的意外，也就是 λ = 0 时的 A。", [
         Quantity("reward", "r", "The token's reward: the KL penalty, and at the last token the "
                  "score.", "token 的奖励：KL 惩罚，最后一个 token 再加上得分。",
                  "−β k1ₜ + [t = T] score", "−{beta} × {k1} + {score}",
                  "advantages.py:token_rewards"),
         Quantity("V", "V", "The critic's value of the state before this token.",
                  "价值模型（critic）给出的、这个 token 之前的状态价值。", "critic(tokens[:t])", "",
                  "rollout.py:token_values"),
         Quantity("td", "δ", "The TD error. It is the advantage with λ = 0.",
                  "TD 误差，也就是 λ = 0 时的优势。", "rₜ + γ Vₜ₊₁ − Vₜ",
                  "{reward} + {gamma} × {V+1} − {V}", "advantages.py:gae", signed=True),
         Quantity("return", "return", "The critic's target.", "回报：价值模型的学习目标。", "Aₜ + Vₜ",
                  "{A} + {V}", "advantages.py:gae")]),
    ("advantages", "4 Advantages", "4 优势",
     "GRPO has one number for the whole answer. PPO adds up the δ of this token and of all later "
     "ones, each step times γ λ. Its loss takes the whitened numbers. "
     "V* is the share of right answers among {continuations} continuations of the prefix (it can "
     "be off by {error}), and A* what the token has changed about it.",
     "GRPO 的整个回答只有一个数。PPO 把这个 token 和之后所有 token 的 δ 加起来，每隔一步乘一次 γ λ；"
     "损失里用的是白化后的数。V* 是从这个前缀续写 {continuations} 次、答对的比例（误差约 {error}），"
     "A* 是这个 token 让它改变了多少。", [
         Quantity("flat", "A GRPO", "GRPO's advantage, the same for all tokens of an answer.",
                  "GRPO 的优势，整个回答的 token 都相同。", "(r − mean) / (std + 1e-4)",
                  "({a.reward} − {mean}) / ({std} + 1e-4)", "advantages.py:grpo_advantages",
                  signed=True),
         Quantity("A", "A (λ=0.95)", "PPO's advantage: GAE with its default λ.",
                  "PPO 的优势：GAE，默认的 λ。", "δₜ + γ λ Aₜ₊₁",
                  "{td} + {gamma} × {lam} × {A+1}", "advantages.py:gae", signed=True),
         Quantity("mc", "A (λ=1)", "GAE with λ = 1: the Monte Carlo return minus V.",
                  "λ = 1 的 GAE：蒙特卡洛回报减去 V。", "δₜ + γ Aₜ₊₁",
                  "{td} + {gamma} × 1 × {mc+1}", "advantages.py:gae", signed=True),
         Quantity("white", "A whitened", "A with λ = 0.95, whitened over all actions of this "
                  "batch: what PPO's loss takes. A sign can change.",
                  "λ = 0.95 的优势，在这个批次的全部动作上白化，PPO 的损失用它。符号可能改变。",
                  "(A − mean A) / sqrt(var A + 1e-8)",
                  "({A} − {A_mean}) / sqrt({A_var} + 1e-8)", "advantages.py:whiten",
                  signed=True),
         Quantity("truth", "V*", "The share of right answers among {continuations} continuations "
                  "of the tokens before this one.",
                  "从这个 token 之前的前缀续写 {continuations} 次，答对的比例。",
                  "right / all", "{right} / {continuations}",
                  "lab/gradient.py:continue_prefixes"),
         Quantity("true_A", "A*", "What this token has changed: λ = 0 with V* as the critic, "
                  "without KL.", "这个 token 改变了多少：以 V* 作价值模型、λ = 0、不含 KL 的优势。",
                  "[t = T] score + V*ₜ₊₁ − V*ₜ", "{score} + {truth+1} − {truth}",
                  "advantages.py:gae", signed=True)]),
    ("weights", "5 Share of the loss", "5 在损失中的权重",
     "A token's loss is multiplied by this number before all are added. GRPO: seq-mean, a token of "
     "a long answer weighs less. PPO and DAPO: token-mean. Dr. GRPO: seq-sum.",
     "每个 token 的损失先乘上这个数再相加。GRPO 用 seq-mean：长回答里的 token 权重小；"
     "PPO 和 DAPO 用 token-mean；Dr. GRPO 用 seq-sum。", [
         Quantity("token_mean", "token-mean", "Every token of the batch weighs the same.",
                  "批次里每个 token 权重相同。", "1 / Σ mask", "1 / {n_tokens}",
                  "losses.py:aggregate"),
         Quantity("seq_mean", "seq-mean", "Every answer weighs the same.", "每个回答权重相同。",
                  "1 / (G × |y|)", "1 / ({group} × {a.length})", "losses.py:aggregate"),
         Quantity("seq_sum", "seq-sum", "A constant divides: answers times the longest length "
                  "allowed.", "除以常数：回答数乘以允许的最大长度。", "1 / (G × max_new_tokens)",
                  "1 / ({group} × {longest})", "losses.py:aggregate")]),
    ("update", "6 After one update", "6 更新一次之后",
     "In the first update every ratio is 1. After it, each method from the same policy, the ratio "
     "says how much more or less likely the token has become. Clipped: a second update on the same "
     "answers would give the token no gradient, as ρ is above 1 + ε and A positive, or ρ below "
     "1 − ε and A negative.",
     "第一次更新时所有比率都是 1。两种方法从同一个策略模型各更新一次之后，比率表示这个 token "
     "的概率变成了原来的几倍。裁剪：在同一批回答上再更新一次，这个 token 就没有梯度了，因为 ρ 高于 1 + ε 而 A "
     "为正，或者 ρ 低于 1 − ε 而 A 为负。", [
         Quantity("grpo_logp", "GRPO log π", "The log-prob after one update of GRPO.",
                  "GRPO 更新一次之后的对数概率。", "log softmax(logits)[id]", "", "trace.py:update"),
         Quantity("grpo_ratio", "GRPO ρ", "The ratio after one update of GRPO.",
                  "GRPO 更新一次之后的比率。", "exp(log π − log π_old)",
                  "exp({grpo_logp} − {old_logp})", "losses.py:_clipped_surrogate"),
         Quantity("grpo_clip", "GRPO clipped", CLIP[0], CLIP[1], CLIP[2],
                  "max(−{flat} × {grpo_ratio}, −{flat} × clip({grpo_ratio}, {low}, {high}))",
                  "losses.py:_clipped_surrogate"),
         Quantity("ppo_logp", "PPO log π", "The log-prob after one update of PPO.",
                  "PPO 更新一次之后的对数概率。", "log softmax(logits)[id]", "", "trace.py:update"),
         Quantity("ppo_ratio", "PPO ρ", "The ratio after one update of PPO.",
                  "PPO 更新一次之后的比率。", "exp(log π − log π_old)",
                  "exp({ppo_logp} − {old_logp})", "losses.py:_clipped_surrogate"),
         Quantity("ppo_clip", "PPO clipped", CLIP[0], CLIP[1], CLIP[2],
                  "max(−{white} × {ppo_ratio}, −{white} × clip({ppo_ratio}, {low}, {high}))",
                  "losses.py:_clipped_surrogate")])]


# Of the symbols that are words.
IN_CHINESE = {"A whitened": "A 白化", "GRPO clipped": "GRPO 裁剪", "PPO clipped": "PPO 裁剪",
              "return": "回报"}


def place_of(source: str) -> str:
    """advantages.py:gae -> advantages.py:59 gae"""
    file, function = source.split(":")
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    [line] = [i for i, text in enumerate(lines, 1) if text.startswith(f"def {function}(")]
    return f"{file}:{line} {function}"


def check_place(out: str) -> Path:
    """The file to write. ValueError if that can't be."""
    file = Path(out)
    nearest = next(place for place in file.absolute().parents if place.exists())
    is_free = nearest.is_dir() and os.access(nearest, os.W_OK)
    if file.is_dir() or not is_free or file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written, expected a file such as trace.html")
    return file


def seven_digits(x: float) -> float:
    x = float(f"{x:.7g}")
    return int(x) if x.is_integer() else x


def collect(problem: dict, tokenizer, columns: dict, answers: dict, settings: dict) -> dict:
    """What a page holds. columns: tensors (B, T); answers: tensors (B,)."""
    mask, rewards = columns["mask"].bool(), answers["reward"]
    all_A = columns["A"][mask]
    listed = [f"{r:g}" for r in rewards.tolist()]
    group_mean = rewards.mean().item()
    squares = " + ".join(f"({r} − {group_mean:g})²" for r in listed)
    found = {
        "prompt": problem["prompt"],
        "settings": {
            **settings, "group": len(rewards), "n_tokens": mask.sum().item(),
            "low": 1 - settings["clip"], "high": 1 + settings["clip"],
            "sum": rewards.sum().item(), "mean": group_mean, "std": rewards.std().item(),
            "A_mean": all_A.mean().item(), "A_var": all_A.var().item(),
            "mean_numbers": f"({' + '.join(listed)}) / {len(listed)}",
            "std_numbers": f"sqrt(({squares}) / {len(listed) - 1})"},
        "answers": []}
    right = (columns["truth"] * settings["continuations"]).round()
    for b in range(len(rewards)):
        end = mask[b].nonzero().max().item() + 1
        ids = columns["id"][b, :end].tolist()
        row = {key: [seven_digits(x) for x in tensor[b, :end].tolist()]
               for key, tensor in {**columns, "right": right}.items()}
        found["answers"].append({
            **{key: seven_digits(x[b].item()) for key, x in answers.items()},
            "text": tokenizer.decode(ids[len(problem["ids"]):]),
            "tokens": [tokenizer.decode([i]) for i in ids],
            "start": len(problem["ids"]),
            # The token that changed the chance of a right answer most.
            "turn": columns["true_A"][b].abs().argmax().item(),
            "columns": row})
    return found


def guide(settings: dict) -> dict:
    """What the script of the page needs to know of each number."""
    # The standard deviation of an estimated share, where it is largest.
    error = f"{0.5 / settings['continuations'] ** 0.5:.2f}"

    def say(text):
        return text.format(**settings, error=error)

    def described(quantities):
        return [{**q._asdict(), "english": say(q.english), "chinese": say(q.chinese),
                 "source": place_of(q.source),
                 "symbol_chinese": IN_CHINESE.get(q.symbol, q.symbol)} for q in quantities]

    steps = [{"key": key, "english": english, "chinese": chinese,
              "about": [say(about), say(about_chinese)], "quantities": described(quantities)}
             for key, english, chinese, about, about_chinese, quantities in STEPS]
    return {"answer": described(ANSWER), "group": described(GROUP), "steps": steps}


def page(data: dict) -> str:
    # No < in the JSON: a text with </script> would end it.
    texts = {"{{data}}": data, "{{guide}}": guide(data["settings"])}
    html = LAYOUT.read_text(encoding="utf-8")
    for name, value in texts.items():
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        html = html.replace(name, text)
    return html


def write(file: Path, data: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(data), encoding="utf-8")


def read_data(file: Path) -> dict:
    html = file.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script [^>]*id="data">(.*)</script>', html)[1])


def rebuild(file: Path) -> None:
    """Write the page again, with lines, texts and layout as they are now."""
    write(file, read_data(file))
