"""Supervised fine-tuning: the policy that everything else starts from.

    loss = -mean log π(answer token | what came before)

over the tokens of the answers, stop token included. With no arguments it trains a model of 0.8 M
parameters from nothing on the built-in task, whose demonstrations are all correct. At first all of
them think, until the model can add; then more than half answer straight away, which it has no time
to learn. What comes out could reason and be right, but mostly blurts and is wrong.
"""
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils import clip_grad_norm_

from evaluate import evaluate
from losses import sft_loss
from model import ModelConfig, Transformer
from rollout import micro_batches, token_log_probs
from support import parallel
from support.cli import RunConfig, parse, refuse, script, setting, user_errors
from support.data import hold_out, pad_batch, read_demonstrations, take
from support.metrics import Averages, step_metrics
from support.models import numpy_rng, pick_device
from support.rl import load_start
from support.run import Run
from support.tokenizer import builtin_tokenizer
from task import (FIRST_PART, MAX_NEW_TOKENS, REASON_SHARE, SFT_STEPS, TASKS, demonstration,
                  encode_problems, held_out_problems, make_problems, task_reward)

# 0.8 M parameters.
SMALL = dict(dim=128, n_layers=5, n_heads=4, n_kv_heads=2, ffn_dim=256, max_seq_len=128,
             rope_theta=100.0, qk_norm=True)


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "sft"
    temperature: ClassVar[float] = 1.0
    model: str = setting(
        "", "a Hugging Face or run directory to start from, or OWNER/NAME on the hub, instead of "
        "a new small model")
    task: str = setting("sums", "the built-in task; products may ask a calculator",
                        choices=tuple(TASKS))
    steps: int | None = setting(None, "steps, of one update each; 1000, of long sums 700, of "
                                "products 200", low=1)
    first_part: float | None = setting(
        None, "share of the steps in which all demonstrations think or ask; 0.65, of long sums 0.9",
        low=0.0, high=1.0)
    reason_share: float | None = setting(
        None, "of the later demonstrations, those that think or ask; 0.4, of long sums 0.03, of "
        "products 0.1", low=0.0, high=1.0)
    batch_size: int = setting(64, "examples per step", low=1)
    lr: float = setting(2e-3, "peak learning rate; warm-up over a tenth of the steps, constant, "
                        "then linear to 0 over the last quarter", low=0.0)
    weight_decay: float = setting(0.1, "of AdamW", low=0.0)
    eval_every: int = setting(250, "steps between evaluations; 0: only at the end", low=0)
    save_every: int = setting(250, "steps between checkpoints; 0: only at the end", low=0)

    def __post_init__(self):
        # Of an answer, in evaluations.
        self.max_new_tokens = MAX_NEW_TOKENS[self.task]
        if self.steps is None:
            self.steps = SFT_STEPS[self.task]
        if self.first_part is None:
            self.first_part = FIRST_PART[self.task]
        if self.reason_share is None:
            self.reason_share = REASON_SHARE[self.task]

    def check(self, given: dict) -> None:
        """Refuse flags that have no effect."""
        if self.data:
            refuse(given, "task", "first_part", "reason_share", why="with --data")


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. The model, and a function from a step to its demonstrations: (prompt ids, answer ids), and
    #    further turns.
    torch.manual_seed(config.seed)                                          # of the initial weights
    policy, tokenizer = load_model(config, run, device)
    batch, held_out = load_demonstrations(config, tokenizer, policy.config.max_seq_len)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.99),
                                  weight_decay=config.weight_decay, fused=True)
    run.start(policy=policy, optimizer=optimizer)

    for step in run.steps():
        started = time.perf_counter()
        tokens, mask = pad_batch(batch(step), device)                       # (B, T)
        lr = config.lr * min(1, 10 * (step + 1) / config.steps, 4 * (1 - step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr

        # 2. One update, in micro-batches whose gradients add up to the batch's: each loss is
        #    divided by the number of tokens of the whole batch.
        averages = Averages()
        rows = parallel.my_rows(torch.arange(len(tokens), device=device))
        for micro, T in micro_batches(mask, config.micro_batch_tokens, rows):
            t, m = tokens[micro, :T], mask[micro, :T]
            logp = token_log_probs(policy, t, m)
            loss, _ = sft_loss(logp, m, denominator=mask.sum())
            loss.backward()
            averages.add({"loss": loss.detach()}, weight=1)                 # a share of the sum
        parallel.sum_gradients(policy)
        grad_norm = clip_grad_norm_(policy.parameters(), 1.0).item()
        if 0 < grad_norm < math.inf:
            optimizer.step()
        optimizer.zero_grad()

        # 3. What people see.
        row = {"step": step + 1, **averages.result(), "lr": lr,
               **step_metrics([grad_norm], mask, started),
               "eval_loss": "", "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every):
            if config.data:
                row["eval_loss"] = evaluate_loss(policy, held_out, config, device)
            else:
                row |= run.log_samples(step + 1, *evaluate(policy, tokenizer, task_reward, held_out,
                                                           config))
        run.log(row, [grad_norm])
        run.save(step)

    run.finish(policy, tokenizer)


@user_errors()
def load_model(config, run, device):
    """-> the policy and its tokenizer: of --model, or a new small model with the built-in one."""
    if config.model:
        return load_start(config, None, run, device)
    run.note(data=config.data)
    tokenizer = builtin_tokenizer()
    return Transformer(ModelConfig(tokenizer.vocab_size, **SMALL)).to(device), tokenizer


@user_errors()
def load_demonstrations(config, tokenizer, context: int):
    """-> a function from a step to its turns of ids, alternately given and learned; and what
    evaluations use: examples of --data, or problems of the built-in task."""
    if config.data:
        examples = read_demonstrations(config.data, tokenizer, context)
        train, held_out = hold_out(examples, config.data, config.eval_problems)

        def batch(step):
            return [example["turns"]
                    for example in take(train, config.batch_size, config.seed, step)]
        return batch, held_out

    def batch(step):
        rng = numpy_rng(config.seed, step, "sft prompts")
        is_first = step < config.first_part * config.steps
        reason_share = 1.0 if is_first else config.reason_share
        rows = []
        problems = make_problems(config.task, config.batch_size, rng)
        for problem in encode_problems(problems, tokenizer):
            texts = demonstration(problem["prompt"], rng.random() < reason_share)
            *turns, answer = [tokenizer.encode(text) for text in texts]
            rows.append([problem["ids"], *turns, answer + [tokenizer.eos_id]])
        return rows
    longest = context - config.max_new_tokens
    return batch, held_out_problems(config.task, config.eval_problems, tokenizer, longest)


def evaluate_loss(policy, held_out, config, device) -> float:
    """The mean negative log-likelihood of a token of the held-out answers."""
    tokens, mask = pad_batch([example["turns"] for example in held_out], device)
    logp = parallel.map_micro_batches(token_log_probs, policy, tokens, mask,
                                      config.micro_batch_tokens)
    loss, _ = sft_loss(logp, mask)
    return loss.item()


if __name__ == "__main__":
    script(main)
