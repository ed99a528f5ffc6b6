"""What a checkpoint can do: accuracy, pass@k, length, share of answers that reason, KL, samples.

    python evaluate.py runs/grpo            a table and some samples
    python evaluate.py runs/grpo --json     the same numbers for a program
    python evaluate.py runs/grpo --chat     type prompts, read answers
    python evaluate.py runs/grpo_products   with the calculator, «what it said» in double arrows
    python evaluate.py MODEL --plan         what training it holds in memory; --plan --help: flags

A run is evaluated as it was trained: on the rows of its --data that it held out (or on fresh
problems of its built-in task), with its environment, reward, length and temperature, and its KL is
to the model that it started from. Flags overrule each of them. A plain model directory has sums for
a task and no reference. For pass@k an answer is right if its reward is over 0.5.
"""
import contextlib
import json
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rollout import Rollout
from support import parallel, plan
from support.cli import (DECODE_GRAPH, UserError, default_run, parse, refuse, script, setting,
                         user_errors)
from support.data import encode_prompt, hold_out, repeat_each
from support.environments import split_turns, start_environment
from support.graphs import prepare_for_decoding
from support.metrics import token_kl
from support.models import pick_device, torch_rng
from support.pretrained import load_pretrained
from support.rewards import load_reward, reward_answers
from support.rl import read_prompts
from support.run import digest, find_model, read_settings
from support.tokenizer import same_tokenizer
from task import MAX_NEW_TOKENS, TASKS, held_out_problems

# Of an answer: its reward, its ids, alternately sampled and told, whether it ended by itself.
Answer = tuple[float, list[list[int]], bool]


def answer(model, tokenizer, reward, examples: list[dict], max_new_tokens: int, temperature: float,
           generator=None, micro_batch_tokens: int = 8192, start=None,
           rows: int = 1) -> tuple[list[Answer], list[Rollout]]:
    """One answer to each example, and the rollouts that they are of.

    As many rows at a time as the KV cache holds micro_batch_tokens of, and at least `rows`. start:
    makes the environment of some examples, see `start_environment`; without it there is none."""
    answers, rollouts = [], []
    sampler = prepare_for_decoding(model)
    longest = max(len(example["ids"]) for example in examples) + max_new_tokens
    rows_at_once = max(rows, micro_batch_tokens // longest)
    for first in range(0, len(examples), rows_at_once):
        part = examples[first:first + rows_at_once]
        environment, stop_ids = start(part) if start else (None, tokenizer.stop_ids)
        rollout = parallel.generate(sampler, [example["ids"] for example in part], max_new_tokens,
                                    stop_ids, temperature, generator, micro_batch_tokens,
                                    environment)
        turns, finished = split_turns(rollout), rollout.finished.tolist()
        rewards = reward_answers(reward, part, [sum(ids, []) for ids in turns], finished,
                                 tokenizer, environment and environment.completions(turns))
        answers += zip(rewards, turns, finished)
        rollouts.append(rollout)
    return answers, rollouts


def mean_reward(answers: list[Answer]) -> float:
    return sum(reward for reward, _, _ in answers) / len(answers)


def evaluate(model, tokenizer, reward, examples: list[dict], config,
             shown: int = 6) -> tuple[dict[str, float], list[str]]:
    """-> {"eval_greedy", "eval_sampled"}: mean rewards; lines that show the first sampled answers.

    config: of a run, for its environment, max_new_tokens, temperature and micro_batch_tokens. The
    noise is the same every time: evaluations differ by the model only."""
    answer_all = partial(answer, model, tokenizer, reward, examples, config.max_new_tokens,
                         micro_batch_tokens=config.micro_batch_tokens,
                         start=partial(start_environment, config, tokenizer),
                         # A step's rollout fits: a GPU samples it in the time of a few rows.
                         rows=config.answers_per_step)
    greedy, _ = answer_all(temperature=0.0)
    sampled, _ = answer_all(temperature=config.temperature,
                            generator=torch_rng(0, 0, "evaluation"))
    lines = [sample_line(tokenizer, example, *found)
             for example, found in zip(examples[:shown], sampled)]
    return {"eval_greedy": mean_reward(greedy), "eval_sampled": mean_reward(sampled)}, lines


def sample_line(tokenizer, example: dict, reward: float, turns: list[list[int]], finished) -> str:
    return f"[{reward:.3g}] {tokenizer.decode(example['ids'])}{show_turns(tokenizer, turns)}"


def show_turns(tokenizer, turns: list[list[int]], skip_special: bool = False) -> str:
    """An answer's text, with «what the environment wrote» in double arrows."""
    texts = [tokenizer.decode(ids, skip_special) for ids in turns]
    return "".join(f"«{text}»" if i % 2 else text for i, text in enumerate(texts))


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the unbiased estimate of P(one of k samples is right), c of n are.

    Chen et al. 2021, eq. 1. Here an answer is right if its reward is over 0.5."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


# ------------------------------------------------------------------------------------- the script

@dataclass(kw_only=True)
class Config:
    data: str = setting("", "a JSONL file of prompts that were not trained on; if not given, the "
                        "rows that the run held out of its own, or the built-in task")
    reward: str = setting("", "verifier, exact (the column `answer`), or FILE.py:FUNCTION; "
                          "the run's own if not given")
    task: str = setting("", "the built-in task; the run's own, else sums, if not given",
                        choices=("", *TASKS))
    environment: str = setting("", "FILE.py:FUNCTION, what says the next messages of a "
                               "conversation; the run's own if not given")
    max_turns: int | None = setting(None, "turns of the assistant in a conversation, at most; the "
                                    "run's own, else 4, if not given", low=1)
    problems: int = setting(512, "how many fresh problems, or rows, at most", low=1)
    samples: int = setting(8, "samples per problem, for sampled accuracy and pass@k (right: the "
                           "reward is over 0.5)", low=1)
    reference: str = setting("", "what KL is measured to: a run or model directory; what the run "
                             "started from, if not given")
    max_new_tokens: int | None = setting(None, "tokens of an answer, at most; the run's own, "
                                         "else 32, of long sums 40, if not given", low=1)
    temperature: float | None = setting(None, "of the sampled answers; the run's own, else 1, "
                                        "if not given", low=0.01)
    micro_batch_tokens: int = setting(8192, "tokens that go through the model at once", low=1)
    device: str = setting("", "cuda, mps or cpu; the first of them there is, if not given")
    dtype: str = setting(
        "", "of the matrix products; if not given, bfloat16 on a GPU that has it, else float32",
        choices=("", "float32", "bfloat16"))
    decode_graph: bool = setting(False, DECODE_GRAPH)
    json: bool = setting(False, "print one JSON object and nothing else")
    chat: bool = setting(False, "read prompts from the keyboard")

    def check(self, given: dict) -> None:
        if self.chat:
            refuse(given, "data", "reward", "problems", "samples", "reference", "json",
                   why="with --chat")


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        path, argv = argv[0], argv[1:]
    elif {"-h", "--help"} & set(argv):
        path = ""
    else:
        raise UserError("expected a run or model directory first, such as runs/grpo")
    if "--plan" in argv:
        return plan.main(path, [flag for flag in argv if flag != "--plan"])
    config = parse(Config, __doc__, argv)
    device = pick_device(config)
    with user_errors():
        run = read_settings(Path(path))
        if run.get("algorithm") == "rm":
            raise ValueError(f"{path}: a reward model, which gives no answers; expected a policy's "
                             "run or model directory")
        choose_environment(config, run)
        longest = run.get("max_new_tokens", MAX_NEW_TOKENS[config.task])
        config.max_new_tokens = config.max_new_tokens or longest
        config.temperature = config.temperature or run.get("temperature", 1.0)
        model, tokenizer = load_pretrained(find_model(path), torch.float32, device)
        if config.chat:
            return chat(model, tokenizer, config)
        longest = model.config.max_seq_len - config.max_new_tokens
        # What is said of the data must not stand before the JSON object.
        with contextlib.redirect_stdout(sys.stderr):
            examples, reward = load_examples(path, config, run, tokenizer, longest)
        length = max(len(example["ids"]) for example in examples) + config.max_new_tokens
        reference = load_reference(path, config, run, model, tokenizer, length)

    answer_all = partial(answer, model, tokenizer, reward, max_new_tokens=config.max_new_tokens,
                         micro_batch_tokens=config.micro_batch_tokens,
                         start=partial(start_environment, config, tokenizer),
                         rows=run.get("prompts_per_step", 1) * run.get("group_size", 1))
    # Nor must what the user's functions print.
    with contextlib.redirect_stdout(sys.stderr):
        greedy, _ = answer_all(examples, temperature=0.0)
        sampled, rollouts = answer_all(repeat_each(examples, config.samples),
                                       temperature=config.temperature,
                                       generator=torch_rng(0, 0, "evaluation"))
    result = {"model": str(path), "problems": len(examples), "greedy": mean_reward(greedy),
              **summary(sampled, config.samples, tokenizer)}
    if reference is not None:
        # In nats per answer, exact over the vocabulary.
        result["kl"] = total_kl(model, reference, rollouts, config) / len(sampled)
    if config.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:10} {value:.3f}" if isinstance(value, float) else f"{name:10} {value}")
    print("\npass@k: the chance that one of k answers is right. Right: its reward is over 0.5")
    print("\nsampled answers [reward]:")
    for example, found in zip(examples[:8], sampled[::config.samples]):
        print("  " + sample_line(tokenizer, example, *found))


def summary(answers: list[Answer], samples: int, tokenizer) -> dict[str, float]:
    """What can be said of `samples` answers to each problem, in consecutive rows."""
    n = len(answers)
    n_right = []
    for start in range(0, n, samples):
        n_right.append(sum(reward > 0.5 for reward, _, _ in answers[start:start + samples]))
    result = {"sampled": mean_reward(answers)}
    for k in (1, 2, 4, 8, 16, 32, 64):
        if k <= samples:
            chances = [pass_at_k(samples, c, k) for c in n_right]
            result[f"pass@{k}"] = sum(chances) / len(chances)
    reasons, n_sampled, n_calls = 0, 0, 0
    for _, turns, _ in answers:
        sampled = turns[::2]
        reasons += any("</think>" in tokenizer.decode(ids) for ids in sampled)
        n_sampled += sum(map(len, sampled))
        n_calls += len(turns) // 2
    result["length"] = n_sampled / n
    result["finished"] = sum(finished for _, _, finished in answers) / n
    result["reasons"] = reasons / n
    if n_calls:
        result["calls"] = n_calls / n
    return result


def total_kl(model, reference, rollouts: list[Rollout], config) -> float:
    """The exact KL, summed over the tokens of all answers."""
    total = 0.0
    for rollout in rollouts:
        kl = parallel.map_micro_batches(partial(token_kl, model), reference, rollout.tokens,
                                        rollout.mask, config.micro_batch_tokens,
                                        config.temperature)
        total += kl.sum(1).sum().item()
    return total


def choose_environment(config, run: dict) -> None:
    """Set the task, the environment and the number of turns: flags overrule what the run had."""
    has_data = config.data or run.get("data")
    if has_data and config.task:
        raise ValueError("--task has no effect with data")
    if config.environment and not (has_data or config.chat):
        raise ValueError("--environment needs --data with prompts of messages")
    config.task = config.task or run.get("task", "sums")
    config.environment = config.environment or run.get("environment", "")
    config.max_turns = config.max_turns or run.get("max_turns", 4)


def started_from(run: dict) -> tuple[str, str]:
    """The model that a run with these settings started from.

    -> its directory, "" without one, and its SHA-256, "" if it wasn't noted."""
    noted = run.get("inputs", {}).get("model", {})
    # What a run that didn't note it takes if no --model is given.
    is_start = run.get("algorithm", "sft") == "sft"
    default = "" if is_start else default_run("sft", run.get("task", "sums"))
    return noted.get("path") or run.get("model") or default, noted.get("sha256", "")


def load_reference(path: str, config, run: dict, model, tokenizer, length: int):
    """The model that KL is measured to, or None.

    ValueError if it can't read what `model` writes: rows of `length` ids, each of which must mean
    the same to both."""
    start, sha256 = (config.reference, "") if config.reference else started_from(run)
    if not start:
        return None
    files = [Path(start) / "config.json", Path(start) / "model" / "config.json"]
    lost = ""
    if not config.reference and not any(file.is_file() for file in files):
        lost = "isn't there any more"
    elif sha256 and digest(Path(start)) != sha256:
        lost = "is another model now"
    if lost:
        print(f"{path}: {start}, which it started from, {lost}: KL is left out", file=sys.stderr)
        return None
    device = model.lm_head.weight.device
    reference, other = load_pretrained(find_model(start), torch.float32, device)
    found, expected = reference.config, model.config
    trouble = ""
    if not same_tokenizer(tokenizer, other):
        trouble = f"it has another tokenizer than {path}"
    elif found.vocab_size != expected.vocab_size:
        trouble = f"its vocabulary has {found.vocab_size} rows, expected {expected.vocab_size}"
    elif found.max_seq_len < length:
        trouble = f"its context is {found.max_seq_len} tokens, expected at least {length}"
    if trouble:
        raise ValueError(f"{start}: KL can't be measured to this model: {trouble}")
    return reference


def load_examples(path: str, config, run: dict, tokenizer, longest: int):
    """-> prompts that were not trained on, `longest` tokens at most, and what rewards answers."""
    data = config.data or run.get("data", "")
    reward = config.reward or run.get("reward", "")
    if config.data and not reward:
        raise ValueError("--data needs --reward exact or FILE.py:FUNCTION")
    if data and not reward:
        lacks = "on a reward model" if run["algorithm"] in ("ppo", "grpo") else "without a reward"
        raise ValueError(f"{path}: was trained on {data} and {lacks}: "
                         "expected --reward exact or FILE.py:FUNCTION")
    function = load_reward(reward or "verifier", data)
    if not data:
        return held_out_problems(config.task, config.problems, tokenizer, longest), function
    examples = read_prompts(data, reward, tokenizer, longest, config.environment)
    if not config.data:
        _, examples = hold_out(examples, data, config.problems)
    return examples[:config.problems], function


def chat(model, tokenizer, config) -> None:
    """Each line typed is a prompt; an empty line or end of file ends."""
    if config.environment and tokenizer.chat_template is None:
        raise ValueError("--environment speaks in messages, and this model has no chat template")
    model = prepare_for_decoding(model)
    examples = {"sums": "17+58+23=", "long_sums": "17+58+23+41=", "products": "37*84="}
    print(f"type a prompt such as {examples[config.task]} and Enter; an empty line ends")
    while line := read_line():
        prompt = line if tokenizer.chat_template is None else [{"role": "user", "content": line}]
        ids = encode_prompt(tokenizer, prompt)
        environment, stop_ids = start_environment(config, tokenizer, [{"prompt": prompt}])
        try:
            rollout = parallel.generate(model, [ids], config.max_new_tokens, stop_ids,
                                        config.temperature, None, config.micro_batch_tokens,
                                        environment)
            [turns] = split_turns(rollout)
            print(show_turns(tokenizer, turns, skip_special=True))
        except ValueError as error:
            print(error)


def read_line() -> str:
    """What is typed, without its end; "" at the end of file."""
    if sys.stdin.isatty():
        return input("> ")
    return sys.stdin.readline().rstrip("\n")


if __name__ == "__main__":
    script(main)
