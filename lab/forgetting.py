"""Forgetting: a model that knows two tasks is trained by reward on one. What is left of the other?

    sort fbeacd=abcdef          trained by reward: 1 for the right answer, 0 for any other
    reverse fbeacd=dcaebf       never asked for in that training; it is only measured
"""
import copy
import csv
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from advantages import grpo_advantages
from losses import grpo_loss, kl_exact, sft_loss
from model import ModelConfig, Transformer
from rollout import generate, token_log_probs
from support.data import pad_batch
from support.metrics import token_kl
from support.models import numpy_rng, torch_rng
from support.tokenizer import builtin_tokenizer

SIZES = dict(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=128, max_seq_len=64,
             rope_theta=100.0, qk_norm=True)
LETTERS, LENGTH = "abcdefghij", 6
TASKS = ("reverse", "sort")             # trained by reward, only measured
SFT_STEPS, SFT_LR = 500, 3e-3
STEPS, PROMPTS, GROUP_SIZE = 100, 16, 8
LR = 1e-3
PROBLEMS = 256


def make_examples(task, n, rng, tokenizer):
    """n demonstrations: ids of prompts and of their answers."""
    examples = []
    for _ in range(n):
        text = "".join(rng.choice(list(LETTERS), LENGTH))
        answer = "".join(sorted(text)) if task == "sort" else text[::-1]
        examples.append((tokenizer.encode(f"{task[0]}{text}="),
                         tokenizer.encode(answer) + [tokenizer.eos_id]))
    return examples


def imitate(policy, examples):
    tokens, mask = pad_batch(examples, "cpu")
    loss, _ = sft_loss(token_log_probs(policy, tokens, mask), mask)
    return loss


def train_sft(seed, steps=SFT_STEPS, lr=SFT_LR):
    torch.manual_seed(seed)
    tokenizer = builtin_tokenizer()
    policy = Transformer(ModelConfig(tokenizer.vocab_size, **SIZES))
    optimizer = torch.optim.AdamW(policy.parameters(), lr, betas=(0.9, 0.99))
    for step in range(steps):
        rng = numpy_rng(seed, step, "forgetting sft")
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, 10 * (step + 1) / steps, 4 * (1 - step / steps))
        loss = imitate(policy, make_examples("sort", 32, rng, tokenizer) + make_examples("reverse", 32, rng, tokenizer))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step(); optimizer.zero_grad()
        if step % 100 == 99: print(step, loss.item(), flush=True)
    return policy, tokenizer


def answer(policy, tokenizer, examples, rng):
    rollout = generate(policy, [p for p, _ in examples], LENGTH + 1, tokenizer.stop_ids, generator=rng)
    right = [float(got == want) for got, (_, want) in zip(rollout.responses(), examples)]
    return rollout, torch.tensor(right)


@torch.no_grad()
def measure(policy, start, tokenizer):
    row = {}
    for task in TASKS:
        examples = make_examples(task, PROBLEMS, numpy_rng(0, 0, f"eval {task}"), tokenizer)
        rollout, right = answer(policy, tokenizer, examples, torch_rng(0, 0, "evaluation"))
        row[task] = right.mean().item()
        row[f"{task}_kl"] = token_kl(policy, start, rollout.tokens, rollout.mask).sum().item() / PROBLEMS
    return row


def train(policy, tokenizer, seed, kl_coef=0.0, sft_coef=0.0, steps=STEPS, lr=LR, epochs=2):
    start = copy.deepcopy(policy)
    policy = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    rows = []
    for step in range(steps + 1):
        if step % 10 == 0:
            rows.append({"step": step, **measure(policy, start, tokenizer)})
        if step == steps:
            return rows
        rng = numpy_rng(seed, step, "forgetting prompts")
        examples = [e for e in make_examples(TASKS[0], PROMPTS, rng, tokenizer) for _ in range(GROUP_SIZE)]
        rollout, rewards = answer(policy, tokenizer, examples, torch_rng(seed, step, "forgetting sampling"))
        tokens, mask = rollout.tokens, rollout.mask
        with torch.no_grad():
            old_logp = token_log_probs(policy, tokens, mask)
            ref_logp = token_log_probs(start, tokens, mask)
        advantages = grpo_advantages(rewards, GROUP_SIZE)
        for _ in range(epochs):
            logp = token_log_probs(policy, tokens, mask)
            loss, _ = grpo_loss(logp, old_logp, ref_logp, advantages, mask, kl_coef=kl_coef)
            if sft_coef:
                loss = loss + sft_coef * imitate(policy, make_examples(TASKS[1], 32, rng, tokenizer))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step(); optimizer.zero_grad()
