"""The built-in task, its verifier, the tokenizer, JSONL, model directories."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import CHAT_TEMPLATE
from data import (demonstration, encode_completion, encode_prompt, encode_turns, exact_reward,
                  pad_batch, read_demonstrations, read_jsonl, read_prompts, reward_answers,
                  sum_problems, sum_reward, take, usable, verify_sum)
from evaluate import pass_at_k
from model import ModelConfig, ScalarModel, Transformer
from pretrained import load_pretrained, load_scalar_model, save_pretrained
from tokenizer import Tokenizer


# ------------------------------------------------------------------------------------------------------ the task

def test_demonstrations_are_correct_in_both_styles():
    for problem in sum_problems(300, np.random.default_rng(0)):
        for reason in (False, True):
            text = demonstration(problem["prompt"], reason)
            assert verify_sum(problem["prompt"], text) == 1 and ("<think>" in text) == reason
    assert demonstration("17+58+23=", True) == "<think>17+58=75, 75+23=98</think>98"


@pytest.mark.parametrize("completion, right", [
    ("98", 1), (" 98\n", 1), ("<think>anything</think>98", 1), ("<think>1</think>2</think>98", 1), ("99", 0), ("", 0), ("98.", 0),
    ("98 98", 0), ("<think>98", 0), ("98</think>", 0), ("the sum is 98", 0), ("-98", 0), ("9_8", 0), ("٩٨", 0), ("9" * 5000, 0)])
def test_verifier(completion, right):
    assert verify_sum("17+58+23=", completion) == right


def test_a_cut_off_answer_is_never_right(tokenizer):
    right = list(b"98")
    assert reward_answers(sum_reward, [{"prompt": "17+58+23="}] * 2, [right + [tokenizer.eos_id], right], [True, False], tokenizer) == [1, 0]


@pytest.mark.parametrize("completion, answer, right", [
    # the last number
    ("The answer is 7", 7, 1), ("7 apples", "7", 1), ("first 7, then 8", "7", 0), ("It costs $1,234.50.", 1234.5, 1), ("7.0", 7, 1), ("7.", "7", 1),
    ("07", 7, 1), ("x = -7", -7, 1), ("x = -7", 7, 0), ("10-7", 7, 1), ("1,000,000", "1000000", 1), ("1,00", 100, 0), ("no number", 7, 0),
    ("", 7, 0), (".5", 0.5, 1), ("70", 7, 0), ("7 or 8", "7 or 8", 0), ("12345678901234567890", 12345678901234567891, 0),
    # the line after the last ####
    ("1 + 1\n#### 2", 2, 1), ("#### 3\n#### 2", 2, 1), ("#### 2\nSo 3", 2, 1), ("#### Paris.", "Paris", 1), ("####\n 2 ", "2", 1),
    ("2 ####", 2, 0), ("#### 2 apples", 2, 0),
    # \\boxed{}: before ####, and ####'s before the last number
    ("\\boxed{7} #### 8, or 9", 7, 1), ("\\boxed{7} #### 8, or 9", 8, 0), ("\\boxed{7}, then 9", 9, 0), ("\\boxed{7} or \\boxed{8}", 8, 1),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", 1), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2", 0), ("$\\boxed{ \\$1,000. }$", "1000", 1),
    ("\\boxed{7", 7, 1), ("\\boxed{7} \\boxed{8", 7, 1), ("} \\boxed{7} {", 7, 1), ("\\boxed{} 7", 7, 0), ("\\boxed{x} 7", "x", 1),
    ("{\\boxed {7}} 8", 7, 1), ("\\boxed{" * 100000, 7, 0),
    # the column may state its answer as a completion does
    ("72", "48 + 24 = 72\n#### 72", 1), ("24", "48 + 24 = 72\n#### 72", 0), ("7", "so \\boxed{7} it is", 1), ("7", "so 7", 0)])
def test_exact(completion, answer, right):
    assert exact_reward(["?"], [completion], answer=[answer], other=[None]) == [right]
    assert exact_reward([[]], [[{"role": "assistant", "content": completion}]], [answer]) == [right]


def test_held_out_problems_are_never_trained_on():
    train = {p["prompt"] for p in sum_problems(5000, np.random.default_rng(0))}
    held_out = {p["prompt"] for p in sum_problems(5000, np.random.default_rng(1), held_out=True)}
    assert not train & held_out and len(held_out) > 4500


# ------------------------------------------------------------------------------------------------------ tokenizer

def test_bytes_in_bytes_out(tokenizer):
    for text in ("17+58+23=", "naïve 思考 👩‍👩‍👧", "\x00\t\r\n  9", ""):
        assert tokenizer.encode(text) == list(text.encode()) and tokenizer.decode(tokenizer.encode(text)) == text


def test_special_text_is_special_only_when_asked(tokenizer):
    assert tokenizer.encode("<|endoftext|>") == list(b"<|endoftext|>")
    assert tokenizer.encode("<|endoftext|>", special=True) == [tokenizer.eos_id]
    assert tokenizer.encode("<think>1</think>") == [258, ord("1"), 259]
    assert tokenizer.decode([258, 49, 259, tokenizer.eos_id], skip_special=True) == "<think>1</think>"
    assert tokenizer.decode([49, tokenizer.eos_id]) == "1<|endoftext|>"


def test_answers_end_with_the_stop_token(tokenizer):
    ids = encode_completion(tokenizer, "1+1+1=", "3")
    assert ids == [ord("3"), tokenizer.eos_id]
    tokens, mask = pad_batch([([5, 6], ids), ([5], [7])], "cpu")
    assert tokens.tolist() == [[5, 6, 51, 256], [5, 7, 0, 0]]
    assert mask.tolist() == [[False, False, True, True], [False, True, False, False]]


# ------------------------------------------------------------------------------------------------------ model directories

@pytest.mark.parametrize("tied, qk_norm", [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_survive_a_round_trip(tmp_path, tokenizer, tied, qk_norm, dtype):
    model = Transformer(ModelConfig(260, 16, 2, 4, 2, 24, 64, tie_embeddings=tied, qk_norm=qk_norm)).to(dtype)
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
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")

    def refused(message, config=config, weights=weights):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)

    refused("model_type is 'gpt2'", {**config, "model_type": "gpt2"})
    refused("rope_scaling is", {**config, "rope_scaling": {"factor": 8}})
    refused("hidden_size is missing", {k: v for k, v in config.items() if k != "hidden_size"})
    refused("layers.1.mlp.up_proj.weight is missing", weights={k: v for k, v in weights.items() if "1.mlp.up_proj" not in k})
    refused("extra is not part of this model", weights={**weights, "model.extra": torch.zeros(1)})
    refused(r"norm.weight has shape \(3,\), config.json says \(16,\)", weights={**weights, "model.norm.weight": torch.zeros(3)})
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="model.safetensors: cut off"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json: not found"):
        load_pretrained(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------ JSONL

def test_jsonl(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b", "x": 1}\r\n\n{"prompt": "c", "completion": "d"}')
    assert read_jsonl(file, ("prompt", "completion")) == [{"prompt": "a", "completion": "b", "x": 1, "line": 1},
                                                          {"prompt": "c", "completion": "d", "line": 3}]


def test_fields_that_some_lines_lack_are_none(tmp_path, tokenizer):
    (tmp_path / "d.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "answer": 3}')
    examples = read_prompts(tmp_path / "d.jsonl", "", tokenizer, 10)
    assert [e["answer"] for e in examples] == [None, 3]
    seen = []
    assert reward_answers(lambda prompts, completions, answer: seen.append(answer) or [0.0], examples[:1], [[7]], [True], tokenizer) == [0]
    assert seen == [[None]]


# ------------------------------------------------------------------------------------------------------ conversations

@pytest.fixture
def chat(tokenizer):
    return Tokenizer({**tokenizer.files, "chat_template.jinja": CHAT_TEMPLATE.encode()}, Path("chat"))


def say(*turns):
    """("user", "hi"), ... as messages"""
    return [{"role": role, "content": content} for role, content in turns]


def trained_on(tokenizer, turns):
    """A row as text, what is trained on in «»."""
    tokens, mask = pad_batch([turns, [[1], [2]]], "cpu")
    text = ""
    for k, ids in enumerate(turns):
        text += ("«%s»" if k % 2 else "%s") % tokenizer.decode(ids)
    assert tokens[0].tolist() == sum(turns, []) and mask[0].tolist() == [k % 2 == 1 for k, ids in enumerate(turns) for _ in ids]
    assert tokens[1].tolist() == [1, 2] + [0] * (tokens.shape[1] - 2) and mask[1].sum() == 1
    return text.replace("<|endoftext|>", "|").replace("\n", "/")


def test_conversations_are_trained_on_the_assistants_turns(chat):
    """What the user and the tools say are holes, what a template writes after a stop token too; the whole is what it renders at once."""
    prompt = say(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))
    one = say(("assistant", "bb"))
    assert trained_on(chat, encode_turns(chat, prompt, one)) == "[system]s|/[user]u|/[assistant]a|/[user]v|/[assistant]«bb|»"
    more = one + say(("tool", "t"), ("assistant", "c"), ("user", "w"))
    assert trained_on(chat, encode_turns(chat, prompt[-1:], more)) == "[user]v|/[assistant]«bb|»/[tool]t|/[assistant]«c|»"
    after_a_user = say(("user", "w"), ("assistant", "c"))
    assert trained_on(chat, encode_turns(chat, prompt[:3], after_a_user)) == "[system]s|/[user]u|/[assistant]a|/[user]w|/[assistant]«c|»"
    everything = encode_turns(chat, [], prompt[:3] + more[1:3])
    assert trained_on(chat, everything) == "[system]s|/[user]u|/[assistant]«a|»/[tool]t|/[assistant]«c|»"
    rendered = chat.encode(chat.apply_chat_template(prompt[:3] + more[1:3], add_generation_prompt=False), special=True)
    assert sum(everything, []) == rendered[:-1]                               # but for what follows the last stop token
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
    chat = Tokenizer({**tokenizer.files, "chat_template.jinja": CHAT_TEMPLATE.replace("<|endoftext|>", "").encode()}, Path("chat"))
    turns = encode_turns(chat, [], say(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")))
    assert trained_on(chat, turns) == "[user]u/[assistant]«a/|»[user]v/[assistant]«b/|»"


def test_demonstrations_in_every_form(tmp_path, chat, capsys):
    user, answer, empty = say(("user", "u")), say(("assistant", "a")), say(("assistant", ""))
    lines = [{"prompt": "u", "completion": "a"}, {"prompt": user, "completion": answer}, {"messages": user + answer},
             {"messages": user + empty + user + answer}, {"messages": (user + answer) * 9}, {"prompt": "u", "completion": ""}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    turns = [e["turns"] for e in read_demonstrations(tmp_path / "d.jsonl", chat, 60)]
    assert turns[0] == [[ord("u")], [ord("a"), chat.eos_id]] and len(turns) == 3
    assert turns[1] == turns[2] and trained_on(chat, turns[1]) == "[user]u|/[assistant]«a|»"
    out = capsys.readouterr().out
    assert "dropped 2 of 6 examples, empty completion (first: line 4)" in out
    assert "dropped 1 of 6 examples, longer than the context of 60 tokens (first: line 5)" in out


@pytest.mark.parametrize("content, message", [
    (b'{"prompt": "a"}\n{"prompt": ', "line 2: not JSON"), (b'[1]', "line 1: found list"), (b'{"p": 1}', "prompt is missing"),
    (b'{"prompt": 3}', "prompt is 3"), (b'{"prompt": []}', "prompt is"), (b'{"prompt": [{"role": "user"}]}', "prompt is"),
    (b'\xff\xfe', "byte 0 is not UTF-8"), (b'\n\n', "no examples")])
def test_bad_jsonl_is_named(tmp_path, content, message):
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jsonl(tmp_path / "d.jsonl", ("prompt",))


def test_unusable_examples_are_counted(capsys):
    examples = [{"n": n, "line": n + 1} for n in range(5)]
    assert usable(examples, "f", lambda e: "odd" if e["n"] % 2 else "") == [examples[0], examples[2], examples[4]]
    assert capsys.readouterr().out == "f: dropped 2 of 5 examples, odd (first: line 2)\n"
    with pytest.raises(ValueError, match="none of 5"):
        usable(examples, "f", lambda e: "odd")


def test_take_shows_every_example_once_an_epoch():
    examples = list(range(10))
    epochs = [sum((take(examples, 5, 0, step) for step in (2 * e, 2 * e + 1)), []) for e in range(3)]
    assert all(sorted(epoch) == examples for epoch in epochs) and epochs[0] != epochs[1]
    assert sorted(take(examples, 20, 0, 0)) == sorted(examples * 2)
    assert take(examples, 5, 0, 1) != take(examples, 5, 1, 1)


def test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one():
    from itertools import combinations
    for n, c, k in ((6, 2, 3), (5, 0, 2), (5, 5, 1), (4, 3, 2)):
        draws = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(max, draws)) / len(draws))
