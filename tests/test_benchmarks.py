"""The limits that the benchmarks compare with count the work that is there; what is to run on the
day of a GPU runs, on a CPU, and finds what is wrong."""
import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import gpu_day  # noqa: E402
import logits_memory  # noqa: E402
import rollout  # noqa: E402
import step_speed  # noqa: E402
from bench import (decode_limit, forward_operations, interleaved, report,  # noqa: E402
                   training_limit)
from model import ModelConfig, Transformer  # noqa: E402
from support.cli import UserError, parse  # noqa: E402
from support.pretrained import save_pretrained  # noqa: E402
from support.tokenizer import builtin_tokenizer  # noqa: E402
from task import verify_answer  # noqa: E402


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
    "decode_profile", "gpu_day", "logits_memory", "peak_memory", "rollout_speed", "step_speed",
    "training_speed"])
def test_every_benchmark_finds_what_it_imports(name):
    """What they are compared with, which is a library of others, is imported later."""
    assert callable(importlib.import_module(name).main)


@pytest.mark.parametrize("name, flags, message", [
    ("rollout_speed", "--model nowhere", "nowhere/config.json: not found"),
    ("training_speed", "--model nowhere", "nowhere/config.json: not found"),
    ("step_speed", "--model nowhere", "nowhere/config.json: not found"),
    ("training_speed", "--growth x.png --figures --out nowhere.json",
     "--out nowhere.json: holds no numbers of --growth: FileNotFoundError"),
    ("training_speed", "--growth x.png --figures --out steps.json",
     "--out steps.json: holds no numbers of --growth: KeyError"),
    ("training_speed", "--growth x.png --figures --out words.json",
     "--out words.json: holds no numbers of --growth: JSONDecodeError")])
def test_what_a_user_can_put_right_is_one_line(name, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("steps.json").write_text('{"rows": [{"step": "GRPO"}]}')
    Path("words.json").write_text("words")
    monkeypatch.setattr(sys, "argv", [name, *flags.split()])
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "limits", lambda device, dtype: (1e12, 1e11))
    with pytest.raises(UserError) as error:
        module.main()
    assert error.value.status == 2 and message in str(error.value)
    assert not Path("x.png").exists()


@pytest.mark.parametrize("flags", [[], ["--help"], ["a", "b"]])
def test_logits_memory_says_how_it_is_called(flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["logits_memory.py", *flags])
    with pytest.raises(SystemExit) as end:
        logits_memory.main()
    assert end.value.code == logits_memory.__doc__


def test_logits_memory_ends_with_the_error_of_its_first_process(capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["logits_memory.py", "nowhere"])
    with pytest.raises(SystemExit) as end:
        logits_memory.main()
    [line] = capfd.readouterr().err.splitlines()
    assert end.value.code == 2 and line == (
        "logits_memory.py: error: nowhere/config.json: not found, expected a Hugging Face model "
        "directory")


def test_logits_memory_needs_a_context_of_its_rows(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(UserError, match="has a context of 64 tokens, expected at least 256"):
        logits_memory.peak(str(tmp_path), "layers", "full")


def save_tiny_model(path) -> None:
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    save_pretrained(Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 64, 64)), tokenizer,
                    path)


# ------------------------------------------------------------------------------------- step_speed

def test_both_sides_are_given_the_same_work(tmp_path):
    """Prompts, rows of a step, and how long an answer may be; every flag is one of its script."""
    config = step_speed.Config(prompts=3, pairs=5, new_tokens=7, steps=2)
    rows = step_speed.make_rows(config)
    # Two more steps don't count.
    assert {name: len(of_it) for name, of_it in rows.items()} == {
        "prompts": 4 * 5, "pairs": 4 * 5, "shown": 4 * 5}
    for pair, shown in zip(rows["pairs"], rows["shown"]):
        assert pair["prompt"] == shown["prompt"]
        assert verify_answer(pair["prompt"], pair["chosen"]) == 1
        assert verify_answer(pair["prompt"], pair["rejected"]) == 0
        assert verify_answer(shown["prompt"], shown["completion"]) == 1
    step_speed.write_inputs(tmp_path, rows)
    jobs = {job.name: job for job in step_speed.make_jobs(config, Path("start"), tmp_path, rows)}
    assert list(jobs) == ["GRPO", "GRPO, answers of full length", "DPO", "SFT"]
    assert {job.batch for job in jobs.values()} == {8 * 3, 5}
    for job in jobs.values():
        given = parse(sys.modules[job.main.__module__].Config, "", job.flags)
        lines = Path(given.data).read_text().splitlines()
        assert list(map(json.loads, lines)) == job.rows
        if job.trainer == "GRPO":
            assert given.prompts_per_step * given.group_size == job.batch
            assert given.max_new_tokens == job.settings["max_completion_length"] == 7
            assert given.kl_coef == job.settings["beta"]
            assert given.group_size == job.settings["num_generations"]
        else:
            assert given.batch_size == job.batch
    assert jobs["GRPO"].model != jobs["GRPO, answers of full length"].model


def test_a_row_of_steps_by_hand(model):
    """A DPO step of two pairs: prompts of 3 and 5 tokens go through the model twice, with chosen
    and rejected answers of 4 and 2 tokens. GRPO samples, and scores with its reference, besides."""
    tokenizer = builtin_tokenizer()
    rows = [{"prompt": "1+2", "chosen": "333", "rejected": "4"},
            {"prompt": "10+20", "chosen": "303", "rejected": "5"}]
    pairs = step_speed.Job("DPO", Path(), "DPO", None, [], rows, 2, {})
    assert step_speed.lengths_of(pairs, tokenizer, None) == (8, 6)
    seconds = {"this": [3.0, 1.0, 2.0], "TRL": [9.0, 6.0, 5.0]}
    limit = 3 * forward_operations(model, 2 * 14, 2 * 6, 7) / 1e9
    assert step_speed.row_of(pairs, seconds, 8, 6, model, 1e9) == pytest.approx(
        {"step": "DPO", "this (s)": 2.0, "TRL (s)": 6.0, "ratio": 3.0, "limit (s)": limit,
         "of the limit": limit / 2})
    shown = pairs._replace(trainer="SFT", rows=[{"prompt": "1+2", "completion": "3"}])
    assert step_speed.lengths_of(shown, tokenizer, None) == (3, 2)
    sampled = pairs._replace(trainer="GRPO")
    assert step_speed.lengths_of(sampled, tokenizer, 30.0) == (4, 30.0)
    assert step_speed.row_of(sampled, seconds, 8, 6, model, 1e9)["limit (s)"] == pytest.approx(
        5 / 3 * limit)


def test_steps_are_timed_in_turns(tmp_path, monkeypatch):
    """Our side is real, on a tiny model; TRL's is a stand-in."""
    save_tiny_model(tmp_path / "start")
    turns = []

    def theirs(job, path, config, device):
        turns.append(job.name)
        return [1000.0]
    monkeypatch.setattr(step_speed, "theirs", theirs)
    monkeypatch.setattr(step_speed, "limits", lambda device, dtype: (1e12, 1e11))
    monkeypatch.setattr(sys, "argv", [
        "step_speed.py", "--model", str(tmp_path / "start"), "--prompts", "1", "--pairs", "4",
        "--new-tokens", "4", "--steps", "1", "--turns", "2", "--device", "cpu",
        "--out", str(tmp_path / "steps.json")])
    step_speed.main()
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert turns == [row["step"] for row in rows for _ in range(2)] and len(rows) == 4
    for row in rows:
        assert 0 < row["limit (s)"] < row["this (s)"] < row["TRL (s)"] == 1000


def test_a_table_shows_three_digits_and_whole_thousands(capsys):
    report("x", [{"a": 1234.5, "b": 0.012345, "c": 1234}, {"b": 99.96}], torch.device("cpu"), "")
    assert capsys.readouterr().out == (
        "| a | b | c |\n|---|---|---|\n| 1,234 | 0.0123 | 1234 |\n|  | 100 |  |\n")


# ---------------------------------------------------------------------------------------- gpu_day

def rehearse(*words: str) -> list[dict]:
    return gpu_day.main([*words, "--tiny", "--device", "cpu"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("day")


@pytest.fixture
def day(folder):
    yield gpu_day.Day(gpu_day.Config(device="cpu", tiny=True), folder)
    torch.set_autocast_enabled("cpu", False)


def test_a_rehearsal_of_the_day_of_a_gpu(monkeypatch, folder, capsys):
    """All sections but `learn`, which starts two scripts, and with a few of parity's runs."""
    runs = {name: gpu_day.RUNS[name] for name in ("rm", "grpo grpo", "ppo on a reward model")}
    monkeypatch.setattr(gpu_day, "RUNS", runs)
    # To measure a machine's limits takes large products.
    monkeypatch.setattr(gpu_day, "limits", lambda device, dtype: (1e12, 1e11))
    lines = rehearse("parity", "logp", "resume", "graphs", "profile", "sweep", "memory",
                     "--folder", str(folder), "--out", str(folder / "lines"))
    assert [line for line in lines if "error" in line or not line.get("ok", True)] == []
    found = {section: [line for line in lines if line["check"].startswith(section)]
             for section in gpu_day.SECTIONS}
    # One line more says that the section is done.
    assert {section: len(of_it) for section, of_it in found.items()} == {
        "parity": 4, "logp": 5, "resume": 2, "learn": 0, "graphs": 1, "profile": 3, "sweep": 12,
        "memory": 2}
    assert all(line["relative"] == 0 for line in found["parity"][:-1])
    assert found["resume"][0]["resumed"] == found["resume"][0]["repeated"] == 0
    decode, micro_batch, _ = found["profile"]
    assert 0 < decode["of_the_limit"] < 1 and 0 < micro_batch["of_the_limit"] < 1
    printed = capsys.readouterr().out.splitlines()
    assert printed == (folder / "lines").read_text().splitlines()
    assert list(map(json.loads, printed)) == lines


def test_a_metric_that_is_off_is_named():
    row = {"step": "1", "reward": "0.5", "kl": "0.001", "seconds": "1", "eval_greedy": ""}
    differs = lambda **changed: gpu_day.largest_difference([row], [row | changed])
    assert differs(seconds="2") == ("", 0)
    assert differs(reward="0.49", kl="0.0011") == ("reward", pytest.approx(0.02))
    # Of a number near 0, a hundredth is what counts.
    assert differs(kl="0.0013") == ("kl", pytest.approx(0.03))
    assert not differs(kl="nan")[1] < 1e-3
    with pytest.raises(ValueError):
        differs(eval_greedy="0.5")


def test_parity_finds_a_run_that_differs_and_one_that_is_not_finite(day, monkeypatch):
    train = gpu_day.train

    def differs(main, flags, out, *more):
        more = [*more, "--lr", "1e-3"] if out == "grpo_1" else more
        return train(main, flags, out, *more)

    def is_nan(main, flags, out, *more):
        rows = train(main, flags, out, *more)
        return [row | {"kl": "nan"} for row in rows] if out == "grpo_2" else rows

    for wrong, finite in ((differs, True), (is_nan, False)):
        monkeypatch.setattr(gpu_day, "train", wrong)
        found = gpu_day.compare_devices(day, "grpo", *gpu_day.RUNS["grpo grpo"])
        assert not found["ok"] and found["bfloat16_is_finite"] == finite


@pytest.mark.parametrize("name", ["generate", "token_log_probs"])
def test_logp_finds_a_sampler_or_scorer_that_is_off(day, monkeypatch, name):
    right = getattr(gpu_day, name)

    def wrong(model, *arguments):
        found = right(model, *arguments)
        if name == "generate":
            found.logp += 1e-3
            return found
        return found * (1.001 if found.dtype == torch.float32 else 1)
    monkeypatch.setattr(gpu_day, name, wrong)
    found = gpu_day.compare_log_probs(day, gpu_day.TINY["tiny"], "float32", 1)
    assert not found["ok"]


def test_the_sweep_sets_what_each_device_goes_by(day, monkeypatch):
    found = {}

    def learn(work):
        found[work.shape.answer] = rollout.LOGITS_AT_ONCE, rollout.LOGITS_AT_ONCE_GPU
    monkeypatch.setattr(gpu_day.Work, "learn", learn)
    shape = gpu_day.TINY["tiny"]
    gpu_day.time_micro_batch(shape, day.device, 32, 777)
    assert found == {shape.answer: (777, 777)}


@pytest.mark.parametrize("device, default", [("cpu", 2 ** 24), ("cuda", 2 ** 27)])
def test_micro_batches_are_swept_at_the_device_s_own_chunks(device, default, monkeypatch):
    timed = []
    monkeypatch.setattr(gpu_day, "time_micro_batch", lambda *arguments: timed.append(arguments))
    day = SimpleNamespace(use=lambda dtype: torch.device(device), tokens=64, shapes=gpu_day.TINY,
                          check=lambda name, function, *arguments: function(*arguments))
    gpu_day.sweep(day)
    assert [at_once for *_, tokens, at_once in timed if tokens != 64] == [default] * 5


def test_the_device_is_busy_for_the_time_of_its_kernels(monkeypatch):
    """The operations that launched them report it too."""
    CPU, CUDA = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    event = lambda *values: SimpleNamespace(**dict(zip(
        ("key", "device_type", "self_device_time_total", "count"), values)))
    events = [event("aten::mm", CPU, 3e5, 2), event("cudaLaunchKernel", CPU, 0, 6),
              event("gemm", CUDA, 3e5, 2), event("elementwise", CUDA, 1e5, 4),
              event("cudaStreamSynchronize", CPU, 0, 2), event("aten::mul", CPU, 1e5, 4)]
    profiler = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda **how: nullcontext(profiler))
    monkeypatch.setattr(gpu_day, "timed", lambda function, device: function())
    found = gpu_day.measure(lambda: (8.0, 1.0), torch.device("cpu"), 2.0, 4, 40,
                            lambda: (0.5, 1.0), 2)
    assert found == {"ms": 2000, "of_the_limit": 0.25, "tokens_per_s": 5, "launches": 3, "waits": 1,
                     "busy": 0.8, "peak_gib": 1.0, "longest_ms": {"gemm": 150, "elementwise": 50}}


def test_a_script_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="evaluate.py failed: .*runs/grpo"):
        gpu_day.run_script(tmp_path, "evaluate.py", "runs/grpo")


def test_resume_finds_weights_that_differ(day, monkeypatch):
    load = gpu_day.load_pretrained

    def differs(path, dtype):
        model, tokenizer = load(path, dtype)
        if path == "two/model":
            model.norm.weight.data[3] += 1e-6
        return model, tokenizer
    monkeypatch.setattr(gpu_day, "load_pretrained", differs)
    found = gpu_day.compare_resumed(day)
    assert not found["ok"] and 0 < found["resumed"] < 2e-6 and found["repeated"] == 0


def test_a_folder_is_made_and_can_be_used_again(tmp_path, monkeypatch):
    """What an earlier day left there, whole or not, stops nothing."""
    config = gpu_day.Config(device="cpu", tiny=True)
    day = gpu_day.Day(config, tmp_path / "new" / "folder")
    write = gpu_day.write_tiny_task

    def fails(*given):
        raise KeyboardInterrupt
    for name, broken in (("write_tiny_task", lambda place: (write(place), fails())),
                         ("train", fails)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(gpu_day, name, broken)
            day.place()
    place = day.place()
    assert (place / "sft").is_dir() and (place / "rm" / "model").is_dir()

    def run(command, cwd, **how):
        assert list(cwd.iterdir()) == [] or command[1].name == "evaluate.py"
        (cwd / "runs" / "grpo").mkdir(parents=True, exist_ok=True)
        (cwd / "runs" / "grpo" / "metrics.csv").write_text("seconds\n2\n")
        return SimpleNamespace(stdout='{"greedy": 0.5}', returncode=0)
    monkeypatch.setattr(gpu_day, "subprocess", SimpleNamespace(run=run))
    for _ in range(2):
        found = gpu_day.learn_from_nothing(gpu_day.Day(config, day.folder))
        assert (found["step_seconds"], found["greedy"]) == (2, 0.5)


def test_one_failure_does_not_cost_the_rest(monkeypatch):
    """And so a section is added."""
    sections = {"broken": lambda day: day.check("x", lambda: 1 / 0) or {}[day],
                "whole": lambda day: day.check("y", lambda: {"found": 1})}
    monkeypatch.setattr(gpu_day, "SECTIONS", sections)
    lines = {line["check"]: line for line in rehearse()}
    assert not lines["x"]["ok"] and "division by zero" in lines["x"]["error"]
    assert not lines["broken: all"]["ok"] and lines["y"]["found"] == 1
    with pytest.raises(UserError, match="section learn: expected some of broken, whole"):
        rehearse("learn")
