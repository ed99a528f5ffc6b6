"""What a checkpoint can do: accuracy, pass@k, length, share of answers that reason, KL to its reference, samples.

    python evaluate.py runs/grpo            a table and some samples
    python evaluate.py runs/grpo --json     the same numbers for a program
    python evaluate.py runs/grpo --chat     type prompts, read answers
"""
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from common import UserError, model_directory, parse, pick_device, script, setting, torch_rng, user_errors
from data import encode_prompt, held_out_problems, load_reward, read_prompts, reward_answers
from pretrained import load_pretrained
from rollout import generate, in_micro_batches, token_kl


def answer(model, tokenizer, reward, examples: list[dict], max_new_tokens: int, temperature: float, generator=None,
           micro_batch_tokens: int = 8192):
    """One answer to each example. -> rewards (list), responses (list of ids), finished (list), Rollouts

    As many rows at a time as the KV cache holds micro_batch_tokens of."""
    rewards, responses, finished, rollouts = [], [], [], []
    longest = max(len(e["ids"]) for e in examples) + max_new_tokens
    rows_at_once = max(1, micro_batch_tokens // longest)
    for start in range(0, len(examples), rows_at_once):
        some = examples[start:start + rows_at_once]
        rollout = generate(model, [e["ids"] for e in some], max_new_tokens, tokenizer.stop_ids, temperature, generator,
                           micro_batch_tokens=micro_batch_tokens)
        rewards += reward_answers(reward, some, rollout.responses(), rollout.finished.tolist(), tokenizer)
        responses += rollout.responses()
        finished += rollout.finished.tolist()
        rollouts.append(rollout)
    return rewards, responses, finished, rollouts


def evaluate(model, tokenizer, reward, examples: list[dict], max_new_tokens: int, temperature: float = 1.0,
             micro_batch_tokens: int = 8192, shown: int = 6):
    """-> {"eval_greedy", "eval_sampled"}: mean rewards; and lines that show the first few sampled answers.

    The same noise every time: evaluations differ by the model only."""
    greedy, *_ = answer(model, tokenizer, reward, examples, max_new_tokens, 0.0, micro_batch_tokens=micro_batch_tokens)
    sampled, responses, *_ = answer(model, tokenizer, reward, examples, max_new_tokens, temperature, torch_rng(0, 0, "evaluation"),
                                    micro_batch_tokens)
    lines = [sample_line(tokenizer, *row) for row in zip(examples[:shown], responses, sampled)]
    return {"eval_greedy": sum(greedy) / len(greedy), "eval_sampled": sum(sampled) / len(sampled)}, lines


def sample_line(tokenizer, example, response, reward) -> str:
    prompt = tokenizer.decode(example["ids"])
    return f"[{reward:.3g}] {prompt}{tokenizer.decode(response)}"


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the unbiased estimate of P(one of k samples is right) when c of n are. Chen et al. 2021, eq. 1."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@dataclass(kw_only=True)
class Config:
    data: str = setting("", "a JSONL file of prompts that were not trained on, instead of the built-in task")
    reward: str = setting("", "verifier, exact (the column `answer`), or FILE.py:FUNCTION; needed with --data")
    problems: int = setting(512, "how many fresh problems", low=1)
    samples: int = setting(8, "samples a problem, for sampled accuracy and pass@k", low=1)
    reference: str = setting("", "what KL is measured to: a run or model directory; runs/sft if not given")
    max_new_tokens: int = setting(32, "tokens of an answer", low=1)
    temperature: float = setting(1.0, "of the sampled answers", low=0.01)
    device: str = setting("", "cuda, mps or cpu; the first of them there is, if not given")
    dtype: str = setting("", "of the matrix products: float32 on a CPU, bfloat16 on a GPU if not given", choices=("", "float32", "bfloat16"))
    json: bool = setting(False, "print one JSON object and nothing else")
    chat: bool = setting(False, "read prompts from the keyboard")


def chat(model, tokenizer, config) -> None:
    """Each line typed is a prompt; an empty line or end of file ends."""
    print("type a prompt such as 17+58+23= and Enter; an empty line ends")
    while line := (sys.stdin.readline() if not sys.stdin.isatty() else input("> ") + "\n").rstrip("\n"):
        ids = encode_prompt(tokenizer, line if tokenizer.chat_template is None else [{"role": "user", "content": line}])
        try:
            rollout = generate(model, [ids], config.max_new_tokens, tokenizer.stop_ids, config.temperature)
            print(tokenizer.decode(rollout.responses()[0], skip_special=True))
        except ValueError as error:
            print(error)


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        path, argv = argv[0], argv[1:]
    elif {"-h", "--help"} & set(argv):
        path = ""
    else:
        raise UserError("expected a run or model directory first, such as runs/grpo")
    config = parse(Config, __doc__, argv)
    device = pick_device(config)
    with user_errors():
        model, tokenizer = load_pretrained(model_directory(path), torch.float32, device)
        if config.chat:
            return chat(model, tokenizer, config)
        if config.data and not config.reward:
            raise ValueError("--data needs --reward exact or FILE.py:FUNCTION")
        reward = load_reward(config.reward or "verifier", config.data)
        longest = model.config.max_seq_len - config.max_new_tokens
        examples = (read_prompts(config.data, config.reward, tokenizer, longest)[:config.problems] if config.data
                    else held_out_problems(config.problems, tokenizer, longest))
        reference = config.reference or ("runs/sft" if Path("runs/sft/model/config.json").is_file() else "")
        reference = load_pretrained(model_directory(reference), torch.float32, device)[0] if reference else None

    greedy, greedy_responses, *_ = answer(model, tokenizer, reward, examples, config.max_new_tokens, 0.0)
    repeated = [e for e in examples for _ in range(config.samples)]
    rewards, responses, finished, rollouts = answer(
        model, tokenizer, reward, repeated, config.max_new_tokens, config.temperature, torch_rng(0, 0, "evaluation"))
    right = [sum(r > 0.5 for r in rewards[i:i + config.samples]) for i in range(0, len(rewards), config.samples)]
    result = {"model": str(path), "problems": len(examples), "greedy": sum(greedy) / len(greedy), "sampled": sum(rewards) / len(rewards)}
    for k in (k for k in (1, 2, 4, 8, 16, 32, 64) if k <= config.samples):
        result[f"pass@{k}"] = sum(pass_at_k(config.samples, c, k) for c in right) / len(right)
    result["length"] = sum(map(len, responses)) / len(responses)
    result["finished"] = sum(finished) / len(finished)
    result["reasons"] = sum("</think>" in tokenizer.decode(r) for r in responses) / len(responses)
    if reference is not None:
        kl = sum(in_micro_batches(lambda tokens, mask: token_kl(model, reference, tokens, mask, config.temperature).sum(1),
                                  r.tokens, r.mask, 8192).sum().item() for r in rollouts)
        result["kl"] = kl / len(responses)                       # nats an answer, exact over the vocabulary
    if config.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:10} {value:.3f}" if isinstance(value, float) else f"{name:10} {value}")
    print("\nsampled answers [reward]:")
    for row in zip(repeated[::config.samples][:8], responses[::config.samples], rewards[::config.samples]):
        print("  " + sample_line(tokenizer, *row))


if __name__ == "__main__":
    script(main)
