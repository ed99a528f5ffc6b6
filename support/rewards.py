"""Rewards: --reward verifier, exact, or a function of the user's."""
import importlib.util
import math
import re
import sys
import traceback
import zlib
from collections.abc import Iterable
from decimal import Decimal
from importlib.machinery import SourceFileLoader
from pathlib import Path

import torch

from support.cli import UserError
from support.parallel import on_rank_0
from task import sum_reward

NUMBER = r"(?:(?<![\w.)])[-+])?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"              # in "10-7" the 7, in "x = -7" the -7


def without_commas(text: str) -> str:
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)


def stated_answer(text: str) -> str | None:
    """The content of the last \\boxed{} whose braces are balanced; else the line after the last ####; else None."""
    opened, found = [], (-1, None)
    for brace in re.finditer(r"\\boxed\s*\{|[{}]", text):
        if brace.group() != "}":
            opened.append(brace)
        elif opened and (start := opened.pop()).group() != "{":
            found = max(found, (start.end(), text[start.end():brace.start()]))
    return text.rpartition("####")[2].strip().partition("\n")[0] if found[1] is None and "####" in text else found[1]


def normal(answer: str) -> str | Decimal:
    """What is compared: without $, commas between thousands, a last period and spaces around; numbers by value, so that 7.0 is 7."""
    answer = without_commas(re.sub(r"\\?\$", "", answer)).strip().removesuffix(".").strip()
    return Decimal(answer) if re.fullmatch(NUMBER, answer) else answer


def right_answer(answer: str | int | float) -> str | Decimal:
    """Of the column `answer`: a number, or a text that may state its answer as a completion does (GSM8K's end in "#### 72")."""
    if not isinstance(answer, str):
        return Decimal(str(answer))
    stated = stated_answer(answer)
    return normal(answer if stated is None else stated)


def exact_reward(prompts, completions, answer, **columns) -> list[float]:
    """1.0 where a completion's answer is the column `answer`, else 0.0. It is the first that there is of: the content of the last
    \\boxed{}, the line after the last ####, the last number."""
    rewards = []
    for completion, right in zip(completions, answer):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        found = stated_answer(text)
        if found is None:
            found = (re.findall(NUMBER, without_commas(text)) or [""])[-1]
        rewards.append(float(normal(found) == right_answer(right)))
    return rewards


BUILT_IN_REWARDS = {"verifier": sum_reward, "exact": exact_reward}


def load_reward(spec: str, data: str):
    """--reward verifier, exact, or FILE.py:FUNCTION: f(prompts, completions, **columns) -> list of floats. Runs the user's code."""
    if spec == "exact" and not data:
        raise ValueError("--reward exact needs --data with a field `answer`")
    if spec in BUILT_IN_REWARDS:
        return BUILT_IN_REWARDS[spec]
    file, _, name = spec.rpartition(":")
    if not file or not Path(file).is_file():
        raise ValueError(f"--reward {spec}: expected `verifier`, `exact` or FILE.py:FUNCTION with a file that exists")
    # a module of this name must be there for dataclasses and pickle, which look things up in it
    module_name = f"reward_file_{zlib.crc32(str(Path(file).resolve()).encode()):08x}"
    loader = SourceFileLoader(module_name, file)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(module_name, loader))
    sys.modules[module_name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--reward {spec}: importing {file} failed: {error!r}") from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--reward {spec}: {file} has no function {name}")
    return getattr(module, name)


def as_float(score) -> float:
    """A reward as a number: nan if it is none, infinity for an integer that no float can hold."""
    if not hasattr(score, "__float__"):
        return math.nan
    try:
        return float(score)
    except OverflowError:
        return math.inf if score > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):                      # an array of several numbers
        return math.nan


@on_rank_0
def reward_answers(reward, examples: list[dict], answers: list[list[int]], finished: list[bool], tokenizer) -> list[float]:
    """The reward function's score of each answer. It sees text (for message prompts, messages) without special tokens.

    Its columns are the data's other fields, and `finished`: whether each answer ended by itself.
    A built-in one gives 0 to an answer that was cut off. Errors: UserError with status 1, naming
    the function, and the file and line where it failed or the answer to which it gave no number."""
    texts = [tokenizer.decode(ids, skip_special=True) for ids in answers]
    name = getattr(reward, "__name__", repr(reward))

    prompts = [e["prompt"] for e in examples]
    completions = [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                   for prompt, text in zip(prompts, texts)]
    names = examples[0].get("columns", ())
    columns = {name: [e["columns"][name] for e in examples] for name in names}
    try:
        scores = reward(prompts, completions, **columns, finished=finished)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"the reward function {name} failed at {where.filename}, "
                        f"line {where.lineno}: {error!r}", status=1) from error
    scores = list(scores) if isinstance(scores, Iterable) else [scores]
    if len(scores) != len(answers):
        raise UserError(f"the reward function {name} gave {len(scores)} values for {len(answers)} answers, expected one each", status=1)
    for i, score in enumerate(scores):
        scores[i] = as_float(score)
        # advantages are computed in float32, where a larger number is infinite
        if not abs(scores[i]) <= torch.finfo(torch.float32).max:
            shown = scores[i] if isinstance(score, int) else score
            question = f"line {examples[i]['line']}" if "line" in examples[i] else repr(prompts[i])
            raise UserError(f"the reward function {name} gave {repr(shown)[:60]} to "
                            f"{texts[i][:60]!r}, an answer to {question}, "
                            "expected a finite number of float32", status=1)
    if reward in BUILT_IN_REWARDS.values():
        scores = [score * end for score, end in zip(scores, finished)]
    return scores
