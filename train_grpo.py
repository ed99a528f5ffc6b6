"""GRPO: group relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300; the recipe of DeepSeek-R1).

    sample G answers to each prompt;  A_i = (r_i - mean of the group) / std of the group
    loss = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) + β k3(π‖ref),   ρ = π / π_old        mean over an answer, then over answers

The group's mean takes the place of PPO's critic: two models (policy, reference) instead of four. `diff train_ppo.py
train_grpo.py` shows it. Other ideas are one flag away:

    --advantage  grpo | dr_grpo (no std, and a constant instead of each answer's length) | rloo | reinforce_pp | remax
    --loss       grpo | dapo (token mean, higher upper clip, groups without signal left out) | gspo | cispo
    --kl-in      loss (k3, or --kl-estimator k1 | k2) | reward (k1, subtracted before answers are compared)

DAPO also replaces groups without signal: --dynamic-sampling. Left out of the papers: the process reward and the iterated reward
model of DeepSeekMath, DAPO's length penalty, GSPO's variant for token advantages.
"""
import copy
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

import train_sft
from advantages import grpo_advantages, reinforce_pp_advantages, remax_advantages, rloo_advantages, token_rewards
from common import Run, RunConfig, UserError, model_directory, parse, pick_device, script, setting, torch_rng, trained, user_errors
from data import load_prompts, load_reward, reward_answers
from evaluate import evaluate
from losses import adaptive_kl_coef, aggregate, cispo_loss, count_for, grpo_loss, gspo_loss, kl_k1, kl_k2, kl_k3, masked_mean
from pretrained import load_pretrained
from rollout import autocast_copy, concatenate, generate, in_micro_batches, micro_batches, summed, token_kl, token_log_probs

CLIP = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 0.28)}        # (low, high), each paper's
AGGREGATE = {"grpo": "seq-mean", "dapo": "token-mean", "gspo": "seq-mean", "cispo": "token-mean"}
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
    advantage: str = setting("grpo", "advantage estimator", choices=("grpo", "dr_grpo", "rloo", "reinforce_pp", "remax"))
    loss: str = setting("grpo", "policy loss", choices=("grpo", "dapo", "gspo", "cispo"))
    aggregate: str | None = setting(None, "average of the loss; each loss has its paper's, dr_grpo has seq-sum",
                                    choices=("token-mean", "seq-mean", "seq-sum"))
    dynamic_sampling: bool = setting(False, f"up to {ROUNDS} batches of prompts a step, until prompts_per_step groups have a signal")
    clip_low: float | None = setting(None, "lower clip range; each loss has its paper's", low=0.0)
    clip_high: float | None = setting(None, "upper clip range; each loss has its paper's", low=0.0)
    lr: float = setting(2e-4, "learning rate", low=0.0)
    epochs: int = setting(1, "passes over each step's answers", low=1)
    minibatches: int = setting(2, "updates a pass; with 1 and one epoch, the ratio is always 1", low=1)
    kl_coef: float = setting(0.01, "β, weight of the KL penalty", low=0.0)
    kl_in: str | None = setting(None, "what holds the KL; loss, and reward for reinforce_pp, if not given", choices=("loss", "reward"))
    kl_estimator: str = setting("k3", "of the KL in the loss; in the reward it is k1", choices=tuple(KL))
    kl_target: float = setting(0.0, "nats an answer that an adaptive β steers to; 0: β is fixed", low=0.0)
    kl_horizon: float = setting(10000.0, "answers over which an adaptive β moves", low=1.0)
    ref_ema: float = setting(0.0, "the reference follows: ref = ema * ref + (1 - ema) * policy; 0: frozen", low=0.0, high=1.0)
    ref_sync: int = setting(0, "the reference becomes a copy of the policy every N steps; 0: frozen", low=0)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. Two models: the policy learns, the reference is what it was at the start. Data and reward are checked before training
    with user_errors():
        if config.data and not config.reward:
            raise UserError("--data needs --reward exact or FILE.py:FUNCTION")
        if config.ref_ema and config.ref_sync:
            raise UserError("--ref-ema and --ref-sync are both given, expected one")
        if config.aggregate and config.loss == "gspo":
            raise UserError("--aggregate is not for --loss gspo, which has one ratio an answer and averages over answers")
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
    kl_coef, G = values["kl_coef"], config.group_size
    clip_low, clip_high = (CLIP[config.loss][i] if c is None else c for i, c in enumerate((config.clip_low, config.clip_high)))
    mode = config.aggregate or ("seq-sum" if config.advantage == "dr_grpo" and config.loss != "gspo" else AGGREGATE[config.loss])
    kl_in_reward = config.kl_in == "reward" or config.kl_in is None and config.advantage == "reinforce_pp"
    skips, rounds = config.loss == "dapo" or config.dynamic_sampling, ROUNDS if config.dynamic_sampling else 1
    if first_step == 0 and config.eval_every:
        run.sample(0, *evaluate(policy, tokenizer, reward, held_out, config.max_new_tokens, config.temperature))

    for step in run.steps(first_step):
        started = time.perf_counter()
        # 2. Rollout: G answers to each prompt, consecutive rows. Dynamic sampling tries further prompts until enough groups have a signal
        examples, rollouts, rewards = [], [], []
        for i in range(step * rounds, (step + 1) * rounds):
            new = [e for e in batch(i) for _ in range(G)]
            rollout = generate(policy, [e["ids"] for e in new], config.max_new_tokens, tokenizer.stop_ids, config.temperature,
                               torch_rng(config.seed, i, "sampling"))
            rewards += reward_answers(reward, new, rollout.responses(), rollout.finished.tolist(), tokenizer)
            examples, rollouts, groups = examples + new, rollouts + [rollout], torch.tensor(rewards, device=device).view(-1, G)
            no_signal = (groups == groups[:, :1]).all(1)                                                # (B / G,)
            if (~no_signal).sum() >= config.prompts_per_step:
                break
        rollout, rewards, n_samples = concatenate(rollouts), groups.flatten(), groups.numel()
        tokens, mask = rollout.tokens, rollout.mask                                                     # (B, T)

        # 3. Log-probs of the reference, and of the policy that sampled where it will have moved on before the last update.
        # The sampler's own log-probs don't serve as old ones: another code path, other rounding
        ref_logp = in_micro_batches(lambda *rows: token_log_probs(reference, *rows, config.temperature), tokens, mask, config.micro_batch_tokens)
        on_policy = config.epochs * config.minibatches == 1
        old_logp = None if on_policy else in_micro_batches(
            lambda *rows: token_log_probs(policy, *rows, config.temperature), tokens, mask, config.micro_batch_tokens)
        policy_logp = rollout.logp if on_policy else old_logp         # for the KL: in bfloat16 the sampler's rounding alone shows as 0.001
        few = slice(0, 32)                                            # of the exact KL, which takes both models' logits
        exact_kl = masked_mean(token_kl(policy, reference, tokens[few], mask[few], config.temperature), mask[few]).item()

        # 4. Advantages: (B,), or (B, T) for REINFORCE++. No critic. A KL penalty in the reward is paid before answers are compared
        earned = token_rewards(rewards, policy_logp, ref_logp, mask, kl_coef if kl_in_reward else 0.0)  # (B, T)
        if config.advantage in ("grpo", "dr_grpo"):
            advantages = grpo_advantages(earned.sum(1), G, scale=config.advantage == "grpo")
        elif config.advantage == "rloo":
            advantages = rloo_advantages(earned.sum(1), G)
        elif config.advantage == "remax":
            greedy = generate(policy, [e["ids"] for e in examples[::G]], config.max_new_tokens, tokenizer.stop_ids, temperature=0)
            greedy_rewards = reward_answers(reward, examples[::G], greedy.responses(), greedy.finished.tolist(), tokenizer)
            advantages = remax_advantages(earned.sum(1), torch.tensor(greedy_rewards, device=device).repeat_interleave(G))
            n_samples += len(greedy_rewards)
        else:
            advantages = reinforce_pp_advantages(earned, mask)
        used = torch.arange(len(rewards), device=device)
        if skips:                                                     # groups without signal would only dilute the mean
            used = used.view(-1, G)[~no_signal][:config.prompts_per_step].flatten()

        # 5. Updates. Averages are the mini-batch's, whatever the micro-batches: hence the denominator
        stats, grad_norms, n_scored = {}, [], mask[used].sum() * config.epochs
        for epoch in range(config.epochs):
            order = used[torch.randperm(len(used), generator=torch_rng(config.seed, step, f"epoch {epoch}")).to(device)]
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
                    else:
                        loss, micro_stats = cispo_loss(logp, old, A, m, clip_low, clip_high, mode, denominator)
                    if kl_coef and not kl_in_reward:
                        loss = loss + kl_coef * aggregate(KL[config.kl_estimator](logp, ref), m, mode, denominator)
                    loss.backward()
                    share = m.sum() / n_scored                         # of the step's tokens, so that stats are their mean
                    for name, value in {**micro_stats, "entropy": masked_mean(entropies, m)}.items():
                        stats[name] = stats.get(name, 0.0) + (value * share).item()
                grad_norms.append(run.update(optimizer, policy))
        stats = summed(stats)

        # 6. The reference and β move if they were told to
        answer_kl = kl_k1(policy_logp, ref_logp).sum(1).mean().item()                                   # nats an answer
        if config.kl_target:
            kl_coef = adaptive_kl_coef(kl_coef, answer_kl, config.kl_target, len(rewards), config.kl_horizon)
        if config.ref_ema or config.ref_sync and (step + 1) % config.ref_sync == 0:
            for p_ref, p in zip(reference.parameters(), policy.parameters()):
                p_ref.data.lerp_(p.data, 1 - config.ref_ema)                                            # ema 0: a copy
        seconds = time.perf_counter() - started

        # 7. What people see
        row = {"step": step + 1, "reward": rewards.mean().item(), "kl": masked_mean(kl_k3(policy_logp, ref_logp), mask).item(),
               "kl_exact": exact_kl, "answer_kl": answer_kl, "kl_coef": kl_coef, "entropy": stats.get("entropy", ""),
               "response_length": mask.sum(1).float().mean().item(), "finished": rollout.finished.float().mean().item(),
               "samples": n_samples, "no_signal": no_signal.float().mean().item(),
               "clip_fraction": stats.get("clip_fraction", 0.0), "approx_kl": stats.get("approx_kl", 0.0),
               "grad_norm": sum(grad_norms) / max(len(grad_norms), 1), "tokens_per_second": mask.sum().item() / seconds, "seconds": seconds,
               "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every):
            row |= run.sample(step + 1, *evaluate(policy, tokenizer, reward, held_out, config.max_new_tokens, config.temperature))
        skipped = {"skipped": f"{int(no_signal.sum())} groups"} if skips else {}
        run.log(row, {"reward": f"{row['reward']:.3f}", "kl": f"{row['kl']:.4f}", "length": f"{row['response_length']:.1f}",
                      "tok/s": f"{row['tokens_per_second']:,.0f}", **skipped})
        run.save(step, parts, kl_coef=kl_coef)

    run.finish(policy, tokenizer, {
        "accuracy, or mean reward": ["reward", "eval_greedy", "eval_sampled"], "answer length (tokens)": ["response_length"],
        "KL to the reference (nats a token)": ["kl", "kl_exact"], "entropy (nats a token)": ["entropy"],
        "groups without signal (share)": ["no_signal"], "gradient norm": ["grad_norm"]})


if __name__ == "__main__":
    script(main)
