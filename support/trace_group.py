"""What trace.py begins with: two policies, and a group with answers of every kind."""
import tempfile

import torch

import train_grpo
from rollout import row_lengths
from support.cli import UserError, user_errors
from support.data import repeat_each
from support.models import numpy_rng
from support.pretrained import load_pretrained
from support.rl import Reward
from support.run import find_model
from task import encode_problems, make_problems

GROUP = 4       # answers to the prompt
BATCHES = 40    # of 64 groups, in which a group is looked for
STEPS = 2       # from the reference to the policy


@user_errors()
def load(path: str):
    model, tokenizer = load_pretrained(find_model(path), torch.float32, torch.device("cpu"))
    return model.requires_grad_(False), tokenizer


def load_two(start: str, seed: int):
    """-> the model in `start`, what train_grpo.py makes of it in some steps, their tokenizer."""
    reference, tokenizer = load(start)
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/{STEPS} steps"
        train_grpo.main(["--model", start, "--steps", str(STEPS), "--eval-every", "0",
                         "--eval-problems", "1", "--seed", str(seed), "--device", "cpu",
                         "--out", run])
        policy, _ = load(run)
    return reference, policy, tokenizer


def find_group(config, policy, tokenizer):
    """The first group with an answer of every kind, with thinking and without, right and wrong; or
    that with the most kinds. -> problem; tokens, mask, sampled log-probs (B, T); rewards (B,)

    config: of train_grpo.py, for the sampling. UserError if no group has right and wrong ones."""
    reward = Reward(config, tokenizer, None, torch.device("cpu"))
    most = 0
    for batch in range(BATCHES):
        problems = make_problems("sums", 64, numpy_rng(config.seed, batch, "trace prompts"))
        examples = repeat_each(encode_problems(problems, tokenizer), GROUP)
        rollout, rewards = train_grpo.sample_answers(config, policy, tokenizer, reward, examples,
                                                     batch, config.temperature)
        texts = [tokenizer.decode(ids) for ids in rollout.responses()]
        for first in range(0, len(examples), GROUP):
            rows = slice(first, first + GROUP)
            thinks = [text.startswith("<think>") for text in texts[rows]]
            kinds = set(zip(thinks, rewards[rows].tolist()))
            # Once in a while a byte is sampled that is no letter of any text.
            is_readable = all(text.isascii() for text in texts[rows])
            if rewards[rows].std() > 0 and is_readable and len(kinds) > most:
                most, T = len(kinds), row_lengths(rollout.mask[rows]).max()
                found = (examples[first], rollout.tokens[rows, :T], rollout.mask[rows, :T],
                         rollout.logp[rows, :T], rewards[rows])
        if most == 4:
            break
    if not most:
        raise UserError(f"of {BATCHES * 64} groups of {GROUP} answers none has right and wrong "
                        "ones, so there is no advantage to show: expected a model that can add")
    return found
