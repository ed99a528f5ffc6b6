"""What PPO and GRPO share and neither is about."""
import json

from support.data import encode, encode_prompt, hold_out, read_jsonl, take, usable
from support.models import numpy_rng
from support.rewards import right_answer
from task import held_out_problems, sum_problems


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
