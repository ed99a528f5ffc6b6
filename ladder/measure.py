"""All rungs over several seeds: the numbers and the figure of README.md.

    python ladder/measure.py              runs what results.csv lacks, then draws
    python ladder/measure.py --figures    draws from the CSV files: no runs

Writes ladder/steps.csv (a row a step), results.csv (a row a run), noise.csv (the noise of each
gradient), baseline.csv (see rung 2) and curves.png. All runs start from the same runs/sft: seeds
differ in problems and samples. Forty runs, about a minute each on one core.
"""
import csv
import importlib
import sys
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch

from rollout import generate, token_log_probs
from support.ladder import RUNGS, check_answers, load_sft, make_prompts, noise_of, read_results
from support.models import torch_rng
from support.plot import read_csv, save_figure

FOLDER = ROOT / "ladder"
SEEDS = range(5)
# The first rung once more, with 1 added to every reward.
SHIFTED = "1_reinforce, R + 1"
CURVES = (RUNGS[0], SHIFTED, *RUNGS[1:])
# The noise of the gradient is measured on more answers than a step has, and with a better critic.
NOISE_ANSWERS = 512
NOISE_CRITIC_STEPS = 10
NOISE_SEEDS = range(1)
BASELINE_ANSWERS = 256
SHOWN_STEPS = (5, 10, 15)
# None of them grey, which the other curves of a panel are.
COLORS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C9")


def run(name: str, seed: int):
    """One rung from its start to its end. -> its log"""
    rung = importlib.import_module(name.partition(",")[0])
    rung.OFFSET = 1.0 if name == SHIFTED else 0.0
    return rung.train(seed)


def first_update(name: str, seed: int):
    """A rung's first update of the policy, of many answers. -> its log

    A critic has learned before, for NOISE_CRITIC_STEPS steps."""
    rung = importlib.import_module(name.partition(",")[0])
    rung.OFFSET = 1.0 if name == SHIFTED else 0.0
    has_critic = hasattr(rung, "critic_loss")
    rung.ANSWERS, rung.CRITIC_STEPS = NOISE_ANSWERS, NOISE_CRITIC_STEPS
    return rung.train(seed, 1 + NOISE_CRITIC_STEPS * has_critic)


def append(file: Path, row: dict) -> None:
    is_new = not file.exists()
    with open(file, "a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def run_what_is_missing() -> None:
    """Seed by seed, so that what is there after an interruption has as many runs of each rung."""
    done = {(row["rung"], int(row["seed"])) for row in read_results()}
    for seed in SEEDS:
        for name in CURVES:
            if (name, seed) in done:
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            log = run(name, seed)
            key = {"rung": name, "seed": seed}
            for row in log.steps:
                append(FOLDER / "steps.csv", key | {
                    "step": row["step"], "accuracy": f"{row['accuracy']:.4g}",
                    "reward": f"{row['reward']:.4g}" if "reward" in row else ""})
            append(FOLDER / "results.csv", key | {
                name: x and f"{x:.4g}" for name, x in log.result.items()})


def measure_noise() -> None:
    """noise.csv: variance and signal of each rung's gradient, at the SFT model."""
    done = {(row["rung"], int(row["seed"])) for row in read_noise()}
    for seed in NOISE_SEEDS:
        for name in CURVES[:-1]:
            if (name, seed) not in done:
                print(f"\n{name}, noise, seed {seed}", flush=True)
                result = first_update(name, seed).result
                append(FOLDER / "noise.csv", {
                    "rung": name, "seed": seed, "variance": f"{result['variance']:.4g}",
                    "signal": f"{result['signal']:.4g}"})


def read_noise() -> list[dict]:
    file = FOLDER / "noise.csv"
    return read_csv(file) if file.exists() else []


def noise(name: str) -> float | None:
    """The noise scale of a rung's gradient, None of DPO, which has no rewards."""
    rows = [row for row in read_noise() if row["rung"] == name]
    return noise_of(rows) if rows else None


def measure_baseline() -> None:
    """baseline.csv: of right and of wrong answers of the SFT model, the mean squared length of
    ∇ Σ_t log π, and how many they are. One backward pass for each answer."""
    policy, tokenizer = load_sft()
    parameters = list(policy.parameters())
    prompts = make_prompts(tokenizer, BASELINE_ANSWERS, 0, 0)
    rollout = generate(policy, prompts, 32, tokenizer.stop_ids,
                       generator=torch_rng(0, 0, "ladder baseline"))
    lengths = {0.0: [], 1.0: []}
    for row, reward in enumerate(check_answers(rollout, tokenizer).tolist()):
        tokens, mask = (x[row:row + 1, :rollout.lengths[row]]
                        for x in (rollout.tokens, rollout.mask))
        logp = token_log_probs(policy, tokens, mask).sum()
        gradient = torch.autograd.grad(logp, parameters)
        lengths[reward].append(sum(g.square().sum().item() for g in gradient))
    for reward, values in lengths.items():
        append(FOLDER / "baseline.csv", {"reward": int(reward), "answers": len(values),
                                         "squared_length": f"{mean(values):.4g}"})


def best_baseline() -> float:
    """The constant b that makes the variance of (R - b) Σ_t ∇log π the smallest: E[R x] / E[x], x
    the squared length of Σ_t ∇log π. Its derivative by b, -2 E[(R - b) x], is 0 there."""
    wrong, right = (int(row["answers"]) * float(row["squared_length"])
                    for row in read_csv(FOLDER / "baseline.csv"))
    return right / (right + wrong)


def accuracies() -> dict[str, dict[int, list[float]]]:
    """Of each curve, at each step, the accuracies of all seeds."""
    found = {name: {} for name in CURVES}
    for row in read_csv(FOLDER / "steps.csv"):
        at_step = found[row["rung"]].setdefault(int(row["step"]), [])
        at_step.append(float(row["accuracy"]))
    return found


def table_rows() -> list[str]:
    """The rows of the table in README.md: accuracy after so many steps, noise of the gradient."""
    lines = []
    for name, at in accuracies().items():
        cells = [f"{mean(at[step]):.2f}" for step in SHOWN_STEPS[:-1]]
        last = at[SHOWN_STEPS[-1]]
        cells.append(f"{mean(last):.2f} ± {stdev(last):.2f}")
        cells.append("" if noise(name) is None else f"{noise(name):.0f}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def draw(folder: Path = FOLDER) -> None:
    """curves.png, from steps.csv alone: of each rung the mean of its seeds, and all within the
    band."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    found = accuracies()
    means = {name: [(step, mean(values)) for step, values in at.items()]
             for name, at in found.items()}
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharex=True, sharey=True,
                                layout="constrained")
    for axis, name, color in zip(axes.flat, CURVES, COLORS):
        for other in CURVES:
            axis.plot(*zip(*means[other]), color="0.8", linewidth=1)
        at = found[name]
        axis.fill_between(list(at), list(map(min, at.values())), list(map(max, at.values())),
                          color=color, alpha=0.2, linewidth=0)
        axis.plot(*zip(*means[name]), color=color, linewidth=2.5)
        axis.set(ylim=(0, 1), xlim=(0, SHOWN_STEPS[-1]), xticks=(0, *SHOWN_STEPS))
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy of sampled answers")
    save_figure(figure, folder / "curves.png", [found, CURVES, COLORS, draw], dpi=85)
    plt.close(figure)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--figures"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        run_what_is_missing()
        measure_noise()
        if not (FOLDER / "baseline.csv").exists():
            measure_baseline()
    draw()
