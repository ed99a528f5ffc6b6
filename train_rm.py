"""The reward model: a Transformer with a scalar head, trained on pairs to score the better answer higher (Bradley-Terry).

    P(chosen beats rejected) = σ(r(chosen) - r(rejected));  loss = -log of it

The score is read at the last token of an answer. On the built-in task the pairs are the SFT model's own samples: two answers
to one prompt, the one that the verifier calls right is the chosen one. The reward model sees only such pairs, as it would see people's.
"""
import json
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

import train_sft
from support.cli import RunConfig, UserError, parse, refuse, script, setting, user_errors
from support.models import numpy_rng, pick_device, torch_rng
from support.run import Run, model_directory, trained
from support.data import (encode, encode_completion, encode_prompt, hold_out, pad_batch,
    read_jsonl, take, usable)
from task import sum_problems, sum_reward
from evaluate import answer
from losses import reward_model_loss
from model import ScalarModel
from support.pretrained import load_pretrained
from rollout import micro_batches, sequence_scores
from support.parallel import summed


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "rm"
    steps: int = setting(100, "steps, of one update each", low=1)
    batch_size: int = setting(64, "pairs a step", low=1)
    pairs: int = setting(4096, "pairs sampled for the built-in task", low=1)
    max_new_tokens: int = setting(32, "tokens of a sampled answer, at most", low=1)
    lr: float = setting(5e-4, "learning rate, falling linearly to 0", low=0.0)
    eval_every: int = setting(50, "steps between evaluations; 0: only at the end", low=0)
    save_every: int = setting(50, "steps between checkpoints; 0: only at the end", low=0)

    def check(self, given: dict) -> None:
        """Refuse flags that have no effect."""
        if self.data:
            refuse(given, "pairs", "max_new_tokens", why="with --data, where no pairs are sampled")


def sample_pairs(policy, tokenizer, n: int, seed: int, max_new_tokens: int, held_out: bool = False,
                 micro_batch_tokens: int = 8192) -> list[dict]:
    """n pairs for the built-in task: two samples for one prompt, of which the verifier calls one right and the other wrong.

    {"prompt", "chosen", "rejected"}: ids, stop token included. Cut-off answers are left out: they can't be told from unfinished ones."""
    pairs = []
    for block in range(20 + n // 8):                              # of 256 prompts; a policy that is nearly always right gives few pairs
        problems = sum_problems(256, numpy_rng(seed, block, f"pairs {held_out}"), held_out)
        examples = [{**p, "ids": encode_prompt(tokenizer, p["prompt"])} for p in problems for _ in range(2)]
        rewards, responses, finished, _ = answer(policy, tokenizer, sum_reward, examples, max_new_tokens, 1.0,
                                                 torch_rng(seed, block, f"pairs {held_out}"), micro_batch_tokens)
        for i in range(0, len(examples), 2):
            if finished[i] and finished[i + 1] and rewards[i] != rewards[i + 1]:
                right, wrong = (i, i + 1) if rewards[i] else (i + 1, i)
                pairs.append({"prompt": examples[i]["ids"], "chosen": responses[right], "rejected": responses[wrong]})
        if len(pairs) >= n:
            return pairs[:n]
    raise UserError(f"found {len(pairs)} prompts with a right and a wrong answer in {(block + 1) * 256} tries, expected {n}")


def sampled_pairs(config, policy, tokenizer) -> str:
    """All pairs for the built-in task, a JSON object a line.

    Texts to look at, whether it is held out, and the ids that are learned from."""
    lines = []
    for held_out, n, seed in ((False, config.pairs, config.seed), (True, config.eval_problems, 0)):
        for ids in sample_pairs(policy, tokenizer, n, seed, config.max_new_tokens, held_out,
                                config.micro_batch_tokens):
            # The answers' texts are without the stop token.
            chosen, rejected = (tokenizer.decode(ids[side][:-1]) for side in ("chosen", "rejected"))
            row = {"prompt": tokenizer.decode(ids["prompt"]), "chosen": chosen,
                   "rejected": rejected, "held_out": held_out, "ids": ids}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def load_pairs(config, policy, tokenizer, run) -> tuple[list[dict], list[dict]]:
    """Pairs of ids to train on and to evaluate on: sampled once a run, or from a JSONL file."""
    if not config.data:
        text = run.keep("pairs.jsonl", lambda: sampled_pairs(config, policy, tokenizer))
        rows = [json.loads(line) for line in text.split("\n") if line]
        train = [row["ids"] for row in rows if not row["held_out"]]
        return train, [row["ids"] for row in rows if row["held_out"]]
    context = policy.config.max_seq_len
    examples = encode(read_jsonl(config.data, ("prompt", "chosen", "rejected")), config.data, lambda e: {
        "prompt": encode_prompt(tokenizer, e["prompt"]),
        **{side: encode_completion(tokenizer, e["prompt"], e[side]) for side in ("chosen", "rejected")}})

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
    examples = usable(examples, config.data, reason_not)
    return hold_out(examples, config.data, config.eval_problems)


def pad_pairs(pairs: list[dict], device, sides=("chosen", "rejected")):
    """tokens and mask (sides, P, T): all chosen answers, then all rejected ones."""
    tokens, mask = pad_batch([(p["prompt"], p[side]) for side in sides for p in pairs], device)
    return tokens.view(len(sides), len(pairs), -1), mask.view(len(sides), len(pairs), -1)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Pairs, and a model that starts as the SFT model with a head of zeros
    with user_errors():
        start = model_directory(config.model or trained("runs/sft", train_sft.main, config))
        policy, tokenizer = load_pretrained(start, torch.float32, device)
        run.note(model=start, data=config.data)
        train, held_out = load_pairs(config, policy, tokenizer, run)
    reward_model = ScalarModel(policy)
    optimizer = torch.optim.AdamW(reward_model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    parts = {"reward_model": reward_model, "optimizer": optimizer}
    first_step, _ = run.start(parts)

    def score(tokens, mask):
        """(2, P, T) -> chosen (P,), rejected (P,)"""
        return sequence_scores(reward_model, tokens.flatten(0, 1), mask.flatten(0, 1)).view(2, -1)

    for step in run.steps(first_step):
        started = time.perf_counter()
        # 2. One update; both answers of a pair go through the model together
        tokens, mask = pad_pairs(take(train, config.batch_size, config.seed, step), device)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        totals = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
        for rows, T in micro_batches(mask.any(0), config.micro_batch_tokens // 2):
            chosen, rejected = score(tokens[:, rows, :T], mask[:, rows, :T])
            loss, stats = reward_model_loss(chosen, rejected, denominator=mask.shape[1])
            loss.backward()
            totals["loss"] += loss.item()
            for name, value in stats.items():
                totals[name] += value.item() * len(rows) / mask.shape[1]
        grad_norm, totals = run.update(optimizer, reward_model), summed(totals)
        seconds = time.perf_counter() - started

        # 3. What people see: the share of held-out pairs that are ranked right
        row = {"step": step + 1, **totals, "grad_norm": grad_norm, "tokens_per_second": mask.sum().item() / seconds, "seconds": seconds,
               "eval_accuracy": ""}
        if run.due(step, config.eval_every):
            tokens, mask = pad_pairs(held_out, device)
            with torch.no_grad():
                right = summed(sum((score(tokens[:, rows, :T], mask[:, rows, :T]).diff(dim=0) < 0).sum().item()
                                   for rows, T in micro_batches(mask.any(0), config.micro_batch_tokens // 2)))
            row["eval_accuracy"] = right / len(held_out)
            some = [(tokens[:, i:i + 1], mask[:, i:i + 1], held_out[i]) for i in range(min(6, len(held_out)))]
            with torch.no_grad():
                lines = [f"[{score(t, m)[k].item():+.2f} {side}] {tokenizer.decode(pair['prompt'] + pair[side])}"
                         for t, m, pair in some for k, side in enumerate(("chosen", "rejected"))]
            run.sample(step + 1, {"eval_accuracy": row["eval_accuracy"]}, lines)
        run.log(row, {"loss": f"{totals['loss']:.3f}", "accuracy": f"{totals['accuracy']:.3f}"})
        run.save(step, parts)

    run.finish(reward_model, tokenizer, {"loss (nats a pair)": ["loss"], "pairs ranked right (share)": ["accuracy", "eval_accuracy"],
                                         "score margin": ["margin"]})


if __name__ == "__main__":
    script(main)
