"""How good is a method's gradient, per sample? `python compare.py gradient`

A policy is held fixed, so there is no noise of training. From 2^16 of its answers, the true policy
gradient ∇J, J = E[reward]. Then, many times over, each method's gradient from 256 answers: what it
is on average (its bias), how far it scatters (its variance), its cosine with the truth, and from
how many answers on average that cosine would be 0.9. Ratio 1, no KL penalty, the verifier's reward.

Every method is a sum over tokens, Σ w ∇log π(token): its weights w are minus the gradient of its
own loss with respect to log π (methods.py, losses.py, advantages.py). So each answer is scored once
and then re-weighted, as often as one likes:

    1. sample 64 answers to each of 1,024 problems; equal ones are scored once
    2. S_i = Σ_t ∇log π(y_it), of all parameters, projected to 4,096 numbers: lab/sketch.py
    3. a critic weighs tokens, so each pair of critic and λ has its own Σ_t A_t ∇log π(y_it), of
       four answers to half of the problems; whitening is a factor and a shift of A
    4. batches of 256 answers, drawn from these

Means and products are taken between four blocks of problems that share none, so that noise does not
pass for agreement: <a, b> is the mean of <a_s, b_s'> over blocks s ≠ s'. Intervals leave out one
block at a time (the jackknife).

Answers are counted as they are sampled: ReMax's greedy one too. Not counted is what a critic needs
beside the batch: the warmed-up one has learned from eight batches of this policy's answers, the
"exact" one is the share of right ones among eight continuations of every prefix. What was expected,
the page and the figure: lab/gradient_page.py.

Ten minutes of one core (with --quick two), beside the training of the two policies.
"""
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

import methods
import train_grpo
import train_ppo
from advantages import explained_variance, gae, rloo_advantages, token_rewards, whiten
from lab.gradient_page import BATCH
from lab.loops import make_once
from lab.report import student_t, write_csv
from lab.sketch import Sketch
from losses import count_for, ppo_policy_loss, value_loss
from model import ScalarModel
from rollout import generate, micro_batches, mini_batches, token_values
from support.decoding import Decoder
from support.models import numpy_rng, torch_rng
from support.parallel import map_micro_batches
from support.pretrained import load_pretrained
from support.rl import KLCoefficient
from task import encode_problems, make_problems, verify_answer

BLOCKS = 4                      # of problems
LONGEST = 32                    # tokens of an answer
WARMUP_STEPS = 8                # of 256 answers each
LAMBDAS = (0.0, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Size:
    """How much is sampled."""
    prompts: int = 1024
    answers: int = 64
    critic_prompts: int = 512
    critic_answers: int = 4
    continuations: int = 8
    batches: int = 128          # drawn from each block


QUICK = Size(prompts=128, critic_prompts=64, continuations=4, batches=64)


@dataclass
class Estimator:
    """A row of the figure. `group`: answers to each problem that a batch holds."""
    name: str
    group: int
    config: object
    critic: str = ""

    @property
    def is_greedy(self) -> bool:
        return not self.critic and self.config.baseline == "greedy"

    @property
    def n_prompts(self) -> int:
        return BATCH // (self.group + self.is_greedy)

    @property
    def n_samples(self) -> int:
        return self.n_prompts * (self.group + self.is_greedy)


def of_method(name: str, method: str, group: int, compared: int = 0, **changed) -> Estimator:
    """compared: answers that are compared with each other, if those of one problem are not."""
    config = train_grpo.Config(method=method, group_size=compared or group, kl_coef=0.0,
                               minibatches=1, **changed)
    return Estimator(name, group, config)


GROUPS = (2, 4, 8, 16, 64)
ESTIMATORS = [
    of_method("REINFORCE", "reinforce", 1),
    # Dr. GRPO, whose group is the batch: all are compared with the mean of all.
    of_method("REINFORCE, mean of the batch", "dr_grpo", 1, BATCH),
    of_method("REINFORCE++", "reinforce_pp", 1),
    of_method("ReMax", "remax", 1),
    of_method("ReMax, 8 answers", "remax", 8),
    *(of_method(f"RLOO, G = {g}", "rloo", g) for g in GROUPS),
    of_method("Dr. GRPO, G = 8", "dr_grpo", 8),
    *(of_method(f"GRPO, G = {g}", "grpo", g) for g in GROUPS),
    of_method("GRPO, G = 8, only / std", "grpo", 8, aggregate="seq-sum"),
    of_method("GRPO, G = 8, only / length", "dr_grpo", 8, aggregate="seq-mean"),
    *(Estimator(f"PPO, {critic} critic, λ = {lam:g}", 1,
                train_ppo.Config(lam=lam, kl_coef=0.0, reward="verifier"), critic)
      for critic in ("new", "warmed-up", "exact") for lam in LAMBDAS),
    # How much the exact critic's own noise costs.
    Estimator("PPO, exact critic, half of the continuations, λ = 0", 1,
              train_ppo.Config(lam=0.0, kl_coef=0.0, reward="verifier"), "half"),
]


# ------------------------------------------------------------------------------ answers of a policy

@dataclass
class Pool:
    """K answers to each of P problems. Equal answers to a problem are one row of U."""
    problems: list[dict]
    tokens: torch.Tensor        # (U, T)
    mask: torch.Tensor          # (U, T) bool
    rewards: torch.Tensor       # (U,)
    problem: torch.Tensor       # (U,): whose answer it is
    row: torch.Tensor           # (P, K): each answer's row of U
    greedy: torch.Tensor        # (P,): the greedy answer's reward

    def responses(self) -> list[list[int]]:
        return [tokens[mask].tolist() for tokens, mask in zip(self.tokens, self.mask)]


def sample_in_parts(policy, tokenizer, prompts, longest, rng, temperature=1.0, rows=4096) -> list:
    """The ids of an answer to each prompt."""
    decoder, answers = Decoder(policy), []
    for at in range(0, len(prompts), rows):
        part = prompts[at:at + rows]
        rollout = generate(decoder, part, longest, tokenizer.stop_ids, temperature, rng)
        answers += rollout.responses()
    return answers


def is_right(tokenizer, problem: dict, ids: list[int]) -> float:
    """The verifier's reward; 0 if the answer was cut off."""
    if ids[-1] not in tokenizer.stop_ids:
        return 0.0
    return verify_answer(problem["prompt"], tokenizer.decode(ids, skip_special=True))


def make_pool(policy, tokenizer, problems: list[dict], n_answers: int, rng, longest: int) -> Pool:
    """longest: tokens of an answer"""
    repeated = [p["ids"] for p in problems for _ in range(n_answers)]
    answers = sample_in_parts(policy, tokenizer, repeated, longest, rng)
    greedy = sample_in_parts(policy, tokenizer, [p["ids"] for p in problems], longest, None, 0.0)
    rows, row_of = {}, []
    for i, answer in enumerate(answers):
        key = i // n_answers, tuple(answer)
        row_of.append(rows.setdefault(key, len(rows)))
    length = max(len(problems[p]["ids"]) + len(ids) for p, ids in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for u, (p, ids) in enumerate(rows):
        prompt = problems[p]["ids"]
        end = len(prompt) + len(ids)
        tokens[u, :end] = torch.tensor([*prompt, *ids])
        mask[u, len(prompt):end] = True
    rewards = [is_right(tokenizer, problems[p], list(ids)) for p, ids in rows]
    return Pool(problems, tokens, mask, torch.tensor(rewards),
                problem=torch.tensor([p for p, _ in rows]),
                row=torch.tensor(row_of).view(len(problems), n_answers),
                greedy=torch.tensor([is_right(tokenizer, *pair)
                                     for pair in zip(problems, greedy)]))


def part_of(pool: Pool, n_problems: int, n_answers: int) -> tuple[Pool, torch.Tensor]:
    """The first answers to some problems, evenly spaced; and which rows of U they are."""
    step = len(pool.problems) // n_problems
    kept, row = pool.row[::step, :n_answers].unique(return_inverse=True)
    part = replace(pool, problems=pool.problems[::step], tokens=pool.tokens[kept],
                   mask=pool.mask[kept], rewards=pool.rewards[kept],
                   problem=pool.problem[kept] // step, row=row, greedy=pool.greedy[::step])
    return part, kept


def score_answers(pool: Pool, weights: list, sketch: Sketch) -> list:
    """For each w (U, T) of weights: Σ_t w_t ∇log π of each row of U, projected. (U, pq)"""
    p, q = sketch.shape
    found = [pool.rewards.new_zeros(len(pool.tokens), p * q) for _ in weights]
    for rows, T in micro_batches(pool.mask, 4096):
        parts = sketch.scores(pool.tokens[rows, :T], pool.mask[rows, :T],
                              [w[rows, :T] for w in weights])
        for whole, part in zip(found, parts):
            whole[rows] = part
    return found


# -------------------------------------------------------------------------------------- the critics

def warm_up(policy, tokenizer, seed: int) -> ScalarModel:
    """A critic as train_ppo.py begins with one, from the policy's trunk and values of 0, after some
    batches of answers to other problems. λ = 1: its targets are the rewards."""
    config = train_ppo.Config(reward="verifier")
    critic = ScalarModel(policy).requires_grad_(True)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=config.critic_lr, betas=(0.9, 0.95),
                                  weight_decay=0.0)
    for step in range(WARMUP_STEPS):
        problems = make_problems("sums", BATCH, numpy_rng(seed, step, "gradient warm-up prompts"))
        rng = torch_rng(seed, step, "gradient warm-up")
        pool = make_pool(policy, tokenizer, encode_problems(problems, tokenizer), 1, rng, LONGEST)
        old_values = map_micro_batches(token_values, critic, pool.tokens, pool.mask, 8192)
        returns = pool.rewards[:, None] * pool.mask
        for _ in range(config.epochs):
            for rows in mini_batches(torch.arange(BATCH), config.minibatches, rng):
                tokens, mask = pool.tokens[rows], pool.mask[rows]
                loss, _ = value_loss(token_values(critic, tokens, mask), old_values[rows],
                                     returns[rows], mask, config.value_clip)
                loss.backward()
                clip_grad_norm_(critic.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return critic.requires_grad_(False)


def continue_prefixes(policy, tokenizer, pool: Pool, n: int, rng,
                      longest: int) -> torch.Tensor:
    """V of the state before every action, as the share of right answers among n continuations of
    its prefix; each half of them on its own. (2, U, T)"""
    by_length, places = {}, {}
    for u, ids in enumerate(pool.responses()):
        p = pool.problem[u].item()
        start = len(pool.problems[p]["ids"])
        for used in range(len(ids)):
            key = p, tuple(ids[:used])
            if key not in places:
                by_length.setdefault(used, []).append(key)
            places.setdefault(key, []).append((u, start + used))
    values = torch.zeros(2, *pool.mask.shape)
    for used, keys in by_length.items():
        prompts = [[*pool.problems[p]["ids"], *ids] for p, ids in keys for _ in range(n)]
        rest = sample_in_parts(policy, tokenizer, prompts, longest - used, rng)
        for i, (p, ids) in enumerate(keys):
            right = torch.tensor([is_right(tokenizer, pool.problems[p], [*ids, *end])
                                  for end in rest[i * n:(i + 1) * n]])
            halves = right.view(2, -1).mean(1)
            for u, t in places[p, ids]:
                values[:, u, t] = halves
    return values


# ------------------------------------------------------------------------------ a method's gradient

def token_weights(estimator: Estimator, rewards, mask, advantages=None, greedy=None):
    """w of the batch's gradient Σ w ∇log π: minus the gradient of the method's loss with respect to
    log π, at ratio 1. rewards (B,), mask (B, T); of PPO raw advantages (B, T). -> (B, T)"""
    config = estimator.config
    old_logp = rewards.new_zeros(mask.shape)
    logp = old_logp.clone().requires_grad_()
    denominator = count_for(mask, config.aggregate, config.max_new_tokens)
    if estimator.critic:
        loss, _ = ppo_policy_loss(logp, old_logp, whiten(advantages, mask), mask, config.clip,
                                  config.clip, denominator=denominator)
    else:
        def answer(batch, i, temperature):
            return None, greedy
        advantages = methods.unweighted_advantages(config, answer, lambda step: None, 0, rewards,
                                                   old_logp, old_logp, mask, 0.0)
        loss, _ = methods.policy_loss(config, KLCoefficient(config), logp, old_logp, None,
                                      advantages, mask, denominator)
    return -torch.autograd.grad(loss, logp)[0]


def estimate(estimator: Estimator, pool: Pool, prompts, rows, scores, weighted=None,
             advantages=None):
    """The gradient of one batch, projected. prompts (n,), rows of U (n * G,) -> (pq,)

    scores: Σ ∇log π of each unique answer (U, pq); of PPO also Σ A ∇log π, and A (U, T)."""
    mask = pool.mask[rows]
    if not estimator.critic:
        w = token_weights(estimator, pool.rewards[rows], mask, greedy=pool.greedy[prompts])
        per_answer = w.sum(1) / mask.sum(1)
        return per_answer @ scores[rows]
    A = advantages[rows]
    w = token_weights(estimator, pool.rewards[rows], mask, A)
    # Whitening is affine: w = slope * A + shift, at any two actions with different advantages.
    A, w = A[mask], w[mask]
    low, high = A.argmin(), A.argmax()
    slope = (w[high] - w[low]) / (A[high] - A[low]).clamp(min=1e-12)
    shift = w[low] - slope * A[low]
    return slope * weighted[rows].sum(0) + shift * scores[rows].sum(0)


def draw_batch(estimator: Estimator, pool: Pool, prompts, rng):
    """Problems from `prompts`, with replacement, and different answers to each. -> problems (n,),
    rows of U (n * G,)"""
    chosen = prompts[torch.randint(len(prompts), (estimator.n_prompts,), generator=rng)]
    order = torch.rand(len(chosen), pool.row.shape[1], generator=rng).argsort(1)
    return chosen, pool.row[chosen].gather(1, order[:, :estimator.group]).flatten()


# ----------------------------------------------------------------------------------- the statistics

def between(a, b):
    """<a, b> of blocks' means (S, k), without what one block's noise has in common with itself."""
    products = a @ b.T
    return (products.sum() - products.diagonal().sum()) / (len(a) * (len(a) - 1))


def summarise(means, truths, variances, n_samples: int) -> dict[str, float]:
    """From each block's mean estimate and truth (S, k), and the variance of a batch's estimate (S,)

    direction: the cosine of the mean estimate with the truth, at most 1 but for noise. noise: the
    variance per answer over |mean|². cosine: what a batch of 256 has. needed: answers for 0.9."""
    truth_square, mean_square = between(truths, truths), between(means, means)
    if truth_square <= 0 or mean_square <= 0:
        # Nothing but noise was measured.
        return dict.fromkeys(("direction", "noise", "cosine", "needed"), math.nan)
    direction = (between(means, truths) / (mean_square * truth_square).sqrt()).item()
    noise = (variances.mean() * n_samples / mean_square).item()
    cosine = direction / (1 + noise / BATCH) ** 0.5
    needed = math.inf
    if direction > 0.9:
        needed = noise / ((direction / 0.9) ** 2 - 1)
    return {"direction": direction, "noise": noise, "cosine": cosine, "needed": needed}


def jackknife(means, truths, variances, n_samples: int) -> dict[str, float]:
    """summarise(), and the half-width of a 95 % interval of direction, of cosine, of log noise and
    of log needed (nan where it is infinite without one of the blocks)."""
    found = summarise(means, truths, variances, n_samples)
    S = len(means)
    left_out = [summarise(means[kept], truths[kept], variances[kept], n_samples)
                for kept in ([i for i in range(S) if i != s] for s in range(S))]
    for name in ("direction", "cosine", "noise", "needed"):
        values = torch.tensor([each[name] for each in left_out], dtype=torch.float64)
        if name in ("noise", "needed"):
            values = values.log()
        error = ((S - 1) / S * (values - values.mean()).square().sum()).sqrt().item()
        found[f"{name}_error"] = student_t(S - 1) * error
    return found


def true_gradient(pool: Pool, scores, blocks) -> torch.Tensor:
    """∇J of each block of problems (S, pq): each answer's reward minus the mean of the others' to
    the same problem."""
    advantages = rloo_advantages(pool.rewards[pool.row].flatten(), pool.row.shape[1])
    advantages = advantages.view(pool.row.shape)
    means = []
    for prompts in blocks:
        rows = pool.row[prompts].flatten()
        means.append(advantages[prompts].flatten() @ scores[rows] / len(rows))
    return torch.stack(means)


def measure(estimator: Estimator, pool: Pool, truths, blocks, n_batches: int, *scores) -> dict:
    """A row of gradient.csv, of estimates from n_batches batches of each block."""
    # The same draws for all methods that draw alike.
    rng = torch.Generator().manual_seed(1000 * estimator.group + estimator.n_prompts)
    batches = []
    for prompts in blocks:
        drawn = [draw_batch(estimator, pool, prompts, rng) for _ in range(n_batches)]
        batches.append(torch.stack([estimate(estimator, pool, *each, *scores) for each in drawn]))
    batches = torch.stack(batches)                                              # (S, n, pq)
    means = batches.mean(1)
    variances = batches.var(1).sum(-1)                                          # (S,)
    found = jackknife(means, truths, variances, estimator.n_samples)

    # The cosines of single batches. A block's mean is off by the problems that it happens to have;
    # a batch of ever new problems would not be.
    square = between(means, means).clamp(min=0) + variances
    factor = square / (means.square().sum(-1) + variances)                              # (S,)
    lengths = (batches.square().sum(-1) * factor[:, None]).sqrt().clamp(min=1e-30)      # (S, n)
    others = (truths.sum(0) - truths) / (len(truths) - 1)                               # (S, pq)
    cosines = (batches @ others[:, :, None]).squeeze(-1) / lengths
    cosines = (cosines / between(truths, truths).sqrt()).flatten()
    found["batches"] = cosines.mean().item()
    found["low"], found["high"] = cosines.quantile(torch.tensor([0.05, 0.95])).tolist()
    return found


# ----------------------------------------------------------------------------------- the experiment

@dataclass
class Collected:
    """All that estimates are made of, at one policy. The critics have a part of the pool."""
    pool: Pool
    scores: torch.Tensor                    # (U, pq): Σ ∇log π
    part: Pool
    kept: torch.Tensor                      # which rows of U the part has
    advantages: dict[str, torch.Tensor]     # of each estimator with a critic: A (U', T)
    weighted: dict[str, torch.Tensor]       # Σ A ∇log π (U', pq)
    values: dict[str, torch.Tensor]         # of each critic (U', T)


def collect(model: Path, size: Size, seed: int = 0) -> Collected:
    """Sample, and score: all that takes long."""
    policy, tokenizer = load_pretrained(model, torch.float32, torch.device("cpu"))
    policy.requires_grad_(False)
    problems = make_problems("sums", size.prompts, numpy_rng(seed, 0, "gradient prompts"))
    pool = make_pool(policy, tokenizer, encode_problems(problems, tokenizer), size.answers,
                     torch_rng(seed, 0, "gradient"), LONGEST)
    print(f"{pool.row.numel()} answers, {len(pool.tokens)} different ones", flush=True)
    sketch = Sketch(policy)
    [scores] = score_answers(pool, [pool.mask.float()], sketch)

    # The critics, and what each λ makes of them.
    part, kept = part_of(pool, size.critic_prompts, size.critic_answers)
    critic = warm_up(policy, tokenizer, seed)
    print(f"{len(part.tokens)} answers for the critics", flush=True)
    continued = continue_prefixes(policy, tokenizer, part, size.continuations,
                                  torch_rng(seed, 0, "gradient continuations"), LONGEST)
    values = {
        "new": torch.zeros(part.mask.shape),
        "warmed-up": map_micro_batches(token_values, critic, part.tokens, part.mask, 8192),
        "exact": continued.mean(0),
        "half": continued[0]}
    no_kl = torch.zeros(part.mask.shape)
    rewards = token_rewards(part.rewards, no_kl, no_kl, part.mask, 0.0)
    advantages = {e.name: gae(rewards, values[e.critic], part.mask, lam=e.config.lam)[0]
                  for e in ESTIMATORS if e.critic}
    weighted = score_answers(part, [*advantages.values()], sketch)
    return Collected(pool, scores, part, kept, advantages, dict(zip(advantages, weighted)), values)


def study(policy: str, data: Collected, n_batches: int) -> tuple[list[dict], dict]:
    """-> rows of gradient.csv, a row of gradient_policies.csv"""
    pool, part = data.pool, data.part
    blocks = torch.arange(len(pool.problems)).chunk(BLOCKS)
    part_blocks = torch.arange(len(part.problems)).chunk(BLOCKS)
    truths = true_gradient(pool, data.scores, blocks)
    rows = []
    for e in ESTIMATORS:
        if e.critic:
            found = measure(e, part, truths, part_blocks, n_batches, data.scores[data.kept],
                            data.weighted[e.name], data.advantages[e.name])
        else:
            found = measure(e, pool, truths, blocks, n_batches, data.scores)
        rows.append({"policy": policy, "method": e.name, "samples": e.n_samples,
                     **{column: f"{x:.4g}" for column, x in found.items()}})
    return rows, {"policy": policy, **facts_of(data, truths)}


def facts_of(data: Collected, truths) -> dict:
    """The rest of a row of gradient_policies.csv: what the policy and its critics are like, and
    which constant is the best baseline. truths: of each block, see true_gradient"""
    pool, part = data.pool, data.part
    # An answer's advantage counts by the square of its score: so the best constant baseline is the
    # mean reward with these weights.
    each = pool.row.flatten()
    squares = data.scores.square().sum(1)
    right = pool.rewards > 0.5
    exact, half = data.values["exact"], data.values["half"]
    mask = part.mask
    returns = part.rewards[:, None].expand(mask.shape)[mask]
    halves = truths[::2].mean(0), truths[1::2].mean(0)
    best = (pool.rewards * squares)[each].sum() / squares[each].sum()
    with_best = ((pool.rewards - best).square() * squares)[each].mean()
    without = (pool.rewards.square() * squares)[each].mean()
    with_mean = ((pool.rewards - pool.rewards[each].mean()).square() * squares)[each].mean()
    facts = {"accuracy": pool.rewards[each].mean(),
             "greedy": pool.greedy.mean(),
             "length": pool.mask.sum(1)[each].float().mean(),
             "length_right": pool.mask.sum(1)[each][right[each]].float().mean(),
             "halves": F.cosine_similarity(*halves, dim=0),
             "best_baseline": best,
             "best_leaves": with_best / without,
             "mean_leaves": with_mean / without,
             "score_right": squares[each][right[each]].mean(),
             "score_wrong": squares[each][~right[each]].mean(),
             "value_error": (exact - half)[mask].square().mean().sqrt(),
             "warm_up_explains": explained_variance(data.values["warmed-up"][mask], returns),
             "exact_explains": explained_variance(exact[mask], returns)}
    return {"problems": len(pool.problems), "answers": len(each), "different": len(pool.tokens),
            "critics": part.row.numel(),
            **{column: f"{float(x):.4g}" for column, x in facts.items()}}


def run(out: Path, models: dict[str, Path], quick: bool) -> None:
    """models: name -> directory. Writes gradient.csv and gradient_policies.csv; each policy's share
    of them is kept in OUT/runs."""
    size = QUICK if quick else Size()
    rows, policies = [], []
    for policy, model in models.items():
        print(f"{policy}:", flush=True)
        name = re.sub(r"\W+", "_", f"gradient {size.prompts} {policy}")
        found, facts = make_once(out / "runs" / f"{name}.json",
                                 lambda: study(policy, collect(model, size), size.batches))
        rows += found
        policies.append(facts)
    write_csv(out / "gradient.csv", rows)
    write_csv(out / "gradient_policies.csv", policies)
