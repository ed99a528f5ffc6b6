"""The built-in tasks: the sum of three numbers, `17+58+23=`, and the product of two, `37*84=`.

A sum can be answered straight away, `98`, which is hard for a small model, or step by step, which
is easy: `<think>17+58=75, 75+23=98</think>98`. A product it can't find in its head, but it may ask
a calculator: it writes `[37*84=`, the calculator goes on with `3108]`, and then it knows: `3108`.
Long sums are of four numbers, and few demonstrations think: at first a reward is rare.
One prompt in eight, by a hash, is held out: it is never trained on, and used to evaluate. For a
task of your own, change this file.
"""
import math
import re
import zlib

import numpy as np

from support.data import encode_prompt
from support.models import numpy_rng

# Of each task: the sign, how many numbers, and the smallest of them.
TASKS = {"sums": ("+", 3, 1), "long_sums": ("+", 4, 1), "products": ("*", 2, 10)}
# In the first part of SFT all demonstrations think or ask, then these shares of them. Greedily, the
# model then answers straight away. What few demonstrations keep up is forgotten if they take long.
REASON_SHARE = {"sums": 0.4, "long_sums": 0.03, "products": 0.1}
FIRST_PART = {"sums": 0.65, "long_sums": 0.9, "products": 0.65}
SFT_STEPS = {"sums": 1000, "long_sums": 700, "products": 200}
# Tokens of an answer, at most: enough for one that thinks.
MAX_NEW_TOKENS = {"sums": 32, "long_sums": 40, "products": 32}
# A call begins with the first and ends with the second, which is a stop token where the calculator
# is there: the model is not asked for the next token, the calculator is.
CALL_START, CALL_END = "[", "="


def make_problems(task: str, n: int, rng: np.random.Generator,
                  held_out: bool = False) -> list[dict]:
    """n problems: {"prompt": "17+58+23="}."""
    sign, n_numbers, smallest = TASKS[task]
    problems = []
    while len(problems) < n:
        for numbers in rng.integers(smallest, 100, (n, n_numbers)):
            prompt = sign.join(map(str, numbers)) + "="
            if (zlib.crc32(prompt.encode()) % 8 == 0) == held_out:
                problems.append({"prompt": prompt})
    return problems[:n]


def encode_problems(problems: list[dict], tokenizer) -> list[dict]:
    """The same problems, with the "ids" of their prompts."""
    for problem in problems:
        problem["ids"] = encode_prompt(tokenizer, problem["prompt"])
    return problems


def held_out_problems(task: str, n: int, tokenizer, longest: int) -> list[dict]:
    """The evaluation's problems: the same for every script and seed, none of them ever trained on.

    With their "ids". ValueError if one has more than `longest`."""
    problems = make_problems(task, n, numpy_rng(0, 0, "evaluation"), held_out=True)
    encode_problems(problems, tokenizer)
    most = max(len(problem["ids"]) for problem in problems)
    if most > longest:
        raise ValueError(f"--max-new-tokens leaves {longest} tokens of the model's context for "
                         f"prompts, expected at least {most}")
    return problems


def right_answer(prompt: str) -> int:
    numbers = map(int, re.findall("[0-9]+", prompt))
    return math.prod(numbers) if "*" in prompt else sum(numbers)


def demonstration(prompt: str, reason: bool) -> list[str]:
    """A correct answer, alternately what the model writes and what it is told.

    ["98"] or ["<think>17+58=75, 75+23=98</think>98"]; ["3108"] or ["[37*84=", "3108]", "3108"]."""
    answer = str(right_answer(prompt))
    if not reason:
        return [answer]
    if "*" in prompt:
        return [CALL_START + prompt, f"{answer}]", answer]
    total, *numbers = map(int, prompt[:-1].split("+"))
    steps = []
    for number in numbers:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return [f"<think>{', '.join(steps)}</think>{answer}"]


def verify_answer(prompt: str, completion: str) -> float:
    """1.0 if the integer that follows the last </think> or ] (or the whole answer, if there is
    none) is what the prompt asks for, else 0.0."""
    if not isinstance(prompt, str) or not re.fullmatch(r"[0-9]+((\+[0-9]+)*|(\*[0-9]+)*)=", prompt):
        raise ValueError(f"found the prompt {prompt!r}, expected a sum such as '17+58+23=' or a "
                         "product such as '37*84='")
    answer = re.split(r"</think>|\]", completion)[-1].strip()
    # Of more digits Python may refuse to make a number.
    if not re.fullmatch(r"[0-9]{1,1000}", answer):
        return 0.0
    return float(int(answer) == right_answer(prompt))


def task_reward(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """The verifier as a reward function."""
    return [verify_answer(prompt, completion) for prompt, completion in zip(prompts, completions)]


# ------------------------------------------------------------------------------- the calculator

def calculate(text: str) -> str:
    """`37*84` -> `3108`. At most four whole numbers of six digits, + - and *; else `error`."""
    if not re.fullmatch(r" *[0-9]{1,6}( *[-+*] *[0-9]{1,6}){0,3} *", text):
        return "error"
    text = text.replace(" ", "")
    result = 0
    for sign, product in re.findall(r"([-+]?)([0-9*]+)", text):
        value = math.prod(map(int, product.split("*")))
        result += -value if sign == "-" else value
    return str(result)


class Calculator:
    """The environment of products: what `rollout.generate` asks when a row stops.

    `[37*84=` is answered with `3108]`, and what it can't read with `error]`. Any other end is the
    end of the answer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.stop_ids = {*tokenizer.stop_ids, *tokenizer.encode(CALL_END)}

    def completions(self, turns):
        """Rewards read the text of the whole answer."""
        return None

    def __call__(self, row: int, ids: list[int]) -> list[int] | None:
        text = self.tokenizer.decode(ids)
        if not text.endswith(CALL_END):
            return None
        _, bracket, asked = text[:-1].rpartition(CALL_START)
        result = calculate(asked) if bracket else "error"
        return self.tokenizer.encode(f"{result}]")
