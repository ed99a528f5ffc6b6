"""--environment: what a user's function says next in a conversation, from its messages to the ids
that PPO and GRPO train around."""
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import evaluate
import train_grpo
import train_ppo
from conftest import SHORT_TEMPLATE, result, write_chats
from kills import start
from rollout import generate
from support import environments, parallel
from support.cli import UserError
from support.data import encode_prompt, encode_turns
from support.environments import Conversations, load_environment, split_turns
from support.plot import read_metrics
from support.pretrained import load_pretrained
from support.rewards import reward_answers
from test_parallel import processes  # noqa: F401

@pytest.fixture(scope="module")
def here(place, tmp_path_factory):
    """A chat model, which says a, b, c, with prompts of messages, environments and a reward."""
    path = tmp_path_factory.mktemp("chats")
    write_chats(place, path)
    return path


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


@pytest.fixture
def chat():
    """The model and its tokenizer."""
    return load_pretrained("chat")


def examples_of(tokenizer, n):
    examples = []
    for i in range(n):
        prompt = [{"role": "user", "content": f"{i}:"}]
        examples.append({"prompt": prompt, "ids": encode_prompt(tokenizer, prompt), "line": i + 1,
                         "columns": {"good": str(i)}})
    return examples


def sampled(chat, function, n=24, max_turns=3, max_new_tokens=50):
    model, tokenizer = chat
    examples = examples_of(tokenizer, n)
    environment = Conversations(function, tokenizer, examples, max_turns)
    rollout = generate(model, [example["ids"] for example in examples], max_new_tokens,
                       tokenizer.stop_ids, 1.0, torch.Generator().manual_seed(0), environment)
    return rollout, environment, examples


def echo(conversations, **columns):
    return load_environment("world.py:echo")(conversations, **columns)


def whole_conversation(tokenizer, messages) -> list[int]:
    """The ids of a conversation up to its last stop token, as it is rendered at once."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    return tokenizer.encode(text.removesuffix("\n"), special=True)


def test_ids_are_those_of_the_whole_conversation(chat):
    """Rendered at once, where what was sampled is text that has these ids; and a demonstration of
    the same conversation has the same turns, the same ones of them learned."""
    _, tokenizer = chat
    rollout, environment, examples = sampled(chat, echo)
    turns = split_turns(rollout)
    n_compared, n_turns = 0, set()
    for row, completion in enumerate(environment.completions(turns)):
        n_turns.add(len(turns[row]))
        is_text = not any(i >= 128 for ids in turns[row][::2] for i in ids[:-1])
        if not is_text or not rollout.finished[row]:
            continue
        prompt, end = examples[row]["prompt"], rollout.lengths[row]
        assert rollout.tokens[row, :end].tolist() == whole_conversation(
            tokenizer, prompt + completion)
        [given, *demonstrated] = encode_turns(tokenizer, prompt, completion)
        assert given == examples[row]["ids"] and demonstrated == turns[row]
        n_compared += len(turns[row]) > 1
    assert n_compared > 3 and {1, 3, 4, 5} <= n_turns


def test_what_was_sampled_is_never_tokenised_again(chat):
    """Bytes that are no text, and special tokens in the middle: the ids stay what they were."""
    rollout, environment, _ = sampled(chat, echo)
    turns = split_turns(rollout)
    strange = 0
    for row, completion in enumerate(environment.completions(turns)):
        assert sum(turns[row][::2], []) == rollout.responses()[row]
        said = [m["content"] for m in completion if m["role"] == "assistant"]
        assert said == [chat[1].decode(ids, skip_special=True) for ids in turns[row][::2]]
        strange += "\ufffd" in "".join(said)
    assert strange > 2


def test_the_function_is_called_once_for_all_rows_that_stop_at_one_step(chat):
    """With the conversation so far and the data's columns; it may do with its lists what it
    likes."""
    calls = []

    def watched(conversations, good, **columns):
        calls.append([list(messages) for messages in conversations])
        assert [messages[0]["content"] for messages in conversations] == [f"{g}:" for g in good]
        return echo(conversations, good=good)
    rollout, environment, examples = sampled(chat, watched)
    steps = {}
    ended = [0] * len(examples)
    for row, turns in enumerate(split_turns(rollout)):
        place = 0
        for k, ids in enumerate(turns):
            place += len(ids)
            # The third turn is the last: nobody is asked what comes after it.
            if k in (0, 2) and ids[-1] == chat[1].eos_id:
                steps.setdefault(place, []).append(row)
                ended[row] += 1
    assert list(map(len, calls)) == [len(steps[place]) for place in sorted(steps)]
    assert max(map(len, calls)) > 1 and len(calls) > 10
    for call, place in zip(calls, sorted(steps)):
        assert [int(messages[0]["content"][:-1]) for messages in call] == steps[place]
        assert {messages[-1]["role"] for messages in call} == {"assistant"}


def test_max_turns_ends_a_conversation(chat):
    def again(conversations, **columns):
        return [[{"role": "user", "content": "?"}] for _ in conversations]
    for max_turns in (1, 2):
        rollout, _, _ = sampled(chat, again, max_turns=max_turns)
        lengths = [len(turns) for turns in split_turns(rollout)]
        assert max(lengths) == 2 * max_turns - 1
        assert rollout.finished[[n == max(lengths) for n in lengths]].sum() > 8
    # Without that, an environment that never ends is ended by max_new_tokens.
    rollout, _, _ = sampled(chat, again, max_turns=1000)
    assert not rollout.finished.any()


def test_a_special_tokens_text_is_text(chat):
    def says(conversations, **columns):
        return [[{"role": "user", "content": "<|endoftext|>"}] for _ in conversations]
    rollout, _, _ = sampled(chat, says, max_new_tokens=48)
    told = [turns[1] for turns in split_turns(rollout) if len(turns) > 2]
    text = [*"<|endoftext|>".encode()]
    assert told
    for ids in told:
        assert ids[ids.index(text[0]):][:len(text)] == text
        assert [i for i in ids if i >= 256] == [chat[1].eos_id]


@pytest.mark.parametrize("given, message", [
    ("te", "gave 'te' for 2 conversations (line 1, line 2), expected a list of one reply each"),
    (["text"], "gave 1 values for 2 conversations (line 1, line 2), expected a list of one reply"),
    (["one", None], "gave 'one' on line 1, expected None or a list"),
    ([None, {"role": "user", "content": "x"}], "on line 2, expected None or a list"),
    ([[], None], "gave [] on line 1, expected None or a list"),
    ([None, [{"role": "user"}]], "gave [{'role': 'user'}] on line 2"),
    ([None, [{"role": "user", "content": 3}]], "on line 2, expected None"),
    ([[{"role": "assistant", "content": "x"}], None], "none of them the assistant's"),
    (None, "gave None for 2"), (3, "gave 3 for 2"), ({1: 2, 3: 4}, "gave {1: 2, 3: 4} for 2")])
def test_what_is_no_list_of_messages_is_named(chat, given, message):
    def world(conversations, **columns):
        return given
    examples = examples_of(chat[1], 2)
    environment = Conversations(world, chat[1], examples, 4)
    replies = [environment(row, [65, chat[1].eos_id]) for row in range(2)]
    with pytest.raises(UserError) as error:
        replies[0]()
    text = str(error.value)
    assert message in text and "the environment world" in text and "\n" not in text
    assert error.value.status == 1


def test_an_environment_that_raises_is_named_with_the_line_and_the_row(chat):
    def world(conversations, **columns):
        raise KeyError("x")
    environment = Conversations(world, chat[1], examples_of(chat[1], 2), 4)
    reply = environment(1, [65, chat[1].eos_id])
    with pytest.raises(UserError, match=r"the environment world failed at \S+test_conversations.py,"
                       r" line \d+: KeyError\('x'\), on line 2"):
        reply()


def test_a_template_that_rewrites_what_was_said_is_named(chat):
    _, tokenizer = chat
    tokenizer.chat_template = SHORT_TEMPLATE.replace(
        "m.content", "(m.content if loop.last else m.content[:1])")
    examples = examples_of(tokenizer, 2)
    environment = Conversations(echo, tokenizer, examples, 4)
    reply = environment(1, [65, 66, 67, 68, tokenizer.eos_id])
    with pytest.raises(UserError, match="line 2: the chat template writes a conversation and its"):
        reply()


def test_who_waits_long_is_told_for_what(chat, monkeypatch, capsys):
    monkeypatch.setattr(environments, "SLOW", 0.01)

    def slow(conversations, **columns):
        time.sleep(0.1)
        return [None] * len(conversations)
    environment = Conversations(slow, chat[1], examples_of(chat[1], 2), 4)
    assert environment(1, [65, chat[1].eos_id])() is None
    assert capsys.readouterr().err == "waiting for the environment slow, on line 2\n"


def test_several_processes_hold_one_conversation(chat, processes):  # noqa: F811
    """Rewards are the first process's: it has the messages of all rows."""
    model, tokenizer = chat
    examples = examples_of(tokenizer, 7)

    def sample():
        environment = Conversations(echo, tokenizer, examples, 3)
        rollout = parallel.generate(model, [example["ids"] for example in examples], 40,
                                    tokenizer.stop_ids, 1.0, torch.Generator().manual_seed(0),
                                    100, environment)
        turns = split_turns(rollout)
        return turns, environment.completions(turns)
    [expected] = processes(1, sample)
    assert max(map(len, expected[0])) > 1
    for n in (2, 3, 8):
        assert processes(n, sample) == [expected] * n


def test_a_reward_function_reads_the_messages_of_an_answer(chat):
    _, tokenizer = chat
    rollout, environment, examples = sampled(chat, echo)
    turns = split_turns(rollout)
    seen = []

    def reward(prompts, completions, good, finished):
        seen.extend(completions)
        return [float(len(completion)) for completion in completions]
    rewards = reward_answers(reward, examples, [sum(ids, []) for ids in turns],
                             rollout.finished.tolist(), tokenizer, environment.completions(turns))
    cut_off_turns = 0
    for completion, ids, found, finished in zip(seen, turns, rewards, rollout.finished):
        roles = [message["role"] for message in completion]
        # Two messages, of a tool and of a user, for each reply.
        n_turns, n_replies = roles.count("assistant"), roles.count("tool")
        assert found == len(roles) == n_turns + 2 * n_replies
        assert n_turns == (len(ids) + 1) // 2 and n_replies in (n_turns - 1, n_turns)
        assert not finished or n_replies == n_turns - 1
        cut_off_turns += not finished and n_turns > n_replies
    assert cut_off_turns


def test_the_example_s_conversations_are_what_its_environment_says():
    """And its answers are right, by hand."""
    path = Path(environments.__file__).parent.parent / "examples" / "calculator.py"
    ask = load_environment(f"{path}:calculator")
    make = load_environment(f"{path}:problem")
    rng, n_asked = random.Random(0), 0
    for _ in range(200):
        example = make(rng)
        question = example["prompt"][0]["content"]
        a, b, c = map(int, re.findall(r"\d+", question))
        right = a * b + c if "finds" in question else a * b - c
        *before, last = example["messages"]
        assert example["answer"] == last["content"] == str(right)
        assert ask([example["messages"]]) == [None]
        if len(before) > 1:
            n_asked += 1
            *before, reply = before
            assert ask([before, before]) == [[reply]] * 2
    assert 40 < n_asked < 80
    said = ["[1+1]", "so [1+1] ", "[1+1].", "[x]", "[[2]", "1+1]", ""]
    replies = ask([[{"role": "assistant", "content": text}] for text in said])
    assert [reply and reply[0]["content"] for reply in replies] == [
        "2", "2", None, "error", "2", None, None]


# ------------------------------------------------------------------------------------ whole runs

RL = ["--model", "chat", "--data", "chats.jsonl", "--environment", "world.py:echo",
      "--max-turns", "3", "--reward", "world.py:score", "--max-new-tokens", "40", "--steps", "3",
      "--eval-every", "2", "--save-every", "1", "--eval-problems", "8"]
SCRIPTS = {
    "grpo": (train_grpo, [*RL, "--prompts-per-step", "4", "--group-size", "4"]),
    "ppo": (train_ppo, [*RL, "--prompts-per-step", "16", "--critic-warmup", "1"])}


@pytest.fixture(scope="module")
def whole(here):
    """Of each script, a run."""
    runs = {}
    previous = Path.cwd()
    os.chdir(here)
    for name, (script, flags) in SCRIPTS.items():
        script.main([*flags, "--out", f"whole_{name}"])
        runs[name] = here / f"whole_{name}"
    os.chdir(previous)
    return runs


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_shows_what_was_told_apart_and_counts_calls(whole, name):
    rows = read_metrics(whole[name])
    for row in rows:
        assert 0 < float(row["asks"]) < 1 and float(row["asks"]) < float(row["calls"]) < 2
    samples = (whole[name] / "samples.txt").read_text()
    assert "<|endoftext|>«\nt>" in samples


def test_the_gradient_skips_what_was_told(chat, tmp_path, monkeypatch):
    """The first update of GRPO, computed again from the actions of each row alone."""
    seen = {}
    inner = train_grpo.token_log_probs_and_entropies

    def watched(policy, tokens, mask, *more):
        seen.setdefault("masks", []).append((tokens, mask))
        return inner(policy, tokens, mask, *more)
    monkeypatch.setattr(train_grpo, "token_log_probs_and_entropies", watched)
    inner_generate = parallel.generate

    def generated(*arguments):
        rollout = inner_generate(*arguments)
        if "rollout" not in seen and arguments[4] == 1.0:
            seen["rollout"] = rollout
        return rollout
    monkeypatch.setattr(parallel, "generate", generated)
    train_grpo.main([*SCRIPTS["grpo"][1], "--out", str(tmp_path / "run"), "--steps", "1",
                     "--eval-every", "0", "--minibatches", "1"])
    rollout = seen["rollout"]
    [turns] = [split_turns(rollout)]
    n_actions = sum(int(mask.sum()) for _, mask in seen["masks"])
    assert n_actions == sum(len(ids) for row in turns for ids in row[::2])
    assert n_actions < sum(len(ids) for row in turns for ids in row)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_kill_in_the_middle_of_a_call_loses_nothing(whole, name):
    script, flags = SCRIPTS[name]
    flags = [flag.replace("world.py:echo", "world.py:killed") for flag in flags]
    Path("calls.txt").unlink(missing_ok=True)
    Path("calls.txt").touch()
    child = start(script.main, [*flags, "--out", f"cut_{name}"])
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (Path(f"cut_{name}") / "model").exists()
    script.main(["--out", f"cut_{name}", "--resume"])
    assert result(Path(f"cut_{name}")) == result(whole[name])


def test_evaluate_takes_the_run_s_environment_and_chat_shows_turns(
        place, whole, capsys, monkeypatch):
    evaluate.main([str(whole["grpo"]), "--json", "--problems", "4", "--samples", "2"])
    found = json.loads(capsys.readouterr().out)
    assert found["calls"] > 0
    lines = iter(["7:", ""])
    monkeypatch.setattr(evaluate, "read_line", lambda: next(lines))
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None, rand=torch.rand: rand(
        *shape, generator=torch.Generator().manual_seed(3)))
    evaluate.main([str(whole["grpo"]), "--chat", "--environment", "world.py:always"])
    assert "«\nt>" in capsys.readouterr().out
    for flags, message in ((["--task", "products"], "--task has no effect with data"),
                           (["--environment", "world.py:none"], "has no function none")):
        with pytest.raises(UserError, match=message):
            evaluate.main([str(whole["grpo"]), *flags])
    with pytest.raises(UserError, match="--environment needs --data"):
        evaluate.main(["chat", "--environment", "world.py:echo"])
    with pytest.raises(UserError, match="speaks in messages, and this model has no chat template"):
        evaluate.main([str(place / "sft"), "--chat", "--environment", "world.py:echo"])


def test_flags_that_have_no_effect_are_refused(here, tmp_path):
    out = ["--out", str(tmp_path / "run")]
    for flags, message in (
            (["--environment", "world.py:echo"], "--environment needs --data with prompts of"),
            ([*RL[:4], "--reward", "world.py:score", "--max-turns", "3"],
             "--max-turns has no effect without --environment"),
            ([*RL, "--environment", "world.py:none"], "world.py has no function none"),
            ([*RL, "--environment", "nowhere.py:f"],
             "--environment nowhere.py:f: expected FILE.py:FUNCTION with a file that exists"),
            ([*RL, "--task", "products"], "--task has no effect with --data")):
        for script in (train_grpo, train_ppo):
            with pytest.raises(UserError, match=message):
                script.main([*flags, *out])
    text = [json.dumps({"prompt": f"{i}:"}) for i in range(3)]
    Path("text.jsonl").write_text("\n".join(text))
    with pytest.raises(UserError, match="text.jsonl, line 1: prompt is text, expected messages"):
        train_grpo.main([*RL, *out, "--data", "text.jsonl"])
    with pytest.raises(UserError, match="--task products has no reward model of its own"):
        train_ppo.main(["--task", "products", *out])
    assert not (tmp_path / "run").exists()
