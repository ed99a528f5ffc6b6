"""One batch with its real numbers: `python trace.py` writes a page, runs/trace/trace.html.

One prompt and four sampled answers go through GRPO and PPO, in the order of the trainers. The page
shows every number of every token, its formula with the numbers put in, and the function that
computed it. What is computed stands here, from top to bottom; support/trace_page.py only shows it.

The reference is runs/sft. In the first step policy and reference are the same, and every KL is 0:
so the policy is what train_grpo.py makes of it in a few steps. Under a minute of one core, beside
the training of runs/sft.
"""
import copy
from dataclasses import dataclass
from typing import ClassVar

import torch

import train_grpo
import train_ppo
import train_sft
from advantages import gae, grpo_advantages, rloo_advantages, token_rewards, whiten
from lab import gradient
from losses import aggregate, count_for, grpo_loss, kl_penalty, ppo_policy_loss
from rollout import token_log_probs, token_values
from support import trace_page
from support.cli import parse, script, setting, user_errors
from support.models import torch_rng
from support.run import ensure_trained
from support.trace_group import GROUP, STEPS, find_group, load_two

CONTINUATIONS = 64      # of every prefix


@dataclass(kw_only=True)
class Config:
    task: ClassVar[str] = "sums"
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str] = ""
    resume: ClassVar[bool] = False
    model: str = setting("", "the reference: a run or model directory, instead of runs/sft")
    out: str = setting("runs/trace/trace.html", "the page")
    seed: int = setting(0, "another seed finds another group", low=0)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    with user_errors():
        file = trace_page.check_place(config.out)
    grpo = train_grpo.Config(group_size=GROUP, seed=config.seed)
    ppo = train_ppo.Config(reward="verifier", seed=config.seed)

    # 1. The models: reference, policy, and a critic that has learned from other answers of this
    #    policy, as a new one says 0 everywhere.
    start = config.model or ensure_trained("runs/sft", train_sft.main, config)
    reference, policy, tokenizer = load_two(start, config.seed)
    print("warming up the critic, then sampling until a group has all kinds of answers", flush=True)
    critic = gradient.warm_up(policy, tokenizer, config.seed)

    # 2. Rollout: a prompt and its answers, with their rewards and the log-probs of the sampler.
    problem, tokens, mask, sampled_logp, rewards = find_group(grpo, policy, tokenizer)

    # 3. Log-probs of all answers at once, and the KL of each token.
    old_logp = token_log_probs(policy, tokens, mask)                                    # (B, T)
    ref_logp = token_log_probs(reference, tokens, mask)
    k1, k3 = (kl_penalty(old_logp, ref_logp, mask, name) for name in ("k1", "k3"))

    # 4. GRPO: an answer against its group. All tokens of an answer have its advantage.
    advantage = grpo_advantages(rewards, GROUP)                                         # (B,)
    flat = advantage[:, None] * mask
    answers = {"reward": rewards, "length": mask.sum(1), "grpo": advantage,
               "dr_grpo": grpo_advantages(rewards, GROUP, scale=False),
               "rloo": rloo_advantages(rewards, GROUP)}

    # 5. PPO: a reward and a value at each token, and three ways from them to advantages.
    rewards_t = token_rewards(rewards, old_logp, ref_logp, mask, ppo.kl_coef)           # (B, T)
    values = token_values(critic, tokens, mask)
    td, _ = gae(rewards_t, values, mask, ppo.gamma, lam=0.0)        # with λ = 0, A is δ itself
    A, returns = gae(rewards_t, values, mask, ppo.gamma, ppo.lam)
    monte_carlo, _ = gae(rewards_t, values, mask, ppo.gamma, lam=1.0)
    white = whiten(A, mask)

    # 6. The truth: from each prefix, how many continuations are right? As a critic with
    #    λ = 0, this says what each token has changed.
    pool = gradient.Pool([problem], tokens, mask, rewards, problem=torch.zeros(GROUP).long(),
                         row=torch.arange(GROUP)[None], greedy=torch.zeros(1))
    rng = torch_rng(config.seed, 0, "trace continuations")
    truth = gradient.continue_prefixes(policy, tokenizer, pool, CONTINUATIONS, rng,
                                       gradient.LONGEST).mean(0)
    score = token_rewards(rewards, old_logp, old_logp, mask, kl_coef=0.0)
    true_A, _ = gae(score, truth, mask, lam=0.0)

    # 7. One update of each, of two copies of the policy: how far does each token's ratio move, and
    #    would a second update on the same answers be clipped?
    def loss_of_grpo(logp, kl_coef=0.0):
        return grpo_loss(logp, old_logp, ref_logp, advantage, mask, *grpo.clip_range, kl_coef)[0]

    def loss_of_ppo(logp):
        return ppo_policy_loss(logp, old_logp, white, mask, ppo.clip, ppo.clip)[0]

    grpo_logp = update(policy, tokens, mask, grpo.lr, lambda x: loss_of_grpo(x, grpo.kl_coef))
    ppo_logp = update(policy, tokens, mask, ppo.lr, loss_of_ppo)

    columns = {
        "id": tokens, "mask": mask, "p": sampled_logp.exp() * mask, "sampled_logp": sampled_logp,
        "old_logp": old_logp, "ref_logp": ref_logp, "k1": k1, "k3": k3, "reward": rewards_t,
        "score": score, "V": values, "td": td, "A": A, "mc": monte_carlo, "return": returns,
        "white": white, "flat": flat, "truth": truth, "true_A": true_A,
        "token_mean": share_of("token-mean", mask, grpo.max_new_tokens),
        "seq_mean": share_of("seq-mean", mask, grpo.max_new_tokens),
        "seq_sum": share_of("seq-sum", mask, grpo.max_new_tokens),
        "grpo_logp": grpo_logp, "grpo_ratio": (grpo_logp - old_logp).exp() * mask,
        "grpo_clip": clipped(loss_of_grpo, grpo_logp, old_logp, flat),
        "ppo_logp": ppo_logp, "ppo_ratio": (ppo_logp - old_logp).exp() * mask,
        "ppo_clip": clipped(loss_of_ppo, ppo_logp, old_logp, white)}
    settings = {"gamma": ppo.gamma, "lam": ppo.lam, "beta": ppo.kl_coef, "clip": ppo.clip,
                "lr": ppo.lr, "grpo_beta": grpo.kl_coef, "longest": grpo.max_new_tokens,
                "continuations": CONTINUATIONS, "steps": STEPS, "seed": config.seed}
    trace_page.write(file, trace_page.collect(problem, tokenizer, columns, answers, settings))
    print(f"{file} is written: open it in a browser")


def share_of(mode: str, mask, longest: int):
    """What a token's loss is multiplied by: the derivative of the average. (B, T)"""
    x = torch.zeros(mask.shape, requires_grad=True)
    average = aggregate(x, mask, mode, count_for(mask, mode, longest))
    return torch.autograd.grad(average, x)[0]


def update(policy, tokens, mask, lr: float, loss_of):
    """The log-probs after one step of the optimizer on this loss; the policy stays. (B, T)
    The trainers clip the gradient's norm, which Adam's first step doesn't depend on."""
    learner = copy.deepcopy(policy).requires_grad_(True)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    loss_of(token_log_probs(learner, tokens, mask)).backward()
    optimizer.step()
    return token_log_probs(learner, tokens, mask).detach()


def clipped(loss_of, logp, old_logp, advantages):
    """Where the clip leaves a token no gradient: 1 above 1 + ε, -1 below 1 - ε, else 0. (B, T)"""
    logp = logp.clone().requires_grad_()
    [slope] = torch.autograd.grad(loss_of(logp), logp)
    direction = (logp - old_logp).sign().detach()
    return torch.where((slope == 0) & (advantages != 0), direction, 0.0)


if __name__ == "__main__":
    script(main)
