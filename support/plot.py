"""Figures: curves.png of a run, and figures that know what they were drawn from."""
import csv
import hashlib
import inspect
import math
from pathlib import Path

# The panels of curves.png: y label -> columns of metrics.csv.
RL_PANELS = {
    "answer length (tokens)": ["response_length"],
    "KL to the reference (nats per token)": ["kl", "kl_exact"],
    "entropy (nats per token)": ["entropy"],
}
PANELS = {
    "sft": {
        "loss (nats per token)": ["loss", "eval_loss"],
        "accuracy": ["eval_greedy", "eval_sampled"],
        "gradient norm": ["grad_norm"],
    },
    "rm": {
        "loss (nats per pair)": ["loss"],
        "pairs ranked right (share)": ["accuracy", "eval_accuracy"],
        "score margin": ["margin"],
    },
    "dpo": {
        "loss": ["loss"],
        "log-prob of an answer (nats)": ["chosen_logp", "rejected_logp"],
        "implicit reward": ["chosen_reward", "rejected_reward"],
        "held-out pairs ranked right (share)": ["eval_pairs"],
        "accuracy": ["eval_greedy", "eval_sampled"],
        "gradient norm": ["grad_norm"],
    },
    "grpo": {
        "accuracy, or mean reward": ["reward", "eval_greedy", "eval_sampled"],
        **RL_PANELS,
        "groups without signal (share)": ["no_signal"],
        "gradient norm": ["grad_norm"],
    },
    "ppo": {
        "score": ["reward"],
        "accuracy, or mean reward": ["eval_greedy", "eval_sampled"],
        **RL_PANELS,
        "explained variance of the critic": ["explained_variance"],
    },
}


def read_csv(file: Path) -> list[dict]:
    """A file's rows, as text."""
    with open(file, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def read_metrics(run: Path) -> list[dict]:
    return read_csv(run / "metrics.csv")


def draw_curves(run: Path, algorithm: str) -> None:
    """curves.png of a run, from its metrics.csv."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read_metrics(run)
    panels = PANELS[algorithm]
    high, wide = math.ceil(len(panels) / 3), 3
    figure, axes = plt.subplots(high, wide, figsize=(12, 3 * high), squeeze=False,
                                layout="constrained")
    for axis, (label, columns) in zip(axes.flat, panels.items()):
        for column in columns:
            points = [(int(row["step"]), float(row[column])) for row in rows if row[column] != ""]
            marker = "o" if column.startswith("eval") else None
            if points:
                axis.plot(*zip(*points), label=column, marker=marker, markersize=3)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    figure.suptitle(f"{algorithm}: {run}")
    figure.savefig(run / "curves.png", dpi=110)
    plt.close(figure)


def save_figure(figure, file: Path, sources, **how) -> None:
    """Save a figure that says what it was drawn from: git keeps no times, and tests/test_figures.py
    must be able to tell when a figure is older than its data or its script.

    sources: the data (its repr counts), and the functions and classes that draw it (their text)."""
    digest = hashlib.sha256()
    for source in sources:
        text = inspect.getsource(source) if callable(source) else repr(source)
        digest.update(text.encode())
    figure.savefig(file, metadata={"Sources": digest.hexdigest()}, **how)
