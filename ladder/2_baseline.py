"""2. A baseline: what counts is how much better than usual an answer was (Williams 1992).

    ∇J = E[ (R - b) Σ_t ∇log π(a_t | s_t) ],   b = mean of R over the batch

Subtracting a number b that does not depend on the answer leaves the expectation as it is, because
E[ Σ_t ∇log π ] = 0. It changes the variance: which b is best depends on the task (README.md). Now
wrong answers are pushed down, and a number that is added to all rewards changes nothing: try
OFFSET = 1.0 here and one rung below.
(The mean holds the answer's own reward too, which shrinks the gradient by 1/B and no more.)
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


def estimate_advantages(rewards):
    """(B,) -> (B,)"""
    return rewards - rewards.mean()


def policy_loss(logp, advantages, mask):
    """(B, T), (B,), (B, T) -> 0-dim. mask: True where a token is the policy's own."""
    loss = -logp * advantages[:, None]                                          # (B, T)
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
        advantages = estimate_advantages(rewards)                               # (B,)

        # One update.
        logp = token_log_probs(policy, tokens, mask)                            # (B, T)
        loss = policy_loss(logp, advantages, mask)
        log.add_noise(loss, logp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    log.finish(steps)
    return log


if __name__ == "__main__":
    script(train)
