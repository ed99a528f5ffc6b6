"""The reward model: a Transformer with a scalar head, trained on pairs to score the better answer
higher (Bradley-Terry).

    P(chosen beats rejected) = σ(r(chosen) - r(rejected));   loss = -log of it

The score is read at the last token of an answer. On the built-in task the pairs are the SFT model's
own samples: two answers to one prompt, the one that the verifier calls right is the chosen one. The
reward model sees only such pairs, as it would see people's.
"""
import json
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils import clip_grad_norm_

import train_sft
from evaluate import answer
from losses import reward_model_loss
from model import ScalarModel
from rollout import micro_batches, sequence_scores
from support import parallel
from support.cli import RunConfig, UserError, parse, refuse, script, setting, user_errors
from support.data import (drop_unusable, encode_completion, encode_examples, encode_prompt,
                          hold_out, pad_batch, read_jsonl, repeat_each, take)
from support.metrics import Averages, step_metrics
from support.models import numpy_rng, pick_device, torch_rng
from support.rl import load_start
from support.run import Run
from task import encode_problems, make_problems, task_reward


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "rm"
    steps: int = setting(100, "steps, of one update each", low=1)
    batch_size: int = setting(64, "pairs per step", low=1)
    pairs: int = setting(4096, "pairs sampled for the built-in task", low=1)
    max_new_tokens: int = setting(32, "tokens of a sampled answer, at most", low=1)
    lr: float = setting(5e-4, "learning rate, falling linearly to 0", low=0.0)
    eval_every: int = setting(50, "steps between evaluations; 0: only at the end", low=0)
    save_every: int = setting(50, "steps between checkpoints; 0: only at the end", low=0)

    def check(self, given: dict) -> None:
        """Refuse flags that have no effect."""
        if self.data:
            refuse(given, "pairs", "max_new_tokens", why="with --data, where no pairs are sampled")


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Pairs, and a model that starts as the SFT model with a head of zeros.
    policy, tokenizer = load_start(config, train_sft.main, run, device)
    train, held_out = load_pairs(config, policy, tokenizer, run)
    reward_model = ScalarModel(policy)
    del policy          # the reward model has a copy of its trunk
    optimizer = torch.optim.AdamW(reward_model.parameters(), lr=config.lr, betas=(0.9, 0.95),
                                  weight_decay=0.0, fused=True)
    run.start(reward_model=reward_model, optimizer=optimizer)

    for step in run.steps():
        started = time.perf_counter()
        pairs = take(train, config.batch_size, config.seed, step)
        tokens, mask = pad_pairs(pairs, device)                             # (2, P, T)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)

        # 2. One update; both answers of a pair go through the model together.
        averages = Averages()
        rows = parallel.my_rows(torch.arange(len(pairs), device=device))
        for micro, T in micro_batches(mask.any(0), config.micro_batch_tokens // 2, rows):
            chosen, rejected = score(reward_model, tokens[:, micro, :T], mask[:, micro, :T])
            loss, stats = reward_model_loss(chosen, rejected, denominator=len(pairs))
            loss.backward()
            averages.add({"loss": loss.detach()}, weight=1)                 # a share of the sum
            averages.add(stats, weight=len(micro) / len(pairs))
        parallel.sum_gradients(reward_model)
        grad_norm = clip_grad_norm_(reward_model.parameters(), 1.0).item()
        if 0 < grad_norm < math.inf:
            optimizer.step()
        optimizer.zero_grad()

        # 3. What people see: the share of held-out pairs that are ranked right.
        row = {"step": step + 1, **averages.result(), **step_metrics([grad_norm], mask, started),
               "eval_accuracy": ""}
        if run.due(step, config.eval_every):
            row |= run.log_samples(step + 1, *evaluate_pairs(reward_model, tokenizer, held_out,
                                                             config, device))
        run.log(row, [grad_norm])
        run.save(step)

    run.finish(reward_model, tokenizer)


def score(reward_model, tokens, mask):
    """(2, P, T) -> the scores of the chosen and of the rejected answers, (2, P)"""
    scores = sequence_scores(reward_model, tokens.flatten(0, 1), mask.flatten(0, 1))
    return scores.view(2, -1)


@torch.no_grad()
def evaluate_pairs(reward_model, tokenizer, held_out: list[dict], config, device,
                   shown: int = 6) -> tuple[dict[str, float], list[str]]:
    """-> {"eval_accuracy"}: the share of pairs ranked right; lines that show the first pairs."""
    tokens, mask = pad_pairs(held_out, device)
    n_right = 0
    rows = parallel.my_rows(torch.arange(len(held_out), device=device))
    for micro, T in micro_batches(mask.any(0), config.micro_batch_tokens // 2, rows):
        chosen, rejected = score(reward_model, tokens[:, micro, :T], mask[:, micro, :T])
        n_right += (chosen > rejected).sum()
    accuracy = parallel.all_reduce_sum(int(n_right)) / len(held_out)
    lines = []
    for i, pair in enumerate(held_out[:shown]):
        scores = score(reward_model, tokens[:, i:i + 1], mask[:, i:i + 1]).flatten().tolist()
        for side, value in zip(("chosen", "rejected"), scores):
            text = tokenizer.decode(pair["prompt"] + pair[side])
            lines.append(f"[{value:+.2f} {side}] {text}")
    return {"eval_accuracy": accuracy}, lines


# ------------------------------------------------------------------------------- pairs, as in DPO

@user_errors()
def load_pairs(config, policy, tokenizer, run) -> tuple[list[dict], list[dict]]:
    """Pairs of ids to train on and to evaluate on: sampled once a run, or from a JSONL file.

    {"prompt", "chosen", "rejected"}: ids, stop token included."""
    if not config.data:
        text = run.keep("pairs.jsonl", lambda: sampled_pairs(config, policy, tokenizer))
        rows = [json.loads(line) for line in text.split("\n") if line]
        train = [row["ids"] for row in rows if not row["held_out"]]
        held_out = [row["ids"] for row in rows if row["held_out"]]
        return train, held_out
    context = policy.config.max_seq_len

    def encode(columns):
        prompt = columns["prompt"]
        return {"prompt": encode_prompt(tokenizer, prompt),
                "chosen": encode_completion(tokenizer, prompt, columns["chosen"]),
                "rejected": encode_completion(tokenizer, prompt, columns["rejected"])}

    def reason_not(pair) -> str:
        lengths = len(pair["chosen"]), len(pair["rejected"])
        if pair["chosen"] == pair["rejected"]:
            return "chosen equal to rejected"
        if not pair["prompt"]:
            return "empty prompt"
        if min(lengths) < 2:
            return "empty answer"
        too_long = len(pair["prompt"]) + max(lengths) > context
        return f"longer than the context of {context} tokens" if too_long else ""

    examples = read_jsonl(config.data, ("prompt", "chosen", "rejected"))
    examples = encode_examples(examples, config.data, encode)
    examples = drop_unusable(examples, config.data, reason_not)
    return hold_out(examples, config.data, config.eval_problems)


def sampled_pairs(config, policy, tokenizer) -> str:
    """All pairs for the built-in task, a JSON object per line: texts to look at, whether it is held
    out, and the ids that are learned from."""
    lines = []
    for held_out, n, seed in ((False, config.pairs, config.seed), (True, config.eval_problems, 0)):
        for ids in sample_pairs(policy, tokenizer, n, seed, config.max_new_tokens, held_out,
                                config.micro_batch_tokens):
            # The answers' texts are without the stop token.
            row = {"prompt": tokenizer.decode(ids["prompt"]),
                   "chosen": tokenizer.decode(ids["chosen"][:-1]),
                   "rejected": tokenizer.decode(ids["rejected"][:-1]),
                   "held_out": held_out, "ids": ids}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def sample_pairs(policy, tokenizer, n: int, seed: int, max_new_tokens: int, held_out: bool = False,
                 micro_batch_tokens: int = 8192) -> list[dict]:
    """n pairs for the built-in task: two samples for one prompt, of which the verifier calls one
    right and the other wrong.

    Cut-off answers are left out: they can't be told from unfinished ones."""
    pairs = []
    # Blocks of 256 prompts. A policy that is nearly always right gives few pairs.
    for block in range(20 + n // 8):
        rng = numpy_rng(seed, block, f"pairs {held_out}")
        problems = make_problems("sums", 256, rng, held_out)
        encode_problems(problems, tokenizer)
        examples = repeat_each(problems, 2)
        answers, _ = answer(policy, tokenizer, task_reward, examples, max_new_tokens, 1.0,
                            torch_rng(seed, block, f"pairs {held_out}"), micro_batch_tokens)
        for problem, first, second in zip(problems, answers[::2], answers[1::2]):
            # By reward: the wrong one first.
            (low, [wrong], wrong_ended), (high, [right], right_ended) = sorted((first, second))
            if wrong_ended and right_ended and low < high:
                pairs.append({"prompt": problem["ids"], "chosen": right, "rejected": wrong})
        if len(pairs) >= n:
            return pairs[:n]
    raise UserError(f"found {len(pairs)} prompts with a right and a wrong answer in "
                    f"{(block + 1) * 256} tries, expected {n}")


def pad_pairs(pairs: list[dict], device, sides=("chosen", "rejected")):
    """tokens and mask (sides, P, T): all chosen answers, then all rejected ones."""
    rows = [(pair["prompt"], pair[side]) for side in sides for pair in pairs]
    tokens, mask = pad_batch(rows, device)
    shape = (len(sides), len(pairs), -1)
    return tokens.view(shape), mask.view(shape)


if __name__ == "__main__":
    script(main)
