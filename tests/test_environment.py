"""A tool between two actions: what the environment writes is in the answer, and is no action.

The world of these tests answers a stop token 0 according to what the row said: sometimes nothing,
sometimes several ids, sometimes stop ids, and in the end None."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from model import KVCache, ScalarModel
from rollout import generate, sequence_scores, token_log_probs
from support import parallel
from support.cli import UserError
from support.data import pad_batch
from support.environments import split_turns
from support.metrics import rollout_metrics
from task import Calculator, calculate, demonstration, make_problems, verify_answer
from test_parallel import processes  # noqa: F401

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [1, 2, 3], [7], [3, 1]] * 4
STOP, LONGEST = [0, 5], 20


class World:
    """A deterministic world that notes what it was asked and what it answered."""

    def __init__(self, n_replies=4):
        self.n_replies = n_replies
        self.asked = []

    def __call__(self, row, ids):
        n_before = sum(1 for number, _, _ in self.asked if number == row)
        reply = None
        if n_before < row % 4 or self.n_replies > 4:
            reply = [(row + n_before + k) % 11 for k in range(sum(ids) % 6)]
        self.asked.append((row, ids, reply))
        return reply


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def sampled(model, world):
    return generate(model, PROMPTS, LONGEST, STOP, 1.3, rng(), world)


def test_the_world_writes_what_it_returned_and_is_asked_for_what_was_sampled(sampled, world):
    """Each row, from the notes of the world alone: turns in turn, then what was cut off."""
    lengths, n_cut_off, n_told, n_filled = set(), 0, 0, 0
    for row, prompt in enumerate(PROMPTS):
        ids, mask, is_over = list(prompt), [0] * len(prompt), False
        for _, turn, reply in (note for note in world.asked if note[0] == row):
            assert not is_over and turn[-1] in STOP and not set(turn[:-1]) & set(STOP)
            is_over = reply is None
            ids += turn + (reply or [])
            mask += [1] * len(turn) + [0] * len(reply or [])
            lengths.add(len(reply or []))
        end = int(sampled.lengths[row])
        room = len(prompt) + LONGEST
        assert bool(sampled.finished[row]) == is_over
        if is_over:
            assert end == len(ids)
        else:
            assert end == room
            n_cut_off += 1
            n_filled += len(ids) > room
        rest = sampled.tokens[row, len(ids):end].tolist()
        ids, mask = (ids + rest)[:end], (mask + [1] * len(rest))[:end]
        padding = [0] * (sampled.tokens.shape[1] - end)
        assert sampled.tokens[row].tolist() == ids + padding
        assert sampled.mask[row].long().tolist() == mask + padding
        assert (sampled.logp[row][~sampled.mask[row]] == 0).all()
        assert (sampled.logp[row][sampled.mask[row]] < 0).all()
        n_told += mask[len(prompt):].count(0)
    # So that the cases above occur: one row was cut off while it was told something.
    assert len(lengths) > 4 and n_cut_off > 3 and n_told > 50 and n_filled
    assert any(set(reply or []) & set(STOP) for _, _, reply in world.asked)


@pytest.mark.parametrize("n_replies", (4, 100))
def test_sampled_log_probs_are_the_scored_ones_after_a_hole(model, n_replies, monkeypatch):
    """Cached decoding is a full forward, where finished rows leave the batch, and where none does
    as the world always has an answer."""
    kept, keep = [], KVCache.keep
    monkeypatch.setattr(KVCache, "keep", lambda cache, rows: kept.append(len(rows))
                        or keep(cache, rows))
    r = generate(model, PROMPTS, LONGEST, STOP, 0.9, rng(), World(n_replies))
    scored = token_log_probs(model, r.tokens, r.mask, 0.9)
    assert (scored - r.logp).abs().max() < 1e-5
    begins = r.mask.long().diff(dim=1) == 1
    assert begins.sum() > 1.5 * len(PROMPTS)
    assert bool(kept) == r.finished.any().item() == (n_replies == 4)


def test_a_row_samples_what_it_does_alone(model, sampled):
    """Its noise is its own, and nobody waits."""
    noise = torch.rand(len(PROMPTS), LONGEST, generator=rng())
    for row, prompt in enumerate(PROMPTS):
        world = World()
        alone = generate(model, [prompt], LONGEST, STOP, 1.3, noise=noise[row:row + 1],
                         environment=lambda _, ids, row=row, world=world: world(row, ids))
        end = int(sampled.lengths[row])
        assert alone.tokens[0].tolist() == sampled.tokens[row, :end].tolist()
        assert alone.mask[0].tolist() == sampled.mask[row, :end].tolist()
        assert alone.finished[0] == sampled.finished[row] and alone.lengths[0] == end


def test_a_row_goes_on_at_the_step_after_it_was_told(model):
    """A step is a token of each row, sampled or told: there are no steps in which rows wait."""
    steps, hidden = [], type(model).hidden
    model.hidden = lambda *inputs: steps.append(inputs[0].shape) or hidden(model, *inputs)
    r = generate(model, PROMPTS, LONGEST, STOP, 1.3, rng(), World())
    assert len(steps) - 1 == (r.lengths - r.prompt_lengths).max() - 1


def test_an_environment_may_answer_once_all_rows_of_a_step_have_asked(model, sampled):
    world, waiting, batches = World(), [], []

    def ask(row, ids):
        waiting.append(row)

        def reply():
            if waiting:
                batches.append(list(waiting))
                waiting.clear()
            return world(row, ids)
        return reply
    together = generate(model, PROMPTS, LONGEST, STOP, 1.3, rng(), ask)
    for name, x in vars(sampled).items():
        assert torch.equal(getattr(together, name), x), name
    assert sum(map(len, batches)) == len(world.asked) > len(batches)
    assert max(map(len, batches)) > 2


def test_without_replies_nothing_changes(model):
    """An environment that says None is none."""
    without = generate(model, PROMPTS, LONGEST, STOP, 1.3, rng())
    asked = []
    silent = generate(model, PROMPTS, LONGEST, STOP, 1.3, rng(),
                      lambda row, ids: asked.append((row, ids)))
    for name, x in vars(without).items():
        assert torch.equal(getattr(silent, name), x), name
    assert dict(asked) == {row: ids for row, ids in enumerate(without.responses())
                           if without.finished[row]}


@pytest.mark.parametrize("n_processes", (1, 2, 3, 7))
def test_several_processes_ask_what_one_does(model, processes, n_processes):
    """By the numbers that rows have in the whole batch; of fewer rows than processes too."""
    for n in (2, 7):
        prompts = PROMPTS[3:3 + n]
        world = World()
        expected = generate(model, prompts, LONGEST, STOP, 1.3, rng(), world)

        def sample(prompts=prompts):
            mine = World()
            return parallel.generate(model, prompts, LONGEST, STOP, 1.3, rng(), 30, mine), mine
        found = processes(n_processes, sample)
        for rollout, _ in found:
            for name, x in vars(expected).items():
                torch.testing.assert_close(getattr(rollout, name), x)
        asked = [note for _, mine in found for note in mine.asked]
        assert {row for row, _, _ in asked} == {row for row, _, _ in world.asked}
        for note in asked:
            assert note in world.asked
        assert len(asked) == len(world.asked) * (n_processes if n < n_processes else 1)


def test_turns_and_metrics(model, sampled, world):
    """Turns are what was asked and answered, in turn; calls are the replies that begin."""
    rewards = torch.zeros(len(PROMPTS))
    config = train_grpo.Config(task="products")
    logp = sampled.logp.double()
    found = rollout_metrics(config, sampled, rewards, logp, 2 * logp, model, SimpleNamespace(
        model=model))
    n_calls, n_asking, n_sampled = 0, 0, 0
    for row, turns in enumerate(split_turns(sampled)):
        assert sum(turns[::2], []) == sampled.responses()[row]
        start, end = int(sampled.prompt_lengths[row]), int(sampled.lengths[row])
        assert sum(turns, []) == sampled.tokens[row, start:end].tolist()
        notes = [note for note in world.asked if note[0] == row and note[2]]
        replies = [note[2] for note in notes]
        for reply, told in zip(replies, turns[1::2]):
            assert reply[:len(told)] == told
        n_calls += len(turns) // 2
        n_asking += len(turns) > 1
        n_sampled += sum(map(len, turns[::2]))
    assert n_calls > n_asking > 5
    assert found["calls"] == pytest.approx(n_calls / len(PROMPTS))
    assert found["asks"] == pytest.approx(n_asking / len(PROMPTS))
    assert found["response_length"] == pytest.approx(n_sampled / len(PROMPTS))
    # What was told has no KL: of k1, the summed log-ratios of actions alone.
    assert found["answer_kl"] == pytest.approx(-logp[sampled.mask].sum().item() / len(PROMPTS))
    assert "calls" not in rollout_metrics(train_grpo.Config(), sampled, rewards, logp, logp, model,
                                          SimpleNamespace(model=model))


def test_the_reward_model_reads_all_that_was_said_at_the_last_action(model, sampled):
    """Also of a row that was cut off in the middle of what it was told."""
    reward_model = ScalarModel(model)
    torch.nn.init.normal_(reward_model.score.weight)
    scores = parallel.map_micro_batches(sequence_scores, reward_model, sampled.tokens,
                                        sampled.mask, 50)
    ends_told = 0
    for row, score in enumerate(scores):
        last = int(sampled.mask[row].nonzero().max())
        alone = reward_model(sampled.tokens[row:row + 1, :last + 1])[0, -1]
        torch.testing.assert_close(score, alone)
        ends_told += last + 1 < sampled.lengths[row]
    assert ends_told


# ------------------------------------------------------------------------------- the built-in tool

@pytest.mark.parametrize("text, result", [
    ("37*84", "3108"), ("3", "3"), ("2+3*4", "14"), ("2*3-4*5", "-14"), ("1-2-3", "-4"),
    (" 12 * 3 ", "36"), ("007+1", "8"), ("9*9*9*9", "6561"), ("999999*999999", "999998000001"),
    ("", "error"), ("1 2", "error"), ("1 2 + 3", "error"), ("*", "error"), ("3*", "error"),
    ("-3", "error"), ("3**4", "error"),
    ("3//4", "error"), ("1.5*2", "error"), ("1e9", "error"), ("٣*٣", "error"), ("(3)", "error"),
    ("1+1+1+1+1", "error"), ("__import__('os')", "error"), ("3*4\n", "error"),
    ("1" * 1000 + "*" + "9" * 1000, "error"), ("(" * 100 + "3" + ")" * 100, "error"),
    ("[" * 100, "error"), ("1+" * 100_000 + "1", "error")])
def test_the_calculator(text, result):
    assert calculate(text) == result


def test_the_calculator_answers_calls_and_nothing_else(tokenizer):
    ask = Calculator(tokenizer)
    assert ask.stop_ids == {tokenizer.eos_id, ord("=")}

    def reply(text):
        ids = ask(0, tokenizer.encode(text, special=True))
        return None if ids is None else tokenizer.decode(ids)
    assert reply("[37*84=") == "3108]"
    assert reply("so [1=] [37*84=") == "3108]"
    assert reply("37*84=") == reply("=") == reply("[x=") == "error]"
    assert reply("3108<|endoftext|>") is None
    assert reply("[3*4<|endoftext|>") is None


def test_products_are_demonstrated_right_in_both_styles(tokenizer):
    """What a demonstration is told is what the calculator says to what it asks."""
    ask = Calculator(tokenizer)
    for problem in make_problems("products", 300, np.random.default_rng(0)):
        prompt = problem["prompt"]
        a, b = map(int, prompt.removesuffix("=").split("*"))
        assert 10 <= a < 100 and 10 <= b < 100
        assert demonstration(prompt, False) == [str(a * b)]
        call, told, answer = demonstration(prompt, True)
        assert call == f"[{prompt}" and answer == str(a * b)
        assert tokenizer.decode(ask(0, tokenizer.encode(call))) == told
        assert verify_answer(prompt, call + told + answer) == 1 == verify_answer(prompt, answer)
        assert verify_answer(prompt, call + told) == 0 == verify_answer(prompt, told)


def test_sft_learns_what_the_model_writes_and_not_what_it_is_told(tokenizer):
    config = train_sft.Config(task="products", batch_size=200)
    batch, held_out = train_sft.load_demonstrations(config, tokenizer, 128)
    assert all("*" in problem["prompt"] for problem in held_out)
    early, late = batch(0), batch(config.steps - 1)
    assert {len(row) for row in early} == {4} and {len(row) for row in late} == {2, 4}
    assert 10 < sum(len(row) == 4 for row in late) < 35
    tokens, mask = pad_batch(early[:1], "cpu")
    learned = tokenizer.decode(tokens[mask].tolist())
    prompt = tokenizer.decode(early[0][0])
    assert learned == f"[{prompt}" + demonstration(prompt, False)[0] + "<|endoftext|>"
    assert not {tuple(p["ids"]) for p in held_out} & {tuple(row[0]) for row in early + late}


@pytest.mark.parametrize("task, all_think, share", [
    ("sums", 26, 0.4), ("products", 26, 0.1), ("long_sums", 36, 0.03), ("long_sums", 8, 0.5)])
def test_few_of_the_later_demonstrations_think(tokenizer, task, all_think, share):
    """The first of 40 steps have none that doesn't. The share is the task's, or what is given."""
    given = {"reason_share": 0.5, "first_part": 0.2} if share == 0.5 else {}
    config = train_sft.Config(task=task, batch_size=300, steps=40, **given)
    batch, _ = train_sft.load_demonstrations(config, tokenizer, 128)
    marks = {*tokenizer.encode("<think>"), *tokenizer.encode("[")}
    shares = []
    for step in (0, all_think - 1, all_think, 39):
        shares.append(sum(bool(marks & {*row[1]}) for row in batch(step)) / 300)
    assert shares[:2] == [1, 1]
    assert all(abs(found - share) < 0.1 and 0 < found < 1 for found in shares[2:])


def test_products_have_runs_of_their_own(place, tmp_path, monkeypatch):
    """In their own directories, from their own SFT model, which is trained first; and an evaluation
    has their problems and the calculator."""
    monkeypatch.chdir(tmp_path)
    sft, trained = train_sft.main, []

    def train(argv):
        trained.append(argv)
        sft([*argv, "--model", str(place / "random"), "--steps", "2", "--batch-size", "4",
             "--eval-problems", "3"])
    monkeypatch.setattr(train_sft, "main", train)
    few = ["--task", "products", "--steps", "2", "--prompts-per-step", "4", "--eval-problems", "3"]
    train_grpo.main([*few, "--group-size", "2"])
    assert trained == [["--out", "runs/sft_products", "--task", "products"]]
    train_ppo.main([*few, "--reward", "verifier"])
    assert len(trained) == 1
    assert {run.name for run in Path("runs").iterdir()} == {
        "sft_products", "grpo_products", "ppo_products"}
    asked = []
    generate = parallel.generate
    monkeypatch.setattr(parallel, "generate", lambda model, prompts, length, stop_ids, *more:
                        asked.append((prompts, stop_ids, more[-1]))
                        or generate(model, prompts, length, stop_ids, *more))
    evaluate.main(["runs/grpo_products", "--problems", "3", "--samples", "1", "--json"])
    evaluate.main(["runs/sft_products/model", "--task", "products", "--problems", "3",
                   "--samples", "1", "--json"])
    evaluate.main(["runs/sft_products/model", "--problems", "3", "--samples", "1", "--json"])
    assert len(asked) == 6
    for prompts, stop_ids, calculator in asked[:4]:
        assert isinstance(calculator, Calculator) and ord("=") in stop_ids
        assert all(ord("*") in prompt for prompt in prompts)
    for prompts, stop_ids, calculator in asked[4:]:
        assert calculator is None and stop_ids == {256}
        assert all(ord("+") in prompt for prompt in prompts)


@pytest.mark.parametrize("script, flags, message", [
    (train_dpo, ["--task", "products"], "unrecognized arguments: --task products"),
    (train_rm, ["--task", "products"], "unrecognized arguments: --task products"),
    (train_sft, ["--task", "products", "--data", "x.jsonl"], "--task has no effect with --data"),
    (train_sft, ["--reason-share", "0.5", "--data", "x.jsonl"],
     "--reason-share has no effect with --data"),
    (train_sft, ["--first-part", "0", "--data", "x.jsonl"],
     "--first-part has no effect with --data"),
    (train_sft, ["--task", "quotients"], "invalid choice: 'quotients'")])
def test_where_there_is_no_calculator_it_is_refused(script, flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        script.main([*flags, "--out", str(tmp_path / "run")])
