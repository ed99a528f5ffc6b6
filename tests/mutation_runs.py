"""What each mistake of tests/mutations.py does to a run.

    python tests/mutation_runs.py              the runs that docs/mistakes/runs.csv lacks, then
                                               the pages, as docs/mistakes.py does
    python tests/mutation_runs.py grpo dpo     only these

A mistake is made in a copy of the project, which trains for a few steps by the command in RUNS. The
same command without the mistake runs with three seeds: differences within their spread mean
nothing. What the trained model can do, the project itself measures, not the copy: a copy that
counts wrong would praise itself. All runs together: about 25 minutes on one CPU core.

Each run is a fork of this process, which has imported torch and computed nothing.
"""
import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path

from mutations import MUTATIONS, NUMBERS, ROOT, copy_project

RUNS_CSV = ROOT / "docs" / "mistakes" / "runs.csv"
GRPO = "train_grpo.py --steps 8 --prompts-per-step 4"
DPO = "train_dpo.py --steps 15 --pairs 192 --batch-size 32"
PPO = "train_ppo.py --steps 8 --prompts-per-step 32"
# Name -> the command. A mistake that acts in special settings only has a run with these.
RUNS = {
    "grpo": "train_grpo.py --steps 10 --prompts-per-step 8",
    "grpo_hot": f"{GRPO} --temperature 1.3",
    "grpo_short": f"{GRPO} --max-new-tokens 24",
    "grpo_ref_sync": f"{GRPO} --kl-coef 0.3 --ref-sync 4",
    "grpo_ref_ema": f"{GRPO} --kl-coef 0.3 --ref-ema 0.9",
    "grpo_kl_target": f"{GRPO} --kl-coef 0.1 --kl-target 0.5 --kl-horizon 50",
    "grpo_tiny": "train_grpo.py --steps 30 --prompts-per-step 2 --group-size 2 --minibatches 1 "
                 "--kl-coef 0",
    "grpo_products": f"{GRPO} --task products",
    "dr_grpo": f"{GRPO} --method dr_grpo",
    "dapo": f"{GRPO} --method dapo --epochs 2",
    "remax": "train_grpo.py --steps 8 --prompts-per-step 16 --group-size 2 --method remax "
             "--kl-coef 0 --no-signal drop",
    "rloo": f"{GRPO} --method rloo --kl-coef 0.1",
    "ppo": f"{PPO} --reward verifier",
    "ppo_rm": f"{PPO} --max-new-tokens 20",
    "ppo_products": f"{PPO} --reward verifier --task products",
    "dpo": DPO,
    "ipo": f"{DPO} --loss ipo",
    "kto": f"{DPO} --loss kto",
    "simpo": f"{DPO} --loss simpo",
    "sft": "train_sft.py --steps 60 --batch-size 32 --micro-batch-tokens 512",
    "sft_data": "train_sft.py --data demonstrations.jsonl --steps 20 --batch-size 32 --lr 5e-4",
}
COMMON = "--eval-every 0 --save-every 0 --eval-problems 8"
HEALTHY_SEEDS, MISTAKE_SEED = (0, 1, 2), 0
# Of metrics.csv, and of the trained model, which the project measures at the end.
LOGGED = ("reward", "response_length", "finished", "no_signal", "kl", "kl_exact", "answer_kl",
          "kl_coef", "entropy", "clip_fraction", "approx_kl", "grad_norm", "explained_variance",
          "value_error", "value_clip_fraction", "loss", "accuracy", "margin", "chosen_reward",
          "rejected_reward")
MEASURED = ("right", "tokens", "ended", "kl_at_end")
COLUMNS = ("run", "mistake", "seed", "step", *LOGGED, *MEASURED)
PROBLEMS = 256


def start_of(run: str) -> str:
    """What a run begins as, a run itself; "" for a new model."""
    if run == "sft":
        return ""
    return "runs/sft_products" if "products" in run else "runs/sft"


def in_child(function, *arguments) -> None:
    """function(*arguments) in a fork of this process: what it imports is forgotten after it."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join()


def train(copy: Path, arguments: list[str], run: str) -> None:
    """The script's own main, from a copy of the project. What it prints goes into log.txt."""
    sys.path.insert(0, str(copy))
    os.chdir(copy)
    log = os.open(copy.parent / "log.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if run == "sft_data":
        write_demonstrations(copy / "demonstrations.jsonl")
    import_module("support.plot").draw_curves = lambda *given: None
    script = arguments[0].removesuffix(".py")
    import_module(script).main(arguments[1:])


def write_demonstrations(file: Path) -> None:
    """Sums worked out step by step, as data of one's own."""
    from support.models import numpy_rng
    from task import demonstration, make_problems
    lines = []
    for problem in make_problems("sums", 2000, numpy_rng(0, 0, "demonstrations")):
        [completion] = demonstration(problem["prompt"], True)
        lines.append(json.dumps({"prompt": problem["prompt"], "completion": completion}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def measure(run: str, out: Path) -> None:
    """Write what the trained model can do to measured.json."""
    sys.path.insert(0, str(ROOT))
    import torch

    import evaluate
    from support.environments import start_environment
    from support.models import torch_rng
    from support.pretrained import load_pretrained
    from support.run import read_settings
    from task import held_out_problems, task_reward
    settings = read_settings(out)
    config = evaluate.Config(task=settings.get("task", "sums"),
                             max_new_tokens=settings.get("max_new_tokens", 32),
                             temperature=settings.get("temperature", 1.0), max_turns=4)
    model, tokenizer = load_pretrained(out / "model", torch.float32)
    examples = held_out_problems(config.task, PROBLEMS, tokenizer, longest=64)
    answers, rollouts = evaluate.answer(
        model, tokenizer, task_reward, examples, config.max_new_tokens, config.temperature,
        torch_rng(0, 0, "evaluation"), start=partial(start_environment, config, tokenizer))
    found = evaluate.summary(answers, 1, tokenizer)
    row = {"right": found["sampled"], "tokens": found["length"], "ended": found["finished"]}
    if start_of(run):
        reference, _ = load_pretrained(ROOT / start_of(run) / "model", torch.float32)
        row["kl_at_end"] = evaluate.total_kl(model, reference, rollouts, config) / len(answers)
    (out / "measured.json").write_text(json.dumps(row), encoding="utf-8")


def rows_of(run: str, mutation, seed: int) -> list[dict]:
    """A row for each step, with the columns of runs.csv. The last has what was measured, if
    training came to its end."""
    with tempfile.TemporaryDirectory() as folder:
        copy, out = copy_project(Path(folder), mutation), Path(folder) / "run"
        arguments = [*RUNS[run].split(), *COMMON.split(), "--seed", str(seed), "--out", str(out)]
        if start_of(run):
            arguments += ["--model", str(ROOT / start_of(run))]
        if run == "ppo_rm":
            arguments += ["--reward-model", str(ROOT / "runs/rm")]
        in_child(train, copy, arguments, run)
        if not (out / "metrics.csv").is_file():
            raise SystemExit((Path(folder) / "log.txt").read_text(encoding="utf-8"))
        with open(out / "metrics.csv", newline="", encoding="utf-8") as f:
            logged = list(csv.DictReader(f))
        if (out / "model" / "config.json").is_file():
            in_child(measure, run, out)
            logged[-1] |= json.loads((out / "measured.json").read_text(encoding="utf-8"))
    rows = []
    for found in logged:
        values = {name: found.get(name, "") for name in (*LOGGED, *MEASURED)}
        values = {name: value if value == "" else f"{float(value):.4g}"
                  for name, value in values.items()}
        rows.append({"run": run, "mistake": mutation.name if mutation else "", "seed": seed,
                     "step": found["step"], **values})
    return rows


def read_rows() -> list[dict]:
    if not RUNS_CSV.exists():
        return []
    with open(RUNS_CSV, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def write_rows(rows: list[dict]) -> None:
    """In the order of RUNS, the healthy runs first."""
    order = list(RUNS)
    rows.sort(key=lambda row: (order.index(row["run"]), NUMBERS.get(row["mistake"], 0),
                               int(row["seed"]), int(row["step"])))
    unfinished = RUNS_CSV.with_suffix(".unfinished")
    with open(unfinished, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(RUNS_CSV)


def wanted_runs(names: list[str]) -> list[tuple]:
    """(run, mutation or None, seed). Further seeds come last: they only tell the spread."""
    jobs = []
    for run in names:
        jobs.append((run, None, MISTAKE_SEED))
        jobs += [(run, mutation, MISTAKE_SEED) for mutation in MUTATIONS if mutation.run == run]
    return jobs + [(run, None, seed) for seed in HEALTHY_SEEDS[1:] for run in names]


def train_starts() -> None:
    """runs/sft, runs/rm and runs/sft_products, where they are not there yet."""
    for name, command in (("sft", "train_sft.py"), ("rm", "train_rm.py"),
                          ("sft_products", "train_sft.py --task products")):
        if not (ROOT / "runs" / name / "model" / "config.json").is_file():
            subprocess.run([sys.executable, *command.split(), "--out", f"runs/{name}"],
                           cwd=ROOT, check=True)


def main(names: list[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    train_starts()
    # Imported once, for all forks.
    for name in ("torch._dynamo", "tqdm", "tiktoken", "safetensors.torch", "jinja2.sandbox"):
        import_module(name)
    for run, mutation, seed in wanted_runs(names or list(RUNS)):
        rows, name = read_rows(), mutation.name if mutation else ""
        if not any((row["run"], row["mistake"], row["seed"]) == (run, name, str(seed))
                   for row in rows):
            print(run, name or "healthy", seed, flush=True)
            write_rows(rows + rows_of(run, mutation, seed))
    sys.path.append(str(ROOT / "docs"))
    import mistakes
    mistakes.write()


if __name__ == "__main__":
    main(sys.argv[1:])
