"""JSONL data sets, chats, and batches."""
import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from support.models import numpy_rng


def read_jsonl(path: str, required: tuple[str, ...], instead: str = "") -> list[dict]:
    """One JSON object per line, checked before anything trains.

    ValueError names the line, the field, found and expected.

    Each of the `required` fields is text, or a list of {"role", "content"} messages. instead: a
    field of messages that may stand in for all of them. -> for each line {"line": its number,
    "side": see choose_side, "columns": its object}. What is added to an example later stands beside
    "columns", so that a field of the data may have any name."""
    examples = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        columns = _parse_object(line, required, place)
        stands_in = instead and instead in columns and required[0] not in columns
        names = (instead,) if stands_in else required
        _check_fields(columns, names, instead, place)
        side = choose_side(columns[names[0]])
        examples.append({"line": number, "side": side, "columns": columns})
    if not examples:
        raise ValueError(f"{path}: no examples in it, expected a JSON object per line")
    sides = {example["side"] for example in examples}
    if len(sides) == 1:
        for example in examples:
            example["side"] = "both"
    return examples


def _read_text(path: str) -> str:
    """A file's text, with or without a byte-order mark. ValueError if it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def _parse_object(line: str, required: tuple[str, ...], place: str) -> dict:
    """The JSON object of a line. place: how an error names the line."""
    try:
        columns = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    if not isinstance(columns, dict):
        raise ValueError(f"{place}: found {type(columns).__name__}, "
                         f"expected an object with {', '.join(required)}")
    return columns


def _check_fields(columns: dict, names: tuple[str, ...], instead: str, place: str) -> None:
    """ValueError unless each of these fields is text, or each of them is messages.

    The field `instead` must be messages. place: how an error names the line."""
    for name in names:
        value = columns.get(name)
        may_be_text = name != instead
        is_text = may_be_text and isinstance(value, str)
        if not is_text and not holds_messages(value):
            found = json.dumps(value)[:60] if name in columns else "missing"
            text_or = "text or " if may_be_text else ""
            raise ValueError(f"{place}: {name} is {found}, "
                             f'expected {text_or}a list of {{"role", "content"}} messages')
    kinds = {type(columns[name]) for name in names}
    if len(kinds) > 1:
        raise ValueError(f"{place}: {' and '.join(names)} mix text and messages, "
                         "expected one kind")


def holds_messages(value) -> bool:
    """Whether a field's value is a list of at least one {"role", "content"} message."""
    if not isinstance(value, list) or not value:
        return False
    for message in value:
        if not isinstance(message, dict):
            return False
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return False
    return True


def choose_side(prompt) -> str:
    """Whether a prompt is for training or held out, by a hash: the same in every file and script.

    -> "train", or "held out" for one prompt in ten. A conversation goes by its messages up to the
    first answer to a user, so that prompts of several turns and SFT's "messages" agree. (Text, and
    a message of the same text, are two prompts.) Where all prompts of a file would be on one side,
    as in a very small one, `read_jsonl` makes it "both"."""
    if not isinstance(prompt, str):
        prompt = _cut_before_answer(prompt)
    digest = zlib.crc32(json.dumps(prompt).encode())
    return "train" if digest % 10 else "held out"


def _cut_before_answer(messages: list[dict]) -> list[tuple[str, str]]:
    """The (role, content) of the messages that come before the first answer to a user."""
    roles = [message["role"] for message in messages]
    question = roles.index("user") if "user" in roles else 0
    answers = [i for i, role in enumerate(roles) if role == "assistant" and i > question]
    asked = messages[:answers[0]] if answers else messages
    return [(message["role"], message["content"]) for message in asked]


def encode_prompt(tokenizer, prompt) -> list[int]:
    """Ids of a prompt.

    Text begins as the model's own tokenizer begins one; messages go through the chat template, up
    to the assistant's turn."""
    if isinstance(prompt, str):
        return tokenizer.prefix + tokenizer.encode(prompt)
    messages, hidden = tokenizer.hide_special_text(prompt)
    return tokenizer.encode(tokenizer.apply_chat_template(messages), True, hidden)


def encode_completion(tokenizer, prompt, completion) -> list[int]:
    """Ids of an answer, its stop token included.

    Prompt and answer are encoded apart, so no token straddles the boundary."""
    if isinstance(prompt, str):
        return tokenizer.encode(completion) + [tokenizer.eos_id]
    roles = [message["role"] for message in completion]
    if roles != ["assistant"]:
        raise ValueError(f"found an answer of {', '.join(roles)}, "
                         "expected one message of the assistant")
    return encode_turns(tokenizer, prompt, completion)[1]


def encode_turns(tokenizer, prompt, completion) -> list[list[int]]:
    """Ids of a demonstration, alternately given and trained on.

    They are [prompt, answer], and of a longer completion [..., user, answer]. The answers are the
    completion's assistant turns, each up to its stop token. The conversation is rendered up to
    each of them, and must begin as it was rendered before: the ids before an answer are those that
    it is sampled after."""
    if isinstance(prompt, str):
        given = encode_prompt(tokenizer, prompt)
        answer = encode_completion(tokenizer, prompt, completion)
        return [given, answer]
    messages, hidden = tokenizer.hide_special_text(prompt + completion)
    turns = []
    # The ids that stand between the last answer and the next one.
    given = []
    # The conversation up to the end of the last answer, as the template writes it.
    seen = ""
    for i in range(len(prompt), len(messages)):
        if messages[i]["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:i])
        whole = tokenizer.apply_chat_template(messages[:i + 1], add_generation_prompt=False)
        if not (before.startswith(seen) and whole.startswith(before)):
            raise ValueError("the chat template writes a conversation and its beginning "
                             "differently, so answers can't be told apart")
        given += tokenizer.encode(before[len(seen):], True, hidden)
        ids = tokenizer.encode(whole[len(before):], True, hidden)
        answer, rest = _split_after_stop(tokenizer, ids)
        turns += [given, answer]
        given = rest
        seen = whole
    if not turns:
        raise ValueError("the completion has no message of the assistant")
    return turns


def _split_after_stop(tokenizer, ids: list[int]) -> tuple[list[int], list[int]]:
    """The ids up to the first stop token, which is added if there is none, and the ids after it."""
    for place, token in enumerate(ids):
        if token in tokenizer.stop_ids:
            return ids[:place + 1], ids[place + 1:]
    return ids + [tokenizer.eos_id], []


def encode_examples(examples: list[dict], path: str, fields) -> list[dict]:
    """Each example with fields(its columns), a dict, added.

    What can't be encoded, as messages without a template, is named by line."""
    encoded = []
    for example in examples:
        try:
            encoded.append({**example, **fields(example["columns"])})
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {example['line']}: {error}") from error
    return encoded


def drop_unusable(examples: list[dict], path: str, reason_not) -> list[dict]:
    """Drop the examples for which `reason_not(example)` is a text; say how many, where the first.

    ValueError if none is left."""
    kept = []
    # reason -> the lines that were dropped for it
    dropped = {}
    for example in examples:
        reason = reason_not(example)
        if reason:
            dropped.setdefault(reason, []).append(example["line"])
        else:
            kept.append(example)
    for reason, lines in dropped.items():
        print(f"{path}: dropped {len(lines)} of {len(examples)} examples, "
              f"{reason} (first: line {lines[0]})")
    if not kept:
        raise ValueError(f"{path}: none of {len(examples)} examples can be used")
    return kept


@functools.lru_cache(maxsize=2)
def draw_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n examples in an epoch. Kept: drawn anew, it would cost every step O(n)."""
    return numpy_rng(seed, epoch, "order of the data").permutation(n)


def take(examples: list[dict], n: int, seed: int, step: int) -> list[dict]:
    """The n examples of a step: epoch after epoch, each in an order of its own.

    The order comes from (seed, epoch)."""
    batch = []
    for i in range(step * n, (step + 1) * n):
        epoch, place = divmod(i, len(examples))
        order = draw_order(len(examples), seed, epoch)
        batch.append(examples[order[place]])
    return batch


def read_demonstrations(path: str, tokenizer, context: int) -> list[dict]:
    """Demonstrations of a JSONL file for SFT: {"turns": see encode_turns, "line", ...}.

    Of "messages", all answers are learned."""
    def encode_columns(columns):
        if "prompt" in columns:
            turns = encode_turns(tokenizer, columns["prompt"], columns["completion"])
        else:
            turns = encode_turns(tokenizer, [], columns["messages"])
        return {"turns": turns}

    def reason_not(example):
        turns = example["turns"]
        prompt, answers = turns[0], turns[1::2]
        if sum(map(len, turns)) > context:
            return f"longer than the context of {context} tokens"
        if not prompt:
            return "empty prompt"
        # An answer of one token is nothing but its stop token.
        if min(map(len, answers)) < 2:
            return "empty completion"
        return ""

    examples = read_jsonl(path, ("prompt", "completion"), instead="messages")
    return drop_unusable(encode_examples(examples, path, encode_columns), path, reason_not)


def hold_out(examples: list[dict], path: str, most: int) -> tuple[list[dict], list[dict]]:
    """What is trained on, and `most` of what is held out at most; see choose_side.

    What is held out is never trained on, used by evaluations or not. Where nothing is held out, of
    the file or of what can be used of it, evaluations use what is trained on."""
    train = [e for e in examples if e["side"] != "held out"]
    held_out = [e for e in examples if e["side"] != "train"]
    if not train:
        raise ValueError(f"{path}: all {len(examples)} examples that can be used are held out, by "
                         "a hash of their prompts: none is left to train on")
    if not held_out:
        held_out = train
    order = numpy_rng(0, 0, "held out").permutation(len(held_out))[:most]
    return train, [held_out[i] for i in order]


def repeat_each(examples: list[dict], n: int) -> list[dict]:
    """Each example n times in a row: the prompts of its group."""
    return [example for example in examples for _ in range(n)]


def pad_batch(rows: list[list[list[int]]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, alternately given and trained on, as one batch.

    A row is [prompt, answer], or [prompt, answer, next user turn, answer, ...].

    -> tokens (B, T) int64, right-padded with 0, and mask (B, T) bool, true on the answers."""
    B = len(rows)
    T = max(sum(map(len, row)) for row in rows)
    tokens = np.zeros((B, T), dtype=np.int64)
    mask = np.zeros((B, T), dtype=bool)
    for b, row in enumerate(rows):
        start = 0
        for k, ids in enumerate(row):
            end = start + len(ids)
            tokens[b, start:end] = ids
            mask[b, start:end] = k % 2 == 1
            start = end
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
