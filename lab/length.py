"""Length: a world in which an answer may run on after its reward is decided.

The model guesses a coin, h or t. It is told whether it was right, and then it may say "hm" as often
as it likes:

    tokens    c o i n ?  h .  _ n o  _ h m  _ h m  <end>
    mask      0 0 0 0 0  1 1  0 0 0  1 1 1  1 1 1    1

Nobody can foresee a coin, so half of the answers stay wrong. And nothing that follows the verdict
can change the reward, so the policy gradient of it is exactly 0: whatever happens to length is the
work of the average. An average over each answer divides its gradient by its length L. Let p be the
probability of one more "hm", z its logit, and A the answer's advantage, which the verdict decides:

    ∂/∂z E[A / L] = p (1 - p) A (E[1/L | one more] - 1/L_now)

The bracket is below 0. With A > 0 the average shortens answers, with A < 0 it lengthens them (Dr.
GRPO, Liu et al. 2025, arXiv:2503.20783). With a constant in L's place the bracket is 0. With the
batch's number of tokens it is not 0, since L is a part of it, but smaller by a factor of about the
number of answers.
"""
import copy
import functools

import torch

from advantages import grpo_advantages
from lab.loops import imitate, run_once, update
from losses import count_for, grpo_loss
from rollout import generate, token_log_probs
from support.models import numpy_rng, torch_rng
from support.tokenizer import builtin_tokenizer

MODEL = dict(dim=48, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=96, max_seq_len=64,
             rope_theta=100.0, qk_norm=True)
SFT_STEPS = 200
SFT_LR = 3e-3
STEPS = 40
ANSWERS = 256           # per step
GROUP_SIZE = 8
MAX_NEW_TOKENS = 48
LR = 5e-4
MODES = ("seq-mean", "token-mean", "seq-sum")
PROMPT = "coin?"
VERDICTS = (" no", " yes")
MORE = " hm"


class Coin:
    """What `generate` asks when a row stops: the first period ends a guess, and the coin falls."""

    def __init__(self, tokenizer, rng):
        self.tokenizer = tokenizer
        self.sides = rng.choice(["h.", "t."], ANSWERS)
        self.stop_ids = {tokenizer.eos_id, *tokenizer.encode(".")}
        self.rewards = torch.full((ANSWERS,), -1.0)     # below 0: not asked yet

    def __call__(self, row: int, ids: list[int]) -> list[int] | None:
        if self.rewards[row] >= 0:
            return None
        is_right = self.tokenizer.decode(ids) == self.sides[row]
        self.rewards[row] = is_right
        return self.tokenizer.encode(VERDICTS[is_right])


def demonstration(rng) -> list[str]:
    """Texts, alternately given and learned. How often it says "hm" does not depend on the verdict:
    0 to 6 times, each as likely."""
    guess = str(rng.choice(["h.", "t."]))
    verdict = VERDICTS[rng.integers(2)]
    return [PROMPT, guess, verdict, MORE * rng.integers(7)]


@functools.cache
def train_sft(seed):
    """-> the policy that all averages start from, its tokenizer"""
    tokenizer = builtin_tokenizer()

    def draw_rows(step):
        rng = numpy_rng(seed, step, "length sft")
        rows = []
        for _ in range(64):
            *turns, last = [tokenizer.encode(text) for text in demonstration(rng)]
            rows.append([*turns, last + [tokenizer.eos_id]])
        return rows
    policy = imitate(draw_rows, tokenizer.vocab_size, MODEL, SFT_STEPS, SFT_LR, seed)
    return policy, tokenizer


def sample_answers(policy, tokenizer, seed, step):
    """-> Rollout, rewards (B,). All prompts are the same; eight consecutive answers are a group."""
    coin = Coin(tokenizer, numpy_rng(seed, step, "length coins"))
    prompts = [tokenizer.encode(PROMPT)] * ANSWERS
    rollout = generate(policy, prompts, MAX_NEW_TOKENS, coin.stop_ids,
                       generator=torch_rng(seed, step, "length sampling"), environment=coin)
    # An answer without a period never heard a verdict, and is wrong.
    return rollout, coin.rewards.clamp(min=0)


def measure(rollout, rewards) -> dict:
    """Accuracy, and the mean length of wrong and of right answers, in sampled tokens."""
    lengths = rollout.mask.sum(1).float()                                       # (B,)
    return {"accuracy": f"{rewards.mean().item():.4f}",
            "wrong_length": f"{lengths[rewards == 0].mean().item():.3f}",
            "right_length": f"{lengths[rewards == 1].mean().item():.3f}"}


def train(mode, seed, steps) -> list[dict]:
    """GRPO with one update per step. -> what the policy did at each step, before its update"""
    start, tokenizer = train_sft(seed)
    policy = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(policy.parameters(), LR, betas=(0.9, 0.95), weight_decay=0.0)
    rows = []
    for step in range(steps + 1):
        rollout, rewards = sample_answers(policy, tokenizer, seed, step)
        rows.append({"line": "", "setting": mode, "seed": seed, "step": step,
                     **measure(rollout, rewards)})
        if step == steps:
            return rows

        advantages = grpo_advantages(rewards, GROUP_SIZE)                       # (B,)
        mask = rollout.mask
        logp = token_log_probs(policy, rollout.tokens, mask)                    # (B, T)
        loss, _ = grpo_loss(logp, logp.detach(), None, advantages, mask, mode=mode,
                            denominator=count_for(mask, mode, MAX_NEW_TOKENS))
        update(policy, optimizer, loss)


def run(out, seeds, quick) -> list[dict]:
    steps = STEPS // 2 if quick else STEPS
    rows = []
    for seed in range(seeds):
        for mode in MODES:
            rows += run_once(out / "runs" / f"length_{mode}_{steps}-{seed}.csv",
                             functools.partial(train, mode, seed, steps))
    for row in rows:
        # A walk of both lengths together leaves this as it is.
        row["gap"] = f"{float(row['wrong_length']) - float(row['right_length']):.3f}"
    return rows
