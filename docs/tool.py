"""A model learns to ask a calculator, and what happens if it is trained on the calculator's words.

    python docs/tool.py              runs what runs/tool doesn't hold, then writes
                                     docs/tool/runs.csv and draws docs/tool/tool.png
    python docs/tool.py --figures    draws from runs.csv: no runs

All runs together: about a quarter of an hour on one CPU core; SFT takes 200 steps here. What ran
to its end is not run again. At step 5 GRPO is at 0.53 ± 0.08 right when sampled, and with the
mistake at 0.30 ± 0.07, as it also learns to guess products that nobody asks it for.
"""
import csv
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from curves import run_what_is_missing  # noqa: E402
from support.plot import read_csv, read_metrics, save_figure  # noqa: E402

PICTURES, RUNS_PATH = ROOT / "docs" / "tool", ROOT / "runs" / "tool"
SEEDS = (0, 1, 2)
COMMON = "--task products --steps 40 --eval-every 5 --eval-problems 128"
SCRIPTS = {
    "grpo": f"train_grpo.py {COMMON}",
    "ppo": f"train_ppo.py --reward verifier {COMMON}",
    # This file's own `train_with_the_mistake`.
    "mistake": f"docs/tool.py --mistake {COMMON}",
}
COLUMNS = ("step", "asks", "calls", "reward", "eval_greedy", "eval_sampled", "kl_exact", "entropy",
           "response_length", "finished")
LEGENDS = {"grpo": "GRPO", "ppo": "PPO",
           "mistake": "GRPO, trained on the calculator's words as well"}
# The KL is over all that was trained on: of the mistake, over the calculator's words as well.
PANELS = (("answers that ask (share)", "asks"), ("right, greedy (share)", "eval_greedy"),
          ("right, sampled (share)", "eval_sampled"), ("exact KL (nats per token)", "kl_exact"))


def train_with_the_mistake(arguments: list[str]) -> None:
    """GRPO, to which what the calculator wrote is as good an action as any.

    What is counted stays what was sampled and what was told."""
    import train_grpo
    from support.environments import told_mask
    from support.metrics import environment_metrics
    sample_answers, rollout_metrics = train_grpo.sample_answers, train_grpo.rollout_metrics

    def sample(*given):
        rollout, rewards = sample_answers(*given)
        rollout.told = told_mask(rollout)
        rollout.mask = rollout.mask | rollout.told
        return rollout, rewards

    def count(config, rollout, *given):
        sampled = replace(rollout, mask=rollout.mask & ~rollout.told)
        row = rollout_metrics(config, rollout, *given)
        return {**row, **environment_metrics(config, sampled)}

    train_grpo.sample_answers, train_grpo.rollout_metrics = sample, count
    train_grpo.main(arguments)


def all_commands() -> dict[str, str]:
    """Name -> the command of each run, in the order in which they run."""
    commands = {f"sft_{seed}": f"train_sft.py --task products --seed {seed}" for seed in SEEDS}
    for seed in SEEDS:
        for name, command in SCRIPTS.items():
            start = RUNS_PATH / f"sft_{seed}"
            commands[f"{name}_{seed}"] = f"{command} --seed {seed} --model {start}"
    return commands


def export() -> None:
    """runs.csv: a row for each step of each run, four digits. Step 0 is the SFT model's."""
    rows = []
    for seed in SEEDS:
        for name in SCRIPTS:
            run = RUNS_PATH / f"{name}_{seed}"
            first = (run / "samples.txt").read_text(encoding="utf-8").split("\n")[0]
            # === step 0: eval_greedy 0.000, eval_sampled 0.090
            words = first.replace(",", "").split()
            found = {"step": 0, "eval_greedy": words[4], "eval_sampled": words[6]}
            for row in [found, *read_metrics(run)]:
                values = {name: row.get(name, "") for name in COLUMNS}
                shown = {name: x and f"{float(x):.4g}" for name, x in values.items()}
                rows.append({"run": name, "seed": seed, **shown, "step": row["step"]})
    PICTURES.mkdir(exist_ok=True)
    with open(PICTURES / "runs.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ("run", "seed", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw(folder: Path = PICTURES) -> None:
    """The figure, from runs.csv alone: each seed thin, their mean thick."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read_csv(PICTURES / "runs.csv")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.5), layout="constrained")
    for axis, (label, column) in zip(axes, PANELS):
        for i, (run, legend) in enumerate(LEGENDS.items()):
            # step -> the values of the seeds
            points = {}
            for row in rows:
                if row["run"] == run and row[column]:
                    points.setdefault(int(row["step"]), []).append(float(row[column]))
            steps = sorted(points)
            for values in zip(*(points[step] for step in steps)):
                axis.plot(steps, values, color=f"C{i}", linewidth=0.8, alpha=0.5)
            means = [sum(points[step]) / len(points[step]) for step in steps]
            axis.plot(steps, means, color=f"C{i}", linewidth=2.5, label=legend,
                      linestyle="--" if run == "mistake" else "-")
        axis.set(xlabel="step", ylim=(-0.03, None))
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(LEGENDS), fontsize=10, frameon=False)
    save_figure(figure, folder / "tool.png", [rows, LEGENDS, PANELS, draw], dpi=85)
    plt.close(figure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--mistake"]:
        train_with_the_mistake(sys.argv[2:])
        sys.exit()
    if sys.argv[1:] not in ([], ["--figures"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        run_what_is_missing(all_commands(), RUNS_PATH)
        export()
    draw()
