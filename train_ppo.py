"""PPO for language models (Schulman et al. 2017, arXiv:1707.06347; InstructGPT, arXiv:2203.02155).

    r_t = -β (log π - log π_ref) + [last token] score;   A = GAE(r, V);   R = A + V
    actor's loss   -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A),   ρ = π / π_old
    critic's loss  0.5 max((V - R)², (V_clipped - R)²)

Four models: actor and critic learn, the reference and the reward model stay as they are. One epoch
of one mini-batch is A2C: the ratio is 1, nothing is clipped.
`diff train_ppo.py train_grpo.py` shows a critic and GAE on one side, a group's mean on the other.
Off by default: an entropy bonus. Left out: InstructGPT's pretraining loss, a shared trunk.
"""
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch.nn.utils import clip_grad_norm_

import train_rm
import train_sft
from advantages import explained_variance, gae, token_rewards, whiten
from evaluate import evaluate
from losses import aggregate, count_for, masked_mean, ppo_policy_loss, value_loss
from rollout import (micro_batches, mini_batches, token_log_probs,
                     token_log_probs_and_entropies, token_values)
from support import parallel
from support.cli import parse, script, setting
from support.environments import start_environment
from support.metrics import Averages, rollout_metrics, step_metrics
from support.models import Reference, pick_device, torch_rng
from support.rl import (KLCoefficient, Reward, RLConfig, load_critic, load_prompts, load_start)
from support.run import Run


@dataclass(kw_only=True)
class Config(RLConfig):
    algorithm: ClassVar[str] = "ppo"
    critic: str = setting("", "what it starts as: a reward model or policy; else --reward-model's")
    gamma: float = setting(1.0, "discount per token", low=0.0, high=1.0)
    lam: float = setting(0.95, "λ of GAE; 1: Monte Carlo, 0: one-step TD", low=0.0, high=1.0)
    clip: float = setting(0.2, "clip range of the ratio", low=0.0)
    value_clip: float = setting(0.2, "clip range of the values, in reward; 0: none", low=0.0)
    critic_lr: float = setting(1e-3, "learning rate of the critic", low=0.0)
    critic_warmup: int = setting(2, "first steps in which only the critic learns", low=0)
    epochs: int = setting(2, "passes over each step's answers", low=1)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Four models: policy (actor) and critic learn, reference and reward model don't.
    policy, tokenizer = load_start(config, train_sft.main, run, device)
    reward = Reward(config, tokenizer, run, device, train_rm.main)
    critic = load_critic(config, policy, reward, tokenizer, run, device)
    batch, held_out = load_prompts(config, tokenizer, policy, reward.model, critic)
    reference, kl_coef = Reference(policy, config), KLCoefficient(config)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    critic_optimizer = torch.optim.AdamW(
        critic.parameters(), lr=config.critic_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    run.start(policy=policy, optimizer=optimizer, reference=reference, kl_coef=kl_coef,
              critic=critic, critic_optimizer=critic_optimizer)
    if run.first_step == 0 and config.eval_every and reward.function:
        run.log_samples(0, *evaluate(policy, tokenizer, reward.function, held_out, config))
    answer = partial(sample_answers, config, policy, tokenizer, reward)

    for step in run.steps():
        started = time.perf_counter()
        # 2. Rollout: an answer to each prompt, and the reward of each.
        rollout, rewards = answer(batch(step), step, config.temperature)                # (B,)
        tokens, mask, max_tokens = rollout.tokens, rollout.mask, config.micro_batch_tokens

        # 3. Log-probs of the reference, and of the policy that sampled, before it moves on.
        ref_logp = parallel.map_micro_batches(
            token_log_probs, reference.model, tokens, mask, max_tokens, config.temperature)
        old_logp = parallel.map_micro_batches(
            token_log_probs, policy, tokens, mask, max_tokens, config.temperature)
        old_values = parallel.map_micro_batches(token_values, critic, tokens, mask, max_tokens)
        metrics = rollout_metrics(config, rollout, rewards, old_logp, ref_logp, policy, reference)

        # 4. Advantages: what an action earned more than the critic expected. The critic's targets
        #    come from raw advantages. A cut-off answer ends like any: its reward already says so.
        rewards_t = token_rewards(rewards, old_logp, ref_logp, mask, kl_coef.value)     # (B, T)
        advantages, returns = gae(rewards_t, old_values, mask, config.gamma, config.lam)
        advantages = whiten(advantages, mask)                                           # (B, T)
        metrics["explained_variance"] = explained_variance(old_values[mask], returns[mask])
        rows = torch.arange(len(mask), device=device)

        # 5. Updates. Averages are the mini-batch's, however it is split: hence the denominator.
        averages, grad_norms = Averages(entropy="", clip_fraction=0.0, approx_kl=0.0), []
        critic_norms = []
        n_tokens = mask[rows].sum() * config.epochs
        for epoch in range(config.epochs):
            rng = torch_rng(config.seed, step, f"{config.algorithm} epoch {epoch}")
            for minibatch in mini_batches(rows, config.minibatches, rng):
                denominator = count_for(mask[minibatch], config.aggregate, config.max_new_tokens)
                minibatch = parallel.my_rows(minibatch)
                for micro, T in micro_batches(mask, max_tokens, minibatch):
                    t, m, old, A = (x[micro, :T] for x in (tokens, mask, old_logp, advantages))
                    V = token_values(critic, t, m)
                    loss, stats = value_loss(V, old_values[micro, :T], returns[micro, :T], m,
                                             config.value_clip or None, denominator)
                    loss.backward()
                    averages.add(stats, m.sum() / n_tokens)
                    if step < config.critic_warmup:
                        continue
                    logp, entropies = token_log_probs_and_entropies(
                        policy, t, m, config.temperature, config.entropy_coef > 0)
                    loss, stats = ppo_policy_loss(logp, old, A, m, config.clip, config.clip,
                                                  denominator=denominator)
                    loss = loss - config.entropy_coef * aggregate(
                        entropies, m, config.aggregate, denominator)
                    loss.backward()
                    stats["entropy"] = masked_mean(entropies, m)
                    averages.add(stats, m.sum() / n_tokens)
                parallel.sum_gradients(critic)
                critic_norms.append(clip_grad_norm_(critic.parameters(), 1.0).item())
                if 0 < critic_norms[-1] < math.inf:
                    critic_optimizer.step()
                critic_optimizer.zero_grad()
                parallel.sum_gradients(policy)
                grad_norms.append(clip_grad_norm_(policy.parameters(), 1.0).item())
                # A gradient of 0 moves nothing, which Adam's momentum would; nan wrecks all.
                if 0 < grad_norms[-1] < math.inf:
                    optimizer.step()
                optimizer.zero_grad()

        # 6. What people see. Then the reference and β move, if they were told to.
        row = {"step": step + 1, **averages.result(), **metrics, "kl_coef": kl_coef.value,
               **step_metrics(grad_norms, mask, started), "eval_greedy": "", "eval_sampled": ""}
        reference.update(policy, step)
        kl_coef.update(metrics["answer_kl"], len(rewards))
        if run.due(step, config.eval_every) and reward.function:
            row |= run.log_samples(step + 1, *evaluate(
                policy, tokenizer, reward.function, held_out, config))
        run.log(row, grad_norms, critic_norms)
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
