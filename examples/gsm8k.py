"""GSM8K's files as this project reads them: gsm8k_sft.jsonl, gsm8k.jsonl and gsm8k_test.jsonl.

    git clone https://github.com/openai/grade-school-math
    python examples/gsm8k.py grade-school-math/grade_school_math/data/train.jsonl \\
        grade-school-math/grade_school_math/data/test.jsonl

A row has a `question`, and an `answer` that is worked out and ends in "#### 72". The first file
has the training rows as demonstrations, without the calculator's notes ("48/2 = <<48/2=24>>24").
The second has their questions and numbers only, for reinforcement learning, and the third those of
the test rows. The Parquet files of the Hugging Face hub (openai/gsm8k, main/) are read as well, if
pyarrow is installed.
"""
import argparse
import json
import re
import sys
from pathlib import Path

INSTRUCTION = ('Think step by step, and end with a line "#### " and the answer, '
               'which is one number without a unit.')
NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
WRITTEN = ("gsm8k_sft.jsonl", "gsm8k.jsonl", "gsm8k_test.jsonl")


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """The rows of a JSONL or Parquet file, each after its place as an error names it."""
    if path.suffix != ".parquet":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None
        return [(f"{path}, line {n}", parse(line, f"{path}, line {n}"))
                for n, line in enumerate(lines, 1) if line.strip()]
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: to read Parquet needs a package: pip install pyarrow") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None
    return [(f"{path}, row {n}", row) for n, row in enumerate(rows, 1)]


def parse(line: str, place: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: found {type(row).__name__}, expected an object")
    return row


def convert(row: dict, place: str, instruction: str) -> dict:
    """-> {"prompt", "completion": messages, "answer": the number}. ValueError names the place."""
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str):
            found = json.dumps(row[field])[:60] if field in row else "missing"
            raise ValueError(f"{place}: {field} is {found}, expected text")
    work, mark, stated = row["answer"].rpartition("####")
    if not mark:
        raise ValueError(f'{place}: answer has no "####", expected one before the number')
    # In GSM8K, commas stand between thousands and nowhere else.
    number = stated.strip().replace(",", "").removesuffix(".")
    if not NUMBER.fullmatch(number):
        raise ValueError(f"{place}: after #### stands {stated.strip()[:60]!r}, expected a number")
    work = re.sub("<<.*?>>", "", work).strip()
    question = f"{row['question'].strip()}\n{instruction}"
    return {"prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": f"{work}\n#### {number}"}],
            "answer": number}


def write(name: str, examples: list[dict], fields: tuple[str, ...]) -> None:
    lines = [json.dumps({field: example[field] for field in fields}, ensure_ascii=False)
             for example in examples]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} lines")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="GSM8K's train.jsonl, or its Parquet file")
    parser.add_argument("test", type=Path, help="GSM8K's test.jsonl, or its Parquet file")
    parser.add_argument("--instruction", default=INSTRUCTION,
                        help="what each prompt says after the question [%(default)s]")
    return parser


def main(argv=None) -> None:
    given = make_parser().parse_args(argv)
    try:
        written = [Path(name).resolve() for name in WRITTEN]
        sides = []
        for path in (given.train, given.test):
            if path.resolve() in written:
                raise ValueError(f"{path}: would be written over, expected another name")
            rows = read_rows(path)
            if not rows:
                raise ValueError(f"{path}: has no rows")
            sides.append([convert(row, place, given.instruction) for place, row in rows])
        train, test = sides
        write(WRITTEN[0], train, ("prompt", "completion"))
        write(WRITTEN[1], train, ("prompt", "answer"))
        write(WRITTEN[2], test, ("prompt", "answer"))
    except (ValueError, OSError) as error:
        print(f"gsm8k.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
