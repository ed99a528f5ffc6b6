"""7. DPO: the optimum of rung 5, fitted to pairs without sampling (arXiv:2305.18290).

    loss = -log σ( r(chosen) - r(rejected) ),   r = β log(π(answer) / π_ref(answer))

Rung 5 maximises score - β KL(π‖π_ref). The policy that does so best is π ∝ π_ref exp(score / β);
solved for the score, this is r, up to a number that is the same for all answers to a prompt and
cancels in the difference. So the loss of the reward model, on r, trains the policy at once.

More differs here than between other rungs, because the loop does: pairs are sampled once, at the
start, so there are no rewards, no advantages and no ratio to an old policy. What stays is the
start, the reference and its β, and that it is log π(answer) that learns.
"""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.nn.functional import logsigmoid

from rollout import token_log_probs
from support.cli import script
from support.ladder import Log, load_sft
from train_rm import pad_pairs, sample_pairs

STEPS = 15
PAIRS = 32              # per step; a pair: a right and a wrong answer to the same problem
MAX_NEW_TOKENS = 32
LR = 2e-4
BETA = 0.1


def policy_loss(logp, ref_logp):
    """Log-probs of whole answers, chosen ones and rejected ones. (2, P), (2, P) -> 0-dim"""
    chosen, rejected = BETA * (logp - ref_logp)                                 # (P,), (P,)
    return -logsigmoid(chosen - rejected).mean()


def answer_log_probs(policy, tokens, mask):
    """log π(answer | prompt), the sum over its tokens. (2, P, T), (2, P, T) -> (2, P)"""
    logp = token_log_probs(policy, tokens.flatten(0, 1), mask.flatten(0, 1))    # (2P, T)
    return logp.sum(1).view(2, -1)


def train(seed=0, steps=STEPS):
    policy, tokenizer = load_sft()
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    log = Log(__file__, policy, tokenizer)

    # Pairs, and what the reference, which the policy still is, says of them.
    pairs = sample_pairs(policy, tokenizer, PAIRS * steps, seed, MAX_NEW_TOKENS)
    tokens, mask = pad_pairs(pairs, "cpu")                                      # (2, all, T)
    with torch.no_grad():
        ref_logp = answer_log_probs(policy, tokens, mask)                       # (2, all)

    for step in range(steps):
        if step % 5 == 0:
            log.add(step)
        rows = slice(PAIRS * step, PAIRS * (step + 1))
        logp = answer_log_probs(policy, tokens[:, rows], mask[:, rows])         # (2, P)
        loss = policy_loss(logp, ref_logp[:, rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    log.finish(steps)
    return log


if __name__ == "__main__":
    script(train)
