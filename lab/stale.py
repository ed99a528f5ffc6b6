"""Stale: answers that were sampled by something else than the policy that learns from them.

The model is given four letters, and writes them in alphabetical order:

    dacb=abcd<end>

Demonstrations have the letters in any order, so that one answer in 24 is right by chance. The rest
is learned from reward. The answers come from a sampler μ, which differs from the policy π:

    weights of 1, 2 or 4 steps ago      as where sampling and learning run side by side
    the weights of now, in bfloat16     as where another engine samples
    temperature 0.8, scored at 1        a mistake

The policy gradient under μ needs the weight π(answer) / μ(answer). GRPO has none: it computes the
log-probs of π anew before its updates, so that its ratio knows nothing of μ. Two ways to bring μ
in, both with a ratio for each token:

    the ratio            the sampler's log-probs as the old ones: the clip then also counts what
                         age has moved
    truncated weights    each token's loss times min(π / μ, 2) (Yao et al. 2025, see
                         importance_weights in methods.py): train_grpo.py --importance-cap 2
"""
import copy
import functools
from collections import deque

import torch

from advantages import grpo_advantages
from lab.loops import imitate, run_once, update
from losses import count_for, grpo_loss
from methods import importance_weights
from rollout import generate, mini_batches, token_log_probs
from support.models import numpy_rng, torch_rng
from support.tokenizer import builtin_tokenizer

MODEL = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, max_seq_len=16,
             rope_theta=100.0, qk_norm=True)
LETTERS = 4
SFT_STEPS = 400
SFT_LR = 3e-3
STEPS = 60
PROMPTS = 32            # per step
GROUP_SIZE = 8          # answers to each prompt
MINIBATCHES = 2
MAX_NEW_TOKENS = 6
# So high that 4 steps of age show: tried on a seed that is in no table.
LR = 1e-3
CAP = 2.0
EVAL_EVERY = 5
# How a sampler differs from the policy.
SAMPLERS = {
    "fresh": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "temperature 0.8": {"temperature": 0.8},
    "1 step old": {"age": 1},
    "2 steps old": {"age": 2},
    "4 steps old": {"age": 4},
}
# What brings the sampler in; "" does not.
CORRECTIONS = ("", "the ratio", "truncated weights")


def make_problems(n, rng) -> list[str]:
    """n prompts: "dacb="."""
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    return ["".join(rng.choice(alphabet, LETTERS, replace=False)) + "=" for _ in range(n)]


def right_answer(prompt: str) -> str:
    return "".join(sorted(prompt[:-1]))


@functools.cache
def train_sft(seed):
    """-> the policy that all runs start from, its tokenizer"""
    tokenizer = builtin_tokenizer()

    def draw_rows(step):
        rng = numpy_rng(seed, step, "stale sft")
        rows = []
        for prompt in make_problems(64, rng):
            answer = "".join(rng.permutation(list(prompt[:-1])))
            rows.append([tokenizer.encode(prompt), tokenizer.encode(answer) + [tokenizer.eos_id]])
        return rows
    policy = imitate(draw_rows, tokenizer.vocab_size, MODEL, SFT_STEPS, SFT_LR, seed)
    return policy, tokenizer


def sample_answers(sampler, tokenizer, seed, step, temperature=1.0, purpose="sampling"):
    """-> Rollout, rewards (B,). The answers of a group are consecutive."""
    problems = make_problems(PROMPTS, numpy_rng(seed, step, f"stale prompts {purpose}"))
    problems = [prompt for prompt in problems for _ in range(GROUP_SIZE)]
    rollout = generate(sampler, [tokenizer.encode(prompt) for prompt in problems], MAX_NEW_TOKENS,
                       tokenizer.stop_ids, temperature, torch_rng(seed, step, f"stale {purpose}"))
    texts = [tokenizer.decode(ids, skip_special=True) for ids in rollout.responses()]
    rewards = [text == right_answer(prompt) for prompt, text in zip(problems, texts)]
    return rollout, torch.tensor(rewards).float()


def train(setting, correction, seed, steps, age=0, dtype=torch.float32, temperature=1.0):
    """GRPO on the sampler's answers. -> a row for each step: the policy before its updates"""
    start, tokenizer = train_sft(seed)
    policy = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(policy.parameters(), LR, betas=(0.9, 0.95), weight_decay=0.0)
    # The weights of the last steps, the oldest first.
    past = deque([copy.deepcopy(policy).to(dtype)], maxlen=age + 1)
    rows = []
    for step in range(steps + 1):
        rollout, rewards = sample_answers(past[0], tokenizer, seed, step, temperature)
        tokens, mask = rollout.tokens, rollout.mask
        with torch.no_grad():
            old_logp = token_log_probs(policy, tokens, mask)                    # (B, T)
        rows.append({"line": "", "setting": setting, "seed": seed, "step": step,
                     **measure(policy, tokenizer, seed, step, rollout, old_logp)})
        if step == steps:
            return rows

        advantages = grpo_advantages(rewards, GROUP_SIZE)[:, None].expand(mask.shape)
        if correction == "truncated weights":
            # No weight is below 0: to weigh the advantage is to weigh the loss.
            advantages = advantages * importance_weights(old_logp, rollout.logp, mask, CAP)
        if correction == "the ratio":
            old_logp = rollout.logp
        rng = torch_rng(seed, step, "stale mini-batches")
        for rows_of in mini_batches(torch.arange(len(mask)), MINIBATCHES, rng):
            m = mask[rows_of]
            logp = token_log_probs(policy, tokens[rows_of], m)
            loss, _ = grpo_loss(logp, old_logp[rows_of], None, advantages[rows_of], m,
                                mode="seq-sum", denominator=count_for(m, "seq-sum"))
            update(policy, optimizer, loss)
        past.append(copy.deepcopy(policy).to(dtype))


def measure(policy, tokenizer, seed, step, rollout, old_logp) -> dict:
    """How far the sampler is from the policy, and every EVAL_EVERY steps how often the policy's own
    answers are right."""
    log_ratio = (old_logp - rollout.logp)[rollout.mask]                         # (N,)
    # KL(μ‖π) of an answer, estimated by k1.
    numbers = {"kl": -log_ratio.sum().item() / len(rollout.mask),
               "spread": log_ratio.std().item(),
               "above_cap": (log_ratio.exp() > CAP).float().mean().item()}
    found = {column: f"{x:.4g}" for column, x in numbers.items()}
    found["accuracy"] = ""
    if step % EVAL_EVERY == 0:
        _, rewards = sample_answers(policy, tokenizer, seed, step, purpose="evaluation")
        found["accuracy"] = f"{rewards.mean().item():.4f}"
    return found


def run(out, seeds, quick) -> list[dict]:
    steps = STEPS // 3 if quick else STEPS
    rows = []
    for seed in range(seeds):
        for name, differs in SAMPLERS.items():
            # A fresh sampler's weights are 1.
            for correction in CORRECTIONS if differs else [""]:
                setting = " + ".join(filter(None, (name, correction)))
                file = f"stale {setting} {steps}-{seed}.csv".replace(" ", "_")
                rows += run_once(out / "runs" / file, functools.partial(
                    train, setting, correction, seed, steps, **differs))
    # The steps in which accuracy was measured.
    return [row for row in rows if row["accuracy"]]
