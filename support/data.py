"""JSONL data sets, chats, and batches."""
import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from support.models import numpy_rng


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
