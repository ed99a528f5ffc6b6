"""lab/gradient.py: its estimates are the gradients of the project's own
losses, and on a world of seven answers their means are what an exact sum says."""
import dataclasses
import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import compare
import methods
from advantages import gae, token_rewards, whiten
from lab import gradient as study, gradient_page
from losses import count_for, ppo_policy_loss
from model import ModelConfig, Transformer
from rollout import token_log_probs
from support.cli import UserError
from support.plot import read_csv
from support.pretrained import save_pretrained
from support.rl import KLCoefficient
from support.tokenizer import builtin_tokenizer

# Tokens 0, 1 and the stop token 2; answers of two tokens at most: seven.
ANSWERS = [(2,), *itertools.product((0, 1), (0, 1, 2))]
PROMPTS = [[0], [1, 0], [0, 0], [1, 1]]
# A right answer is short to some prompts and long to others.
REWARDS = torch.tensor([[1, 0, 0, 1, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0],
                        [0, 0, 0, 1, 1, 1, 1]]).double()


class World:
    """A small policy, and all of its answers to four prompts as a Pool: rows 7 i to 7 i + 6."""

    def __init__(self):
        torch.manual_seed(3)
        self.policy = Transformer(ModelConfig(3, 16, 2, 4, 2, 24, 8, qk_norm=True)).double()
        for p in self.policy.parameters():
            p.data.add_(torch.randn_like(p), alpha=0.2)
        rows = [(i, y) for i in range(4) for y in ANSWERS]
        tokens = torch.zeros(28, 4, dtype=torch.long)
        mask = torch.zeros(28, 4, dtype=torch.bool)
        for u, (i, y) in enumerate(rows):
            n = len(PROMPTS[i])
            tokens[u, :n + len(y)] = torch.tensor([*PROMPTS[i], *y])
            mask[u, n:n + len(y)] = True
        self.pool = study.Pool(
            [{"ids": prompt} for prompt in PROMPTS], tokens, mask, REWARDS.flatten(),
            problem=torch.arange(4).repeat_interleave(7), row=torch.arange(28).view(4, 7),
            greedy=torch.tensor([1.0, 0.0, 0.0, 1.0]).double())
        self.sketch = study.Sketch(self.policy, 12, 12)
        self.scores, = study.score_answers(self.pool, [mask.double()], self.sketch)

    def grad(self, y):
        """∇y, projected."""
        self.policy.zero_grad()
        y.backward()
        return self.sketch.of_gradients()

    def p(self):
        """π of each answer, with a gradient. (4, 7)"""
        logp = token_log_probs(self.policy, self.pool.tokens, self.pool.mask)
        return logp.sum(1).view(4, 7).exp()

    def truth(self, rewards=REWARDS):
        return self.grad((self.p() * rewards).sum(1).mean())


@pytest.fixture(scope="module")
def world():
    return World()


def close(found, expected, rtol=1e-5):
    assert (found - expected).norm() < rtol * expected.norm()


def cosine(a, b):
    return F.cosine_similarity(a.double(), b.double(), dim=0).item()


def test_a_sketch_is_the_projected_gradient_of_all_parameters(world):
    """Every weight, the one that embedding and head share too, with any weights of the tokens."""
    w = torch.rand(28, 4, generator=torch.Generator().manual_seed(0)).double()
    found, again = study.score_answers(world.pool, [w, 2 * w], world.sketch)
    for u in range(28):
        logp = token_log_probs(world.policy, world.pool.tokens[u:u + 1], world.pool.mask[u:u + 1])
        close(found[u], world.grad((logp * w[u]).sum()))
    close(again, 2 * found)
    assert not any(m._forward_hooks for m in world.policy.modules())


def test_a_parameter_that_no_sketch_holds_is_refused():
    with pytest.raises(ValueError, match="q_proj.bias"):
        study.Sketch(Transformer(ModelConfig(5, 16, 2, 4, 2, 24, 8, qkv_bias=True)))


def test_the_projection_keeps_cosines():
    """Of gradients of a model with the built-in one's width, on the size that the study has."""
    torch.manual_seed(0)
    policy = Transformer(ModelConfig(260, 128, 2, 4, 2, 256, 64, qk_norm=True))
    sketch = study.Sketch(policy)
    whole, small = [], []
    for i in range(8):
        tokens = torch.randint(0, 260, (1, 12))
        policy.zero_grad()
        token_log_probs(policy, tokens, torch.arange(12)[None] > 1 + i % 3).sum().backward()
        whole.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
        small.append(sketch.of_gradients())
    exact, found = (F.cosine_similarity(x[:, None], x[None], dim=-1)
                    for x in (torch.stack(whole), torch.stack(small)))
    assert (exact - found).abs().max() < 0.08
    assert abs(torch.stack(small).norm(dim=1) / torch.stack(whole).norm(dim=1) - 1).max() < 0.1


def test_the_true_gradient_is_the_exact_one(world):
    """4096 answers to each prompt, as often as their probability says: only rounding is left."""
    p = world.p().detach()
    n = (p * 4096).round().long()
    n[:, 0] += 4096 - n.sum(1)
    row = torch.stack([(torch.arange(7) + 7 * i).repeat_interleave(n[i]) for i in range(4)])
    pool = dataclasses.replace(world.pool, row=row)
    blocks = torch.arange(4).chunk(4)
    found = study.true_gradient(pool, world.scores, blocks)
    assert found.shape == (4, 144)
    close(found.mean(0), world.truth(), 5e-3)


def mean_of_all_groups(world, estimator):
    """The gradient of one group on average, over all groups of answers to a prompt and over
    prompts: Σ w ∇log π, without what the loss divides by."""
    G, total = estimator.group, 0
    members = torch.tensor(list(itertools.product(range(7), repeat=G)))                 # (7^G, G)
    for i in range(4):
        p_group = world.p().detach()[i][members].prod(1)
        rows = members.flatten() + 7 * i
        mask = world.pool.mask[rows]
        w = study.token_weights(estimator, world.pool.rewards[rows], mask,
                                greedy=world.pool.greedy[[i]].expand(len(members)))
        divided_by = count_for(mask, estimator.config.aggregate, estimator.config.max_new_tokens)
        per_answer = w.sum(1) / mask.sum(1) * divided_by * p_group.repeat_interleave(G)
        total = total + per_answer @ world.scores[rows] / G
    return total / 4


@pytest.mark.parametrize("method, group, factor", [
    ("reinforce", 1, 1), ("rloo", 2, 1), ("rloo", 4, 1), ("remax", 1, 1), ("remax", 2, 1),
    ("dr_grpo", 2, 1 / 2), ("dr_grpo", 4, 3 / 4)])
def test_unbiased_estimators_have_the_exact_gradient_on_average(world, method, group, factor):
    assert world.p().sum(1).tolist() == pytest.approx([1] * 4)
    found = mean_of_all_groups(world, study.of_method("", method, group))
    close(found, factor * world.truth())


def test_dividing_by_the_std_is_biased_as_predicted(world):
    """Right or wrong: two or three answers that differ have one standard deviation, which bends
    nothing. Of G answers, k of them right, it is s_k = √(k (G - k) / (G (G - 1))): a problem whose
    answers are right with probability p weighs

        c(p) = Σ_j Bin(G - 1, p)(j) ((1 - (j + 1) / G) / s_{j+1} + (j / G) / s_j)."""
    for G in (2, 3):
        found = mean_of_all_groups(world, study.of_method("", "grpo", G, aggregate="seq-sum"))
        assert cosine(found, world.truth()) > 1 - 1e-9
    G = 4
    found = mean_of_all_groups(world, study.of_method("", "grpo", G, aggregate="seq-sum"))
    p = (world.p().detach() * REWARDS).sum(1)
    weight = torch.zeros(4).double()
    for j in range(G):
        share = math.comb(G - 1, j) * p ** j * (1 - p) ** (G - 1 - j)
        right = (1 - (j + 1) / G) / (((j + 1) * (G - j - 1) / (G * (G - 1))) ** 0.5 + 1e-4)
        wrong = j / G / ((j * (G - j) / (G * (G - 1))) ** 0.5 + 1e-4)
        weight += share * (right + wrong)
    close(found, world.truth(REWARDS * weight[:, None]), 1e-6)
    assert cosine(found, world.truth()) < 1 - 1e-6


def test_dividing_by_length_maximises_reward_per_token(world):
    """The mean over each answer, of two: what one earns more than the other, per its own token."""
    found = mean_of_all_groups(world, study.of_method("", "dr_grpo", 2, aggregate="seq-mean"))
    value = (world.p().detach() * REWARDS).sum(1, keepdim=True)
    length = world.pool.mask.sum(1).view(4, 7)
    close(found, world.truth((REWARDS - value) / length / 2))
    assert cosine(found, world.truth()) < 0.995


@pytest.mark.parametrize("estimator", study.ESTIMATORS, ids=lambda e: e.name)
def test_an_estimate_is_the_gradient_of_the_project_s_loss(world, estimator):
    """256 answers (ReMax: 128, 252), their loss by hand, one backward pass."""
    pool, config = world.pool, estimator.config
    rng = torch.Generator().manual_seed(1)
    chosen = torch.randint(0, 4, (estimator.n_prompts,), generator=rng)
    answers = torch.randint(0, 7, (len(chosen), estimator.group), generator=rng)
    rows = (answers + 7 * chosen[:, None]).flatten()
    tokens, mask, rewards = pool.tokens[rows], pool.mask[rows], pool.rewards[rows]
    assert estimator.n_samples == len(rows) + len(chosen) * estimator.is_greedy <= 256
    logp = token_log_probs(world.policy, tokens, mask)
    old, zero = logp.detach(), torch.zeros(mask.shape).double()
    if estimator.critic:
        values = torch.rand(28, 4, generator=rng).double() * (estimator.critic != "new")
        raw, _ = gae(token_rewards(pool.rewards, zero[:28], zero[:28], pool.mask, 0.0), values,
                     pool.mask, lam=config.lam)
        weighted, = study.score_answers(pool, [raw], world.sketch)
        found = study.estimate(estimator, pool, chosen, rows, world.scores, weighted, raw)
        loss, _ = ppo_policy_loss(logp, old, whiten(raw[rows], mask), mask)
    else:
        def answer(*_, **__):
            return None, pool.greedy[chosen]
        advantages = methods.unweighted_advantages(config, answer, lambda step: None, 0, rewards,
                                                   old, old, mask, 0.0)
        loss, _ = methods.policy_loss(config, KLCoefficient(config), logp, old, None, advantages,
                                      mask, count_for(mask, config.aggregate, 32))
        found = study.estimate(estimator, pool, chosen, rows, world.scores)
    close(found, -world.grad(loss), 1e-4)


def test_drawn_batches_are_groups_of_different_answers(world):
    e = study.of_method("", "rloo", 4)
    prompts, rows = study.draw_batch(e, world.pool, torch.tensor([1, 3]),
                                     torch.Generator().manual_seed(0))
    groups = rows.view(64, 4)
    assert set(prompts.tolist()) == {1, 3} and (groups // 7 == prompts[:, None]).all()
    assert all(len(set(group)) == 4 for group in groups.tolist())
    assert len(set(rows.tolist())) == 14


def test_statistics_of_known_noise():
    """Estimates with a known mean and variance: the cosine of single batches is the one that is
    computed, and the number of answers that is said to be needed gives 0.9."""
    rng = torch.Generator().manual_seed(0)
    k, n = 64, 400
    g, mu = torch.zeros(k), torch.zeros(k)
    g[0], mu[0], mu[1] = 1.0, 0.5, 0.1              # a cosine of 0.98
    batches = mu + 0.1 * torch.randn(4, n, k, generator=rng)
    truths = g + 0.02 * torch.randn(4, k, generator=rng)
    found = study.jackknife(batches.mean(1), truths, batches.var(1).sum(-1), 256)
    assert found["direction"] == pytest.approx(0.5 / 0.26 ** 0.5, abs=0.01)
    assert found["noise"] == pytest.approx(256 * 0.64 / 0.26, rel=0.05)
    assert F.cosine_similarity(batches, g, dim=-1).mean().item() == pytest.approx(
        found["cosine"], abs=0.01)
    averaged = mu + 0.1 * (256 / found["needed"]) ** 0.5 * torch.randn(4000, k, generator=rng)
    assert F.cosine_similarity(averaged, g, dim=-1).mean().item() == pytest.approx(0.9, abs=0.01)
    assert 0 < found["direction_error"] < 0.05 and 0 < found["needed_error"] < 0.3
    # Half as many samples behind the same batches: half of the noise a sample.
    assert study.summarise(batches.mean(1), truths, batches.var(1).sum(-1), 128)["needed"] == (
        pytest.approx(found["needed"] / 2))
    # The mean points elsewhere: no number of answers helps.
    mu[1] = 0.5
    away = mu + 0.1 * torch.randn(4, n, k, generator=rng)
    assert study.summarise(
        away.mean(1), truths, away.var(1).sum(-1), 256)["needed"] == float("inf")
    # Noise has nothing in common with other noise, but a lot with itself.
    noise = torch.randn(4, 10000, generator=rng)
    assert abs(study.between(noise, noise)) < 300 < noise.square().sum(1).mean()


def test_values_are_the_share_of_right_continuations(world, monkeypatch):
    """The exact value of every prefix is a sum over the answers that begin so."""
    index = {y: n for n, y in enumerate(ANSWERS)}
    monkeypatch.setattr(study, "is_right", lambda tokenizer, problem, ids: REWARDS[
        PROMPTS.index(problem["ids"]), index[tuple(ids)]].item())
    monkeypatch.setattr(study, "Decoder", lambda model: model)         # of float32 only
    policy, tokenizer = world.policy, SimpleNamespace(stop_ids={2})
    values = study.continue_prefixes(policy, tokenizer, world.pool, 1000,
                                     torch.Generator().manual_seed(0), 2)
    p = world.p().detach()
    for u, (i, y) in enumerate((i, y) for i in range(4) for y in ANSWERS):
        for t in range(len(y)):
            same = [n for n, other in enumerate(ANSWERS)
                    if len(other) > t and other[:t] == y[:t]]
            exact = (p[i, same] * REWARDS[i, same]).sum() / p[i, same].sum()
            place = len(PROMPTS[i]) + t
            assert values[:, u, place].mean().item() == pytest.approx(exact.item(), abs=0.07)
    assert (values[:, ~world.pool.mask] == 0).all() and not torch.equal(*values)


def test_a_part_of_a_pool_keeps_its_problems(world):
    part, kept = study.part_of(world.pool, 2, 3)
    assert part.problems == [world.pool.problems[0], world.pool.problems[2]]
    assert kept.tolist() == [0, 1, 2, 14, 15, 16] and part.row.tolist() == [[0, 1, 2], [3, 4, 5]]
    for tokens, problem in zip(part.tokens.tolist(), part.problem):
        prompt = part.problems[problem]["ids"]
        assert tokens[:len(prompt)] == prompt
    assert part.rewards.tolist() == REWARDS[::2, :3].flatten().tolist()


def test_a_pool_is_what_was_sampled(world, monkeypatch, tokenizer):
    """Equal answers to one problem are one row, to two problems two rows."""
    drawn = iter([[[2], [0, 2], [2], [2]], [[2], [2]]])
    monkeypatch.setattr(study, "sample_in_parts", lambda *_: next(drawn))
    monkeypatch.setattr(study, "is_right", lambda t, problem, ids: float(
        len(problem["ids"]) + len(ids)))
    pool = study.make_pool(None, None, [{"ids": [0]}, {"ids": [1, 0]}], 2, None, 2)
    assert pool.row.tolist() == [[0, 1], [2, 2]] and pool.problem.tolist() == [0, 0, 1]
    assert pool.tokens.tolist() == [[0, 2, 0], [0, 0, 2], [1, 0, 2]]
    assert pool.responses() == [[2], [0, 2], [2]]
    assert pool.rewards.tolist() == [2, 3, 3] and pool.greedy.tolist() == [2, 3]


def test_an_answer_is_right_if_it_ends_by_itself_and_the_sum_is_right(tokenizer):
    problem, ids = {"prompt": "1+2+3="}, tokenizer.encode("6")
    assert study.is_right(tokenizer, problem, [*ids, tokenizer.eos_id]) == 1
    assert study.is_right(tokenizer, problem, ids) == 0
    assert study.is_right(tokenizer, problem, [*ids, *ids, tokenizer.eos_id]) == 0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The whole study, of a model that says anything: right is what ends on an even token. It is
    cut off after the first policy, and goes on with the second."""
    out = tmp_path_factory.mktemp("study")
    tokenizer = builtin_tokenizer()
    torch.manual_seed(0)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 32, 1, 2, 1, 32, 64))
    save_pretrained(model, tokenizer, out / "model")
    patch = pytest.MonkeyPatch()
    patch.setattr(study, "LONGEST", 3)
    patch.setattr(study, "WARMUP_STEPS", 1)
    patch.setattr(study, "QUICK", study.Size(16, 64, 8, 4, 2, 6))
    patch.setattr(study, "Sketch", functools.partial(study.Sketch, p=8, q=8))
    # Both policies are the same one.
    patch.setattr(study, "collect", functools.cache(study.collect))
    patch.setattr(study, "is_right", lambda tokenizer, problem, ids: float(ids[0] % 2))
    study.run(out, {"one": out / "model"}, quick=True)
    study.run(out, {"one": None, "two": out / "model"}, quick=True)
    patch.undo()
    compare.main(["gradient", "--figures", "--out", str(out)])
    return out


def test_the_study_writes_its_numbers_page_and_figure(found):
    rows = read_csv(found / "gradient.csv")
    assert [row["method"] for row in rows] == 2 * [e.name for e in study.ESTIMATORS]
    number = {row["method"]: {key: float(x) for key, x in row.items() if key not in (
        "method", "policy")} for row in rows[:len(study.ESTIMATORS)]}
    rloo, dr_grpo = number["RLOO, G = 8"], number["Dr. GRPO, G = 8"]
    assert rloo == pytest.approx(dr_grpo, rel=1e-2, abs=1e-2)
    # A reward of the first token: with three times as many parameters as it needs, any method is
    # unbiased, and without a baseline noisier.
    assert abs(rloo["direction"] - 1) < 0.1 and rloo["noise"] < number["REINFORCE"]["noise"]
    assert rloo["batches"] == pytest.approx(rloo["cosine"], abs=0.05)
    facts = read_csv(found / "gradient_policies.csv")
    assert 0.3 < float(facts[0]["accuracy"]) < 0.7 and facts[0]["answers"] == "1024"
    assert (found / "gradient.png").stat().st_size > 20000
    text = (found / "gradient.md").read_text()
    assert sum(text.count(f"**{verdict}**.") for verdict in (
        "yes", "no", "too noisy to say")) == 13


def test_more_seeds_are_refused(tmp_path):
    with pytest.raises(UserError, match="--seeds 2: gradient has one seed, expected 1 or none"):
        compare.main(["gradient", "--seeds", "2", "--out", str(tmp_path)])


def test_the_command_trains_two_policies_of_one_seed_first(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(compare, "run_all", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(study, "run", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(gradient_page, "report", lambda *arguments: done.append(arguments))
    compare.main(["gradient", "--quick", "--out", str(tmp_path)])
    runs = tmp_path / "runs"
    assert done == [
        (tmp_path, ["train_grpo.py --steps 25"], 1, 1),
        (tmp_path, {gradient_page.SFT: runs / "sft-0" / "model",
                    gradient_page.HALFWAY: runs / "grpo_steps_25-0" / "model"}, True),
        (tmp_path,)]
