"""A world of rare rewards: sums of four numbers, of which one answer in forty is right at first.

    12+34+56+7=<think>12+34=46, 46+56=102, 102+7=109</think>109     2 or 3 in 100, mostly right
    12+34+56+7=121                                                  the others, hardly ever right

Of eight groups of eight answers, one or two hold a right one: the others teach GRPO nothing.
How soon the few are found, and how much one of them may move the policy, is what methods differ in
here. So what counts is not the end but the way there: `pace` measures it.

A third of the built-in model is enough. It learns to add step by step once (two minutes of one
core); then each seed has an SFT of its own, of whose demonstrations 3 in 100 think. All runs go to
OUT/runs, and what is finished is not run again, unless its command or that of the model it starts
from has changed. hard_curves.png shows rewards over steps.
"""
import contextlib
import io
import json
import re
import time
from pathlib import Path
from unittest import mock

import torch

import evaluate
import train_grpo
import train_ppo
import train_sft
from lab.report import draw as draw_panels
from lab.report import write_whole
from model import ModelConfig, Transformer
from support.plot import read_csv, read_metrics
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer

SMALLER = dict(dim=96, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=192, max_seq_len=128,
               rope_theta=100.0, qk_norm=True)
SCRIPTS = {"train_sft.py": train_sft.main, "train_grpo.py": train_grpo.main,
           "train_ppo.py": train_ppo.main}
TASK = "--task long_sums --eval-every 0 --save-every 0 --eval-problems 64"
# Settings of the SFT models were tuned on seed 99, until one answer in forty was right.
BASE = f"train_sft.py {TASK} --reason-share 1 --steps 700 --lr 3e-3 --seed 99"
SFT = f"train_sft.py {TASK} --first-part 0 --steps 120 --lr 2e-4"
STEPS, QUICK_STEPS = 30, 20
# 64 answers a step, and a quarter of the usual learning rate: the way is to take some steps.
SLOW = f"{TASK} --lr 5e-5"
GRPO = f"train_grpo.py {SLOW} --prompts-per-step 8"
PPO = f"train_ppo.py {SLOW} --reward verifier --prompts-per-step 64"
OFTEN = f"{GRPO} --epochs 4"
RUNS = {
    "GRPO": GRPO,
    "Dr. GRPO": f"{GRPO} --method dr_grpo",
    "DAPO": f"{GRPO} --method dapo",
    "RLOO": f"{GRPO} --method rloo",
    "REINFORCE++": f"{GRPO} --method reinforce_pp",
    "ReMax": f"{GRPO} --method remax",
    "REINFORCE": f"{GRPO} --method reinforce",
    "GSPO": f"{GRPO} --method gspo",
    "CISPO": f"{GRPO} --method cispo",
    "PPO": PPO,
    "A2C": f"{PPO} --epochs 1 --minibatches 1",
    "G = 4": f"train_grpo.py {SLOW} --prompts-per-step 16 --group-size 4",
    "G = 32": f"train_grpo.py {SLOW} --prompts-per-step 2 --group-size 32",
    "token mean": f"{GRPO} --aggregate token-mean",
    "groups replaced": f"{GRPO} --no-signal replace",
    "temperature 1.3": f"{GRPO} --temperature 1.3",
    "entropy bonus 0.01": f"{GRPO} --entropy-coef 0.01",
    "entropy bonus 0.05": f"{GRPO} --entropy-coef 0.05",
    "4 passes": OFTEN,
    "4 passes, upper clip 0.28": f"{OFTEN} --clip-high 0.28",
    "4 passes, no upper clip": f"{OFTEN} --clip-high 1e9",
    # Added after the first seed: how much of a difference is the number of updates. PPO makes four
    # per step, RLOO, ReMax, REINFORCE and A2C one, the others two.
    "1 update": f"{GRPO} --minibatches 1",
    "PPO, 2 updates": f"{PPO} --epochs 1",
}
# The panels of hard_curves.png.
CURVES = {
    "two updates per step: what the loss is averaged over":
        ("GRPO", "GSPO", "token mean", "CISPO", "Dr. GRPO"),
    "one update per step: what a reward is held against":
        ("1 update", "REINFORCE", "ReMax", "RLOO", "A2C"),
    "groups, temperature, entropy":
        ("GRPO", "G = 4", "G = 32", "groups replaced", "temperature 1.3", "entropy bonus 0.05"),
    "more updates, and the clip":
        ("GRPO", "PPO, 2 updates", "PPO", "4 passes", "4 passes, upper clip 0.28",
         "4 passes, no upper clip")}
COLUMNS = ("reward", "entropy", "no_signal", "samples", "response_length", "clip_fraction",
           "mean_reward", "half_step", "half_samples", "all_samples", "sampled", "greedy",
           "pass@8", "reasons")


def write(folder: Path) -> Path:
    """An untrained model, as FOLDER/small."""
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    model = Transformer(ModelConfig(tokenizer.vocab_size, **SMALLER))
    save_pretrained(model, tokenizer, folder / "small")
    return folder / "small"


def train(path: Path, command: str, model: Path) -> Path:
    """Run a script from this model and evaluate what comes out, unless PATH.json says that this was
    done."""
    before = read_result(model).get("commands", [])
    commands = [*before, command]
    result = read_result(path)
    # Of runs from before commands were noted, only the name is known.
    if result and result.get("commands", commands) == commands:
        return path
    # What was kept of another run of this name, such as what credit.py measured on it.
    for old in path.parent.glob(f"{path.name}.*"):
        old.unlink()
    script, *flags = command.split()
    # Others may use the machine: a step's seconds are those of this process.
    with mock.patch.object(time, "perf_counter", time.process_time):
        SCRIPTS[script]([*flags, "--model", str(model), "--out", str(path), "--overwrite"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate.main([str(path), "--problems", "128", "--json"])
    result = json.loads(printed.getvalue()) | {"commands": commands}
    write_whole(Path(f"{path}.json"), json.dumps(result))
    return path


def read_result(path: Path) -> dict:
    """What evaluate.py found of a run, and the commands that led to it; nothing, if it did not end
    or is the untrained model."""
    file = Path(f"{path}.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def start_model(out: Path, seed: int) -> Path:
    """The seed's SFT model."""
    base = train(out / "runs" / "hard_base", BASE, write(out / "runs"))
    return train(out / "runs" / f"hard_sft-{seed}", f"{SFT} --seed {seed}", base)


def run_setting(out: Path, setting: str, steps: int, seed: int) -> Path:
    """The run directory of a setting, trained from its seed's SFT model."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.]+", "_", setting)
    return train(out / "runs" / f"hard_{name}_{steps}-{seed}",
                 f"{RUNS[setting]} --steps {steps} --seed {seed}", start_model(out, seed))


def pace(rows: list[dict]) -> dict[str, float]:
    """How soon a run learned, from the rewards of its own samples: rows of metrics.csv.

    mean_reward: over all steps, which is the area under the curve. half_step: the first step at
    which half of the samples are right, and one more than the last if there is none;
    half_samples: how many answers were sampled until its end."""
    rewards = [float(row["reward"]) for row in rows]
    sampled = [float(row["samples"]) for row in rows]
    half = next((i for i, reward in enumerate(rewards) if reward >= 0.5), len(rows))
    after_the_end = sum(sampled) / len(rows) if half == len(rows) else 0.0
    return {"mean_reward": sum(rewards) / len(rewards), "half_step": half + 1,
            "half_samples": sum(sampled[:half + 1]) + after_the_end,
            "all_samples": sum(sampled)}


def run(out: Path, seeds: int, quick: bool) -> list[dict]:
    """A row for each step of each run; in the last what holds for the whole run."""
    steps = QUICK_STEPS if quick else STEPS
    table = []
    for seed in range(seeds):
        for setting in RUNS:
            path = run_setting(out, setting, steps, seed)
            rows = read_metrics(path)
            rows[-1] |= pace(rows) | read_result(path)
            for row in rows:
                table.append({"line": "", "setting": setting, "seed": seed, "step": row["step"],
                              **{name: row.get(name, "") for name in COLUMNS}})
    return table


def draw(folder: Path) -> None:
    """hard_curves.png, from the csv file alone."""
    table = read_csv(folder / "hard.csv")
    panels = []
    for title, settings in CURVES.items():
        rows = [row for row in table if row["setting"] in settings]
        panels.append((rows, "right answers, sampled (share)", "step", "reward", title))
    draw_panels(folder / "hard_curves.png", panels)
