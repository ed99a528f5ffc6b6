"""A tool between two actions: what the environment writes is in the answer, and is no action.

The world of these tests answers a stop token 0 according to what the row said: sometimes nothing,
sometimes several ids, sometimes stop ids, and in the end None."""
import pytest
import torch

from model import KVCache
from rollout import generate, token_log_probs

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
