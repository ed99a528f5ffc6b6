"""Every step of every script, computed again by hand: each gradient, weight and logged number.

A run is watched while it works. Only its inputs are taken from it: what it sampled, the orders it
drew, the weights that it had. All else is computed here in plain Python and float64, an answer at
a time: no padding, no masks, no micro-batches, and nothing of losses.py, advantages.py, rollout.py.

No setting has a neutral value. At temperature 1, γ = 1, with equal clips, in the first epoch, or
where the policy still is its reference, half of the mistakes that one can make don't show.
"""
import copy
import csv
import functools
import inspect
import json
import math
import zlib
from types import SimpleNamespace

import pytest
import torch

import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from model import ModelConfig, ScalarModel, Transformer
from support import metrics, parallel, plot, rl
from support.pretrained import load_pretrained, load_scalar_model, save_pretrained
from support.prefixes import PrefixTransformer
from support.run import Run
from support.tokenizer import builtin_tokenizer
from task import task_reward

TOKENIZER = builtin_tokenizer()
STOP = TOKENIZER.eos_id
TIMINGS = {"seconds", "tokens_per_second", "peak_memory_mb"}
# The functions of rollout.py that take a batch, wherever they are called.
SCORING = ("token_log_probs", "token_log_probs_and_entropies", "sequence_scores", "token_values",
           "token_kl")

# ----------------------------------------------------------------------------------- watching a run


class Diary(list):
    """What a run did, in order. An entry's `what` is a function's name; with it are the function's
    arguments by name, and its result. Models are copied, so their weights are those of the moment.
    """

    def of(self, what):
        return [entry for entry in self if entry.what == what]

    def steps(self):
        """The entries of each step; the last of them is `log`. The first step has the start too."""
        steps, entries = [], Diary()
        for entry in self:
            entries.append(entry)
            if entry.what == "log":
                steps.append(entries)
                entries = Diary()
        return steps


def watch(monkeypatch, diary, owner, name):
    """Note the calls of owner.name, which works as before. What it calls itself is not noted."""
    function = getattr(owner, name)

    def watched(*arguments, **named):
        given = inspect.signature(function).bind(*arguments, **named)
        given.apply_defaults()
        entry = SimpleNamespace(what=name)
        for key, value in given.arguments.items():
            is_model = isinstance(value, torch.nn.Module)
            setattr(entry, key, copy.deepcopy(value) if is_model else value)
        before = len(diary)
        entry.result = function(*arguments, **named)
        del diary[before:]
        diary.append(entry)
        return entry.result
    monkeypatch.setattr(owner, name, watched)


def watch_sizes(monkeypatch, diary, owner, name):
    """Note how large the batches of owner.name are, which --micro-batch-tokens bounds."""
    function = getattr(owner, name)

    def watched(*arguments, **named):
        tokens = inspect.signature(function).bind(*arguments, **named).arguments["tokens"]
        diary.append(SimpleNamespace(what="pass", name=name, rows=len(tokens),
                                     tokens=tokens.numel()))
        return function(*arguments, **named)
    monkeypatch.setattr(owner, name, watched)


def watch_updates(monkeypatch, diary):
    """Note each update: the model before it and after it, and the gradient.

    It begins when the gradient is complete, and ends when the model's optimizer has cleared it."""
    sum_gradients, zero_grad = parallel.sum_gradients, torch.optim.Optimizer.zero_grad
    begun = []

    def watched_sum(model):
        sum_gradients(model)
        entry = SimpleNamespace(what="update", model=copy.deepcopy(model), exact=exact(model))
        entry.gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                          for name, p in model.named_parameters()}
        squares = [g.double().square().sum().item() for g in entry.gradient.values()]
        entry.norm = math.sqrt(sum(squares))
        begun.append((model, entry))

    def watched_zero(optimizer, *arguments, **named):
        zero_grad(optimizer, *arguments, **named)
        # One update ends before another begins.
        [(model, entry)] = begun
        begun.clear()
        parameters = flatten(group["params"] for group in optimizer.param_groups)
        for p, q in zip(parameters, model.parameters(), strict=True):
            assert p is q and (p.grad is None or not p.grad.any())
        entry.after = copy.deepcopy(model)
        diary.append(entry)
    monkeypatch.setattr(parallel, "sum_gradients", watched_sum)
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", watched_zero)


def watch_orders(monkeypatch, diary):
    """Note each random order, with the seed that it came from."""
    randperm = torch.randperm

    def watched(n, generator=None):
        order = randperm(n, generator=generator)
        diary.append(SimpleNamespace(what="order", seed=generator.initial_seed(), result=order))
        return order
    monkeypatch.setattr(torch, "randperm", watched)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """A function that runs a script. -> its diary, the rows of its metrics.csv, its directory"""
    def run(script, *words, out="run"):
        diary = Diary()

        def draw(path, algorithm):
            diary.append(SimpleNamespace(what="plot", panels=plot.PANELS[algorithm]))
        with monkeypatch.context() as patch:
            for name in ("evaluate", "take", "pad_batch"):
                if hasattr(script, name):
                    watch(patch, diary, script, name)
            watch(patch, diary, parallel, "generate")
            for owner in (script, rl, metrics):
                for name in SCORING:
                    if hasattr(owner, name):
                        watch_sizes(patch, diary, owner, name)
            for owner in {script, train_rm}:
                if hasattr(owner, "hold_out"):
                    watch(patch, diary, owner, "hold_out")
            watch(patch, diary, Run, "log")
            watch_updates(patch, diary)
            watch_orders(patch, diary)
            patch.setattr(plot, "draw_curves", draw)
            script.main(["--out", str(tmp_path / out), *map(str, words)])
        with open(tmp_path / out / "metrics.csv", newline="") as f:
            rows = list(csv.DictReader(f))
        return diary, rows, tmp_path / out
    return run


def flags(settings):
    """--name value of each setting; of a switch that is on, the name alone."""
    words = []
    for name, value in settings.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(value)
    return words


# --------------------------------------------------------------------------------------- arithmetic


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def variance(numbers):
    """Unbiased."""
    middle = mean(numbers)
    return sum((x - middle) ** 2 for x in numbers) / (len(numbers) - 1)


def whitened(rows):
    """Over the numbers of all rows."""
    middle, spread = mean(flatten(rows)), math.sqrt(variance(flatten(rows)) + 1e-8)
    return [[(x - middle) / spread for x in row] for row in rows]


def flatten(rows):
    return [x for row in rows for x in row]


def subtract(rows, others):
    return [[x - y for x, y in zip(*pair, strict=True)] for pair in zip(rows, others, strict=True)]


def chunks(order, n):
    """n parts, the first of them one larger where need be."""
    size, larger = divmod(len(order), n)
    starts = [i * size + min(i, larger) for i in range(n + 1)]
    return [order[a:b] for a, b in zip(starts, starts[1:])]


def exact(model):
    """The model in float64, with gradients."""
    return copy.deepcopy(model).double().requires_grad_(True)


def frozen(model):
    """The model in float64, without."""
    return exact(model).requires_grad_(False)


def distributions(model, prompt, answer, temperature=1.0):
    """log π(· | what came before) at each token of the answer. (tokens, V)"""
    logits = model(torch.tensor([[*prompt, *answer]]))[0]
    # The logits at t - 1 are those of token t.
    before = logits[len(prompt) - 1:-1]
    return torch.log_softmax(before / temperature, -1)


def of_tokens(distributions, answer):
    """log π of each token of the answer. (tokens,)"""
    return distributions[range(len(answer)), answer]


def log_probs(model, prompt, answer, temperature=1.0):
    return of_tokens(distributions(model, prompt, answer, temperature), answer)


def entropies(distributions):
    return -(distributions.exp() * distributions).sum(-1)


def exact_kl(distributions, reference):
    """KL(π‖ref) at each token of the answer, over the vocabulary."""
    return (distributions.exp() * (distributions - reference)).sum(-1)


def values_before(critic, prompt, answer):
    """V of the state before each token of the answer. (tokens,)"""
    return critic(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1:-1]


def score_at_the_end(reward_model, prompt, answer):
    return reward_model(torch.tensor([[*prompt, *answer]]))[0, -1]


def minus_log_sigmoid(x):
    return torch.log(1 + torch.exp(-x))


# -------------------------------------------------------------------------------------- comparisons


def assert_gradient(update, loss):
    """The gradient at this update was that of `loss`, which is made of `update.exact`."""
    names, parameters = zip(*update.exact.named_parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    expected = torch.cat([g.flatten() for g in gradients])
    found = torch.cat([update.gradient[name].flatten() for name in names]).double()
    assert (found - expected).norm() <= 1e-3 * expected.norm() + 1e-8
    assert update.norm == pytest.approx(expected.norm().item(), rel=1e-3, abs=1e-8)


class AdamW:
    """What an optimizer must have done at each update: the gradient clipped to norm 1, then Adam
    (Kingma & Ba 2015), with the weight decay of Loshchilov & Hutter 2019. It begins at `start`."""

    def __init__(self, betas, weight_decay, start):
        self.betas, self.weight_decay, self.step = betas, weight_decay, 0
        self.first, self.second, self.model = {}, {}, start

    def check(self, update, lr):
        # Nothing but updates moves the weights, and an update without a gradient doesn't either.
        assert same_weights(update.model, self.model)
        self.model = update.after
        if update.norm == 0:
            assert same_weights(update.model, update.after)
            return
        self.step += 1
        b1, b2 = self.betas
        after = dict(update.after.named_parameters())
        for name, p in update.model.named_parameters():
            g = update.gradient[name].double() * min(1.0, 1.0 / update.norm)
            self.first[name] = b1 * self.first.get(name, 0) + (1 - b1) * g
            self.second[name] = b2 * self.second.get(name, 0) + (1 - b2) * g * g
            m = self.first[name] / (1 - b1 ** self.step)
            v = self.second[name] / (1 - b2 ** self.step)
            before = p.detach().double()
            moved = -lr * (m / (v.sqrt() + 1e-8) + self.weight_decay * before)
            found = after[name].detach().double() - before
            torch.testing.assert_close(found, moved, rtol=1e-3, atol=1e-3 * lr + 3e-7)


def assert_norms(entries, *norms):
    """What the run is told of a step's gradients: the norms of each optimizer's."""
    [log] = entries.of("log")
    for found, expected in zip(log.grad_norms, norms, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def same_weights(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def assert_row(row, expected, tokens):
    """A row of metrics.csv has these columns, no others, and these values. tokens: how many of
    them tokens_per_second counts."""
    assert row.keys() == expected.keys() | TIMINGS
    for name, value in expected.items():
        if isinstance(value, str):
            assert row[name] == value, name
        else:
            value = value.item() if isinstance(value, torch.Tensor) else value
            assert float(row[name]) == pytest.approx(value, rel=1e-3, abs=2e-6), name
    seconds = float(row["seconds"])
    assert 0 < seconds < 60
    assert float(row["tokens_per_second"]) * seconds == pytest.approx(tokens, rel=1e-4)


def assert_end(diary, rows, run, parts, last, load=load_pretrained):
    """What a run leaves: the last weights, a checkpoint of the last step, curves of its columns.

    -> the states of the checkpoint's parts"""
    model, tokenizer = load(run / "model")
    assert same_weights(model, last)
    assert tokenizer.encode("abc") == [97, 98, 99]
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == len(rows) and checkpoint["parts"].keys() == parts
    [plot] = diary.of("plot")
    columns = flatten(plot.panels.values())
    assert columns and set(columns) <= rows[0].keys()
    return checkpoint["parts"]


def assert_reference_and_kl_coef(states, reference, moves, kl_coef):
    """What a checkpoint knows of them: the reference's weights, if it moves, and the next β."""
    assert states["kl_coef"] == {"value": pytest.approx(kl_coef)}
    expected = reference.state_dict() if moves else {}
    assert states["reference"].keys() == expected.keys()
    for name, weight in states["reference"].items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6)


def assert_passes(diary, size, rows=1):
    """--micro-batch-tokens bounds every pass, save one of a single example, which has `rows`; and
    passes are not much smaller than that."""
    largest = {}
    for entry in diary.of("pass"):
        assert entry.tokens <= size or entry.rows <= rows
        largest[entry.name] = max(largest.get(entry.name, 0), entry.tokens)
    assert min(largest.values()) > size / 2


def assert_evaluated_with(entry, given):
    """An evaluation had this reward, and its config these settings."""
    for name, value in given.items():
        holder = entry if name == "reward" else entry.config
        assert getattr(holder, name) == value, name


def evaluation(entries, model, **given):
    """What the one evaluation among the entries found; it was of this model, with these settings.
    """
    [entry] = entries.of("evaluate")
    assert same_weights(entry.model, model)
    assert_evaluated_with(entry, given)
    return entry.result[0]


def assert_first_evaluation(diary, start, **given):
    """Before the first step it is noted what the model can do. All evaluations have the same
    reward, these settings, and the same examples, on which nothing was trained."""
    first = next(entry for entry in diary if entry.what in ("generate", "take", "evaluate"))
    assert first.what == "evaluate" and same_weights(first.model, start)
    for entry in diary.of("evaluate"):
        assert entry.examples == first.examples and entry.reward is first.reward
        assert_evaluated_with(entry, given)
    asked = [tuple(prompt) for entry in diary.of("generate") for prompt in entry.prompts]
    assert not {tuple(example["ids"]) for example in first.examples} & set(asked)


def titles(run):
    """The steps that samples.txt has evaluations of."""
    lines = (run / "samples.txt").read_text().split("\n")
    return [int(line.split()[2].rstrip(":")) for line in lines if line.startswith("=== step ")]


# ---------------------------------------------------------------------------------------------- SFT


def write_demonstrations(path):
    """Prompts of two to nine bytes, answers of one to six. -> (ids of a prompt, of its answer)"""
    rows = [{"prompt": f"{i}:" * (1 + i % 3), "completion": ["abcabc", "cba", "b"][i // 3 % 3]}
            for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {(tuple(row["prompt"].encode()), (*row["completion"].encode(), STOP)) for row in rows}


def demonstrations_loss(model, batch):
    """-log π of a token of an answer, the stop token too: the mean. -> it, and of how many."""
    logps = [log_probs(model, prompt, answer) for prompt, answer in batch]
    n = sum(map(len, logps))
    return -sum(logp.sum() for logp in logps) / n, n


def sft_lr(step, peak):
    """Of 20 steps: up over a tenth, constant, then linear to 0 over the last quarter."""
    return peak * {0: 0.5, 16: 0.8, 17: 0.6, 18: 0.4, 19: 0.2}.get(step, 1.0)


def test_sft(place, tmp_path, train):
    demonstrations = write_demonstrations(tmp_path / "sft.jsonl")
    start, _ = load_pretrained(place / "random")
    diary, rows, run = train(
        train_sft, "--model", place / "random", "--data", tmp_path / "sft.jsonl", "--steps", 20,
        "--batch-size", 5, "--lr", 0.02, "--weight-decay", 0.07, "--seed", 3, "--eval-every", 8,
        "--micro-batch-tokens", 30, "--eval-problems", 3)
    batches = [[tuple(map(tuple, example["turns"])) for example in taken.result]
               for taken in diary.of("take")]
    [split] = diary.of("hold_out")
    held_out = {tuple(map(tuple, example["turns"])) for example in split.result[1]}
    assert len(held_out) == split.most == 3 and len(split.examples) == len(demonstrations)
    assert set(flatten(batches)) | held_out <= demonstrations
    assert not set(flatten(batches)) & held_out

    adam = AdamW((0.9, 0.99), 0.07, start)
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [taken], [update] = entries.of("take"), entries.of("update")
        assert (taken.n, taken.seed, taken.step) == (5, 3, step)
        loss, n = demonstrations_loss(update.exact, batches[step])
        assert_gradient(update, loss)
        adam.check(update, sft_lr(step, 0.02))
        expected = {"step": step + 1, "loss": loss, "lr": sft_lr(step, 0.02),
                    "grad_norm": update.norm, "updates": 1, "eval_loss": "", "eval_greedy": "",
                    "eval_sampled": "", "skipped_updates": 0}
        if step + 1 in (8, 16, 20):
            expected["eval_loss"], _ = demonstrations_loss(frozen(update.after), held_out)
        assert_row(row, expected, n)
    norms = [update.norm for update in diary.of("update")]
    assert min(norms) < 1 < max(norms)
    assert_end(diary, rows, run, {"policy", "optimizer"}, update.after)
    assert_passes(diary, 30)


def test_sft_of_the_builtin_task(tmp_path, train, monkeypatch):
    """At first all demonstrations think, later two of five; the first weights are the seed's."""
    monkeypatch.setattr(train_sft, "SMALL", dict(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=128))
    torch.manual_seed(3)
    start = Transformer(ModelConfig(TOKENIZER.vocab_size, **train_sft.SMALL))
    diary, rows, run = train(train_sft, "--steps", 20, "--batch-size", 12, "--seed", 3,
                             "--eval-problems", 5, "--eval-every", 15,
                             "--micro-batch-tokens", 900)
    adam, asked, thinking = AdamW((0.9, 0.99), 0.1, start), set(), []
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [batch], [update] = entries.of("pad_batch"), entries.of("update")
        thinking.append(0)
        for prompt, answer in batch.rows:
            text, answer = TOKENIZER.decode(prompt), TOKENIZER.decode(answer)
            a, b, c = map(int, text.removesuffix("=").split("+"))
            blurted = f"{a + b + c}<|endoftext|>"
            thought = f"<think>{a}+{b}={a + b}, {a + b}+{c}={a + b + c}</think>" + blurted
            assert answer in (blurted, thought)
            thinking[-1] += answer == thought
            asked.add(text)
        loss, n = demonstrations_loss(update.exact, batch.rows)
        assert_gradient(update, loss)
        adam.check(update, sft_lr(step, 0.002))
        found = {"eval_greedy": "", "eval_sampled": ""}
        if step + 1 in (15, 20):
            found = evaluation(entries, update.after, reward=task_reward, max_new_tokens=32,
                               temperature=1.0, micro_batch_tokens=900)
            problems = {example["prompt"] for example in entries.of("evaluate")[0].examples}
            assert len(problems) == 5
        assert_row(row, {"step": step + 1, "loss": loss, "lr": sft_lr(step, 0.002),
                         "grad_norm": update.norm, "updates": 1, "eval_loss": "", **found,
                         "skipped_updates": 0}, n)
    assert thinking[:13] == [12] * 13 and 20 < sum(thinking[13:]) < 47
    # Of 240: every step has problems of its own. None of them is evaluated on.
    assert len(asked) > 235 and not problems & asked
    assert titles(run) == [15, 20]
    assert_end(diary, rows, run, {"policy", "optimizer"}, update.after)


# -------------------------------------------------------------------------------------------- pairs


def encoded(text):
    """Ids of a text, as a tuple. A prompt ends with a colon here, an answer with its stop token."""
    return tuple(text.encode()) if text.endswith(":") else (*text.encode(), STOP)


def write_pairs(path):
    """Prompts of two to nine bytes, answers of two to seven; every third label is the wrong way
    round. -> (ids of a prompt, of the chosen answer, of the rejected one)"""
    rows = []
    for i in range(80):
        answers = [f"a{i}" + "b" * (i % 4), "c" * (1 + i // 2 % 5) + f"{i}"]
        chosen, rejected = reversed(answers) if i % 3 == 0 else answers
        rows.append({"prompt": f"{i}:" * (1 + i % 3), "chosen": chosen, "rejected": rejected})
    path.write_text("\n".join(map(json.dumps, rows)))
    return {tuple(map(encoded, row.values())) for row in rows}


def as_ids(pair):
    return tuple(tuple(pair[side]) for side in ("prompt", "chosen", "rejected"))


def batches_of_pairs(diary, pairs, n, seed):
    """The pairs of each step, and those that are evaluated on, which are never among them."""
    batches = []
    for step, taken in enumerate(diary.of("take")):
        assert (taken.n, taken.seed, taken.step) == (n, seed, step)
        batches.append([as_ids(pair) for pair in taken.result])
    [split] = diary.of("hold_out")
    trained, held_out = (set(map(as_ids, part)) for part in split.result)
    assert len(held_out) == split.most == 5 and not trained & held_out
    assert set(flatten(batches)) <= trained == set(map(as_ids, taken.examples))
    assert trained | held_out <= pairs == set(map(as_ids, split.examples))
    assert batches[0] != batches[1] and all(len(batch) == n for batch in batches)
    return batches, held_out


def margins(reward_model, pairs):
    """r(chosen) - r(rejected) of each pair. (P,)"""
    return torch.stack([
        score_at_the_end(reward_model, prompt, chosen)
        - score_at_the_end(reward_model, prompt, rejected) for prompt, chosen, rejected in pairs])


def test_reward_model(place, tmp_path, train):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    start = ScalarModel(load_pretrained(place / "sft" / "model")[0])
    diary, rows, run = train(
        train_rm, "--model", place / "sft", "--data", tmp_path / "pairs.jsonl", "--steps", 5,
        "--batch-size", 7, "--lr", 0.01, "--seed", 3, "--micro-batch-tokens", 60,
        "--eval-every", 2, "--eval-problems", 5)
    batches, held_out = batches_of_pairs(diary, pairs, 7, 3)
    adam = AdamW((0.9, 0.95), 0.0, start)
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [update] = entries.of("update")
        margin = margins(update.exact, batches[step])
        loss = mean(minus_log_sigmoid(margin))
        assert_gradient(update, loss)
        adam.check(update, 0.01 * (5 - step) / 5)
        expected = {"step": step + 1, "loss": loss, "accuracy": mean(margin > 0),
                    "margin": mean(margin), "grad_norm": update.norm, "updates": 1,
                    "eval_accuracy": "", "skipped_updates": 0}
        if step + 1 in (2, 4, 5):
            expected["eval_accuracy"] = mean(margins(frozen(update.after), held_out) > 0)
        assert_row(row, expected, sum(len(c) + len(r) for _, c, r in batches[step]))
    for name in ("accuracy", "eval_accuracy"):
        assert any(0 < float(row[name] or 0) < 1 for row in rows)
    assert titles(run) == [2, 4, 5]
    assert_scores_are_shown(run, update.after, held_out)
    assert_end(diary, rows, run, {"reward_model", "optimizer"}, update.after, load_scalar_model)
    assert_passes(diary, 60, rows=2)


def assert_scores_are_shown(run, reward_model, held_out):
    """samples.txt ends with some held-out pairs, and what each of their answers scores."""
    answers = {}
    for prompt, chosen, rejected in held_out:
        answers["chosen", TOKENIZER.decode([*prompt, *chosen])] = prompt, chosen
        answers["rejected", TOKENIZER.decode([*prompt, *rejected])] = prompt, rejected
    lines = (run / "samples.txt").read_text().split("\n\n")[-2].split("\n")[1:]
    assert len(lines) == 2 * min(6, len(held_out))
    for line in lines:
        score, _, rest = line.removeprefix("[").partition(" ")
        prompt, answer = answers[tuple(rest.split("] "))]
        expected = score_at_the_end(reward_model, prompt, answer).item()
        assert float(score) == pytest.approx(expected, abs=0.006)


def test_pairs_of_the_builtin_task(monkeypatch):
    """Two answers to each problem, both of which ended; the right one is chosen. Those that are
    evaluated on are the same for every seed."""
    calls, files = [], {}

    def answer(model, tokenizer, reward, examples, max_new_tokens, temperature, generator, tokens):
        calls.append(SimpleNamespace(**locals()))
        n = range(len(examples))
        rewards = [float(i % 4 in (0, 3)) for i in n]
        # The answers of every third problem are cut off.
        return [(rewards[i], [[*f"{i:03}".encode(), STOP]], i % 6 != 4) for i in n], None
    monkeypatch.setattr(train_rm, "answer", answer)

    def keep(name, make):
        files[name] = make()
        return files[name]

    def of_calls(calls, held_out):
        """The pairs that there are in these calls."""
        pairs, prompts = [], set()
        for call in calls:
            assert (call.model, call.max_new_tokens, call.temperature) == ("policy", 9, 1.0)
            assert call.reward is task_reward and call.tokens == 77
            assert len(call.examples) == 512
            for i in range(0, 512, 2):
                example, again = call.examples[i:i + 2]
                ids = list(example["prompt"].encode())
                assert example == again and example["ids"] == ids
                prompts.add(example["prompt"])
                right, wrong = (i, i + 1) if i % 4 == 0 else (i + 1, i)
                if i % 6 != 4:
                    pairs.append({"prompt": ids, "chosen": [*f"{right:03}".encode(), STOP],
                                  "rejected": [*f"{wrong:03}".encode(), STOP]})
        assert len(prompts) > 500
        assert all((zlib.crc32(p.encode()) % 8 == 0) == held_out for p in prompts)
        return pairs

    found, seeds = [], set()
    for seed in (3, 4):
        config = SimpleNamespace(data="", pairs=250, eval_problems=200, seed=seed, max_new_tokens=9,
                                 micro_batch_tokens=77)
        train, held_out = train_rm.load_pairs(config, "policy", TOKENIZER,
                                              SimpleNamespace(keep=keep))
        # It takes two batches of 256 problems for either.
        assert len(calls) == 4
        assert train == of_calls(calls[:2], False)[:250]
        assert held_out == of_calls(calls[2:], True)[:200]
        found.append((train, held_out))
        seeds |= {call.generator.initial_seed() for call in calls}
        calls.clear()
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1] and len(seeds) == 6
    [text] = files.values()
    rows = [json.loads(line) for line in text.splitlines()]
    for row, ids in zip(rows, train + held_out, strict=True):
        texts = {name: TOKENIZER.decode(ids[name]).removesuffix("<|endoftext|>") for name in ids}
        assert row == {**texts, "ids": ids, "held_out": ids in held_out}


# ---------------------------------------------------------------------------- DPO and its relatives


def preference_loss(name, beta, chosen, rejected, ref_chosen, ref_rejected, kto_point):
    """The loss of one pair and its two implicit rewards, from log-probs token by token."""
    def log_sigmoid(x):
        return -minus_log_sigmoid(x)
    # Summed over an answer for DPO and KTO, averaged for the others.
    total = torch.sum if name in ("dpo", "kto") else torch.mean
    good, bad, ref_good, ref_bad = map(total, (chosen, rejected, ref_chosen, ref_rejected))
    if name in ("simpo", "orpo"):
        rewards = beta * good, beta * bad
    else:
        rewards = beta * (good - ref_good), beta * (bad - ref_bad)
    h = rewards[0] - rewards[1]
    if name == "dpo":
        # A tenth of the labels is taken to be wrong.
        loss = -0.9 * log_sigmoid(h) - 0.1 * log_sigmoid(-h)
    elif name == "ipo":
        loss = (h / beta - 1 / (2 * beta)) ** 2
    elif name == "kto":
        loss_good = 1.3 * (1 - torch.sigmoid(rewards[0] - beta * kto_point))
        loss_bad = 0.6 * (1 - torch.sigmoid(beta * kto_point - rewards[1]))
        loss = (loss_good + loss_bad) / 2
    elif name == "simpo":
        loss = -log_sigmoid(h - 0.4)
    else:
        p, q = good.exp(), bad.exp()
        loss = -beta * log_sigmoid(torch.log(p / (1 - p)) - torch.log(q / (1 - q)))
    return loss, *rewards


PREFERENCES = {"dpo": ["--label-smoothing", 0.1], "ipo": [], "simpo": ["--gamma", 0.4], "orpo": [],
               "kto": ["--desirable-weight", 1.3, "--undesirable-weight", 0.6]}


def ranked_right(policy, reference, pairs):
    """The share of pairs whose chosen answer has the larger implicit reward."""
    right = []
    for prompt, *answers in pairs:
        good, bad = ((log_probs(policy, prompt, answer)
                      - log_probs(reference, prompt, answer)).sum() for answer in answers)
        right.append(good > bad)
    return mean(right)


def mismatched_ratios(taken, pairs, policy, reference):
    """log π / π_ref of an answer to another prompt, after the prompt of each pair."""
    prompt_of = {answer: prompt for prompt, *answers in pairs for answer in answers}
    ratios = []
    for pair in taken.result:
        prompt, answer = pair["prompt"], pair["mismatched"]
        assert prompt_of[tuple(answer)] != tuple(prompt)
        ratio = log_probs(policy, prompt, answer) - log_probs(reference, prompt, answer)
        ratios.append(ratio.sum().item())
    return ratios


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("beta, nll_coef", [(0.3, 0.7), (None, None)], ids=["given", "default"])
def test_preferences(place, tmp_path, train, name, beta, nll_coef):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    start = load_pretrained(place / "sft" / "model")[0]
    given = ["--beta", beta, "--nll-coef", nll_coef] if beta else []
    diary, rows, run = train(
        train_dpo, "--model", place / "sft", "--data", tmp_path / "pairs.jsonl", "--steps", 5,
        "--batch-size", 7, "--lr", 0.005, "--seed", 1, "--micro-batch-tokens", 60,
        "--eval-every", 2, "--eval-problems", 5, "--loss", name, *given, *PREFERENCES[name])
    if not given:
        beta, nll_coef = {"simpo": 2.0}.get(name, 0.1), {"kto": 0.0}.get(name, 1.0)
    batches, held_out = batches_of_pairs(diary, pairs, 7, 1)
    reference, adam, points = frozen(start), AdamW((0.9, 0.95), 0.0, start), []
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [taken], [update] = entries.of("take"), entries.of("update")
        tokens, point = sum(len(c) + len(r) for _, c, r in batches[step]), None
        if name == "kto":
            # KL(π‖ref), which is never below 0, from answers to other prompts.
            points.append(mean(mismatched_ratios(taken, pairs, update.exact, reference)))
            point = max(0.0, points[-1])
            tokens += sum(len(pair["mismatched"]) for pair in taken.result)

        found = {name: [] for name in ("loss", "chosen", "rejected", "good", "bad")}
        nll = []
        for prompt, *answers in batches[step]:
            logps = [log_probs(update.exact, prompt, answer) for answer in answers]
            ref_logps = [log_probs(reference, prompt, answer) for answer in answers]
            loss, good, bad = preference_loss(name, beta, *logps, *ref_logps, point)
            nll += list(-logps[0])
            chosen, rejected = (logp.sum() for logp in logps)
            for key, value in zip(found, (loss, chosen, rejected, good, bad)):
                found[key].append(value)
        # The NLL of a token, over all the chosen answers.
        loss = mean(found["loss"]) + nll_coef * mean(nll)
        assert_gradient(update, loss)
        adam.check(update, 0.005 * (5 - step) / 5)

        good, bad = found["good"], found["bad"]
        expected = {
            "step": step + 1, "loss": loss, "chosen_reward": mean(good),
            "rejected_reward": mean(bad), "chosen_logp": mean(found["chosen"]),
            "rejected_logp": mean(found["rejected"]), "grad_norm": update.norm, "updates": 1,
            "eval_pairs": "", "eval_greedy": "", "eval_sampled": "", "skipped_updates": 0}
        if name != "kto":
            expected["accuracy"] = mean(g > b for g, b in zip(good, bad))
            expected["margin"] = mean(good) - mean(bad)
        if name in ("dpo", "ipo") and step == 0:
            # The policy is its reference, so that only rounding says which answer is better.
            expected["accuracy"] = row["accuracy"]
        if step + 1 in (2, 4, 5):
            # By the implicit reward, whatever the loss.
            policy = frozen(update.after)
            expected["eval_pairs"] = ranked_right(policy, reference, held_out)
        assert_row(row, expected, tokens)
    assert any(0 < float(row["eval_pairs"] or 0) < 1 for row in rows)
    if name == "kto":
        # With the defaults the estimate falls below 0, where the point stays at 0.
        assert max(points) > 0.3 and (given or min(points) < -0.3)
    assert_end(diary, rows, run, {"policy", "optimizer"}, update.after)
    assert_passes(diary, 60, rows=2)


def test_more_pairs_than_are_scored_at_once(place, tmp_path, train, monkeypatch):
    """The reference's log-probs are taken of 512 pairs at a time, and so are the evaluation's."""
    pairs = [{"prompt": [58], "chosen": [97 + i % 3, STOP],
              "rejected": [97 + i // 3 % 3] * (1 + i % 4) + [STOP]} for i in range(1031)]
    monkeypatch.setattr(train_dpo, "load_pairs", lambda *_: (pairs[:516], pairs[516:]))
    monkeypatch.setattr(train_dpo, "evaluate", lambda *_, **__: ({}, []))
    start = load_pretrained(place / "sft" / "model")[0]
    diary, [row], _ = train(train_dpo, "--model", place / "sft", "--steps", 1, "--lr", 0.01,
                            "--batch-size", 516, "--nll-coef", 0, "--eval-problems", 4)
    # The policy is its reference, so that this is the loss of every pair.
    assert float(row["loss"]) == pytest.approx(math.log(2), rel=1e-5)
    [update] = diary.of("update")
    right = ranked_right(frozen(update.after), frozen(start), map(as_ids, pairs[516:]))
    assert float(row["eval_pairs"]) == pytest.approx(float(right), rel=1e-5)


def test_dpo_of_the_builtin_task(place, tmp_path, train, monkeypatch):
    """What counts is the verifier: before the first step, when it is due, and at the end."""
    def pairs(numbers):
        return [{"prompt": list(f"{i}:".encode()), "chosen": [97, STOP],
                 "rejected": [98, 98, STOP]} for i in numbers]
    monkeypatch.setattr(train_dpo, "load_pairs", lambda *_: (pairs(range(10)), pairs(range(4))))
    words = ["--model", place / "sft", "--batch-size", 7, "--lr", 0.005, "--eval-problems", 5,
             "--max-new-tokens", 8, "--micro-batch-tokens", 60]
    diary, rows, run = train(train_dpo, *words, "--steps", 3, "--eval-every", 2)
    start = load_pretrained(place / "sft" / "model")[0]
    given = {"reward": task_reward, "max_new_tokens": 8, "temperature": 1.0,
             "micro_batch_tokens": 60}
    assert_first_evaluation(diary, start, **given)
    assert len(diary.of("evaluate")[0].examples) == 5
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        if step == 0:
            assert row["eval_greedy"] == row["eval_sampled"] == ""
        else:
            found = evaluation(entries, entries.of("update")[0].after)
            assert {name: float(row[name]) for name in found} == pytest.approx(found, rel=1e-5)
    assert titles(run) == [0, 2, 3]
    _, _, run = train(train_dpo, *words, "--steps", 1, "--eval-every", 0, out="only_at_the_end")
    assert titles(run) == [1]


# ------------------------------------------------------------------------ PPO and GRPO: the rollout


REWARD = """
def score(prompts, completions, weight, **columns):
    return [w * (text.count("a") - text.count("b") / 2) for w, text in zip(weight, completions)]
"""


def worth(weight, answer):
    """What this reward function gives, of ids."""
    return weight * (answer.count(ord("a")) - answer.count(ord("b")) / 2)


def write_prompts(path):
    """Prompts of two to nine bytes, each with a weight for the reward function; for one prompt in
    four it is 0, so that all answers are worth the same. -> flags, the weight of each prompt"""
    rows = [{"prompt": f"{i}:" * (1 + i % 3), "weight": i % 4 / 4} for i in range(45)]
    (path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "reward.py").write_text(REWARD)
    weight = {tuple(row["prompt"].encode()): row["weight"] for row in rows}
    return ["--data", path / "prompts.jsonl"], ["--reward", f"{path / 'reward.py'}:score"], weight


def sampled(entry, model, max_new_tokens, temperature):
    """What `generate` sampled from the model as it is: (prompt, answer, did it end) of each row."""
    assert same_weights(entry.model, model) and set(entry.stop_ids) == {STOP}
    assert (entry.max_new_tokens, entry.temperature) == (max_new_tokens, temperature)
    assert entry.micro_batch_tokens == 40
    rows = []
    finished = entry.result.finished.tolist()
    for tokens, prompt, ended in zip(entry.result.tokens.tolist(), entry.prompts, finished):
        answer = tokens[len(prompt):len(prompt) + max_new_tokens]
        if STOP in answer:
            answer = answer[:answer.index(STOP) + 1]
        assert tokens[:len(prompt)] == prompt and ended == (answer[-1] == STOP)
        assert ended or len(answer) == max_new_tokens
        if temperature == 0:
            # Each token is the most likely one, or as good as that.
            logp = distributions(frozen(model), prompt, answer)
            assert (of_tokens(logp, answer) > logp.max(-1).values - 1e-4).all()
        rows.append((tuple(prompt), tuple(answer), ended))
    return rows


def scalar_model(place, path, seed):
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    model = ScalarModel(policy)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    save_pretrained(model, tokenizer, path)
    return model


def model_scores(reward_model, answers, unfinished_score):
    """What a reward model gives to each answer that ended, and what the others get."""
    reward_model = frozen(reward_model)
    return [score_at_the_end(reward_model, prompt, answer).item() if ended else unfinished_score
            for prompt, answer, ended in answers]


class Scored:
    """A rollout's answers under the policy that sampled them and under the reference, a list of
    numbers for each answer, and what is logged of them."""

    def __init__(self, answers, policy, reference, temperature):
        self.answers, self.logp, self.ref_logp, self.kl = answers, [], [], []
        policy = frozen(policy)
        for prompt, answer, _ in answers:
            mine = distributions(policy, prompt, answer, temperature)
            others = distributions(reference, prompt, answer, temperature)
            self.logp.append(of_tokens(mine, answer).tolist())
            self.ref_logp.append(of_tokens(others, answer).tolist())
            self.kl.append(exact_kl(mine, others).tolist())
        self.log_ratios = subtract(self.logp, self.ref_logp)
        self.answer_kl = mean(map(sum, self.log_ratios))

    def row(self):
        return {"kl": mean(math.exp(-x) - 1 + x for x in flatten(self.log_ratios)),
                "kl_exact": mean(flatten(self.kl[:32])), "answer_kl": self.answer_kl,
                "response_length": mean(len(answer) for _, answer, _ in self.answers),
                "finished": mean(ended for _, _, ended in self.answers)}


def clipped_loss(ratio, advantage, low, high):
    """-min(ρ A, clip(ρ) A) of a token, and whether the clip took its gradient."""
    clipped = min(max(ratio.item(), 1 - low), 1 + high) * advantage
    if clipped < ratio.item() * advantage:
        return torch.tensor(-clipped), True
    return -ratio * advantage, False


def next_kl_coef(kl_coef, kl, target, horizon, answers):
    """An adaptive β: too much KL raises it, by a fifth of answers / horizon at most."""
    if not target:
        return kl_coef
    return max(0.0, kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * answers / horizon))


def move(reference, policy, step, ref_ema, ref_sync):
    """The reference after a step; steps count from 0."""
    for p_ref, p in zip(reference.parameters(), policy.parameters(), strict=True):
        if ref_ema:
            p_ref.data = ref_ema * p_ref.data + (1 - ref_ema) * p.data
        if ref_sync and (step + 1) % ref_sync == 0:
            p_ref.data = p.data.double()


def assert_noise_is_new(diary):
    """Samplings and orders come from different seeds. (A greedy answer has no noise.)"""
    generated = [entry for entry in diary.of("generate") if entry.temperature > 0]
    seeds = [entry.generator.initial_seed() for entry in generated]
    seeds += [entry.seed for entry in diary.of("order")]
    assert len(set(seeds)) == len(seeds) > 1


EVALUATED = {"max_new_tokens": 5, "temperature": 0.7, "micro_batch_tokens": 40}
ALL_CLIPS = {(clipped, positive) for clipped in (True, False) for positive in (True, False)}

# ---------------------------------------------------------------------------------------------- PPO


PPO = dict(steps=4, prompts_per_step=10, max_new_tokens=5, temperature=0.7, gamma=0.97, lam=0.9,
           clip=0.15, value_clip=0.1, lr=0.004, critic_lr=0.004, critic_warmup=1, epochs=2,
           minibatches=3, kl_coef=0.2, seed=3, micro_batch_tokens=40, eval_every=2)


def gae_sums(rewards, values, gamma, lam):
    """GAE of one answer, each advantage as its sum: A_t = Σ_k (γλ)^k δ_{t+k}, where
    δ_t = r_t + γ V_{t+1} - V_t, and V is 0 after the end."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            for t in range(len(deltas))]


def value_losses(values, old_values, targets, clip, noted):
    """0.5 max((V - R)², (V clipped around the old V - R)²) of each token."""
    losses = []
    for v, old, target in zip(values, old_values, targets, strict=True):
        error = clipped_error = (v - target) ** 2
        if clip:
            clipped_error = (old + torch.clamp(v - old, -clip, clip) - target) ** 2
        losses.append(max(error, clipped_error) / 2)
        noted["value_error"].append(error.item())
        noted["value_clip_fraction"].append(clipped_error.item() > error.item())
    return losses


PPO_CASES = {
    # Data and a reward model: nothing says which answers are right, so nothing is evaluated.
    "reward_model": dict(critic_lr=0.001, ref_ema=0.9, kl_target=0.08, kl_horizon=30.0,
                         unfinished_score=-0.7, eval_every=None),
    # The built-in task and a reward model: the verifier says what its scores are worth.
    "builtin_task": dict(critic="policy", critic_lr=0.001, critic_warmup=0, eval_problems=6),
    "function": dict(ref_sync=2, prompts_per_step=36, minibatches=5, value_clip=0, steps=3,
                     epochs=1, critic_warmup=0),
    "critic": dict(kl_coef=0.4, critic_lr=0.002, entropy_coef=0.3),
    "a2c": dict(epochs=1, minibatches=1, clip=None, value_clip=None, lr=0.02, critic_warmup=0)}


@pytest.mark.parametrize("case", PPO_CASES)
def test_ppo(place, tmp_path, train, case):
    given = {name: value for name, value in {**PPO, **PPO_CASES[case]}.items() if value is not None}
    s = SimpleNamespace(**{"kl_target": 0, "kl_horizon": 0, "ref_ema": 0, "ref_sync": 0, "clip": 9,
                           "value_clip": 0, "unfinished_score": -5.0, "entropy_coef": 0,
                           **given})
    data, reward, weight = write_prompts(tmp_path)
    start = load_pretrained(place / "sft" / "model")[0]
    reward_model, other = (scalar_model(place, tmp_path / f"scores{i}", i) for i in (1, 2))
    by_model = case in ("reward_model", "builtin_task")
    words = ["--reward-model", tmp_path / "scores1"] if by_model else reward
    words += [] if case == "builtin_task" else data
    words += ["--critic", tmp_path / "scores2"] if case == "critic" else []
    diary, rows, run = train(train_ppo, "--model", place / "sft", *words, *flags(given))

    critic = {"reward_model": reward_model, "critic": other}.get(case, ScalarModel(start))
    policy, reference, kl_coef = start, frozen(start), s.kl_coef
    actor_adam = AdamW((0.9, 0.95), 0.0, policy)
    critic_adam = AdamW((0.9, 0.95), 0.0, critic)
    prompts, kl_coefs, clips, ends, moved, learned = [], [], set(), set(), [], []
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        # What was sampled, and the score of each answer.
        [generated] = entries.of("generate")
        answers = sampled(generated, policy, s.max_new_tokens, s.temperature)
        assert len(answers) == s.prompts_per_step
        prompts += [prompt for prompt, _, _ in answers]
        ends |= {ended for _, _, ended in answers}
        if by_model:
            scores = model_scores(reward_model, answers, s.unfinished_score)
        else:
            scores = [worth(weight[prompt], answer) for prompt, answer, _ in answers]

        # Rewards, advantages and the critic's targets, at the weights that sampled.
        scored = Scored(answers, policy, reference, s.temperature)
        old_critic = frozen(critic)
        old_values = [values_before(old_critic, prompt, answer).tolist()
                      for prompt, answer, _ in answers]
        raw = []
        for score, log_ratios, values in zip(scores, scored.log_ratios, old_values):
            rewards = [-kl_coef * x for x in log_ratios]
            rewards[-1] += score
            raw.append(gae_sums(rewards, values, s.gamma, s.lam))
        targets = [[a + v for a, v in zip(*pair)] for pair in zip(raw, old_values)]
        advantages = whitened(raw)

        # The updates: the critic's, and from the end of its warm-up the actor's. Before, those of
        # the actor have no gradient.
        actor_learns = step >= s.critic_warmup
        updates, norms, critic_norms = iter(entries.of("update")), [], []
        noted = {"value_error": [], "value_clip_fraction": [], "clip_fraction": [],
                 "approx_kl": [], "entropy": []}
        assert len(entries.of("order")) == s.epochs
        for order in entries.of("order"):
            order = order.result.tolist()
            assert sorted(order) == list(range(len(answers)))
            for picked in chunks(order, s.minibatches):
                # One of each model; which comes first makes no difference.
                pair = {type(update.model): update for update in (next(updates), next(updates))}
                update, losses, bonuses = pair[PrefixTransformer], [], []
                for i in picked if actor_learns else ():
                    prompt, answer, _ = answers[i]
                    new = distributions(update.exact, prompt, answer, s.temperature)
                    noted["entropy"] += entropies(new).tolist()
                    bonuses += list(entropies(new))
                    log_ratios = of_tokens(new, answer) - torch.tensor(scored.logp[i])
                    for x, advantage in zip(log_ratios, advantages[i], strict=True):
                        loss, clipped = clipped_loss(x.exp(), advantage, s.clip, s.clip)
                        losses.append(loss)
                        noted["clip_fraction"].append(clipped)
                        noted["approx_kl"].append(math.exp(x.item()) - 1 - x.item())
                        clips.add((clipped, advantage > 0))
                if actor_learns:
                    assert_gradient(update, mean(losses) - s.entropy_coef * mean(bonuses))
                assert actor_learns or update.norm == 0
                actor_adam.check(update, s.lr)
                policy = update.after
                norms.append(update.norm)

                update, losses = pair[ScalarModel], []
                for i in picked:
                    values = values_before(update.exact, *answers[i][:2])
                    losses += value_losses(values, old_values[i], targets[i], s.value_clip, noted)
                assert_gradient(update, mean(losses))
                critic_adam.check(update, s.critic_lr)
                critic = update.after
                critic_norms.append(update.norm)
        learned += critic_norms + norms if actor_learns else critic_norms
        assert next(updates, None) is None
        assert_norms(entries, norms, critic_norms)

        errors, found = subtract(targets, old_values), {"eval_greedy": "", "eval_sampled": ""}
        if case != "reward_model" and step + 1 in (2, s.steps):
            found = evaluation(entries, policy)
        assert_row(row, {
            "step": step + 1, "reward": mean(scores), **scored.row(), "kl_coef": kl_coef,
            "samples": len(answers), "updates": len(norms) if actor_learns else 0,
            "grad_norm": mean(norms),
            **{name: mean(numbers or [0]) for name, numbers in noted.items()},
            "entropy": mean(noted["entropy"]) if actor_learns else "",
            "explained_variance": 1 - variance(flatten(errors)) / variance(flatten(targets)),
            **found, "skipped_updates": 0}, sum(len(answer) for _, answer, _ in answers))

        # The reference and β, for the next step.
        moved.append(not same_weights(reference, frozen(start)))
        move(reference, policy, step, s.ref_ema, s.ref_sync)
        kl_coefs.append(kl_coef)
        kl_coef = next_kl_coef(kl_coef, scored.answer_kl, s.kl_target, s.kl_horizon, len(answers))

    # The settings were such that all this shows.
    assert ends == {True, False} and max(float(row["kl"]) for row in rows) > 0.01
    assert len(set(prompts)) == min(len(prompts), 41)
    assert case == "a2c" or clips == ALL_CLIPS
    assert mean(norm > 0.01 for norm in learned) > 0.8
    assert not s.value_clip or any(float(row["value_clip_fraction"]) > 0.02 for row in rows)
    assert not s.ref_sync or moved == [False, False, True]
    # β fell, and then it rose.
    assert not s.kl_target or kl_coefs[1] < kl_coefs[0] and kl_coefs[-1] > min(kl_coefs)
    assert_noise_is_new(diary)
    if case == "reward_model":
        assert not (run / "samples.txt").exists()
    else:
        assert_first_evaluation(diary, start, **EVALUATED)
        verifies = diary.of("evaluate")[0].reward is task_reward
        assert titles(run) == [0, 2, s.steps] and verifies == (case == "builtin_task")
    parts = {"policy", "critic", "optimizer", "critic_optimizer", "reference", "kl_coef"}
    states = assert_end(diary, rows, run, parts, policy)
    assert_reference_and_kl_coef(states, reference, s.ref_ema or s.ref_sync, kl_coef)
    assert_passes(diary, s.micro_batch_tokens)


# --------------------------------------------------------------------------- GRPO and its relatives


def group_advantages(baseline, earned, greedy):
    """Of the answers to one prompt. earned: the score of each, less its KL if that is in there."""
    if baseline == "none":
        return earned
    if baseline == "greedy":
        return [x - greedy for x in earned]
    if len(set(earned)) == 1:
        return [0.0] * len(earned)
    if baseline == "others":
        return [x - (sum(earned) - x) / (len(earned) - 1) for x in earned]
    spread = math.sqrt(variance(earned)) + 1e-4 if baseline == "group/std" else 1.0
    return [(x - mean(earned)) / spread for x in earned]


def token_losses(name, logp, old_logp, advantages, low, high):
    """The loss of each token of an answer, and whether its ratio was clipped."""
    log_ratios = logp - torch.tensor(old_logp)
    if name == "reinforce":
        return [-a * p for a, p in zip(advantages, logp)], [False] * len(logp)
    if name == "gspo":
        # One ratio for the whole answer.
        loss, clipped = clipped_loss(log_ratios.mean().exp(), advantages[0], low, high)
        return [loss] * len(logp), [clipped] * len(logp)
    if name == "cispo":
        ratios = log_ratios.exp().tolist()
        weights = [min(max(ratio, 1 - low), 1 + high) for ratio in ratios]
        losses = [-weight * a * p for weight, a, p in zip(weights, advantages, logp)]
        return losses, [weight != ratio for weight, ratio in zip(weights, ratios)]
    ratios = log_ratios.exp()
    return zip(*(clipped_loss(ratio, a, low, high) for ratio, a in zip(ratios, advantages)))


def average(rows, how, max_new_tokens):
    """One number from the losses of a mini-batch's answers, token by token."""
    if how == "token-mean":
        return mean(flatten(rows))
    if how == "seq-mean":
        return mean(map(mean, rows))
    return sum(flatten(rows)) / (len(rows) * max_new_tokens)


ESTIMATORS = {"k1": lambda x: x, "k2": lambda x: x ** 2 / 2,
              "k3": lambda x: torch.exp(-x) - 1 + x}

GRPO = dict(steps=3, prompts_per_step=6, group_size=3, max_new_tokens=5, temperature=0.7, lr=0.004,
            seed=3, micro_batch_tokens=40, eval_every=2)
# Unequal clips, and eight updates a step: of 5, 5, 5 and 3 answers, twice.
OFTEN = dict(epochs=2, minibatches=4)
CLIPPED = dict(clip_low=0.1, clip_high=0.2, **OFTEN)
# The policy gradient itself, which has no ratio to clip.
PLAIN = dict(loss="reinforce", minibatches=1, kl_in="reward", aggregate="seq-sum", clip_low=None,
             clip_high=None)

# What each name stands for, in the same words, where it isn't what "grpo" stands for.
GRPO_MEANS = dict(baseline="group/std", loss="grpo", aggregate="seq-mean", clip_low=0.2,
                  clip_high=0.2, epochs=1, minibatches=2, kl_coef=0.01, kl_in="loss",
                  kl_estimator="k3", no_signal="keep")
MEANS = {
    "grpo": {},
    "dr_grpo": dict(baseline="group", aggregate="seq-sum", kl_coef=0),
    "dapo": dict(aggregate="token-mean", clip_high=0.28, kl_coef=0, no_signal="replace"),
    "gspo": dict(loss="gspo", clip_low=3e-4, clip_high=4e-4),
    "cispo": dict(loss="cispo", aggregate="token-mean", clip_low=1.0, clip_high=0.28, kl_coef=0),
    "reinforce_pp": dict(baseline="batch/std", aggregate="token-mean", kl_in="reward"),
    "rloo": dict(baseline="others", **PLAIN),
    "remax": dict(baseline="greedy", **PLAIN),
    "reinforce": dict(baseline="none", **PLAIN)}
ADAPTIVE = dict(kl_coef=0.3, kl_target=0.1, kl_horizon=50.0)

GRPO_CASES = {
    # A name alone. The first is the name if none is given.
    **{name: dict(method=name) if name != "grpo" else {} for name in MEANS},
    # One update a step, so that the ratio is 1, but has a gradient.
    "on_policy": dict(minibatches=1, kl_coef=0.3),
    # All settings changed.
    "adaptive": dict(method="grpo", ref_ema=0.9, **ADAPTIVE, **CLIPPED),
    "synced": dict(kl_coef=0.3, kl_estimator="k2", ref_sync=2, aggregate="token-mean", **CLIPPED),
    "dr_grpo_k1": dict(method="dr_grpo", kl_coef=0.1, kl_estimator="k1", **CLIPPED),
    "dr_grpo_reward": dict(method="dr_grpo", kl_coef=0.3, kl_in="reward", aggregate="seq-mean",
                           **CLIPPED),
    "gspo_epochs": dict(method="gspo", kl_coef=0.3, clip_low=0.02, clip_high=0.04, epochs=4,
                        minibatches=1),
    "cispo_clipped": dict(method="cispo", kl_coef=0.3, **CLIPPED),
    "reinforce_pp_adaptive": dict(method="reinforce_pp", **ADAPTIVE, **CLIPPED),
    "reinforce_pp_loss": dict(method="reinforce_pp", kl_coef=0.3, kl_in="loss",
                              aggregate="seq-mean", no_signal="drop", **CLIPPED),
    "rloo_adaptive": dict(method="rloo", **ADAPTIVE),
    "rloo_loss": dict(method="rloo", kl_coef=0.3, kl_in="loss", aggregate="token-mean"),
    "remax_reward": dict(method="remax", kl_coef=0.3, aggregate="seq-mean"),
    "reinforce_reward": dict(method="reinforce", kl_coef=0.3, ref_ema=0.9),
    # An entropy bonus, in each average, and on its own where nothing else has a gradient.
    "grpo_entropy": dict(entropy_coef=0.3, **CLIPPED),
    "dapo_entropy": dict(method="dapo", entropy_coef=0.3, no_signal="drop", **CLIPPED),
    "rloo_entropy": dict(method="rloo", entropy_coef=0.3),
    # Groups without a signal are left out, or others are sampled in their place.
    "grpo_dropped": dict(no_signal="drop", **OFTEN),
    "grpo_replaced": dict(no_signal="replace", kl_coef=0.3, **CLIPPED),
    "dr_grpo_replaced": dict(method="dr_grpo", no_signal="replace"),
    "dapo_dropped": dict(method="dapo", no_signal="drop", kl_coef=0.3, **CLIPPED),
    "dapo_replaced": dict(method="dapo", kl_coef=0.3, **CLIPPED),
    "rloo_replaced": dict(method="rloo", kl_in="loss", no_signal="replace"),
    "remax_dropped": dict(method="remax", kl_in="loss", no_signal="drop"),
    # Answers of a sampler whose log-probs are not the policy's.
    "grpo_weighted": dict(importance_cap=1.2, kl_coef=0.3, **CLIPPED),
    "reinforce_pp_weighted": dict(method="reinforce_pp", importance_cap=1.2, **CLIPPED),
    "rloo_weighted": dict(method="rloo", kl_in="loss", importance_cap=1.2),
    # As PPO's cases of these names.
    "reward_model": dict(kl_coef=0.3, unfinished_score=-0.7, eval_every=None, **CLIPPED),
    "builtin_task": dict(eval_problems=6)}


def let_the_sampler_differ(monkeypatch):
    """As if another engine had sampled: a rollout's log-probs are off by up to 0.4."""
    generate = parallel.generate

    def differing(*arguments, **named):
        rollout = generate(*arguments, **named)
        off = 0.4 * torch.sin(torch.arange(rollout.logp.numel())).view(rollout.logp.shape)
        rollout.logp = rollout.logp + off * rollout.mask
        return rollout
    monkeypatch.setattr(parallel, "generate", functools.wraps(generate)(differing))


def importance_ratios(entries, scored):
    """π / μ of each token of each answer."""
    sampler = []
    for generated in entries.of("generate"):
        rollout = generated.result
        sampler += [row[mask].tolist() for row, mask in zip(rollout.logp.double(), rollout.mask)]
    return [[math.exp(x - y) for x, y in zip(*rows, strict=True)]
            for rows in zip(scored.logp, sampler, strict=True)]


def rounds_of(entries, policy, s):
    """What was sampled in a step, as (prompt, answer, did it end): a group's answers in a row;
    the greedy answers to the same prompts; how many rounds it took."""
    answers, greedy, rounds = [], [], 0
    for generated in entries.of("generate"):
        if generated.temperature == 0:
            greedy += sampled(generated, policy, s.max_new_tokens, 0)
        else:
            answers += sampled(generated, policy, s.max_new_tokens, s.temperature)
            rounds += 1
    assert len(answers) == rounds * s.prompts_per_step * s.group_size
    for i, (prompt, _, _) in enumerate(answers):
        assert prompt == answers[i - i % s.group_size][0]
    prompts = [prompt for prompt, _, _ in answers[::s.group_size]]
    assert [prompt for prompt, _, _ in greedy] == (prompts if s.baseline == "greedy" else [])
    return answers, greedy, rounds


def token_advantages(s, scored, scores, baselines, kl_coef):
    """For each token of each answer."""
    kl_coef = kl_coef if s.kl_in == "reward" else 0.0
    penalties = [[-kl_coef * x for x in row] for row in scored.log_ratios]
    if s.baseline == "batch/std":
        # What is still to come after each token, over the batch.
        return whitened([[sum(row[t:]) + score for t in range(len(row))]
                         for row, score in zip(penalties, scores, strict=True)])
    earned = [score + sum(row) for row, score in zip(penalties, scores, strict=True)]
    advantages = []
    for start in range(0, len(earned), s.group_size):
        greedy = baselines[start // s.group_size] if baselines else None
        advantages += group_advantages(s.baseline, earned[start:start + s.group_size], greedy)
    return [[a] * len(row) for a, row in zip(advantages, penalties)]


def assert_rounds(rounds, signal, s):
    """Sampling went on until enough groups had a signal, for three rounds at most."""
    for n in range(1, rounds):
        assert sum(signal[:n * s.prompts_per_step]) < s.prompts_per_step
    enough = sum(signal) >= s.prompts_per_step
    assert rounds == 1 or s.no_signal == "replace"
    assert rounds == 3 or enough or s.no_signal != "replace"


@pytest.mark.parametrize("case", GRPO_CASES)
def test_grpo(place, tmp_path, train, case, monkeypatch):
    given = {**GRPO, **GRPO_CASES[case]}
    given = {name: value for name, value in given.items() if value is not None}
    s = SimpleNamespace(**{
        **dict(kl_target=0, kl_horizon=0, ref_ema=0, ref_sync=0, unfinished_score=-5.0,
               importance_cap=0, entropy_coef=0),
        **GRPO_MEANS, **MEANS[given.get("method", "grpo")], **given})
    data, reward, weight = write_prompts(tmp_path)
    start = load_pretrained(place / "sft" / "model")[0]
    reward_model = scalar_model(place, tmp_path / "scores", 1)
    by_model = case in ("reward_model", "builtin_task")
    words = ["--reward-model", tmp_path / "scores"] if by_model else reward
    words += [] if case == "builtin_task" else data
    if s.importance_cap:
        let_the_sampler_differ(monkeypatch)
    diary, rows, run = train(train_grpo, "--model", place / "sft", *words, *flags(given))

    policy, reference, kl_coef = start, frozen(start), s.kl_coef
    adam = AdamW((0.9, 0.95), 0.0, policy)
    asked, kl_coefs, clips, ends, left_out = [], [], set(), set(), 0
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        # What was sampled, its rewards, and the advantage of each token.
        answers, greedy, rounds = rounds_of(entries, policy, s)
        asked.append({prompt for prompt, _, _ in answers})
        ends |= {ended for _, _, ended in answers}
        if by_model:
            scores = model_scores(reward_model, answers, s.unfinished_score)
        else:
            scores = [worth(weight[prompt], answer) for prompt, answer, _ in answers]
        baselines = [worth(weight[prompt], answer) for prompt, answer, _ in greedy]
        scored = Scored(answers, policy, reference, s.temperature)
        advantages = token_advantages(s, scored, scores, baselines, kl_coef)
        sampler = {}
        if s.importance_cap:
            ratios = importance_ratios(entries, scored)
            advantages = [[min(ratio, s.importance_cap) * a for ratio, a in zip(*both, strict=True)]
                          for both in zip(ratios, advantages, strict=True)]
            ratios = flatten(ratios)
            sampler = {"sampler_kl": mean([ratio - 1 - math.log(ratio) for ratio in ratios]),
                       "capped": mean([ratio > s.importance_cap for ratio in ratios])}
            assert min(ratios) < 0.8 and 0 < sampler["capped"] < 1

        # The groups that are used: where some are left out, the first that have a signal.
        groups = [range(i, i + s.group_size) for i in range(0, len(answers), s.group_size)]
        signal = [any(a != 0 for i in group for a in advantages[i]) for group in groups]
        assert_rounds(rounds, signal, s)
        used = list(range(len(answers)))
        if s.no_signal != "keep":
            groups = [group for group, shows in zip(groups, signal) if shows]
            used = flatten(groups[:s.prompts_per_step])
            left_out += used != list(range(len(used)))

        # The updates.
        updates, norms = iter(entries.of("update")), []
        noted = {"clip_fraction": [], "approx_kl": [], "entropy": []}
        assert len(entries.of("order")) == s.epochs
        for order in entries.of("order"):
            order = order.result.tolist()
            assert sorted(order) == list(range(len(used)))
            for picked in chunks([used[i] for i in order], s.minibatches):
                update, losses, penalties, bonuses = next(updates), [], [], []
                for i in picked:
                    prompt, answer, _ = answers[i]
                    new = distributions(update.exact, prompt, answer, s.temperature)
                    logp = of_tokens(new, answer)
                    loss, clipped = token_losses(s.loss, logp, scored.logp[i], advantages[i],
                                                 s.clip_low, s.clip_high)
                    losses.append(loss)
                    x = logp - torch.tensor(scored.ref_logp[i])
                    penalties.append(list(ESTIMATORS[s.kl_estimator](x)))
                    noted["entropy"] += entropies(new).tolist()
                    bonuses.append(list(entropies(new)))
                    noted["clip_fraction"] += clipped
                    for x in (logp - torch.tensor(scored.logp[i])).tolist():
                        ratio_is_1 = s.loss == "reinforce"
                        noted["approx_kl"].append(0.0 if ratio_is_1 else math.exp(x) - 1 - x)
                    clips |= {(c, a > 0) for c, a in zip(clipped, advantages[i]) if a != 0}
                loss = average(losses, s.aggregate, s.max_new_tokens)
                if s.kl_in == "loss":
                    loss = loss + kl_coef * average(penalties, s.aggregate, s.max_new_tokens)
                loss = loss - s.entropy_coef * average(bonuses, s.aggregate, s.max_new_tokens)
                assert_gradient(update, loss)
                adam.check(update, s.lr)
                policy = update.after
                norms.append(update.norm)
        assert next(updates, None) is None
        assert_norms(entries, norms)

        found = {"eval_greedy": "", "eval_sampled": ""}
        if case != "reward_model" and step + 1 in (2, 3):
            found = evaluation(entries, policy)
        assert_row(row, {
            "step": step + 1, "reward": mean(scores), **scored.row(), "kl_coef": kl_coef,
            **sampler, "samples": len(answers) + len(greedy), "no_signal": 1 - mean(signal),
            **{name: mean(numbers) for name, numbers in noted.items()},
            "updates": sum(norm > 0 for norm in norms), "grad_norm": mean(norms), **found,
            "skipped_updates": 0}, sum(len(answer) for _, answer, _ in answers))

        # The reference and β, for the next step.
        move(reference, policy, step, s.ref_ema, s.ref_sync)
        kl_coefs.append(kl_coef)
        kl_coef = next_kl_coef(kl_coef, scored.answer_kl, s.kl_target, s.kl_horizon, len(answers))

    # The settings, which may be too close to those of another name to tell them apart by a run.
    settings = json.loads((run / "config.json").read_text())
    for name in GRPO_MEANS.keys() - {"baseline", "loss"}:
        assert settings[name] == getattr(s, name), name

    # They were such that all this shows.
    assert ends == {True, False} and max(float(row["answer_kl"]) for row in rows) > 0.05
    assert not asked[0] & asked[1] and all(len(prompts) % 6 == 0 for prompts in asked[:2])
    assert "clip_low" not in given or clips == ALL_CLIPS
    # Whitened over the batch, every group has a signal.
    assert (left_out > 0) == (s.no_signal != "keep" and s.baseline != "batch/std")
    # β fell, and then it rose.
    assert not s.kl_target or kl_coefs[1] < kl_coefs[0] and kl_coef > kl_coefs[1]
    assert_noise_is_new(diary)
    if case == "reward_model":
        assert not (run / "samples.txt").exists()
    else:
        assert_first_evaluation(diary, start, **EVALUATED)
        verifies = diary.of("evaluate")[0].reward is task_reward
        assert titles(run) == [0, 2, 3] and verifies == (case == "builtin_task")
    parts = {"policy", "optimizer", "reference", "kl_coef"}
    states = assert_end(diary, rows, run, parts, policy)
    assert_reference_and_kl_coef(states, reference, s.ref_ema or s.ref_sync, kl_coef)
    assert_passes(diary, s.micro_batch_tokens)


@pytest.mark.parametrize("words, used", [
    (["--method", "dapo"], False), (["--method", "dapo", "--no-signal", "drop"], False),
    (["--method", "dr_grpo"], True)])
def test_grpo_without_a_signal(place, tmp_path, train, words, used):
    """Nothing was learned, so nothing moves; what is no mean of anything is left empty or 0."""
    rows = [{"prompt": f"{i}:", "weight": 0} for i in range(45)]
    data, reward, _ = write_prompts(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    diary, rows, run = train(train_grpo, "--model", place / "sft", *data, *reward, *words,
                             *flags({**GRPO, "lr": 0.1, "steps": 2}))
    start, end = (load_pretrained(path / "model")[0] for path in (place / "sft", run))
    assert same_weights(start, end)
    assert [update.norm for update in diary.of("update")] == [0] * 4
    for row in rows:
        found = {name: float(row[name]) for name in ("no_signal", "updates", "grad_norm", "kl",
                                                     "clip_fraction", "skipped_updates")}
        assert found == {**dict.fromkeys(found, 0), "no_signal": 1}
        assert float(row["approx_kl"]) == pytest.approx(0, abs=1e-6)
        assert (row["entropy"] != "") == used


# ----------------------------------------------------------- noise, resuming, what is trained first


def noise(entries):
    """The seeds of a step's samplings and orders."""
    generated = [entry.generator.initial_seed() for entry in entries.of("generate")]
    return generated + [entry.seed for entry in entries.of("order")]


@pytest.mark.parametrize("script", [train_grpo, train_ppo])
def test_noise_comes_from_the_seed_and_the_step(place, tmp_path, train, script):
    """From nothing else: a longer run begins like a short one, and another seed's is all other."""
    data, reward, _ = write_prompts(tmp_path)
    words = ["--model", place / "sft", *data, *reward, "--prompts-per-step", 4, "--max-new-tokens",
             5, "--eval-every", 0]
    found = {}
    for seed, steps in ((3, 1), (3, 2), (4, 2)):
        given = ["--seed", seed, "--steps", steps]
        diary, _, run = train(script, *words, *given, out=f"{seed}{steps}")
        found[seed, steps] = [noise(entries) for entries in diary.steps()]
        # --eval-every 0: only at the end.
        assert titles(run) == [steps] and len(diary.of("evaluate")) == 1
    assert found[3, 1][0] == found[3, 2][0] and not set(found[3, 1][0]) & set(flatten(found[4, 2]))


@pytest.mark.parametrize("script", [train_grpo, train_ppo])
def test_a_resumed_run_goes_on(place, tmp_path, train, script):
    """It evaluates the first model once, and its steps are those of a run that never stopped."""
    data, reward, _ = write_prompts(tmp_path)
    words = ["--model", place / "sft", *data, *reward, "--prompts-per-step", 4, "--max-new-tokens",
             5, "--kl-target", 0.1, "--kl-horizon", 30, "--ref-ema", 0.9, "--lr", 0.004,
             "--eval-every", 1]
    words += ["--critic-warmup", 0] if script is train_ppo else []
    whole, rows, _ = train(script, *words, "--steps", 3, out="whole")
    train(script, *words, "--steps", 2)
    rest, resumed_rows, run = train(script, "--resume", "--steps", 3)
    assert titles(run) == [0, 1, 2, 3] and len(rest.steps()) == 1
    assert noise(rest) == noise(whole.steps()[2])
    for row, other in zip(rows, resumed_rows, strict=True):
        assert all(row[name] == other[name] for name in row.keys() - TIMINGS)


class Stop(Exception):
    """Raised where a script would begin to train something else first."""


@pytest.mark.parametrize("script, words, first", [
    (train_rm, [], ("runs/sft", train_sft.main)), (train_dpo, [], ("runs/sft", train_sft.main)),
    (train_grpo, [], ("runs/sft", train_sft.main)), (train_ppo, [], ("runs/sft", train_sft.main)),
    (train_ppo, ["--model", "{sft}"], ("runs/rm", train_rm.main))])
def test_what_is_trained_first(place, tmp_path, monkeypatch, script, words, first):
    def ensure_trained(run, train, config):
        assert (run, train) == first and config.seed == 3
        raise Stop
    monkeypatch.setattr(rl, "ensure_trained", ensure_trained)
    words = [word.format(sft=place / "sft") for word in words]
    with pytest.raises(Stop):
        script.main([*words, "--out", str(tmp_path / "run"), "--seed", "3"])
