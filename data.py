"""The built-in task with its verifier and demonstrations, JSONL data sets, and batches.

The task: the sum of three numbers from 1 to 99, `17+58+23=`. It can be answered straight away (hard for a small model) or step
by step between <think> and </think> (easy). One prompt in eight, by a hash, is held out: never trained on, used to evaluate.
"""
import functools
import importlib.util
import json
import math
import re
import sys
import traceback
import zlib
from collections.abc import Iterable
from decimal import Decimal
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import torch

from common import UserError, numpy_rng, on_rank_0

REASON_SHARE = 0.4                     # of the demonstrations think first; greedily, the model then answers straight away


# ------------------------------------------------------------------------------------------------------ the built-in task

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


# ------------------------------------------------------------------------------------------------------ --reward exact

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


# ------------------------------------------------------------------------------------------------------ JSONL

def read_jsonl(path: str, required: tuple[str, ...], instead: str = "") -> list[dict]:
    """One JSON object a line, checked before anything trains. ValueError names the line, the field, found and expected.

    Each of the `required` fields is text, or a list of {"role", "content"} messages. instead: a
    field of messages that may stand in for all of them. -> for each line {"line": its number,
    "side": see side_of, "columns": its object}. What is added to an example later stands beside
    "columns", so that a field of the data may have any name."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None
    examples = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(columns, dict):
            raise ValueError(f"{path}, line {number}: found {type(columns).__name__}, "
                             f"expected an object with {', '.join(required)}")
        stands_in = instead and instead in columns and required[0] not in columns
        names = (instead,) if stands_in else required
        for name in names:
            value = columns.get(name)
            if not (isinstance(value, str) and name != instead or isinstance(value, list) and value and all(
                    isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value)):
                found = json.dumps(value)[:60] if name in columns else "missing"
                raise ValueError(f"{path}, line {number}: {name} is {found}, "
                                 f'expected {"" if name == instead else "text or "}a list of {{"role", "content"}} messages')
        if len({type(columns[name]) for name in names}) > 1:
            raise ValueError(f"{path}, line {number}: {' and '.join(required)} mix text and messages, expected one kind")
        examples.append({"line": number, "side": side_of(columns[names[0]]), "columns": columns})
    if not examples:
        raise ValueError(f"{path}: no examples in it, expected a JSON object a line")
    if len({e["side"] for e in examples}) == 1:
        examples = [{**e, "side": "both"} for e in examples]
    return examples


def side_of(prompt) -> str:
    """Whether a prompt is for training or held out, by a hash: the same in every file and script.

    -> "train", or "held out" for one prompt in ten. A conversation goes by its messages up to the
    first answer to a user, so that prompts of several turns and SFT's "messages" agree. (Text, and
    a message of the same text, are two prompts.) Where all prompts of a file would be on one side,
    as in a very small one, `read_jsonl` makes it "both"."""
    if not isinstance(prompt, str):
        roles = [message["role"] for message in prompt]
        question = roles.index("user") if "user" in roles else 0
        answers = [i for i, role in enumerate(roles) if role == "assistant" and i > question]
        asked = prompt[:answers[0]] if answers else prompt
        prompt = [(message["role"], message["content"]) for message in asked]
    return "train" if zlib.crc32(json.dumps(prompt).encode()) % 10 else "held out"


def encode_prompt(tokenizer, prompt) -> list[int]:
    """Ids of a prompt: text as the model's own tokenizer begins one, messages through the chat template up to the assistant's turn."""
    if isinstance(prompt, str):
        return tokenizer.prefix + tokenizer.encode(prompt)
    messages, hidden = tokenizer.hide_special_text(prompt)
    return tokenizer.encode(tokenizer.apply_chat_template(messages), True, hidden)


def encode_completion(tokenizer, prompt, completion) -> list[int]:
    """Ids of an answer, its stop token included. Prompt and answer are encoded apart, so no token straddles the boundary."""
    if isinstance(prompt, str):
        return tokenizer.encode(completion) + [tokenizer.eos_id]
    if [message["role"] for message in completion] != ["assistant"]:
        raise ValueError(f"found an answer of {', '.join(m['role'] for m in completion)}, expected one message of the assistant")
    return encode_turns(tokenizer, prompt, completion)[1]


def encode_turns(tokenizer, prompt, completion) -> list[list[int]]:
    """Ids of a demonstration, alternately given and trained on: [prompt, answer], and of a longer completion [..., user, answer].

    The answers are the completion's assistant turns, each up to its stop token. The conversation is rendered up to each of them, and
    must begin as it was rendered before: the ids before an answer are those that it is sampled after."""
    if isinstance(prompt, str):
        return [encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, completion)]
    messages, hidden = tokenizer.hide_special_text(prompt + completion)
    turns, given, seen = [], [], ""
    for i in range(len(prompt), len(messages)):
        if messages[i]["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:i])
            whole = tokenizer.apply_chat_template(messages[:i + 1], add_generation_prompt=False)
            if not (before.startswith(seen) and whole.startswith(before)):
                raise ValueError("the chat template writes a conversation and its beginning differently, so answers can't be told apart")
            ids = tokenizer.encode(whole[len(before):], True, hidden)
            end = next((n for n, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
            given += tokenizer.encode(before[len(seen):], True, hidden)
            turns += [given, (ids + [tokenizer.eos_id])[:end + 1]]
            given, seen = ids[end + 1:], whole
    if not turns:
        raise ValueError("the completion has no message of the assistant")
    return turns


def encode(examples: list[dict], path: str, fields) -> list[dict]:
    """Each example with fields(its columns), a dict, added.

    What can't be encoded, as messages without a template, is named by line."""
    encoded = []
    for example in examples:
        try:
            encoded.append({**example, **fields(example["columns"])})
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {example['line']}: {error}") from error
    return encoded


def usable(examples: list[dict], path: str, reason_not) -> list[dict]:
    """Drop the examples for which `reason_not(example)` is a text; say how many and where the first is."""
    kept, dropped = [], {}
    for example in examples:
        reason = reason_not(example)
        if reason:
            dropped.setdefault(reason, []).append(example["line"])
        else:
            kept.append(example)
    for reason, lines in dropped.items():
        print(f"{path}: dropped {len(lines)} of {len(examples)} examples, {reason} (first: line {lines[0]})")
    if not kept:
        raise ValueError(f"{path}: none of {len(examples)} examples can be used")
    return kept


@functools.lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n examples in an epoch. Kept: drawn anew, it would cost every step O(n)."""
    return numpy_rng(seed, epoch, "order of the data").permutation(n)


def take(examples: list[dict], n: int, seed: int, step: int) -> list[dict]:
    """The n examples of a step: epoch after epoch, each in an order of its own that comes from (seed, epoch)."""
    batch = []
    for i in range(step * n, (step + 1) * n):
        epoch, place = divmod(i, len(examples))
        batch.append(examples[epoch_order(len(examples), seed, epoch)[place]])
    return batch


def read_demonstrations(path: str, tokenizer, context: int) -> list[dict]:
    """Demonstrations of a JSONL file for SFT: {"turns": see encode_turns, "line", ...}. Of "messages", all answers are learned."""
    examples = encode(read_jsonl(path, ("prompt", "completion"), instead="messages"), path, lambda e: {
        "turns": encode_turns(tokenizer, *((e["prompt"], e["completion"]) if "prompt" in e else ([], e["messages"])))})
    return usable(examples, path, lambda e: f"longer than the context of {context} tokens" if sum(map(len, e["turns"])) > context
                  else "empty prompt" if not e["turns"][0] else "empty completion" if min(map(len, e["turns"][1::2])) < 2 else "")


def read_prompts(path: str, reward: str, tokenizer, longest: int) -> list[dict]:
    """Prompts of a JSONL file for PPO and GRPO, `longest` tokens at most.

    Examples as read_jsonl gives them, with "prompt" and its "ids"; "columns" are the other fields,
    None where a line lacks one that others have."""
    examples = read_jsonl(path, ("prompt",))
    for e in examples if reward == "exact" else ():
        answer = e["columns"].get("answer")
        if not isinstance(answer, (str, int, float)) or isinstance(answer, bool) or right_answer(answer) == "":
            found = json.dumps(answer)[:60] if "answer" in e["columns"] else "missing"
            raise ValueError(f"{path}, line {e['line']}: answer is {found}, "
                             "expected text or a number for --reward exact")
    for e in examples if reward else ():
        for name in ("prompts", "completions", "finished"):
            if name in e["columns"]:
                raise ValueError(f"{path}, line {e['line']}: has a field {name}, which is what the "
                                 "reward function is given of the answers; expected another name")
    names = dict.fromkeys(name for e in examples for name in e["columns"] if name != "prompt")
    examples = encode(examples, path, lambda columns: {
        "prompt": columns["prompt"], "ids": encode_prompt(tokenizer, columns["prompt"]),
        "columns": {name: columns.get(name) for name in names}})
    return usable(examples, path, lambda e: "empty prompt" if not e["ids"] else
                  f"prompt over the {longest} tokens that --max-new-tokens leaves of the context" if len(e["ids"]) > longest else "")


def held_out_problems(n: int, tokenizer, longest: int) -> list[dict]:
    """The built-in task's evaluation: the same problems for every script and seed, none of them ever trained on."""
    problems = [{**p, "ids": encode_prompt(tokenizer, p["prompt"])} for p in sum_problems(n, numpy_rng(0, 0, "evaluation"), held_out=True)]
    if (most := max(len(p["ids"]) for p in problems)) > longest:
        raise ValueError(f"--max-new-tokens leaves {longest} tokens of the model's context for prompts, expected at least {most}")
    return problems


def load_prompts(config, tokenizer, context: int):
    """A function step -> examples of that step, and the examples of every evaluation."""
    longest = context - config.max_new_tokens
    if config.data:
        examples = read_prompts(config.data, config.reward, tokenizer, longest)
        train, held_out = hold_out(examples, config.data, config.eval_problems)
        return lambda step: take(train, config.prompts_per_step, config.seed, step), held_out

    def batch(step):
        rng = numpy_rng(config.seed, step, f"{config.algorithm} prompts")
        problems = sum_problems(config.prompts_per_step, rng)
        return [{**p, "ids": encode_prompt(tokenizer, p["prompt"])} for p in problems]
    return batch, held_out_problems(config.eval_problems, tokenizer, longest)


def hold_out(examples: list[dict], path: str, most: int) -> tuple[list[dict], list[dict]]:
    """What is trained on, and `most` of what is held out at most; see side_of.

    What is held out is never trained on, used by evaluations or not. Where nothing is held out, of
    the file or of what can be used of it, evaluations use what is trained on."""
    train = [e for e in examples if e["side"] != "held out"]
    held_out = [e for e in examples if e["side"] != "train"] or train
    if not train:
        raise ValueError(f"{path}: all {len(examples)} examples that can be used are held out, by "
                         "a hash of their prompts: none is left to train on")
    order = numpy_rng(0, 0, "held out").permutation(len(held_out))[:most]
    return train, [held_out[i] for i in order]


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


# ------------------------------------------------------------------------------------------------------ batches

def pad_batch(rows: list[list[list[int]]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, alternately given and trained on: [prompt, answer], or [prompt, answer, next user turn, answer, ...].

    -> tokens (B, T) int64, right-padded with 0, and mask (B, T) bool, true on the answers."""
    T = max(sum(map(len, row)) for row in rows)
    tokens, mask = np.zeros((len(rows), T), dtype=np.int64), np.zeros((len(rows), T), dtype=bool)
    for b, row in enumerate(rows):
        t = 0
        for k, ids in enumerate(row):
            tokens[b, t:t + len(ids)], mask[b, t:t + len(ids)] = ids, k % 2 == 1
            t += len(ids)
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
