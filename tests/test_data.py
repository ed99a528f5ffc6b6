"""The built-in task, its verifier, the tokenizer, JSONL, model directories."""
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_grpo
import train_ppo
import train_sft
from conftest import CHAT_TEMPLATE
from evaluate import pass_at_k
from model import ModelConfig, ScalarModel, Transformer
from support import data
from support.cli import UserError
from support.data import (
    drop_unusable, encode_completion, encode_prompt, encode_turns, hold_out, pad_batch,
    read_demonstrations, read_jsonl, take)
from support.models import numpy_rng
from support.pretrained import load_pretrained, load_scalar_model, save_pretrained
from support.rewards import exact_reward, load_reward, reward_answers
from support.rl import load_prompts, read_prompts
from support.tokenizer import Tokenizer
from task import demonstration, make_problems, task_reward, verify_answer


# ----------------------------------------------------------------------------------------- the task

def test_demonstrations_are_correct_in_both_styles():
    for problem in make_problems("sums", 300, np.random.default_rng(0)):
        for reason in (False, True):
            [text] = demonstration(problem["prompt"], reason)
            assert verify_answer(problem["prompt"], text) == 1 and ("<think>" in text) == reason
    assert demonstration("17+58+23=", True) == ["<think>17+58=75, 75+23=98</think>98"]


def test_long_sums_are_demonstrated_step_by_step(tokenizer):
    """And their answers fit where those of sums would be cut off."""
    assert (demonstration("17+58+23+4=", True)
            == ["<think>17+58=75, 75+23=98, 98+4=102</think>102"])
    assert demonstration("17+58+23+4=", False) == ["102"]
    longest = 0
    for problem in make_problems("long_sums", 300, np.random.default_rng(0)):
        assert re.fullmatch(r"[0-9]{1,2}(\+[0-9]{1,2}){3}=", problem["prompt"])
        [text] = demonstration(problem["prompt"], True)
        assert verify_answer(problem["prompt"], text) == 1
        longest = max(longest, len(tokenizer.encode(text)) + 1)
    assert 32 < longest <= 40
    for script in (train_grpo, train_ppo, train_sft):
        assert script.Config(task="long_sums").max_new_tokens == 40
        assert script.Config().max_new_tokens == 32
    assert train_grpo.Config(task="long_sums", max_new_tokens=7).max_new_tokens == 7


@pytest.mark.parametrize("completion, right", [
    ("98", 1), (" 98\n", 1), ("<think>anything</think>98", 1), ("<think>1</think>2</think>98", 1),
    ("99", 0), ("", 0), ("98.", 0), ("98 98", 0),
    ("<think>98", 0), ("98</think>", 0), ("the sum is 98", 0),
    ("-98", 0), ("9_8", 0), ("٩٨", 0), ("9" * 5000, 0)])
def test_verifier(completion, right):
    assert verify_answer("17+58+23=", completion) == right


def test_a_right_answer_may_be_long():
    assert verify_answer("999999*999999=", "999998000001") == 1
    assert verify_answer("999999*999999=", "999998000002") == 0


@pytest.mark.parametrize("reward", [task_reward, exact_reward])
def test_a_cut_off_answer_is_never_right(tokenizer, reward):
    examples = [{"prompt": "17+58+23=", "columns": {"answer": 98}}] * 2
    ended, cut_off = [*b"98", tokenizer.eos_id], [*b"98"]
    assert reward_answers(reward, examples, [ended, cut_off], [True, False], tokenizer) == [1, 0]


@pytest.mark.parametrize("completion, answer, right", [
    # the last number
    ("The answer is 7", 7, 1), ("7 apples", "7", 1), ("first 7, then 8", "7", 0),
    ("It costs $1,234.50.", 1234.5, 1), ("7.0", 7, 1), ("7.", "7", 1), ("07", 7, 1),
    ("x = -7", -7, 1), ("x = -7", 7, 0), ("10-7", 7, 1),
    ("(10)-7", 7, 1), ("a[1]-7", 7, 1), ("2^{10}-7", 7, 1), ("2^{10} -7", -7, 1), ("[-7]", -7, 1),
    ("|-7|", -7, 1),
    ("1,000,000", "1000000", 1), ("1,00", 100, 0),
    ("no number", 7, 0), ("", 7, 0), (".5", 0.5, 1), ("70", 7, 0), ("7 or 8", "7 or 8", 0),
    ("12345678901234567890", 12345678901234567891, 0),
    # the line after the last ####
    ("1 + 1\n#### 2", 2, 1), ("#### 3\n#### 2", 2, 1), ("#### 2\nSo 3", 2, 1),
    ("#### Paris.", "Paris", 1), ("####\n 2 ", "2", 1),
    ("2 ####", 2, 0), ("#### 2 apples", 2, 0),
    # \boxed{}: before ####, and ####'s before the last number
    ("\\boxed{7} #### 8, or 9", 7, 1), ("\\boxed{7} #### 8, or 9", 8, 0),
    ("\\boxed{7}, then 9", 9, 0), ("\\boxed{7} or \\boxed{8}", 8, 1),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", 1), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2", 0),
    ("$\\boxed{ \\$1,000. }$", "1000", 1),
    ("\\boxed{7", 7, 1), ("\\boxed{7} \\boxed{8", 7, 1), ("} \\boxed{7} {", 7, 1),
    ("\\boxed{} 7", 7, 0), ("\\boxed{x} 7", "x", 1),
    ("{\\boxed {7}} 8", 7, 1), ("\\boxed{" * 100000, 7, 0),
    # the column may state its answer as a completion does
    ("72", "48 + 24 = 72\n#### 72", 1), ("24", "48 + 24 = 72\n#### 72", 0),
    ("7", "so \\boxed{7} it is", 1), ("7", "so 7", 0)])
def test_exact(completion, answer, right):
    assert exact_reward(["?"], [completion], answer=[answer], other=[None]) == [right]
    assert exact_reward([[]], [[{"role": "assistant", "content": completion}]], [answer]) == [right]


def test_what_a_reward_function_does_to_its_arguments_changes_no_data(tokenizer):
    """The answers of a group share a row of the data; each gets a prompt of its own to append to,
    and its own columns."""
    prompt = [{"role": "user", "content": "?"}]
    row = {"prompt": prompt, "columns": {"tests": [1, 2]}}
    lengths = []

    def reward(prompts, completions, tests, **columns):
        for given, completion, of_row in zip(prompts, completions, tests):
            given.extend(completion)
            of_row.append(3)
            lengths.append((len(given), len(of_row)))
        return [0.0] * len(prompts)
    for _ in range(2):
        reward_answers(reward, [row] * 4, [[*b"98"]] * 4, [True] * 4, tokenizer)
    assert lengths == [(2, 3)] * 8
    assert row == {"prompt": [{"role": "user", "content": "?"}], "columns": {"tests": [1, 2]}}


def test_held_out_problems_are_never_trained_on():
    train = {p["prompt"] for p in make_problems("sums", 5000, np.random.default_rng(0))}
    problems = make_problems("sums", 5000, np.random.default_rng(1), held_out=True)
    held_out = {p["prompt"] for p in problems}
    assert not train & held_out and len(held_out) > 4500


# ---------------------------------------------------------------------------------------- tokenizer

def test_bytes_in_bytes_out(tokenizer):
    for text in ("17+58+23=", "naïve 思考 👩‍👩‍👧", "\x00\t\r\n  9", ""):
        assert (
            tokenizer.encode(text) == list(text.encode())
            and tokenizer.decode(tokenizer.encode(text)) == text)


def test_special_text_is_special_only_when_asked(tokenizer):
    assert tokenizer.encode("<|endoftext|>") == list(b"<|endoftext|>")
    assert tokenizer.encode("<|endoftext|>", special=True) == [tokenizer.eos_id]
    assert tokenizer.encode("<think>1</think>") == [258, ord("1"), 259]
    assert tokenizer.decode(
        [258, 49, 259, tokenizer.eos_id], skip_special=True) == "<think>1</think>"
    assert tokenizer.decode([49, tokenizer.eos_id]) == "1<|endoftext|>"


def test_answers_end_with_the_stop_token(tokenizer):
    ids = encode_completion(tokenizer, "1+1+1=", "3")
    assert ids == [ord("3"), tokenizer.eos_id]
    tokens, mask = pad_batch([([5, 6], ids), ([5], [7])], "cpu")
    assert tokens.tolist() == [[5, 6, 51, 256], [5, 7, 0, 0]]
    assert mask.tolist() == [[False, False, True, True], [False, True, False, False]]


# -------------------------------------------------------------------------------- model directories

@pytest.mark.parametrize("tied, qk_norm", [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_survive_a_round_trip(tmp_path, tokenizer, tied, qk_norm, dtype):
    model = Transformer(ModelConfig(
        260, 16, 2, 4, 2, 24, 64, tie_embeddings=tied, qk_norm=qk_norm)).to(dtype)
    save_pretrained(model, tokenizer, tmp_path)
    loaded, loaded_tokenizer = load_pretrained(tmp_path)
    tokens = torch.randint(0, 260, (2, 9))
    assert loaded.config == model.config and next(loaded.parameters()).dtype == dtype
    assert torch.equal(loaded(tokens), model(tokens))
    text = "<think>é</think><|endoftext|>"
    assert loaded_tokenizer.encode(text, special=True) == tokenizer.encode(text, special=True)
    scalar = ScalarModel(model)
    torch.nn.init.normal_(scalar.score.weight)
    save_pretrained(scalar, tokenizer, tmp_path / "rm")
    assert torch.equal(load_scalar_model(tmp_path / "rm")[0](tokens), scalar(tokens))


def test_transformers_gives_the_same_logits_and_ids(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    model = Transformer(ModelConfig(260, 16, 2, 4, 2, 24, 64, rope_theta=100.0, qk_norm=True))
    save_pretrained(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, 260, (2, 9))
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "17+58= <think>é思</think>\n<|endoftext|>"
    assert their_tokenizer(text).input_ids == tokenizer.encode(text, special=True)


def test_a_wrong_model_never_loads_silently(tmp_path, tokenizer):
    from safetensors.torch import load_file, save_file
    save_pretrained(Transformer(ModelConfig(260, 16, 2, 4, 2, 24, 64)), tokenizer, tmp_path)
    config, weights = (
        json.loads((tmp_path / "config.json").read_text()),
        load_file(tmp_path / "model.safetensors"))

    def refused(message, config=config, weights=weights):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)

    refused("model_type is 'gpt2'", {**config, "model_type": "gpt2"})
    refused("rope_scaling is", {**config, "rope_scaling": {"factor": 8}})
    refused(
        "hidden_size is missing",
        {k: v for k, v in config.items() if k != "hidden_size"})
    refused(
        "layers.1.mlp.up_proj.weight is missing",
        weights={k: v for k, v in weights.items() if "1.mlp.up_proj" not in k})
    refused(
        "extra is not part of this model",
        weights={**weights, "model.extra": torch.zeros(1)})
    refused(
        r"norm.weight has shape \(3,\), config.json says \(16,\)",
        weights={**weights, "model.norm.weight": torch.zeros(3)})
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="model.safetensors: cut off"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json: not found"):
        load_pretrained(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------- JSONL

def test_jsonl(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "completion": "b", "x": 1}\r\n'
        b'\n'
        b'{"prompt": "c", "completion": "d"}')
    assert [(e["line"], e["columns"]) for e in read_jsonl(file, ("prompt", "completion"))] == [
        (1, {"prompt": "a", "completion": "b", "x": 1}), (3, {"prompt": "c", "completion": "d"})]


def test_fields_that_some_lines_lack_are_none(tmp_path, tokenizer):
    (tmp_path / "d.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "answer": 3}')
    examples = read_prompts(tmp_path / "d.jsonl", "", tokenizer, 10)
    assert [e["columns"]["answer"] for e in examples] == [None, 3]
    assert handed_on(examples[:1], [True], tokenizer)["answer"] == [None]


def handed_on(examples, finished, tokenizer) -> dict:
    """What a reward function is given."""
    given = {}

    def reward(prompts, completions, **columns):
        given.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)
    reward_answers(reward, examples, [[7] for _ in examples], finished, tokenizer)
    return given


def test_every_field_of_the_data_reaches_the_reward_function(tmp_path, tokenizer):
    """Whatever its name is: our own keys of an example are elsewhere. And `finished`, our own."""
    fields = {name: f"of the data: {name}" for name in
              ("ids", "line", "columns", "side", "turns", "completion", "chosen", "reward", "self")}
    lines = json.dumps({"prompt": "a", **fields}), '{"prompt": "b"}'
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    examples = read_prompts(tmp_path / "d.jsonl", "f.py:f", tokenizer, 10)
    assert [e["ids"] for e in examples] == [[97], [98]]
    assert handed_on(examples, [True, False], tokenizer) == {
        "prompts": ["a", "b"], "completions": ["\x07", "\x07"], "finished": [True, False],
        **{name: [value, None] for name, value in fields.items()}}


@pytest.mark.parametrize("name", ["prompts", "completions", "finished"])
def test_a_field_with_the_name_of_what_we_give_is_refused(tmp_path, tokenizer, name):
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "a"}\n\n' + json.dumps({"prompt": "a", name: 1}))
    with pytest.raises(ValueError, match=f"d.jsonl, line 3: has a field {name}, which "):
        read_prompts(file, "f.py:f", tokenizer, 10)
    # a reward model sees no fields
    assert len(read_prompts(file, "", tokenizer, 10)) == 2


# --------------------------------------------------------------------------------- what is held out

def sides(tmp_path, rows, required=("prompt",), **named):
    """A file's rows -> "train", "held out" or "both" for each"""
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [e["side"] for e in read_jsonl(tmp_path / "d.jsonl", required, **named)]


def test_a_tenth_of_the_prompts_is_held_out_by_their_hash(tmp_path):
    rows = [{"prompt": f"What is {i} and {i + 1}?", "x": j} for i in range(2000) for j in range(3)]
    found = sides(tmp_path, rows)
    assert set(found) == {"train", "held out"} and 0.08 < found.count("held out") / len(rows) < 0.12
    # all lines of a prompt
    assert all(len(set(found[i:i + 3])) == 1 for i in range(0, len(rows), 3))
    # in any file
    some = [i for i in reversed(range(len(rows))) if i % 7 < 2]
    assert sides(tmp_path, [rows[i] for i in some]) == [found[i] for i in some]


def test_a_conversation_goes_by_what_stands_before_its_first_answer(tmp_path):
    system, greeting = ("system", "be brief"), ("assistant", "how can I help?")
    answer = say(("assistant", "answer"))
    more = answer + say(("user", "and now?"))
    for first in ((), (system,), (system, greeting), (greeting,)):
        prompts = [say(*first, ("user", f"question {i}")) for i in range(300)]
        found = sides(tmp_path, [{"prompt": prompt} for prompt in prompts])
        assert set(found) == {"train", "held out"}
        assert found == sides(tmp_path, [{"prompt": prompt + more} for prompt in prompts])
        for rest in (answer, more + answer):
            messages = [{"messages": prompt + rest} for prompt in prompts]
            assert found == sides(tmp_path, messages, ("prompt", "completion"), instead="messages")


def test_where_the_hash_leaves_one_side_empty_all_are_on_both(tmp_path):
    rows = [{"prompt": letter} for letter in "abcdefghijklmnopqrstuvwxyz"]
    found = sides(tmp_path, rows)
    for side in ("train", "held out"):
        some = [row for row, s in zip(rows, found) if s == side]
        assert some and sides(tmp_path, some) == ["both"] * len(some)
    examples = [{"line": i, "side": "both"} for i in range(5)]
    train, held_out = hold_out(examples, "f", 3)
    assert train == examples and len(held_out) == 3 and all(e in examples for e in held_out)


def test_what_is_held_out_is_never_trained_on_beyond_what_an_evaluation_uses():
    examples = [{"line": i, "side": "held out" if i % 5 == 0 else "train"} for i in range(100)]
    train, held_out = hold_out(examples, "f", 6)
    assert train == [e for e in examples if e["side"] == "train"]
    assert len({e["line"] for e in held_out}) == 6
    assert all(e["side"] == "held out" for e in held_out)
    # filters may leave nothing of one side: then an evaluation sees what is trained on, but
    # training never sees what is held out
    train, held_out = hold_out(train, "f", 6)
    assert len(train) == 80 and len(held_out) == 6
    with pytest.raises(ValueError, match="f: all 20 examples that can be used are held out"):
        hold_out(examples[::5], "f", 6)


# ------------------------------------------------------------------------------------ conversations

@pytest.fixture
def chat(tokenizer):
    return Tokenizer(
        {**tokenizer.files, "chat_template.jinja": CHAT_TEMPLATE.encode()}, Path("chat"))


def say(*turns):
    """("user", "hi"), ... as messages"""
    return [{"role": role, "content": content} for role, content in turns]


def trained_on(tokenizer, turns):
    """A row as text, what is trained on in «»."""
    tokens, mask = pad_batch([turns, [[1], [2]]], "cpu")
    text = ""
    for k, ids in enumerate(turns):
        text += ("«%s»" if k % 2 else "%s") % tokenizer.decode(ids)
    assert (
        tokens[0].tolist() == sum(turns, [])
        and mask[0].tolist() == [k % 2 == 1 for k, ids in enumerate(turns) for _ in ids])
    assert tokens[1].tolist() == [1, 2] + [0] * (tokens.shape[1] - 2) and mask[1].sum() == 1
    return text.replace("<|endoftext|>", "|").replace("\n", "/")


def test_conversations_are_trained_on_the_assistants_turns(chat):
    """What the user and the tools say are holes, what a template writes after a stop token too;
    the whole is what it renders at once."""
    prompt = say(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))
    one = say(("assistant", "bb"))
    assert trained_on(chat, encode_turns(chat, prompt, one)) == (
        "[system]s|/[user]u|/[assistant]a|/[user]v|/[assistant]«bb|»")
    more = one + say(("tool", "t"), ("assistant", "c"), ("user", "w"))
    assert trained_on(chat, encode_turns(chat, prompt[-1:], more)) == (
        "[user]v|/[assistant]«bb|»/[tool]t|/[assistant]«c|»")
    after_a_user = say(("user", "w"), ("assistant", "c"))
    assert trained_on(chat, encode_turns(chat, prompt[:3], after_a_user)) == (
        "[system]s|/[user]u|/[assistant]a|/[user]w|/[assistant]«c|»")
    everything = encode_turns(chat, [], prompt[:3] + more[1:3])
    assert trained_on(chat, everything) == (
        "[system]s|/[user]u|/[assistant]«a|»/[tool]t|/[assistant]«c|»")
    rendered = chat.encode(
        chat.apply_chat_template(prompt[:3] + more[1:3], add_generation_prompt=False),
        special=True)
    # but for what follows the last stop token
    assert sum(everything, []) == rendered[:-1]
    assert encode_completion(chat, prompt, one) == encode_turns(chat, prompt, one)[1]


def test_a_stop_tokens_text_in_a_message_ends_nothing(chat):
    """Neither in the prompt nor in the answer, which is trained on up to its real end."""
    prompt = say(("user", "u<|endoftext|>v"))
    completion = say(("assistant", "a<|endoftext|>b"), ("user", "<|pad|>"), ("assistant", "c"))
    turns = encode_turns(chat, prompt, completion)
    assert [chat.decode(ids) for ids in turns] == [
        "[user]u<|endoftext|>v<|endoftext|>\n[assistant]", "a<|endoftext|>b<|endoftext|>",
        "\n[user]<|pad|><|endoftext|>\n[assistant]", "c<|endoftext|>"]
    # the template's own, at the ends of turns
    assert [sum(i >= 256 for i in ids) for ids in turns] == [1, 1, 1, 1]
    assert encode_prompt(chat, prompt) == turns[0]
    assert encode_completion(chat, prompt, completion[:1]) == turns[1]


def test_a_template_without_stop_tokens_gets_them(tokenizer):
    chat = Tokenizer(
        {
            **tokenizer.files,
            "chat_template.jinja": CHAT_TEMPLATE.replace("<|endoftext|>", "").encode()},
        Path("chat"))
    turns = encode_turns(
        chat, [],
        say(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")))
    assert trained_on(chat, turns) == "[user]u/[assistant]«a/|»[user]v/[assistant]«b/|»"


def test_demonstrations_in_every_form(tmp_path, chat, capsys):
    user, answer, empty = say(("user", "u")), say(("assistant", "a")), say(("assistant", ""))
    lines = [
        {"prompt": "u", "completion": "a"},
        {"prompt": user, "completion": answer},
        {"messages": user + answer},
        {"messages": user + empty + user + answer},
        {"messages": (user + answer) * 9},
        {"prompt": "u", "completion": ""}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    turns = [e["turns"] for e in read_demonstrations(tmp_path / "d.jsonl", chat, 60)]
    assert turns[0] == [[ord("u")], [ord("a"), chat.eos_id]] and len(turns) == 3
    assert turns[1] == turns[2] and trained_on(chat, turns[1]) == "[user]u|/[assistant]«a|»"
    out = capsys.readouterr().out
    assert "dropped 2 of 6 examples, empty completion (first: line 4)" in out
    assert "dropped 1 of 6 examples, longer than the context of 60 tokens (first: line 5)" in out


@pytest.mark.parametrize("content, message", [
    (b'{"prompt": "a"}\n{"prompt": ', "line 2: not JSON"),
    (b'[1]', "line 1: found list"),
    (b'{"p": 1}', "prompt is missing"),
    (b'{"prompt": 3}', "prompt is 3"),
    (b'{"prompt": []}', "prompt is"),
    (b'{"prompt": [{"role": "user"}]}', "prompt is"),
    (b'{"prompt": "a"}\n' + b"[" * 100_000, "line 2: not JSON: maximum recursion"),
    (b'{"prompt": ' * 100_000, "line 1: not JSON: maximum recursion"),
    (b'\xff\xfe', "byte 0 is not UTF-8"),
    (b'\n\n', "no examples")])
def test_bad_jsonl_is_named(tmp_path, content, message):
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jsonl(tmp_path / "d.jsonl", ("prompt",))


def test_what_is_nested_too_deep_for_any_of_the_steps_is_named(tmp_path, chat):
    """A line may be parsed and still be too deep for what comes after it."""
    failed = []
    for depth in (100, *range(300, 1000, 50), *range(950, 1000, 2)):
        message = '{"role": "user", "content": "a", "x": %s}' % ("[" * depth + "]" * depth)
        (tmp_path / "d.jsonl").write_text('{"prompt": "a"}\n{"prompt": [%s]}' % message)
        try:
            assert len(read_prompts(tmp_path / "d.jsonl", "", chat, 100)) == 2
        except ValueError as error:
            assert "d.jsonl, line 2: " in str(error)
            failed.append(depth)
    assert 1 < len(failed) < 40


def test_unusable_examples_are_counted(capsys):
    examples = [{"n": n, "line": n + 1} for n in range(5)]
    assert drop_unusable(examples, "f", lambda e: "odd" if e["n"] % 2 else "") == [
        examples[0], examples[2], examples[4]]
    assert capsys.readouterr().out == "f: dropped 2 of 5 examples, odd (first: line 2)\n"
    with pytest.raises(ValueError, match="none of 5"):
        drop_unusable(examples, "f", lambda e: "odd")


def test_take_shows_every_example_once_an_epoch():
    examples = list(range(10))
    epochs = [
        sum((take(examples, 5, 0, step) for step in (2 * e, 2 * e + 1)), [])
        for e in range(3)]
    assert all(sorted(epoch) == examples for epoch in epochs) and epochs[0] != epochs[1]
    assert sorted(take(examples, 20, 0, 0)) == sorted(examples * 2)
    assert take(examples, 5, 0, 1) != take(examples, 5, 1, 1)


def test_an_epochs_order_is_drawn_once(monkeypatch):
    drawn = []

    def watched(*arguments):
        drawn.append(arguments)
        return numpy_rng(*arguments)
    monkeypatch.setattr(data, "numpy_rng", watched)
    for step in range(25):
        take(range(997), 100, 12345, step)
    assert [(seed, epoch) for seed, epoch, _ in drawn] == [(12345, 0), (12345, 1), (12345, 2)]


def test_each_purpose_has_a_random_stream_of_its_own():
    """default_rng(0) and default_rng((0, 0)) are one stream."""
    examples = [{"line": i, "side": "both"} for i in range(100)]
    taken, held_out = take(examples, 100, 0, 0), hold_out(examples, "f", 100)[1]
    orders = [[e["line"] for e in some] for some in (taken, held_out)]
    orders.append(np.random.default_rng(0).permutation(100).tolist())
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_each_algorithm_draws_problems_of_its_own(place, tmp_path, monkeypatch, tokenizer):
    drawn = {"sft": set()}

    def watched(task, n, rng, held_out=False):
        problems = make_problems(task, n, rng, held_out)
        drawn["sft"].update(p["prompt"] for p in problems)
        return problems
    monkeypatch.setattr(train_sft, "make_problems", watched)
    train_sft.main(["--model", str(place / "random"), "--out", str(tmp_path / "run"),
                    "--steps", "3", "--eval-problems", "1"])
    model = Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 64, 128))
    for script in (train_grpo, train_ppo):
        config = script.Config(prompts_per_step=64)
        batch, _ = load_prompts(config, tokenizer, model, None)
        drawn[config.algorithm] = {e["prompt"] for step in range(3) for e in batch(step)}
    assert all(len(prompts) > 180 for prompts in drawn.values())
    sets = list(drawn.values())
    assert all(len(a & b) <= 1 for i, a in enumerate(sets) for b in sets[:i])


# --------------------------------------------------------------------------------- reward functions

def test_a_reward_file_is_a_module_like_any_other(tmp_path, tokenizer):
    """Dataclasses look their annotations up in it, and a pool of processes its functions."""
    (tmp_path / "reward.py").write_text("""from __future__ import annotations
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

@dataclass
class Answer:
    text: str
    factor: int = 2

def length(answer):
    return Answer("", answer.factor * len(answer.text))

def f(prompts, completions, **columns):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        return [answer.factor for answer in pool.map(length, map(Answer, completions))]
""")
    def scores(reward):
        answers = [list(b"xyz"), list(b"z")]
        return reward_answers(reward, [{"prompt": "a"}] * 2, answers, [True, True], tokenizer)
    before = set(sys.modules)
    reward = load_reward(f"{tmp_path / 'reward.py'}:f", "")
    assert scores(reward) == [6, 2]
    (tmp_path / "other").mkdir()
    other_file = tmp_path / "other" / "reward.py"
    other_file.write_text("def f(prompts, completions, **columns): return [3] * len(prompts)")
    assert scores(load_reward(f"{other_file}:f", "")) == [3, 3]
    assert scores(reward) == [6, 2]
    # nobody's name is taken
    assert not {"reward", "user_reward"} & (set(sys.modules) - before)


def test_a_reward_function_that_fails_is_called_once(tokenizer):
    calls = []

    def f(prompts, completions, **columns):
        calls.append(prompts)
        raise KeyError("no key")
    message = r"^the reward function f failed at .*test_data.py, line \d+: KeyError\('no key'\)$"
    with pytest.raises(UserError, match=message) as error:
        reward_answers(f, [{"prompt": "a"}] * 3, [[7]] * 3, [True] * 3, tokenizer)
    assert calls == [["a"] * 3] and error.value.status == 1


def test_a_reward_function_that_is_a_generator_fails_in_one_line_too(tokenizer):
    def f(prompts, completions, **columns):
        yield 1.0
        raise KeyError("no key")
    message = r"^the reward function f failed at .*test_data.py, line \d+: KeyError\('no key'\)$"
    with pytest.raises(UserError, match=message) as error:
        reward_answers(f, [{"prompt": "a"}] * 3, [[7]] * 3, [True] * 3, tokenizer)
    assert error.value.status == 1


@pytest.mark.parametrize("score, shown", [
    (10 ** 400, "inf"), (10 ** 5000, "inf"), (-10 ** 400, "-inf"), (1e300, "1e+300"),
    (-1e39, "-1e+39"), (math.nan, "nan"), (None, "None"), ("1.0", "'1.0'"), (np.ones(2), "array")],
    ids=lambda x: type(x).__name__)
def test_rewards_that_float32_cant_hold_are_named(tokenizer, score, shown):
    examples = [{"prompt": "a", "line": 1}, {"prompt": "b", "line": 2}]
    with pytest.raises(UserError, match="expected a finite number") as error:
        reward_answers(lambda *two, **columns: [1, score], examples, [[120], [121]], [True] * 2,
                       tokenizer)
    assert f" gave {shown}" in str(error.value) and "'y', an answer to line 2" in str(error.value)


def test_rewards_may_be_any_numbers(tokenizer):
    scores = [True, 3, np.float16(0.5), torch.tensor(2.0), np.int64(-4), 3.4e38]
    given = reward_answers(lambda *two, **columns: scores, [{"prompt": "a"}] * 6, [[7]] * 6,
                           [True] * 6, tokenizer)
    assert given == [1.0, 3.0, 0.5, 2.0, -4.0, 3.4e38]
    assert all(type(score) is float for score in given)


@pytest.mark.parametrize("given", [{0: 0.5, 1: 0.5}, {0.25, 0.75}], ids=lambda x: type(x).__name__)
def test_rewards_without_an_order_are_refused(tokenizer, given):
    """The keys of a dict are no rewards, and a set's values stand in any order."""
    with pytest.raises(UserError, match="gave 1 values for 2 answers"):
        reward_answers(lambda *two, **columns: given, [{"prompt": "a"}] * 2, [[7]] * 2, [True] * 2,
                       tokenizer)


def test_an_async_reward_function_is_awaited(tokenizer):
    async def f(prompts, completions, **columns):
        return [len(text) for text in completions]
    given = reward_answers(f, [{"prompt": "a"}] * 2, [[7], [7, 8]], [True] * 2, tokenizer)
    assert given == [1.0, 2.0]


def test_a_users_code_ends_no_run_and_changes_no_setting_of_it(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text("""import os, sys, torch
def change():
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    os.chdir("/")
change()
def f(prompts, completions, **columns):
    change()
    return [1.0]
def ends(prompts, completions, **columns):
    sys.exit(0)
""")

    def settings():
        return torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd()
    before = settings()
    one = [{"prompt": "a"}], [[7]], [True], tokenizer
    f, ends = (load_reward(f"reward.py:{name}", "") for name in ("f", "ends"))
    assert settings() == before
    assert reward_answers(f, *one) == [1.0] and settings() == before
    with pytest.raises(UserError, match=r"ends failed at .*reward.py, line 11: SystemExit\(0\)"):
        reward_answers(ends, *one)


def test_an_object_that_rewards_is_named_by_its_class(tokenizer):
    """The repr of a torch module has many lines."""
    class Judge(torch.nn.Sequential):
        def forward(self, prompts, completions, **columns):
            return [math.nan]
    with pytest.raises(UserError, match="^the reward function Judge gave nan"):
        reward_answers(Judge(torch.nn.ReLU()), [{"prompt": "a", "line": 1}], [[7]], [True],
                       tokenizer)


@pytest.mark.parametrize("answer", ["NaN", "-Infinity", "1e999"])
def test_an_answer_that_nothing_equals_is_refused(tmp_path, tokenizer, answer):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "answer": %s}' % answer)
    with pytest.raises(ValueError, match="line 1: answer is -?(NaN|Infinity), expected text or a"):
        read_prompts(str(file), "exact", tokenizer, 20)


def test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one():
    from itertools import combinations
    for n, c, k in ((6, 2, 3), (5, 0, 2), (5, 5, 1), (4, 3, 2)):
        draws = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(max, draws)) / len(draws))
