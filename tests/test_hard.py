"""The worlds of rare rewards and of credit: their models, and what is measured on them."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
import train_grpo
import train_ppo
import train_sft
from lab import credit, hard
from lab.gradient import make_pool
from model import ModelConfig, ScalarModel, Transformer
from rollout import token_values
from support.cli import parse
from support.models import torch_rng
from support.plot import read_csv
from support.pretrained import load_pretrained, save_pretrained
from support.tokenizer import builtin_tokenizer
from task import demonstration, encode_problems

TOKENIZER = builtin_tokenizer()


def test_the_untrained_model_is_written_once_and_for_all(tmp_path):
    hard.write(tmp_path)
    model, tokenizer = load_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == 274_608
    assert tokenizer.encode("<think>") == TOKENIZER.encode("<think>")
    hard.write(tmp_path / "again")
    again, _ = load_pretrained(tmp_path / "again" / "small")
    assert all(map(torch.equal, model.parameters(), again.parameters()))


@pytest.mark.parametrize("rewards, half_step, half_samples", [
    ([0.0, 0.25, 0.5, 0.375], 3, 60), ([0.5, 0.0, 0.0, 0.0], 1, 10), ([0.25] * 4, 5, 125)])
def test_pace(rewards, half_step, half_samples):
    """The first step at which half is right; where there is none, a step more than there were."""
    rows = [{"reward": str(reward), "samples": str(samples)}
            for reward, samples in zip(rewards, (10, 20, 30, 40))]
    assert hard.pace(rows) == {"mean_reward": pytest.approx(sum(rewards) / 4), "all_samples": 100,
                               "half_step": half_step, "half_samples": half_samples}


def test_every_setting_starts_from_its_seeds_model(tmp_path, monkeypatch):
    """And what is finished is not run again. Each command is one that its script accepts."""
    asked, evaluated = [], []

    def script(name, module):
        def main(argv):
            parse(module.Config, "", [*argv])
            asked.append((name, argv))
            path = Path(argv[argv.index("--out") + 1])
            path.mkdir(parents=True)
            (path / "metrics.csv").write_text("step,reward,samples\n1,0.25,8\n2,0.5,8\n")
        return main

    for module in (train_sft, train_grpo, train_ppo):
        monkeypatch.setitem(hard.SCRIPTS, f"{module.__name__}.py",
                            script(module.__name__, module))
    monkeypatch.setattr(evaluate, "main", lambda argv: evaluated.append(argv) or print(
        '{"sampled": 0.5, "greedy": 0.25, "pass@8": 1, "reasons": 0.75}'))
    rows = hard.run(tmp_path, 2, quick=True)
    n = len(hard.RUNS)
    assert len(asked) == len(evaluated) == 1 + 2 * (1 + n)
    # An SFT model that thinks comes first, from an untrained one.
    assert [name for name, _ in asked[:3]] == ["train_sft", "train_sft", "train_grpo"]

    def given(argv, flag):
        return argv[argv.index(flag) + 1]

    assert given(asked[0][1], "--model") == str(tmp_path / "runs" / "small")
    assert given(asked[1][1], "--model") == given(asked[0][1], "--out")
    paths = set()
    for i, (_, argv) in enumerate(asked[2:2 + n] + asked[3 + n:]):
        seed = i // n
        assert given(argv, "--seed") == str(seed) and given(argv, "--steps") == "20"
        assert given(argv, "--model").endswith(f"hard_sft-{seed}")
        paths.add(given(argv, "--out"))
    assert len(paths) == 2 * n
    assert len(rows) == 4 * n and {row["setting"] for row in rows} == {*hard.RUNS}
    assert [row["half_step"] for row in rows[:2]] == ["", 2]
    assert rows[1]["mean_reward"] == 0.375 and rows[1]["pass@8"] == 1
    asked.clear()
    assert hard.run(tmp_path, 2, quick=True) == rows and asked == []


def test_a_run_is_the_one_of_its_command(tmp_path, monkeypatch):
    """A run of another command is made anew, and so is what started from it; one of which no
    command is known counts as this one."""
    ran = []

    def main(argv):
        ran.append(Path(argv[argv.index("--out") + 1]).name)

    for name in hard.SCRIPTS:
        monkeypatch.setitem(hard.SCRIPTS, name, main)
    monkeypatch.setattr(evaluate, "main", lambda argv: print('{"sampled": 0.5}'))
    runs = tmp_path / "runs"

    def run(settings):
        ran.clear()
        for setting in settings:
            hard.run_setting(tmp_path, setting, 5, 0)
        return ran

    assert run(["GRPO", "PPO"]) == ["hard_base", "hard_sft-0", "hard_GRPO_5-0", "hard_PPO_5-0"]
    (runs / "hard_GRPO_5-0.tokens.json").write_text("[]")
    (runs / "hard_PPO_5-0.tokens.json").write_text("[]")
    monkeypatch.setitem(hard.RUNS, "GRPO", f"{hard.GRPO} --epochs 3")
    assert run(["GRPO", "PPO"]) == ["hard_GRPO_5-0"] and run(["GRPO", "PPO"]) == []
    # Of the run that is gone nothing is left.
    assert [file.name for file in runs.glob("*.tokens.json")] == ["hard_PPO_5-0.tokens.json"]
    monkeypatch.setattr(hard, "SFT", f"{hard.SFT} --batch-size 8")
    assert run(["GRPO", "PPO"]) == ["hard_sft-0", "hard_GRPO_5-0", "hard_PPO_5-0"]
    for file in runs.glob("*.json"):
        file.write_text('{"sampled": 0.5}')
    assert run(["GRPO", "PPO"]) == []


def test_the_first_wrong_token():
    problem = {"prompt": "12+34+56+7="}
    [text] = demonstration(problem["prompt"], True)

    def found(answer):
        return credit.first_wrong(TOKENIZER, problem, [*TOKENIZER.encode(answer), 256])

    right = text.replace("<think>", "_")
    assert found(text) == len(right) + 1 - len("</think>") + 1
    wrong = text.replace("46+56=102", "46+56=112")
    assert found(wrong) == right.index("46+56=102") + len("46+56=1")
    assert found(text[:-1]) == len(TOKENIZER.encode(text)) - 1
    assert found("109") == 0


def tokens_of(answer, right, values, truth_1, truth_2, ppo, wrong):
    rows = zip(values, truth_1, truth_2, ppo)
    return [{"answer": answer, "right": right, "value": v, "truth_1": a, "truth_2": b, "ppo": p,
             "after_wrong": t - wrong} for t, (v, a, b, p) in enumerate(rows)]


def test_summary_by_hand():
    """A right answer and two wrong ones: V falls at the first wrong token of one of them, and a
    token late in the other; the truth falls at both. At their last tokens V falls further, to the
    reward, as any V must: that does not count."""
    rows = [*tokens_of(0, 1, [.5, .7], [.4, .8], [.6, 1.], [.1, .3], 2),
            *tokens_of(1, 0, [.6, .55, .4], [.6, .8, .0], [.4, .8, .2], [-.1, -.4, -.1], 1),
            *tokens_of(2, 0, [.6, .7, .5], [.6, .0, .0], [.6, .2, .0], [.0, -.6, .0], 0)]
    found = credit.summary(rows)
    assert found["at_wrong_value"] == 0.5 and found["at_wrong_truth"] == 1
    assert found["near_wrong_value"] == 1
    # The truth is the mean of its halves, and after the end it is the reward.
    value = [.5, .7, .6, .55, .4, .6, .7, .5]
    truth = [.5, .9, .5, .8, .1, .6, .1, .0]
    changes = [.4, .1, .3, -.7, -.1, -.5, -.1, .0]
    ppo, grpo = [.1, .3, -.1, -.4, -.1, .0, -.6, .0], [1, 1, 0, 0, 0, 0, 0, 0]

    def covariance(x, y):
        a, b = sum(x) / len(x), sum(y) / len(y)
        return sum((i - a) * (j - b) for i, j in zip(x, y))

    def correlation(x, y):
        return covariance(x, y) / (covariance(x, x) * covariance(y, y)) ** 0.5

    expected = {"correlation": correlation(value, truth),
                "bound": correlation([r["truth_1"] for r in rows], [r["truth_2"] for r in rows]),
                "slope": covariance(value, truth) / covariance(value, value),
                "mean_value": sum(value) / 8, "mean_truth": sum(truth) / 8,
                "credit_ppo": correlation(ppo, changes), "credit_grpo": correlation(grpo, changes)}
    for name, number in expected.items():
        assert found[name] == pytest.approx(number), name


def test_every_token_is_measured(tmp_path, monkeypatch):
    """V is the critic's before the token, the truth that of its prefix, and the advantage GAE's."""
    torch.manual_seed(0)
    policy = Transformer(ModelConfig(TOKENIZER.vocab_size, dim=16, n_layers=1, n_heads=2,
                                     n_kv_heads=1, ffn_dim=16))
    critic = ScalarModel(policy)
    torch.nn.init.normal_(critic.score.weight)
    save_pretrained(policy, TOKENIZER, tmp_path / "model")
    torch.save({"parts": {"critic": critic.state_dict()}}, tmp_path / "checkpoint.pt")
    [problem] = encode_problems([{"prompt": "12+34+56+7="}], TOKENIZER)
    answer = [*TOKENIZER.encode("<think>12+34=47"), 256]
    pool = make_pool(policy, TOKENIZER, [problem], 1, torch_rng(0, 0, "test"), 4)
    row = [*problem["ids"], *answer]
    mask = torch.arange(len(row))[None] >= len(problem["ids"])
    pool = replace(pool, tokens=torch.tensor([row]), mask=mask, rewards=torch.zeros(1))
    monkeypatch.setattr(credit, "thinking_answers", lambda *_: pool)
    places = torch.arange(len(row)).float()
    asked = []

    def continued(policy, tokenizer, pool, n, rng, longest):
        asked.append((n, longest))
        return torch.stack([places[None], places[None] + 100])

    monkeypatch.setattr(credit, "continue_prefixes", continued)
    rows = credit.measure(tmp_path, 3)
    assert asked == [(32, 40)] and [r["token"] for r in rows] == [
        TOKENIZER.decode([i]) for i in answer]
    values = token_values(critic, pool.tokens, mask)[mask].tolist()
    assert [r["value"] for r in rows] == pytest.approx(values, abs=1e-4)
    first = len(problem["ids"])
    assert [r["truth_1"] for r in rows] == [first + t for t in range(len(answer))]
    assert [r["truth_2"] for r in rows] == [first + t + 100 for t in range(len(answer))]
    # The 7 is the first wrong token.
    assert [r["after_wrong"] for r in rows] == list(range(-8, 2))
    deltas = [b - a for a, b in zip(values, [*values[1:], 0.0])]
    expected = [sum(0.95 ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]
    assert [r["ppo"] for r in rows] == pytest.approx(expected, abs=1e-4)
    assert credit.LAM == train_ppo.Config().lam


def test_credit_is_measured_on_the_runs_of_hard(tmp_path, monkeypatch):
    """Three lengths of PPO for each seed; samples and seconds add up over the steps."""
    asked = []

    def run_setting(out, setting, steps, seed):
        asked.append((setting, steps, seed))
        path = out / f"{setting}-{steps}-{seed}"
        path.mkdir(exist_ok=True)
        (path / "metrics.csv").write_text(
            "step,reward,samples,seconds\n1,0.25,64,1.5\n2,0.5,64,2\n")
        return path

    token = {"prompt": "12+34+56+7=", "token": "4", "place": 0}
    rows = [{**token, **row} for row in (
        *tokens_of(0, 1, [.5, .7], [.4, .8], [.6, 1.], [.1, .3], 2),
        *tokens_of(1, 0, [.6, .5, .1], [.6, .8, .0], [.4, .8, .2], [-.1, -.4, -.1], 1))]
    alone = []
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(credit, "run_setting", run_setting)
    monkeypatch.setattr(credit, "train", lambda path, command, model: alone.append(
        (command.split(), model)) or path)
    monkeypatch.setattr(credit, "measure", lambda run, seed: rows)
    table = credit.run(tmp_path, 2, quick=True)
    settings = ["after 6 steps", "after 15 steps", "after 20 steps", "then the critic alone"]
    assert [(row["setting"], row["seed"]) for row in table] == [
        (setting, seed) for seed in (0, 1) for setting in settings]
    assert [(words[words.index("--critic-warmup") + 1], model.name) for words, model in alone] == [
        ("4", "PPO-20-0"), ("4", "PPO-20-1")]
    assert table[0]["correlation"] == pytest.approx(credit.summary(rows)["correlation"])
    assert {("PPO", steps, 1) for steps in (6, 15, 20)} | {("GRPO", 20, 1)} <= {*asked}
    runs = read_csv(tmp_path / "credit_runs.csv")
    assert [(r["samples"], r["seconds"]) for r in runs[:2]] == [("64.0", "1.5"), ("128.0", "3.5")]
    assert len(runs) == 2 * 2 * 2
    tokens = read_csv(tmp_path / "credit_tokens.csv")
    assert [row["setting"] for row in tokens[::5]] == settings
    credit.draw(tmp_path)
    assert (tmp_path / "credit_curves.png").is_file()
