"""GRPO: group relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300; the recipe of DeepSeek-R1).

    sample G answers to each prompt;  A_i = (r_i - mean of the group) / std of the group
    loss = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) + β k3(π‖ref),   ρ = π / π_old        mean over an answer, then over answers

The group's mean takes the place of PPO's critic, which leaves three of PPO's four models, and an exact check takes the place of
the reward model: policy and reference are left. `diff train_ppo.py train_grpo.py` shows it. Other methods are one flag away, and
their name stands for what their paper does (the tables below): loss, average, clip, place of the KL penalty, β.

    --advantage  grpo | dr_grpo (no std, and a constant instead of each answer's length) | rloo | reinforce_pp | remax
    --loss       grpo | dapo (token mean, higher upper clip, groups without signal left out) | gspo | cispo | reinforce
    --kl-in      loss (k3, or --kl-estimator k1 | k2) | reward (k1, subtracted before answers are compared)

DAPO also replaces groups without signal: --dynamic-sampling. Left out of the papers: the process reward and the iterated reward
model of DeepSeekMath, DAPO's length penalty, GSPO's variant for token advantages.
"""
import copy
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

import train_sft
from advantages import grpo_advantages, reinforce_pp_advantages, remax_advantages, rloo_advantages, token_rewards
from support.cli import RunConfig, UserError, parse, refuse, script, setting, user_errors
from support.models import pick_device, torch_rng
from support.run import Run, model_directory, trained
from support.rewards import load_reward, reward_answers
from support.rl import load_prompts
from evaluate import evaluate
from losses import (adaptive_kl_coef, aggregate, cispo_loss, count_for, grpo_loss, gspo_loss, kl_k1, kl_k2, kl_k3, masked_mean,
                    policy_gradient_loss)
from support.pretrained import load_pretrained
from rollout import (concatenate, generate, in_micro_batches, micro_batches, stack_rows,
    token_kl, token_log_probs)
from support.models import autocast_copy
from support.parallel import summed

# What the name of an advantage stands for, in its paper
ADVANTAGES = {      # loss         average       KL in     β
    "grpo":         ("grpo",      "seq-mean",   "loss",   0.01),
    "dr_grpo":      ("grpo",      "seq-sum",    "loss",   0.0),
    "rloo":         ("reinforce", "seq-sum",    "reward", 0.01),
    "remax":        ("reinforce", "seq-sum",    "reward", 0.01),
    "reinforce_pp": ("grpo",      "token-mean", "reward", 0.01),
}
# What the name of a loss stands for. CISPO's paper tunes its upper clip and names no number: here it is DAPO's
LOSSES = {          # average      clip low, high   β
    "grpo":         ("seq-mean",   0.2,  0.2,      0.01),
    "dapo":         ("token-mean", 0.2,  0.28,     0.0),
    "gspo":         ("seq-mean",   3e-4, 4e-4,     0.01),
    "cispo":        ("token-mean", 1.0,  0.28,     0.0),
    "reinforce":    ("seq-sum",    None, None,     0.01),            # no ratio: one update a step
}
KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
ROUNDS = 3                             # of prompts that dynamic sampling tries a step, at most; each step passes over those it doesn't need


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "grpo"
    reward: str = setting("", "verifier, exact (the column `answer`), or FILE.py:FUNCTION; needed with --data")
    steps: int = setting(50, "steps; each samples anew", low=1)
    prompts_per_step: int = setting(32, "different prompts a step", low=1)
    group_size: int = setting(8, "answers to each prompt", low=2)
    max_new_tokens: int = setting(32, "tokens of an answer, at most", low=1)
    temperature: float = setting(1.0, "of sampling, and of all log-probs", low=0.01)
    advantage: str = setting("grpo", "advantage estimator", choices=tuple(ADVANTAGES))
    loss: str | None = setting(None, "policy loss; the advantage's, if not given", choices=tuple(LOSSES))
    aggregate: str | None = setting(None, "average of the loss; its paper's, if not given", choices=("token-mean", "seq-mean", "seq-sum"))
    dynamic_sampling: bool = setting(False, f"up to {ROUNDS} batches of prompts a step, until prompts_per_step groups have a signal")
    clip_low: float | None = setting(None, "lower clip range; the loss's, if not given", low=0.0)
    clip_high: float | None = setting(None, "upper clip range; the loss's, if not given", low=0.0)
    lr: float = setting(2e-4, "learning rate", low=0.0)
    epochs: int = setting(1, "passes over each step's answers", low=1)
    minibatches: int | None = setting(None, "updates a pass; 2, and 1 for reinforce, if not given; with 1 and one epoch, the ratio is always 1",
                                      low=1)
    kl_coef: float | None = setting(None, "β, weight of the KL penalty; the method's, 0.01 or 0, if not given", low=0.0)
    kl_in: str | None = setting(None, "what holds the KL; the advantage's, if not given", choices=("loss", "reward"))
    kl_estimator: str = setting("k3", "of the KL in the loss; in the reward it is k1", choices=tuple(KL))
    kl_target: float = setting(0.0, "nats an answer that an adaptive β steers to; 0: β is fixed", low=0.0)
    kl_horizon: float = setting(10000.0, "answers over which an adaptive β moves", low=1.0)
    ref_ema: float = setting(0.0, "the reference follows: ref = ema * ref + (1 - ema) * policy; 0: frozen", low=0.0, high=1.0)
    ref_sync: int = setting(0, "the reference becomes a copy of the policy every N steps; 0: frozen", low=0)

    def __post_init__(self):
        """Fill in what was not given: a method's name stands for its paper's whole method."""
        papers_loss, average, kl_in, kl_coef = ADVANTAGES[self.advantage]
        if self.loss is None:
            self.loss = papers_loss
        loss_average, clip_low, clip_high, loss_kl_coef = LOSSES[self.loss]
        if self.loss != papers_loss:
            average, kl_coef = loss_average, loss_kl_coef
        defaults = {"aggregate": average, "clip_low": clip_low, "clip_high": clip_high, "kl_in": kl_in, "kl_coef": kl_coef,
                    "minibatches": 1 if self.loss == "reinforce" else 2}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def check(self, given: dict) -> None:
        """Refuse what makes no sense together, and flags that have no effect."""
        if self.data and not self.reward:
            raise UserError("--data needs --reward exact or FILE.py:FUNCTION")
        if self.ref_ema and self.ref_sync:
            raise UserError("--ref-ema and --ref-sync are both given, expected one")
        if self.ref_ema == 1:
            raise UserError("--ref-ema 1 keeps the reference as it is, expected less than 1")
        if self.loss == "gspo":
            refuse(given, "aggregate", why="with --loss gspo, which has one ratio an answer and averages over answers")
            if self.advantage == "reinforce_pp":
                raise UserError("--advantage reinforce_pp has an advantage for each token, but --loss gspo takes one for each answer")
        if self.advantage == "dr_grpo" and self.loss in ("gspo", "dapo"):
            raise UserError(f"--advantage dr_grpo averages over a constant and --loss {self.loss} doesn't, expected one of them")
        if self.advantage == "grpo" and self.kl_in == "reward":
            raise UserError("--kl-in reward is not for --advantage grpo: where all scores of a group are equal, it would divide "
                            "the noise of the KL by its own standard deviation; dr_grpo, rloo, remax and reinforce_pp don't")
        if self.loss == "reinforce":
            refuse(given, "clip_low", "clip_high", why="with --loss reinforce, which has no ratio")
            if self.epochs * self.minibatches > 1:
                raise UserError("--loss reinforce has no ratio that would correct a second update on the same answers: "
                                f"found --epochs {self.epochs} and --minibatches {self.minibatches}, expected 1 and 1")
        elif self.epochs * self.minibatches == 1:
            refuse(given, "clip_low", "clip_high", why="with one update a step: the ratio is always 1")
        if self.kl_coef == 0:
            refuse(given, "kl_target", "kl_in", "kl_estimator", "ref_ema", "ref_sync", why="where --kl-coef is 0")
        if self.kl_in == "reward":
            refuse(given, "kl_estimator", why="with --kl-in reward, where it is k1")
        if not self.kl_target:
            refuse(given, "kl_horizon", why="without --kl-target")


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Two models: the policy learns, the reference is what it was at the start. Data and reward are checked before training
    with user_errors():
        start = model_directory(config.model or trained("runs/sft", train_sft.main, config))
        policy, tokenizer = load_pretrained(start, torch.float32, device)
        run.note(model=start, data=config.data)
        reward = load_reward(config.reward or "verifier", config.data)
        batch, held_out = load_prompts(config, tokenizer, policy.config.max_seq_len)
    moves = config.ref_ema or config.ref_sync                             # by steps that bfloat16 would swallow
    reference = copy.deepcopy(policy if moves else autocast_copy(policy)).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    parts = {"policy": policy, "optimizer": optimizer, **({"reference": reference} if moves else {})}
    first_step, values = run.start(parts, kl_coef=config.kl_coef)
    kl_coef, G, mode, clip_low, clip_high = values["kl_coef"], config.group_size, config.aggregate, config.clip_low, config.clip_high
    kl_in_reward = config.kl_in == "reward" and config.kl_coef > 0
    skips, rounds = config.loss == "dapo" or config.dynamic_sampling, ROUNDS if config.dynamic_sampling else 1
    on_policy = config.epochs * config.minibatches == 1                   # one update a step: its ratio is 1

    def scored(model, rollout):
        """Log-probs of a rollout's answers, in micro-batches. (B, T)"""
        return in_micro_batches(lambda *rows: token_log_probs(model, *rows, config.temperature), rollout.tokens, rollout.mask,
                                config.micro_batch_tokens)

    def answers(examples, i, temperature):
        """An answer to each example, in the noise of round i, and its reward. -> Rollout, list"""
        rollout = generate(policy, [e["ids"] for e in examples], config.max_new_tokens, tokenizer.stop_ids, temperature,
                           torch_rng(config.seed, i, "grpo sampling"), micro_batch_tokens=config.micro_batch_tokens)
        return rollout, reward_answers(reward, examples, rollout.responses(), rollout.finished.tolist(), tokenizer)

    if first_step == 0 and config.eval_every:
        run.sample(0, *evaluate(policy, tokenizer, reward, held_out, config.max_new_tokens, config.temperature,
                                config.micro_batch_tokens))

    for step in run.steps(first_step):
        started = time.perf_counter()
        rollouts, logps, ref_logps, scores, greedy_scores = [], [], [], [], []
        # Dynamic sampling tries further prompts until enough groups have a signal; without it there is one round
        for i in range(step * rounds, (step + 1) * rounds):
            # 2. Rollout: G answers to each prompt, consecutive rows
            prompts = batch(i)
            rollout, new_scores = answers([e for e in prompts for _ in range(G)], i, config.temperature)
            rollouts, scores = rollouts + [rollout], scores + new_scores

            # 3. Log-probs of the reference, and of the policy that sampled, before it moves on. The sampler's own don't serve as old
            # ones, nor in a reward: another code path, other rounding (in bfloat16 a KL of 0.001 where there is none)
            ref_logps.append(scored(reference, rollout))
            logps.append(rollout.logp if on_policy and not kl_in_reward else scored(policy, rollout))

            # 4. Advantages: (B,), or (B, T) for REINFORCE++. No critic. A KL penalty in the reward is paid before answers are compared
            rollout, old_logp, ref_logp = concatenate(rollouts), stack_rows(logps), stack_rows(ref_logps)
            tokens, mask, rewards = rollout.tokens, rollout.mask, torch.tensor(scores, device=device)   # (B, T), (B, T), (B,)
            earned = token_rewards(rewards, old_logp, ref_logp, mask, kl_coef if kl_in_reward else 0.0) # (B, T)
            if config.advantage in ("grpo", "dr_grpo"):
                advantages = grpo_advantages(earned.sum(1), G, scale=config.advantage == "grpo")
            elif config.advantage == "rloo":
                advantages = rloo_advantages(earned.sum(1), G)
            elif config.advantage == "remax":                         # the baseline: the greedy answer to the same prompt
                greedy_scores += answers(prompts, i, 0)[1]
                advantages = remax_advantages(earned.sum(1), torch.tensor(greedy_scores, device=device).repeat_interleave(G))
            else:
                advantages = reinforce_pp_advantages(earned, mask)
            no_signal = (advantages == 0).view(len(rewards) // G, -1).all(1)                            # (B / G,)
            if (~no_signal).sum() >= config.prompts_per_step:
                break
        used = torch.arange(len(rewards), device=device)
        if skips:                                                     # groups without signal would only dilute the mean
            used = used.view(-1, G)[~no_signal][:config.prompts_per_step].flatten()
        few = slice(0, 32)                                            # of the exact KL, which takes both models' logits
        exact_kl = in_micro_batches(lambda *rows: token_kl(policy, reference, *rows, config.temperature), tokens[few], mask[few],
                                    config.micro_batch_tokens)

        # 5. Updates. Averages are the mini-batch's, whatever the micro-batches: hence the denominator
        stats, grad_norms, n_scored = {}, [], mask[used].sum() * config.epochs
        for epoch in range(config.epochs):
            order = used[torch.randperm(len(used), generator=torch_rng(config.seed, step, f"grpo epoch {epoch}")).to(device)]
            for rows in order.chunk(config.minibatches) if len(used) else ():
                denominator = len(rows) * config.max_new_tokens if mode == "seq-sum" else count_for(mask[rows], mode)
                for micro, T in micro_batches(mask[rows], config.micro_batch_tokens):
                    micro = rows[micro]
                    m, A = mask[micro, :T], advantages[micro] if advantages.dim() == 1 else advantages[micro, :T]
                    logp, entropies = token_log_probs(policy, tokens[micro, :T], m, config.temperature, with_entropy=True)
                    old, ref = logp.detach() if on_policy else old_logp[micro, :T], ref_logp[micro, :T]
                    if config.loss in ("grpo", "dapo"):
                        loss, micro_stats = grpo_loss(logp, old, None, A, m, clip_low, clip_high, 0.0, mode, denominator)
                    elif config.loss == "gspo":
                        loss, micro_stats = gspo_loss(logp, old, A, m, clip_low, clip_high, denominator)
                    elif config.loss == "cispo":
                        loss, micro_stats = cispo_loss(logp, old, A, m, clip_low, clip_high, mode, denominator)
                    else:
                        loss, micro_stats = policy_gradient_loss(logp, A, m, mode, denominator)
                    if kl_coef and not kl_in_reward:
                        loss = loss + kl_coef * aggregate(KL[config.kl_estimator](logp, ref), m, mode, denominator)
                    loss.backward()
                    share = m.sum() / n_scored                         # of the step's tokens, so that stats are their mean
                    for name, value in {**micro_stats, "entropy": masked_mean(entropies, m)}.items():
                        stats[name] = stats.get(name, 0.0) + (value * share).item()
                grad_norms.append(run.update(optimizer, policy))
        stats = summed(stats)

        # 6. The reference and β move if they were told to
        answer_kl = kl_k1(old_logp, ref_logp).sum(1).mean().item()                                      # nats an answer
        next_kl_coef = kl_coef
        if config.kl_target:
            next_kl_coef = adaptive_kl_coef(kl_coef, answer_kl, config.kl_target, len(rewards), config.kl_horizon)
        if config.ref_ema or config.ref_sync and (step + 1) % config.ref_sync == 0:
            for p_ref, p in zip(reference.parameters(), policy.parameters()):
                p_ref.data.lerp_(p.data, 1 - config.ref_ema)                                            # ema 0: a copy
        seconds = time.perf_counter() - started

        # 7. What people see
        row = {"step": step + 1, "reward": rewards.mean().item(), "kl": masked_mean(kl_k3(old_logp, ref_logp), mask).item(),
               "kl_exact": masked_mean(exact_kl, mask[few]).item(), "answer_kl": answer_kl, "kl_coef": kl_coef, "entropy": stats.get("entropy", ""),
               "response_length": mask.sum(1).float().mean().item(), "finished": rollout.finished.float().mean().item(),
               "samples": len(scores) + len(greedy_scores), "no_signal": no_signal.float().mean().item(),
               "clip_fraction": stats.get("clip_fraction", 0.0), "approx_kl": stats.get("approx_kl", 0.0),
               "updates": sum(0 < norm < math.inf for norm in grad_norms),
               "grad_norm": sum(grad_norms) / max(len(grad_norms), 1), "tokens_per_second": mask.sum().item() / seconds, "seconds": seconds,
               "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every):
            row |= run.sample(step + 1, *evaluate(policy, tokenizer, reward, held_out, config.max_new_tokens, config.temperature,
                                                  config.micro_batch_tokens))
        skipped = {"skipped": f"{int(no_signal.sum())} groups"} if skips else {}
        run.log(row, {"reward": f"{row['reward']:.3f}", "kl": f"{row['kl']:.4f}", "length": f"{row['response_length']:.1f}",
                      "tok/s": f"{row['tokens_per_second']:,.0f}", **skipped})
        kl_coef = next_kl_coef
        run.save(step, parts, kl_coef=kl_coef)

    run.finish(policy, tokenizer, {
        "accuracy, or mean reward": ["reward", "eval_greedy", "eval_sampled"], "answer length (tokens)": ["response_length"],
        "KL to the reference (nats a token)": ["kl", "kl_exact"], "entropy (nats a token)": ["entropy"],
        "groups without signal (share)": ["no_signal"], "gradient norm": ["grad_norm"]})


if __name__ == "__main__":
    script(main)
