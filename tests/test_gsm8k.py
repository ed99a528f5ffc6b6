"""examples/gsm8k.py, on made-up rows of GSM8K's form."""
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from conftest import CHAT_TEMPLATE
from support.data import read_demonstrations
from support.rewards import exact_reward
from support.rl import read_prompts
from support.tokenizer import Tokenizer, builtin_tokenizer

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("gsm8k", ROOT / "examples" / "gsm8k.py")
gsm8k = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gsm8k)

QUESTION = "A baker fills 12 trays with 100 rolls each, and eats 3. How many are left?"
# The mark that is last is the one that counts.
ANSWER = ("#### marks the end. 12*100 = <<12*100=1200>>1200, 1200-3 = <<1200-3=1197>>1,197.\n"
          "So 1197/1 = <<1197/1=1197>>1,197 are left.\n#### 1,197")
WORK = ("#### marks the end. 12*100 = 1200, 1200-3 = 1,197.\n"
        "So 1197/1 = 1,197 are left.\n#### 1197")
ROWS = [{"question": f"{QUESTION} ({i})", "answer": ANSWER} for i in range(3)]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_jsonl(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(name) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def fails(capsys, *argv) -> str:
    """The one line with which it ends, having written nothing."""
    with pytest.raises(SystemExit) as end:
        gsm8k.main(list(argv))
    out, error = capsys.readouterr()
    assert end.value.code == 2 and not out and error.count("\n") == 1
    assert not set(gsm8k.WRITTEN) & {file.name for file in Path().iterdir()}
    return error


def test_rows_become_demonstrations_and_prompts(capsys):
    write_jsonl("train.jsonl", ROWS[:2])
    # A blank line is none, and a byte-order mark is not text.
    text = "\ufeff\n" + json.dumps(ROWS[2]) + "\n\n"
    Path("test.jsonl").write_text(text, encoding="utf-8")
    gsm8k.main(["train.jsonl", "test.jsonl"])
    prompts = [[{"role": "user", "content": f"{QUESTION} ({i})\n{gsm8k.INSTRUCTION}"}]
               for i in range(3)]
    completion = [{"role": "assistant", "content": WORK}]
    assert read_jsonl("gsm8k_sft.jsonl") == [
        {"prompt": prompt, "completion": completion} for prompt in prompts[:2]]
    assert read_jsonl("gsm8k.jsonl") == [
        {"prompt": prompt, "answer": "1197"} for prompt in prompts[:2]]
    assert read_jsonl("gsm8k_test.jsonl") == [{"prompt": prompts[2], "answer": "1197"}]
    assert capsys.readouterr().out == (
        "gsm8k_sft.jsonl: 2 lines\ngsm8k.jsonl: 2 lines\ngsm8k_test.jsonl: 1 lines\n")


def test_another_instruction():
    write_jsonl("rows.jsonl", ROWS)
    gsm8k.main(["rows.jsonl", "rows.jsonl", "--instruction", "100 % sure? /no_think"])
    for name in gsm8k.WRITTEN:
        for row in read_jsonl(name):
            assert row["prompt"][0]["content"].endswith(")\n100 % sure? /no_think")


@pytest.mark.parametrize("stated, number", [
    ("72", "72"), ("1,234,567", "1234567"), ("-5", "-5"), ("-1,000", "-1000"), ("0.75", "0.75"),
    (".5", ".5"), ("1,000.50", "1000.50"), ("  8 ", "8"), ("20.", "20")])
def test_numbers(stated, number):
    found = gsm8k.convert({"question": "q", "answer": f"so it is\n#### {stated}"}, "here", "i")
    assert found["answer"] == number
    assert found["completion"][0]["content"] == f"so it is\n#### {number}"


@pytest.mark.parametrize("row, message", [
    ({"question": "q", "answer": "72"}, 'answer has no "####"'),
    ({"question": "q", "answer": "#### many"}, "after #### stands 'many', expected a number"),
    ({"question": "q", "answer": "####"}, "after #### stands '', expected a number"),
    ({"question": "q", "answer": "#### 7 or 8"}, "after #### stands '7 or 8'"),
    ({"question": "q", "answer": "#### -"}, "after #### stands '-'"),
    ({"question": "q", "answer": 72}, "answer is 72, expected text"),
    ({"answer": "#### 72"}, "question is missing, expected text"),
    (["question"], "found list, expected an object"),
])
def test_a_bad_row_is_named_by_line(capsys, row, message):
    write_jsonl("rows.jsonl", ROWS)
    # The blank line counts.
    Path("bad.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n" + json.dumps(row))
    assert f"bad.jsonl, line 3: {message}" in fails(capsys, "rows.jsonl", "bad.jsonl")


def test_bad_files_are_named(capsys):
    write_jsonl("rows.jsonl", ROWS)
    Path("empty.jsonl").write_text("\n")
    Path("cut.jsonl").write_text('{"question"')
    Path("latin.jsonl").write_bytes(b'{"question": "caf\xe9"}')
    for name, message in (("nowhere.jsonl", "No such file or directory: 'nowhere.jsonl'"),
                          ("empty.jsonl", "empty.jsonl: has no rows"),
                          ("cut.jsonl", "cut.jsonl, line 1: not JSON"),
                          ("latin.jsonl", "latin.jsonl: byte 17 is not UTF-8"),
                          ("gsm8k.jsonl", "gsm8k.jsonl: would be written over")):
        assert message in fails(capsys, "rows.jsonl", name)


def test_parquet_without_its_package_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = fails(capsys, "train.parquet", "test.parquet")
    assert "train.parquet: to read Parquet needs a package: pip install pyarrow" in error


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None,
                    reason="pyarrow, which is optional, is not installed")
def test_parquet_gives_what_jsonl_gives(capsys):
    from pyarrow import Table, parquet
    write_jsonl("rows.jsonl", ROWS)
    gsm8k.main(["rows.jsonl", "rows.jsonl"])
    expected = {name: Path(name).read_text() for name in gsm8k.WRITTEN}
    parquet.write_table(Table.from_pylist(ROWS), "rows.parquet")
    gsm8k.main(["rows.parquet", "rows.parquet"])
    assert {name: Path(name).read_text() for name in gsm8k.WRITTEN} == expected
    for name in gsm8k.WRITTEN:
        Path(name).unlink()
    capsys.readouterr()
    bad = {"question": "q", "answer": "72"}
    parquet.write_table(Table.from_pylist([*ROWS, bad]), "bad.parquet")
    assert "bad.parquet, row 4: answer has no" in fails(capsys, "rows.parquet", "bad.parquet")
    Path("cut.parquet").write_bytes(Path("rows.parquet").read_bytes()[:50])
    assert "cut.parquet: not a Parquet file" in fails(capsys, "cut.parquet", "rows.parquet")


def test_the_scripts_read_what_is_written():
    """With a chat template, demonstrations are learned and their answers are right."""
    files = {**builtin_tokenizer().files, "chat_template.jinja": CHAT_TEMPLATE.encode()}
    tokenizer = Tokenizer(files, Path("chats"))
    write_jsonl("rows.jsonl", ROWS)
    gsm8k.main(["rows.jsonl", "rows.jsonl"])
    prompts = read_prompts("gsm8k.jsonl", "exact", tokenizer, 1000)
    demonstrations = read_demonstrations("gsm8k_sft.jsonl", tokenizer, 2000)
    assert len(prompts) == len(demonstrations) == 3
    for prompt, demonstration in zip(prompts, demonstrations):
        given, answer = demonstration["turns"]
        assert given == prompt["ids"]
        assert prompt["side"] == demonstration["side"]
        completion = [{"role": "assistant", "content": tokenizer.decode(answer, True)}]
        columns = {"answer": [prompt["columns"]["answer"]]}
        assert exact_reward([prompt["prompt"]], [completion], **columns) == [1.0]
        wrong = [{"role": "assistant", "content": WORK.replace("#### 1197", "#### 1196")}]
        assert exact_reward([prompt["prompt"]], [wrong], **columns) == [0.0]
