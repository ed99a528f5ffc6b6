r"""Word problems with numbers that a small model can't multiply, and a calculator that it may ask.

    python examples/calculator.py

writes three files. calculator_sft.jsonl has 1,200 conversations that end with the right answer; in
three of ten the assistant asks the calculator, `[37*84-57]`, which answers in a message of its own.
calculator.jsonl asks 2,000 other questions and has nothing but each one's `answer`.
calculator_test.jsonl keeps 200 to test on. And this file is the environment, a function of the
conversations that wait for a reply:

    python train_sft.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data calculator_sft.jsonl \
        --out runs/calculator_sft --steps 40 --batch-size 8 --lr 1e-4 --micro-batch-tokens 1024 \
        --eval-problems 16
    python train_grpo.py --model runs/calculator_sft --data calculator.jsonl --reward exact \
        --environment examples/calculator.py:calculator --max-turns 2 --max-new-tokens 40 \
        --out runs/calculator --steps 4 --prompts-per-step 3 --minibatches 1 --lr 4e-5 \
        --micro-batch-tokens 2048 --eval-problems 12
    python evaluate.py runs/calculator --data calculator_test.jsonl --reward exact --problems 40 \
        --samples 2

Of the 80 sampled answers 0.28 are right after SFT, as often as it asks, and 0.99 after four steps
of 24 answers, when it always asks. Greedily it asks from the start, as `[` is likelier than any one
first digit. On one core of a busy machine SFT took 13 minutes and GRPO 7.
"""
import json
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from task import calculate  # noqa: E402

NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas"]
THINGS = ["apples", "books", "cards", "coins", "marbles", "pencils", "shells", "stamps"]


def calculator(conversations: list[list[dict]], **columns) -> list[list[dict] | None]:
    """The result of what stands in square brackets at the end of a turn; without it, nothing."""
    replies = []
    for messages in conversations:
        asked = re.search(r"\[([^\[\]]*)\]\s*$", messages[-1]["content"])
        if asked:
            replies.append([{"role": "tool", "content": calculate(asked.group(1))}])
        else:
            replies.append(None)
    return replies


def problem(rng: random.Random) -> dict:
    """A question of two steps, a right conversation in one of two styles, and the number alone."""
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(11, 99)
    sign, does = rng.choice([("+", "finds"), ("-", "loses")])
    question = (f"{name} has {a} bags of {b} {things} and {does} {c} {things}. How many {things} "
                "are there now? A calculator answers what you write in square brackets.")
    prompt = [{"role": "user", "content": question}]
    call = f"{a}*{b}{sign}{c}"
    answer = calculate(call)
    completion = [{"role": "assistant", "content": answer}]
    if rng.random() < 0.3:
        completion = [{"role": "assistant", "content": f"[{call}]"},
                      {"role": "tool", "content": answer}] + completion
    return {"messages": prompt + completion, "prompt": prompt, "answer": answer}


def problems(rng: random.Random, n: int, but_not=()) -> list[dict]:
    """n different ones."""
    found = {}
    while len(found) < n:
        p = problem(rng)
        question = p["prompt"][0]["content"]
        if question not in but_not:
            found[question] = p
    return list(found.values())


def main() -> None:
    rng = random.Random(0)
    train = problems(rng, 3200)
    test = problems(rng, 200, but_not={p["prompt"][0]["content"] for p in train})
    for name, part, fields in (
            ("calculator_sft.jsonl", train[:1200], ("messages",)),
            ("calculator.jsonl", train[1200:], ("prompt", "answer")),
            ("calculator_test.jsonl", test, ("prompt", "answer"))):
        lines = [json.dumps({field: p[field] for field in fields}) + "\n" for p in part]
        Path(name).write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(part)} lines")


if __name__ == "__main__":
    main()
