"""Over-optimisation of reward models: more pairs, three models instead of one, best-of-n.

    the SFT model's pairs      reward models                the reward that is climbed
    256                        one                          its score
    1,024                      one                          its score
    three times 1,024          three                        the mean of their scores, or the least
    the same 3,072             one                          its score

Each reward model has 64 updates by 32 pairs, so it sees 1,024 pairs twice; that on 3,072 has 96,
and sees each pair once.

A reward model is right about answers like those it has seen. What climbs its score leaves them, and
from then on finds answers that the model is wrong about. Gold is the verifier, which no reward
model sees. Two ways to climb, drawn over √KL to the SFT model, as Gao et al. 2022
(arXiv:2210.10760) draw them:

    policy gradient    PPO's clipped loss, no KL penalty, RLOO's baseline in the critic's place
    best of n          the answer with the highest score of n of the SFT model's own answers; its KL
                       is log n - (n - 1) / n, at most (Beirami et al. 2024, arXiv:2401.01879)

Scores mean nothing but differences (Bradley-Terry), so each model's are shifted and scaled to mean
0 and standard deviation 1 on the SFT model's answers; the least of three would else be that of the
model which happens to lie lowest. Mean and least: Coste et al. 2023 (arXiv:2310.02743).
"""
import copy
import functools
import json
import math
from pathlib import Path

import torch

import compare
from advantages import rloo_advantages
from evaluate import answer
from lab.experiments import RM, SFT
from lab.loops import run_once, update
from losses import ppo_policy_loss, reward_model_loss
from model import ScalarModel
from rollout import generate, sequence_scores, token_log_probs
from support.data import pad_batch, repeat_each, take
from support.ladder import check_answers, make_prompts
from support.metrics import token_kl
from support.models import torch_rng
from support.pretrained import load_pretrained
from task import held_out_problems, task_reward
from train_rm import pad_pairs, score

RM_STEPS, RM_BATCH, RM_LR = 64, 32, 5e-4    # at least so many steps: every pair is seen
STEPS = 20
ANSWERS, GROUP_SIZE = 64, 4     # per step; to each prompt
EPOCHS = 2                      # updates per step
LR = 4e-4
MAX_NEW_TOKENS = 32
UNFINISHED = -5.0               # the standardised score of an answer that was cut off
PROBLEMS, SAMPLES = 32, 256     # of best-of-n
N = (1, 2, 4, 8, 16, 32, 64, 128, 256)

COLUMNS = ("step", "answer_kl", "gold", "proxy", "best_gold", "best_proxy", "best_of_8",
           "gold_at_8", "gold_at_256")
# The reward that is climbed -> the pairs of each model, and what is made of their scores.
THREE = [range(0, 1024), range(1024, 2048), range(2048, 3072)]
REWARDS = {
    "256 pairs": ([range(256)], "mean"),
    "1,024 pairs": (THREE[:1], "mean"),
    "3,072 pairs": ([range(3072)], "mean"),
    "mean of three": (THREE, "mean"),
    "least of three": (THREE, "least"),
}


# ------------------------------------------------------------------------------ the reward models

def read_pairs(run: Path) -> list[dict]:
    """The pairs of ids that a run of train_rm.py sampled from its SFT model to train on."""
    with open(run / "pairs.jsonl", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return [row["ids"] for row in rows if not row["held_out"]]


def train_reward_model(policy, pairs: list[dict], seed: int):
    """The loop of train_rm.py."""
    reward_model = ScalarModel(policy)
    optimizer = torch.optim.AdamW(reward_model.parameters(), RM_LR, betas=(0.9, 0.95),
                                  weight_decay=0.0)
    steps = max(RM_STEPS, len(pairs) // RM_BATCH)
    for step in range(steps):
        tokens, mask = pad_pairs(take(pairs, RM_BATCH, seed, step), "cpu")      # (2, P, T)
        chosen, rejected = score(reward_model, tokens, mask)                    # (P,), (P,)
        loss, _ = reward_model_loss(chosen, rejected)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reward_model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RM_LR * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return reward_model.requires_grad_(False)


class Standardised:
    """A reward model whose scores have mean 0 and standard deviation 1 on these answers.

    tokens, mask (U, T): of answers that differ; `which`: of them, those that were sampled."""

    def __init__(self, reward_model, tokens, mask, which):
        self.reward_model, self.shift, self.scale = reward_model, 0.0, 1.0
        scores = self(tokens, mask)[which]
        self.shift, self.scale = scores.mean(), scores.std()

    @torch.no_grad()
    def __call__(self, tokens, mask):
        """(B, T), (B, T) -> (B,)"""
        parts = zip(tokens.split(512), mask.split(512))
        scores = torch.cat([sequence_scores(self.reward_model, t, m) for t, m in parts])
        return (scores - self.shift) / self.scale


def combine(scores, how: str):
    """Of each answer the mean or the least of its scores. (models, B) -> (B,)"""
    return scores.mean(0) if how == "mean" else scores.amin(0)


# ---------------------------------------------------------------------------- two ways to climb it

def climb_by_gradient(start, tokenizer, reward_models, how: str, seed: int,
                      steps: int) -> list[dict]:
    """-> for each step, the KL, the reward and the gold score of what the policy samples"""
    policy = copy.deepcopy(start)
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    rows = []
    for step in range(steps):
        prompts = make_prompts(tokenizer, ANSWERS // GROUP_SIZE, seed, step)
        rollout = generate(policy, repeat_each(prompts, GROUP_SIZE), MAX_NEW_TOKENS,
                           tokenizer.stop_ids, generator=torch_rng(seed, step, "climb"))
        tokens, mask = rollout.tokens, rollout.mask                             # (B, T)
        scores = combine(torch.stack([model(tokens, mask) for model in reward_models]), how)
        rewards = torch.where(rollout.finished, scores, UNFINISHED)             # (B,)
        with torch.no_grad():
            kl = token_kl(policy, start, tokens, mask).sum(1).mean()
        rows.append({"step": step, "answer_kl": kl.item(), "proxy": rewards.mean().item(),
                     "gold": check_answers(rollout, tokenizer).mean().item()})

        advantages = rloo_advantages(rewards, GROUP_SIZE)                       # (B,)
        for _ in range(EPOCHS):
            logp = token_log_probs(policy, tokens, mask)
            loss, _ = ppo_policy_loss(logp, rollout.logp, advantages, mask)
            update(policy, optimizer, loss)
    return rows


def sample_start(policy, tokenizer):
    """SAMPLES answers of the SFT model to each problem. -> those that differ, as tokens and mask
    (U, T); which of them each answer is, and its gold score, (PROBLEMS, SAMPLES) each."""
    problems = held_out_problems("sums", PROBLEMS, tokenizer, longest=32)
    examples = repeat_each(problems, SAMPLES)
    answers, _ = answer(policy, tokenizer, task_reward, examples, MAX_NEW_TOKENS, 1.0,
                        torch_rng(0, 0, "best of n"))
    rows = [(tuple(example["ids"]), tuple(ids), ended)
            for example, (_, [ids], ended) in zip(examples, answers)]
    place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    tokens, mask = pad_batch([[list(prompt), list(ids)] for prompt, ids, _ in place], "cpu")
    which = torch.tensor([place[row] for row in rows]).view(PROBLEMS, SAMPLES)
    gold = torch.tensor([reward for reward, _, _ in answers]).view(PROBLEMS, SAMPLES)
    finished = torch.tensor([ended for _, _, ended in place])
    return tokens, mask, finished, which, gold


def best_of_n(scores, gold, n: int) -> float:
    """The expected gold score of the best of n answers, drawn without replacement from those of a
    row: the one at place i from below is the best of C(i, n - 1) of C(SAMPLES, n) draws.

    scores, gold (P, SAMPLES). Unbiased (Nakano et al. 2021, arXiv:2112.09332, appendix)."""
    S = scores.shape[1]
    order = scores.argsort(1)
    weights = torch.tensor([math.comb(i, n - 1) / math.comb(S, n) for i in range(S)])
    return (gold.gather(1, order) * weights).sum(1).mean().item()


def kl_of_best_of(n: int) -> float:
    return math.log(n) - (n - 1) / n


def climb_best_of_n(scores, gold) -> list[dict]:
    """-> for each n, the KL, the reward and the gold score of the best of n. (P, SAMPLES) each"""
    return [{"step": n, "answer_kl": kl_of_best_of(n), "best_proxy": best_of_n(scores, scores, n),
             "best_gold": best_of_n(scores, gold, n)} for n in N]


def accuracy_at(rows: list[dict], kl: float) -> float:
    """The policy gradient's gold score, of the three steps whose mean KL is nearest to this one."""
    rows = [row for row in rows if "gold" in row]
    found = []
    for i in range(len(rows) - 2):
        three = rows[i:i + 3]
        away = abs(sum(row["answer_kl"] for row in three) / 3 - kl)
        found.append((away, sum(row["gold"] for row in three) / 3))
    return min(found)[1]


def add_comparison(rows: list[dict]) -> None:
    """To the last row of a run: best of 8, and the policy gradient at the KL of best of 8 and of
    best of 256."""
    [best_of_8] = [row["best_gold"] for row in rows if row["step"] == 8 and "best_gold" in row]
    rows[-1] |= {"best_of_8": best_of_8, "gold_at_8": accuracy_at(rows, kl_of_best_of(8)),
                 "gold_at_256": accuracy_at(rows, kl_of_best_of(256))}


def run_seed(sft: Path, pairs_of: Path, seed: int, steps: int = STEPS) -> list[dict]:
    """All rewards, from one SFT model."""
    policy, tokenizer = load_pretrained(sft)
    pairs = read_pairs(pairs_of)
    tokens, mask, finished, which, gold = sample_start(policy, tokenizer)
    trained, rows = {}, []
    for setting, (parts, how) in REWARDS.items():
        for part in parts:
            if part not in trained:
                model = train_reward_model(policy, [pairs[i] for i in part], seed)
                trained[part] = Standardised(model, tokens, mask, which)
        models = [trained[part] for part in parts]
        scores = combine(torch.stack([model(tokens, mask) for model in models]), how)
        scores = torch.where(finished, scores, UNFINISHED)[which]               # (P, S)
        found = climb_best_of_n(scores, gold)
        found += climb_by_gradient(policy, tokenizer, models, how, seed, steps)
        add_comparison(found)
        for row in found:
            rows.append({"line": "", "setting": setting, "seed": seed,
                         **{column: compare.number(row.get(column, "")) for column in COLUMNS}})
    return rows


def run(out: Path, seeds: int, quick: bool) -> list[dict]:
    """The rows of reward_models.csv: of best of n, where `step` is n, and of the policy gradient.

    SFT models and pairs are those of the table's runs in `out`."""
    compare.run_all(out, [RM], seeds, jobs=None)
    steps = STEPS // 2 if quick else STEPS
    rows = []
    for seed in range(seeds):
        sft, rm = (compare.run_path(out, command, seed) for command in (SFT, RM))
        rows += run_once(out / "runs" / f"reward_models_{steps}-{seed}.csv",
                         functools.partial(run_seed, sft / "model", rm, seed, steps))
    return rows
