"""1. REINFORCE: make right answers more likely (Williams 1992).

    J = E[R]                            R: the reward of an answer, 1 if it is right, else 0
    ∇J = E[ R Σ_t ∇log π(a_t | s_t) ]   a_t: token t; s_t: the prompt and the tokens before it

The expectation is estimated by sampling: answer many problems, and push up the log-probability of
every token by the reward of its answer. Nothing says which of the tokens were good.
The loss is what has -∇J for a gradient. It is divided by the number of tokens, not of answers:
that scales the gradient, and Adam's step does not depend on a scale that changes slowly.
"""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from rollout import generate, token_log_probs
from support.cli import script
from support.ladder import Log, check_answers, load_sft, make_prompts
from support.models import torch_rng

STEPS = 15
ANSWERS = 128           # per step, each to another problem
MAX_NEW_TOKENS = 32
LR = 2e-4
OFFSET = 0.0            # added to every reward: try 1.0


def policy_loss(logp, rewards, mask):
    """(B, T), (B,), (B, T) -> 0-dim. mask: True where a token is the policy's own."""
    loss = -logp * rewards[:, None]                                             # (B, T)
    return (loss * mask).sum() / mask.sum()


def train(seed=0, steps=STEPS):
    policy, tokenizer = load_sft()
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    log = Log(__file__, policy, tokenizer)

    for step in range(steps):
        # Sample an answer to each prompt, and check it.
        prompts = make_prompts(tokenizer, ANSWERS, seed, step)
        rollout = generate(policy, prompts, MAX_NEW_TOKENS, tokenizer.stop_ids,
                           generator=torch_rng(seed, step, "ladder sampling"))
        tokens, mask = rollout.tokens, rollout.mask                             # (B, T)
        rewards = check_answers(rollout, tokenizer) + OFFSET                    # (B,)
        log.add(step, rollout, rewards)

        # One update.
        logp = token_log_probs(policy, tokens, mask)                            # (B, T)
        loss = policy_loss(logp, rewards, mask)
        log.add_noise(loss, logp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    log.finish(steps)
    return log


if __name__ == "__main__":
    script(train)
