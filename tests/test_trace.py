"""trace.py: the numbers of its page are those of the formulas, computed here again without the
project's functions; and a browser shows these numbers and these formulas."""
import copy
import html
import json
import math
import re
import runpy
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

import support.rl
import trace as tracing
import train_sft
from browser import browse, needs_browser
from lab import gradient
from model import ModelConfig, Transformer
from support import trace_group, trace_page
from support.cli import UserError
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "trace.html"
QUANTITIES = {q.key: q for step in trace_page.STEPS for q in step[-1]}
ANSWERS = ["3", "4", "<think>2</think>3", "<think>3</think>4"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A page of a tiny model that knows one prompt and four answers to it, and the models."""
    path = tmp_path_factory.mktemp("trace")
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    save_pretrained(Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 64, 64)), tokenizer,
                    path / "random")
    rows = [{"prompt": "1+1+1=", "completion": ANSWERS[i % 4]} for i in range(40)]
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    models = {}

    def problems(task, n, rng, held_out=False):
        return [{"prompt": "1+1+1="} for _ in range(n)]

    def warm_up(policy, *given):
        models["policy"], models["critic"] = policy, gradient_warm_up(policy, *given)
        return models["critic"]

    def load_two(*given):
        models["reference"], *_ = found = trace_group.load_two(*given)
        return found

    gradient_warm_up = gradient.warm_up
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        train_sft.main("--model random --data data.jsonl --out sft --steps 150 --batch-size 16 "
                       "--lr 5e-3 --eval-every 0 --eval-problems 4 --device cpu".split())
        for module in (trace_group, gradient, support.rl):
            patch.setattr(module, "make_problems", problems)
        patch.setattr(gradient, "WARMUP_STEPS", 2)
        patch.setattr(gradient, "warm_up", warm_up)
        patch.setattr(tracing, "load_two", load_two)
        patch.setattr(tracing, "CONTINUATIONS", 8)
        tracing.main(["--model", "sft", "--out", "pages/page.html"])
    file = path / "pages" / "page.html"
    return file, trace_page.read_data(file), models


def actions(answer):
    return range(answer["start"], len(answer["tokens"]))


def log_probs(model, ids, start):
    """Of the tokens from start on, in float64: row t - 1 of the logits scores token t."""
    logits = copy.deepcopy(model).double()(torch.tensor([ids]))[0]
    logp = logits - logits.exp().sum(-1, keepdim=True).log()
    return torch.stack([logp[t - 1, ids[t]] for t in range(start, len(ids))])


def test_the_group_is_a_telling_one(traced):
    _, data, _ = traced
    kinds = {(a["text"].startswith("<think>"), a["reward"]) for a in data["answers"]}
    assert len(kinds) == 4


def test_log_probs_values_and_kl(traced):
    _, data, models = traced
    moved = 0
    for answer in data["answers"]:
        column, start = answer["columns"], answer["start"]
        old = log_probs(models["policy"], column["id"], start).tolist()
        ref = log_probs(models["reference"], column["id"], start).tolist()
        critic = copy.deepcopy(models["critic"]).double()
        values = critic(torch.tensor([column["id"]]))[0].tolist()
        for t, x, y in zip(actions(answer), old, ref):
            for key, expected in {"old_logp": x, "sampled_logp": x, "ref_logp": y, "k1": x - y,
                                  "k3": math.exp(y - x) - 1 + x - y, "p": math.exp(x),
                                  "V": values[t - 1], "mask": 1}.items():
                assert column[key][t] == pytest.approx(expected, abs=2e-5), key
            moved = max(moved, abs(x - y))
        assert column["mask"][:start] == column["V"][:start] == [0] * start
    assert moved > 0.01


def test_rewards_and_advantages(traced):
    """GAE as the sum that it is, not as a loop from the end."""
    _, data, _ = traced
    rewards = [a["reward"] for a in data["answers"]]
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    beta, lam = data["settings"]["beta"], data["settings"]["lam"]
    assert (beta, lam, data["settings"]["gamma"]) == (0.05, 0.95, 1.0)
    all_A = [a["columns"]["A"][t] for a in data["answers"] for t in actions(a)]
    for answer in data["answers"]:
        column, r = answer["columns"], answer["reward"]
        assert r == float(answer["text"].removesuffix("<|endoftext|>").split("</think>")[-1] == "3")
        others = (sum(rewards) - r) / 3
        assert answer["grpo"] == pytest.approx((r - mean) / (std + 1e-4), rel=1e-5)
        assert answer["dr_grpo"] == pytest.approx(r - mean)
        assert answer["rloo"] == pytest.approx(r - others)
        places = list(actions(answer))
        assert answer["length"] == len(places)
        last = places[-1]
        V = {**dict(enumerate(column["V"])), last + 1: 0}
        reward = {t: -beta * column["k1"][t] + r * (t == last) for t in places}
        delta = {t: reward[t] + V[t + 1] - V[t] for t in places}
        for t in places:
            after = range(t, last + 1)
            A = sum(lam ** (s - t) * delta[s] for s in after)
            white = (A - statistics.mean(all_A)) / statistics.stdev(all_A)
            truth = [*column["truth"], r]
            for key, expected in {
                    "reward": reward[t], "td": delta[t], "A": A, "return": A + V[t],
                    "mc": sum(reward[s] for s in after) - V[t], "white": white,
                    "flat": answer["grpo"], "true_A": truth[t + 1] - truth[t],
                    "token_mean": 1 / len(all_A), "seq_mean": 1 / (4 * len(places)),
                    "seq_sum": 1 / (4 * 32)}.items():
                assert column[key][t] == pytest.approx(expected, abs=1e-5), key


def adam_step(policy, loss_of, lr):
    """The first step of Adam goes by lr in the direction of the gradient's sign."""
    learner = copy.deepcopy(policy).requires_grad_(True)
    loss_of(learner).backward()
    with torch.no_grad():
        for p in learner.parameters():
            p -= lr * p.grad / (p.grad.abs() + 1e-8)
    return learner


@pytest.mark.parametrize("method, advantage", [("grpo", "flat"), ("ppo", "white")])
def test_ratios_and_clip_after_an_update(traced, method, advantage):
    _, data, models = traced
    n_tokens = sum(a["length"] for a in data["answers"])

    def loss_of(model):
        loss = 0
        for answer in data["answers"]:
            column, places = answer["columns"], slice(answer["start"], None)
            ids = torch.tensor([column["id"]])
            logp = torch.log_softmax(model(ids), -1)[0, :-1].gather(1, ids[0, 1:, None])
            logp = logp[answer["start"] - 1:, 0]
            A, ref = (torch.tensor(column[key][places]) for key in (advantage, "ref_logp"))
            each = -A * (logp - logp.detach()).exp()
            if method == "grpo":
                k3 = (ref - logp).exp() - 1 + logp - ref
                loss = loss + (each + 0.01 * k3).mean() / 4
            else:
                loss = loss + each.sum() / n_tokens
        return loss

    learner = adam_step(models["policy"], loss_of, 2e-4)
    outside = 0
    for answer in data["answers"]:
        column = answer["columns"]
        new = log_probs(learner, column["id"], answer["start"]).tolist()
        for t, x in zip(actions(answer), new):
            assert column[f"{method}_logp"][t] == pytest.approx(x, abs=1e-5)
            ratio = math.exp(column[f"{method}_logp"][t] - column["old_logp"][t])
            assert column[f"{method}_ratio"][t] == pytest.approx(ratio, rel=1e-5)
            A = column[advantage][t]
            expected = (A > 0 and ratio > 1.2) - (A < 0 and ratio < 0.8)
            assert column[f"{method}_clip"][t] == expected
            outside += not 0.99 < ratio < 1.01
    assert outside


def test_where_the_clip_stops_a_token():
    """Of all signs and sides; the tiny model's ratios stay inside."""
    A = torch.tensor([[0.0, 1, 1, 1, -1, -1, -1, 0]])
    ratio = torch.tensor([[1.0, 1.3, 1.1, 0.7, 1.3, 0.9, 0.7, 1.3]])
    mask = torch.ones(1, 8).bool()

    def loss_of(logp):
        return tracing.ppo_policy_loss(logp, torch.zeros(1, 8), A, mask)[0]
    found = tracing.clipped(loss_of, ratio.log(), torch.zeros(1, 8), A)
    assert found.tolist() == [[0, 1, 0, 0, 0, 0, -1, 0]]


# ----------------------------------------------------------------------- what any page must hold

def evaluate(text: str) -> float:
    """What a formula with its numbers put in amounts to."""
    for sign, python in {"−": "-", "×": "*", "²": "**2"}.items():
        text = text.replace(sign, python)
    assert re.fullmatch(r"[-+*/(), .0-9a-z]*", text), text
    names = {"exp": math.exp, "log": math.log, "sqrt": math.sqrt, "max": max,
             "clip": lambda x, low, high: min(max(x, low), high)}
    return eval(text, {"__builtins__": {}}, names)


def check_sums(data):
    answers, settings = data["answers"], data["settings"]

    def total(key):
        return sum(a["columns"][key][t] for a in answers for t in actions(a))

    for key in ("grpo", "dr_grpo", "rloo"):
        assert sum(a[key] for a in answers) == pytest.approx(0, abs=1e-5)
    assert total("white") == pytest.approx(0, abs=1e-4)
    for key in ("token_mean", "seq_mean"):
        assert total(key) == pytest.approx(1, abs=1e-5)
    assert total("seq_sum") == pytest.approx(settings["n_tokens"] / (4 * settings["longest"]),
                                             abs=1e-5)
    first = answers[0]["start"]
    for answer in answers:
        column, places = answer["columns"], actions(answer)
        kl = sum(column["k1"])
        assert sum(column["reward"]) == pytest.approx(answer["reward"] - settings["beta"] * kl,
                                                      abs=1e-5)
        assert sum(column["true_A"]) == pytest.approx(answer["reward"] - column["truth"][first],
                                                      abs=1e-5)
        assert column["truth"][first] == answers[0]["columns"]["truth"][first]
        assert column["V"][first] == pytest.approx(answers[0]["columns"]["V"][first], abs=1e-5)
        for t in places:
            assert column["return"][t] == pytest.approx(column["A"][t] + column["V"][t], abs=1e-6)
            assert column["right"][t] == column["truth"][t] * settings["continuations"]
            assert abs(column["true_A"][t]) <= abs(column["true_A"][answer["turn"]])
        assert len({len(values) for values in column.values()}) == 1


def test_sums_of_a_page(traced):
    check_sums(traced[1])


def test_sums_of_the_page_in_docs():
    check_sums(trace_page.read_data(PAGE))


def test_a_page_s_texts_have_its_own_numbers(traced):
    """Here 8 continuations. An estimated share is off by 0.5 / sqrt(8) at most, in one standard
    deviation. In docs there are 64."""
    _, data, _ = traced
    steps = data["settings"]["steps"]
    assert steps == trace_group.STEPS
    texts = json.dumps(trace_page.guide(data["settings"]), ensure_ascii=False)
    for text in ("among 8 continuations of the prefix (it can be off by 0.18)", "续写 8 次",
                 "误差约 0.18", "among 8 continuations of the tokens", f"was {steps} steps before",
                 f"参考模型是 {steps} 步更新之前"):
        assert text in texts
    assert "64" not in texts
    docs = PAGE.read_text(encoding="utf-8")
    assert "64 continuations of the prefix (it can be off by 0.06)" in docs


def test_the_page_in_docs_is_up_to_date_and_needs_no_network():
    text = PAGE.read_text(encoding="utf-8")
    is_up_to_date = text == trace_page.page(trace_page.read_data(PAGE))
    assert is_up_to_date, "lines or texts have changed: run `python docs/concepts.py`"
    assert PAGE.stat().st_size < 400_000
    assert not re.search(r"https?:|src=|url\(|@import|fetch\(", text)


def test_the_pictures_are_not_older_than_the_page():
    script = runpy.run_path(str(PAGE.parent / "trace_picture.py"))
    for file in script["PICTURES"].values():
        found = Image.open(file).text["Sources"]
        assert found == script["digest"](), "draw with: python docs/trace_picture.py"


def test_sources_are_the_functions():
    guide = trace_page.guide(trace_page.read_data(PAGE)["settings"])
    quantities = [*guide["answer"], *guide["group"],
                  *(q for step in guide["steps"] for q in step["quantities"])]
    assert len(quantities) > 30
    for q in quantities:
        file, line, function = re.fullmatch(r"(\S+):(\d+) (\w+)", q["source"]).groups()
        lines = (trace_page.ROOT / file).read_text(encoding="utf-8").splitlines()
        assert lines[int(line) - 1].startswith(f"def {function}(")


# ------------------------------------------------------------------------------------- a browser

# Reads all numbers of the page as a person does: by pointing at each.
POINT = """<script>
const found = [];
const pages = ["td", "A", "mc"].map(name => () => showStripes(name));
for (const show of pages) {
  show();
  for (const cell of document.querySelectorAll("button.cell")) {
    cell.dispatchEvent(new MouseEvent("mouseenter"));
    const {key, b, t} = cell.where, bar = document.getElementById("bar");
    found.push({key, b, t, text: cell.innerText || cell.textContent,
                value: bar.querySelector("b").textContent.split(" = ").at(-1),
                formula: bar.querySelector(".inside")?.textContent ?? "",
                source: [...bar.querySelectorAll("code")].at(-1).textContent});
  }
}
const moves = [];
const box = document.querySelector(".stripes"), first = box.querySelector(".cell");
first.focus();
for (const key of ["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"]) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  moves.push([document.activeElement.where.key, document.activeElement.where.t]);
}
const seen = () => [...document.querySelectorAll("h2 span")].filter(
  x => getComputedStyle(x).display !== "none").map(x => x.textContent);
setLanguage("en");
const english = seen();
document.getElementById("language").click();
const result = {found, moves, english, chinese: seen(), lang: document.documentElement.lang};
document.body.append(element("pre", "result", JSON.stringify(result)));
</script>"""


def open_page(file, width: int) -> dict:
    dom = browse(file.parent, f"--window-size={width},900", "--virtual-time-budget=1000",
                 "--dump-dom", file.as_uri())
    text = re.search(r'<pre class="result">(.*?)</pre>', dom, re.S)[1]
    return json.loads(html.unescape(text))


@needs_browser
def test_a_browser_shows_the_numbers_and_their_formulas(traced, tmp_path):
    file, data, _ = traced
    copied = tmp_path / "page.html"
    copied.write_text(file.read_text(encoding="utf-8").replace("</body>", POINT + "</body>"),
                      encoding="utf-8")
    # Narrow, tokens go from top to bottom.
    narrow, shown = open_page(copied, 500), open_page(copied, 1300)
    sources = {q.key: trace_page.place_of(q.source) for q in QUANTITIES.values()}
    seen = set()
    for cell in shown["found"]:
        key, b, t = cell["key"], cell.get("b"), cell.get("t")
        is_clip = key.endswith("_clip")
        # A negative number stands in brackets.
        assert not re.search(r"[-+−×/] ?−", cell["formula"]), cell
        if key.startswith("answer "):
            name = key.removeprefix("answer ")
            value = data["settings"][name] if b is None else data["answers"][b][name]
        else:
            value = data["answers"][b]["columns"][key][t]
            assert cell["source"] == sources[key]
        seen.add((key, b, t))
        if is_clip:
            assert cell["text"] == {0: "no否", 1: "above上界", -1: "below下界"}[value]
            first, second = cell["formula"].removeprefix("max").split(", ", 1)
            assert (evaluate("(" + second) > evaluate(first + ")") + 1e-5) == (value != 0)
            continue
        assert evaluate(cell["value"]) == pytest.approx(value, rel=1e-5)
        text = cell["text"].split(" = ")[-1].removeprefix("+")
        assert evaluate(text) == pytest.approx(value, abs=0.0051, rel=1e-4), (key, text)
        if t is not None and t < data["answers"][b]["start"]:
            continue
        if cell["formula"]:
            assert evaluate(cell["formula"]) == pytest.approx(value, abs=1e-5, rel=1e-5), cell
    # Every number of every token is there.
    for b, answer in enumerate(data["answers"]):
        for t in actions(answer):
            assert {(key, b, t) for key in QUANTITIES} <= seen
    first = data["answers"][0]["start"]
    assert shown["moves"] == [["flat", first + 1], ["mc", first + 1], ["mc", first],
                              ["flat", first], ["flat", first]]
    assert narrow["moves"] == [["mc", first], ["mc", first + 1], ["flat", first + 1],
                               ["flat", first], ["flat", first]]
    assert narrow["found"] == shown["found"]
    assert shown["lang"] == "zh" and len(shown["english"]) == len(shown["chinese"]) == 4
    assert not set(shown["english"]) & set(shown["chinese"])


# -------------------------------------------------------------------------------------- mistakes

def test_a_model_that_is_never_right(place, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_group, "BATCHES", 1)
    monkeypatch.setattr(gradient, "WARMUP_STEPS", 0)
    with pytest.raises(UserError, match="none has right and wrong"):
        tracing.main(["--model", str(place / "sft"), "--out", str(tmp_path / "page.html")])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags, message", [
    ("--model nowhere", "nowhere"), ("--seed -1", "out of range"), ("--epochs 2", "unrecognized"),
    ("--out file/page.html", "--out file/page.html"), ("--out folder", "--out folder")])
def test_bad_flags(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=re.escape(message)) as error:
        tracing.main(flags.split())
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
