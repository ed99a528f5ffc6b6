"""Forgetting: a model that knows two tasks is trained by reward on one. What is left of the other?

    rfbeacd=dcaebf       reverse: trained by reward, 1 for the right answer and 0 for any other
    sfbeacd=abcdef       sort: never asked for in that training, only measured

Both tasks were learned from demonstrations, half and half, by all weights of a small model, until
about half of the reversed answers are right. Then GRPO learns to reverse, in the manner of
ladder/6_grpo.py, and nothing asks for sorting any more. Remedies: a KL penalty on the answers of
the trained task; demonstrations of sorting in every update (InstructGPT's PPO-ptx, Ouyang et al.
2022, arXiv:2203.02155). To compare: the same updates by demonstrations of reversing, without any
reward (Shenfeld et al. 2025, arXiv:2509.04259: reward forgets less than imitation).
"""
import copy
import functools
from pathlib import Path

import torch

from advantages import grpo_advantages
from lab.loops import imitate, imitation_loss, run_once, update
from losses import grpo_loss
from rollout import generate, token_log_probs
from support.data import repeat_each
from support.metrics import token_kl
from support.models import numpy_rng, torch_rng
from support.tokenizer import builtin_tokenizer

TRAINED, OTHER = "reverse", "sort"
LETTERS, LENGTH = "abcdefghij", 6
SIZES = dict(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=128, max_seq_len=64,
             rope_theta=100.0, qk_norm=True)
SFT_STEPS, SFT_BATCH, SFT_LR = 125, 64, 3e-3
STEPS, LR = 80, 3e-4
ANSWERS, GROUP_SIZE = 128, 8    # per step; to each prompt
EPOCHS = 2                      # updates per step
DEMONSTRATIONS = 32             # of the other task in each update, or of the trained one alone
EVAL_EVERY, PROBLEMS = 10, 256

# β, the weight of the SFT loss on the other task's demonstrations, and whether there is a reward.
SETTINGS = {
    "β = 0": (0.0, 0.0, True),
    "β = 0.1": (0.1, 0.0, True),
    "β = 0.5": (0.5, 0.0, True),
    "demonstrations of the other task": (0.0, 0.5, True),
    "imitation instead of reward": (0.0, 0.0, False),
}


def make_examples(task: str, n: int, rng, tokenizer) -> list[list[list[int]]]:
    """n demonstrations: [ids of the prompt, ids of its right answer]."""
    examples = []
    for letters in rng.choice(list(LETTERS), (n, LENGTH)):
        text = "".join(letters)
        answer = "".join(sorted(text)) if task == "sort" else text[::-1]
        examples.append([tokenizer.encode(f"{task[0]}{text}="),
                         tokenizer.encode(answer) + [tokenizer.eos_id]])
    return examples


def sample_answers(policy, tokenizer, examples, generator):
    """-> an answer to each example, and its reward: 1 if it is the right one, else 0. (B,)"""
    rollout = generate(policy, [prompt for prompt, _ in examples], LENGTH + 1, tokenizer.stop_ids,
                       generator=generator)
    rewards = [float(ids == right) for ids, (_, right) in zip(rollout.responses(), examples)]
    return rollout, torch.tensor(rewards)


def train_start(seed: int):
    """The model that knows both tasks. -> it and its tokenizer"""
    tokenizer = builtin_tokenizer()

    def draw_rows(step):
        rng = numpy_rng(seed, step, "forgetting: both tasks")
        examples = make_examples(TRAINED, SFT_BATCH // 2, rng, tokenizer)
        return examples + make_examples(OTHER, SFT_BATCH // 2, rng, tokenizer)
    policy = imitate(draw_rows, tokenizer.vocab_size, SIZES, SFT_STEPS, SFT_LR, seed, max_norm=1.0)
    return policy, tokenizer


def train(start, tokenizer, seed: int, steps: int, kl_coef: float, other_coef: float,
          by_reward: bool) -> list[dict]:
    """On the trained task. -> what is measured, every EVAL_EVERY steps"""
    policy = copy.deepcopy(start)
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    rows = []
    for step in range(steps + 1):
        if step % EVAL_EVERY == 0:
            rows.append({"step": step, **measure(policy, start, tokenizer)})
        if step == steps:
            return rows

        rng = numpy_rng(seed, step, "forgetting: prompts")
        other_rng = numpy_rng(seed, step, "forgetting: demonstrations")
        if not by_reward:
            for _ in range(EPOCHS):
                examples = make_examples(TRAINED, DEMONSTRATIONS, rng, tokenizer)
                update(policy, optimizer, imitation_loss(policy, examples))
            continue
        prompts = make_examples(TRAINED, ANSWERS // GROUP_SIZE, rng, tokenizer)
        rollout, rewards = sample_answers(policy, tokenizer, repeat_each(prompts, GROUP_SIZE),
                                          torch_rng(seed, step, "forgetting: sampling"))
        tokens, mask = rollout.tokens, rollout.mask                             # (B, T)
        with torch.no_grad():
            ref_logp = token_log_probs(start, tokens, mask)                     # (B, T)
        advantages = grpo_advantages(rewards, GROUP_SIZE)                       # (B,)
        for _ in range(EPOCHS):
            logp = token_log_probs(policy, tokens, mask)                        # (B, T)
            loss, _ = grpo_loss(logp, rollout.logp, ref_logp, advantages, mask, kl_coef=kl_coef)
            if other_coef:
                examples = make_examples(OTHER, DEMONSTRATIONS, other_rng, tokenizer)
                loss = loss + other_coef * imitation_loss(policy, examples)
            update(policy, optimizer, loss)


@torch.no_grad()
def measure(policy, start, tokenizer) -> dict:
    """Of each task, the share of sampled answers that are right, and the KL to the start in nats
    per answer. The problems and the noise are the same every time."""
    row = {}
    for name, task in (("trained", TRAINED), ("other", OTHER)):
        examples = make_examples(task, PROBLEMS, numpy_rng(0, 0, f"evaluation: {task}"), tokenizer)
        rollout, rewards = sample_answers(policy, tokenizer, examples,
                                          torch_rng(0, 0, "evaluation"))
        kl = token_kl(policy, start, rollout.tokens, rollout.mask).sum(1).mean()
        row |= {name: rewards.mean().item(), f"{name}_kl": kl.item()}
    # What a penalty would see.
    row["answer_kl"] = row.pop("trained_kl")
    return row


def run_seed(seed: int, steps: int = STEPS) -> list[dict]:
    """All settings, from one start."""
    start, tokenizer = train_start(seed)
    rows = []
    for setting, how in SETTINGS.items():
        for row in train(start, tokenizer, seed, steps, *how):
            rows.append({"line": "", "setting": setting, "seed": seed, **row})
    return rows


def run(out: Path, seeds: int, quick: bool) -> list[dict]:
    """The rows of forgetting.csv."""
    steps = STEPS // 2 if quick else STEPS
    rows = []
    for seed in range(seeds):
        rows += run_once(out / "runs" / f"forgetting_{steps}-{seed}.csv",
                         functools.partial(run_seed, seed, steps))
    return rows
