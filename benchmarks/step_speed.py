"""Seconds of a whole training step against TRL's trainers: GRPO, DPO and SFT, the same model,
prompts, batch and lengths, in turns.

    python benchmarks/step_speed.py          the built-in task from runs/sft, float32
    python benchmarks/step_speed.py --model SmolLM2-135M --prompts 8 --dtype bfloat16

A GRPO step: answers of up to --new-tokens tokens to `prompts` x 8, their rewards, reference
log-probs, KL 0.01, one update; and the same with random weights, which hardly ever end an answer
before it is cut off. A DPO step: one update on 64 pairs whose reference log-probs are there
already, on both sides. SFT: one update on 64 demonstrations.

Both sides run as their users run them, train_*.py and trl.*Trainer, with AdamW and float32 weights;
dtype is that of the products. A step is what our metrics call `seconds`, and what lies between
TRL's on_step_begin and on_step_end, with two more in each run that don't count.
"""
import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from bench import (BenchConfig, clock, forward_operations, limits, load_model, product_dtype,
                   report)

import numpy as np
import torch

import train_dpo
import train_grpo
import train_sft
from model import Transformer
from support.cli import RunConfig, parse, script, setting, user_errors
from support.data import encode_prompt
from support.models import pick_device
from support.plot import read_metrics
from support.pretrained import save_pretrained
from support.run import ensure_trained, find_model
from task import demonstration, make_problems

WARM_UP = 2


@dataclass(kw_only=True)
class Config(BenchConfig):
    model: str = setting("", "a Hugging Face or run directory; runs/sft if not given")
    prompts: int = setting(32, "prompts of a GRPO step, 8 answers each", low=1)
    pairs: int = setting(64, "pairs of a DPO step, demonstrations of an SFT step", low=1)
    new_tokens: int = setting(32, "tokens of an answer, at most", low=1)
    micro_batch_tokens: int = setting(8192, "of this project; TRL takes the batch at once", low=1)
    steps: int = setting(3, "timed steps a turn", low=1)
    turns: int = setting(3, "turns of each side", low=1)


class Job(NamedTuple):
    """A step that both sides make, of the same model on the same rows."""
    name: str
    model: Path
    trainer: str            # TRL's: GRPO, DPO or SFT
    main: Callable          # ours, with its flags
    flags: list[str]
    rows: list[dict]
    batch: int              # answers, pairs or demonstrations of a step
    settings: dict          # of TRL's trainer


def even_length(prompts, completions, **columns) -> list[float]:
    """A reward that has a signal whatever the weights are."""
    return [float(len(text) % 2) for text in completions]


def make_rows(config) -> dict[str, list[dict]]:
    """Problems for all steps; with a right and a wrong answer; with a demonstration."""
    rng = np.random.default_rng(0)
    steps = config.steps + WARM_UP
    problems = make_problems("sums", steps * max(config.pairs, config.prompts), rng)
    rows = {"prompts": problems, "pairs": [], "shown": []}
    for problem in problems[:steps * config.pairs]:
        right, shown = (demonstration(problem["prompt"], rng.random() < 0.5)[0] for _ in range(2))
        # No sum of three numbers up to 99 is above 297.
        wrong = str(rng.integers(298, 999))
        rows["pairs"].append({**problem, "chosen": right, "rejected": wrong})
        rows["shown"].append({"prompt": problem["prompt"], "completion": shown})
    return rows


def write_inputs(folder: Path, rows: dict[str, list[dict]]) -> None:
    """What our scripts read: rows.jsonl of each name, and the reward function."""
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "reward.py").write_text("from step_speed import even_length\n")


def make_jobs(config, start: Path, folder: Path, rows: dict[str, list[dict]]) -> list[Job]:
    """start: the model; folder: holds what write_inputs has written, and the model `random`."""
    grpo = Job(
        "GRPO", start, "GRPO", train_grpo.main,
        ["--data", f"{folder}/prompts.jsonl",
         "--reward", f"{folder}/reward.py:even_length",
         "--prompts-per-step", str(config.prompts),
         "--max-new-tokens", str(config.new_tokens),
         "--minibatches", "1"],
        rows["prompts"], 8 * config.prompts,
        {"num_generations": 8, "max_completion_length": config.new_tokens,
         "beta": 0.01, "temperature": 1.0, "top_k": 0})
    dpo = Job(
        "DPO", start, "DPO", train_dpo.main,
        ["--data", f"{folder}/pairs.jsonl",
         "--batch-size", str(config.pairs), "--nll-coef", "0"],
        rows["pairs"], config.pairs,
        {"precompute_ref_log_probs": True})
    sft = Job(
        "SFT", start, "SFT", train_sft.main,
        ["--data", f"{folder}/shown.jsonl", "--batch-size", str(config.pairs)],
        rows["shown"], config.pairs,
        {})
    of_full_length = grpo._replace(name="GRPO, answers of full length", model=folder / "random")
    return [grpo, of_full_length, dpo, sft]


def ours(job: Job, path: Path, config) -> list[float]:
    # The progress bar goes to stderr.
    with contextlib.redirect_stderr(io.StringIO()):
        job.main(["--model", str(job.model), "--lr", "1e-5",
                  "--out", str(path), "--overwrite",
                  "--steps", str(config.steps + WARM_UP),
                  "--eval-every", "0", "--eval-problems", "8", "--save-every", "0",
                  "--micro-batch-tokens", str(config.micro_batch_tokens),
                  *job.flags,
                  *(["--device", config.device] if config.device else []),
                  *(["--dtype", config.dtype] if config.dtype else [])])
    return [float(row["seconds"]) for row in read_metrics(path)[WARM_UP:]]


def theirs(job: Job, path: Path, config, device) -> list[float]:
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments, **named):
            self.started = clock(device)

        def on_step_end(self, *arguments, **named):
            seconds.append(clock(device) - self.started)

    autocast = torch.is_autocast_enabled(device.type)
    # The trainer switches on its own.
    torch.set_autocast_enabled(device.type, False)
    arguments = getattr(trl, job.trainer + "Config")(
        output_dir=str(path),
        per_device_train_batch_size=job.batch, max_steps=config.steps + WARM_UP,
        learning_rate=1e-5, lr_scheduler_type="constant", optim="adamw_torch_fused",
        bf16=autocast, use_cpu=device.type == "cpu", gradient_checkpointing=False,
        report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"}, **job.settings)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    reward = {"reward_funcs": even_length} if job.trainer == "GRPO" else {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer = getattr(trl, job.trainer + "Trainer")(
            model=str(job.model), args=arguments, train_dataset=Dataset.from_list(job.rows),
            processing_class=tokenizer, callbacks=[Clock()], **reward)
        trainer.train()
    torch.set_autocast_enabled(device.type, autocast)
    return seconds[WARM_UP:]


def lengths_of(job: Job, tokenizer, sampled: float | None) -> tuple[float, float]:
    """Tokens of a prompt and of an answer, on average; of a pair, those of both its rows.

    sampled: how long sampled answers were."""
    prompt = mean(len(encode_prompt(tokenizer, row["prompt"])) for row in job.rows)
    if job.trainer == "GRPO":
        return prompt, sampled

    def answer(field: str) -> float:
        # And the stop token.
        return mean(len(tokenizer.encode(row[field])) + 1 for row in job.rows)
    if job.trainer == "DPO":
        return 2 * prompt, answer("chosen") + answer("rejected")
    return prompt, answer("completion")


def row_of(job: Job, seconds: dict[str, list[float]], prompt: float, answer: float, model,
           rate: float) -> dict:
    """A row of the table. rate: operations a second of which this machine is capable."""
    # Passes over all tokens: forward 1 and backward 2; GRPO samples and takes the reference's
    # log-probs besides.
    passes = 5 if job.trainer == "GRPO" else 3
    limit = passes * forward_operations(
        model, job.batch * (prompt + answer), job.batch * answer, (prompt + answer) / 2) / rate
    ours_median = median(seconds["this"])
    theirs_median = median(seconds["TRL"])
    return {"step": job.name,
            "this (s)": ours_median,
            "TRL (s)": theirs_median,
            "ratio": theirs_median / ours_median,
            "limit (s)": limit,
            "of the limit": limit / ours_median}


def main() -> None:
    config = parse(Config, __doc__)
    device = pick_device(config)
    run_config = RunConfig(device=config.device, dtype=config.dtype)
    with user_errors():
        start = find_model(config.model or ensure_trained("runs/sft", train_sft.main, run_config))
    model, tokenizer = load_model(start, device)
    rate, _ = limits(device, product_dtype(device))
    rows = make_rows(config)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_inputs(folder, rows)
        torch.manual_seed(0)
        save_pretrained(Transformer(model.config), tokenizer, folder / "random")
        for job in make_jobs(config, start, folder, rows):
            seconds = {"this": [], "TRL": []}
            for _ in range(config.turns):
                seconds["this"] += ours(job, folder / "run", config)
                seconds["TRL"] += theirs(job, folder / "trl", config, device)
            sampled = read_metrics(folder / "run")[-1].get("response_length")
            prompt, answer = lengths_of(job, tokenizer, sampled and float(sampled))
            table.append(row_of(job, seconds, prompt, answer, model, rate))
    report("steps", table, device, config.out)


if __name__ == "__main__":
    script(main)
