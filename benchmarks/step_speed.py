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
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import BenchConfig, clock, forward_operations, limits, product_dtype, report

import numpy as np
import torch

import train_dpo
import train_grpo
import train_sft
from model import Transformer
from support.cli import RunConfig, parse, script, setting
from support.data import encode_prompt
from support.models import pick_device
from support.plot import read_metrics
from support.pretrained import load_pretrained, save_pretrained
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


def even_length(prompts, completions, **columns) -> list[float]:
    """A reward that has a signal whatever the weights are."""
    return [float(len(text) % 2) for text in completions]


def ours(main, path: Path, flags: list[str], config) -> list[float]:
    # The progress bar goes to stderr.
    with contextlib.redirect_stderr(io.StringIO()):
        main(["--out", str(path), "--overwrite",
              "--steps", str(config.steps + WARM_UP),
              "--eval-every", "0", "--eval-problems", "8", "--save-every", "0",
              "--micro-batch-tokens", str(config.micro_batch_tokens),
              *flags,
              *(["--device", config.device] if config.device else []),
              *(["--dtype", config.dtype] if config.dtype else [])])
    return [float(row["seconds"]) for row in read_metrics(path)[WARM_UP:]]


def theirs(name: str, path: Path, model: Path, rows: list[dict], batch: int, settings: dict,
           config, device) -> list[float]:
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
    arguments = getattr(trl, name + "Config")(
        output_dir=str(path),
        per_device_train_batch_size=batch, max_steps=config.steps + WARM_UP,
        learning_rate=1e-5, lr_scheduler_type="constant", optim="adamw_torch_fused",
        bf16=autocast, use_cpu=device.type == "cpu", gradient_checkpointing=False,
        report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"}, **settings)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    reward = {"reward_funcs": even_length} if "num_generations" in settings else {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer = getattr(trl, name + "Trainer")(
            model=str(model), args=arguments, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, callbacks=[Clock()], **reward)
        trainer.train()
    torch.set_autocast_enabled(device.type, autocast)
    return seconds[WARM_UP:]


def main() -> None:
    config = parse(Config, __doc__)
    device = pick_device(config)
    run_config = RunConfig(device=config.device, dtype=config.dtype)
    start = find_model(config.model or ensure_trained("runs/sft", train_sft.main, run_config))
    model, tokenizer = load_pretrained(start, torch.float32, device)
    rate, _ = limits(device, product_dtype(device))
    rng, steps = np.random.default_rng(0), config.steps + WARM_UP
    right = lambda p: demonstration(p["prompt"], rng.random() < 0.5)[0]
    problems = make_problems("sums", steps * max(config.pairs, config.prompts), rng)
    pairs = [{**p, "chosen": right(p), "rejected": str(rng.integers(298, 999))}
             for p in problems[:steps * config.pairs]]
    shown = [{"prompt": p["prompt"], "completion": right(p)}
             for p in problems[:steps * config.pairs]]
    length = lambda rows, *fields: sum(
        len(tokenizer.encode("".join(row[f] for f in fields))) + 1 for row in rows) / len(rows)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, rows in (("prompts", problems), ("pairs", pairs), ("shown", shown)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "reward.py").write_text("from step_speed import even_length\n")
        torch.manual_seed(0)
        save_pretrained(Transformer(model.config), tokenizer, folder / "random")
        grpo = (
            "GRPO", train_grpo.main,
            ["--data", f"{folder}/prompts.jsonl",
             "--reward", f"{folder}/reward.py:even_length",
             "--prompts-per-step", str(config.prompts),
             "--max-new-tokens", str(config.new_tokens),
             "--minibatches", "1"],
            problems, 8 * config.prompts,
            {"num_generations": 8, "max_completion_length": config.new_tokens,
             "beta": 0.01, "temperature": 1.0, "top_k": 0})
        # name: the model; TRL's trainer, our script and its flags; TRL's rows, batch, settings
        work = {
            "GRPO": (start, *grpo),
            "GRPO, answers of full length": (folder / "random", *grpo),
            "DPO": (
                start, "DPO", train_dpo.main,
                ["--data", f"{folder}/pairs.jsonl",
                 "--batch-size", str(config.pairs), "--nll-coef", "0"],
                pairs, config.pairs,
                {"precompute_ref_log_probs": True}),
            "SFT": (
                start, "SFT", train_sft.main,
                ["--data", f"{folder}/shown.jsonl", "--batch-size", str(config.pairs)],
                shown, config.pairs,
                {})}
        table = []
        for name, (path, trainer, script_main, flags, rows, batch, settings) in work.items():
            seconds = {"this": [], "TRL": []}
            flags = ["--model", str(path), "--lr", "1e-5", *flags]
            for _ in range(config.turns):
                seconds["this"] += ours(script_main, folder / "run", flags, config)
                seconds["TRL"] += theirs(trainer, folder / "trl", path, rows, batch, settings,
                                         config, device)
            if trainer == "GRPO":
                answer = float(read_metrics(folder / "run")[-1]["response_length"])
            else:
                answer = (length(pairs, "chosen") + length(pairs, "rejected") if trainer == "DPO"
                          else length(shown, "completion"))
            prompt = (sum(len(encode_prompt(tokenizer, p["prompt"])) for p in problems)
                      / len(problems) * (2 if trainer == "DPO" else 1))
            # Passes over all tokens: forward 1 and backward 2; GRPO samples and takes the
            # reference's log-probs besides.
            passes = 5 if trainer == "GRPO" else 3
            limit = passes * forward_operations(
                model, batch * (prompt + answer), batch * answer, (prompt + answer) / 2) / rate
            ours_median, theirs_median = median(seconds["this"]), median(seconds["TRL"])
            table.append({"step": name,
                          "this (s)": ours_median,
                          "TRL (s)": theirs_median,
                          "ratio": theirs_median / ours_median,
                          "limit (s)": limit,
                          "of the limit": limit / ours_median})
    report("steps", table, device, config.out)


if __name__ == "__main__":
    script(main)
