"""Which token earned the reward? A sum of four numbers takes three additions, and one goes wrong:

    12+34+56+7=<think>12+34=46, 46+56=112, 112+7=119</think>119     reward 0
                                       ^ the first wrong token
    V of a critic that knows        .8 .8 .1 .1 .1                  falls where the step goes wrong
    GRPO's advantage                -.8 -.8 -.8 -.8 -.8             one number for the whole answer

What V should be is known here: the share of right answers among many continuations of the same
prefix by the same policy. Both are taken from PPO runs of several lengths (a short run is the
beginning of a long one), and where the critic alone has then learned on, at every token of some
answers that think: half of them right, half of them wrong. The runs are those of lab/hard.py.

    credit.csv          what all these tokens say of the critic, a row for each run
    credit_tokens.csv   the tokens themselves, of seed 0
    credit_runs.csv     PPO and GRPO: the reward after so many answers, and seconds of one core
    credit_curves.png   two answers, token by token; both runs over answers and over seconds
"""
import functools
from dataclasses import replace
from pathlib import Path
from statistics import correlation, linear_regression, mean

import torch

from advantages import gae
from lab.gradient import continue_prefixes, make_pool
from lab.hard import QUICK_STEPS, STEPS, TASK, run_setting, train
from lab.loops import make_once
from lab.report import write_csv
from model import ScalarModel
from rollout import token_values
from support.models import numpy_rng, torch_rng
from support.plot import read_csv, read_metrics, save_figure
from support.pretrained import load_pretrained
from task import MAX_NEW_TOKENS, demonstration, encode_problems, make_problems

LONGEST = MAX_NEW_TOKENS["long_sums"]
MARKS = (6, 15)         # after so many steps of PPO, and after all, the critic is looked at
ANSWERS = 8             # right ones, and as many wrong ones
SAMPLED = 2048          # answers that they are taken from
CONTINUATIONS = 32      # of each prefix
# The critic alone, on answers of the policy that PPO ended with: 8,192 of them.
ALONE = f"train_ppo.py {TASK} --reward verifier --prompts-per-step 256"
ALONE_STEPS = 32
LAM = 0.95              # of train_ppo.py


def load_critic(run: Path) -> tuple:
    """-> the policy of a PPO run, its tokenizer, and its critic as it was after the last step."""
    policy, tokenizer = load_pretrained(run / "model", torch.float32, "cpu")
    critic = ScalarModel(policy)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=False)
    critic.load_state_dict(checkpoint["parts"]["critic"])
    return policy.requires_grad_(False), tokenizer, critic.requires_grad_(False)


def first_wrong(tokenizer, problem: dict, ids: list[int]) -> int:
    """Where an answer leaves the demonstration: the index of its first wrong token."""
    [text] = demonstration(problem["prompt"], reason=True)
    right = [*tokenizer.encode(text), tokenizer.eos_id]
    same = [a == b for a, b in zip(ids, right)]
    return same.index(False) if False in same else len(same)


def thinking_answers(policy, tokenizer, seed: int):
    """A pool of answers that think, half of them right: the first ones that are sampled."""
    rng = numpy_rng(seed, 0, "credit prompts")
    problems = make_problems("long_sums", SAMPLED, rng, held_out=True)
    pool = make_pool(policy, tokenizer, encode_problems(problems, tokenizer), 1,
                     torch_rng(seed, 0, "credit"), LONGEST)
    [think] = tokenizer.encode("<think>")
    rows = {1.0: [], 0.0: []}
    for u, ids in enumerate(pool.responses()):
        chosen = rows[pool.rewards[u].item()]
        if ids[0] == think and ids[-1] == tokenizer.eos_id and len(chosen) < ANSWERS:
            chosen.append(u)
    kept = torch.tensor(rows[1.0] + rows[0.0])
    return replace(pool, tokens=pool.tokens[kept], mask=pool.mask[kept],
                   rewards=pool.rewards[kept], problem=pool.problem[kept])


def measure(run: Path, seed: int) -> list[dict]:
    """A row for each token of the answers: V before it, the truth by two halves of the
    continuations, PPO's and GRPO's advantage of it, and how far it is from the first wrong one."""
    policy, tokenizer, critic = load_critic(run)
    pool = thinking_answers(policy, tokenizer, seed)
    halves = continue_prefixes(policy, tokenizer, pool, CONTINUATIONS,
                               torch_rng(seed, 1, "credit"), LONGEST)
    values = token_values(critic, pool.tokens, pool.mask)
    last = pool.mask & ~pool.mask.roll(-1, 1)
    rewards = pool.rewards[:, None] * last
    advantages, _ = gae(rewards, values, pool.mask, 1.0, LAM)
    rows = []
    for u, ids in enumerate(pool.responses()):
        problem = pool.problems[pool.problem[u]]
        wrong = first_wrong(tokenizer, problem, ids)
        start = len(problem["ids"])
        for t, token in enumerate(ids):
            rows.append({
                "seed": seed, "answer": u, "prompt": problem["prompt"],
                "right": int(pool.rewards[u]), "token": tokenizer.decode([token]),
                "place": t, "after_wrong": t - wrong,
                "value": round(values[u, start + t].item(), 4),
                "truth_1": round(halves[0, u, start + t].item(), 4),
                "truth_2": round(halves[1, u, start + t].item(), 4),
                "ppo": round(advantages[u, start + t].item(), 4)})
    return rows


def falls(rows: list[dict], name: str) -> list[float]:
    """How far V falls at each token of one answer; after the last it is the reward."""
    values = [row[name] for row in rows] + [rows[-1]["right"]]
    return [before - after for before, after in zip(values, values[1:])]


def summary(rows: list[dict]) -> dict[str, float]:
    """What the tokens of one run say, as a row of numbers.

    correlation: of V with the truth; its bound is that of the truth with itself, of one half with
    the other. slope: of a straight line from V to the truth, 1 if V is calibrated. at_wrong: of
    the wrong answers, the share whose V falls most at the first wrong token; near_wrong: there or
    at one of the two tokens after it. credit_ppo and credit_grpo: correlation of an advantage with
    how the truth changes at the token."""
    for row in rows:
        row["truth"] = (row["truth_1"] + row["truth_2"]) / 2
    value, truth = ([row[name] for row in rows] for name in ("value", "truth"))
    found = {"correlation": correlation(value, truth),
             "bound": correlation([r["truth_1"] for r in rows], [r["truth_2"] for r in rows]),
             "slope": linear_regression(value, truth).slope,
             "mean_value": mean(value), "mean_truth": mean(truth)}
    answers = {}
    for row in rows:
        answers.setdefault(row["answer"], []).append(row)
    places = {"value": [], "truth": []}
    changes, ppo, grpo = [], [], []
    for tokens in answers.values():
        changes += [-fall for fall in falls(tokens, "truth")]
        ppo += [row["ppo"] for row in tokens]
        grpo += [float(tokens[0]["right"])] * len(tokens)
        if tokens[0]["right"] == 0:
            for name in places:
                # Without the step to the reward: any V must take it, whatever it knows.
                fall = falls(tokens, name)[:-1]
                places[name].append(tokens[fall.index(max(fall))]["after_wrong"])
    for name, found_at in places.items():
        found[f"at_wrong_{name}"] = sum(place == 0 for place in found_at) / len(found_at)
        found[f"near_wrong_{name}"] = sum(0 <= place <= 2 for place in found_at) / len(found_at)
    return found | {"credit_ppo": correlation(ppo, changes),
                    "credit_grpo": correlation(grpo, changes)}


# ------------------------------------------------------------------------------- the experiment

def run(out: Path, seeds: int, quick: bool) -> list[dict]:
    """A row for each PPO run: how good its critic is. Writes the other csv files and the figure."""
    last = QUICK_STEPS if quick else STEPS
    table, runs, tokens = [], [], []
    for seed in range(seeds):
        paths = {f"after {steps} steps": run_setting(out, "PPO", steps, seed)
                 for steps in (*MARKS, last)}
        alone = ALONE_STEPS // 8 if quick else ALONE_STEPS
        paths["then the critic alone"] = train(
            out / "runs" / f"credit_alone_{last}_{alone}-{seed}",
            f"{ALONE} --steps {alone} --critic-warmup {alone} --seed {seed}",
            paths[f"after {last} steps"])
        for setting, path in paths.items():
            found = measured(path, seed)
            if seed == 0:
                tokens += [{"setting": setting, **row} for row in found]
            table.append({"line": "", "setting": setting, "seed": seed, "step": 1,
                          **summary(found)})
        for setting in ("PPO", "GRPO"):
            samples, seconds = 0.0, 0.0
            for row in read_metrics(run_setting(out, setting, last, seed)):
                samples += float(row["samples"])
                seconds += float(row["seconds"])
                runs.append({"setting": setting, "seed": seed, "step": row["step"],
                             "reward": row["reward"], "samples": samples,
                             "seconds": round(seconds, 2)})
    write_csv(out / "credit_tokens.csv", tokens)
    write_csv(out / "credit_runs.csv", runs)
    return table


def measured(run: Path, seed: int) -> list[dict]:
    """measure(), which takes a minute, once."""
    return make_once(Path(f"{run}.tokens.json"), functools.partial(measure, run, seed))


def draw(folder: Path) -> None:
    """credit_curves.png, from the csv files alone."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    tokens = read_csv(folder / "credit_tokens.csv")
    runs = read_csv(folder / "credit_runs.csv")
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, right, title in zip(axes[0], ("1", "0"), ("a right answer", "a wrong answer")):
        of_kind = [row for row in tokens
                   if row["right"] == right and row["setting"] == tokens[-1]["setting"]]
        answer = [row for row in of_kind if row["answer"] == of_kind[0]["answer"]]
        draw_answer(axis, answer)
        axis.set_title(f"{title} to {answer[0]['prompt']}", loc="left", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    for axis, x in zip(axes[1], ("samples", "seconds")):
        for color, setting in (("C0", "PPO"), ("C1", "GRPO")):
            mine = [row for row in runs if row["setting"] == setting]
            n_seeds = len({row["seed"] for row in mine})
            n_steps = len(mine) // n_seeds
            by_step = [mine[step::n_steps] for step in range(n_steps)]
            for seed in range(n_seeds):
                one = mine[seed * n_steps:(seed + 1) * n_steps]
                axis.plot([float(row[x]) for row in one], [float(row["reward"]) for row in one],
                          color=color, linewidth=0.7, alpha=0.3)
            axis.plot([mean(float(row[x]) for row in at) for at in by_step],
                      [mean(float(row["reward"]) for row in at) for at in by_step],
                      color=color, label=setting)
        axis.set_xlabel({"samples": "answers sampled", "seconds": "seconds of one core"}[x])
        axis.set_ylabel("right answers, sampled (share)")
        axis.grid(alpha=0.3)
    axes[1, 0].legend(fontsize=8)
    save_figure(figure, folder / "credit_curves.png", [tokens, runs, draw, draw_answer], dpi=110)
    plt.close(figure)


def draw_answer(axis, answer: list[dict]) -> None:
    """V, the truth and GRPO's advantage, token by token. A red line: the first wrong token."""
    place = range(len(answer))
    truth = [(float(row["truth_1"]) + float(row["truth_2"])) / 2 for row in answer]
    axis.plot(place, truth, "o-", color="0.4", ms=3, label="share of right continuations")
    axis.plot(place, [float(row["value"]) for row in answer], ".-", color="C0", label="V of PPO")
    stripe = 1.0 if answer[0]["right"] == "1" else 0.0
    axis.axhline(stripe, color="C1", linestyle="--", label="what GRPO's advantage says: the reward")
    wrong = -int(answer[0]["after_wrong"])
    if wrong < len(answer):
        axis.axvline(wrong, color="C3", alpha=0.5)
    short = {"<think>": "<t>", "</think>": "</t>", "<|endoftext|>": "end"}
    axis.set_xticks(place, [short.get(row["token"], row["token"]) for row in answer], fontsize=6)
    axis.set_ylim(-0.1, 1.1)
    axis.grid(alpha=0.3)
