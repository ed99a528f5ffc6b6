"""Six functions to write. Replace each `raise NotImplementedError` by the equation above it, then

    python exercises/check.py

says which are right, and what is wrong with the others. Where your own get stuck, the project's are
in advantages.py, losses.py and rollout.py.

Shapes: B rows, T tokens; column t speaks of token t. `mask` (B, T) is True where token t is an
action: sampled by the policy. It is False on the prompt, on padding, and on what a tool wrote in
the middle of an answer.
"""
import torch


def token_log_probs(model, tokens, mask):
    """log π(tokens[b, t] | tokens[b, :t]) at each action, 0 elsewhere. -> (B, T)

    model(tokens) gives logits (B, T, V); those at t score token t + 1. The first token of a row is
    never an action."""
    raise NotImplementedError


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation. (B, T) twice -> advantages, returns (B, T)

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)       after a row's last action, V(s_{t+1}) is 0
        A_t = δ_t + γ λ A_{t+1}
        returns = A + V

    values[b, t] is V(s_t), the value before token t. Here t + 1 is the row's next *action*: what is
    off the mask is skipped, as if it were not there. Both results are 0 off the mask."""
    raise NotImplementedError


def grpo_advantages(rewards, group_size):
    """A_i = (r_i - mean) / (std + 1e-4), both of the answer's group. (B,) -> (B,)

    The answers of a group are consecutive. std is unbiased: it divides by group_size - 1."""
    raise NotImplementedError


def clipped_loss(logp, old_logp, advantages, mask, epsilon):
    """PPO's loss: -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), the mean over all actions of the batch. 0-dim

    ρ = π / π_old. logp, old_logp, advantages, mask: (B, T)."""
    raise NotImplementedError


def kl_k3(logp, ref_logp):
    """k3 = x - 1 - log x,  x = π_ref / π: an estimate of KL(π‖π_ref) for each token. -> (B, T)

    It is unbiased for samples of π, and never negative."""
    raise NotImplementedError


def dpo_loss(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, beta):
    """-log σ(β [log π/π_ref (chosen) - log π/π_ref (rejected)]), the mean over pairs. 0-dim

    Four of (P,): log-probs, each summed over an answer. Margins may be large."""
    raise NotImplementedError
