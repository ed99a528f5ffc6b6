"""6. GRPO: a group of answers to the same prompt takes the critic's place (arXiv:2402.03300).

    A_i = (R_i - mean of its group) / (std of its group)          the same for all of its tokens
    loss = -min(ρ_t A, clip(ρ_t, 1 - ε, 1 + ε) A) + β k3_t,   k3 = x - 1 - log x,  x = π_ref / π
           averaged over each answer, then over answers

The mean of other answers to the same prompt says what to expect of it, as a critic does, and needs
no network. Where a program checks answers, no reward model is needed either: of four models two are
left. The KL penalty moves from the reward into the loss, as the estimator k3, which is never
negative. What is lost is the credit for single tokens, and every group whose answers are all right
or all wrong: its advantages are 0, and of its loss only the KL penalty is left.
"""
import copy
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from rollout import generate, token_log_probs
from support.cli import script
from support.ladder import Log, check_answers, load_sft, make_prompts
from support.models import torch_rng

STEPS = 15
ANSWERS = 128           # per step
GROUP_SIZE = 8          # answers to each prompt
MAX_NEW_TOKENS = 32
LR = 2e-4
EPOCHS = 2              # updates per step
CLIP = 0.2
KL_COEF = 0.05          # β


def estimate_advantages(rewards):
    """(B,) -> (B,). The answers of a group are consecutive."""
    groups = rewards.view(-1, GROUP_SIZE)                                       # (B / G, G)
    above_mean = groups - groups.mean(1, keepdim=True)
    return (above_mean / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def policy_loss(logp, old_logp, ref_logp, advantages, mask):
    """advantages (B,), others (B, T) -> 0-dim. mask: True where a token is the policy's own."""
    advantages = advantages[:, None]
    ratio = (logp - old_logp).exp()                                             # (B, T)
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)             # (B, T)
    k3 = (ref_logp - logp).exp() - 1 - (ref_logp - logp)                        # (B, T)
    loss = (loss + KL_COEF * k3) * mask
    return (loss.sum(1) / mask.sum(1)).mean()


def train(seed=0, steps=STEPS):
    policy, tokenizer = load_sft()
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    log = Log(__file__, policy, tokenizer)

    for step in range(steps):
        # Sample a group of answers to each prompt, and check them.
        prompts = make_prompts(tokenizer, ANSWERS // GROUP_SIZE, seed, step)
        prompts = [prompt for prompt in prompts for _ in range(GROUP_SIZE)]
        rollout = generate(policy, prompts, MAX_NEW_TOKENS, tokenizer.stop_ids,
                           generator=torch_rng(seed, step, "ladder sampling"))
        tokens, mask = rollout.tokens, rollout.mask                             # (B, T)
        rewards = check_answers(rollout, tokenizer)                             # (B,)
        log.add(step, rollout, rewards)
        with torch.no_grad():
            old_logp = token_log_probs(policy, tokens, mask)                    # (B, T)
            ref_logp = token_log_probs(reference, tokens, mask)                 # (B, T)
        advantages = estimate_advantages(rewards)                               # (B,)

        for epoch in range(EPOCHS):
            logp = token_log_probs(policy, tokens, mask)                        # (B, T)
            loss = policy_loss(logp, old_logp, ref_logp, advantages, mask)
            log.add_noise(loss, logp)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    log.finish(steps)
    return log


if __name__ == "__main__":
    script(train)
