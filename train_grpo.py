"""GRPO: group relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300).

    sample G answers to each prompt;   A_i = (r_i - mean of the group) / std of the group
    loss = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) + β k3(π‖ref),   ρ = π / π_old
           averaged over each answer, then over answers

The group's mean takes the place of PPO's critic, and an exact check that of the reward model: of
PPO's four models, policy and reference are left. `diff train_ppo.py train_grpo.py` shows it.

Left out of the papers of METHODS: DeepSeekMath's process reward and iterated reward model, DAPO's
length penalty, GSPO's variant for token advantages.
"""
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils import clip_grad_norm_

import train_sft
from advantages import (grpo_advantages, reinforce_pp_advantages, remax_advantages,
                        rloo_advantages, token_rewards)
from evaluate import evaluate
from losses import (aggregate, cispo_loss, count_for, grpo_loss, gspo_loss, kl_penalty,
                    masked_mean, policy_gradient_loss)
from rollout import micro_batches, token_log_probs, token_log_probs_and_entropies
from support import parallel
from support.cli import UserError, parse, refuse, script, setting
from support.metrics import Averages, rollout_metrics, step_metrics
from support.models import Reference, copy_for_inference, pick_device, torch_rng
from support.rl import (KLCoefficient, Reward, RLConfig, concatenate, load_prompts, load_start)
from support.run import Run

# --method takes a row: what its paper compares an answer's reward with, its loss and average, its
# clip, where it has the KL penalty and with which β, and what it does with groups whose answers
# all earn the same. A flag given beside it overrides its row.
COLUMNS = ("baseline", "loss", "aggregate", "clip_low", "clip_high", "kl_in", "kl_coef", "no_signal")
METHODS = {
    "grpo":         ("group/std", "grpo",      "seq-mean",   0.2,  0.2,  "loss",   0.01, "keep"),
    "dr_grpo":      ("group",     "grpo",      "seq-sum",    0.2,  0.2,  "loss",   0.0,  "keep"),
    "dapo":         ("group/std", "grpo",      "token-mean", 0.2,  0.28, "loss",   0.0,  "replace"),
    "gspo":         ("group/std", "gspo",      "seq-mean",   3e-4, 4e-4, "loss",   0.01, "keep"),
    # MiniMax-M1 tunes the upper clip of CISPO and names no number: here it is DAPO's.
    "cispo":        ("group/std", "cispo",     "token-mean", 1.0,  0.28, "loss",   0.0,  "keep"),
    "reinforce_pp": ("batch/std", "grpo",      "token-mean", 0.2,  0.2,  "reward", 0.01, "keep"),
    # Without a ratio, the policy gradient itself: one update per step.
    "rloo":         ("others",    "reinforce", "seq-sum",    None, None, "reward", 0.01, "keep"),
    "remax":        ("greedy",    "reinforce", "seq-sum",    None, None, "reward", 0.01, "keep"),
    "reinforce":    ("none",      "reinforce", "seq-sum",    None, None, "reward", 0.01, "keep"),
}
ROUNDS = 3      # of prompts per step, at most, where groups without signal are replaced


@dataclass(kw_only=True)
class Config(RLConfig):
    algorithm: ClassVar[str] = "grpo"
    method: str = setting("grpo", "whose choices fill in what is not given", choices=tuple(METHODS))
    prompts_per_step: int = setting(32, "different prompts per step", low=1)
    group_size: int = setting(8, "answers to each prompt", low=2)
    minibatches: int | None = setting(None, "updates per pass; 2, and 1 without a ratio", low=1)
    aggregate: str | None = setting(None, "average of the loss; the method's",
                                    choices=("token-mean", "seq-mean", "seq-sum"))
    clip_low: float | None = setting(None, "lower clip range; the method's", low=0.0)
    clip_high: float | None = setting(None, "upper clip range; the method's", low=0.0)
    kl_in: str | None = setting(None, "what holds the KL; the method's", choices=("loss", "reward"))
    kl_coef: float | None = setting(None, "β, weight of the KL penalty; the method's", low=0.0)
    kl_estimator: str = setting("k3", "of the KL in the loss; in the reward it is k1",
                                choices=("k1", "k2", "k3"))
    no_signal: str | None = setting(None, "groups whose answers all earn the same; the method's",
                                    choices=("keep", "drop", "replace"))

    def __post_init__(self):
        method = dict(zip(COLUMNS, METHODS[self.method]))
        self.baseline, self.loss = method.pop("baseline"), method.pop("loss")
        for name, value in method.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.minibatches = self.minibatches or (1 if self.loss == "reinforce" else 2)
        self.on_policy = self.epochs * self.minibatches == 1
        self.reward = self.reward or ("" if self.reward_model or self.data else "verifier")

    def check(self, given: dict) -> None:
        """Refuse what makes no sense together, and flags that have no effect."""
        super().check(given)
        if self.loss == "gspo":
            refuse(given, "aggregate", why="with --method gspo, which has one ratio per answer")
        if self.loss == "reinforce":
            refuse(given, "clip_low", "clip_high", why=f"with --method {self.method}, which has "
                   "no ratio")
            if not self.on_policy:
                raise UserError(f"--method {self.method} has no ratio that would correct a second "
                                f"update on the same answers: found --epochs {self.epochs} and "
                                f"--minibatches {self.minibatches}, expected 1 and 1")
        elif self.on_policy:
            refuse(given, "clip_low", "clip_high", why="with one update per step: the ratio is 1")
        if self.kl_coef == 0:
            refuse(given, "kl_in", "kl_estimator", why="where --kl-coef is 0")
        if self.kl_in == "reward":
            refuse(given, "kl_estimator", why="with --kl-in reward, where it is k1")
            if self.baseline == "group/std" and self.kl_coef:
                raise UserError("--kl-in reward with a baseline of group/std: where all answers "
                                "earn the same, it would divide the noise of the KL by its std")
        if self.no_signal == "replace" and not self.baseline.startswith("group"):
            raise UserError(f"--no-signal replace: --method {self.method} does not compare answers "
                            "with their group's mean")


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Two models: the policy learns, the reference stays what the policy was at the start.
    policy, tokenizer = load_start(config, train_sft.main, run, device)
    reward = Reward(config, tokenizer, run, device)
    batch, held_out = load_prompts(config, tokenizer, policy, reward.model)
    reference, kl_coef = Reference(policy, config), KLCoefficient(config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.95),
                                  weight_decay=0.0, fused=True)
    parts = {"policy": policy, "optimizer": optimizer, "reference": reference, "kl_coef": kl_coef}
    first_step = run.start(parts)
    if first_step == 0 and config.eval_every and reward.function:
        run.log_samples(0, *evaluate(policy, tokenizer, reward.function, held_out, config))

    def answer(examples, i, temperature=config.temperature):
        """An answer to each example, in the noise of (seed, i). -> Rollout, rewards (B,)"""
        rollout = parallel.generate(
            copy_for_inference(policy), [e["ids"] for e in examples], config.max_new_tokens,
            tokenizer.stop_ids, temperature, torch_rng(config.seed, i, "grpo sampling"),
            config.micro_batch_tokens)
        return rollout, reward(examples, rollout)

    for step in run.steps(first_step):
        started = time.perf_counter()
        # 2. Rollout: G answers to each prompt, in consecutive rows, and the reward of each.
        rollout, rewards, greedy_rewards = sample_groups(config, answer, batch, step)
        tokens, mask, max_tokens = rollout.tokens, rollout.mask, config.micro_batch_tokens

        # 3. Log-probs of the reference, and of the policy that sampled, before it moves on.
        ref_logp = parallel.map_micro_batches(token_log_probs, reference.model, tokens, mask,
                                              max_tokens, config.temperature)               # (B, T)
        # With one update per step the ratio is 1, and the sampler's log-probs are only logged.
        old_logp = rollout.logp
        if not config.on_policy or config.kl_in == "reward":
            old_logp = parallel.map_micro_batches(token_log_probs, policy, tokens, mask,
                                                  max_tokens, config.temperature)
        metrics = rollout_metrics(config, rollout, rewards, old_logp, ref_logp, policy, reference)

        # 4. Advantages: what an answer earned more than the mean of its group. No critic.
        if config.baseline == "group/std":
            advantages = grpo_advantages(rewards, config.group_size)                        # (B,)
            advantages = advantages[:, None].expand(mask.shape)                             # (B, T)
        else:
            advantages = other_advantages(config, rewards, greedy_rewards, old_logp, ref_logp, mask,
                                          kl_coef.value)
        rows, no_signal = rows_to_learn_from(config, advantages)

        # 5. Updates. Averages are the mini-batch's, however it is split: hence the denominator.
        averages, grad_norms = Averages(entropy="", clip_fraction=0.0, approx_kl=0.0), []
        n_tokens = mask[rows].sum() * config.epochs
        for epoch in range(config.epochs):
            rng = torch_rng(config.seed, step, f"grpo epoch {epoch}")
            order = rows[torch.randperm(len(rows), generator=rng).to(device)]
            for minibatch in order.chunk(config.minibatches):
                denominator = count_for(mask[minibatch], config.aggregate, config.max_new_tokens)
                minibatch = parallel.my_rows(minibatch)
                for micro, T in micro_batches(mask[minibatch], max_tokens):
                    micro = minibatch[micro]
                    m = mask[micro, :T]
                    logp, entropies = token_log_probs_and_entropies(policy, tokens[micro, :T], m,
                                                                    config.temperature)
                    old = logp.detach() if config.on_policy else old_logp[micro, :T]
                    loss, stats = policy_loss(config, logp, old, ref_logp[micro, :T],
                                              advantages[micro, :T], m, kl_coef.value, denominator)
                    loss.backward()
                    stats["entropy"] = masked_mean(entropies, m)
                    averages.add(stats, m.sum() / n_tokens)
                parallel.sum_gradients(policy)
                grad_norms.append(clip_grad_norm_(policy.parameters(), 1.0).item())
                # A gradient of 0 moves nothing, which Adam's momentum would, and nan does no harm.
                if 0 < grad_norms[-1] < math.inf:
                    optimizer.step()
                optimizer.zero_grad()

        # 6. What people see. Then the reference and β move, if they were told to.
        row = {"step": step + 1, **averages.result(), **metrics, "kl_coef": kl_coef.value,
               "samples": len(rewards) + len(greedy_rewards), "no_signal": no_signal,
               **step_metrics(grad_norms, mask, started)}
        reference.update(policy, step)
        kl_coef.update(metrics["answer_kl"], len(rewards))
        if run.due(step, config.eval_every) and reward.function:
            row |= run.log_samples(step + 1, *evaluate(policy, tokenizer, reward.function,
                                                       held_out, config))
        run.log(row, grad_norms)
        run.save(step, parts)

    run.finish(policy, tokenizer)


def sample_groups(config, answer, batch, step):
    """G answers to each prompt, in consecutive rows. -> Rollout, rewards (B,), greedy rewards

    ReMax asks for the greedy answers too (B / G,). DAPO's dynamic sampling asks further prompts
    until enough groups have a signal, that is, two rewards (Yu et al. 2025, arXiv:2503.14476)."""
    G, rounds = config.group_size, ROUNDS if config.no_signal == "replace" else 1
    rollouts, rewards = [], torch.zeros(0)
    for i in range(step * rounds, (step + 1) * rounds):
        prompts = batch(i)
        rollout, earned = answer([example for example in prompts for _ in range(G)], i)
        rollouts.append(rollout)
        rewards = torch.cat((rewards.to(earned.device), earned))
        groups = rewards.view(-1, G)
        if (groups != groups[:, :1]).any(1).sum() >= config.prompts_per_step:
            break
    greedy_rewards = rewards[:0]
    if config.baseline == "greedy":
        _, greedy_rewards = answer(prompts, step, temperature=0)
    return concatenate(rollouts), rewards, greedy_rewards


def other_advantages(config, rewards, greedy_rewards, old_logp, ref_logp, mask, kl_coef):
    """The advantages of other methods than GRPO. (B, T)

    A KL penalty in the reward is paid before answers are compared."""
    kl_coef = kl_coef if config.kl_in == "reward" else 0.0
    token_earned = token_rewards(rewards, old_logp, ref_logp, mask, kl_coef)                # (B, T)
    if config.baseline == "batch/std":
        return reinforce_pp_advantages(token_earned, mask)
    earned = token_earned.sum(1)                                                            # (B,)
    if config.baseline == "group":
        earned = grpo_advantages(earned, config.group_size, scale=False)
    elif config.baseline == "others":
        earned = rloo_advantages(earned, config.group_size)
    elif config.baseline == "greedy":
        baseline = greedy_rewards.repeat_interleave(config.group_size)
        earned = remax_advantages(earned, baseline)
    return earned[:, None].expand(mask.shape)


def rows_to_learn_from(config, advantages):
    """-> rows of the batch, and the share of its groups without signal.

    Groups without signal would only dilute the mean: DAPO leaves them out."""
    groups = torch.arange(len(advantages), device=advantages.device).view(-1, config.group_size)
    no_signal = (advantages == 0).all(1).view(groups.shape).all(1)
    if config.no_signal != "keep":
        groups = groups[~no_signal][:config.prompts_per_step]
    return groups.flatten(), no_signal.float().mean().item()


def policy_loss(config, logp, old_logp, ref_logp, advantages, mask, kl_coef, denominator):
    """The method's loss on a micro-batch, whose tensors are (b, T)."""
    kl_coef = kl_coef if config.kl_in == "loss" else 0.0
    clip, mode = (config.clip_low, config.clip_high), config.aggregate
    if config.loss == "grpo" and config.kl_estimator == "k3":
        return grpo_loss(logp, old_logp, ref_logp, advantages, mask, *clip, kl_coef, mode,
                         denominator)
    if config.loss == "grpo":
        loss, stats = grpo_loss(logp, old_logp, None, advantages, mask, *clip, 0.0, mode,
                                denominator)
    elif config.loss == "gspo":
        loss, stats = gspo_loss(logp, old_logp, advantages[:, 0], mask, *clip, denominator)
    elif config.loss == "cispo":
        loss, stats = cispo_loss(logp, old_logp, advantages, mask, *clip, mode, denominator)
    else:
        loss, stats = policy_gradient_loss(logp, advantages, mask, mode, denominator)
    if kl_coef:
        kl = kl_penalty(logp, ref_logp, mask, config.kl_estimator)
        loss = loss + kl_coef * aggregate(kl, mask, mode, denominator)
    return loss, stats


if __name__ == "__main__":
    script(main)
