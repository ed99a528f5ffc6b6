"""lab/forgetting.py: its data are right, its reward is right, and each remedy acts as it says."""
import pytest
import torch

from lab import forgetting, loops
from lab.report import report, write_csv
from losses import sft_loss
from rollout import token_log_probs
from support.data import pad_batch
from support.models import numpy_rng, torch_rng


@pytest.fixture(scope="module")
def start():
    """A model that knows next to nothing: SFT cut to two steps."""
    steps, forgetting.SFT_STEPS = forgetting.SFT_STEPS, 2
    yield forgetting.train_start(0)
    forgetting.SFT_STEPS = steps


def test_demonstrations_are_right(start):
    _, tokenizer = start
    for task, right in (("sort", sorted), ("reverse", reversed)):
        for prompt, answer in forgetting.make_examples(task, 20, numpy_rng(0, 0, "x"), tokenizer):
            sign, letters = tokenizer.decode(prompt)[0], tokenizer.decode(prompt)[1:-1]
            assert (sign, len(letters)) == (task[0], 6)
            assert tokenizer.decode(answer) == "".join(right(letters)) + "<|endoftext|>"


def test_only_the_whole_right_answer_earns(start, monkeypatch):
    policy, tokenizer = start
    [[prompt, right]] = forgetting.make_examples("sort", 1, numpy_rng(0, 0, "x"), tokenizer)
    answers = [right, right[:-1], right[1:], right[::-1]]

    class Told:
        def responses(self):
            return answers
    monkeypatch.setattr(forgetting, "generate", lambda *args, **more: Told())
    _, rewards = forgetting.sample_answers(policy, tokenizer, [[prompt, right]] * 4, None)
    assert rewards.tolist() == [1, 0, 0, 0]


def test_what_is_measured_at_the_start_is_the_start(start):
    policy, tokenizer = start
    row = forgetting.measure(policy, policy, tokenizer)
    assert row["answer_kl"] == pytest.approx(0, abs=1e-6)
    examples = forgetting.make_examples("sort", 256, numpy_rng(0, 0, "evaluation: sort"),
                                        tokenizer)
    rollout, rewards = forgetting.sample_answers(policy, tokenizer, examples,
                                                 torch_rng(0, 0, "evaluation"))
    texts = [tokenizer.decode(ids) for ids in rollout.responses()]
    right = ["".join(sorted(tokenizer.decode(prompt)[1:-1])) + "<|endoftext|>"
             for prompt, _ in examples]
    assert row["other"] == sum(map(str.__eq__, texts, right)) / 256


def test_demonstrations_of_the_other_task_are_imitated(start, monkeypatch):
    """With a reward that is the same for all answers nothing is left but the imitation."""
    policy, tokenizer = start
    monkeypatch.setattr(forgetting, "PROBLEMS", 2)
    monkeypatch.setattr(forgetting, "EPOCHS", 1)
    moved = {}

    class Recorded(torch.optim.SGD):
        def step(self):
            moved[len(moved)] = [p.grad.clone() for p in self.param_groups[0]["params"]]
    monkeypatch.setattr(torch.optim, "Adam", Recorded)
    monkeypatch.setattr(loops, "clip_grad_norm_", lambda *args: None)
    monkeypatch.setattr(forgetting, "grpo_advantages", lambda rewards, size: 0 * rewards)
    forgetting.train(policy, tokenizer, 0, 1, 0.0, 0.5, True)
    forgetting.train(policy, tokenizer, 0, 1, 0.3, 0.0, True)

    examples = forgetting.make_examples("sort", 32, numpy_rng(0, 0, "forgetting: demonstrations"),
                                        tokenizer)
    tokens, mask = pad_batch(examples, "cpu")
    loss, _ = sft_loss(token_log_probs(policy, tokens, mask), mask)
    expected = torch.autograd.grad(0.5 * loss, list(policy.parameters()))
    for found, right in zip(moved[0], expected):
        torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-4)
    # k3 has its minimum at the start: no gradient there.
    assert max(g.abs().max() for g in moved[1]) < 1e-5


def test_a_seed_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def run_seed(seed, steps):
        ran.append((seed, steps))
        return [{"seed": seed, "other": 0.5}]

    monkeypatch.setattr(forgetting, "run_seed", run_seed)
    assert len(forgetting.run(tmp_path, 1, quick=False)) == 1
    assert [row["seed"] for row in forgetting.run(tmp_path, 2, quick=False)] == ["0", "1"]
    # A quick run is another one.
    forgetting.run(tmp_path, 1, quick=True)
    assert ran == [(0, 80), (1, 80), (0, 40)]


def test_the_page_has_a_column_for_each_measurement(start, tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting, "PROBLEMS", 2)
    monkeypatch.setattr(forgetting, "EVAL_EVERY", 1)
    monkeypatch.setattr(forgetting, "ANSWERS", 8)
    monkeypatch.setattr(forgetting, "train_start", lambda seed: start)
    write_csv(tmp_path / "forgetting.csv", forgetting.run_seed(0, steps=1))
    report(tmp_path, "forgetting")
    _, _, table, *_ = (tmp_path / "forgetting.md").read_text().split("\n\n")
    lines = table.split("\n")
    assert lines[0].count("(share)") == 2 and lines[0].count("nats") == 1
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == list(forgetting.SETTINGS)
