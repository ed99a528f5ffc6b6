"""evaluate.py takes a run as it was trained: held-out rows, reward, length, temperature, start."""
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import evaluate
import train_grpo
from model import ModelConfig, Transformer
from support import parallel
from support.cli import UserError
from support.pretrained import load_pretrained, save_pretrained
from support.rl import load_prompts
from support.tokenizer import Tokenizer, builtin_tokenizer

FEW = ["--problems", "4", "--samples", "2"]


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A run of GRPO on data, with a reward, length and temperature of its own; it has moved."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    train_grpo.main([
        "--model", str(place / "sft"), "--data", str(place / "sft.jsonl"), "--out", str(run),
        "--reward", f"{place / 'reward.py'}:vowels", "--max-new-tokens", "5",
        "--temperature", "0.7", "--steps", "3", "--prompts-per-step", "8", "--group-size", "4",
        "--lr", "3e-3", "--eval-problems", "4", "--eval-every", "0"])
    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own, in which a test may make a runs/sft."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What `generate` is called with: (prompts, max_new_tokens, temperature)"""
    calls, generate = [], parallel.generate

    def watched(model, prompts, max_new_tokens, stop_ids, temperature, *more, **named):
        calls.append((prompts, max_new_tokens, temperature))
        return generate(model, prompts, max_new_tokens, stop_ids, temperature, *more, **named)
    monkeypatch.setattr(parallel, "generate", watched)
    return calls


def changed(run, path, **settings):
    """A copy of a run whose config.json says something else; a setting of None is left out."""
    shutil.copytree(run, path)
    config = json.loads((path / "config.json").read_text()) | settings
    config = {name: value for name, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    return path


def measured(capsys, *flags) -> dict:
    evaluate.main([*map(str, flags), "--json"])
    return json.loads(capsys.readouterr().out)


def other_tokenizer() -> Tokenizer:
    """The built-in one and another special token."""
    files = dict(builtin_tokenizer().files)
    spec = json.loads(files["tokenizer.json"])
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 260, "content": "<|more|>"})
    return Tokenizer({**files, "tokenizer.json": json.dumps(spec).encode()}, Path("other"))


def test_a_run_evaluates_as_many_rows_at_once_as_its_steps_sample(place, here, asked):
    """The same answers, whatever fits into a micro-batch: its noise is drawn row by row."""
    found = []
    for tokens in ("1", "10000"):
        asked.clear()
        train_grpo.main([
            "--model", str(place / "sft"), "--data", str(place / "sft.jsonl"), "--out", tokens,
            "--reward", f"{place / 'reward.py'}:vowels", "--max-new-tokens", "5", "--steps", "1",
            "--prompts-per-step", "1", "--group-size", "4", "--eval-problems", "6",
            "--micro-batch-tokens", tokens])
        sizes = [len(prompts) for prompts, _, _ in asked]
        evaluation = [4, 2] if tokens == "1" else [6]
        # Greedy and sampled, before and after the only step.
        assert sizes == [*evaluation, *evaluation, 4, *evaluation, *evaluation]
        found.append(Path(tokens, "samples.txt").read_text().split("=== step 1")[0])
    assert found[0] == found[1]
    asked.clear()
    evaluate.main(["1", "--problems", "6", "--samples", "1", "--micro-batch-tokens", "1"])
    assert [len(prompts) for prompts, _, _ in asked] == [4, 2, 4, 2]


# --------------------------------------------------------------------------- what KL is measured to

def test_kl_is_measured_to_the_model_that_the_run_started_from(place, trained, here, capsys):
    """Whatever lies in runs/sft: here a model of another vocabulary."""
    random = Transformer(ModelConfig(261, 32, 2, 2, 1, 64, 64))
    save_pretrained(random, other_tokenizer(), here / "runs" / "sft" / "model")
    expected = measured(capsys, trained, *FEW, "--reference", place / "sft")["kl"]
    assert expected > 0.01 and measured(capsys, trained, *FEW)["kl"] == expected

    start = str(place / "sft" / "model")
    noted = changed(trained, here / "noted", model="")
    assert measured(capsys, noted, *FEW)["kl"] == expected
    unnoted = changed(trained, here / "unnoted", model=start, inputs=None)
    assert measured(capsys, unnoted, *FEW)["kl"] == expected

    # a run from before starts were noted, without --model
    shutil.rmtree(here / "runs" / "sft")
    shutil.copytree(place / "sft", here / "runs" / "sft")
    default = changed(trained, here / "default", model="", inputs=None)
    assert measured(capsys, default, *FEW)["kl"] == expected


def test_what_has_no_start_has_no_kl(place, trained, here, capsys):
    """A model directory, and SFT from nothing: runs/sft is nobody's reference by lying there."""
    shutil.copytree(place / "sft", here / "runs" / "sft")
    reward = ["--data", place / "sft.jsonl", "--reward", f"{place / 'reward.py'}:vowels", *FEW]
    assert "kl" not in measured(capsys, trained / "model", *reward)
    nothing = changed(place / "sft", here / "nothing", model="", inputs=None)
    assert "kl" not in measured(capsys, nothing, *reward)
    assert measured(capsys, trained / "model", *reward, "--reference", place / "sft")["kl"] > 0
    assert capsys.readouterr().err == ""


def test_a_start_that_is_gone_costs_the_kl_alone(trained, here, capsys):
    inputs = {"model": {"path": "gone", "sha256": "0"}}
    run = changed(trained, here / "run", model="gone", inputs=inputs)
    evaluate.main([str(run), *FEW, "--json"])
    out, err = capsys.readouterr()
    assert "kl" not in json.loads(out) and "sampled" in json.loads(out)
    assert len(err.splitlines()) == 1 and "gone" in err and "KL is left out" in err


def test_another_model_in_the_start_s_place_is_not_the_start(place, trained, here, capsys):
    shutil.copytree(place / "sft" / "model", here / "start")
    inputs = json.loads((trained / "config.json").read_text())["inputs"]
    run = changed(trained, here / "run", inputs={"model": {**inputs["model"], "path": "start"}})
    assert "kl" in measured(capsys, run, *FEW)
    shutil.copy(trained / "model" / "model.safetensors", here / "start")
    evaluate.main([str(run), *FEW, "--json"])
    out, err = capsys.readouterr()
    assert "kl" not in json.loads(out)
    assert len(err.splitlines()) == 1 and "start, which it started from, is another model" in err


@pytest.mark.parametrize("size, length, tokenizer, message", [
    (261, 64, other_tokenizer, "it has another tokenizer"),
    (300, 64, builtin_tokenizer, "its vocabulary has 300 rows, expected 260"),
    (260, 6, builtin_tokenizer, "its context is 6 tokens, expected at least")])
def test_a_reference_that_does_not_fit_is_refused_before_anything_is_sampled(
        trained, here, asked, size, length, tokenizer, message):
    model = Transformer(ModelConfig(size, 32, 2, 2, 1, 64, length))
    save_pretrained(model, tokenizer(), here / "other")
    with pytest.raises(UserError, match=f"other: .*{message}") as error:
        evaluate.main([str(trained), *FEW, "--reference", "other"])
    assert "\n" not in str(error.value) and not asked


# ----------------------------------------------------------------------- what is evaluated, and how

def test_a_run_is_evaluated_as_it_was_trained(trained, here, asked, capsys):
    """On the rows that it held out, with its reward, at most as long, and as hot."""
    settings = json.loads((trained / "config.json").read_text())
    names = {f.name for f in fields(train_grpo.Config)} & settings.keys()
    config = train_grpo.Config(**{**{name: settings[name] for name in names}, "eval_problems": 512})
    model, tokenizer = load_pretrained(trained / "model")
    _, held_out = load_prompts(config, tokenizer, model)
    result = measured(capsys, trained, "--samples", "2")
    (prompts, *greedy), (repeated, *sampled) = asked
    # all of them, not only the four that evaluations used while it was trained
    assert len(prompts) > 4 and prompts == [e["ids"] for e in held_out]
    assert repeated == [ids for ids in prompts for _ in range(2)]
    assert greedy == [5, 0.0] and sampled == [5, 0.7]
    # a share of vowels, not right or wrong
    assert result["problems"] == len(held_out) and 0 < result["sampled"] < 1


def test_flags_overrule_the_run(place, trained, here, asked, capsys):
    (here / "reward.py").write_text("def half(prompts, *_, **__): return [0.5] * len(prompts)")
    (here / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    result = measured(capsys, trained, "--samples", "2", "--max-new-tokens", "3",
                      "--temperature", "1.5", "--data", "rows.jsonl", "--reward", "reward.py:half")
    assert asked[1] == ([[97], [97], [98], [98]], 3, 1.5) and result["sampled"] == 0.5
    # right is a reward over one half
    assert result["pass@1"] == result["pass@2"] == 0


def test_a_model_directory_has_the_defaults_of_old(trained, asked, capsys):
    measured(capsys, trained / "model", "--problems", "3", "--samples", "1")
    assert [call[1:] for call in asked] == [(32, 0.0), (32, 1.0)]


@pytest.mark.parametrize("settings, message", [
    ({"algorithm": "ppo", "reward": ""}, "on a reward model: expected --reward"),
    ({"algorithm": "grpo", "reward": ""}, "on a reward model: expected --reward"),
    ({"algorithm": "dpo", "reward": None}, "sft.jsonl and without a reward: expected --reward"),
    ({"algorithm": "rm", "reward": None}, "run: a reward model, which gives no answers")])
def test_a_run_without_a_reward_of_its_own_asks_for_one(trained, here, asked, settings, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate.main([str(changed(trained, here / "run", **settings))])
    assert "\n" not in str(error.value) and not asked


@pytest.mark.parametrize("flag", [
    "--data x", "--reward exact", "--problems 3", "--samples 2", "--reference x", "--json"])
def test_what_a_chat_has_no_use_for_is_refused(trained, flag):
    with pytest.raises(UserError, match=f"^{flag.split()[0]} has no effect with --chat$"):
        evaluate.main([str(trained), "--chat", *flag.split()])


def test_what_counts_as_right_is_said(trained, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "reward is over 0.5" in " ".join(capsys.readouterr().out.split())
    evaluate.main([str(trained), *FEW])
    assert "reward is over 0.5" in capsys.readouterr().out


def test_json_is_all_that_stdout_holds(trained, place, tmp_path, capsys):
    """Also where the data has rows that can't be used."""
    rows = (place / "sft.jsonl").read_text() + "\n" + json.dumps({"prompt": "", "good": "a"})
    (tmp_path / "some.jsonl").write_text(rows)
    evaluate.main([str(trained), "--data", str(tmp_path / "some.jsonl"), *FEW, "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["problems"] == 4 and "dropped 1 of 61 examples" in said.err


def test_what_a_users_code_prints_stands_before_no_json_object(trained, place, tmp_path, capsys):
    (tmp_path / "loud.py").write_text("""def f(prompts, completions, **columns):
    print("scoring")
    return [1.0] * len(prompts)
""")
    evaluate.main([str(trained), "--data", str(place / "sft.jsonl"), *FEW, "--json",
                   "--reward", f"{tmp_path / 'loud.py'}:f"])
    said = capsys.readouterr()
    assert json.loads(said.out)["greedy"] == 1.0 and "scoring" in said.err
