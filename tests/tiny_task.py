"""A task and a model so small that every script trains on it within a second, and a run of every
script, method and loss."""
import json

import torch

import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from methods import METHODS
from model import ModelConfig, Transformer
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer

# The columns in which equal runs differ.
MEASURED = {"seconds", "tokens_per_second", "peak_memory_mb"}

REWARD = """
def vowels(prompts, completions, **columns):
    "share of an answer's 6 places that hold a letter of the column `good`"
    return [sum(c in good for c in text) / 6 for text, good in zip(completions, columns["good"])]
def raises(prompts, completions, **columns):
    return [1 / (prompt != "7:") for prompt in prompts]
def too_few(prompts, completions, **columns):
    return [1.0]
def number(prompts, completions, **columns):
    return 1.0
def nan(prompts, completions, **columns):
    return [float("nan") if prompt == "7:" else 1.0 for prompt in prompts]
def none(prompts, completions, **columns):
    return [None] * len(prompts)
"""


def write_tiny_task(path) -> None:
    """A tiny model, which says a, b, c about equally often, with data sets and rewards to train it
    on, in seconds."""
    tokenizer = builtin_tokenizer()
    torch.manual_seed(0)
    save_pretrained(Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 64, 64)),
                    tokenizer, path / "random")
    answers = ["abcabc", "cba", "bca", "acbb", "ccab", "baac"]
    rows = [{"prompt": f"{i}:", "completion": answers[i % 6], "good": "ae"} for i in range(60)]
    (path / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"prompt": f"{i}:", "chosen": "aa" + "b" * (i % 3), "rejected": "cc" + "b" * (i % 3)}
             for i in range(60)]
    (path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (path / "reward.py").write_text(REWARD)
    train_sft.main(["--model", str(path / "random"), "--data", str(path / "sft.jsonl"),
                    "--out", str(path / "sft"), "--steps", "60", "--batch-size", "16",
                    "--lr", "2.5e-3", "--device", "cpu"])


SFT = "--model random --data sft.jsonl --batch-size 8"
PAIRS = "--model sft --data pairs.jsonl --batch-size 8"
RL = "--model sft --data sft.jsonl --max-new-tokens 6"


def runs_of_all(evaluation: str) -> dict[str, tuple]:
    """name -> the script's main and its flags. In the directory that write_tiny_task has filled;
    "ppo on a reward model" reads what "rm" leaves in the directory "rm".

    evaluation: flags of evaluations, which that run alone doesn't take."""
    rewarded = f"{RL} --reward reward.py:vowels {evaluation}"
    groups = f"{rewarded} --prompts-per-step 4 --group-size 4"
    runs = {"sft": (train_sft.main, f"{SFT} {evaluation}"),
            "rm": (train_rm.main, f"{PAIRS} {evaluation}")}
    for loss in train_dpo.BETA:
        runs[f"dpo {loss}"] = train_dpo.main, f"{PAIRS} {evaluation} --loss {loss}"
    for method in METHODS:
        runs[f"grpo {method}"] = train_grpo.main, f"{groups} --method {method}"
    more = {
        "replace": "--no-signal replace",
        "drop": "--no-signal drop --ref-ema 0.9",
        "k2": "--kl-estimator k2 --epochs 2 --ref-sync 2",
        "kl in the reward": "--method dr_grpo --kl-in reward --kl-coef 0.05 --kl-target 0.5",
        "one update": "--minibatches 1 --temperature 0.7",
        "entropy bonus": "--entropy-coef 0.01",
        "weighted": "--importance-cap 2",
        "grad-checkpoint": "--grad-checkpoint"}
    for name, flags in more.items():
        runs[f"grpo {name}"] = train_grpo.main, f"{groups} {flags}"
    ppo = "--prompts-per-step 16 --critic-warmup"
    runs["ppo"] = train_ppo.main, f"{rewarded} {ppo} 0 --kl-target 0.5"
    runs["ppo warm-up"] = train_ppo.main, f"{rewarded} {ppo} 1"
    runs["ppo on a reward model"] = train_ppo.main, f"{RL} {ppo} 0 --reward-model rm --ref-sync 2"
    return {name: (main, flags.split())
            for name, (main, flags) in runs.items()}
