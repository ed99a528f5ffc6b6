"""What the rungs of ladder/ share and none of them is about: the models they start from, problems,
the check of answers, and a log of what changed against the rung before.
"""
import math
import time
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import torch

import train_rm
import train_sft
from evaluate import answer, mean_reward
from support.models import numpy_rng, torch_rng
from support.plot import read_csv
from support.pretrained import load_pretrained, load_scalar_model
from support.rewards import reward_answers
from support.run import ensure_trained
from task import encode_problems, held_out_problems, make_problems, task_reward

LADDER = Path(__file__).parent.parent / "ladder"
RUNGS = ("1_reinforce", "2_baseline", "3_actor_critic", "4_ppo", "5_rlhf", "6_grpo", "7_dpo")
EVAL_PROBLEMS = 512
# The gradient of a batch is compared over so many parts of it.
PARTS = 8


# ------------------------------------------------------------------------------ where a rung starts

def find_trained(run: str, train) -> Path:
    """A run's model, trained first if it is not there."""
    config = SimpleNamespace(task="sums", device="cpu", dtype="float32", resume=False)
    return Path(ensure_trained(run, train, config)) / "model"


def load_sft():
    """-> the policy that every rung starts from, its tokenizer"""
    return load_pretrained(find_trained("runs/sft", train_sft.main))


def load_reward_model():
    """The reward model of runs/rm, which does not learn."""
    reward_model, _ = load_scalar_model(find_trained("runs/rm", train_rm.main))
    return reward_model.requires_grad_(False)


def make_prompts(tokenizer, n: int, seed: int, step: int) -> list[list[int]]:
    """The ids of n problems such as `17+58+23=`, others at every step."""
    problems = make_problems("sums", n, numpy_rng(seed, step, "ladder prompts"))
    return [problem["ids"] for problem in encode_problems(problems, tokenizer)]


def check_answers(rollout, tokenizer) -> torch.Tensor:
    """The verifier: 1 for a right answer that ended by itself, else 0. (B,)"""
    examples = [{"prompt": tokenizer.decode(tokens[:length].tolist())}
                for tokens, length in zip(rollout.tokens, rollout.prompt_lengths)]
    rewards = reward_answers(task_reward, examples, rollout.responses(), rollout.finished.tolist(),
                             tokenizer)
    return torch.tensor(rewards)


# ------------------------------------------------------------------------------- what is measured

def accuracy(policy, tokenizer) -> float:
    """The share of held-out problems that sampled answers get right."""
    problems = held_out_problems("sums", EVAL_PROBLEMS, tokenizer, longest=32)
    answers, _ = answer(policy, tokenizer, task_reward, problems, 32, 1.0,
                        torch_rng(0, 0, "evaluation"))
    return mean_reward(answers)


def gradient_noise(policy, loss, logp) -> tuple[float, float]:
    """-> the variance of one answer's gradient, the squared length of the mean gradient

    Their quotient is the number of answers at which a batch's noise is as large as its signal: the
    simple noise scale of McCandlish et al. 2018 (arXiv:1812.06162), eq. 2.9. The variance is that
    of PARTS parts of the batch, summed over all parameters; both estimates are unbiased.
    logp (B, T): what the loss was computed from."""
    parameters = list(policy.parameters())
    [dlogp] = torch.autograd.grad(loss, logp, retain_graph=True)                # (B, T)
    part_of = torch.arange(len(logp)) * PARTS // len(logp)                      # (B,)
    gradients = []
    for part in range(PARTS):
        # What this part's answers add to the gradient, times the number of parts.
        share = PARTS * dlogp * (part_of == part)[:, None]
        found = torch.autograd.grad(logp, parameters, share, retain_graph=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    gradients = torch.stack(gradients)                                          # (PARTS, n)
    part_variance = gradients.var(0).sum()
    signal = gradients.mean(0).square().sum() - part_variance / PARTS
    answers_a_part = len(logp) / PARTS
    return (answers_a_part * part_variance).item(), signal.item()


class Log:
    """What a rung measures and prints; `steps` and `result` are rows of CSV files in ladder/."""

    def __init__(self, file: str, policy, tokenizer):
        self.rung = Path(file).stem
        self.policy, self.tokenizer = policy, tokenizer
        self.started = time.perf_counter()
        self.steps, self.noise = [], None

    def add(self, step: int, rollout=None, rewards=None, **more) -> None:
        """The policy before this step's update: how many of its answers are right, and what they
        earn. more: other numbers to print."""
        if rollout is None:
            more["accuracy"] = accuracy(self.policy, self.tokenizer)
        else:
            more["accuracy"] = check_answers(rollout, self.tokenizer).mean().item()
            more["reward"] = rewards.mean().item()
        self.steps.append({"step": step, **more})
        if step % 5 == 0:
            print("  ".join(f"{name} {x:.3g}" for name, x in self.steps[-1].items()), flush=True)

    def add_noise(self, loss, logp) -> None:
        """The noise of the gradient, once: at the policy's first update."""
        if self.noise is None:
            self.noise = gradient_noise(self.policy, loss, logp)

    def accuracies(self) -> list[tuple[int, float]]:
        """(step, accuracy) over the run, also after its last update."""
        return [(row["step"], row["accuracy"]) for row in self.steps]

    def finish(self, steps: int) -> None:
        """Print what changed against the rung before, and draw the picture. steps: how many it
        took."""
        self.add(steps)
        variance, signal = self.noise or ("", "")
        seconds = time.perf_counter() - self.started
        self.result = {"accuracy": self.steps[-1]["accuracy"], "variance": variance,
                       "signal": signal, "seconds": seconds}
        print(f"\n{'':<16}accuracy  noise of the gradient (answers)")
        for rung, next_rung in zip(RUNGS, RUNGS[1:]):
            rows = [row for row in read_results() if row["rung"] == rung]
            if next_rung == self.rung and rows:
                print(summary(rung, rows) + f"   mean of {len(rows)} seeds")
        print(summary(self.rung, [self.result]) + "   this run")
        draw_run(self)


def read_results() -> list[dict]:
    """ladder/results.csv: of each rung and seed, accuracy after the last step and noise."""
    file = LADDER / "results.csv"
    return read_csv(file) if file.exists() else []


def noise_of(rows: list[dict]) -> float | None:
    """The noise scale of some runs: mean variance / mean signal, None where it was not measured."""
    if rows[0]["variance"] == "":
        return None
    variance = mean(float(row["variance"]) for row in rows)
    signal = mean(float(row["signal"]) for row in rows)
    # An estimate of a signal that is lost in the noise may be below 0.
    return variance / signal if signal > 0 else math.inf


def summary(rung: str, rows: list[dict]) -> str:
    noise = noise_of(rows)
    shown = "" if noise is None else f"{noise:.0f}"
    return f"{rung:<16}{mean(float(row['accuracy']) for row in rows):<10.2f}{shown:<21}"


def draw_run(log) -> None:
    """runs/ladder/RUNG.png: accuracy over the steps of this run."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.plot(*zip(*log.accuracies()), marker="o", markersize=3)
    axis.set(xlabel="step", ylabel="accuracy", ylim=(0, 1), title=log.rung)
    axis.grid(alpha=0.3)
    picture = Path("runs") / "ladder" / f"{log.rung}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    print(f"its curve: {picture}")
