"""Log-probs, KL estimators and every loss. Torch only: copy the file.

(B,) is a number per sequence, (B, T) a number per token; column t belongs to token t, so nothing
here shifts. `mask` (bool, integer or float) is 1 where token t is an action; off it inputs may hold
any finite number, so every input is masked before it is subtracted or exponentiated. Log-probs are
in nats. Shapes that differ: ValueError. Old log-probs, advantages and returns get no gradient.

Every `*_loss` returns `(loss, stats)`: a 0-dim tensor to call `backward()` on and a dict of
detached 0-dim tensors, each a mean over the actions (or rows) that were given. `denominator`
replaces the batch's own count: give each micro-batch the whole batch's (`count_for`), and the
gradients add up to that of the undivided batch.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

LossAndStats = tuple[Tensor, dict[str, Tensor]]


def _same_shape(**tensors):
    shapes = {name: tuple(x.shape)
              for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")


def _on_mask(mask, **tensors):
    """The tensors, which must have the mask's shape, with 0 off the mask."""
    _same_shape(**tensors, mask=mask)
    off = ~mask.bool()
    return [x.masked_fill(off, 0) for x in tensors.values()]


def _at_least_float32(x):
    return x if x.dtype == torch.float64 else x.float()


def gather_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] in float32 at least; does not shift. (..., V), (...) -> (...)"""
    _same_shape(logits=logits[..., 0], tokens=tokens)
    logp = torch.log_softmax(_at_least_float32(logits), -1)
    token_logp = logp.gather(-1, tokens[..., None])
    return token_logp.squeeze(-1)


def entropy(logits: Tensor) -> Tensor:
    """H(π) = -Σ_v π(v) log π(v), in nats. (..., V) -> (...)"""
    logp = torch.log_softmax(_at_least_float32(logits), -1)
    return -(logp.exp() * logp).sum(-1)


def count_for(mask: Tensor, mode: str = "token-mean", length: int | None = None) -> Tensor:
    """What `aggregate` divides by: the actions, the rows that have any, or B * length. 0-dim.
    length: of seq-sum's constant, such as max_new_tokens; T if not given."""
    if mode == "token-mean":
        return mask.bool().sum()
    if mode == "seq-mean":
        return mask.bool().any(1).sum()
    if mode == "seq-sum":
        n_places = len(mask) * (length or mask.shape[1])
        return torch.tensor(n_places, device=mask.device)
    raise ValueError(f"unknown mode {mode!r}, expected token-mean, seq-mean or seq-sum")


def aggregate(x: Tensor, mask: Tensor, mode: str = "token-mean",
              denominator: Tensor | float | None = None) -> Tensor:
    """One number from (B, T). With no action at all it is 0.

    token-mean  Σ_bt x / Σ_bt mask      every token weighs the same (DAPO, arXiv:2503.14476)
    seq-mean    Σ_b mean_t(x_b) / rows  every answer weighs the same: a long one's token less (GRPO)
    seq-sum     Σ_bt x / (B T)          a constant divides, such as B * max_new_tokens, given as
                                        denominator (Dr. GRPO, arXiv:2503.20783)"""
    [x] = _on_mask(mask, x=x)
    if denominator is None:
        denominator = count_for(mask, mode)
    if mode == "seq-mean":
        lengths = mask.bool().sum(1)
        x = x.sum(1) / lengths.clamp(min=1)
    denominator = torch.as_tensor(denominator)
    return x.sum() / denominator.clamp(min=1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x mask / Σ mask over the whole tensor; 0 if the mask is empty. 0-dim."""
    return aggregate(x, mask, "token-mean")


def _row_mean(x, denominator=None):
    """(B,) -> 0-dim: Σ x / B, or over the whole batch's number of rows."""
    if x.dim() != 1:
        raise ValueError(f"found shape {tuple(x.shape)}, expected (B,): a number per sequence")
    if denominator is None:
        denominator = len(x)
    return x.sum() / max(denominator, 1)


def _mean(x):
    """For stats: the mean over rows, detached, 0 if there are none. (B,) -> 0-dim"""
    return _row_mean(_at_least_float32(x.detach()))


# --------------------------------------------------------------------------------------- KL(π‖ref)
# Estimates from samples of π, one per token; x = log π - log ref (Schulman 2020,
# joschu.net/blog/kl-approx.html). As a value, k1 and k3 are unbiased. As a loss they differ, in
# each state: E[∇k1] = 0, E[∇k2] = ∇KL(π‖ref), E[∇k3] = ∇KL(ref‖π). A loss that sums them over an
# answer holds its states fixed: that earlier tokens lead to later states counts in the reward only.

def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k1 = x. Unbiased, noisy, often negative. In the reward; as a loss it is mere noise. (B, T)"""
    _same_shape(logp=logp, ref_logp=ref_logp)
    return logp - ref_logp


def kl_k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k2 = x² / 2. Biased as a value, but in a state its gradient is that of KL(π‖ref). (B, T)"""
    return 0.5 * kl_k1(logp, ref_logp).square()


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k3 = exp(-x) - 1 + x. Unbiased, never negative: GRPO's. expm1 rounds less near 0. (B, T)"""
    x = kl_k1(logp, ref_logp)
    return torch.expm1(-x) + x


def kl_penalty(logp: Tensor, ref_logp: Tensor, mask: Tensor, estimator: str = "k3") -> Tensor:
    """k1, k2 or k3 of each action, 0 off the mask. (B, T)"""
    logp, ref_logp = _on_mask(mask, logp=logp, ref_logp=ref_logp.detach())
    estimators = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
    return estimators[estimator](logp, ref_logp)


def kl_exact(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π‖ref) = Σ_v π(v) (log π(v) - log ref(v)), over the vocabulary. (..., V) -> (...)"""
    _same_shape(logits=logits, ref_logits=ref_logits)
    logp = torch.log_softmax(_at_least_float32(logits), -1)
    ref_logp = torch.log_softmax(_at_least_float32(ref_logits), -1)
    return (logp.exp() * (logp - ref_logp)).sum(-1)


def adaptive_kl_coef(kl_coef: float, kl: float, target: float, batch_size: int,
                     horizon: float) -> float:
    """The next β: kl_coef * (1 + e * batch_size / horizon), e = clip(kl / target - 1, ±0.2).
    Never below 0, which would reward KL. kl: the mean over rows of the summed k1; target in the
    same unit; horizon in episodes. Ziegler et al. 2019 (arXiv:1909.08593), sec. 2.2."""
    error = float(kl) / target - 1
    error = min(max(error, -0.2), 0.2)
    factor = 1 + error * batch_size / horizon
    return max(0.0, float(kl_coef) * factor)


# ------------------------------------------------------------ losses of the models to start from

def sft_loss(logp: Tensor, mask: Tensor, denominator=None) -> LossAndStats:
    """-Σ mask log π / Σ mask: the mean negative log-likelihood of a token. (B, T)"""
    loss = -aggregate(logp, mask, "token-mean", denominator)
    return loss, {"nll": -masked_mean(logp.detach(), mask)}


def reward_model_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0,
                      denominator=None) -> LossAndStats:
    """Bradley-Terry: -log σ(r(chosen) - r(rejected) - margin), mean over pairs. (B,), (B,)
    Only differences count: scores are defined up to a constant. Ouyang et al. 2022
    (arXiv:2203.02155), eq. 1; the margin, a number or (B,), is Llama 2's (2307.09288), eq. 2."""
    _same_shape(chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor) and margin.dim():
        _same_shape(chosen=chosen, margin=margin)
    loss = -F.logsigmoid(chosen - rejected - margin)
    stats = {"accuracy": _mean(chosen > rejected),
             "margin": _mean(chosen - rejected)}
    return _row_mean(loss, denominator), stats


# ----------------------------------------------------------------------------------- policy losses

def _per_token(advantages, mask):
    """(B,) or (B, T) -> (B, T), 0 off the mask, without gradient."""
    if advantages.dim() == 1:
        _same_shape(advantages=advantages, rows=mask[:, 0])
        advantages = advantages[:, None].expand(mask.shape)
    [advantages] = _on_mask(mask, advantages=advantages.detach())
    return advantages


def _log_ratio(logp, old_logp, mask):
    """log π(a|s) - log π_old(a|s), 0 off the mask. (B, T)"""
    logp, old_logp = _on_mask(mask, logp=logp, old_logp=old_logp.detach())
    return logp - old_logp


def _ratio_stats(log_ratio, is_clipped, mask):
    """clip_fraction: the share of actions where the clip acts (PPO, GSPO: no gradient; CISPO: a
    bounded weight). approx_kl: KL(π_old‖π) by k3 under samples of π_old."""
    log_ratio = log_ratio.detach()
    return {"clip_fraction": masked_mean(is_clipped.to(log_ratio.dtype), mask),
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask)}


def _clipped_surrogate(logp, old_logp, advantages, mask, clip_low, clip_high, dual_clip=None):
    """PPO's objective with the sign of a loss, per token (B, T), not yet averaged.
    max(-A ρ, -A clip(ρ, 1 - clip_low, 1 + clip_high)),  ρ = π / π_old. The max is pessimistic for
    either sign of A: with A > 0 the gradient stops once ρ > 1 + clip_high, with A < 0 once
    ρ < 1 - clip_low, and a step back is never clipped."""
    log_ratio = _log_ratio(logp, old_logp, mask)
    advantages = _per_token(advantages, mask)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        # A < 0 and ρ large: the loss has a bound (Ye et al. 2020, arXiv:1912.09729).
        bound = -advantages * dual_clip
        is_clipped = is_clipped | ((advantages < 0) & (loss > bound))
        bounded = torch.minimum(loss, bound)
        loss = torch.where(advantages < 0, bounded, loss)
    return loss, _ratio_stats(log_ratio, is_clipped, mask)


def policy_gradient_loss(logp: Tensor, advantages: Tensor, mask: Tensor, mode: str = "token-mean",
                         denominator=None) -> LossAndStats:
    """-A log π: REINFORCE (Williams 1992), A2C, RLOO: no ratio. advantages (B,) or (B, T)."""
    [logp] = _on_mask(mask, logp=logp)
    advantages = _per_token(advantages, mask)
    loss = aggregate(-advantages * logp, mask, mode, denominator)
    zero = torch.zeros_like(loss.detach())
    return loss, {"clip_fraction": zero, "approx_kl": zero}


def ppo_policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor,
                    clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None,
                    mode: str = "token-mean", denominator=None) -> LossAndStats:
    """-min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A), ρ = π / π_old. advantages (B,) or (B, T).
    dual_clip c > 1: at most -c A where A < 0. Schulman et al. 2017 (arXiv:1707.06347), eq. 7."""
    loss, stats = _clipped_surrogate(logp, old_logp, advantages, mask, clip_low, clip_high,
                                     dual_clip)
    return aggregate(loss, mask, mode, denominator), stats


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor,
               clip: float | None = 0.2, denominator=None) -> LossAndStats:
    """0.5 * mean max((V - R)², (clip(V, V_old ± clip) - R)²); clip=None: 0.5 * mean (V - R)².
    A token mean. clip is in units of reward. Huang et al. 2022, "37 implementation details", 9."""
    values, old_values, returns = _on_mask(mask, values=values, old_values=old_values.detach(),
                                           returns=returns.detach())
    loss = error = (values - returns).square()
    if clip is not None:
        clipped_values = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(error, (clipped_values - returns).square())
    stats = {"value_error": masked_mean(error.detach(), mask),
             "value_clip_fraction": masked_mean((loss > error).to(loss.dtype), mask)}
    return 0.5 * aggregate(loss, mask, "token-mean", denominator), stats


def grpo_loss(logp: Tensor, old_logp: Tensor, ref_logp: Tensor | None, advantages: Tensor,
              mask: Tensor, clip_low: float = 0.2, clip_high: float = 0.2, kl_coef: float = 0.0,
              mode: str = "seq-mean", denominator=None) -> LossAndStats:
    """PPO's clipped surrogate plus kl_coef * k3, averaged over each answer, then over answers.
    mode="token-mean" with a higher clip_high is DAPO's, mode="seq-sum" with a constant denominator
    Dr. GRPO's. ref_logp may be None if kl_coef is 0. DeepSeekMath (arXiv:2402.03300), eq. 3, 4."""
    loss, stats = _clipped_surrogate(logp, old_logp, advantages, mask, clip_low, clip_high)
    if ref_logp is None and kl_coef:
        raise ValueError(f"kl_coef is {kl_coef}, but ref_logp is None")
    kl = torch.zeros_like(loss)
    if ref_logp is not None:
        kl = kl_penalty(logp, ref_logp, mask)
    if kl_coef:
        loss = loss + kl_coef * kl
    stats["kl"] = masked_mean(kl.detach(), mask)
    return aggregate(loss, mask, mode, denominator), stats


def gspo_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor,
              clip_low: float = 3e-4, clip_high: float = 4e-4,
              denominator=None) -> LossAndStats:
    """-min(s A, clip(s) A), one ratio per answer: s = exp(mean_t log(π / π_old)). advantages (B,).
    Mean over rows. The geometric mean over tokens makes s far closer to 1 than a token's ratio,
    hence the narrow clip. Zheng et al. 2025 (arXiv:2507.18071), eq. 5 and 7."""
    log_ratio = _log_ratio(logp, old_logp, mask)
    mask = mask.bool()
    _same_shape(advantages=advantages, rows=mask[:, 0])
    advantages = advantages[:, None].detach()                                           # (B, 1)
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    ratio = (log_ratio.sum(1, keepdim=True) / lengths).exp()                            # (B, 1)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    any_action = mask.any(1, keepdim=True)
    loss = aggregate(torch.maximum(unclipped, clipped), any_action, "seq-mean", denominator)
    is_clipped = (clipped > unclipped).expand(mask.shape)
    return loss, _ratio_stats(log_ratio, is_clipped, mask)


def cispo_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor,
               clip_low: float = 0.2, clip_high: float = 0.2, mode: str = "token-mean",
               denominator=None) -> LossAndStats:
    """-sg(clip(ρ, 1 - clip_low, 1 + clip_high)) A log π: every token keeps a gradient.
    sg: no gradient, so that the weight of a token is clipped instead of its gradient. clip_low=1.0
    clips from above only, as the paper does. MiniMax-M1 2025 (arXiv:2506.13585), eq. 4."""
    log_ratio = _log_ratio(logp, old_logp, mask)
    advantages = _per_token(advantages, mask)
    [logp] = _on_mask(mask, logp=logp)
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -weight * advantages * logp
    stats = _ratio_stats(log_ratio, weight != ratio, mask)
    return aggregate(loss, mask, mode, denominator), stats


# ------------------------------------------------- preferences (PPO and GRPO need nothing of these)

def _preference_stats(chosen_reward, rejected_reward):
    return {"accuracy": _mean(chosen_reward > rejected_reward),
            "margin": _mean(chosen_reward - rejected_reward),
            "chosen_reward": _mean(chosen_reward),
            "rejected_reward": _mean(rejected_reward)}


def dpo_loss(chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor,
             ref_rejected_logp: Tensor, beta: float = 0.1, label_smoothing: float = 0.0,
             denominator=None) -> LossAndStats:
    """-(1-ε) log σ(h) - ε log σ(-h), h = r(chosen) - r(rejected), r = β (log π - log ref).
    (B,) log-probs summed over the answer; r is the implicit reward. ε: the share of flipped labels
    ("conservative" DPO). Rafailov et al. 2023 (arXiv:2305.18290), eq. 7."""
    _same_shape(chosen_logp=chosen_logp, rejected_logp=rejected_logp,
                ref_chosen_logp=ref_chosen_logp, ref_rejected_logp=ref_rejected_logp)
    chosen_reward = beta * (chosen_logp - ref_chosen_logp)
    rejected_reward = beta * (rejected_logp - ref_rejected_logp)
    h = chosen_reward - rejected_reward
    loss = -(1 - label_smoothing) * F.logsigmoid(h)
    loss = loss - label_smoothing * F.logsigmoid(-h)
    return _row_mean(loss, denominator), _preference_stats(chosen_reward, rejected_reward)


def ipo_loss(chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor,
             ref_rejected_logp: Tensor, beta: float = 0.1,
             denominator=None) -> LossAndStats:
    """(h - 1 / (2β))², h = log(π / ref)(chosen) - log(π / ref)(rejected): a regression on 1 / (2β).
    On the log-probs as given: summed (the paper's) and averaged ones are different losses.
    Azar et al. 2023 (arXiv:2310.12036), eq. 17."""
    _same_shape(chosen_logp=chosen_logp, rejected_logp=rejected_logp,
                ref_chosen_logp=ref_chosen_logp, ref_rejected_logp=ref_rejected_logp)
    chosen = chosen_logp - ref_chosen_logp
    rejected = rejected_logp - ref_rejected_logp
    loss = (chosen - rejected - 1 / (2 * beta)).square()
    return _row_mean(loss, denominator), _preference_stats(beta * chosen, beta * rejected)


def kto_loss(logp: Tensor, ref_logp: Tensor, desirable: Tensor, kl: Tensor, beta: float = 0.1,
             desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
             denominator=None) -> LossAndStats:
    """w (1 - σ(±β (log π - log ref - kl))), + if the answer is desirable, - if not. No pairs.
    logp, ref_logp (B,) summed; desirable (B,) bool; mean over rows. kl: the 0-dim reference point,
    taken as given and without gradient (the paper: KL(π‖ref) from mismatched prompts and answers,
    at least 0). Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 8."""
    _same_shape(logp=logp, ref_logp=ref_logp, desirable=desirable)
    desirable = desirable.bool()
    log_ratio = logp - ref_logp
    sign = torch.where(desirable, 1.0, -1.0).to(logp.dtype)
    weight = torch.where(desirable, desirable_weight, undesirable_weight).to(logp.dtype)
    margin = sign * beta * (log_ratio - torch.as_tensor(kl).detach())
    loss = weight * (1 - torch.sigmoid(margin))
    stats = {"chosen_reward": _mean(beta * log_ratio[desirable]),
             "rejected_reward": _mean(beta * log_ratio[~desirable])}
    return _row_mean(loss, denominator), stats


def simpo_loss(chosen_mean_logp: Tensor, rejected_mean_logp: Tensor, beta: float = 2.0,
               gamma: float = 1.0, denominator=None) -> LossAndStats:
    """-log σ(β (chosen - rejected) - γ) on log-probs averaged over the answer; no reference.
    (B,). γ is the target margin, not its ratio to β. Meng et al. 2024 (arXiv:2405.14734), eq. 6."""
    _same_shape(chosen_mean_logp=chosen_mean_logp, rejected_mean_logp=rejected_mean_logp)
    chosen = beta * chosen_mean_logp
    rejected = beta * rejected_mean_logp
    loss = -F.logsigmoid(chosen - rejected - gamma)
    return _row_mean(loss, denominator), _preference_stats(chosen, rejected)


def orpo_loss(chosen_mean_logp: Tensor, rejected_mean_logp: Tensor, beta: float = 0.1,
              denominator=None) -> LossAndStats:
    """-β log σ(log odds(chosen) - log odds(rejected)), odds(p) = p / (1 - p); mean over rows.
    (B,): log p averaged over the answer. To be added to the chosen answer's NLL (`sft_loss`).
    Hong et al. 2024 (arXiv:2403.07691), eq. 6 and 7."""
    _same_shape(chosen_mean_logp=chosen_mean_logp, rejected_mean_logp=rejected_mean_logp)

    def log_odds(logp):
        """log p - log(1 - p), finite at p = 1."""
        logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
        return logp - torch.log(-torch.expm1(logp))

    loss = -beta * F.logsigmoid(log_odds(chosen_mean_logp) - log_odds(rejected_mean_logp))
    stats = _preference_stats(beta * chosen_mean_logp.detach(), beta * rejected_mean_logp.detach())
    return _row_mean(loss, denominator), stats
