"""What the worlds with a training loop of their own share."""
import json
import math
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from lab.report import write_csv, write_whole
from losses import sft_loss
from model import ModelConfig, Transformer
from rollout import token_log_probs
from support.data import pad_batch
from support.plot import read_csv


def imitate(draw_rows, vocab_size: int, settings: dict, steps: int, lr: float, seed: int,
            max_norm: float = math.inf):
    """A new model, trained on demonstrations. -> Transformer

    draw_rows(step): a batch, each row a list of ids that are alternately given and learned.
    settings: of the model; max_norm: of a gradient. The learning rate is that of train_sft.py."""
    torch.manual_seed(seed)
    policy = Transformer(ModelConfig(vocab_size, **settings))
    optimizer = torch.optim.AdamW(policy.parameters(), lr, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, 10 * (step + 1) / steps, 4 * (1 - step / steps))
        update(policy, optimizer, imitation_loss(policy, draw_rows(step)), max_norm)
    return policy


def imitation_loss(policy, rows: list[list[list[int]]]):
    """rows: as above, lists of ids that are alternately given and learned"""
    tokens, mask = pad_batch(rows, "cpu")
    loss, _ = sft_loss(token_log_probs(policy, tokens, mask), mask)
    return loss


def update(policy, optimizer, loss, max_norm: float = 1.0) -> None:
    loss.backward()
    clip_grad_norm_(policy.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def run_once(file: Path, run) -> list[dict]:
    """The rows that `run` returns, kept in a csv file: a run that is there is not run again."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_csv(file, run())
        print(f"{file.stem}: done", flush=True)
    return read_csv(file)


def make_once(file: Path, make):
    """What `make` returns, kept as JSON in the same way."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(make()))
    return json.loads(file.read_text(encoding="utf-8"))
