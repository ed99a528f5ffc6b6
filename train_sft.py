"""Supervised fine-tuning: the policy that everything else starts from.

    loss = -mean log π(answer token | what came before)          over the tokens of the answers, stop token included

With no arguments it trains a model of 0.8 M parameters from nothing on the built-in task, whose demonstrations are all correct.
At first all of them think, until the model can add; then more than half answer straight away, which it has no time to learn.
What comes out could reason and be right, but mostly blurts and is wrong.
"""
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from support.cli import RunConfig, parse, script, setting, user_errors
from support.models import numpy_rng, pick_device
from support.run import Run, model_directory
from support.data import encode_prompt, hold_out, pad_batch, read_demonstrations, take
from task import REASON_SHARE, demonstration, held_out_problems, sum_problems, sum_reward
from evaluate import evaluate
from losses import sft_loss
from model import ModelConfig, Transformer
from support.pretrained import load_pretrained
from rollout import in_micro_batches, micro_batches, token_log_probs
from support.parallel import summed
from support.tokenizer import builtin_tokenizer

MAX_NEW_TOKENS = 32                     # of an answer, in evaluations
SMALL = dict(dim=128, n_layers=5, n_heads=4, n_kv_heads=2, ffn_dim=256, max_seq_len=128, rope_theta=100.0, qk_norm=True)      # 0.8 M parameters


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "sft"
    model: str = setting("", "a Hugging Face or run directory to start from, instead of a new small model")
    steps: int = setting(1000, "steps, of one update each", low=1)
    batch_size: int = setting(64, "examples a step", low=1)
    lr: float = setting(2e-3, "peak learning rate; warm-up over a tenth of the steps, constant, then linear to 0 over the last quarter", low=0.0)
    weight_decay: float = setting(0.1, "of AdamW", low=0.0)
    eval_every: int = setting(250, "steps between evaluations; 0: only at the end", low=0)
    save_every: int = setting(250, "steps between checkpoints; 0: only at the end", low=0)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)
    torch.manual_seed(config.seed)                                        # the initial weights

    # 1. The model, and a function from a step to its examples: (prompt ids, answer ids), and further turns
    with user_errors():
        if config.model:
            start = model_directory(config.model)
            policy, tokenizer = load_pretrained(start, torch.float32, device)
            run.note(model=start)
        else:
            tokenizer = builtin_tokenizer()
            policy = Transformer(ModelConfig(tokenizer.vocab_size, **SMALL)).to(device)
        context = policy.config.max_seq_len
        run.note(data=config.data)
        if config.data:
            examples = read_demonstrations(config.data, tokenizer, context)
            train, held_out = hold_out(examples, config.data, config.eval_problems)
            batch = lambda step: [e["turns"] for e in take(train, config.batch_size, config.seed, step)]
        else:
            held_out = held_out_problems(config.eval_problems, tokenizer, context - MAX_NEW_TOKENS)

            def batch(step):
                rng = numpy_rng(config.seed, step, f"{config.algorithm} prompts")
                reason_share = 1.0 if step < 0.65 * config.steps else REASON_SHARE
                return [(encode_prompt(tokenizer, p["prompt"]),
                         tokenizer.encode(demonstration(p["prompt"], rng.random() < reason_share)) + [tokenizer.eos_id])
                        for p in sum_problems(config.batch_size, rng)]

    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True)
    parts = {"policy": policy, "optimizer": optimizer}
    first_step, _ = run.start(parts)

    for step in run.steps(first_step):
        started = time.perf_counter()
        # 2. One update, on micro-batches whose gradients add up to the batch's: every loss is divided by the batch's token count
        tokens, mask = pad_batch(batch(step), device)
        lr = config.lr * min(1, 10 * (step + 1) / config.steps, 4 * (1 - step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = 0.0
        for rows, T in micro_batches(mask, config.micro_batch_tokens):
            logp = token_log_probs(policy, tokens[rows, :T], mask[rows, :T])
            micro_loss, _ = sft_loss(logp, mask[rows, :T], denominator=mask.sum())
            micro_loss.backward()
            loss += micro_loss.item()
        grad_norm, loss = run.update(optimizer, policy), summed(loss)
        seconds = time.perf_counter() - started

        # 3. What people see
        row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens_per_second": mask.sum().item() / seconds,
               "seconds": seconds, "eval_loss": "", "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every):
            if config.data:
                tokens, mask = pad_batch([e["turns"] for e in held_out], device)
                logp = in_micro_batches(lambda *batch: token_log_probs(policy, *batch), tokens, mask, config.micro_batch_tokens)
                row["eval_loss"] = sft_loss(logp, mask)[0].item()
            else:
                row |= run.sample(step + 1, *evaluate(policy, tokenizer, sum_reward, held_out, MAX_NEW_TOKENS,
                                                      micro_batch_tokens=config.micro_batch_tokens))
        run.log(row, {"loss": f"{loss:.3f}", "tok/s": f"{row['tokens_per_second']:,.0f}"})
        run.save(step, parts)

    run.finish(policy, tokenizer, {"loss (nats a token)": ["loss", "eval_loss"], "accuracy": ["eval_greedy", "eval_sampled"],
                                   "gradient norm": ["grad_norm"]})


if __name__ == "__main__":
    script(main)
