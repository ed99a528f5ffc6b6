"""GRPO's relatives: what each paper does, a row of one table, and the pieces that aren't GRPO's.

`train_grpo.py --method rloo` takes the row; a flag given beside it overrides its row. Left out:
DAPO's length penalty, GSPO's variant for token advantages.
"""
from dataclasses import dataclass

import torch

from advantages import (grpo_advantages, reinforce_pp_advantages, remax_advantages,
                        rloo_advantages, token_rewards)
from losses import aggregate, cispo_loss, grpo_loss, gspo_loss, kl_penalty, policy_gradient_loss
from support.cli import UserError, refuse, setting
from support.data import repeat_each
from support.rl import RLConfig, concatenate

# What an answer's reward is compared with, the loss and its average, the clip, what holds the KL
# penalty and with which β, and what is done with groups whose answers all earn the same.
COLUMNS = ("baseline", "loss", "aggregate", "clip_low", "clip_high", "kl_in", "kl_coef",
           "no_signal")
METHODS = {
    "grpo":         ("group/std", "grpo",      "seq-mean",   0.2,  0.2,  "loss",   0.01, "keep"),
    "dr_grpo":      ("group",     "grpo",      "seq-sum",    0.2,  0.2,  "loss",   0.0,  "keep"),
    "dapo":         ("group/std", "grpo",      "token-mean", 0.2,  0.28, "loss",   0.0,  "replace"),
    "gspo":         ("group/std", "gspo",      "seq-mean",   3e-4, 4e-4, "loss",   0.01, "keep"),
    # MiniMax-M1 tunes the upper clip of CISPO and names no number: here it is DAPO's.
    "cispo":        ("group/std", "cispo",     "token-mean", 1.0,  0.28, "loss",   0.0,  "keep"),
    "reinforce_pp": ("batch/std", "grpo",      "token-mean", 0.2,  0.2,  "reward", 0.01, "keep"),
    # The policy gradient itself. It has no ratio, so it makes one update per step.
    "rloo":         ("others",    "reinforce", "seq-sum",    None, None, "reward", 0.01, "keep"),
    "remax":        ("greedy",    "reinforce", "seq-sum",    None, None, "reward", 0.01, "keep"),
    "reinforce":    ("none",      "reinforce", "seq-sum",    None, None, "reward", 0.01, "keep"),
}
ROUNDS = 3      # batches of prompts per step, at most, where groups without signal are replaced


@dataclass(kw_only=True)
class MethodConfig(RLConfig):
    """The settings that a method chooses, where they are not given."""
    method: str = setting("grpo", "whose choices are the defaults", choices=tuple(METHODS))
    minibatches: int | None = setting(None, "updates per pass; 2, and 1 without a ratio", low=1)
    aggregate: str | None = setting(None, "average of the loss; the method's",
                                    choices=("token-mean", "seq-mean", "seq-sum"))
    clip_low: float | None = setting(None, "lower clip range; the method's", low=0.0)
    clip_high: float | None = setting(None, "upper clip range; the method's", low=0.0)
    kl_in: str | None = setting(None, "what holds the KL; the method's", choices=("loss", "reward"))
    kl_coef: float | None = setting(None, "β, weight of the KL penalty; the method's", low=0.0)
    kl_estimator: str = setting("k3", "of the KL in the loss; in the reward it is k1",
                                choices=("k1", "k2", "k3"))
    no_signal: str | None = setting(
        None, f"groups whose answers all earn the same are kept, dropped, or replaced, from up to "
        f"{ROUNDS} batches of prompts; the method's", choices=("keep", "drop", "replace"))
    importance_cap: float = setting(
        0.0, "weigh each token by min(policy / sampler, this), for answers that were sampled in "
        "bfloat16 or by another engine: 2, say; 0: no weights", low=0.0)

    def __post_init__(self):
        super().__post_init__()
        chosen = dict(zip(COLUMNS, METHODS[self.method]))
        self.baseline = chosen.pop("baseline")
        self.loss = chosen.pop("loss")
        for name, value in chosen.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.minibatches is None:
            self.minibatches = 1 if self.loss == "reinforce" else 2
        self.clip_range = self.clip_low, self.clip_high
        self.rounds = ROUNDS if self.no_signal == "replace" else 1
        # With one update per step the policy is still the one that sampled, and the ratio is 1.
        # Then old log-probs serve for nothing but a KL penalty in the reward. To do without saves
        # a tenth of a step. (The sampler's own are no substitute: decoding with a KV cache rounds
        # otherwise, which in bfloat16 would make a ratio of 1.001 of it.)
        self.updates = self.epochs * self.minibatches
        self.on_policy = self.updates == 1 and self.kl_in == "loss" and not self.importance_cap
        # If not, other functions take GRPO's place in train_grpo.py, those below.
        self.is_grpo = (self.method == "grpo" and self.kl_estimator == "k3"
                        and not self.importance_cap)
        if not (self.reward or self.reward_model or self.data):
            self.reward = "verifier"

    def samples_of(self, rewards) -> int:
        """How many answers were sampled: these, and ReMax's greedy one to each prompt."""
        greedy = len(rewards) // self.group_size if self.baseline == "greedy" else 0
        return len(rewards) + greedy

    def check(self, given: dict) -> None:
        """Refuse what makes no sense together, and flags that have no effect."""
        if self.data and not (self.reward or self.reward_model):
            raise UserError("--data needs --reward exact, --reward FILE.py:FUNCTION or "
                            "--reward-model")
        method = f"--method {self.method}"
        if self.loss == "gspo":
            refuse(given, "aggregate", why=f"with {method}, which has one ratio per answer and "
                   "averages over answers")
            refuse(given, "importance_cap", why=f"with {method}, whose advantage is one per answer")
        if self.loss == "reinforce":
            refuse(given, "clip_low", "clip_high", why=f"with {method}, which has no ratio")
            if self.updates > 1:
                raise UserError(f"{method} has no ratio that would correct a second update on the "
                                f"same answers: found --epochs {self.epochs} and --minibatches "
                                f"{self.minibatches}, expected 1 and 1")
        super().check(given)
        if self.kl_coef == 0:
            refuse(given, "kl_in", "kl_estimator", why="where --kl-coef is 0")
        elif self.kl_in == "reward":
            refuse(given, "kl_estimator", why="with --kl-in reward, where it is k1")
            if self.baseline == "group/std":
                raise UserError(f"--kl-in reward is not for {method}: where all scores of a group "
                                "are equal, it would divide the noise of the KL by its own "
                                "standard deviation; dr_grpo, rloo, remax, reinforce and "
                                "reinforce_pp don't")
        compares = self.baseline in ("group", "group/std", "others")
        if self.no_signal == "replace" and not compares:
            raise UserError(f"--no-signal replace: {method} doesn't compare an answer with its "
                            "group, expected keep or drop")
        if self.no_signal != "keep" and self.kl_in == "reward" and self.kl_coef:
            raise UserError(f"--no-signal {self.no_signal}: with the KL in the reward all groups "
                            "have a signal, expected keep, --kl-in loss or --kl-coef 0")


def sample_until_signal(config, answer, batch, step):
    """Ask further prompts until enough groups have two different rewards. -> Rollout, rewards (B,)

    DAPO's dynamic sampling (Yu et al. 2025, arXiv:2503.14476)."""
    rollouts, all_rewards = [], []
    for i in range(step * config.rounds, (step + 1) * config.rounds):
        examples = repeat_each(batch(i), config.group_size)
        rollout, rewards = answer(examples, i, config.temperature)
        rollouts.append(rollout)
        all_rewards.append(rewards)
        groups = torch.cat(all_rewards).view(-1, config.group_size)
        has_signal = (groups != groups[:, :1]).any(1)
        if has_signal.sum() >= config.prompts_per_step:
            break
    return concatenate(rollouts), torch.cat(all_rewards)


def advantages_of(config, answer, batch, step, rewards, old_logp, ref_logp, rollout, kl_coef):
    """The method's advantages; with --importance-cap, times importance weights. (B, T)

    No weight is below 0, so to weigh an advantage is to weigh its clipped loss:
    max(-wA ρ, -wA clip(ρ)) = w max(-A ρ, -A clip(ρ))."""
    mask = rollout.mask
    advantages = unweighted_advantages(config, answer, batch, step, rewards, old_logp, ref_logp,
                                       mask, kl_coef)
    if config.importance_cap:
        advantages = advantages * importance_weights(old_logp, rollout.logp, mask,
                                                     config.importance_cap)
    return advantages


def importance_weights(old_logp, sampler_logp, mask, cap):
    """min(π / μ, cap) of each action that μ sampled, 0 off the mask. (B, T)

    The cap bounds the variance, and is a bias. It is a bias too that a token's weight leaves out
    the tokens before it: the exact one is the product of them all. Yao et al. 2025, "Your efficient
    RL framework secretly brings you off-policy RL training", fengyao.notion.site/off-policy-rl."""
    log_ratio = (old_logp - sampler_logp).masked_fill(~mask, 0)
    return log_ratio.exp().clamp(max=cap) * mask


def unweighted_advantages(config, answer, batch, step, rewards, old_logp, ref_logp, mask, kl_coef):
    """The method's advantages. (B, T)

    rewards (B,); logp and mask (B, T). A KL penalty in the reward is paid before answers are
    compared."""
    rewards_t = token_rewards(rewards, old_logp, ref_logp, mask, kl_coef)               # (B, T)
    if config.baseline == "batch/std":
        return reinforce_pp_advantages(rewards_t, mask)
    rewards = rewards_t.sum(1)                                                          # (B,)
    if config.baseline == "group/std":
        advantages = grpo_advantages(rewards, config.group_size)
    elif config.baseline == "group":
        advantages = grpo_advantages(rewards, config.group_size, scale=False)
    elif config.baseline == "others":
        advantages = rloo_advantages(rewards, config.group_size)
    elif config.baseline == "greedy":
        _, greedy_rewards = answer(batch(step), i=0, temperature=0)                     # (B / G,)
        baseline = greedy_rewards.repeat_interleave(config.group_size)                  # (B,)
        advantages = remax_advantages(rewards, baseline)
    else:
        advantages = rewards
    return advantages[:, None].expand(mask.shape)


def rows_to_learn_from(config, advantages):
    """-> rows of the batch (N,), and the share of its groups without signal.

    Groups without signal would only dilute the mean: DAPO leaves them out."""
    rows = torch.arange(len(advantages), device=advantages.device).view(-1, config.group_size)
    no_signal = (advantages == 0).all(1).view(rows.shape).all(1)                        # (B / G,)
    if config.no_signal != "keep":
        rows = rows[~no_signal][:config.prompts_per_step]
    return rows.flatten(), no_signal.float().mean().item()


def policy_loss(config, kl_coef, logp, old_logp, ref_logp, advantages, mask, denominator):
    """The method's loss, and its KL penalty, of a micro-batch. (b, T) each -> loss, stats"""
    clip, mode = config.clip_range, config.aggregate
    if config.loss == "grpo":
        loss, stats = grpo_loss(logp, old_logp, None, advantages, mask, *clip, 0.0, mode,
                                denominator)
    elif config.loss == "gspo":
        # The answer's advantage is that of each of its tokens.
        loss, stats = gspo_loss(logp, old_logp, advantages[:, 0], mask, *clip, denominator)
    elif config.loss == "cispo":
        loss, stats = cispo_loss(logp, old_logp, advantages, mask, *clip, mode, denominator)
    else:
        loss, stats = policy_gradient_loss(logp, advantages, mask, mode, denominator)
    if kl_coef.in_loss:
        kl = kl_penalty(logp, ref_logp, mask, config.kl_estimator)
        loss = loss + kl_coef.in_loss * aggregate(kl, mask, mode, denominator)
    return loss, stats
