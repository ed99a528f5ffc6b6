"""Every step of every script, computed again by hand, and compared: each gradient, each weight, each logged number.

A run is watched while it works. Taken from it are only its inputs: what it sampled, the orders it drew, the weights
it had. All else is computed here in plain Python, in float64, one answer at a time: no padding, no masks, no
micro-batches, and nothing of losses.py, advantages.py or rollout.py. No setting has a neutral value: at temperature 1,
γ = 1, equal clips, one epoch or a policy that is still its reference, half of the mistakes one can make don't show.
"""
import copy
import csv
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
from common import Run
from model import ModelConfig, ScalarModel, Transformer
from pretrained import load_pretrained, load_scalar_model, save_pretrained
from tokenizer import builtin_tokenizer

STOP = builtin_tokenizer().eos_id
TIMINGS = {"seconds", "tokens_per_second", "peak_memory_mb"}

# ------------------------------------------------------------------------------------ watching a run


class Diary(list):
    """What a run did, in order: entries whose `what` is the name of a function, with its arguments and its result.

    Models are copied when they are noted, so an entry's weights are those of its moment."""

    def of(self, what):
        return [entry for entry in self if entry.what == what]

    def steps(self):
        """The entries of each step. `log` is a step's last entry but for its evaluation, which comes before it."""
        steps, entries = [], []
        for entry in self:
            entries.append(entry)
            if entry.what == "log":
                steps.append(Diary(entries))
                entries = []
        return steps


def watch(monkeypatch, diary, owner, name):
    """Note the calls of owner.name, which works as before."""
    function = getattr(owner, name)

    def watched(*arguments, **named):
        given = inspect.signature(function).bind(*arguments, **named)
        given.apply_defaults()
        entry = SimpleNamespace(what=name, **{
            key: copy.deepcopy(value) if isinstance(value, torch.nn.Module) else value
            for key, value in given.arguments.items()})
        entry.result = function(*arguments, **named)
        diary.append(entry)
        return entry.result
    monkeypatch.setattr(owner, name, watched)


def watch_updates(monkeypatch, diary):
    """Note each update: the model and its gradient before it, and the weights after."""
    update = Run.update

    def watched(run, optimizer, model):
        entry = SimpleNamespace(what="update", model=copy.deepcopy(model), exact=exact(model))
        entry.gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                          for name, p in model.named_parameters()}
        entry.optimizer = dict(optimizer.param_groups[0])
        entry.norm = update(run, optimizer, model)
        entry.after = copy.deepcopy(model)
        diary.append(entry)
        return entry.norm
    monkeypatch.setattr(Run, "update", watched)


def watch_orders(monkeypatch, diary):
    """Note each random order, with the seed that it came from."""
    randperm = torch.randperm

    def watched(n, generator=None):
        order = randperm(n, generator=generator)
        diary.append(SimpleNamespace(what="randperm", seed=generator.initial_seed(), result=order))
        return order
    monkeypatch.setattr(torch, "randperm", watched)


@pytest.fixture
def train(place, tmp_path, monkeypatch):
    """A function that runs a script and gives its diary, its metrics and its directory."""
    def run(script, *flags, out="run"):
        diary = Diary()
        with monkeypatch.context() as patch:
            for name in ("generate", "evaluate", "take", "pad_batch"):
                if hasattr(script, name):
                    watch(patch, diary, script, name)
            for name in ("token_log_probs", "sequence_scores", "token_values"):
                if hasattr(script, name):
                    watch_sizes(patch, diary, script, name)
            watch(patch, diary, Run, "log")
            watch_updates(patch, diary)
            watch_orders(patch, diary)
            patch.setattr(Run, "plot", lambda run, panels: diary.append(SimpleNamespace(what="plot", panels=panels)))
            script.main(["--out", str(tmp_path / out), *map(str, flags)])
        with open(tmp_path / out / "metrics.csv", newline="") as f:
            rows = list(csv.DictReader(f))
        return diary, rows, tmp_path / out
    return run


def watch_sizes(monkeypatch, diary, owner, name):
    """Note only how large the batches of owner.name are: they are what --micro-batch-tokens bounds."""
    function = getattr(owner, name)

    def watched(model, tokens, mask, *arguments, **named):
        diary.append(SimpleNamespace(what="pass", rows=len(tokens), tokens=tokens.numel()))
        return function(model, tokens, mask, *arguments, **named)
    monkeypatch.setattr(owner, name, watched)


# ------------------------------------------------------------------------------------ arithmetic


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def variance(numbers):
    """Unbiased."""
    middle = mean(numbers)
    return sum((x - middle) ** 2 for x in numbers) / (len(numbers) - 1)


def flatten(rows):
    return [x for row in rows for x in row]


def number(x):
    return x.item() if isinstance(x, torch.Tensor) else x


def exact(model):
    """The model in float64, with gradients."""
    return copy.deepcopy(model).double().requires_grad_(True)


def frozen(model):
    """The model in float64, without."""
    return exact(model).requires_grad_(False)


def distributions(model, prompt, answer, temperature=1.0):
    """log π(· | what came before) at each token of the answer, from the logits of the whole row. (tokens, V)"""
    logits = model(torch.tensor([[*prompt, *answer]]))[0]
    before = logits[len(prompt) - 1:-1]                    # the logits at t - 1 are those of token t
    return torch.log_softmax(before / temperature, -1)


def of_tokens(distributions, answer):
    """log π of each token of the answer. (tokens,)"""
    return distributions[range(len(answer)), answer]


def log_probs(model, prompt, answer, temperature=1.0):
    return of_tokens(distributions(model, prompt, answer, temperature), answer)


def entropies(distributions):
    return -(distributions.exp() * distributions).sum(-1).detach()


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


# ------------------------------------------------------------------------------------ comparisons


def assert_gradient(update, loss):
    """The gradient that the script had at this update is that of `loss`, which is made of `update.exact`."""
    names, parameters = zip(*update.exact.named_parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    expected = torch.cat([g.flatten() for g in gradients])
    found = torch.cat([update.gradient[name].flatten() for name in names]).double()
    assert (found - expected).norm() <= 1e-3 * expected.norm() + 1e-8
    assert update.norm == pytest.approx(expected.norm().item(), rel=1e-3, abs=1e-8)


class AdamW:
    """What an optimizer must have done at each of its updates: the gradient clipped to norm 1, then Kingma & Ba 2015, with
    the weight decay of Loshchilov & Hutter 2019. It begins where the updates begin: at `start`, if that is given."""

    def __init__(self, betas, weight_decay=0.0, start=None):
        self.betas, self.weight_decay, self.step = betas, weight_decay, 0
        self.first, self.second = {}, {}
        self.weights = start

    def check(self, update, lr):
        if self.weights is not None:
            assert same_weights(update.model, self.weights)              # nothing but updates moves the weights
        self.weights = update.after
        if update.norm == 0:                               # nothing was learned: momentum must not move them either
            assert same_weights(update.model, update.after)
            return
        self.step += 1
        clip = min(1.0, 1.0 / update.norm)
        after = dict(update.after.named_parameters())
        for name, p in update.model.named_parameters():
            g = update.gradient[name].double() * clip
            b1, b2 = self.betas
            self.first[name] = b1 * self.first.get(name, 0) + (1 - b1) * g
            self.second[name] = b2 * self.second.get(name, 0) + (1 - b2) * g * g
            m = self.first[name] / (1 - b1 ** self.step)
            v = self.second[name] / (1 - b2 ** self.step)
            moved = -lr * (m / (v.sqrt() + 1e-8) + self.weight_decay * p.detach().double())
            found = after[name].detach().double() - p.detach().double()
            torch.testing.assert_close(found, moved, rtol=1e-3, atol=1e-3 * lr + 3e-7)


def assert_row(row, expected, tokens):
    """A row of metrics.csv holds what is expected, no more and no less; `tokens` are those of tokens_per_second."""
    assert row.keys() == expected.keys() | TIMINGS
    for name, value in expected.items():
        if value == "":
            assert row[name] == "", name
        else:
            assert float(row[name]) == pytest.approx(number(value), rel=1e-3, abs=2e-6), name
    assert 0 < float(row["seconds"]) < 60
    assert float(row["tokens_per_second"]) * float(row["seconds"]) == pytest.approx(tokens, rel=1e-4)


def assert_end(diary, rows, run, parts, last, load=load_pretrained):
    """What a run leaves behind: model/ with the last weights, a checkpoint of the last step, curves of its columns."""
    model, tokenizer = load(run / "model")
    assert same_weights(model, last)
    assert tokenizer.encode("abc") == [97, 98, 99]
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == len(rows) and checkpoint["parts"].keys() == parts
    columns = [name for names in diary.of("plot")[0].panels.values() for name in names]
    assert columns and set(columns) <= rows[0].keys()
    return checkpoint


def assert_passes(diary, size, rows=1):
    """--micro-batch-tokens bounds every pass, unless it is of one example (`rows` rows) that is longer by itself."""
    passes = diary.of("pass")
    assert all(entry.tokens <= size or entry.rows <= rows for entry in passes)
    assert max(entry.tokens for entry in passes) > size / 2


def titles(run):
    """The steps that samples.txt has evaluations of, and what it says that they found."""
    lines = (run / "samples.txt").read_text().split("\n")
    heads = [line.removeprefix("=== step ").split(": ") for line in lines if line.startswith("=== ")]
    return [int(step) for step, _ in heads], [text for _, text in heads]


def same_weights(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


# ------------------------------------------------------------------------------------ SFT


def write_demonstrations(path):
    """Prompts of two to nine bytes, answers of one to six."""
    rows = [{"prompt": f"{i}:" * (1 + i % 3), "completion": ["abcabc", "cba", "b"][i // 3 % 3]}
            for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {(tuple(row["prompt"].encode()), tuple(row["completion"].encode()) + (STOP,)) for row in rows}


def demonstrations_loss(model, batch):
    """-log π of an answer's token, stop token included: the mean over all tokens. -> the loss, how many tokens"""
    logps = [log_probs(model, prompt, answer) for prompt, answer in batch]
    n = sum(map(len, logps))
    return -sum(logp.sum() for logp in logps) / n, n


def test_sft(place, tmp_path, train):
    demonstrations = write_demonstrations(tmp_path / "sft.jsonl")
    start, _ = load_pretrained(place / "random")
    diary, rows, run = train(
        train_sft, "--model", place / "random", "--data", tmp_path / "sft.jsonl", "--steps", 20,
        "--batch-size", 5, "--lr", 0.02, "--weight-decay", 0.07, "--seed", 3, "--micro-batch-tokens", 30,
        "--eval-every", 8)
    batches = [[(tuple(prompt), tuple(answer)) for prompt, answer in (e["turns"] for e in entry.result)]
               for entry in diary.of("take")]
    held_out = demonstrations - {example for batch in batches for example in batch}
    assert 0 < len(held_out) < 15 and all(set(batch) < demonstrations for batch in batches)
    adam = AdamW((0.9, 0.99), 0.07, start)
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [taken], [update] = entries.of("take"), entries.of("update")
        assert (taken.n, taken.seed, taken.step) == (5, 3, step)
        # warm-up over a tenth of 20 steps, constant, then linear to 0 over the last quarter
        lr = 0.02 * {0: 0.5, 16: 0.8, 17: 0.6, 18: 0.4, 19: 0.2}.get(step, 1.0)
        loss, n = demonstrations_loss(update.exact, batches[step])
        assert_gradient(update, loss)
        adam.check(update, lr)
        expected = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": update.norm, "eval_loss": "",
                    "eval_greedy": "", "eval_sampled": "", "skipped_updates": 0}
        if step + 1 in (8, 16, 20):
            expected["eval_loss"], _ = demonstrations_loss(frozen(update.after), held_out)
        assert_row(row, expected, n)
    assert min(entry.norm for entry in diary.of("update")) < 1 < max(entry.norm for entry in diary.of("update"))
    assert_end(diary, rows, run, {"policy", "optimizer"}, update.after)
    assert_passes(diary, 30)


def evaluation(entries, model, **given):
    """The one evaluation among the entries: of `model` as it is, with the arguments given. -> what was found"""
    [entry] = entries.of("evaluate")
    assert same_weights(entry.model, model)
    for name, value in given.items():
        assert getattr(entry, name) == value, name
    return entry.result[0]


def test_sft_of_the_builtin_task(tmp_path, train, monkeypatch):
    """At first every demonstration thinks, later two of five; the first weights come from the seed."""
    monkeypatch.setattr(train_sft, "SMALL", dict(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=128))
    torch.manual_seed(3)
    start = Transformer(ModelConfig(builtin_tokenizer().vocab_size, **train_sft.SMALL))
    diary, rows, run = train(train_sft, "--steps", 20, "--batch-size", 12, "--seed", 3, "--eval-problems", 5,
                             "--eval-every", 15)
    adam, asked, thinking, problems = AdamW((0.9, 0.99), 0.1, start), set(), [], set()
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [batch], [update] = entries.of("pad_batch"), entries.of("update")
        thinking.append(0)
        for prompt, answer in batch.rows:
            text, answer = bytes(prompt).decode(), builtin_tokenizer().decode(answer)
            a, b, c = map(int, text.removesuffix("=").split("+"))
            blurted, thought = f"{a + b + c}<|endoftext|>", f"<think>{a}+{b}={a + b}, {a + b}+{c}={a + b + c}</think>"
            assert answer in (blurted, thought + blurted)
            thinking[-1] += answer == thought + blurted
            asked.add(text)
        loss, n = demonstrations_loss(update.exact, batch.rows)
        assert_gradient(update, loss)
        lr = 0.002 * {0: 0.5, 16: 0.8, 17: 0.6, 18: 0.4, 19: 0.2}.get(step, 1.0)
        adam.check(update, lr)
        found = {"eval_greedy": "", "eval_sampled": ""}
        if step + 1 in (15, 20):
            found = evaluation(entries, update.after, reward=train_sft.sum_reward, max_new_tokens=32, temperature=1.0)
            problems |= {example["prompt"] for example in entries.of("evaluate")[0].examples}
        assert_row(row, {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": update.norm, "eval_loss": "",
                         **found, "skipped_updates": 0}, n)
    assert thinking[:13] == [12] * 13 and 20 < sum(thinking[13:]) < 47
    assert len(asked) > 235                                # of 240: a step's problems are new
    assert len(problems) == 5 and not problems & asked
    assert titles(run)[0] == [15, 20]
    assert_end(diary, rows, run, {"policy", "optimizer"}, update.after)


# ------------------------------------------------------------------------------------ pairs


def write_pairs(path):
    """Prompts of two to nine bytes, answers of two to seven and a stop token; some labels are the wrong way round."""
    rows = []
    for i in range(40):
        answers = [f"a{i}" + "b" * (i % 4), "c" * (1 + i // 2 % 5) + f"{i}"]
        chosen, rejected = reversed(answers) if i % 3 == 0 else answers
        rows.append({"prompt": f"{i}:" * (1 + i % 3), "chosen": chosen, "rejected": rejected})
    path.write_text("\n".join(map(json.dumps, rows)))
    return {tuple(map(encoded, row.values())) for row in rows}


def encoded(text):
    """Ids of a text, as a tuple: bytes, and here "a", "b" and "c" begin an answer, which ends with its stop token."""
    return tuple(text.encode()) + (() if text.endswith(":") else (STOP,))


def decoded(ids):
    return builtin_tokenizer().decode(list(ids))


def as_ids(pair):
    return tuple(tuple(pair[side]) for side in ("prompt", "chosen", "rejected"))


def batches_of_pairs(diary, pairs, n, seed):
    """The pairs of each step, and those held out, which are never among them."""
    for step, taken in enumerate(diary.of("take")):
        assert (taken.n, taken.seed, taken.step) == (n, seed, step)
    batches = [[as_ids(pair) for pair in taken.result] for taken in diary.of("take")]
    held_out = pairs - {as_ids(pair) for pair in diary.of("take")[0].examples}
    assert 0 < len(held_out) < 15 and all(len(batch) == n and set(batch) <= pairs - held_out for batch in batches)
    assert batches[0] != batches[1]
    return batches, held_out


def test_reward_model(place, tmp_path, train):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    start = ScalarModel(load_pretrained(place / "sft" / "model")[0])
    diary, rows, run = train(
        train_rm, "--model", place / "sft", "--data", tmp_path / "pairs.jsonl", "--steps", 5, "--batch-size", 7,
        "--lr", 0.01, "--seed", 3, "--micro-batch-tokens", 60, "--eval-every", 2)
    batches, held_out = batches_of_pairs(diary, pairs, 7, 3)
    adam = AdamW((0.9, 0.95), 0.0, start)
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [update] = entries.of("update")

        def margins(model, pairs):
            return torch.stack([score_at_the_end(model, prompt, chosen) - score_at_the_end(model, prompt, rejected)
                                for prompt, chosen, rejected in pairs])
        margin = margins(update.exact, batches[step])
        loss = mean(minus_log_sigmoid(margin))
        assert_gradient(update, loss)
        adam.check(update, 0.01 * (5 - step) / 5)
        expected = {"step": step + 1, "loss": loss, "accuracy": mean(margin > 0), "margin": mean(margin),
                    "grad_norm": update.norm, "eval_accuracy": "", "skipped_updates": 0}
        if step + 1 in (2, 4, 5):
            expected["eval_accuracy"] = mean(margins(frozen(update.after), held_out) > 0)
        assert_row(row, expected, sum(len(c) + len(r) for _, c, r in batches[step]))
    assert len({row["eval_accuracy"] for row in rows}) > 2 and titles(run)[0] == [2, 4, 5]
    assert len({row["accuracy"] for row in rows}) > 2
    lines = [line for line in (run / "samples.txt").read_text().split("\n\n")[-2].split("\n")[1:]]
    assert len(lines) == 2 * min(6, len(held_out))         # of the held-out pairs, the first few
    by_text = {(side, decoded(prompt + answer)): (prompt, answer)
               for prompt, *answers in held_out for side, answer in zip(("chosen", "rejected"), answers)}
    for line in lines:
        score, _, rest = line.removeprefix("[").partition(" ")
        prompt, answer = by_text[tuple(rest.split("] "))]
        assert float(score) == pytest.approx(score_at_the_end(update.after, prompt, answer).item(), abs=0.006)
    assert_end(diary, rows, run, {"reward_model", "optimizer"}, update.after, load_scalar_model)
    assert_passes(diary, 60, rows=2)


# ------------------------------------------------------------------------------------ DPO and its relatives


def preference_loss(name, beta, chosen, rejected, ref_chosen, ref_rejected, kto_point):
    """The loss of one pair and its two implicit rewards. Each of the four is an answer's log-probs, token by token."""
    def log_sigmoid(x):
        return -minus_log_sigmoid(x)
    good, bad, ref_good, ref_bad = (x.sum() for x in (chosen, rejected, ref_chosen, ref_rejected))
    mean_good, mean_bad, ref_mean_good, ref_mean_bad = (x.mean() for x in (chosen, rejected, ref_chosen, ref_rejected))
    if name == "dpo":                                      # a tenth of the labels is taken to be wrong
        rewards = beta * (good - ref_good), beta * (bad - ref_bad)
        h = rewards[0] - rewards[1]
        loss = -0.9 * log_sigmoid(h) - 0.1 * log_sigmoid(-h)
    elif name == "ipo":
        rewards = beta * (mean_good - ref_mean_good), beta * (mean_bad - ref_mean_bad)
        loss = ((rewards[0] - rewards[1]) / beta - 1 / (2 * beta)) ** 2
    elif name == "kto":                                    # two answers, good and bad, each with its weight
        rewards = beta * (good - ref_good), beta * (bad - ref_bad)
        loss_good = 1.3 * (1 - torch.sigmoid(rewards[0] - beta * kto_point))
        loss_bad = 0.6 * (1 - torch.sigmoid(beta * kto_point - rewards[1]))
        loss = (loss_good + loss_bad) / 2
    elif name == "simpo":
        rewards = beta * mean_good, beta * mean_bad
        loss = -log_sigmoid(rewards[0] - rewards[1] - 0.4)
    else:                                                  # orpo
        rewards = beta * mean_good, beta * mean_bad
        p, q = mean_good.exp(), mean_bad.exp()
        loss = -beta * log_sigmoid(torch.log(p / (1 - p)) - torch.log(q / (1 - q)))
    return loss, *rewards


PREFERENCES = {"dpo": ["--label-smoothing", 0.1], "ipo": [], "simpo": ["--gamma", 0.4], "orpo": [],
               "kto": ["--desirable-weight", 1.3, "--undesirable-weight", 0.6]}


@pytest.mark.parametrize("name, beta, nll_coef", [
    ("dpo", 0.3, 0.7), ("ipo", 0.3, 0.7), ("kto", 0.3, 0.7), ("simpo", 1.5, 0.7), ("orpo", 0.3, 0.7),
    # what is taken if neither is given
    ("dpo", None, None), ("ipo", None, None), ("kto", None, None), ("simpo", None, None), ("orpo", None, None)])
def test_preferences(place, tmp_path, train, name, beta, nll_coef):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    start = load_pretrained(place / "sft" / "model")[0]
    given = ["--beta", beta, "--nll-coef", nll_coef] if beta else []
    diary, rows, run = train(
        train_dpo, "--model", place / "sft", "--data", tmp_path / "pairs.jsonl", "--steps", 5, "--batch-size", 7,
        "--lr", 0.005, "--seed", 3, "--micro-batch-tokens", 60, "--eval-every", 2, "--loss", name, *given,
        *PREFERENCES[name])
    if not given:
        beta, nll_coef = {"simpo": 2.0}.get(name, 0.1), {"kto": 0.0}.get(name, 1.0)
    batches, held_out = batches_of_pairs(diary, pairs, 7, 3)
    reference, adam, points = frozen(start), AdamW((0.9, 0.95), 0.0, start), []
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [taken], [update] = entries.of("take"), entries.of("update")
        tokens, point = sum(len(c) + len(r) for _, c, r in batches[step]), None
        if name == "kto":                                  # KL(π‖ref), from answers to other prompts, never below 0
            mismatched = [(pair["prompt"], pair["mismatched"]) for pair in taken.result]
            answers = {(prompt, answer) for prompt, *both in pairs for answer in both}
            assert all((tuple(p), tuple(a)) not in answers for p, a in mismatched)
            ratios = [(log_probs(update.exact, p, a) - log_probs(reference, p, a)).sum() for p, a in mismatched]
            point = max(mean(ratios).item(), 0.0)
            points.append(point)
            tokens += sum(len(a) for _, a in mismatched)

        losses, sums, nll, n_chosen = [], [], 0, 0
        for prompt, *answers in batches[step]:
            chosen, rejected = (log_probs(update.exact, prompt, answer) for answer in answers)
            loss, *rewards = preference_loss(
                name, beta, chosen, rejected, *(log_probs(reference, prompt, answer) for answer in answers), point)
            losses.append(loss)
            sums.append((chosen.sum().item(), rejected.sum().item(), *map(number, rewards)))
            nll, n_chosen = nll - chosen.sum(), n_chosen + len(chosen)
        loss = mean(losses) + nll_coef * nll / n_chosen    # the NLL of a token, over all chosen answers
        assert_gradient(update, loss)
        adam.check(update, 0.005 * (5 - step) / 5)

        chosen, rejected, good, bad = (list(column) for column in zip(*sums))
        expected = {"step": step + 1, "loss": loss, "chosen_reward": mean(good), "rejected_reward": mean(bad),
                    "chosen_logp": mean(chosen), "rejected_logp": mean(rejected), "grad_norm": update.norm,
                    "eval_pairs": "", "eval_greedy": "", "eval_sampled": "", "skipped_updates": 0}
        if name != "kto":
            expected |= {"accuracy": mean(g > b for g, b in zip(good, bad)), "margin": mean(good) - mean(bad)}
        if name in ("dpo", "ipo") and step == 0:           # the policy is its reference: only rounding differs
            expected["accuracy"] = float(row["accuracy"])
        if step + 1 in (2, 4, 5):                          # by the implicit reward, whatever the loss
            def moved(prompt, answer):
                return (log_probs(frozen(update.after), prompt, answer) - log_probs(reference, prompt, answer)).sum()
            expected["eval_pairs"] = mean(moved(p, c) > moved(p, r) for p, c, r in held_out)
        assert_row(row, expected, tokens)
    assert len({row["eval_pairs"] for row in rows}) > 1
    assert name != "kto" or min(points) == 0 and max(points) > 0.3
    assert_end(diary, rows, run, {"policy", "optimizer"}, update.after)
    assert_passes(diary, 60, rows=2)


def test_dpo_of_the_builtin_task(place, tmp_path, train, monkeypatch):
    """Pairs are sampled, and what counts is still the verifier: before the first step, when one is due, and at the end."""
    def pairs(numbers):
        return [{"prompt": list(f"{i}:".encode()), "chosen": [97, STOP], "rejected": [98, 98, STOP]} for i in numbers]
    monkeypatch.setattr(train_dpo, "load_pairs", lambda *_: (pairs(range(10)), pairs(range(10, 14))))
    diary, rows, run = train(train_dpo, "--model", place / "sft", "--steps", 3, "--batch-size", 7, "--lr", 0.005,
                             "--eval-every", 2, "--eval-problems", 5, "--max-new-tokens", 8)
    given = {"reward": train_dpo.sum_reward, "max_new_tokens": 8, "temperature": 1.0}
    [first, *later] = diary.of("evaluate")
    assert same_weights(first.model, load_pretrained(place / "sft" / "model")[0]) 
    assert diary.index(first) < diary.index(diary.of("take")[0])
    assert all(vars(first)[name] == value for name, value in given.items())
    assert len(first.examples) == 5 and all(entry.examples == first.examples for entry in later)
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        found = {"eval_greedy": "", "eval_sampled": ""}
        if step > 0:
            found = evaluation(entries, entries.of("update")[0].after, **given)
        assert {name: row[name] for name in found} == {name: f"{x:.6g}" if x != "" else "" for name, x in found.items()}
    assert titles(run)[0] == [0, 2, 3]
    diary, rows, run = train(train_dpo, "--model", place / "sft", "--steps", 1, "--batch-size", 7, "--eval-every", 0,
                             "--eval-problems", 5, "--max-new-tokens", 8, out="at_the_end_only")
    assert titles(run)[0] == [1]


def test_pairs_of_the_builtin_task(monkeypatch):
    """Two answers to each problem, of which both ended and one is right, that one chosen; of problems in order."""
    calls, seeds = [], []

    def answer(model, tokenizer, reward, examples, max_new_tokens, temperature, generator):
        calls.append(SimpleNamespace(**locals()))
        n = range(len(examples))
        return [float(i % 4 in (0, 3)) for i in n], [[i, STOP] for i in n], [i % 6 != 4 for i in n], None
    monkeypatch.setattr(train_rm, "answer", answer)
    for held_out in (False, True):
        pairs = train_rm.sample_pairs("policy", builtin_tokenizer(), 250, 3, 9, held_out)
        expected = []
        for call in calls:
            assert (call.model, call.max_new_tokens, call.temperature) == ("policy", 9, 1.0)
            assert call.reward is train_rm.sum_reward and len(call.examples) == 512
            for i in range(0, 512, 2):
                prompt = call.examples[i]["prompt"]
                assert call.examples[i + 1]["prompt"] == prompt and call.examples[i]["ids"] == list(prompt.encode())
                assert call.examples[i]["ids"] == call.examples[i + 1]["ids"]
                if i % 6 != 4:                             # the answers of every third problem were cut off
                    right, wrong = (i, i + 1) if i % 4 == 0 else (i + 1, i)
                    expected.append({"prompt": list(prompt.encode()), "chosen": [right, STOP], "rejected": [wrong, STOP]})
        assert pairs == expected[:250] and len(calls) == 2
        prompts = {example["prompt"] for call in calls for example in call.examples}
        assert len(prompts) > 500 and all((zlib.crc32(p.encode()) % 8 == 0) == held_out for p in prompts)
        seeds.append([call.generator.initial_seed() for call in calls])
        calls.clear()
    assert len({seed for both in seeds for seed in both}) == 4


# ------------------------------------------------------------------------------------ PPO and GRPO: the rollout


REWARD = """
def score(prompts, completions, weight, **columns):
    return [w * (text.count("a") - text.count("b") / 2) for w, text in zip(weight, completions, strict=True)]
"""


def write_prompts(path):
    """Prompts of two to nine bytes, each with a weight of its own, and the reward function that reads it.

    For one prompt in four all answers are worth the same."""
    rows = [{"prompt": f"{i}:" * (1 + i % 3), "weight": i % 4 / 4} for i in range(45)]
    (path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "reward.py").write_text(REWARD)
    return ["--data", path / "prompts.jsonl"], {tuple(row["prompt"].encode()): row["weight"] for row in rows}


def worth(weight, answer):
    """What the reward function gives, of ids."""
    return weight * (answer.count(ord("a")) - answer.count(ord("b")) / 2)


def flags(settings):
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]


def sampled(entry, model, max_new_tokens, temperature):
    """What `generate` sampled from the model as it is: (prompt, answer, whether it ended by itself) of each row."""
    assert same_weights(entry.model, model)
    assert (entry.max_new_tokens, entry.temperature) == (max_new_tokens, temperature)
    assert set(entry.stop_ids) == {STOP}
    rows = []
    for tokens, prompt, finished in zip(entry.result.tokens.tolist(), entry.prompts, entry.result.finished.tolist()):
        answer = tokens[len(prompt):len(prompt) + max_new_tokens]
        answer = answer[:answer.index(STOP) + 1] if STOP in answer else answer
        assert tokens[:len(prompt)] == prompt
        assert finished == (answer[-1] == STOP) and (finished or len(answer) == max_new_tokens)
        rows.append((tuple(prompt), tuple(answer), finished))
    return rows


def chunks(order, n):
    """n parts of like size, of which the last may be smaller."""
    size = math.ceil(len(order) / n)
    return [order[i:i + size] for i in range(0, len(order), size)]


def clipped_loss(ratio, advantage, low, high):
    """-min(ρ A, clip(ρ) A) of a token, and whether the clip took its gradient."""
    clipped = min(max(ratio.item(), 1 - low), 1 + high) * advantage
    if clipped < (ratio * advantage).item():
        return torch.tensor(-clipped), True
    return -ratio * advantage, False


def next_kl_coef(kl_coef, kl, target, horizon, answers):
    """An adaptive β: too much KL raises it, by a fifth of answers / horizon at most."""
    return max(0.0, kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * answers / horizon))


def move(reference, policy, step, ref_ema=0.0, ref_sync=0):
    """The reference after a step; steps count from 0."""
    for p_ref, p in zip(reference.parameters(), policy.parameters(), strict=True):
        if ref_ema:
            p_ref.data = ref_ema * p_ref.data + (1 - ref_ema) * p.data
        if ref_sync and (step + 1) % ref_sync == 0:
            p_ref.data = p.data.double()


def assert_noise_is_new(diary):
    """No two samplings and no two orders come from the same seed. (A greedy answer has no noise.)"""
    seeds = [entry.generator.initial_seed() for entry in diary.of("generate") if entry.temperature > 0]
    seeds += [entry.seed for entry in diary.of("randperm")]
    assert len(set(seeds)) == len(seeds) > 1


def assert_first_evaluation(diary, start, **given):
    """Before anything else happens, what the first model can do is noted, with the arguments of all evaluations."""
    first = next(entry for entry in diary if entry.what in ("generate", "evaluate"))
    assert first.what == "evaluate" and same_weights(first.model, start)
    for entry in diary.of("evaluate"):
        assert entry.examples == first.examples and entry.reward is first.reward
        assert all(vars(entry)[name] == value for name, value in given.items())


# ------------------------------------------------------------------------------------ PPO


PPO = dict(steps=4, prompts_per_step=10, max_new_tokens=5, temperature=0.7, gamma=0.97, lam=0.9, clip=0.15,
           value_clip=0.1, lr=0.004, critic_lr=0.004, critic_warmup=1, epochs=2, minibatches=3, kl_coef=0.2, seed=3,
           micro_batch_tokens=40, eval_every=2)


def gae_sums(rewards, values, gamma, lam):
    """GAE's advantages of one answer, each as its sum: A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} - V_t; V ends in 0."""
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def scalar_model(place, path, seed):
    """A model whose scores, of many answers, are about 1 apart."""
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    model = ScalarModel(policy)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    save_pretrained(model, tokenizer, path)
    return model


@pytest.mark.parametrize("case, changes", [
    ("reward model", dict(eval_every=None, critic_lr=0.001, value_clip=0.1, ref_ema=0.9, kl_target=0.08, kl_horizon=30.0, unfinished_score=-0.7)),
    ("function", dict(ref_sync=2, prompts_per_step=36, minibatches=2, value_clip=0)),
    ("critic", dict(kl_coef=0.4, critic_lr=0.002)),
    # on the built-in task, where the verifier says what the reward model's scores are worth
    ("from the policy", dict(critic_warmup=0, critic_lr=0.001, value_clip=0.1)),
    ("a2c", dict(epochs=1, minibatches=1, clip=None, value_clip=None, lr=0.02, critic_warmup=0))],
    ids=lambda x: x.replace(" ", "_") if isinstance(x, str) else "")
def test_ppo(place, tmp_path, train, case, changes):
    s = SimpleNamespace(**{"kl_target": 0, "ref_ema": 0.0, "ref_sync": 0, **PPO, **changes})
    data, weight = write_prompts(tmp_path)
    start = load_pretrained(place / "sft" / "model")[0]
    reward_model, other = (scalar_model(place, tmp_path / f"scores{i}", i) for i in (1, 2))
    scored = {"reward model": ["--reward-model", tmp_path / "scores1"],
              "from the policy": ["--reward-model", tmp_path / "scores1", "--critic", "policy", "--eval-problems", 6],
              "critic": ["--reward", f"{tmp_path / 'reward.py'}:score", "--critic", tmp_path / "scores2"]
              }.get(case, ["--reward", f"{tmp_path / 'reward.py'}:score"])
    data = [] if case == "from the policy" else data
    evaluates = case != "reward model"                     # on data without a function nothing says what is right
    given = {name: value for name, value in {**PPO, **changes}.items() if value is not None}
    diary, rows, run = train(train_ppo, "--model", place / "sft", *data, *scored, *flags(given))

    critic = {"reward model": reward_model, "critic": other}.get(case, ScalarModel(start))
    unfinished_score = vars(s).get("unfinished_score", -5.0)
    policy, reference, kl_coef = start, frozen(start), s.kl_coef
    actor, critic_adam = AdamW((0.9, 0.95), 0.0, policy), AdamW((0.9, 0.95), 0.0, critic)
    prompts, kl_coefs, clips, ends, moved = [], [], set(), set(), []
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        [generated] = entries.of("generate")
        answers = sampled(generated, policy, s.max_new_tokens, s.temperature)
        assert len(answers) == s.prompts_per_step
        prompts += [prompt for prompt, _, _ in answers]
        ends |= {finished for _, _, finished in answers}

        # the score of each answer
        scores = []
        for prompt, answer, finished in answers:
            if "--reward" in scored:
                scores.append(worth(weight[prompt], answer))
            elif finished:
                scores.append(score_at_the_end(frozen(reward_model), prompt, answer).item())
            else:
                scores.append(unfinished_score)

        # log-probs and values at the weights that sampled; rewards, advantages, targets
        behaviour, old_critic = frozen(policy), frozen(critic)
        old_logp, ref_logp, old_values, raw, kl = [], [], [], [], []
        for (prompt, answer, _), score in zip(answers, scores):
            old, ref = (distributions(m, prompt, answer, s.temperature) for m in (behaviour, reference))
            old_logp.append(of_tokens(old, answer).tolist())
            ref_logp.append(of_tokens(ref, answer).tolist())
            kl.append(exact_kl(old, ref).tolist())
            old_values.append(values_before(old_critic, prompt, answer).tolist())
            rewards = [-kl_coef * (p - q) for p, q in zip(old_logp[-1], ref_logp[-1])]
            rewards[-1] += score
            raw.append(gae_sums(rewards, old_values[-1], s.gamma, s.lam))
        targets = [[a + v for a, v in zip(*row)] for row in zip(raw, old_values)]
        middle, spread = mean(flatten(raw)), math.sqrt(variance(flatten(raw)) + 1e-8)
        whitened = [[(a - middle) / spread for a in row] for row in raw]

        # the updates: the critic's, and from the end of its warm-up the actor's
        learns = step >= s.critic_warmup
        updates, orders = iter(entries.of("update")), entries.of("randperm")
        assert len(orders) == s.epochs
        noted = {name: [] for name in ("clipped", "approx_kl", "entropy", "value_error", "value_clipped", "norm")}
        for order in orders:
            assert sorted(order.result.tolist()) == list(range(len(answers)))
            for picked in chunks(order.result.tolist(), s.minibatches):
                update, losses = next(updates), []
                for i in picked:
                    prompt, answer, _ = answers[i]
                    for v, v_old, target in zip(values_before(update.exact, prompt, answer), old_values[i], targets[i],
                                                strict=True):
                        error = clipped_error = (v - target) ** 2
                        if s.value_clip:
                            near = v_old + torch.clamp(v - v_old, -s.value_clip, s.value_clip)
                            clipped_error = (near - target) ** 2
                        losses.append(max(error, clipped_error) / 2)
                        noted["value_error"].append(error.item())
                        noted["value_clipped"].append(clipped_error.item() > error.item())
                assert_gradient(update, mean(losses))
                critic_adam.check(update, s.critic_lr)
                critic = update.after
                if not learns:
                    continue

                update, losses = next(updates), []
                for i in picked:
                    prompt, answer, _ = answers[i]
                    new_distributions = distributions(update.exact, prompt, answer, s.temperature)
                    logp = of_tokens(new_distributions, answer)
                    for new, old, advantage in zip(logp, old_logp[i], whitened[i], strict=True):
                        clip = math.inf if s.clip is None else s.clip
                        loss, clipped = clipped_loss((new - old).exp(), advantage, clip, clip)
                        losses.append(loss)
                        noted["clipped"].append(clipped)
                        clips.add((clipped, advantage > 0))
                        noted["approx_kl"].append(math.exp((new - old).item()) - 1 - (new - old).item())
                    noted["entropy"] += entropies(new_distributions).tolist()
                assert_gradient(update, mean(losses))
                actor.check(update, s.lr)
                policy = update.after
                noted["norm"].append(update.norm)
        assert next(updates, None) is None

        # the reference and β, for the next step
        moved.append(not same_weights(reference, frozen(start)))
        ratios = [sum(p) - sum(q) for p, q in zip(old_logp, ref_logp)]
        kl_coefs.append(kl_coef)
        if s.kl_target:
            kl_coef = next_kl_coef(kl_coef, mean(ratios), s.kl_target, s.kl_horizon, len(answers))
        move(reference, policy, step, s.ref_ema, s.ref_sync)

        k3 = [math.exp(q - p) - 1 - (q - p) for p, q in zip(flatten(old_logp), flatten(ref_logp))]
        errors, flat = [t - v for t, v in zip(flatten(targets), flatten(old_values))], flatten(targets)
        found = {"eval_greedy": "", "eval_sampled": ""}
        if evaluates and step % 2:
            found = evaluation(entries, policy, max_new_tokens=5, temperature=0.7)
            verified = [entry.reward is train_ppo.sum_reward for entry in diary.of("evaluate")]
            assert all(verified) if case == "from the policy" else not any(verified)
        assert_row(row, {
            "step": step + 1, "reward": mean(scores), "kl": mean(k3), "kl_exact": mean(flatten(kl[:32])),
            "answer_kl": mean(ratios), "kl_coef": kl_coefs[-1],
            "entropy": mean(noted["entropy"]) if learns else "",
            "response_length": mean(len(answer) for _, answer, _ in answers),
            "finished": mean(finished for _, _, finished in answers), "samples": len(answers),
            "clip_fraction": mean(noted["clipped"]) if learns else 0,
            "approx_kl": mean(noted["approx_kl"]) if learns else 0,
            "value_error": mean(noted["value_error"]), "value_clip_fraction": mean(noted["value_clipped"]),
            "explained_variance": 1 - variance(errors) / variance(flat),
            "updates": sum(norm > 0 for norm in noted["norm"]),
            "grad_norm": mean(noted["norm"]) if learns else 0, **found, "skipped_updates": 0},
            sum(len(answer) for _, answer, _ in answers))

    if evaluates:
        assert_first_evaluation(diary, start, max_new_tokens=5, temperature=0.7)
    assert titles(run)[0] == [0, 2, 4] if evaluates else not (run / "samples.txt").exists()
    # the settings were such that all this shows
    assert ends == {True, False} and len(set(prompts)) == min(len(prompts), 41)
    assert float(rows[-1]["kl"]) > 0.01 and (s.ref_sync == 0 or moved == [False, False, True, True])
    assert case == "a2c" or clips == {(a, b) for a in (True, False) for b in (True, False)}
    assert mean(update.norm > 0.01 for update in diary.of("update")) > 0.8                # else little is compared
    assert not s.value_clip or any(float(row["value_clip_fraction"]) > 0.02 for row in rows)
    if s.kl_target:                                        # β fell, and then it rose
        assert kl_coefs[1] < kl_coefs[0] and kl_coefs[-1] > min(kl_coefs)
    assert_noise_is_new(diary)
    moves = {"reference"} if s.ref_ema or s.ref_sync else set()
    checkpoint = assert_end(diary, rows, run, {"policy", "critic", "optimizer", "critic_optimizer"} | moves, policy)
    assert checkpoint["values"] == {"kl_coef": pytest.approx(kl_coef)}
    assert_passes(diary, s.micro_batch_tokens)


# ------------------------------------------------------------------------------------ GRPO and its relatives


def group_advantages(name, earned, greedy):
    """Advantages of the answers to one prompt; earned: what each got, less its KL if that is in the reward."""
    n = len(earned)
    if name == "remax":
        return [x - greedy for x in earned]
    if len(set(earned)) == 1:
        return [0.0] * n
    if name == "rloo":
        return [x - (sum(earned) - x) / (n - 1) for x in earned]
    spread = math.sqrt(variance(earned)) + 1e-4 if name == "grpo" else 1.0
    return [(x - mean(earned)) / spread for x in earned]


def token_losses(name, logp, old, advantages, low, high):
    """The loss of each token of an answer, whether each was clipped, and, for GSPO, one number for all of it."""
    ratios = (logp - torch.tensor(old)).exp()
    if name == "gspo":
        ratio = (logp - torch.tensor(old)).mean().exp()
        loss, clipped = clipped_loss(ratio, advantages[0], low, high)
        return [loss] * len(logp), [clipped] * len(logp)
    if name == "reinforce":
        return [-a * p for a, p in zip(advantages, logp)], [False] * len(logp)
    if name == "cispo":
        weights = [min(max(ratio, 1 - low), 1 + high) for ratio in ratios.tolist()]
        return ([-w * a * p for w, a, p in zip(weights, advantages, logp)],
                [w != ratio for w, ratio in zip(weights, ratios.tolist())])
    return zip(*(clipped_loss(ratio, a, low, high) for ratio, a in zip(ratios, advantages)))


def average(rows, how, max_new_tokens):
    """One number from the losses of a mini-batch's answers, token by token."""
    if how == "token-mean":
        return mean(flatten(rows))
    if how == "seq-mean":
        return mean(map(mean, rows))
    return sum(flatten(rows)) / (len(rows) * max_new_tokens)


ESTIMATORS = {"k1": lambda x: x, "k2": lambda x: x ** 2 / 2, "k3": lambda x: torch.exp(-x) - 1 + x}

GRPO = dict(steps=3, prompts_per_step=6, group_size=3, max_new_tokens=5, temperature=0.7, lr=0.004, seed=3,
            micro_batch_tokens=40, eval_every=2)
TWICE = dict(epochs=2, minibatches=4)
CLIPS = dict(clip_low=0.1, clip_high=0.2)


@pytest.mark.parametrize("given, meant", [
    # what a name stands for, if nothing else is said
    (dict(advantage="grpo"), {}),
    (dict(advantage="dr_grpo"), dict(aggregate="seq-sum", kl_coef=0)),
    (dict(advantage="rloo"), dict(loss="reinforce", aggregate="seq-sum", kl_in="reward", minibatches=1)),
    (dict(advantage="remax"), dict(loss="reinforce", aggregate="seq-sum", kl_in="reward", minibatches=1)),
    (dict(advantage="reinforce_pp"), dict(aggregate="token-mean", kl_in="reward")),
    (dict(loss="dapo"), dict(aggregate="token-mean", clip_high=0.28, kl_coef=0)),
    (dict(loss="gspo"), dict(clip_low=3e-4, clip_high=4e-4)),
    (dict(loss="cispo"), dict(aggregate="token-mean", clip_low=1.0, clip_high=0.28, kl_coef=0)),
    # every setting changed
    (dict(kl_coef=0.3, kl_target=0.1, kl_horizon=50.0, ref_ema=0.9, **TWICE, **CLIPS), {}),
    (dict(kl_coef=0.3, kl_estimator="k2", ref_sync=2, aggregate="token-mean", **TWICE, **CLIPS), {}),
    (dict(advantage="dr_grpo", kl_coef=0.1, kl_estimator="k1", **TWICE, **CLIPS), dict(aggregate="seq-sum")),
    (dict(advantage="dr_grpo", kl_coef=0.3, kl_in="reward", aggregate="seq-mean", **TWICE, **CLIPS), {}),
    (dict(advantage="rloo", loss="grpo", kl_coef=0.3, kl_target=0.1, kl_horizon=50.0, **TWICE, **CLIPS),
     dict(kl_in="reward")),
    (dict(advantage="rloo", kl_coef=0.3, kl_in="loss", aggregate="token-mean"), dict(loss="reinforce", minibatches=1)),
    (dict(advantage="remax", loss="cispo", kl_coef=0.3, **TWICE, **CLIPS), dict(aggregate="token-mean", kl_in="reward")),
    (dict(advantage="reinforce_pp", kl_coef=0.3, kl_in="loss", aggregate="seq-mean", **TWICE, **CLIPS), {}),
    (dict(loss="gspo", kl_coef=0.3, clip_low=0.02, clip_high=0.04, **TWICE), {}),
    (dict(loss="dapo", kl_coef=0.3, dynamic_sampling=True, **TWICE, **CLIPS), dict(aggregate="token-mean")),
    (dict(advantage="remax", loss="grpo", kl_in="loss", dynamic_sampling=True, **TWICE, **CLIPS), {})],
    ids=lambda x: "-".join(map(str, x.values())) if x and "lr" not in x else "")
def test_grpo(place, tmp_path, train, given, meant):
    defaults = dict(advantage="grpo", loss="grpo", aggregate="seq-mean", clip_low=0.2, clip_high=0.2, epochs=1,
                    minibatches=2, kl_coef=0.01, kl_in="loss", kl_estimator="k3", kl_target=0, ref_ema=0.0, ref_sync=0,
                    dynamic_sampling=False)
    s, G = SimpleNamespace(**{**defaults, **GRPO, **given, **meant}), 3
    data, weight = write_prompts(tmp_path)
    start = load_pretrained(place / "sft" / "model")[0]
    words = [word for word in flags({**GRPO, **given}) if word is not True]
    diary, rows, run = train(train_grpo, "--model", place / "sft", *data, "--reward", f"{tmp_path / 'reward.py'}:score", *words)

    policy, reference, kl_coef = start, frozen(start), s.kl_coef
    adam, asked, kl_coefs, clips, ends, kept = AdamW((0.9, 0.95), 0.0, policy), [], [], set(), set(), []
    for step, (entries, row) in enumerate(zip(diary.steps(), rows, strict=True)):
        # the rounds of sampling: several with dynamic sampling, one without
        answers, greedy = [], []
        rounds = [entry for entry in entries.of("generate") if entry.temperature != 0]
        for generated in rounds:
            new = sampled(generated, policy, s.max_new_tokens, s.temperature)
            assert len(new) == s.prompts_per_step * G
            answers += new
        for generated in entries.of("generate"):
            if generated.temperature == 0:
                greedy += sampled(generated, policy, s.max_new_tokens, 0)
        groups = chunks(range(len(answers)), len(answers) // G)
        prompts = [answers[group[0]][0] for group in groups]
        assert all(answers[i][0] == prompt for group, prompt in zip(groups, prompts) for i in group)
        assert [prompt for prompt, _, _ in greedy] == (prompts if s.advantage == "remax" else [])
        asked.append(prompts)
        ends |= {finished for _, _, finished in answers}

        # log-probs at the weights that sampled, and what each answer earned
        behaviour, old_logp, ref_logp, kl = frozen(policy), [], [], []
        for prompt, answer, _ in answers:
            old, ref = (distributions(m, prompt, answer, s.temperature) for m in (behaviour, reference))
            old_logp.append(of_tokens(old, answer).tolist())
            ref_logp.append(of_tokens(ref, answer).tolist())
            kl.append(exact_kl(old, ref).tolist())
        scores = [worth(weight[prompt], answer) for prompt, answer, _ in answers]
        in_reward = kl_coef if s.kl_in == "reward" else 0.0
        penalties = [[-in_reward * (p - q) for p, q in zip(*row)] for row in zip(old_logp, ref_logp)]

        # an advantage for each token
        if s.advantage == "reinforce_pp":                  # what is still to come, whitened over the batch
            to_come = [[sum(row[t:]) + score for t in range(len(row))] for row, score in zip(penalties, scores)]
            middle, spread = mean(flatten(to_come)), math.sqrt(variance(flatten(to_come)) + 1e-8)
            advantages = [[(x - middle) / spread for x in row] for row in to_come]
        else:
            advantages = []
            for k, group in enumerate(groups):
                baseline = worth(weight[prompts[k]], greedy[k][1]) if greedy else None
                earned = [scores[i] + sum(penalties[i]) for i in group]
                advantages += [[a] * len(answers[i][1])
                               for i, a in zip(group, group_advantages(s.advantage, earned, baseline))]
        signal = [any(a != 0 for i in group for a in advantages[i]) for group in groups]
        used = list(range(len(answers)))
        if s.loss == "dapo" or s.dynamic_sampling:         # those that have a signal, the first of them
            used = [i for group, shows in zip(groups, signal) if shows for i in group][:s.prompts_per_step * G]
        for n in range(1, len(rounds)):                    # there was no round too many, and three at most
            assert sum(signal[:n * s.prompts_per_step]) < s.prompts_per_step
        if s.dynamic_sampling:
            assert len(rounds) == 3 or sum(signal) >= s.prompts_per_step
        else:
            assert len(rounds) == 1
        kept.append(used)

        # the updates
        updates, orders = iter(entries.of("update")), entries.of("randperm")
        assert len(orders) == s.epochs
        noted = {name: [] for name in ("clipped", "approx_kl", "entropy", "norm")}
        for order in orders:
            assert sorted(order.result.tolist()) == list(range(len(used)))
            for picked in chunks([used[i] for i in order.result], s.minibatches):
                update, losses, penalty = next(updates), [], []
                for i in picked:
                    prompt, answer, _ = answers[i]
                    new = distributions(update.exact, prompt, answer, s.temperature)
                    logp = of_tokens(new, answer)
                    loss, clipped = token_losses(s.loss, logp, old_logp[i], advantages[i], s.clip_low, s.clip_high)
                    losses.append(loss)
                    x = logp - torch.tensor(ref_logp[i])
                    penalty.append(list(ESTIMATORS[s.kl_estimator](x)))
                    ratio = (logp - torch.tensor(old_logp[i])).tolist()
                    noted["clipped"] += clipped
                    noted["approx_kl"] += [0.0 if s.loss == "reinforce" else math.exp(x) - 1 - x for x in ratio]
                    noted["entropy"] += entropies(new).tolist()
                    clips |= {(c, a > 0) for c, a in zip(clipped, advantages[i]) if a != 0}
                loss = average(losses, s.aggregate, s.max_new_tokens)
                if s.kl_in == "loss":
                    loss = loss + kl_coef * average(penalty, s.aggregate, s.max_new_tokens)
                assert_gradient(update, loss)
                adam.check(update, s.lr)
                policy = update.after
                noted["norm"].append(update.norm)
        assert next(updates, None) is None

        # the reference and β, for the next step
        differences = [sum(p) - sum(q) for p, q in zip(old_logp, ref_logp)]
        kl_coefs.append(kl_coef)
        if s.kl_target:
            kl_coef = next_kl_coef(kl_coef, mean(differences), s.kl_target, s.kl_horizon, len(answers))
        move(reference, policy, step, s.ref_ema, s.ref_sync)

        k3 = [math.exp(q - p) - 1 - (q - p) for p, q in zip(flatten(old_logp), flatten(ref_logp))]
        found = {"eval_greedy": "", "eval_sampled": ""}
        if step in (1, 2):
            found = evaluation(entries, policy)
        lengths = [len(answer) for _, answer, _ in answers]
        assert_row(row, {
            "step": step + 1, "reward": mean(scores), "kl": mean(k3), "kl_exact": mean(flatten(kl[:32])),
            "answer_kl": mean(differences), "kl_coef": kl_coefs[-1], "entropy": mean(noted["entropy"]),
            "response_length": mean(lengths), "finished": mean(finished for _, _, finished in answers),
            "samples": len(answers) + len(greedy), "no_signal": 1 - mean(signal),
            "clip_fraction": mean(noted["clipped"]), "approx_kl": mean(noted["approx_kl"]),
            "updates": sum(norm > 0 for norm in noted["norm"]), "grad_norm": mean(noted["norm"]), **found,
            "skipped_updates": 0}, sum(lengths))

    # the settings were such that all this shows
    assert ends == {True, False} and max(float(row["answer_kl"]) for row in rows) > 0.05
    assert len({prompt for prompts in asked[:2] for prompt in prompts}) == sum(map(len, asked[:2]))
    if "clip_low" in given:
        assert clips == {(a, b) for a in (True, False) for b in (True, False)}
    if s.loss == "dapo" or s.dynamic_sampling:
        assert any(used != list(range(len(used))) for used in kept)
    if s.kl_target:                                        # β fell, and then it rose
        assert kl_coefs[1] < kl_coefs[0] and kl_coef > kl_coefs[1]
    assert_noise_is_new(diary)
    assert_first_evaluation(diary, start, max_new_tokens=5, temperature=0.7)
    assert titles(run)[0] == [0, 2, 3]
    moves = {"reference"} if s.ref_ema or s.ref_sync else set()
    checkpoint = assert_end(diary, rows, run, {"policy", "optimizer"} | moves, policy)
    assert checkpoint["values"] == {"kl_coef": pytest.approx(kl_coef)}
    assert_passes(diary, s.micro_batch_tokens)
