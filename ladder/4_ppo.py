"""4. PPO: several updates from the same answers, none of them too large (arXiv:1707.06347).

    ρ_t = π(a_t | s_t) / π_old(a_t | s_t)
    loss = -E[ min(ρ_t A_t, clip(ρ_t, 1 - ε, 1 + ε) A_t) ]

Sampling is expensive, so each batch is used EPOCHS times. After the first update the answers are
no longer the policy's own, but those of π_old: the ratio ρ corrects that. At ρ = 1 the gradient is
that of the rung below. The clip ends it for a token whose ρ has moved from 1 by more than ε in the
direction of its advantage; min keeps it where the move was in the wrong direction.
Left out: mini-batches, whitened advantages, a clip of the values. train_ppo.py has them.
"""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from model import ScalarModel
from rollout import generate, token_log_probs, token_values
from support.cli import script
from support.ladder import Log, check_answers, load_sft, make_prompts
from support.models import torch_rng

STEPS = 15
ANSWERS = 128           # per step, each to another problem
MAX_NEW_TOKENS = 32
LR = 2e-4
CRITIC_LR = 1e-3
CRITIC_STEPS = 2        # first steps, in which the critic learns alone
LAM = 0.95
EPOCHS = 2              # updates per step
CLIP = 0.2


def estimate_advantages(rewards, values, mask):
    """GAE, from the last token to the first. (B,), (B, T), (B, T) -> (B, T)"""
    advantages = torch.zeros_like(values)
    advantage, next_value = torch.zeros_like(rewards), rewards                  # (B,), (B,)
    for t in reversed(range(values.shape[1])):
        delta = next_value - values[:, t]
        advantage = (delta + LAM * advantage) * mask[:, t]
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = advantage
    return advantages


def policy_loss(logp, old_logp, advantages, mask):
    """Four of (B, T) -> 0-dim. mask: True where a token is the policy's own."""
    ratio = (logp - old_logp).exp()                                             # (B, T)
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)             # (B, T)
    return (loss * mask).sum() / mask.sum()


def critic_loss(values, returns, mask):
    return 0.5 * ((values - returns).square() * mask).sum() / mask.sum()


def train(seed=0, steps=STEPS):
    policy, tokenizer = load_sft()
    critic = ScalarModel(policy)
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    optimizer.add_param_group({"params": critic.parameters(), "lr": CRITIC_LR})
    log = Log(__file__, policy, tokenizer)

    for step in range(steps):
        # Sample an answer to each prompt, and check it.
        prompts = make_prompts(tokenizer, ANSWERS, seed, step)
        rollout = generate(policy, prompts, MAX_NEW_TOKENS, tokenizer.stop_ids,
                           generator=torch_rng(seed, step, "ladder sampling"))
        tokens, mask = rollout.tokens, rollout.mask                             # (B, T)
        rewards = check_answers(rollout, tokenizer)                             # (B,)
        log.add(step, rollout, rewards)
        with torch.no_grad():
            old_logp = token_log_probs(policy, tokens, mask)                    # (B, T)
            old_values = token_values(critic, tokens, mask)                     # (B, T)
        advantages = estimate_advantages(rewards, old_values, mask)             # (B, T)

        for epoch in range(EPOCHS):
            values = token_values(critic, tokens, mask)                         # (B, T)
            loss = critic_loss(values, advantages + old_values, mask)
            if step >= CRITIC_STEPS:
                logp = token_log_probs(policy, tokens, mask)                    # (B, T)
                loss = loss + policy_loss(logp, old_logp, advantages, mask)
                log.add_noise(loss, logp)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    log.finish(steps)
    return log


if __name__ == "__main__":
    script(train)
