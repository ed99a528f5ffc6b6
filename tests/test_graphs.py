"""Decoding by graphs, with a recorder in the place of CUDA's: it repeats operations on the tensors
that they had when they were recorded, and nothing else."""
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rollout import generate
from support import graphs
from support.decoding import Decoder
from support.graphs import GraphDecoder
from test_decoding import FAMILIES, PROMPTS, attend_as_on_a_gpu, random_model

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import gpu_day  # noqa: E402

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), named=None):
        assert operation.overloadpacket not in WAITS, "the host can't wait in a graph"
        result = operation(*args, **(named or {}))
        if not operation.is_view:
            self.operations.append((operation, args, named or {}, result))
        return result

    def launch(self):
        for operation, args, named, result in self.operations:
            again = operation(*args, **named)
            for x, y in zip(*(x if isinstance(x, (tuple, list)) else [x] for x in (result, again))):
                if x is not y:
                    x.copy_(y)


@pytest.fixture
def recorders(monkeypatch):
    """All recorders that were made, with what they recorded."""
    made = []

    def record(step):
        with Recorder() as recorder:
            result = step()
        # What stands there is from no launch.
        result.fill_(float("nan"))
        made.append(recorder)
        return recorder.launch, result
    monkeypatch.setattr(graphs, "record", record)
    # In this mode PyTorch fills new memory, such as a cache's, with nan.
    torch.use_deterministic_algorithms(True)
    yield made
    torch.use_deterministic_algorithms(False)


def answers(sampler, environment=None):
    return generate(sampler, PROMPTS, 20, set(range(6)), environment=environment,
                    generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_without_graphs(family, recorders):
    """18 rows of different prompts that end at different lengths: five graphs at most."""
    model = random_model(family, 64)
    plain, found = answers(Decoder(model)), answers(GraphDecoder(model))
    lengths = plain.mask.sum(1)
    assert lengths.min() < 5 and lengths.max() > 15
    assert torch.equal(found.tokens, plain.tokens) and torch.equal(found.mask, plain.mask)
    assert (found.logp - plain.logp).abs().max() < 1e-5
    assert 2 <= len(recorders) <= 5


def test_what_an_environment_writes_goes_through_the_graphs(recorders):
    model, asked = random_model("grouped", 64), []

    def environment(row, ids):
        asked.append(row)
        return [row + 4, 7, 7] if asked.count(row) < 3 else None
    plain = answers(Decoder(model), environment)
    assert max(map(asked.count, asked)) == 3
    asked.clear()
    found = answers(GraphDecoder(model), environment)
    assert torch.equal(found.tokens, plain.tokens) and torch.equal(found.mask, plain.mask)


def test_heads_may_lie_in_memory_as_a_gpu_leaves_them(recorders, monkeypatch):
    model = random_model("grouped", 64)
    plain = answers(Decoder(model))
    attend_as_on_a_gpu(monkeypatch)
    assert torch.equal(answers(GraphDecoder(model)).tokens, plain.tokens)


def test_a_decoder_serves_several_rollouts(recorders):
    """A greedy evaluation, then a sampled one: another cache, so other graphs."""
    model = random_model("qwen3", 64)
    decoder = GraphDecoder(model)
    first, second = answers(decoder), answers(decoder)
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.logp, second.logp)
    assert torch.equal(first.tokens, answers(Decoder(model)).tokens)


def test_the_day_of_a_gpu_finds_graphs_that_are_wrong(recorders, tmp_path, monkeypatch):
    day = gpu_day.Day(gpu_day.Config(device="cpu", tiny=True), tmp_path)
    found = gpu_day.compare_graphs(day, gpu_day.TINY["tiny"])
    assert found["ok"] and found["same"] == 1 and found["ms_graphs"] > 0
    monkeypatch.setattr(graphs, "record", lambda step: (lambda: None, step()))
    assert not gpu_day.compare_graphs(day, gpu_day.TINY["tiny"])["ok"]
