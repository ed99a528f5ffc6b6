"""lab/reward_models.py: best of n by hand, scores that compare, and what an ensemble makes of
them."""
import itertools
import math

import pytest
import torch

from lab import reward_models
from lab.report import report, write_csv


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_draws(n):
    scores = torch.tensor([[0.3, 2.0, -1.0, 0.9, 1.1], [5.0, 4.0, 3.0, 2.0, 1.0]])
    gold = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    expected = []
    for row_scores, row_gold in zip(scores.tolist(), gold.tolist()):
        draws = list(itertools.combinations(range(5), n))
        expected.append(sum(row_gold[max(draw, key=row_scores.__getitem__)] for draw in draws)
                        / len(draws))
    assert reward_models.best_of_n(scores, gold, n) == pytest.approx(sum(expected) / 2)


def test_kl_of_best_of_n_is_that_of_its_distribution():
    """Of many equally likely answers, best of n takes the i-th from below with (i^n - (i-1)^n) /
    m^n."""
    m, n = 4000, 8
    best = torch.arange(0, m + 1, dtype=torch.float64).div(m).pow(n).diff()
    kl = (best * (best * m).clamp(min=1e-300).log()).sum().item()
    assert reward_models.kl_of_best_of(n) == pytest.approx(kl, abs=1e-3)
    assert reward_models.kl_of_best_of(1) == 0


def test_ensemble():
    scores = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 0.5], [2.0, -1.0, -4.0]])
    assert reward_models.combine(scores, "mean").tolist() == [2.0, -1.0, -1.0]
    assert reward_models.combine(scores, "least").tolist() == [1.0, -2.0, -4.0]


def test_scores_are_standardised_on_what_was_sampled():
    def score(tokens):
        return tokens.float() * 3 + 7
    tokens = torch.tensor([[0, 1], [0, 2], [0, 5]])
    mask = torch.tensor([[False, True]] * 3)
    which = torch.tensor([[0, 0, 1], [2, 2, 2]])
    model = reward_models.Standardised(score, tokens, mask, which)
    sampled = model(tokens, mask)[which]
    assert sampled.mean().item() == pytest.approx(0, abs=1e-6)
    assert sampled.std().item() == pytest.approx(1, abs=1e-6)
    # Order and ratios of differences stay.
    a, b, c = model(tokens, mask).tolist()
    assert (c - b) / (b - a) == pytest.approx(3)


def test_ensembles_see_the_pairs_that_one_model_sees():
    parts, _ = reward_models.REWARDS["mean of three"]
    [all_pairs], _ = reward_models.REWARDS["3,072 pairs"]
    assert sorted(i for part in parts for i in part) == list(all_pairs)
    assert math.isclose(max(reward_models.N), reward_models.SAMPLES)


def test_every_pair_is_seen(monkeypatch):
    """Whatever there are: of 3,072 one model sees what three see of a third each."""
    seen = []

    def pad_pairs(pairs, device):
        seen.extend(pairs)
        return torch.zeros(2, 1, 1), torch.ones(2, 1, 1)

    class Model(torch.nn.Linear):
        def __init__(self, policy):
            super().__init__(1, 1)

    monkeypatch.setattr(reward_models, "pad_pairs", pad_pairs)
    monkeypatch.setattr(reward_models, "ScalarModel", Model)
    monkeypatch.setattr(reward_models, "score", lambda model, tokens, mask: model(tokens)[..., 0])
    for parts, _ in reward_models.REWARDS.values():
        for part in parts:
            seen.clear()
            reward_models.train_reward_model(None, [*part], 0)
            assert {*seen} == {*part}
            # As many updates as 2,048 pairs need, and more only to see all.
            assert len(seen) == max(2048, len(part))


def test_a_seed_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def run_seed(sft, pairs_of, seed, steps):
        if seed == 1 and not ran[1:]:
            ran.append("cut off")
            raise KeyboardInterrupt
        ran.append(seed)
        return [{"seed": seed, "gold": 0.25}]

    monkeypatch.setattr(reward_models.compare, "run_all", lambda *_, **__: None)
    monkeypatch.setattr(reward_models, "run_seed", run_seed)
    with pytest.raises(KeyboardInterrupt):
        reward_models.run(tmp_path, 2, quick=False)
    assert reward_models.run(tmp_path, 2, quick=False) == [
        {"seed": "0", "gold": "0.25"}, {"seed": "1", "gold": "0.25"}]
    assert ran == [0, "cut off", 1]


def test_the_page_tells_both_ways_apart(tmp_path):
    """The end of best of n is the largest n; the end of a run is its last fifth of the steps."""
    rows = []
    for setting, better in (("256 pairs", 0.0), ("1,024 pairs", 0.1)):
        for seed in (0, 1, 2):
            best = [{"step": n, "answer_kl": reward_models.kl_of_best_of(n),
                     "best_gold": 0.5 - n / 1000 + better + seed / 100, "best_proxy": n}
                    for n in reward_models.N]
            steps = [{"step": step, "answer_kl": step / 10, "proxy": step,
                      "gold": 0.4 + step / 100 + seed / 100} for step in range(20)]
            reward_models.add_comparison(best + steps)
            same = {"line": "", "setting": setting, "seed": seed}
            rows += [{**same, **{column: row.get(column, "") for column in reward_models.COLUMNS}}
                     for row in best + steps]
    write_csv(tmp_path / "reward_models.csv", rows)
    report(tmp_path, "reward_models")
    text = (tmp_path / "reward_models.md").read_text()
    # Steps 16 to 19, and n = 256.
    # The KL of best of 8 is 1.20, that of steps 11 to 13; the run ends before that of best of 256.
    same = "0.530 ± 0.010 | 0.590 ± 0.010"
    assert (f"| 256 pairs | 0.585 ± 0.010 | **0.254 ± 0.010** | 17.50 | 256 | **0.502 ± 0.010** | "
            f"{same} |") in text
    assert (f"| 1,024 pairs | 0.585 ± 0.010 | 0.354 ± 0.010 | 17.50 | 256 | 0.602 ± 0.010 | {same}"
            " |") in text
    assert (tmp_path / "reward_models.png").stat().st_size > 20000
