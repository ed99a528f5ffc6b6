"""Rewards: --reward verifier, exact, or a function of the user's."""
import asyncio
import contextlib
import copy
import importlib.util
import inspect
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
from task import task_reward

# A sign belongs to the number unless it stands right after a letter, a digit, a period or a closing
# bracket: in "10-7" this finds the 7, in "x = -7" the -7. A | may open as well as close.
NUMBER = r"(?:(?<![\w.)\]}])[-+])?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"


def remove_commas(text: str) -> str:
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)


def find_stated_answer(text: str) -> str | None:
    """The answer that a text states, or None if it states none.

    It is the content of the last \\boxed{} whose braces are balanced; if there is none, the line
    after the last ####."""
    content = _find_last_box(text)
    if content is not None:
        return content
    if "####" in text:
        rest = text.rpartition("####")[2].strip()
        return rest.partition("\n")[0]
    return None


def _find_last_box(text: str) -> str | None:
    """The content of the \\boxed{} that begins last, of those whose braces are balanced."""
    # The braces that are open at this place in the text, the innermost last.
    open_braces = []
    last_start, last_content = -1, None
    for brace in re.finditer(r"\\boxed\s*\{|[{}]", text):
        if brace.group() != "}":
            open_braces.append(brace)
            continue
        if not open_braces:
            # This brace closes nothing.
            continue
        opening = open_braces.pop()
        start = opening.end()
        is_box = opening.group() != "{"
        # A box inside another one is closed first, though it begins later.
        if is_box and start > last_start:
            last_start, last_content = start, text[start:brace.start()]
    return last_content


def normalize(answer: str) -> str | Decimal:
    """What is compared: without $, commas between thousands, a last period and spaces around.

    Numbers are compared by value, so that 7.0 is 7."""
    answer = re.sub(r"\\?\$", "", answer)
    answer = remove_commas(answer).strip().removesuffix(".").strip()
    return Decimal(answer) if re.fullmatch(NUMBER, answer) else answer


def read_right_answer(answer: str | int | float) -> str | Decimal:
    """Of the column `answer`, what `normalize` makes of it, "" if it is no answer.

    It is a number, or a text that may state its answer as a completion does (GSM8K's end in
    "#### 72")."""
    if not isinstance(answer, str):
        number = Decimal(str(answer))
        # JSON as Python reads it may hold NaN and Infinity, and no completion equals them.
        return number if number.is_finite() else ""
    stated = find_stated_answer(answer)
    return normalize(answer if stated is None else stated)


def exact_reward(prompts, completions, answer, **columns) -> list[float]:
    """1.0 where a completion's answer is the column `answer`, else 0.0.

    A completion's answer is the first that there is of: the content of the last \\boxed{}, the
    line after the last ####, the last number."""
    rewards = []
    for completion, right in zip(completions, answer):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        found = find_stated_answer(text)
        if found is None:
            numbers = re.findall(NUMBER, remove_commas(text))
            found = numbers[-1] if numbers else ""
        is_right = normalize(found) == read_right_answer(right)
        rewards.append(float(is_right))
    return rewards


BUILT_IN_REWARDS = {"verifier": task_reward, "exact": exact_reward}


def load_reward(spec: str, data: str):
    """--reward verifier, exact, or FILE.py:FUNCTION. Runs the user's code.

    -> f(prompts, completions, **columns) -> list of floats"""
    if spec == "exact" and not data:
        raise ValueError("--reward exact needs --data with a field `answer`")
    if spec in BUILT_IN_REWARDS:
        return BUILT_IN_REWARDS[spec]
    return load_function("--reward", spec, "`verifier`, `exact` or FILE.py:FUNCTION")


def load_function(flag: str, spec: str, expected: str):
    """The function of the user's that a flag's FILE.py:FUNCTION names. ValueError if it has none.

    expected: what an error says that the flag takes."""
    file, _, name = spec.rpartition(":")
    if not file or not Path(file).is_file():
        raise ValueError(f"{flag} {spec}: expected {expected} with a file that exists")
    try:
        with keep_process_settings():
            module = import_file(file)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{flag} {spec}: importing {file} failed: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{flag} {spec}: {file} has no function {name}")
    return function


def import_file(file: str):
    """A file of Python as a module, whatever its name ends in. Runs the user's code."""
    # dataclasses and pickle look things up in the module of this name, so sys.modules must have it.
    digest = zlib.crc32(str(Path(file).resolve()).encode())
    module_name = f"reward_file_{digest:08x}"
    loader = SourceFileLoader(module_name, file)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(module_name, loader))
    sys.modules[module_name] = module
    loader.exec_module(module)
    return module


@contextlib.contextmanager
def keep_process_settings():
    """Around a user's code: what it may have changed for the whole process is put back.

    Scripts often switch gradients off, or go to another directory, where they begin."""
    dtype = torch.get_default_dtype()
    with contextlib.chdir("."), torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def name_of(function) -> str:
    """How an error names a user's function, or an object that can be called."""
    return getattr(function, "__name__", type(function).__name__)


def as_float(score) -> float:
    """A reward as a number: nan if it is none, infinity for an integer that no float can hold."""
    if not hasattr(score, "__float__"):
        return math.nan
    try:
        return float(score)
    except OverflowError:
        return math.inf if score > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        # It is an array of several numbers.
        return math.nan


@on_rank_0
def reward_answers(reward, examples: list[dict], answers: list[list[int]], finished: list[bool],
                   tokenizer, completions: list | None = None) -> list[float]:
    """The reward function's score of each answer.

    It sees text (for message prompts, messages) without special tokens, with what a calculator
    wrote in between. completions: the messages of each answer, where an environment has a part in
    them; if there are none, the answer is one message. Its columns are the data's
    other fields, and `finished`: whether each answer ended by itself. A built-in one gives 0 to an
    answer that was cut off.

    Errors: UserError with status 1, naming the function, and the file and line where it failed or
    the answer to which it gave no number."""
    texts = [tokenizer.decode(ids, skip_special=True) for ids in answers]
    name = name_of(reward)

    if completions is None:
        completions = [text if isinstance(example["prompt"], str)
                       else [{"role": "assistant", "content": text}]
                       for example, text in zip(examples, texts)]
    given = _call_reward(reward, name, examples, completions, finished)
    if len(given) != len(answers):
        raise UserError(f"the reward function {name} gave {len(given)} values "
                        f"for {len(answers)} answers, expected one each", status=1)
    scores = []
    for i, value in enumerate(given):
        score = as_float(value)
        # Advantages are computed in float32, where a larger number is infinite.
        if not abs(score) <= torch.finfo(torch.float32).max:
            # An integer may have too many digits to be printed.
            shown = score if isinstance(value, int) else value
            raise UserError(f"the reward function {name} gave {repr(shown)[:60]} to "
                            f"{texts[i][:60]!r}, an answer to {place_of(examples[i])}, "
                            "expected a finite number of float32", status=1)
        scores.append(score)
    if reward in BUILT_IN_REWARDS.values():
        scores = [score * end for score, end in zip(scores, finished)]
    return scores


def _call_reward(reward, name: str, examples: list[dict], completions: list,
                 finished: list[bool]) -> list:
    """What the reward function gives, as a list. UserError if it fails; name: of the function."""
    # All answers of a group have one row of the data, which a function may change.
    prompts = [copy.deepcopy(example["prompt"]) for example in examples]
    try:
        with keep_process_settings():
            given = reward(prompts, completions, **columns_of(examples), finished=finished)
            # TRL takes an `async def` as well.
            if inspect.iscoroutine(given):
                given = asyncio.run(given)
            # Of these, one would count the keys, or lose the order.
            has_order = isinstance(given, Iterable) and not isinstance(given, (dict, set))
            # A generator runs only now.
            return list(given) if has_order else [given]
    except (Exception, SystemExit) as error:
        raise UserError(f"the reward function {name} failed {where_it_failed(error)}",
                        status=1) from error


def columns_of(examples: list[dict]) -> dict[str, list]:
    """The data's other fields, as a user's function gets them: name -> its value of each row.

    They are copies, as a function may change what it gets."""
    columns = {}
    for field in examples[0].get("columns", ()):
        columns[field] = [copy.deepcopy(example["columns"][field]) for example in examples]
    return columns


def place_of(example: dict) -> str:
    """How an error names a row: its line in the data, or the problem."""
    return f"line {example['line']}" if "line" in example else repr(example["prompt"])


def where_it_failed(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {where.filename}, line {where.lineno}: {error!r}"
