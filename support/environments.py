"""What goes on in the middle of an answer: the built-in calculator, or a user's --environment."""
import copy
import functools
import sys
import threading
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from rollout import Rollout
from support.cli import UserError
from support.data import encode_turns, holds_messages
from support.parallel import gather_dict
from support.rewards import (columns_of, keep_process_settings, load_function, name_of, place_of,
                             where_it_failed)
from task import Calculator

# After so many seconds, people are told what it is that they wait for.
SLOW = 10


def start_environment(config, tokenizer, examples: list[dict]):
    """-> what `generate` asks where an answer to one of these examples stops, None if nothing is;
    and the ids that stop one."""
    if config.task == "products":
        calculator = Calculator(tokenizer)
        return calculator, calculator.stop_ids
    if config.environment:
        environment = Conversations(load_environment(config.environment), tokenizer, examples,
                                    config.max_turns)
        return environment, tokenizer.stop_ids
    return None, tokenizer.stop_ids


@functools.cache
def load_environment(spec: str):
    """--environment FILE.py:FUNCTION. The file runs once, as the user's own code."""
    return load_function("--environment", spec, "FILE.py:FUNCTION")


def told_mask(rollout: Rollout) -> Tensor:
    """Where the environment wrote: in an answer, and not sampled. (B, T) bool"""
    column = torch.arange(rollout.tokens.shape[1], device=rollout.tokens.device)
    in_answer = (column >= rollout.prompt_lengths[:, None]) & (column < rollout.lengths[:, None])
    return in_answer & ~rollout.mask


def split_turns(rollout: Rollout) -> list[list[list[int]]]:
    """The ids of each answer, alternately sampled and told: [[call], [result], [answer]]."""
    answers = []
    columns = rollout.tokens.cpu(), rollout.mask.cpu(), told_mask(rollout).cpu()
    for tokens, mask, told in zip(*columns):
        in_answer = mask | told
        _, lengths = told[in_answer].unique_consecutive(return_counts=True)
        turns = tokens[in_answer].split(lengths.tolist())
        answers.append([turn.tolist() for turn in turns])
    return answers


class Conversations:
    """A user's environment, for the rows of one batch.

    It is a function of conversations, lists of messages, that returns for each the messages that
    come next, as a tool's output or a user's next turn, or None: it is over. The data's other
    fields are its columns, as a reward function's. All rows that stop at one step are asked about
    in one call. What it says is rendered by the chat template as in a demonstration; what was
    sampled stays the ids that it was."""

    def __init__(self, function, tokenizer, examples: list[dict], max_turns: int):
        self.function = function
        self.name = name_of(function)
        self.tokenizer = tokenizer
        self.examples = examples
        self.max_turns = max_turns
        # Row -> the messages since its prompt.
        self.said = {}
        # The rows that wait for a reply, and row -> the ids of it.
        self.waiting, self.replies = [], {}

    def __call__(self, row: int, ids: list[int]):
        """What `generate` asks: the reply comes when it is asked for the first one of a step."""
        said = self.said.setdefault(row, [])
        said.append(self._read_turn(ids))
        n_turns = sum(message["role"] == "assistant" for message in said)
        if n_turns >= self.max_turns:
            return None
        self.waiting.append(row)
        return partial(self._reply, row)

    def _read_turn(self, ids: list[int]) -> dict:
        return {"role": "assistant", "content": self.tokenizer.decode(ids, skip_special=True)}

    def _reply(self, row: int) -> list[int] | None:
        if self.waiting:
            rows, self.waiting = self.waiting, []
            for asked, messages in zip(rows, self._ask(rows)):
                self.replies[asked] = self._encode(asked, messages)
        return self.replies.pop(row)

    def _ask(self, rows: list[int]) -> list[list[dict] | None]:
        """Call the function. UserError with status 1 if it fails or doesn't give what it should."""
        examples = [self.examples[row] for row in rows]
        conversations = [copy.deepcopy(self.examples[row]["prompt"] + self.said[row])
                         for row in rows]
        places = ", ".join(map(place_of, examples))
        note = f"waiting for the environment {self.name}, on {places[:60]}"
        patience = threading.Timer(SLOW, print, [note], {"file": sys.stderr, "flush": True})
        patience.daemon = True
        patience.start()
        try:
            with keep_process_settings():
                given = self.function(conversations, **columns_of(examples))
                is_list = isinstance(given, Iterable) and not isinstance(given, (str, dict, set))
                # A generator runs only now.
                given = list(given) if is_list else given
        except (Exception, SystemExit) as error:
            raise UserError(f"the environment {self.name} failed {where_it_failed(error)}, "
                            f"on {places[:60]}", status=1) from error
        finally:
            patience.cancel()
        if not is_list or len(given) != len(rows):
            found = f"{len(given)} values" if is_list else repr(given)[:60]
            raise UserError(f"the environment {self.name} gave {found} for {len(rows)} "
                            f"conversations ({places[:60]}), expected a list of one reply each",
                            status=1)
        for example, messages in zip(examples, given):
            is_reply = holds_messages(messages) and all(m["role"] != "assistant" for m in messages)
            if messages is not None and not is_reply:
                raise UserError(f"the environment {self.name} gave {repr(messages)[:60]} on "
                                f'{place_of(example)}, expected None or a list of {{"role", '
                                '"content"}} messages, none of them the assistant\'s', status=1)
        return given

    def _encode(self, row: int, messages: list[dict] | None) -> list[int] | None:
        """The ids between the stop token of a row's last turn and the beginning of its next one."""
        if messages is None:
            return None
        self.said[row] += messages
        prompt = self.examples[row]["prompt"]
        # What the template writes before a turn doesn't depend on what the turn will say.
        next_turn = {"role": "assistant", "content": "yes"}
        try:
            return encode_turns(self.tokenizer, prompt, self.said[row] + [next_turn])[-2]
        except ValueError as error:
            raise UserError(f"the conversation on {place_of(self.examples[row])}: {error}",
                            status=1) from error

    def completions(self, turns: list[list[list[int]]]) -> list[list[dict]]:
        """The messages since the prompt of every row, whoever sampled it: what rewards read.

        turns: of all rows, see `split_turns`."""
        said = gather_dict(self.said)
        completions = []
        for row, ids in enumerate(turns):
            messages = said.get(row, [])
            n_turns = sum(message["role"] == "assistant" for message in messages)
            # A turn that was cut off, or told and not answered, asked for nothing.
            if len(ids) % 2 and n_turns <= len(ids) // 2:
                messages = messages + [self._read_turn(ids[-1])]
            completions.append(messages)
        return completions
