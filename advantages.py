"""Advantage estimators: how much better an action was than expected. Torch only: copy the file.

Column t of a (B, T) tensor belongs to token t. `mask` is 1 where token t is an action (sampled by
the policy) and 0 on prompts, padding and holes (a tool's output between two actions). Estimators
skip holes: the running sum and the next value pass through them unchanged, with no discount. Off
the mask inputs may hold any finite number and outputs are 0. Shapes that differ: ValueError.
"""
import torch
from torch import Tensor


def _same_shape(**tensors):
    shapes = {name: tuple(x.shape)
              for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")


def token_rewards(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor,
                  kl_coef: float) -> Tensor:
    """Rewards of RLHF: a KL penalty at every action, the answer's score at the last one. -> (B, T)

    r_t = -kl_coef * (log π(a_t|s_t) - log π_ref(a_t|s_t)) + [t is the row's last action] * score

    scores (B,); logp, ref_logp, mask (B, T). Ziegler et al. 2019 (arXiv:1909.08593), eq. 2."""
    _same_shape(logp=logp, ref_logp=ref_logp, mask=mask)
    _same_shape(scores=scores, rows=mask[:, 0])
    mask = mask.bool()
    logp = logp.masked_fill(~mask, 0)
    ref_logp = ref_logp.masked_fill(~mask, 0)
    penalty = -kl_coef * (logp - ref_logp)
    actions_left = mask.long().flip(1).cumsum(1).flip(1)            # (B, T), this one included
    is_last = mask & (actions_left == 1)
    return penalty + scores[:, None] * is_last


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + γ G_{t+1}, the Monte Carlo return. (B, T) -> (B, T). Sutton & Barto, eq. 3.9."""
    _same_shape(rewards=rewards, mask=mask)
    mask = mask.bool()
    returns = torch.zeros_like(1.0 * rewards)                       # which may be whole numbers
    running = torch.zeros_like(returns[:, 0])                       # (B,)
    for t in reversed(range(rewards.shape[1])):
        return_t = rewards[:, t] + gamma * running
        running = torch.where(mask[:, t], return_t, running)        # a hole changes nothing
        returns[:, t] = running
    return returns.masked_fill(~mask, 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95,
        bootstrap: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, a reverse loop. -> advantages, returns (B, T), unwhitened.

    δ_t = r_t + γ V(s_{t+1}) - V(s_t)      the TD error
    A_t = δ_t + γλ A_{t+1}                 λ=0: one-step TD;  λ=1: Monte Carlo return - V(s_t)
    returns = A + V                        the critic's target (TD(λ)), from raw advantages

    values[b, t] = V(tokens[b, :t]), the state before action t. bootstrap (B,): V after the row's
    last action; 0 (or None): the episode ended. On a GPU each column costs eight launches, some
    40 µs. Schulman et al. 2016 (arXiv:1506.02438), eq. 16."""
    _same_shape(rewards=rewards, values=values, mask=mask)
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap
    _same_shape(bootstrap=next_value, rows=mask[:, 0])
    mask = mask.bool()
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])                        # (B,)
    for t in reversed(range(values.shape[1])):
        value, is_action = values[:, t], mask[:, t]
        delta = rewards[:, t] + gamma * next_value - value
        advantage = delta + gamma * lam * running
        running = torch.where(is_action, advantage, running)        # a hole changes nothing
        next_value = torch.where(is_action, value, next_value)
        advantages[:, t] = running
    advantages = advantages.masked_fill(~mask, 0)
    returns = (advantages + values).masked_fill(~mask, 0)
    return advantages, returns


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns). (N,) each. 1: V is right, up to a constant."""
    unexplained = (returns - values).var()
    total = returns.var().clamp(min=1e-8)
    return 1 - (unexplained / total).item()


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) over all actions, unbiased; 0 of fewer than two. (B, T)
    shift_mean=False: the mean stays. Huang et al. 2024 (arXiv:2403.17031), details 13 and 18."""
    _same_shape(x=x, mask=mask)
    mask = mask.bool()
    if mask.sum() < 2:
        return torch.zeros_like(x)
    var, mean = torch.var_mean(x[mask])
    x = x.masked_fill(~mask, 0)
    whitened = (x - mean) * torch.rsqrt(var + eps)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0)


def _groups(rewards, group_size):
    """(B,) -> consecutive groups (B / G, G), and which of them hold one reward only (B / G, 1)."""
    if group_size < 2 or rewards.dim() != 1 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} do not divide into groups of "
                         f"{group_size} (2 or more)")
    groups = rewards.view(-1, group_size)
    all_equal = (groups == groups[:, :1]).all(1, keepdim=True)
    return groups, all_equal


def grpo_advantages(rewards: Tensor, group_size: int, scale: bool = True,
                    eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean) / (std + eps) in each group of G consecutive answers; std by G - 1. (B,)
    scale=False leaves out the std: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783). Equal rewards give
    exactly 0: rounding must not be divided by eps. DeepSeekMath (arXiv:2402.03300), sec. 4.1.2."""
    groups, all_equal = _groups(rewards, group_size)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale:
        advantages = advantages / (groups.std(1, keepdim=True) + eps)
    return advantages.masked_fill(all_equal, 0).flatten()


def rloo_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """A_i = r_i - mean of the *other* rewards of the group. (B,) -> (B,)
    Its baseline does not depend on the sample itself. Ahmadian et al. 2024 (arXiv:2402.14740)."""
    groups, all_equal = _groups(rewards, group_size)
    others = groups.sum(1, keepdim=True) - groups
    advantages = groups - others / (group_size - 1)
    return advantages.masked_fill(all_equal, 0).flatten()


def remax_advantages(rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    """ReMax (arXiv:2310.10505): r(sample) - r(greedy answer to its prompt). (B,), (B,) -> (B,)"""
    _same_shape(rewards=rewards, greedy_rewards=greedy_rewards)
    return rewards - greedy_rewards


def reinforce_pp_advantages(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Returns of token rewards, whitened over the batch instead of a group. (B, T) -> (B, T)
    Of score and KL penalty, see `token_rewards`. REINFORCE++, Hu et al. 2025 (arXiv:2501.03262)."""
    returns = discounted_returns(rewards, mask, gamma)
    return whiten(returns, mask)
