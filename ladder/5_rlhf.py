"""5. RLHF: a model of people's judgement is the reward, and a penalty keeps the policy near its
start (InstructGPT, arXiv:2203.02155; Ziegler et al., arXiv:1909.08593).

    r_t = -β (log π(a_t | s_t) - log π_ref(a_t | s_t));   after the last token: the model's score
    δ_t = r_t + V(s_{t+1}) - V(s_t)

Where no program can check an answer, a reward model is trained on pairs of which people preferred
one, and scores any answer. It knows only what it has seen: an optimiser finds answers that please
it and are wrong. The reference π_ref is the policy as it was at the start; the penalty, whose sum
over an answer estimates KL(π‖π_ref), makes it costly to leave. Try KL_COEF = 0 and more STEPS:
the score rises, and accuracy falls.
"""
import copy
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from model import ScalarModel
from rollout import generate, sequence_scores, token_log_probs, token_values
from support.cli import script
from support.ladder import Log, load_reward_model, load_sft, make_prompts
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
KL_COEF = 0.05          # β
UNFINISHED = -5.0       # the score of an answer that was cut off: the reward model never saw one


def estimate_advantages(scores, penalties, values, mask):
    """GAE, from the last token to the first. (B,), three of (B, T) -> (B, T)"""
    advantages = torch.zeros_like(values)
    advantage, next_value = torch.zeros_like(scores), scores                    # (B,), (B,)
    for t in reversed(range(values.shape[1])):
        delta = -penalties[:, t] + next_value - values[:, t]
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
    reference, reward_model = copy.deepcopy(policy), load_reward_model()
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    optimizer.add_param_group({"params": critic.parameters(), "lr": CRITIC_LR})
    log = Log(__file__, policy, tokenizer)

    for step in range(steps):
        # Sample an answer to each prompt, and score it.
        prompts = make_prompts(tokenizer, ANSWERS, seed, step)
        rollout = generate(policy, prompts, MAX_NEW_TOKENS, tokenizer.stop_ids,
                           generator=torch_rng(seed, step, "ladder sampling"))
        tokens, mask = rollout.tokens, rollout.mask                             # (B, T)
        with torch.no_grad():
            scores = sequence_scores(reward_model, tokens, mask)                # (B,)
            old_logp = token_log_probs(policy, tokens, mask)                    # (B, T)
            ref_logp = token_log_probs(reference, tokens, mask)                 # (B, T)
            old_values = token_values(critic, tokens, mask)                     # (B, T)
        scores = torch.where(rollout.finished, scores, UNFINISHED)
        penalties = KL_COEF * (old_logp - ref_logp)                             # (B, T)
        log.add(step, rollout, scores)
        advantages = estimate_advantages(scores, penalties, old_values, mask)   # (B, T)

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
