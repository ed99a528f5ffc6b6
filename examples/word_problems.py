"""Write word problems with numbers for answers: word_problems_sft.jsonl, word_problems.jsonl and
word_problems_test.jsonl.

    python examples/word_problems.py

The first has 1,200 right answers, two in five of them worked out step by step. The second asks
2,000 other questions and has nothing but each one's `answer`: which style to answer in is for
reinforcement learning to find out. The third keeps 200 to test on.
"""
import json
import random
from pathlib import Path

NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas",
         "Kira", "Leo"]
THINGS = ["apples", "books", "cards", "coins", "marbles", "pencils", "shells", "stamps",
          "stickers", "tickets"]


def problem(rng: random.Random) -> dict:
    """A question of two steps, an answer in one of two styles, and the number alone."""
    name, things, kind = rng.choice(NAMES), rng.choice(THINGS), rng.randrange(3)
    a, b = ((rng.randint(2, 5), rng.randint(2, 5)) if kind == 2
            else (rng.randint(3, 12), rng.randint(2, 9)))
    first = a * b if kind == 2 else a + b
    c = rng.randint(2, 6) if kind == 0 else rng.randint(1, min(6, first - 1))
    story = [f"{name} has {a} {things}, finds {b} more, and then {c} more.",
             f"{name} has {a} {things}, finds {b} more, and loses {c}.",
             f"{name} has {a} bags of {b} {things} and loses {c} {things}."][kind]
    answer = first + c if kind == 0 else first - c
    work = (f" {a} {'*' if kind == 2 else '+'} {b} = {first}."
            f" {first} {'-' if kind else '+'} {c} = {answer}. So: {answer}")
    return {"prompt": f"Question: {story} How many {things} are there now?\nAnswer:",
            "completion": work if rng.random() < 0.4 else f" {answer}",
            "answer": str(answer)}


def problems(rng: random.Random, n: int, but_not=()) -> list[dict]:
    """n different ones."""
    found = {}
    while len(found) < n:
        p = problem(rng)
        if p["prompt"] not in but_not:
            found[p["prompt"]] = p
    return list(found.values())


def main() -> None:
    rng = random.Random(0)
    train = problems(rng, 3200)
    test = problems(rng, 200, but_not={p["prompt"] for p in train})
    for name, part, fields in (
            ("word_problems_sft.jsonl", train[:1200], ("prompt", "completion")),
            ("word_problems.jsonl", train[1200:], ("prompt", "answer")),
            ("word_problems_test.jsonl", test, ("prompt", "answer"))):
        Path(name).write_text(
            "".join(json.dumps({field: p[field] for field in fields}) + "\n" for p in part),
            encoding="utf-8")
        print(f"{name}: {len(part)} lines")


if __name__ == "__main__":
    main()
