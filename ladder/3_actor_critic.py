"""3. A critic: a second network learns what to expect, at every token (GAE, arXiv:1506.02438).

    δ_t = V(s_{t+1}) - V(s_t)           after the last token, V(s_{t+1}) is the reward itself
    A_t = δ_t + λ A_{t+1}               ∇J ≈ E[ Σ_t A_t ∇log π(a_t | s_t) ]
    critic's loss: (V(s_t) - target)² / 2,   target = A_t + V(s_t)

V(s_t) is the expected reward of an answer that begins so. One number for a whole answer becomes
one for each token: a token after which more is expected than before is pushed up, also in an answer
that is wrong in the end. λ = 1 believes the reward, λ = 0 the critic. The discount γ is 1.
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


def policy_loss(logp, advantages, mask):
    """(B, T), (B, T), (B, T) -> 0-dim. mask: True where a token is the policy's own."""
    loss = -logp * advantages                                                   # (B, T)
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
        values = token_values(critic, tokens, mask)                             # (B, T)
        advantages = estimate_advantages(rewards, values.detach(), mask)        # (B, T)

        # One update.
        loss = critic_loss(values, advantages + values.detach(), mask)
        if step >= CRITIC_STEPS:
            logp = token_log_probs(policy, tokens, mask)                        # (B, T)
            loss = loss + policy_loss(logp, advantages, mask)
            log.add_noise(loss, logp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    log.finish(steps)
    return log


if __name__ == "__main__":
    script(train)
