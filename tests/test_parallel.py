"""Several processes share the rows of a batch, and what they put together is the whole, in order.

Here the processes are threads of this one, whose collectives meet at a barrier. test_torchrun.py
starts real ones."""
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed

import rollout as rollout_module
from model import ScalarModel
from rollout import generate, sequence_scores, token_log_probs
from support import parallel
from support.metrics import Averages


class Processes:
    """In place of torch.distributed: n threads that are the processes of one run."""

    ReduceOp = distributed.ReduceOp

    def __init__(self, n):
        self.n = n
        self.this = threading.local()
        self.barrier = threading.Barrier(n)
        self.slots = [None] * n

    def run(self, function) -> list:
        """function() in each process. -> what each returns"""
        def process(rank):
            self.this.rank = rank
            try:
                return function()
            except BaseException:
                self.barrier.abort()
                raise
        with ThreadPoolExecutor(self.n) as pool:
            futures = [pool.submit(process, rank) for rank in range(self.n)]
            return [future.result() for future in futures]

    def is_initialized(self):
        return self.n > 1

    def get_rank(self):
        return self.this.rank

    def get_world_size(self):
        return self.n

    def exchange(self, x) -> list:
        """What each process has brought."""
        self.slots[self.this.rank] = x
        self.barrier.wait()
        brought = list(self.slots)
        self.barrier.wait()
        return brought

    def all_reduce(self, x, operation=distributed.ReduceOp.SUM):
        brought = torch.stack(self.exchange(x.clone()))
        whole = brought.amax(0) if operation == distributed.ReduceOp.MAX else brought.sum(0)
        x.copy_(whole)

    def all_gather_object(self, parts, x):
        parts[:] = self.exchange(x)


@pytest.fixture
def processes(monkeypatch):
    """function(n, f) -> what f() returns in each of n processes"""
    def run(n, function):
        group = Processes(n)
        monkeypatch.setattr(parallel, "dist", group)
        return group.run(function)
    return run


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [1, 2, 3], [7], [3, 1]]
WORLDS = (1, 2, 3, 7)


@pytest.mark.parametrize("n_processes", WORLDS)
@pytest.mark.parametrize("n", range(1, 15))
def test_blocks_put_together_are_the_whole_in_order(processes, n, n_processes):
    rows, tensor = list(range(n)), torch.arange(n)
    blocks = processes(n_processes, lambda: (parallel.my_block(rows), parallel.my_block(tensor)))
    assert all(block == part.tolist() for block, part in blocks)
    if n < n_processes:
        # Then each has all.
        assert all(block == rows for block, _ in blocks)
    else:
        assert sum((block for block, _ in blocks), []) == rows
        sizes = [len(block) for block, _ in blocks]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n_processes", WORLDS)
@pytest.mark.parametrize("n", (1, 2, 6, 7, 20))
def test_what_is_gathered_is_the_whole_in_order_on_all(processes, n, n_processes):
    wholes = [
        torch.randn(n), torch.randn(n, 3), torch.arange(n), torch.arange(2 * n).view(n, 2) % 3 == 0]

    def gather():
        return [parallel.gather(parallel.my_block(x), n) for x in wholes]
    for gathered in processes(n_processes, gather):
        for x, whole in zip(gathered, wholes, strict=True):
            assert x.dtype == whole.dtype and torch.equal(x, whole)


@pytest.mark.parametrize("n_processes", WORLDS)
@pytest.mark.parametrize("n", (0, 1, 2, 6, 7, 20))
def test_every_row_of_a_mini_batch_is_one_process_s(processes, n, n_processes):
    """Of a mini-batch with fewer rows than processes, some have none: gradients are summed."""
    rows = torch.arange(n).flip(0) * 3
    shares = processes(n_processes, lambda: parallel.my_rows(rows).tolist())
    assert sorted(sum(shares, [])) == sorted(rows.tolist())
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n_processes", WORLDS)
@pytest.mark.parametrize("n", (2, 7))
def test_several_processes_sample_what_one_does(model, processes, monkeypatch, n, n_processes):
    prompts, stop = PROMPTS[:n], [0, 3, 5]
    expected = generate(model, prompts, 12, stop, 0.9, torch.Generator().manual_seed(0))
    answered = []

    def watched(model, prompts, *arguments, **named):
        answered.append(prompts)
        return generate(model, prompts, *arguments, **named)
    monkeypatch.setattr(rollout_module, "generate", watched)

    def sample():
        generator = torch.Generator().manual_seed(0)
        rollout = parallel.generate(model, prompts, 12, stop, 0.9, generator, 8)
        # The next call goes on in the same noise, as evaluations do.
        return rollout, torch.rand(1, generator=generator).item()
    found = processes(n_processes, sample)
    for rollout, _ in found:
        for name, x in vars(expected).items():
            # A product of other shape rounds differently.
            torch.testing.assert_close(getattr(rollout, name), x)
    assert len({after for _, after in found}) == 1
    # Where there are prompts enough, each is one process's.
    shared = sum(map(len, answered))
    assert shared == (n if n >= n_processes else n * n_processes)


@pytest.mark.parametrize("n_processes", (1, 2, 3, 5))
def test_several_processes_score_what_one_does(model, batch, processes, n_processes):
    """All rows; and where there are fewer rows than processes."""
    tokens, mask = batch
    scorer = ScalarModel(model)
    torch.nn.init.normal_(scorer.score.weight)
    cases = [(token_log_probs, model, (0.8,)), (sequence_scores, scorer, ())]
    for function, scored_by, more in cases:
        computed = []

        def watched(model, tokens, mask, *more):
            computed.append(len(tokens))
            return function(model, tokens, mask, *more)
        [expected] = processes(1, lambda: parallel.map_micro_batches(
            function, scored_by, tokens, mask, 12, *more))
        found = processes(n_processes, lambda: parallel.map_micro_batches(
            watched, scored_by, tokens, mask, 12, *more))
        for x in found:
            torch.testing.assert_close(x, expected)
        assert sum(computed) == (4 if n_processes <= 4 else 4 * n_processes)


def test_gradients_are_summed_whoever_has_none(processes):
    """A process without rows takes part all the same."""
    def gradients(has_rows):
        model = torch.nn.Linear(2, 1)
        if has_rows[parallel.rank()]:
            (model(torch.tensor([1.0, 2.0])) * (parallel.rank() + 1)).backward()
        parallel.sum_gradients(model)
        return model.weight.grad, model.bias.grad
    for has_rows, n_shares in (((True, True, True), 6), ((True, False, True), 4)):
        for weight, bias in processes(3, lambda: gradients(has_rows)):
            assert weight.tolist() == [[n_shares, 2 * n_shares]] and bias.tolist() == [n_shares]
    for weight, bias in processes(3, lambda: gradients((False, False, False))):
        assert weight.tolist() == [[0, 0]] and bias.tolist() == [0]
    # One process alone is left as it is.
    assert processes(1, lambda: gradients((False,))) == [(None, None)]


def test_numbers_are_summed_and_what_a_process_lacks_counts_as_0(processes):
    def sums():
        rank = parallel.rank()
        share = {"loss": 1.0 + rank, **({"first": 5.0} if rank == 0 else {"others": 2.0})}
        return parallel.all_reduce_sum(rank + 1), parallel.all_reduce_sum(share)
    assert processes(3, sums) == [(6, {"loss": 6.0, "first": 5.0, "others": 4.0})] * 3
    assert processes(1, sums) == [(1, {"loss": 1.0, "first": 5.0})]


@pytest.mark.parametrize("cuda, nccl, expected", [
    (True, True, "cpu:gloo,cuda:nccl"), (True, False, "gloo"), (False, True, "gloo")])
def test_both_backends_are_named_where_there_is_a_gpu(monkeypatch, cuda, nccl, expected):
    """With none named, torch takes the GPU's alone, and objects go through a GPU that isn't set."""
    joined = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(parallel.dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(parallel.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(parallel.dist, "rendezvous", lambda url: iter([("store", 1, 2)]))
    monkeypatch.setattr(parallel.dist, "init_process_group",
                        lambda backend, **named: joined.append((backend, named)))
    monkeypatch.setattr(parallel.signal, "signal", lambda *arguments: None)
    assert parallel.join_processes() == "store"
    [(backend, named)] = joined
    assert backend == expected and (named["rank"], named["world_size"]) == (1, 2)
    # A checkpoint or a reward may take an hour.
    assert named["timeout"].total_seconds() > 3600


def test_averages_are_over_micro_batches():
    averages = Averages(entropy="", kl=0.0)
    assert averages.result() == {"entropy": "", "kl": 0.0}
    averages.add({"kl": torch.tensor(1.0), "loss": torch.tensor(3.0)}, weight=0.25)
    averages.add({"kl": torch.tensor(2.0)}, weight=torch.tensor(0.75))
    assert averages.result() == {"entropy": "", "kl": 1.75, "loss": 0.75}
