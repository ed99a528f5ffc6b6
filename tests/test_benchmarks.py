"""The limits that the benchmarks compare with count the work that is there."""
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from bench import decode_limit, forward_operations, interleaved, training_limit  # noqa: E402


def test_operations_are_those_that_torch_counts(model):
    """Written out, attention multiplies what it masks as well: keys = all T."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 7, dtype=torch.long))
    assert forward_operations(model, tokens=21, scored=21, keys=7) == counter.get_total_flops()


def test_a_training_step_is_three_passes(model):
    assert training_limit(model, 20, 10, 5, rate=1e9) == pytest.approx(
        3 * forward_operations(model, 20, 10, 2.5) / 1e9)


def test_decode_limit_is_bytes_for_one_row_and_operations_for_many(model):
    """One row reads all weights for each token; with many rows the products take longer than the
    reading."""
    weights = sum(p.numel() for p in model.layers.parameters()) + model.lm_head.weight.numel()
    key_bytes = 2 * model.config.n_layers * model.config.n_kv_heads * model.config.head_dim * 4
    one = decode_limit(model, [2], [3], itemsize=4, rate=1e30, bandwidth=1.0)
    # Two passes, after which tokens 2 and 3 are sampled.
    assert one == pytest.approx(2 * 4 * weights + (3 + 4) * key_bytes)
    many = decode_limit(model, [2] * 5, [3] * 5, itemsize=4, rate=1.0, bandwidth=1e30)
    assert many == pytest.approx(5 * sum(forward_operations(model, n, 1, keys)
                                         for n, keys in ((2, 1.0), (1, 3), (1, 4))))
    # A row that has ended takes no more passes.
    ends = decode_limit(model, [2, 2], [3, 1], itemsize=4, rate=1.0, bandwidth=1e30)
    assert ends == pytest.approx(many / 5 + forward_operations(model, 2, 1, 1.0))


def test_turns_are_interleaved_and_warm_up_is_left_out():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
                          torch.device("cpu"), repeats=3, warm_up=1)
    assert (calls == list("abababab")
            and {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3})


@pytest.mark.parametrize("name", [
    "decode_profile", "logits_memory", "peak_memory", "rollout_speed", "step_speed",
    "training_speed"])
def test_every_benchmark_finds_what_it_imports(name):
    """What they are compared with, which is a library of others, is imported later."""
    assert callable(importlib.import_module(name).main)
