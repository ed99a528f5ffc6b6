"""On a GPU: what the CPU computes, what autocast rounds, and what a run does that was stopped.

    GPU_TESTS=1 pytest -m gpu

The other tests are the CPU's, and hide the GPU from torch. `python benchmarks/gpu_day.py` goes on
from here: every script and method, speed and memory.
"""
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import gpu_day  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or GPU_TESTS is not set")]


@pytest.fixture
def day(tmp_path):
    yield gpu_day.Day(gpu_day.Config(device="cuda", tiny=True), tmp_path)
    torch.set_autocast_enabled("cuda", False)


def test_a_grpo_step_is_that_of_the_cpu(day):
    found = gpu_day.compare_devices(day, "grpo", *gpu_day.RUNS["grpo grpo"])
    assert found["ok"], found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probs_and_gradients_are_those_of_float64(day, dtype):
    found = gpu_day.compare_log_probs(day, gpu_day.TINY["tiny"], dtype, n_chunks=4)
    assert found["ok"], found


def test_a_run_that_was_stopped_is_the_run_that_was_not(day):
    found = gpu_day.compare_resumed(day)
    assert found["ok"], found


def test_graphs_sample_what_plain_decoding_does(day):
    found = gpu_day.compare_graphs(day, gpu_day.TINY["tiny"])
    assert found["ok"], found
