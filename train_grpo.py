"""GRPO: group relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300).

    sample G answers to each prompt;   A_i = (r_i - mean of the group) / std of the group
    loss = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) + β k3(π‖ref),   ρ = π / π_old
           averaged over each answer, then over answers

The group's mean replaces PPO's critic, and an exact check replaces its reward model: two of four
models are left. Relatives, such as --method rloo, are rows of a table in methods.py.
`diff train_ppo.py train_grpo.py` shows a critic and GAE on one side, a group's mean on the other.
Left out: process rewards, and a reward model that is trained anew on the way.
"""
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch.nn.utils import clip_grad_norm_

import methods
import train_sft
from advantages import grpo_advantages
from evaluate import evaluate
from losses import aggregate, count_for, grpo_loss, masked_mean
from rollout import (micro_batches, mini_batches, token_log_probs,
                     token_log_probs_and_entropies)
from support import parallel
from support.cli import parse, script, setting
from support.environments import start_environment
from support.metrics import Averages, rollout_metrics, step_metrics
from support.models import Reference, pick_device, torch_rng
from support.rl import KLCoefficient, Reward, load_prompts, load_start
from support.run import Run


@dataclass(kw_only=True)
class Config(methods.MethodConfig):
    algorithm: ClassVar[str] = "grpo"
    prompts_per_step: int = setting(32, "different prompts per step", low=1)
    group_size: int = setting(8, "answers to each prompt", low=2)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Two models: the policy learns, the reference stays what the policy was at the start.
    policy, tokenizer = load_start(config, train_sft.main, run, device)
    reward = Reward(config, tokenizer, run, device)
    batch, held_out = load_prompts(config, tokenizer, policy, reward.model)
    reference, kl_coef = Reference(policy, config), KLCoefficient(config)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    run.start(policy=policy, optimizer=optimizer, reference=reference, kl_coef=kl_coef)
    if run.first_step == 0 and config.eval_every and reward.function:
        run.log_samples(0, *evaluate(policy, tokenizer, reward.function, held_out, config))
    answer = partial(sample_answers, config, policy, tokenizer, reward)

    for step in run.steps():
        started = time.perf_counter()
        # 2. Rollout: G answers to each prompt, in consecutive rows, and the reward of each.
        if config.no_signal == "replace":
            rollout, rewards = methods.sample_until_signal(config, answer, batch, step)
        else:
            examples = methods.repeat_each(batch(step), config.group_size)
            rollout, rewards = answer(examples, step, config.temperature)               # (B,)
        tokens, mask, max_tokens = rollout.tokens, rollout.mask, config.micro_batch_tokens

        # 3. Log-probs of the reference, and of the policy that sampled, before it moves on.
        ref_logp = parallel.map_micro_batches(
            token_log_probs, reference.model, tokens, mask, max_tokens, config.temperature)
        old_logp = rollout.logp if config.on_policy else parallel.map_micro_batches(
            token_log_probs, policy, tokens, mask, max_tokens, config.temperature)
        metrics = rollout_metrics(config, rollout, rewards, old_logp, ref_logp, policy, reference)

        # 4. Advantages: what an answer earned more than its group's mean, the same for each token.
        advantages = grpo_advantages(rewards, config.group_size)[:, None].expand(mask.shape)
        if not config.is_grpo:
            advantages = methods.advantages_of(config, answer, batch, step, rewards, old_logp,
                                               ref_logp, rollout, kl_coef.in_reward)
        rows, no_signal = methods.rows_to_learn_from(config, advantages)

        # 5. Updates. Averages are the mini-batch's, however it is split: hence the denominator.
        averages, grad_norms = Averages(entropy="", clip_fraction=0.0, approx_kl=0.0), []
        n_tokens = mask[rows].sum() * config.epochs
        for epoch in range(config.epochs):
            rng = torch_rng(config.seed, step, f"{config.algorithm} epoch {epoch}")
            for minibatch in mini_batches(rows, config.minibatches, rng):
                denominator = count_for(mask[minibatch], config.aggregate, config.max_new_tokens)
                minibatch = parallel.my_rows(minibatch)
                for micro, T in micro_batches(mask, max_tokens, minibatch):
                    t, m, old, A = (x[micro, :T] for x in (tokens, mask, old_logp, advantages))
                    logp, entropies = token_log_probs_and_entropies(
                        policy, t, m, config.temperature, config.entropy_coef > 0)
                    old = logp.detach() if config.on_policy else old    # one update: ratio 1
                    if config.is_grpo:
                        loss, stats = grpo_loss(
                            logp, old, ref_logp[micro, :T], A, m, *config.clip_range,
                            kl_coef.in_loss, config.aggregate, denominator)
                    else:
                        loss, stats = methods.policy_loss(
                            config, kl_coef, logp, old, ref_logp[micro, :T], A, m, denominator)
                    loss = loss - config.entropy_coef * aggregate(
                        entropies, m, config.aggregate, denominator)
                    loss.backward()
                    stats["entropy"] = masked_mean(entropies, m)
                    averages.add(stats, m.sum() / n_tokens)
                parallel.sum_gradients(policy)
                grad_norms.append(clip_grad_norm_(policy.parameters(), 1.0).item())
                # A gradient of 0 moves nothing, which Adam's momentum would; nan wrecks all.
                if 0 < grad_norms[-1] < math.inf:
                    optimizer.step()
                optimizer.zero_grad()

        # 6. What people see. Then the reference and β move, if they were told to.
        row = {"step": step + 1, **averages.result(), **metrics, "kl_coef": kl_coef.value,
               "no_signal": no_signal,
               **step_metrics(grad_norms, mask, started), "eval_greedy": "", "eval_sampled": ""}
        reference.update(policy, step)
        kl_coef.update(metrics["answer_kl"], len(rewards))
        if run.due(step, config.eval_every) and reward.function:
            row |= run.log_samples(step + 1, *evaluate(
                policy, tokenizer, reward.function, held_out, config))
        run.log(row, grad_norms)
        run.save(step)

    run.finish(policy, tokenizer)


def sample_answers(config, policy, tokenizer, reward, examples, i, temperature):
    """An answer to each example, in the noise of (seed, i). -> Rollout, rewards (B,)"""
    prompts = [example["ids"] for example in examples]
    rng = torch_rng(config.seed, i, f"{config.algorithm} sampling")
    environment, stop_ids = start_environment(config, tokenizer, examples)
    rollout = parallel.generate(policy, prompts, config.max_new_tokens,
                                stop_ids, temperature, rng, config.micro_batch_tokens, environment)
    return rollout, reward(examples, rollout, environment)


if __name__ == "__main__":
    script(main)
