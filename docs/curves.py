"""The runs behind READING_CURVES.md: short, on the built-in task, good ones and ones that fail
by a flag or two.

    python docs/curves.py              runs what runs/curves doesn't hold, then writes
                                       docs/curves/curves.csv, and the tables and figures of it
    python docs/curves.py --figures    tables and figures from curves.csv: no runs

All runs together: about a quarter of an hour on one CPU core. They start from runs/sft and runs/rm,
which the training scripts make first if they are not there. What ran to its end is not run again.
"""
import csv
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from support.plot import read_csv, read_metrics, save_figure  # noqa: E402

PICTURES, RUNS_PATH = ROOT / "docs" / "curves", ROOT / "runs" / "curves"
PAGES = [ROOT / "docs" / name for name in ("READING_CURVES.md", "READING_CURVES.zh.md")]
COMMON = "--eval-problems 128 --save-every 0"
PPO, PPO_RM = "train_ppo.py --reward verifier", "train_ppo.py --steps 20 --eval-every 5"
SMALL = "train_grpo.py --steps 25 --prompts-per-step 16 --group-size 2"

RUNS = {
    "grpo": "train_grpo.py --steps 25",
    "grpo_lr_10x": "train_grpo.py --steps 20 --lr 2e-3",
    "grpo_lr_10x_no_kl": "train_grpo.py --steps 1 --lr 2e-3 --kl-coef 0",
    "grpo_1_update": "train_grpo.py --steps 12 --minibatches 1",
    "grpo_4_epochs": "train_grpo.py --steps 12 --epochs 4",
    "grpo_small": SMALL,
    "grpo_small_slow": f"{SMALL} --lr 2e-5",
    "grpo_short": "train_grpo.py --steps 15 --max-new-tokens 16",
    "grpo_cold": "train_grpo.py --steps 15 --temperature 0.2",
    "grpo_cold_no_kl": "train_grpo.py --steps 2 --temperature 0.2 --kl-coef 0",
    "grpo_hot": "train_grpo.py --steps 15 --temperature 2",
    "ppo": f"{PPO} --steps 15",
    "ppo_critic_still": f"{PPO} --steps 12 --critic-warmup 0 --critic-lr 1e-6",
    "ppo_critic_wild": f"{PPO} --steps 12 --critic-warmup 0 --critic-lr 3e-2",
    "ppo_rm": PPO_RM,
    "ppo_rm_no_kl": f"{PPO_RM} --kl-coef 0",
    "dpo": "train_dpo.py --steps 40",
    "dpo_no_nll": "train_dpo.py --steps 40 --nll-coef 0",
}
# Of the columns of metrics.csv: the clock's, and what the flags say.
LEFT_OUT = ("seconds", "samples", "kl_coef")

# file: title; legend -> run, the good one first; panels (y label, column, y scale)
REWARD, KL = ("reward", "reward", "linear"), ("exact KL (nats per token)", "kl_exact", "log")
ENTROPY = ("entropy (nats per token)", "entropy", "log")
FIGURES = {
    "updates": (
        "GRPO: how far a step goes",
        {"default: lr 2e-4, 2 updates per step": "grpo",
         "--lr 2e-3": "grpo_lr_10x",
         "--epochs 4: 8 updates": "grpo_4_epochs",
         "--minibatches 1: 1 update": "grpo_1_update"},
        [REWARD,
         KL,
         ENTROPY,
         ("clip fraction", "clip_fraction", "linear")]),
    "samples": (
        "GRPO: what the samples can teach",
        {"default": "grpo",
         "--max-new-tokens 16": "grpo_short",
         "--temperature 2": "grpo_hot",
         "--temperature 0.2": "grpo_cold",
         "16 prompts, --group-size 2": "grpo_small"},
        [REWARD,
         ("answers that ended by themselves (share)", "finished", "linear"),
         ENTROPY,
         ("groups without signal (share)", "no_signal", "linear")]),
    "critic": (
        "PPO on the verifier: the critic",
        {"default: critic lr 1e-3, warm-up 2": "ppo",
         "--critic-lr 3e-2, no warm-up": "ppo_critic_wild",
         "--critic-lr 1e-6, no warm-up": "ppo_critic_still"},
        [REWARD,
         ("explained variance", "explained_variance", "linear"),
         ("value error", "value_error", "log"),
         ("value clip fraction", "value_clip_fraction", "linear")]),
    "hacking": (
        "PPO on the reward model: pleasing it, or being right",
        {"default: --kl-coef 0.05": "ppo_rm",
         "--kl-coef 0": "ppo_rm_no_kl"},
        [("the reward model's score", "reward", "linear"),
         ("right answers, greedy (share)", "eval_greedy", "linear"),
         ("KL (nats per answer)", "answer_kl", "linear"),
         ("entropy (nats per token)", "entropy", "linear")]),
    "dpo": (
        "DPO: a difference is asked for",
        {"default: --nll-coef 1": "dpo",
         "--nll-coef 0": "dpo_no_nll"},
        [("chosen answers: log-prob (nats)", "chosen_logp", "linear"),
         ("rejected answers: log-prob (nats)", "rejected_logp", "linear"),
         ("margin", "margin", "linear"),
         ("pairs of the batch ranked right (share)", "accuracy", "linear")]),
}


def run_what_is_missing(commands: dict[str, str], folder: Path) -> None:
    """Those of the commands, by name, whose run didn't come to its end in folder/name."""
    for name, command in commands.items():
        path = folder / name
        if not (path / "model" / "config.json").is_file():
            print(f"{name}: {command}", flush=True)
            subprocess.run([sys.executable, *command.split(), "--out", path, "--overwrite"],
                           cwd=ROOT, check=True)


def export() -> None:
    """curves.csv: a row for each step of each run, four digits."""
    rows = []
    for name in RUNS:
        rows += [{"run": name, "step": row.pop("step"),
                  **{c: v and f"{float(v):.4g}" for c, v in row.items() if c not in LEFT_OUT}}
                 for row in read_metrics(RUNS_PATH / name)]
    PICTURES.mkdir(exist_ok=True)
    with open(PICTURES / "curves.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(
            f, dict.fromkeys(c for row in rows for c in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def fill_tables(page: str, rows: list[dict]) -> str:
    """The page with the numbers of these rows in its tables, with as many digits as stand there.

    A table's head is `| run NAME, step | 1 | 5 | ...`; its rows begin with the column's name."""
    measured = {(row["run"], row["step"]): row for row in rows}
    lines, run, steps = [], "", []
    for line in page.split("\n"):
        cells = line.split("|")
        if head := re.match(r"\| run `(\w+)`, step ", line):
            run = head[1]
            steps = [cell.strip() for cell in cells[2:] if cell.strip().isdigit()]
        elif line.startswith("| `") and run:
            column = cells[1].strip(" `")
            for i, step in enumerate(steps, 2):
                digits = len(cells[i].strip().partition(".")[2])
                value = measured[run, step][column]
                cells[i] = f" {float(value):z.{digits}f} " if value else " "
            line = "|".join(cells)
        elif not line.startswith("|"):
            run = ""
        lines.append(line)
    return "\n".join(lines)


def draw(folder: Path = PICTURES) -> None:
    """The figures, from curves.csv alone."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read_csv(PICTURES / "curves.csv")
    for file, (title, runs, panels) in FIGURES.items():
        figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.5), layout="constrained")
        for axis, (label, column, scale) in zip(axes, panels):
            for i, (legend, run) in enumerate(runs.items()):
                points = [(int(row["step"]), float(row[column]))
                          for row in rows if row["run"] == run and row[column]]
                # KL is 0 before the first update.
                points = [(x, y) for x, y in points if scale != "log" or y > 0]
                axis.plot(*zip(*points), color=f"C{i}", label=legend,
                          linewidth=3 if i == 0 else 1.6,
                          linestyle=("-", "-", "--", "-.", ":")[i],
                          marker="o" if column.startswith("eval") else None, markersize=4)
            axis.set(xlabel="step", yscale=scale)
            axis.set_title(label, fontsize=10)
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        figure.suptitle(title, fontsize=12)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=len(runs), fontsize=10, frameon=False)
        save_figure(figure, folder / f"{file}.png", [rows, FIGURES[file], draw], dpi=83)
        plt.close(figure)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--figures"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        run_what_is_missing({name: f"{command} {COMMON}" for name, command in RUNS.items()},
                            RUNS_PATH)
        export()
    rows = read_csv(PICTURES / "curves.csv")
    for page in PAGES:
        text = fill_tables(page.read_text(encoding="utf-8"), rows)
        page.write_text(text, encoding="utf-8")
    draw()
