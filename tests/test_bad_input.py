"""What people get wrong, tried on every script: one line that names what was found where, status 2,
and nothing that was there is touched."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compare
import evaluate
import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from conftest import CHAT_TEMPLATE
from model import ScalarModel, Transformer
from support.cli import script
from support.pretrained import load_pretrained, save_pretrained
from support.tokenizer import Tokenizer, builtin_tokenizer

SFT, RM, DPO, GRPO, PPO = train_sft, train_rm, train_dpo, train_grpo, train_ppo
SCRIPTS = [SFT, RM, DPO, GRPO, PPO]


def good(n: int) -> list[str]:
    return [json.dumps({"prompt": f"{i}:", "completion": "ab", "chosen": "a", "rejected": "b"})
            for i in range(n)]


# Of each name, a JSONL file's bytes.
DATA = {
    "deep": b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "empty": b"",
    "blank": b"\n \n\n",
    "binary": bytes(range(256)),
    "latin1": '{"prompt": "é"}'.encode("latin-1"),
    "utf16": '{"prompt": "a"}'.encode("utf-16"),
    "cut": "\n".join([*good(20), '{"prompt": "a", "compl', *good(3)]).encode(),
    "list": "\n".join([*good(4), "[1, 2]"]).encode(),
    "number": "\n".join([
        *good(2),
        '{"prompt": 7, "completion": "a", "chosen": "a", "rejected": "b"}']).encode(),
    "null": "\n".join([
        *good(2),
        '{"prompt": "a", "completion": null, "chosen": null, "rejected": "b"}']).encode(),
    "missing": "\n".join([*good(2), '{"text": "a"}']).encode(),
    "no_messages": b'{"prompt": [], "completion": [], "chosen": [], "rejected": []}',
    "no_content": (b'{"prompt": [{"role": "user"}], "completion": "a", '
                   b'"chosen": "a", "rejected": "b"}'),
    "mixed": (b'{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}], '
              b'"chosen": "a", "rejected": "b"}'),
    "turns": json.dumps({
        "prompt": [{"role": "user", "content": "a"}],
        **{name: [{"role": "assistant", "content": "bb"}, {"role": "user", "content": "c"},
                  {"role": "assistant", "content": "d"}]
           for name in ("completion", "chosen", "rejected")}}).encode(),
    "no_answer": (b'{"prompt": [{"role": "user", "content": "a"}], '
                  b'"completion": [{"role": "user", "content": "b"}]}'),
    "chat": (b'{"prompt": [{"role": "user", "content": "a"}], '
             b'"completion": [{"role": "assistant", "content": "b"}], '
             b'"chosen": [{"role": "assistant", "content": "b"}], '
             b'"rejected": [{"role": "assistant", "content": "c"}]}'),
    "empty_prompts": b'{"prompt": "", "completion": "a", "chosen": "a", "rejected": "b"}',
    "empty_answers": b'{"prompt": "a", "completion": "", "chosen": "", "rejected": "b"}',
    "equal": b'{"prompt": "a", "completion": "b", "chosen": "b", "rejected": "b"}',
    "answers": b'{"prompt": "a", "answer": "7"}\n{"prompt": "b", "answer": 7.5}\n{"prompt": "c"}',
    "answer_list": b'{"prompt": "a", "answer": ["7"]}',
    "answer_true": b'{"prompt": "a", "answer": true}',
    "answer_null": b'{"prompt": "a", "answer": null}',
    "answer_blank": b'{"prompt": "a", "answer": " $."}',
    "messages_text": b'{"messages": "a"}',
    "messages_chat": b'{"messages": [{"role": "assistant", "content": "a"}]}',
    "pairs": "\n".join(good(20)).encode(),
    "long": json.dumps({"prompt": "a" * 100, "completion": "b",
                        "chosen": "a", "rejected": "b"}).encode(),
}


@pytest.fixture(scope="module")
def bad(place, tmp_path_factory):
    """Files and directories that can't be used."""
    path = tmp_path_factory.mktemp("bad")
    for name, content in DATA.items():
        (path / f"{name}.jsonl").write_bytes(content)
    (path / "folder.jsonl").mkdir()
    (path / "file").write_text("mine")
    (path / "syntax.py").write_text("def f(:")
    (path / "exits.py").write_text("raise SystemExit(3)")
    (path / "reward.py").write_text(
        "def f(prompts, completions, **columns): return [0.0] * len(prompts)\nvalue = 3")

    def model(name, **changes):
        shutil.copytree(place / "sft" / "model", path / name)
        config = json.loads((path / name / "config.json").read_text())
        (path / name / "config.json").write_text(json.dumps({**config, **changes}))
        return path / name
    model("family", model_type="mamba")
    model("text_size", hidden_size="32")
    model("shape", intermediate_size=65)
    model("vocabulary", vocab_size=300)
    model("window", model_type="mistral", sliding_window=16)
    model("short", max_position_embeddings=16)
    (model("no_config") / "config.json").unlink()
    (model("config_list") / "config.json").write_text("[]")
    (model("config_deep") / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    (model("config_cut") / "config.json").write_text('{"model_type": "lla')
    (model("no_weights") / "model.safetensors").unlink()
    (model("no_tokenizer") / "tokenizer.json").unlink()
    (model("tokenizer_cut") / "tokenizer.json").write_text("{")
    (model("chats") / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    # As Qwen3's: of earlier answers it forgets what was thought.
    (model("forgets") / "chat_template.jinja").write_text(
        CHAT_TEMPLATE.replace("m.content", "(m.content if loop.last else m.content[:1])"))
    # Reward models: one that reads other tokens than the policy writes, and one with a shorter
    # context.
    for name, changes, text in (("scores_other_tokens", {}, "<plan>"),
                                ("scores_short", {"max_seq_len": 16}, "<think>")):
        tokenizer = builtin_tokenizer()
        files = {
            **tokenizer.files,
            "tokenizer.json": tokenizer.files["tokenizer.json"].replace(b"<think>", text.encode())}
        config = replace(load_pretrained(place / "sft" / "model")[0].config, **changes)
        save_pretrained(ScalarModel(Transformer(config)), Tokenizer(files, path), path / name)
    weights = model("cut_weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, change in (
            ("left_over", lambda x: {**x, "model.extra": x["model.norm.weight"].clone()}),
            ("tensor_missing", lambda x: {k: v for k, v in x.items() if k != "model.norm.weight"})):
        weights = model(name) / "model.safetensors"
        save_file(change(load_file(weights)), weights)

    def run(name, source="run"):
        return shutil.copytree(path / source, path / name)
    quick = ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
             "--reward", f"{place / 'reward.py'}:vowels", "--steps", "2",
             "--prompts-per-step", "4", "--group-size", "2", "--max-new-tokens", "4",
             "--eval-problems", "4"]
    GRPO.main(["--out", str(path / "run"), *quick])
    (run("corrupt") / "checkpoint.pt").write_bytes(b"no checkpoint")
    checkpoint = run("half") / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    shutil.copy(place / "sft" / "checkpoint.pt", run("other") / "checkpoint.pt")
    (run("lost") / "checkpoint.pt").unlink()
    (run("settings_cut") / "config.json").write_text('{"algorithm": "grpo", "ste')
    (run("settings_deep") / "config.json").write_text("[" * 100_000)
    (run("settings_other") / "config.json").write_text('{"algorithm": "grpo", "colour": "red"}')
    (run("metrics_cut") / "metrics.csv").write_text("step\n")
    shutil.rmtree(run("unfinished") / "model")
    model("hf")
    (path / "csv").mkdir()
    (path / "csv" / "metrics.csv").write_text("mine")
    (path / "model_only" / "model").mkdir(parents=True)
    (path / "model_only" / "model" / "thesis.txt").write_text("mine")
    (path / "dataset").mkdir()
    (path / "dataset" / "pairs.jsonl").write_text("mine")
    (path / "app").mkdir()
    (path / "app" / "config.json").write_text('{"algorithm": "AES"}')
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    save_pretrained(ScalarModel(policy), tokenizer, path / "scores")
    save_pretrained(ScalarModel(policy), tokenizer, run("scored") / "model")
    shutil.copy(path / "pairs.jsonl", run("data_inside") / "samples.txt")
    (path / "link").symlink_to(path / "run")
    return path


AGAIN = ["--overwrite", "--steps", "1"]
# Directories that hold no run, and the file that a run's would replace.
NO_RUNS = (("hf", "config.json"), ("app", "config.json"), ("csv", "metrics.csv"),
           ("model_only", "model"))
# Scripts, and the flags that name a model which scores what the policy writes.
SCORERS = ((GRPO, "--reward-model"), (PPO, "--reward-model"), (PPO, "--critic"))


def every(scripts, flags, message):
    return [(s, flags, message) for s in scripts]


CASES = [
    # Flags, which may not be abbreviated.
    *every([*SCRIPTS, compare], ["--colour", "red"], "unrecognized arguments: --colour red"),
    *every(SCRIPTS, ["--step", "3"], "unrecognized arguments: --step 3"),
    *every([GRPO, PPO], ["--decode-graph", "--device", "cpu"],
           "--decode-graph: found --device cpu, expected cuda"),
    *every(SCRIPTS, ["--steps", "0"], "--steps: 0 is out of range, expected at least 1"),
    *every(SCRIPTS, ["--lr", "nan"], "--lr: nan is out of range, expected at least 0"),
    (GRPO, ["extra"], "unrecognized arguments: extra"),
    (GRPO, ["--steps"], "--steps: expected one argument"),
    (GRPO, ["--steps", "1.5"], "--steps: invalid int value: '1.5'"),
    (GRPO, ["--lr", "fast"], "--lr: invalid float value: 'fast'"),
    (GRPO, ["--lr", "-1"], "--lr: -1 is out of range"),
    (PPO, ["--clip", "inf"], "--clip: inf is out of range"),
    (GRPO, ["--seed", "-1"], "--seed: -1 is out of range"),
    (GRPO, ["--group-size", "1"], "--group-size: 1 is out of range, expected at least 2"),
    (GRPO, ["--temperature", "0"], "--temperature: 0 is out of range"),
    (PPO, ["--temperature", "-1"], "--temperature: -1 is out of range"),
    (GRPO, ["--method", "ppo"], "--method: invalid choice: 'ppo'"),
    (DPO, ["--loss", "grpo"], "--loss: invalid choice: 'grpo'"),
    (GRPO, ["--dtype", "float16"], "--dtype: invalid choice: 'float16'"),
    (PPO, ["--lam", "1.5"], "--lam: 1.5 is out of range"),
    (DPO, ["--beta", "0"], "--beta: 0 is out of range"),
    (DPO, ["--label-smoothing", "0.6"], "--label-smoothing: 0.6 is out of range"),
    (SFT, ["--batch-size", "0"], "--batch-size: 0 is out of range"),
    (SFT, ["--micro-batch-tokens", "0"], "--micro-batch-tokens: 0 is out of range"),
    *[(PPO, flags, f"unrecognized arguments: {' '.join(flags)}")
      for flags in (["--group-size", "4"], ["--method", "grpo"], ["--kl-in", "loss"])],
    *[(GRPO, flags, f"unrecognized arguments: {' '.join(flags)}")
      for flags in (["--critic", "policy"], ["--loss", "dapo"], ["--advantage", "rloo"],
                    ["--dynamic-sampling"])],
    (compare, ["--seeds", "0"], "--seeds: 0 is out of range"),
    (compare, ["colour"], "unknown experiment colour, expected overoptimization, "),
    (compare, ["kl", "--jobs", "0"], "--jobs: 0 is out of range"),
    (compare, ["--figures"], "runs/compare/results.csv: not found"),
    (compare, ["kl", "--figures", "--out", "x"], "x/kl.csv: not found"),
    (compare, ["kl", "--figures", "--seeds", "7"], "--seeds has no effect with --figures"),
    (compare, ["--figures", "--jobs", "9"], "--jobs has no effect with --figures"),
    *[(compare, [name, "--jobs", "2"], f"--jobs has no effect on {name}: its runs follow each")
      for name in ("hard", "reward_models", "gradient")],
    *[(compare, [*name, "--out", "{place}/sft.jsonl"], "Not a directory: '{place}/sft.jsonl/runs'")
      for name in ([], ["stale"], ["gradient"])],
    # Flags that don't go together.
    *every([GRPO, PPO], ["--ref-ema", "0.9", "--ref-sync", "2"],
           "--ref-ema and --ref-sync are both given"),
    *every([GRPO, PPO], ["--reward", "verifier", "--reward-model", "x"],
           "--reward and --reward-model are both given"),
    *[(GRPO, ["--method", "gspo", "--aggregate", average],
       "--aggregate has no effect with --method gspo")
      for average in ("token-mean", "seq-mean", "seq-sum")],
    (GRPO, ["--method", "gspo", "--importance-cap", "2"],
     "--importance-cap has no effect with --method gspo"),
    (GRPO, ["--importance-cap", "-1"], "--importance-cap"),
    (GRPO, ["--no-signal", "skip"], "--no-signal: invalid choice: 'skip'"),
    (GRPO, ["--kl-estimator", "k4"], "--kl-estimator: invalid choice: 'k4'"),
    (GRPO, ["--kl-in", "both"], "--kl-in: invalid choice: 'both'"),
    (GRPO, ["--aggregate", "mean"], "--aggregate: invalid choice: 'mean'"),
    (GRPO, ["--data", "{place}/sft.jsonl"],
     "--data needs --reward exact, --reward FILE.py:FUNCTION or --reward-model"),
    (DPO, ["--loss", "kto", "--label-smoothing", "0.1"],
     "--label-smoothing has no effect with --loss kto"),
    *[(GRPO, ["--method", name, "--kl-in", "reward", "--kl-coef", "0.1"],
       f"--kl-in reward is not for --method {name}: where all scores of a group")
      for name in ("grpo", "dapo", "gspo", "cispo")],
    (GRPO, ["--kl-in", "reward"], "--kl-in reward is not for --method grpo"),
    *[(GRPO, ["--method", name, *updates], "expected 1 and 1")
      for name in ("rloo", "remax", "reinforce")
      for updates in (["--minibatches", "2"], ["--epochs", "2"])],
    *[(GRPO, ["--method", "rloo", "--no-signal", how],
       f"--no-signal {how}: with the KL in the reward all groups have a signal")
      for how in ("drop", "replace")],
    *[(GRPO, ["--method", name, "--no-signal", "replace"],
       f"--no-signal replace: --method {name} doesn't compare an answer with its group")
      for name in ("remax", "reinforce", "reinforce_pp")],
    *every([GRPO, PPO], ["--ref-ema", "1"],
           "--ref-ema 1 keeps the reference as it is, expected less than 1"),
    # Flags that have no effect.
    *every([GRPO, PPO], ["--kl-target", "1", "--kl-horizon", "51"], "--kl-horizon 51.0: β would "
           "fall to 0 and stay there, expected over 51.2, a fifth of a step's answers"),
    # Where groups are replaced, a step may have three times as many answers.
    (GRPO, ["--method", "dapo", "--kl-coef", "0.1", "--kl-target", "1", "--kl-horizon", "153"],
     "--kl-horizon 153.0: β would fall to 0 and stay there, expected over 153.6"),
    *every([GRPO, PPO], ["--kl-horizon", "100"], "--kl-horizon has no effect without --kl-target"),
    *[(script, ["--kl-coef", "0", *flags], f"{flags[0]} has no effect where --kl-coef is 0")
      for script in (GRPO, PPO)
      for flags in (["--kl-target", "1"], ["--ref-ema", "0.9"], ["--ref-sync", "2"])],
    *[(GRPO, ["--kl-coef", "0", *flags], f"{flags[0]} has no effect where --kl-coef is 0")
      for flags in (["--kl-in", "loss"], ["--kl-estimator", "k2"])],
    *[(GRPO, ["--method", name, *flags], f"{flags[0]} has no effect where --kl-coef is 0")
      for name in ("dapo", "cispo", "dr_grpo")
      for flags in (["--kl-target", "1"], ["--kl-in", "reward"])],
    *[(GRPO, ["--method", name, "--kl-estimator", "k2"],
       "--kl-estimator has no effect with --kl-in reward")
      for name in ("rloo", "remax", "reinforce", "reinforce_pp")],
    (GRPO, ["--method", "dr_grpo", "--kl-coef", "0.1", "--kl-in", "reward",
            "--kl-estimator", "k3"],
     "--kl-estimator has no effect with --kl-in reward"),
    *[(GRPO, ["--method", name, "--minibatches", "1", flag, "0.1"],
       f"{flag} has no effect with one update per step")
      for name in ("grpo", "gspo", "reinforce_pp") for flag in ("--clip-low", "--clip-high")],
    *[(GRPO, ["--method", name, flag, "0.1"], f"{flag} has no effect with --method {name}")
      for name in ("rloo", "remax", "reinforce") for flag in ("--clip-low", "--clip-high")],
    *every([GRPO, PPO], ["--reward", "verifier", "--unfinished-score", "0"],
           "--unfinished-score has no effect with --reward"),
    *[(PPO, ["--epochs", "1", "--minibatches", "1", flag, "0.1"],
       f"{flag} has no effect with one update per step")
      for flag in ("--clip", "--value-clip")],
    *[(script, ["--data", "x", "--reward-model", "x", flag, "5"],
       f"{flag} has no effect with --data and a reward model")
      for script in (GRPO, PPO) for flag in ("--eval-every", "--eval-problems")],
    *[(DPO, ["--loss", loss, flag, "0.5"], f"{flag} has no effect with --loss {loss}")
      for loss, flag in (("dpo", "--gamma"), ("kto", "--gamma"), ("dpo", "--desirable-weight"),
                         ("ipo", "--undesirable-weight"), ("simpo", "--label-smoothing"))],
    *[(s, ["--data", "x", flag, "5"], f"{flag} has no effect with --data")
      for s in (RM, DPO) for flag in ("--pairs", "--max-new-tokens")],
    *every([GRPO, PPO], ["--max-new-tokens", "60", "--reward", "verifier"],
           "--max-new-tokens leaves 4 tokens of the model's context for prompts"),
    # Devices.
    *every(SCRIPTS, ["--device", "tpu9"], "--device tpu9: not available here"),
    (GRPO, ["--device", "cuda:99"], "--device cuda:99: not available here, expected cuda, mps or "
     "cpu (torch: "),
    # Data.
    *every(SCRIPTS, ["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    *every(SCRIPTS, ["--data", "{bad}/folder.jsonl"], "folder.jsonl"),
    *every(SCRIPTS, ["--data", "{bad}/empty.jsonl"], "empty.jsonl: no examples in it"),
    *every(SCRIPTS, ["--data", "{bad}/cut.jsonl"], "cut.jsonl, line 21: not JSON"),
    *every(SCRIPTS, ["--data", "{bad}/deep.jsonl"], "deep.jsonl, line 1: not JSON"),
    *every(SCRIPTS, ["--data", "{bad}/chat.jsonl"],
           "chat.jsonl, line 1: this model has no chat template"),
    *every(SCRIPTS, ["--data", "{bad}/long.jsonl"],
           "long.jsonl: none of 1 examples can be used"),
    *every(SCRIPTS, ["--data", "{bad}/empty_prompts.jsonl"],
           "empty_prompts.jsonl: none of 1 examples can be used"),
    *every(SCRIPTS, ["--data", "{bad}/number.jsonl"],
           "number.jsonl, line 3: prompt is 7, expected text"),
    *every(SCRIPTS, ["--data", "{bad}/missing.jsonl"],
           "missing.jsonl, line 3: prompt is missing, expected text"),
    (GRPO, ["--data", "{bad}/blank.jsonl"], "no examples in it"),
    (SFT, ["--data", "{bad}/binary.jsonl"], "binary.jsonl: byte 128 is not UTF-8"),
    (GRPO, ["--data", "{bad}/latin1.jsonl"], "latin1.jsonl: byte 12 is not UTF-8"),
    (RM, ["--data", "{bad}/utf16.jsonl"], "utf16.jsonl: byte 0 is not UTF-8"),
    (PPO, ["--data", "{bad}/list.jsonl"], "list.jsonl, line 5: found list, expected an object"),
    (SFT, ["--data", "{bad}/null.jsonl"], "null.jsonl, line 3: completion is null"),
    (DPO, ["--data", "{bad}/null.jsonl"], "null.jsonl, line 3: chosen is null"),
    (SFT, ["--data", "{bad}/no_messages.jsonl"], "no_messages.jsonl, line 1: prompt is []"),
    (GRPO, ["--data", "{bad}/no_content.jsonl"], "no_content.jsonl, line 1: prompt is [{{"),
    (SFT, ["--data", "{bad}/mixed.jsonl"],
     "mixed.jsonl, line 1: prompt and completion mix text and messages"),
    (SFT, ["--data", "{bad}/empty_answers.jsonl"], "empty_answers.jsonl: none of 1"),
    (DPO, ["--data", "{bad}/empty_answers.jsonl"], "none of 1"),
    *every([RM, DPO], ["--data", "{bad}/equal.jsonl"], "equal.jsonl: none of 1"),
    (SFT, ["--data", "{bad}/messages_text.jsonl"],
     'messages_text.jsonl, line 1: messages is "a", expected a list of'),
    (SFT, ["--data", "{bad}/messages_chat.jsonl"],
     "messages_chat.jsonl, line 1: this model has no chat template"),
    (DPO, ["--data", "{bad}/messages_chat.jsonl"],
     "messages_chat.jsonl, line 1: prompt is missing"),
    (SFT, ["--model", "{bad}/chats", "--data", "{bad}/no_answer.jsonl"],
     "no_answer.jsonl, line 1: the completion has no message of the assistant"),
    (SFT, ["--model", "{bad}/forgets", "--data", "{bad}/turns.jsonl"],
     "turns.jsonl, line 1: the chat template writes a conversation and its"),
    *every([RM, DPO], ["--model", "{bad}/chats", "--data", "{bad}/turns.jsonl"],
           "turns.jsonl, line 1: found an answer of assistant, user, assistant, "
           "expected one message of the assistant"),
    *every([GRPO, PPO], ["--reward", "exact"],
           "--reward exact needs --data with a field `answer`"),
    *every([GRPO, PPO], ["--reward", "exact", "--data", "{bad}/answers.jsonl"],
           "answers.jsonl, line 3: answer is missing, "
           "expected text or a number for --reward exact"),
    (GRPO, ["--reward", "exact", "--data", "{bad}/answer_list.jsonl"],
     'answer_list.jsonl, line 1: answer is ["7"], expected'),
    (GRPO, ["--reward", "exact", "--data", "{bad}/answer_true.jsonl"],
     "line 1: answer is true, expected"),
    (GRPO, ["--reward", "exact", "--data", "{bad}/answer_null.jsonl"],
     "line 1: answer is null, expected"),
    (PPO, ["--reward", "exact", "--data", "{bad}/answer_blank.jsonl"],
     'line 1: answer is " $.", expected'),
    # Models.
    *every(SCRIPTS, ["--model", "nowhere"], "nowhere/config.json: not found"),
    *every(SCRIPTS, ["--model", "{bad}/file"], "file/config.json: not found"),
    (GRPO, ["--model", "{bad}/no_config"], "no_config/config.json: not found"),
    (GRPO, ["--model", "{bad}/config_list"], "config_list/config.json"),
    (GRPO, ["--model", "{bad}/config_deep"], "config_deep/config.json: not JSON"),
    (GRPO, ["--model", "{bad}/config_cut"], "config_cut/config.json: not JSON"),
    (GRPO, ["--model", "{bad}/family"], "model_type is 'mamba'"),
    (GRPO, ["--model", "{bad}/text_size"], "config.json: hidden_size is '32'"),
    (GRPO, ["--model", "{bad}/window"], "sliding_window"),
    (GRPO, ["--model", "{bad}/shape"], "has shape (64, 32), config.json says (65, 32)"),
    (GRPO, ["--model", "{bad}/vocabulary"], "has shape (260, 32)"),
    (GRPO, ["--model", "{bad}/no_weights"], "model.safetensors: not found"),
    (GRPO, ["--model", "{bad}/cut_weights"], "model.safetensors: cut off"),
    (GRPO, ["--model", "{bad}/left_over"], "model.extra is not part of this model"),
    (GRPO, ["--model", "{bad}/tensor_missing"], "norm.weight is missing"),
    (GRPO, ["--model", "{bad}/no_tokenizer"], "tokenizer.json: not found"),
    (GRPO, ["--model", "{bad}/tokenizer_cut"], "tokenizer.json: not JSON"),
    (GRPO, ["--model", "{bad}/unfinished"], "unfinished: this run is not finished"),
    (PPO, ["--critic", "{place}/sft"], "score.weight is missing"),
    (PPO, ["--critic", "value"], "value/config.json: not found"),
    *every([GRPO, PPO], ["--reward-model", "{place}/sft"], "score.weight is missing"),
    *every([GRPO, PPO], ["--reward-model", "nowhere"], "nowhere/config.json: not found"),
    *every([GRPO, PPO], ["--reward-model", "{bad}/unfinished"],
           "unfinished: this run is not finished"),
    (SFT, ["--model", "{bad}/short"], "--max-new-tokens leaves"),
    *[(script, [flag, "{bad}/scores_other_tokens"],
       f"{flag} {{bad}}/scores_other_tokens: its tokenizer is not that of the policy")
      for script, flag in SCORERS],
    *[(script, [flag, "{bad}/scores_short", "--max-new-tokens", "14"],
       "--max-new-tokens leaves 2 tokens of the model's context for prompts")
      for script, flag in SCORERS],
    # Rewards.
    *every([GRPO, PPO], ["--reward", "nowhere.py:f"],
           "--reward nowhere.py:f: expected `verifier`, `exact` or FILE.py:FUNCTION"),
    (GRPO, ["--reward", "accuracy"], "--reward accuracy: expected"),
    (GRPO, ["--reward", "{bad}/reward.py:g"], "reward.py has no function g"),
    (GRPO, ["--reward", "{bad}/reward.py:value"], "has no function value"),
    (PPO, ["--reward", "{bad}/syntax.py:f"], "SyntaxError"),
    (GRPO, ["--reward", "{bad}/exits.py:f"], "SystemExit(3)"),
    (GRPO, ["--reward", "{bad}/file:f"], "importing"),
    # Run directories.
    *every(SCRIPTS, ["--out", "{bad}/file"], "file is not a directory"),
    *every(SCRIPTS, ["--out", "{bad}/file/run"], "file is not a directory"),
    *every(SCRIPTS, ["--out", "{bad}/run"],
           "run: holds a run already (config.json, metrics.csv"),
    *every(SCRIPTS, ["--resume"], "nothing to resume"),
    (SFT, ["--out", "{bad}/run", "--resume"],
     "run/config.json: not the settings of a run of sft: ValueError('another algorithm')"),
    (GRPO, ["--out", "{bad}/run", "--resume", "--lr", "0.5", "--seed", "3"],
     "--lr is 0.5, but the run in {bad}/run was started with 0.0002; --seed is 3"),
    (GRPO, ["--out", "{bad}/run", "--resume", "--method", "rloo"],
     "--method is 'rloo', but the run in {bad}/run was started with 'grpo'"),
    (GRPO, ["--out", "{bad}/run", "--resume", "--overwrite"],
     "--resume and --overwrite are both given"),
    (GRPO, ["--out", "{bad}/corrupt", "--resume", "--steps", "4"],
     "corrupt/checkpoint.pt: can't be resumed from"),
    (GRPO, ["--out", "{bad}/half", "--resume", "--steps", "4"],
     "half/checkpoint.pt: can't be resumed from"),
    (GRPO, ["--out", "{bad}/other", "--resume", "--steps", "4"],
     "other/checkpoint.pt: can't be resumed from: ValueError: it is of sft"),
    (GRPO, ["--out", "{bad}/lost", "--resume", "--steps", "4"],
     "lost/checkpoint.pt: can't be resumed from"),
    (GRPO, ["--out", "{bad}/settings_cut", "--resume"],
     "settings_cut/config.json: not the settings of a run of grpo"),
    (GRPO, ["--out", "{bad}/settings_deep", "--resume"],
     "settings_deep/config.json: not the settings of a run of grpo"),
    (GRPO, ["--out", "{bad}/settings_other", "--resume"],
     "settings_other/config.json: not the settings of a run of grpo"),
    (GRPO, ["--out", "{bad}/metrics_cut", "--resume", "--steps", "4"],
     "metrics.csv: has 5 bytes, expected"),
    # What isn't a run's stays, also with --overwrite.
    *[(script, ["--out", f"{{bad}}/{name}", *more], f"{name}: holds {file}, but no run's config")
      for name, file in NO_RUNS for script in (SFT, GRPO) for more in ([], AGAIN)],
    *every([RM, DPO], ["--out", "{bad}/dataset", *AGAIN], "holds pairs.jsonl, but no run's config"),
    (SFT, ["--out", "{bad}/hf", "--resume"], "config.json: not the settings of a run of sft"),
    # Nor does a run replace what it starts from.
    *every(SCRIPTS, ["--out", "{bad}/run", *AGAIN, "--model", "{bad}/run"],
           "--model {bad}/run/model: is part of the run in {bad}/run, which would be replaced"),
    *every(SCRIPTS, ["--out", "{bad}/run", *AGAIN, "--model", "{bad}/run/model"],
           "--model {bad}/run/model: is part of the run in"),
    (GRPO, ["--out", "{bad}/link", *AGAIN, "--model", "{bad}/run"],
     "--model {bad}/run/model: is part of the run in {bad}/link"),
    (GRPO, ["--out", "{bad}/run", *AGAIN, "--model", "{bad}/link"],
     "--model {bad}/link/model: is part of the run in {bad}/run"),
    *every([SFT, RM, DPO],
           ["--out", "{bad}/data_inside", *AGAIN, "--data", "{bad}/data_inside/samples.txt"],
           "--data {bad}/data_inside/samples.txt: is part of the run in {bad}/data_inside"),
    *every([GRPO, PPO], ["--out", "{bad}/scored", *AGAIN, "--reward-model", "{bad}/scored"],
           "--reward-model {bad}/scored/model: is part of the run"),
    (PPO, ["--out", "{bad}/scored", *AGAIN, "--critic", "{bad}/scored",
           "--reward-model", "{bad}/scores"],
     "--critic {bad}/scored/model: is part of the run"),
    # evaluate.py
    (evaluate, ["--json"], "expected a run or model directory first"),
    (evaluate, ["nowhere"], "nowhere/config.json: not found"),
    (evaluate, ["{place}/sft", "--data", "{place}/sft.jsonl"], "--data needs --reward"),
    (evaluate, ["{place}/sft"], "sft.jsonl and without a reward: expected --reward"),
    (evaluate, ["{place}/random", "--reward", "exact"], "--reward exact needs --data with a field"),
    (evaluate, ["{place}/sft", "--reward", "exact", "--data", "{bad}/answers.jsonl"],
     "answers.jsonl, line 3: answer is missing"),
    (evaluate, ["{place}/sft", "--samples", "0"], "--samples: 0 is out of range"),
    (evaluate, ["{place}/sft", "--colour"], "unrecognized arguments: --colour"),
    (evaluate, ["{place}/random", "--max-new-tokens", "60"],
     "--max-new-tokens leaves 4 tokens"),
    (evaluate, ["{place}/random", "--reference", "nowhere"], "nowhere/config.json: not found"),
]


def tree(*roots):
    return {p: p.read_bytes() if p.is_file() else None
            for root in roots for p in root.rglob("*") if "__pycache__" not in p.parts}


def run_script(main, flags, capsys):
    """As from the shell. -> status, the lines of stderr"""
    with pytest.raises(SystemExit) as end:
        script(lambda: main(flags))
    return end.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "module, flags, message", CASES,
    ids=lambda x: (getattr(x, "__name__", None) or " ".join(x) if not isinstance(x, str) else ""))
def test_one_line_and_status_2(place, bad, tmp_path, capsys, monkeypatch, module, flags, message):
    monkeypatch.chdir(tmp_path)
    message, flags = (message.format(place=place, bad=bad),
                      [f.format(place=place, bad=bad) for f in flags])
    resumes_a_run = "--resume" in flags and "--out" in flags
    if module in SCRIPTS and not resumes_a_run:
        if "--model" not in flags:
            flags += ["--model", str(place / "sft")]
        if (module in (GRPO, PPO) and not {"--reward", "--reward-model"} & set(flags)
                and "--data needs --reward" not in message):
            flags += ["--reward", f"{bad / 'reward.py'}:f"]
    before = tree(place, bad, tmp_path)
    status, lines = run_script(module.main, flags, capsys)
    assert status == 2
    assert len(lines) == 1 and message in lines[0] and len(lines[0]) < 500
    assert tree(place, bad, tmp_path) == before


def rl(place, *flags):
    return ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"), "--out", "run",
            "--steps", "3", "--prompts-per-step", "60", "--max-new-tokens", "6",
            "--eval-every", "0", *flags]


@pytest.mark.parametrize("function, message", [
    ("raises",
     "the reward function raises failed at {place}/reward.py, line 6: ZeroDivisionError"),
    ("too_few", "the reward function too_few gave 1 values for 60 answers"),
    ("number", "the reward function number gave 1 values for 60"),
    ("nan", "the reward function nan gave nan to "),
    ("nan", "an answer to line 8, expected a finite number"),
    ("none", "the reward function none gave None to "),
])
def test_a_bad_reward_function_ends_the_run_with_status_1(
        place, tmp_path, capsys, monkeypatch, function, message):
    monkeypatch.chdir(tmp_path)
    status, lines = run_script(
        PPO.main, rl(place, "--reward", f"{place / 'reward.py'}:{function}"), capsys)
    assert (status == 1 and message.format(place=place) in lines[-1]
            and "Traceback" not in "".join(lines))
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_verifier_on_other_prompts_says_what_it_expects(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, lines = run_script(PPO.main, rl(place, "--reward", "verifier"), capsys)
    assert status == 1 and "expected a sum such as '17+58+23='" in lines[-1]


def test_from_the_shell(tmp_path):
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, root / "train_grpo.py", "--group-size", "1"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert done.stderr == (
        "train_grpo.py: error: argument --group-size: 1 is out of range, expected at least 2 "
        "(see --help)\n")


def end_of(command: list[str], n_lines: int) -> tuple[int, str]:
    """As in `command | head -n`: it is read from until it has printed so many lines.

    -> status, stderr. Its output is buffered, as a pipe's is."""
    process = subprocess.Popen([sys.executable, *command], cwd=Path(__file__).parent.parent,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": ""})
    for _ in range(n_lines):
        assert process.stdout.readline()
    process.stdout.close()
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize("n_printed, n_read", [(100000, 1), (3, 0)])
def test_a_pipe_that_is_closed_is_no_error_of_the_script(n_printed, n_read):
    """python evaluate.py ... | head. The second writes all of its output when it ends."""
    code = ("from support.cli import script\n"
            "def main():\n"
            f"    for i in range({n_printed}):\n"
            "        print(i)\n"
            "script(main)\n")
    assert end_of(["-c", code], n_read) == (1, "")


@pytest.mark.parametrize("command", ["exercises/bug.py", "exercises/check.py"])
def test_exercises_end_quietly_as_well(command):
    assert end_of([command], 0) == (1, "")


@pytest.mark.parametrize("name, says", [
    ("train_grpo.py", "stopped at once: the same command goes on from the last checkpoint with "
     "--resume, if there is one"),
    ("compare.py", "stopped at once")])
def test_ctrl_c_promises_resume_only_where_there_is_such_a_flag(name, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])

    def interrupted(flags):
        raise KeyboardInterrupt
    assert run_script(interrupted, [], capsys) == (130, ["", says])


def test_a_full_gpu_is_one_line_that_says_what_takes_less(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_grpo.py"])

    def fill(flags):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.\n")
    status, [empty, line] = run_script(fill, [], capsys)
    assert status == 1 and empty == "" and all(part in line for part in (
        "--micro-batch-tokens", "--grad-checkpoint", "--resume", "Tried to allocate 2.00 GiB"))
