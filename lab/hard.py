"""A world of rare rewards: sums of four numbers, of which one answer in fifty is right at first.

    12+34+56+7=<think>12+34=46, 46+56=102, 102+7=109</think>109     2 or 3 answers in 100; mostly right
    12+34+56+7=121                                                  all others; hardly ever right

Of sixteen groups of eight answers, two or three hold a right one: the others teach GRPO nothing.
How soon the two or three are found, and how much one of them may move the policy, is what methods
differ in here. So what counts is not the end but the way: `pace` measures it from metrics.csv.

The model is a third of the built-in one: `write` puts an untrained one of 0.27 M parameters where
train_sft.py --model finds it, so that an SFT model takes a minute and a half of one core.
"""
from pathlib import Path

import torch

from model import ModelConfig, Transformer
from support.plot import read_metrics
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer

SMALLER = dict(dim=96, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=192, max_seq_len=128,
               rope_theta=100.0, qk_norm=True)


def write(folder: Path) -> None:
    """An untrained model, as FOLDER/small."""
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    model = Transformer(ModelConfig(tokenizer.vocab_size, **SMALLER))
    save_pretrained(model, tokenizer, Path(folder) / "small")


def pace(run: Path) -> dict[str, float]:
    """How soon a run learned, from the rewards of its own samples: a number for each.

    mean_reward: over all steps, which is the area under the curve. half_step: the first step at
    which half of the samples are right, and one more than the last if there is none;
    half_samples: how many answers were sampled until its end."""
    rows = read_metrics(run)
    rewards = [float(row["reward"]) for row in rows]
    half = next((i for i, reward in enumerate(rewards) if reward >= 0.5), len(rows))
    sampled = [float(row["samples"]) for row in rows]
    per_step = sum(sampled) / len(rows)
    missing = per_step if half == len(rows) else 0.0
    return {"mean_reward": sum(rewards) / len(rewards), "half_step": half + 1,
            "half_samples": sum(sampled[:half + 1]) + missing,
            "no_signal_first": sum(float(row.get("no_signal") or 0) for row in rows[:5]) / 5}
