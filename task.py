"""The built-in task: the sum of three numbers from 1 to 99, `17+58+23=`.

It can be answered straight away, `98`, which is hard for a small model, or step by step, which is
easy: `<think>17+58=75, 75+23=98</think>98`. One prompt in eight, by a hash, is held out: it is
never trained on, and used to evaluate. For a task of your own, change this file.
"""
import re
import zlib

import numpy as np

from support.data import encode_prompt
from support.models import numpy_rng

REASON_SHARE = 0.4      # of the demonstrations. Greedily, the model then answers straight away.


def sum_problems(n: int, rng: np.random.Generator, held_out: bool = False) -> list[dict]:
    """n problems: {"prompt": "17+58+23="}."""
    problems = []
    while len(problems) < n:
        for a, b, c in rng.integers(1, 100, (n, 3)):
            prompt = f"{a}+{b}+{c}="
            if (zlib.crc32(prompt.encode()) % 8 == 0) == held_out:
                problems.append({"prompt": prompt})
    return problems[:n]


def encode_problems(problems: list[dict], tokenizer) -> list[dict]:
    """The same problems, with the "ids" of their prompts."""
    for problem in problems:
        problem["ids"] = encode_prompt(tokenizer, problem["prompt"])
    return problems


def held_out_problems(n: int, tokenizer, longest: int) -> list[dict]:
    """The evaluation's problems: the same for every script and seed, none of them ever trained on.

    With their "ids". ValueError if one has more than `longest`."""
    problems = sum_problems(n, numpy_rng(0, 0, "evaluation"), held_out=True)
    encode_problems(problems, tokenizer)
    most = max(len(problem["ids"]) for problem in problems)
    if most > longest:
        raise ValueError(f"--max-new-tokens leaves {longest} tokens of the model's context for "
                         f"prompts, expected at least {most}")
    return problems


def demonstration(prompt: str, reason: bool) -> str:
    """A correct answer: `98`, or `<think>17+58=75, 75+23=98</think>98`."""
    a, b, c = map(int, prompt[:-1].split("+"))
    thought = f"<think>{a}+{b}={a + b}, {a + b}+{c}={a + b + c}</think>" if reason else ""
    return f"{thought}{a + b + c}"


def verify_sum(prompt: str, completion: str) -> float:
    """1.0 if the integer that follows the last </think> (or the whole answer, if there is none) is
    what the prompt asks for, else 0.0."""
    if not isinstance(prompt, str) or not re.fullmatch(r"[0-9]+(\+[0-9]+)*=", prompt):
        raise ValueError(f"found the prompt {prompt!r}, expected a sum such as '17+58+23='")
    answer = completion.rpartition("</think>")[2].strip()
    if not re.fullmatch(r"[0-9]{1,9}", answer):
        return 0.0
    return float(int(answer) == sum(map(int, prompt[:-1].split("+"))))


def sum_reward(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """The verifier as a reward function."""
    return [verify_sum(prompt, completion) for prompt, completion in zip(prompts, completions)]
