"""The built-in task with its verifier and demonstrations.

The task: the sum of three numbers from 1 to 99, `17+58+23=`. It can be answered straight away (hard for a small model) or step
by step between <think> and </think> (easy). One prompt in eight, by a hash, is held out: never trained on, used to evaluate.
"""
import re
import zlib

import numpy as np

from support.data import encode_prompt
from support.models import numpy_rng

REASON_SHARE = 0.4                     # of the demonstrations think first; greedily, the model then answers straight away


def sum_problems(n: int, rng: np.random.Generator, held_out: bool = False) -> list[dict]:
    """n problems: {"prompt": "17+58+23="}."""
    problems = []
    while len(problems) < n:
        for a, b, c in rng.integers(1, 100, (n, 3)):
            prompt = f"{a}+{b}+{c}="
            if (zlib.crc32(prompt.encode()) % 8 == 0) == held_out:
                problems.append({"prompt": prompt})
    return problems[:n]


def demonstration(prompt: str, reason: bool) -> str:
    """A correct answer in one of the two styles: `98` or `<think>17+58=75, 75+23=98</think>98`."""
    a, b, c = map(int, prompt[:-1].split("+"))
    thought = f"<think>{a}+{b}={a + b}, {a + b}+{c}={a + b + c}</think>" if reason else ""
    return f"{thought}{a + b + c}"


def verify_sum(prompt: str, completion: str) -> float:
    """1.0 if what follows the last </think> (or all, if there is none) is the integer that the prompt asks for, else 0.0."""
    if not isinstance(prompt, str) or not re.fullmatch(r"[0-9]+(\+[0-9]+)*=", prompt):
        raise ValueError(f"found the prompt {prompt!r}, expected a sum such as '17+58+23='")
    answer = completion.rpartition("</think>")[2].strip()
    return float(re.fullmatch(r"[0-9]{1,9}", answer) is not None and int(answer) == sum(map(int, prompt[:-1].split("+"))))


def sum_reward(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """The verifier as a reward function."""
    return [verify_sum(prompt, completion) for prompt, completion in zip(prompts, completions)]


def held_out_problems(n: int, tokenizer, longest: int) -> list[dict]:
    """The built-in task's evaluation: the same problems for every script and seed, none of them ever trained on."""
    problems = [{**p, "ids": encode_prompt(tokenizer, p["prompt"])} for p in sum_problems(n, numpy_rng(0, 0, "evaluation"), held_out=True)]
    if (most := max(len(p["ids"]) for p in problems)) > longest:
        raise ValueError(f"--max-new-tokens leaves {longest} tokens of the model's context for prompts, expected at least {most}")
    return problems
