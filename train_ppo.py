"""PPO for language models (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, InstructGPT, arXiv:2203.02155).

    r_t = -β (log π - log π_ref) + [last token] score;  A = GAE(r, V);  two losses, several epochs on the same answers:
    actor  -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A),  ρ = π / π_old        critic  0.5 max((V - R)², (V_clipped - R)²)

Four models: actor and critic learn, the reference and the reward model stay as they are. `diff train_ppo.py train_grpo.py` shows
what the critic and GAE do here and the group's mean does there. The score is a reward model's (runs/rm), the built-in
task's exact check (--reward verifier), or your function's. One epoch of one mini-batch is A2C: the ratio is 1, nothing is clipped.

Left out of the papers: the pretraining loss of InstructGPT (PPO-ptx), an entropy bonus, value heads that share the policy's trunk.
"""
import copy
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

import train_rm
import train_sft
from advantages import gae, token_rewards, whiten
from support.cli import RunConfig, UserError, parse, refuse, script, setting, user_errors
from support.models import pick_device, torch_rng
from support.run import Run, model_directory, trained
from support.rewards import load_reward, reward_answers
from support.rl import load_prompts
from task import sum_reward
from evaluate import evaluate
from losses import adaptive_kl_coef, count_for, kl_k1, kl_k3, masked_mean, ppo_policy_loss, value_loss
from model import ScalarModel
from support.pretrained import load_pretrained, load_scalar_model
from rollout import (generate, in_micro_batches, micro_batches, sequence_scores, token_kl,
    token_log_probs, token_values)
from support.models import autocast_copy
from support.parallel import summed
from support.tokenizer import same_tokenizer


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "ppo"
    reward: str = setting("", "verifier, exact (the column `answer`), or FILE.py:FUNCTION, instead of a reward model")
    reward_model: str = setting("", "a reward model, run or model directory; runs/rm if neither this nor --reward is given")
    critic: str = setting("", "what the critic starts as: a reward model's directory, or policy; the reward model, if any, if not given")
    steps: int = setting(50, "steps; each samples anew", low=1)
    prompts_per_step: int = setting(256, "prompts a step, one answer each", low=1)
    max_new_tokens: int = setting(32, "tokens of an answer, at most", low=1)
    temperature: float = setting(1.0, "of sampling, and of all log-probs", low=0.01)
    gamma: float = setting(1.0, "discount a token", low=0.0, high=1.0)
    lam: float = setting(0.95, "λ of GAE; 1: Monte Carlo, 0: one-step TD", low=0.0, high=1.0)
    clip: float = setting(0.2, "clip range of the ratio", low=0.0)
    value_clip: float = setting(0.2, "clip range of the values, in units of reward; 0: none", low=0.0)
    lr: float = setting(2e-4, "learning rate of the actor", low=0.0)
    critic_lr: float = setting(1e-3, "learning rate of the critic", low=0.0)
    critic_warmup: int = setting(2, "first steps in which only the critic learns", low=0)
    epochs: int = setting(2, "passes over each step's answers", low=1)
    minibatches: int = setting(2, "updates a pass", low=1)
    kl_coef: float = setting(0.05, "β, weight of the KL penalty in each token's reward", low=0.0)
    kl_target: float = setting(0.0, "nats an answer that an adaptive β steers to; 0: β is fixed", low=0.0)
    kl_horizon: float = setting(10000.0, "answers over which an adaptive β moves", low=1.0)
    unfinished_score: float = setting(-5.0, "score of a cut-off answer, of which the reward model never saw one")
    ref_ema: float = setting(0.0, "the reference follows: ref = ema * ref + (1 - ema) * policy; 0: frozen", low=0.0, high=1.0)
    ref_sync: int = setting(0, "the reference becomes a copy of the policy every N steps; 0: frozen", low=0)

    def check(self, given: dict) -> None:
        """Refuse what makes no sense together, and flags that have no effect."""
        if self.reward and self.reward_model:
            raise UserError("--reward and --reward-model are both given, expected one")
        if self.ref_ema and self.ref_sync:
            raise UserError("--ref-ema and --ref-sync are both given, expected one")
        if self.ref_ema == 1:
            raise UserError("--ref-ema 1 keeps the reference as it is, expected less than 1")
        if self.epochs * self.minibatches == 1:
            refuse(given, "clip", "value_clip", why="with one update a step: policy and values are still the old ones")
        if self.kl_coef == 0:
            refuse(given, "kl_target", "ref_ema", "ref_sync", why="where --kl-coef is 0")
        if not self.kl_target:
            refuse(given, "kl_horizon", why="without --kl-target")
        if self.reward:
            refuse(given, "unfinished_score", why="with --reward, which scores cut-off answers itself")
        elif self.data:
            refuse(given, "eval_every", "eval_problems", why="with --data and a reward model: nothing says which answers are right")


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Four models: the actor (policy) and the critic learn; the reference and the reward model do not
    with user_errors():
        start = model_directory(config.model or trained("runs/sft", train_sft.main, config))
        policy, tokenizer = load_pretrained(start, torch.float32, device)
        run.note(model=start, data=config.data)
        reward, reward_model = load_reward(config.reward, config.data) if config.reward else None, None

        def load_scores(role, path):
            """A reward model or critic that reads the policy's tokens."""
            model, its_tokenizer = load_scalar_model(path, torch.float32, device)
            if not same_tokenizer(tokenizer, its_tokenizer):
                raise UserError(f"--{role.replace('_', '-')} {path}: its tokenizer is not that of the policy ({start}), "
                                "expected the same")
            run.note(**{role: path})
            return model

        if not config.reward:
            path = model_directory(config.reward_model or trained("runs/rm", train_rm.main, config))
            reward_model = load_scores("reward_model", path)
        # the critic starts where it knows most: as the reward model if there is one, else as the policy's trunk with values of 0
        if config.critic not in ("", "policy"):
            critic = load_scores("critic", model_directory(config.critic))
        else:
            critic = copy.deepcopy(reward_model) if reward_model and not config.critic else ScalarModel(policy)
        contexts = [model.config.max_seq_len for model in (policy, critic, reward_model) if model]
        batch, held_out = load_prompts(config, tokenizer, min(contexts))
    moves = config.ref_ema or config.ref_sync                             # by steps that bfloat16 would swallow
    reference = copy.deepcopy(policy if moves else autocast_copy(policy)).requires_grad_(False)
    reward_model = reward_model and autocast_copy(reward_model).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=config.critic_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    parts = {"policy": policy, "critic": critic, "optimizer": optimizer, "critic_optimizer": critic_optimizer,
             **({"reference": reference} if moves else {})}
    first_step, values = run.start(parts, kl_coef=config.kl_coef)
    kl_coef = values["kl_coef"]
    if first_step == 0 and config.eval_every and (reward or not config.data):
        run.sample(0, *evaluate(policy, tokenizer, reward or sum_reward, held_out, config.max_new_tokens, config.temperature,
                                config.micro_batch_tokens))

    for step in run.steps(first_step):
        started = time.perf_counter()
        # 2. Rollout: an answer to each prompt
        examples = batch(step)
        rollout = generate(policy, [e["ids"] for e in examples], config.max_new_tokens, tokenizer.stop_ids, config.temperature,
                           torch_rng(config.seed, step, "ppo sampling"), micro_batch_tokens=config.micro_batch_tokens)
        tokens, mask, size = rollout.tokens, rollout.mask, config.micro_batch_tokens                     # (B, T)
        if reward_model:
            scores = in_micro_batches(lambda *rows: sequence_scores(reward_model, *rows), tokens, mask, size)
            scores = torch.where(rollout.finished, scores, config.unfinished_score)                      # (B,)
        else:
            scores = torch.tensor(reward_answers(reward, examples, rollout.responses(), rollout.finished.tolist(), tokenizer), device=device)

        # 3. Log-probs of the reference and of the policy that sampled, and the critic's values of the states before each token
        ref_logp = in_micro_batches(lambda *rows: token_log_probs(reference, *rows, config.temperature), tokens, mask, size)
        old_logp = in_micro_batches(lambda *rows: token_log_probs(policy, *rows, config.temperature), tokens, mask, size)
        old_values = in_micro_batches(lambda *rows: token_values(critic, *rows), tokens, mask, size)
        few = slice(0, 32)                                            # of the exact KL, which takes both models' logits
        exact_kl = in_micro_batches(lambda *rows: token_kl(policy, reference, *rows, config.temperature), tokens[few], mask[few], size)

        # 4. Rewards a token, advantages, and the critic's targets, which are made of raw advantages and not of whitened ones.
        # A cut-off answer ends like any other: its score already says so, so there is no bootstrap
        rewards = token_rewards(scores, old_logp, ref_logp, mask, kl_coef)
        raw_advantages, returns = gae(rewards, old_values, mask, config.gamma, config.lam)
        advantages = whiten(raw_advantages, mask)
        error, target = (returns - old_values)[mask], returns[mask]
        explained_variance = 1 - (error.var() / target.var().clamp(min=1e-8)).item()                     # 1: V knows all, 0: nothing

        # 5. Updates. Averages are the mini-batch's, whatever the micro-batches: hence the denominator
        stats, grad_norms, n_scored = {}, [], mask.sum() * config.epochs
        for epoch in range(config.epochs):
            order = torch.randperm(len(scores), generator=torch_rng(config.seed, step, f"ppo epoch {epoch}")).to(device)
            for rows in order.chunk(config.minibatches):
                denominator = count_for(mask[rows], "token-mean")
                for micro, T in micro_batches(mask[rows], size):
                    micro = rows[micro]
                    m = mask[micro, :T]
                    new_values = token_values(critic, tokens[micro, :T], m)
                    critic_loss, micro_stats = value_loss(new_values, old_values[micro, :T], returns[micro, :T], m,
                                                          config.value_clip or None, denominator)
                    critic_loss.backward()
                    if step >= config.critic_warmup:
                        logp, entropies = token_log_probs(policy, tokens[micro, :T], m, config.temperature, with_entropy=True)
                        loss, policy_stats = ppo_policy_loss(logp, old_logp[micro, :T], advantages[micro, :T], m, config.clip, config.clip,
                                                             denominator=denominator)
                        loss.backward()
                        micro_stats |= {**policy_stats, "entropy": masked_mean(entropies, m)}
                    share = m.sum() / n_scored                         # of the step's tokens, so that stats are their mean
                    for name, value in micro_stats.items():
                        stats[name] = stats.get(name, 0.0) + (value * share).item()
                run.update(critic_optimizer, critic)
                if step >= config.critic_warmup:
                    grad_norms.append(run.update(optimizer, policy))
        stats = summed(stats)

        # 6. The reference and β move if they were told to
        answer_kl = kl_k1(old_logp, ref_logp).sum(1).mean().item()                                       # nats an answer
        next_kl_coef = kl_coef
        if config.kl_target:
            next_kl_coef = adaptive_kl_coef(kl_coef, answer_kl, config.kl_target, len(scores), config.kl_horizon)
        if config.ref_ema or config.ref_sync and (step + 1) % config.ref_sync == 0:
            for p_ref, p in zip(reference.parameters(), policy.parameters()):
                p_ref.data.lerp_(p.data, 1 - config.ref_ema)                                             # ema 0: a copy
        seconds = time.perf_counter() - started

        # 7. What people see
        row = {"step": step + 1, "reward": scores.mean().item(), "kl": masked_mean(kl_k3(old_logp, ref_logp), mask).item(),
               "kl_exact": masked_mean(exact_kl, mask[few]).item(), "answer_kl": answer_kl, "kl_coef": kl_coef, "entropy": stats.get("entropy", ""),
               "response_length": mask.sum(1).float().mean().item(), "finished": rollout.finished.float().mean().item(),
               "samples": len(scores), "clip_fraction": stats.get("clip_fraction", 0.0), "approx_kl": stats.get("approx_kl", 0.0),
               "value_error": stats["value_error"], "value_clip_fraction": stats["value_clip_fraction"], "explained_variance": explained_variance,
               "updates": sum(0 < norm < math.inf for norm in grad_norms),
               "grad_norm": sum(grad_norms) / max(len(grad_norms), 1), "tokens_per_second": mask.sum().item() / seconds, "seconds": seconds,
               "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every) and (reward or not config.data):
            # on a reward model, what counts is still the truth: the verifier of the built-in task
            row |= run.sample(step + 1, *evaluate(policy, tokenizer, reward or sum_reward, held_out, config.max_new_tokens, config.temperature,
                                                  config.micro_batch_tokens))
        run.log(row, {"reward": f"{row['reward']:.3f}", "kl": f"{row['kl']:.4f}", "length": f"{row['response_length']:.1f}",
                      "tok/s": f"{row['tokens_per_second']:,.0f}"})
        kl_coef = next_kl_coef
        run.save(step, parts, kl_coef=kl_coef)

    run.finish(policy, tokenizer, {
        "score": ["reward"], "accuracy, or mean reward": ["eval_greedy", "eval_sampled"], "answer length (tokens)": ["response_length"],
        "KL to the reference (nats a token)": ["kl", "kl_exact"], "entropy (nats a token)": ["entropy"],
        "explained variance of the critic": ["explained_variance"]})


if __name__ == "__main__":
    script(main)
