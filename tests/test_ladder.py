"""ladder/: every rung is short, few of its lines are new, and its mathematics, written out in
place, is that of losses.py and advantages.py; what its README says is what the CSV files hold."""
import ast
import copy
import csv
import difflib
import importlib
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import losses
from advantages import gae, grpo_advantages, token_rewards
from model import ModelConfig, ScalarModel, Transformer
from rollout import generate, sequence_scores, token_log_probs, token_values
from support import ladder
from support.models import torch_rng
from support.tokenizer import builtin_tokenizer

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "ladder"))
import measure  # noqa: E402

FILES = [ROOT / "ladder" / f"{rung}.py" for rung in ladder.RUNGS]
REINFORCE, BASELINE, ACTOR_CRITIC, PPO, RLHF, GRPO, DPO = (
    importlib.import_module(rung) for rung in ladder.RUNGS)
PAGES = [ROOT / "ladder" / "README.md", ROOT / "ladder" / "README.zh-CN.md"]


# ------------------------------------------------------------------------------------ few new lines

def code_lines(file: Path) -> list[str]:
    """Its lines without docstrings, comments, blank lines and indentation."""
    text = file.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.partition("  #")[0].strip()
        if line and not line.startswith("#") and number not in docstrings:
            found.append(line)
    return found


def new_lines(before: Path, after: Path) -> list[str]:
    diff = difflib.unified_diff(code_lines(before), code_lines(after), n=0, lineterm="")
    return [line for line in list(diff)[2:] if line.startswith("+")]


def test_the_rungs_are_the_files():
    assert sorted((ROOT / "ladder").glob("[0-9]*.py")) == FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_rung_is_short_and_imports_no_mathematics(file):
    assert 30 < len(file.read_text(encoding="utf-8").splitlines()) <= 110
    imported = {node.module for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom)}
    assert not imported & {"losses", "advantages", "methods"}


@pytest.mark.parametrize("before, after", list(zip(FILES, FILES[1:])), ids=ladder.RUNGS[1:])
def test_few_lines_of_a_rung_are_new(before, after):
    assert 0 < len(new_lines(before, after)) <= 25


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_user_can_put_right_is_one_line(file, tmp_path, monkeypatch, capsys):
    """Here runs/sft, from which all begin, is what is left of something else."""
    run = tmp_path / "runs" / "sft"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(file)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(file), run_name="__main__")
    [line] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith(f"{file.name}: error: runs/sft/config.json: not the settings of a run")


# ------------------------------------------------------------------------- the same loss, by itself

@pytest.fixture
def x():
    """What losses are computed from, far from neutral: ratios on both sides of the clip. Rows have
    prompts and answers of different lengths."""
    generator = torch.Generator().manual_seed(0)
    B, T = 16, 9
    start = torch.randint(1, 4, (B,), generator=generator)
    end = torch.randint(5, 10, (B,), generator=generator)
    column = torch.arange(T)
    mask = (column >= start[:, None]) & (column < end[:, None])

    def noise(scale):
        return scale * torch.randn(B, T, generator=generator) * mask
    logp = -noise(1).abs()
    return {"mask": mask, "logp": logp.requires_grad_(), "old_logp": logp.detach() + noise(0.3),
            "ref_logp": logp.detach() + noise(0.5), "values": noise(0.5),
            "rewards": torch.randint(0, 2, (B,), generator=generator).float(),
            "scores": torch.randn(B, generator=generator)}


def same(loss, expected, inputs):
    """Two losses, and their gradients by the same inputs."""
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, retain_graph=True))
    assert all(gradient.abs().max() > 1e-3 for gradient in found)


def test_reinforce(x):
    logp, rewards, mask = x["logp"], x["rewards"], x["mask"]
    expected, _ = losses.policy_gradient_loss(logp, rewards, mask)
    same(REINFORCE.policy_loss(logp, rewards, mask), expected, [logp])


def test_baseline(x):
    logp, mask = x["logp"], x["mask"]
    advantages = BASELINE.estimate_advantages(x["rewards"])
    # The whole batch is one group.
    torch.testing.assert_close(advantages, grpo_advantages(x["rewards"], 16, scale=False))
    expected, _ = losses.policy_gradient_loss(logp, advantages, mask)
    same(BASELINE.policy_loss(logp, advantages, mask), expected, [logp])


def test_actor_critic(x):
    logp, values, mask = x["logp"], x["values"], x["mask"]
    rewards_t = token_rewards(x["rewards"], logp.detach(), logp.detach(), mask, 0.0)
    advantages, returns = gae(rewards_t, values, mask, lam=ACTOR_CRITIC.LAM)
    torch.testing.assert_close(
        ACTOR_CRITIC.estimate_advantages(x["rewards"], values, mask), advantages)
    expected, _ = losses.policy_gradient_loss(logp, advantages, mask)
    same(ACTOR_CRITIC.policy_loss(logp, advantages, mask), expected, [logp])
    values = values.clone().requires_grad_()
    expected, _ = losses.value_loss(values, values.detach(), returns, mask, clip=None)
    for rung in (ACTOR_CRITIC, PPO, RLHF):
        same(rung.critic_loss(values, returns, mask), expected, [values])


def test_ppo(x):
    logp, old_logp, mask = x["logp"], x["old_logp"], x["mask"]
    advantages = ACTOR_CRITIC.estimate_advantages(x["rewards"], x["values"], mask)
    torch.testing.assert_close(
        PPO.estimate_advantages(x["rewards"], x["values"], mask), advantages)
    expected, stats = losses.ppo_policy_loss(logp, old_logp, advantages, mask, PPO.CLIP, PPO.CLIP)
    assert 0.1 < stats["clip_fraction"] < 0.9
    for rung in (PPO, RLHF):
        same(rung.policy_loss(logp, old_logp, advantages, mask), expected, [logp])


def test_rlhf(x):
    logp, ref_logp, mask = x["logp"].detach(), x["ref_logp"], x["mask"]
    rewards_t = token_rewards(x["scores"], logp, ref_logp, mask, RLHF.KL_COEF)
    expected, _ = gae(rewards_t, x["values"], mask, lam=RLHF.LAM)
    penalties = RLHF.KL_COEF * (logp - ref_logp)
    torch.testing.assert_close(
        RLHF.estimate_advantages(x["scores"], penalties, x["values"], mask), expected)


def test_grpo(x):
    rewards = x["rewards"].clone()
    # One group has no signal.
    rewards[:GRPO.GROUP_SIZE] = 1
    advantages = GRPO.estimate_advantages(rewards)
    torch.testing.assert_close(advantages, grpo_advantages(rewards, GRPO.GROUP_SIZE))
    assert (advantages[:GRPO.GROUP_SIZE] == 0).all() and advantages.abs().max() > 0.3
    arguments = x["logp"], x["old_logp"], x["ref_logp"], advantages, x["mask"]
    expected, _ = losses.grpo_loss(*arguments, GRPO.CLIP, GRPO.CLIP, GRPO.KL_COEF)
    same(GRPO.policy_loss(*arguments), expected, [x["logp"]])


def test_dpo():
    logp, ref_logp = -30 * torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(0))
    logp.requires_grad_()
    expected, _ = losses.dpo_loss(*logp, *ref_logp, beta=DPO.BETA)
    same(DPO.policy_loss(logp, ref_logp), expected, [logp])


# ------------------------------------------------------------------ the same gradient, in its loop

@pytest.fixture
def tiny(monkeypatch):
    """Every rung from a tiny random model, whose answers are right by chance. -> a function that
    takes a step of a rung, and gives its policy and critic with their gradients, the start, the
    reward model, and every call of its policy_loss."""
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    start = Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 64, 64))
    reward_model = ScalarModel(start).requires_grad_(False)
    reward_model.score.weight.normal_()
    found = {"start": start, "reward_model": reward_model, "tokenizer": tokenizer,
             "calls": [], "tokens": []}

    class QuietLog:
        def __init__(self, file, policy, tokenizer):
            found["policy"] = policy

        def add(self, step, rollout=None, rewards=None):
            found["tokens"].append(rollout and rollout.tokens)

        def add_noise(self, loss, logp):
            pass

        def finish(self, steps):
            found["steps"] = steps

    def critic_of(policy):
        found["critic"] = ScalarModel(policy)
        torch.nn.init.normal_(found["critic"].score.weight)
        found["first_critic"] = copy.deepcopy(found["critic"])
        return found["critic"]

    def take_step(rung, steps=1, **constants):
        settings = {"load_sft": lambda: (copy.deepcopy(start), tokenizer), "Log": QuietLog,
                    "ANSWERS": 16, "MAX_NEW_TOKENS": 8, "OFFSET": 0.25, "CRITIC_STEPS": 0,
                    "EPOCHS": 1, "check_answers": right_by_chance, "ScalarModel": critic_of,
                    "load_reward_model": lambda: reward_model, **constants}
        for name, value in settings.items():
            if hasattr(rung, name):
                monkeypatch.setattr(rung, name, value)
        policy_loss = rung.policy_loss

        def recorded(*arguments):
            found["calls"].append([argument.detach().clone() for argument in arguments])
            return policy_loss(*arguments)
        monkeypatch.setattr(rung, "policy_loss", recorded)
        rung.train(seed=3, steps=steps)
        return found
    return take_step


def right_by_chance(rollout, tokenizer):
    return (rollout.tokens.sum(1) % 3 == 0).float()


def sample_again(rung, found):
    prompts = ladder.make_prompts(found["tokenizer"], 16, 3, 0)
    if rung is GRPO:
        prompts = [prompt for prompt in prompts[:2] for _ in range(8)]
    return generate(found["start"], prompts, 8, found["tokenizer"].stop_ids,
                    generator=torch_rng(3, 0, "ladder sampling"))


def same_gradients(model, loss, start):
    """`model` has the gradients of `loss`, which was computed with `start`."""
    expected = torch.autograd.grad(loss, list(start.parameters()))
    for (name, p), gradient in zip(model.named_parameters(), expected):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=2e-6, msg=name)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3


@pytest.mark.parametrize("rung", [REINFORCE, BASELINE, GRPO], ids=lambda rung: rung.__name__)
def test_a_step_without_a_critic(tiny, rung):
    found = tiny(rung)
    rollout = sample_again(rung, found)
    mask, rewards = rollout.mask, right_by_chance(rollout, None)
    assert 0 < rewards.mean() < 1
    logp = token_log_probs(found["start"], rollout.tokens, mask)
    if rung is REINFORCE:
        loss, _ = losses.policy_gradient_loss(logp, rewards + 0.25, mask)
    if rung is BASELINE:
        advantages = grpo_advantages(rewards, 16, scale=False)
        loss, _ = losses.policy_gradient_loss(logp, advantages, mask)
    if rung is GRPO:
        advantages = grpo_advantages(rewards, 8)
        # At the first update the policy is the reference: k3 has no gradient yet.
        loss, _ = losses.grpo_loss(logp, logp.detach(), logp.detach(), advantages, mask)
    same_gradients(found["policy"], loss, found["start"])


@pytest.mark.parametrize("rung", [ACTOR_CRITIC, PPO, RLHF], ids=lambda rung: rung.__name__)
def test_a_step_with_a_critic(tiny, rung):
    found = tiny(rung)
    rollout = sample_again(rung, found)
    tokens, mask = rollout.tokens, rollout.mask
    rewards = right_by_chance(rollout, None)
    if rung is RLHF:
        rewards = sequence_scores(found["reward_model"], tokens, mask)
        rewards = torch.where(rollout.finished, rewards, RLHF.UNFINISHED)
    logp = token_log_probs(found["start"], tokens, mask)
    values = token_values(found["first_critic"], tokens, mask)
    rewards_t = token_rewards(rewards, logp.detach(), logp.detach(), mask, 0.0)
    advantages, returns = gae(rewards_t, values.detach(), mask, lam=rung.LAM)
    loss, _ = losses.ppo_policy_loss(logp, logp.detach(), advantages, mask)
    same_gradients(found["policy"], loss, found["start"])
    loss, _ = losses.value_loss(values, values.detach(), returns, mask, clip=None)
    same_gradients(found["critic"], loss, found["first_critic"])


@pytest.mark.parametrize("rung", [PPO, RLHF, GRPO], ids=lambda rung: rung.__name__)
def test_in_all_epochs_the_old_policy_is_the_one_that_sampled(tiny, rung):
    (first, *fixed), (second, *fixed_too) = tiny(rung, EPOCHS=2, LR=1e-2)["calls"]
    for before, after in zip(fixed, fixed_too):
        assert torch.equal(before, after)
    torch.testing.assert_close(first, fixed[0])
    assert (second - fixed[0]).abs().max() > 0.05


@pytest.mark.parametrize("rung", [ACTOR_CRITIC, PPO, RLHF], ids=lambda rung: rung.__name__)
def test_first_the_critic_learns_alone(tiny, rung):
    found = tiny(rung, CRITIC_STEPS=1)
    for p, p_start in zip(found["policy"].parameters(), found["start"].parameters()):
        assert torch.equal(p, p_start)
    assert any(p.grad.abs().max() > 0 for p in found["critic"].parameters())


def test_the_penalty_of_rlhf_is_the_distance_to_the_start(tiny, monkeypatch):
    """In a second step the policy has moved, and the reference has not."""
    seen = []
    estimate = RLHF.estimate_advantages

    def recorded(scores, penalties, values, mask):
        seen.append((penalties, mask))
        return estimate(scores, penalties, values, mask)
    monkeypatch.setattr(RLHF, "estimate_advantages", recorded)
    found = tiny(RLHF, steps=2, LR=1e-2)
    (first, _), (second, mask) = seen
    assert first.abs().max() == 0
    _, (_, old_logp, _, _) = found["calls"]
    prompts = ladder.make_prompts(found["tokenizer"], 16, 3, 1)
    tokens = found["tokens"][1]
    assert tokens[0, :len(prompts[0])].tolist() == prompts[0]
    ref_logp = token_log_probs(found["start"], tokens, mask).detach()
    torch.testing.assert_close(second, RLHF.KL_COEF * (old_logp - ref_logp))
    assert second.abs().max() > 0.01


def test_a_step_of_dpo(tiny, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(97, 110, (n,), generator=generator).tolist()
    pairs = [{"prompt": ids(3), "chosen": ids(2 + i % 3), "rejected": ids(4)} for i in range(6)]
    monkeypatch.setattr(DPO, "sample_pairs", lambda *arguments: pairs)
    found = tiny(DPO, PAIRS=6)
    tokens, mask = DPO.pad_pairs(pairs, "cpu")
    logp = [token_log_probs(found["start"], tokens[side], mask[side]).sum(1) for side in (0, 1)]
    loss, _ = losses.dpo_loss(*logp, *(x.detach() for x in logp), beta=DPO.BETA)
    same_gradients(found["policy"], loss, found["start"])


# ------------------------------------------------------------------------------ what is measured

def test_the_check_is_the_verifier(tiny):
    tokenizer = builtin_tokenizer()

    class Rollout:
        prompts = ["1+2+3=", "1+2+3=", "10+2+3=", "1+2+3="]
        answers = ["6", "7", "<think>10+2=12, 12+3=15</think>15", "6"]
        finished = torch.tensor([True, True, True, False])
        rows = [tokenizer.encode(p) + tokenizer.encode(a) for p, a in zip(prompts, answers)]
        prompt_lengths = torch.tensor([len(tokenizer.encode(p)) for p in prompts])
        tokens = torch.zeros(4, max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, :len(row)] = torch.tensor(row)

        def responses(self):
            return [tokenizer.encode(a) for a in self.answers]
    assert ladder.check_answers(Rollout(), tokenizer).tolist() == [1, 0, 1, 0]


def test_gradient_noise_of_known_gradients():
    """A policy with one weight a column. Answer i has gradient g_i: the mean of 8 parts of 2."""
    generator = torch.Generator().manual_seed(0)
    g = 1 + torch.randn(16, 3, generator=generator)
    policy = torch.nn.Linear(1, 3, bias=False)
    logp = (g @ policy.weight)                                              # (16, 1)
    variance, signal = ladder.gradient_noise(policy, logp.mean(), logp)
    parts = g.view(8, 2, 3).mean(1)
    part_variance = ((parts - parts.mean(0)) ** 2).sum() / 7
    assert variance == pytest.approx(2 * part_variance.item(), rel=1e-5)
    assert signal == pytest.approx(
        ((g.mean(0) ** 2).sum() - part_variance / 8).item(), rel=1e-5)


@pytest.mark.parametrize("rung", [BASELINE, GRPO], ids=lambda rung: rung.__name__)
def test_a_run_says_what_changed_and_leaves_a_picture(rung, place, tmp_path, monkeypatch, capsys):
    shutil.copytree(place / "sft", tmp_path / "runs" / "sft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ladder, "EVAL_PROBLEMS", 8)
    for name, value in {"ANSWERS": 16, "EPOCHS": 1}.items():
        if hasattr(rung, name):
            monkeypatch.setattr(rung, name, value)
    log = rung.train(steps=6)
    out = capsys.readouterr().out
    assert [row["step"] for row in log.steps] == list(range(7))
    assert re.findall(r"^step (\d+)  accuracy [\d.]+", out, re.M) == ["0", "5"]
    before, this = out.split("\n")[-4:-2]
    assert before.startswith(ladder.RUNGS[ladder.RUNGS.index(rung.__name__) - 1])
    assert this.startswith(rung.__name__) and this.endswith("this run")
    assert (tmp_path / "runs" / "ladder" / f"{rung.__name__}.png").stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["ladder", "sft"]


def test_what_is_missing_is_trained_first(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []

    def train(arguments):
        calls.append(arguments)
        shutil.copytree(place / "sft", tmp_path / "runs" / "sft", dirs_exist_ok=True)
    for _ in range(2):
        found = ladder.find_trained("runs/sft", train)
        assert (found / "config.json").is_file()
    assert calls == [["--out", "runs/sft", "--device", "cpu"]]
    assert "training it first" in capsys.readouterr().out


def test_the_noise_is_measured_once():
    """At the first update, and of the policy as it is then."""
    policy = torch.nn.Linear(1, 2, bias=False)
    log = ladder.Log("x/2_baseline.py", policy, None)
    noises = []
    for scale in (1.0, 5.0):
        g = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)) + 1
        logp = scale * g @ policy.weight
        log.add_noise(logp.mean(), logp)
        noises.append(log.noise)
    assert log.rung == "2_baseline" and noises[0] == noises[1]


# ------------------------------------------------------------------------------------- the page

def test_the_page_s_table_is_of_the_csv_files():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for row in measure.table_rows():
            assert row in text, (page.name, row)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_s_numbers_are_the_table_s(page):
    text = page.read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d+\.\d+", "\n".join(measure.table_rows())))
    prose = re.sub(r"`[^`]*`|https://[^)]*|eq. 2.9|式 2.9|^ {4}.*", "", text, flags=re.M)
    rewards = [row for row in measure.read_csv(ROOT / "ladder" / "baseline.csv")]
    wrong, right = (int(row["answers"]) for row in rewards)
    numbers |= {f"{measure.best_baseline():.2f}", f"{right / (wrong + right):.2f}"}
    assert set(re.findall(r"\d+\.\d+", prose)) <= numbers
    for row in rewards:
        assert f" {row['squared_length']}" in prose


def test_the_best_baseline_makes_the_variance_smallest():
    (n_wrong, x_wrong), (n_right, x_right) = (
        (int(row["answers"]), float(row["squared_length"]))
        for row in measure.read_csv(ROOT / "ladder" / "baseline.csv"))

    def second_moment(b):
        return n_right * (1 - b) ** 2 * x_right + n_wrong * (0 - b) ** 2 * x_wrong
    b = measure.best_baseline()
    assert second_moment(b) < min(second_moment(b - 1e-3), second_moment(b + 1e-3))


def test_every_rung_has_as_many_runs():
    with open(ROOT / "ladder" / "results.csv", newline="", encoding="utf-8") as f:
        found = sorted((row["rung"], row["seed"]) for row in csv.DictReader(f))
    seeds = sorted({seed for _, seed in found})
    assert found == sorted((name, seed) for name in measure.CURVES for seed in seeds)
    for page in PAGES:
        assert f"<!-- seeds: {len(seeds)} -->" in page.read_text(encoding="utf-8")


def test_the_figure_is_drawn_from_the_csv_files(tmp_path):
    measure.draw(tmp_path)
    found, drawn = (Image.open(folder / "curves.png").text["Sources"]
                    for folder in (ROOT / "ladder", tmp_path))
    assert found == drawn, "draw it anew: python ladder/measure.py --figures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_s_diffs_are_the_files(page):
    """In each section's diff, what is added is a new line of its rung, and what goes was there."""
    text = page.read_text(encoding="utf-8")
    sections = re.findall(r"^## (\d)\..*?```diff\n(.*?)```", text, re.M | re.S)
    assert [number for number, _ in sections] == list("1234567")
    for number, diff in sections:
        i = int(number) - 1
        mine = code_lines(FILES[i])
        before = code_lines(FILES[i - 1]) if i else []
        for line in diff.strip().split("\n"):
            sign, code = line[0], line[1:]
            assert (code in mine, code in before) == (sign == "+", sign == "-"), (number, line)


def test_both_languages_have_the_same_blocks():
    english, chinese = (
        re.findall(r"^```.*?^```|^ {4}[^\n]+", page.read_text(encoding="utf-8"), re.M | re.S)
        for page in PAGES)
    assert len(english) > 15 and english == chinese


def test_what_the_page_says_of_the_numbers():
    after = {name: {step: sum(values) / len(values) for step, values in at.items()}
             for name, at in measure.accuracies().items()}
    noise = {name: measure.noise(name) for name in measure.CURVES}
    first, shifted, baseline, critic, ppo, rlhf, grpo, dpo = measure.CURVES
    assert after[baseline][15] < after[first][15] and noise[baseline] > noise[first]
    assert noise[shifted] == max(noise[name] for name in measure.CURVES[:-1])
    assert noise[rlhf] == min(noise[name] for name in measure.CURVES[:-1])
    assert noise[ppo] < noise[baseline] < min(noise[critic], noise[grpo])
    assert after[ppo][10] > after[critic][10]
    assert all(after[grpo][5] >= at[5] for at in after.values())
    assert all(after[dpo][15] <= at[15] for at in after.values())


def test_local_links_resolve():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        local = [link for link in links if "://" not in link]
        assert len(local) >= 4 and all((page.parent / link).exists() for link in local)
