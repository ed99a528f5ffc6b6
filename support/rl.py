"""What PPO and GRPO share and neither is about."""
import json

from support.data import encode, encode_prompt, hold_out, read_jsonl, take, usable
from support.models import numpy_rng
from support.rewards import right_answer
from task import held_out_problems, sum_problems


def read_prompts(path: str, reward: str, tokenizer, longest: int) -> list[dict]:
    """Prompts of a JSONL file for PPO and GRPO, `longest` tokens at most.

    Examples as read_jsonl gives them, with "prompt" and its "ids"; "columns" are the other fields,
    None where a line lacks one that others have. ValueError names the line and the field."""
    examples = read_jsonl(path, ("prompt",))
    if reward == "exact":
        for example in examples:
            _check_answer(example["columns"], f"{path}, line {example['line']}")
    if reward:
        for example in examples:
            _check_names(example["columns"], f"{path}, line {example['line']}")

    # The names of all lines' fields, in the order in which they first come. A dict keeps it.
    names = {}
    for example in examples:
        names.update(dict.fromkeys(example["columns"]))
    names.pop("prompt", None)

    def encode_columns(columns):
        prompt = columns["prompt"]
        others = {name: columns.get(name) for name in names}
        return {"prompt": prompt, "ids": encode_prompt(tokenizer, prompt), "columns": others}

    def reason_not(example):
        if not example["ids"]:
            return "empty prompt"
        if len(example["ids"]) > longest:
            return (f"prompt over the {longest} tokens that --max-new-tokens leaves "
                    "of the context")
        return ""

    return usable(encode(examples, path, encode_columns), path, reason_not)


def _check_answer(columns: dict, place: str) -> None:
    """ValueError unless the field `answer` says what is right.

    place: how an error names the line."""
    answer = columns.get("answer")
    # To Python, true and false are numbers as well.
    is_answer = isinstance(answer, (str, int, float)) and not isinstance(answer, bool)
    if not is_answer or right_answer(answer) == "":
        found = json.dumps(answer)[:60] if "answer" in columns else "missing"
        raise ValueError(f"{place}: answer is {found}, "
                         "expected text or a number for --reward exact")


def _check_names(columns: dict, place: str) -> None:
    """ValueError if a field has the name of something else that a reward function is given.

    place: how an error names the line."""
    for name in ("prompts", "completions", "finished"):
        if name in columns:
            raise ValueError(f"{place}: has a field {name}, which is what the "
                             "reward function is given of the answers; expected another name")


def load_prompts(config, tokenizer, context: int):
    """A function step -> examples of that step, and the examples of every evaluation."""
    longest = context - config.max_new_tokens
    if config.data:
        examples = read_prompts(config.data, config.reward, tokenizer, longest)
        train, held_out = hold_out(examples, config.data, config.eval_problems)

        def batch(step):
            return take(train, config.prompts_per_step, config.seed, step)

        return batch, held_out

    def batch(step):
        rng = numpy_rng(config.seed, step, f"{config.algorithm} prompts")
        problems = sum_problems(config.prompts_per_step, rng)
        return [{**p, "ids": encode_prompt(tokenizer, p["prompt"])} for p in problems]

    return batch, held_out_problems(config.eval_problems, tokenizer, longest)
