"""What a step logs."""
import math
import time
from functools import partial

import torch

from losses import kl_exact, kl_k1, kl_k3, masked_mean
from rollout import Rollout, score_actions
from support import parallel
from support.environments import told_mask

EXACT_KL_ROWS = 32      # of each step: the exact KL needs all logits of two models


def fetch(tensors: list[torch.Tensor]) -> list[float]:
    """0-dim tensors as numbers. All at once: each time, the host waits for the device."""
    return torch.stack(tensors).tolist() if tensors else []


class Averages:
    """Averages over a step's micro-batches, and over the processes."""

    def __init__(self, **otherwise):
        """otherwise: what to report where nothing is added."""
        self.otherwise = otherwise
        self.names, self.shares = [], []

    def add(self, stats: dict, weight) -> None:
        """stats: 0-dim tensors, each a mean over a micro-batch; weight: its share of the step."""
        for name, value in stats.items():
            self.names.append(name)
            self.shares.append(value * weight)

    def result(self) -> dict[str, float]:
        sums = dict.fromkeys(self.names, 0.0)
        for name, share in zip(self.names, fetch(self.shares)):
            sums[name] += share
        return {**self.otherwise, **parallel.all_reduce_sum(sums)}


@torch.no_grad()
def token_kl(model, ref_model, tokens: torch.Tensor, mask: torch.Tensor,
             temperature: float = 1.0) -> torch.Tensor:
    """KL(π‖ref) at each action's state, summed over the vocabulary; 0 off the mask. (B, T)"""
    def score(logits, ref_logits, actions):
        return [kl_exact(logits, ref_logits)]
    [kl] = score_actions(score, [model, ref_model], tokens, mask, temperature)
    return kl


def rollout_metrics(config, rollout: Rollout, rewards: torch.Tensor, old_logp: torch.Tensor,
                    ref_logp: torch.Tensor, policy, reference) -> dict[str, float]:
    """What can be said of a step's answers before the policy learns from them.

    kl: per token, by k3; kl_exact: per token, over the vocabulary, of a few rows; answer_kl: per
    answer, by k1, summed over its tokens. With --importance-cap also sampler_kl: of the sampler to
    the policy, per token, by k3; capped: the share of importance weights that are above the cap."""
    tokens, mask = rollout.tokens, rollout.mask
    first = slice(0, EXACT_KL_ROWS)
    exact_kl = parallel.map_micro_batches(
        partial(token_kl, policy), reference.model, tokens[first], mask[first],
        config.micro_batch_tokens, config.temperature)
    means = {
        "reward": rewards.mean(),
        "kl": masked_mean(kl_k3(old_logp, ref_logp), mask),
        "kl_exact": masked_mean(exact_kl, mask[first]),
        "answer_kl": kl_k1(old_logp, ref_logp).sum(1).mean(),
        "response_length": mask.sum(1).float().mean(),
        "finished": rollout.finished.float().mean()}
    if config.importance_cap:
        capped = (old_logp - rollout.logp).exp() > config.importance_cap
        means["sampler_kl"] = masked_mean(kl_k3(rollout.logp, old_logp), mask)
        means["capped"] = masked_mean(capped.float(), mask)
    numbers = dict(zip(means, fetch(list(means.values()))))
    return {**numbers, "samples": config.samples_of(rewards),
            **environment_metrics(config, rollout)}


def environment_metrics(config, rollout: Rollout) -> dict[str, float]:
    """calls: the environment's replies per answer; asks: the share of answers that got any."""
    if config.task != "products" and not config.environment:
        return {}
    begins = told_mask(rollout).long().diff(dim=1) == 1
    calls = begins.sum(1)                                                   # (B,)
    return {"calls": calls.float().mean().item(), "asks": (calls > 0).float().mean().item()}


def step_metrics(grad_norms: list[float], mask: torch.Tensor, started: float) -> dict[str, float]:
    """How a step went. mask: of the tokens that tokens_per_second counts."""
    seconds = time.perf_counter() - started
    return {
        "updates": sum(0 < norm < math.inf for norm in grad_norms),
        "grad_norm": sum(grad_norms) / max(len(grad_norms), 1),
        "tokens_per_second": mask.sum().item() / seconds,
        "seconds": seconds,
    }
