"""docs/play.html in a real browser: its mathematics is that of losses.py and advantages.py, its
sliders move the numbers that it shows, and on paper it is one page. And without a browser: it loads
nothing, its links lead somewhere, and all of it is there in both languages."""
import functools
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import advantages
import losses
from browser import browse, needs_browser
from methods import COLUMNS, METHODS
from test_readme import anchors

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "play.html").read_text(encoding="utf-8")
TEXT = json.loads(re.search(r'id="text">(.*?)</script>', PAGE, re.S)[1])
f64 = torch.float64
LANGUAGES = ["en", "zh"]


def in_page(folder, script: str, given=None):
    """What the script's `run(given)` returns, after the page's own scripts."""
    wrapper = folder / "play.html"
    wrapper.write_text(PAGE.replace("</body>", f"""<script>
        {script}
        const results = run({json.dumps(given)});
        document.body.innerHTML = "<pre id='results'></pre>";
        document.getElementById("results").textContent = JSON.stringify(results);
        </script></body>"""), encoding="utf-8")
    dom = browse(folder, "--dump-dom", f"{wrapper.as_uri()}#en")
    return json.loads(html.unescape(re.search("<pre id=.results.>(.*?)</pre>", dom, re.S)[1]))


# ---------------------------------------------------------------------------------- mathematics

def gradient(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def row_cases(noise):
    """(a function of the page, its arguments, what Python says): a row of tokens with holes."""
    shape = (12, 9)
    mask = torch.rand(shape, generator=noise) < 0.6
    mask[0], mask[1] = False, True
    rewards, values, logp, ref_logp = torch.randn((4, *shape), generator=noise, dtype=f64)
    values[~mask] = 1e6
    scores, bootstrap = torch.randn((2, shape[0]), generator=noise, dtype=f64)
    token_rewards = advantages.token_rewards(scores, logp, ref_logp, mask, 0.3)
    returns = advantages.discounted_returns(rewards, mask, 0.9)
    deltas, _ = advantages.gae(rewards, values, mask, 0.9, 0.0, bootstrap)
    found, targets = advantages.gae(rewards, values, mask, 0.9, 0.7, bootstrap)
    for b, row in enumerate(mask.int()):
        yield "tokenRewards", (scores[b], logp[b], ref_logp[b], row, 0.3), token_rewards[b]
        yield "discountedReturns", (rewards[b], row, 0.9), returns[b]
        expected = {"deltas": deltas[b], "advantages": found[b], "returns": targets[b]}
        yield "gae", (rewards[b], values[b], row, 0.9, 0.7, bootstrap[b]), expected
        for t in row.nonzero().flatten().tolist():
            # A reward counts in an advantage as its TD error does.
            weights = gradient(
                lambda x: advantages.gae(x, values[b:b + 1], mask[b:b + 1], 0.9, 0.7)[0][0, t],
                rewards[b:b + 1])[0]
            yield "gaeWeights", (row, t, 0.9, 0.7), weights
    yield "whiten", (rewards, mask.int()), advantages.whiten(rewards, mask)
    yield "whiten", (rewards[:1], mask[:1].int()), torch.zeros_like(rewards[:1])
    expected = advantages.reinforce_pp_advantages(rewards, mask, 0.9)
    yield "reinforcePpAdvantages", (rewards, mask.int(), 0.9), expected


def group_cases(noise):
    rewards, greedy = torch.randn((2, 24), generator=noise, dtype=f64)
    # A group without signal, of a number that a mean rounds.
    rewards[6:12] = 0.7
    for scale in (True, False):
        expected = advantages.grpo_advantages(rewards, 6, scale)
        yield "grpoAdvantages", (rewards, 6, scale), expected
    yield "rlooAdvantages", (rewards, 6), advantages.rloo_advantages(rewards, 6)
    yield "remaxAdvantages", (rewards, greedy), advantages.remax_advantages(rewards, greedy)


def clip_cases(noise):
    for dual_clip in (None, 1.8):
        for _ in range(60):
            log_ratio, advantage = torch.randn(2, generator=noise, dtype=f64)
            old, mask = torch.zeros(1, 1, dtype=f64), torch.ones(1, 1)
            logp = log_ratio.view(1, 1).clone().requires_grad_()
            loss, stats = losses.ppo_policy_loss(
                logp, old, advantage.view(1), mask, 0.3, 0.6, dual_clip)
            loss.backward()
            expected = {"loss": loss, "isClipped": stats["clip_fraction"], "gradient": logp.grad}
            yield "clippedSurrogate", (log_ratio, advantage, 0.3, 0.6, dual_clip), expected


def kl_cases(noise):
    for size in (2, 3, 15):
        logits, ref, rewards = 1.5 * torch.randn((3, size), generator=noise, dtype=f64)
        logp, ref_logp = torch.log_softmax(logits, 0), torch.log_softmax(ref, 0)
        yield "klExact", (logits, ref), losses.kl_exact(logits, ref)
        reverse = gradient(lambda z: losses.kl_exact(z, ref), logits)
        forward = gradient(lambda z: losses.kl_exact(ref, z), logits)
        for b in range(size):
            yield "klExactGradient", (logits, ref, b), reverse[b]
            yield "klForwardGradient", (logits, ref, b), forward[b]
        for i, estimator in enumerate((losses.kl_k1, losses.kl_k2, losses.kl_k3)):
            name = f"klK{i + 1}"
            sampled = estimator(logp, ref_logp)
            for v in range(size):
                yield name, (logp[v], ref_logp[v]), sampled[v]
            mean = (logp.exp() * sampled).sum()
            variance = (logp.exp() * (sampled - mean).square()).sum()
            moments = {"mean": mean, "std": variance.sqrt()}
            yield f"(...given) => estimatorMoments({name}, ...given)", (logits, ref), moments
            # The samples are given: backward() goes through k alone.
            slope = gradient(
                lambda z: (logp.exp() * estimator(torch.log_softmax(z, 0), ref_logp)).sum(),
                logits)
            for b in range(size):
                function = f"(...given) => estimatorGradient(SLOPES[{i}], ...given)"
                yield function, (logits, ref, b), slope[b]
        best = ref_logp + rewards / 0.4
        expected = {"logits": best, "logZ": best.logsumexp(0)}
        yield "optimalPolicy", (ref, rewards, 0.4), expected


def plain(x):
    """Tensors as lists and numbers, for JSON."""
    if isinstance(x, torch.Tensor):
        return x.tolist()
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    return x


def numbers(x) -> list[float]:
    """All numbers of what JSON holds, in order."""
    if isinstance(x, dict):
        return numbers([x[key] for key in sorted(x)])
    if isinstance(x, list):
        return [number for part in x for number in numbers(part)]
    return [float(x)]


@needs_browser
def test_the_page_computes_what_python_does(computed):
    tested = " ".join({name for name, *_ in computed})
    block = re.search(r'<script id="math">(.*?)</script>', PAGE, re.S)[1]
    # What only helps others has no name of its own in Python.
    helpers = {"sum", "mean", "variance", "perGroup", "logSumExp", "logSoftmax", "softmax",
               "expected"}
    functions = set(re.findall(r"^(?:function|const) (\w+)", block, re.M))
    assert len(functions) > 20
    assert all(re.search(rf"\b{name}\b", tested) for name in functions - helpers)
    for name, arguments, expected, result in computed:
        assert numbers(result) == pytest.approx(numbers(plain(expected)), rel=1e-9, abs=1e-9), (
            name, arguments)
    # All ends of the clip were among the cases.
    ends = set()
    for name, arguments, _, result in computed:
        if name == "clippedSurrogate":
            log_ratio, advantage, *_, dual_clip = arguments
            ends.add((advantage.sign().item(), log_ratio.sign().item(), dual_clip,
                      result["isClipped"]))
    assert {(1, 1, None, True), (-1, -1, None, True), (-1, 1, 1.8, True), (-1, 1, None, False),
            (1, -1, None, False)} <= ends


@needs_browser
def test_a_group_without_signal_is_exactly_zero_in_the_page(computed):
    results = [result for name, _, _, result in computed
               if name in ("grpoAdvantages", "rlooAdvantages")]
    assert len(results) == 3
    for result in results:
        assert result[6:12] == [0.0] * 6 and 0.0 not in result[:6]


@needs_browser
def test_no_policy_is_better_than_the_page_s_best(computed):
    for _, (ref, rewards, beta), _, result in [case for case in computed
                                               if case[0] == "optimalPolicy"]:
        logits = torch.tensor(result["logits"], dtype=f64)

        def objective(z):
            return torch.softmax(z, 0) @ rewards - beta * losses.kl_exact(z, ref)

        assert objective(logits).item() == pytest.approx(beta * result["logZ"], abs=1e-9)
        assert gradient(objective, logits).abs().max() < 1e-9


# ---------------------------------------------------------------------------------- the page moves

SCRIPT = """
function set(id, x) {
  if (typeof x === "boolean") byId(id).checked = x; else byId(id).value = x;
  byId(id).dispatchEvent(new Event("input", {bubbles: true}));
}
const texts = elements => [...elements].map(element => element.textContent);
function shown() {
  return {
    clip: ["loss", "slope", "gradient", "says"].map(id => byId("clip-" + id).textContent),
    lambda: [...byId("lambda-rows").rows].map(row => texts(row.cells).slice(3)),
    lambda_says: byId("lambda-says").textContent,
    group: texts(document.querySelectorAll("#group-drawing .middle")),
    group_says: byId("group-says").textContent,
    beta: ["reward", "kl", "objective", "log-z"].map(id => byId("beta-" + id).textContent),
    kl: [...byId("kl-rows").rows].map(row => texts(row.cells).slice(1))};
}
function drive({moved, further}) {
  const nameless = [...document.querySelectorAll("input")].filter(input =>
    !input.getAttribute("aria-label") && !(input.labels[0] && input.labels[0].innerText.trim()));
  const start = shown();
  for (const [id, x] of Object.entries(moved)) set(id, x);
  const after = shown();
  for (const [id, x] of Object.entries(further)) set(id, x);
  byId("group_equal").click();
  const last = shown();
  byId("language").click();
  const chinese = {lang: document.documentElement.lang, hash: location.hash,
    title: document.querySelector("h1").textContent, ...shown()};
  return {nameless: nameless.map(input => input.id), start, after, last, chinese};
}
function run({cases, moves}) {
  const computed = cases.map(([name, given]) => eval(name)(...given));
  return {computed, driven: drive(moves)};
}
"""
MASK = [1, 1, 0, 1, 1, 1, 0, 1]
VALUES = [0.3, -0.4, 0.5, 0.8, 0.1, 0.9, 0.2, -0.6]
REWARDS = [0.2, 1.0, 0.4, 0.4, 0.0, 0.9, 0.1, 0.7]
MOVED = {
    "clip-ratio": 2.4, "clip-advantage": -0.75, "clip-low": 0.3, "clip-high": 0.5,
    "lambda-lam": 0.6, "lambda-gamma": 0.9, "lambda-score": -0.7, "lambda-penalty": 0.05,
    "lambda-bootstrap": 0.4, "group-greedy": 0.6, "beta-exponent": -0.5,
    "kl-policy-0": -1.2, "kl-policy-1": 0.7, "kl-ref-0": 0.4, "kl-ref-1": -0.9,
    **{f"mask-{t}": bool(is_action) for t, is_action in enumerate(MASK)},
    **{f"value-{t}": value for t, value in enumerate(VALUES)},
    **{f"reward-{i}": reward for i, reward in enumerate(REWARDS)}}
FURTHER = {"clip-dual": True, "clip-c": 1.5, "lambda-lam": 0, "lambda-bootstrap": 0,
           "beta-answer": 2, "beta-answer-reward": 1.3}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """One start of the browser for all cases and moves."""
    noise = torch.Generator().manual_seed(0)
    cases = [*row_cases(noise), *group_cases(noise), *clip_cases(noise), *kl_cases(noise)]
    given = {"cases": [(name, [plain(x) for x in arguments]) for name, arguments, _ in cases],
             "moves": {"moved": MOVED, "further": FURTHER}}
    results = in_page(tmp_path_factory.mktemp("play"), SCRIPT, given)
    computed = [(*case, result) for case, result in zip(cases, results["computed"], strict=True)]
    return computed, results["driven"]


@pytest.fixture
def computed(opened):
    return opened[0]


@pytest.fixture
def driven(opened):
    return opened[1]


def read(text: str) -> float:
    return float(text.replace("−", "-"))


def assert_shown(texts, expected, digits=3):
    assert [read(text) for text in texts] == pytest.approx(
        torch.as_tensor(expected).flatten().tolist(), abs=0.5001 * 10 ** -digits)


def tensor(*rows):
    return torch.tensor(rows, dtype=f64)


@needs_browser
@pytest.mark.parametrize("seen, ratio, advantage, clip, says", [
    ("start", 1.4, 1.0, (0.2, 0.28, None), "clip_stopped"),
    ("after", 2.4, -0.75, (0.3, 0.5, None), "clip_less"),
    ("last", 2.4, -0.75, (0.3, 0.5, 1.5), "clip_bounded")])
def test_the_clip_shows_its_loss_and_gradient(driven, seen, ratio, advantage, clip, says):
    def loss(rho):
        return losses.ppo_policy_loss(rho.log(), torch.zeros_like(rho), tensor(advantage),
                                      torch.ones_like(rho), *clip)[0]

    rho = tensor([ratio])
    slope = gradient(loss, rho).item()
    *found, sentence = driven[seen]["clip"]
    assert_shown(found, [loss(rho).item(), slope, ratio * slope])
    assert found[2] == "0" or says == "clip_less"
    assert sentence == re.sub("<.*?>", "", TEXT[says][0])


@needs_browser
def test_the_strip_shows_gae(driven):
    mask, values = tensor(MASK), tensor(VALUES)
    for seen, lam, bootstrap in (("after", 0.6, 0.4), ("last", 0.0, 0.0)):
        rewards = advantages.token_rewards(
            tensor(-0.7)[0:1], torch.ones_like(mask), torch.zeros_like(mask), mask, 0.05)
        deltas, _ = advantages.gae(rewards, values, mask, 0.9, 0.0, tensor(bootstrap))
        found, returns = advantages.gae(rewards, values, mask, 0.9, lam, tensor(bootstrap))
        monte_carlo, _ = advantages.gae(rewards, values, mask, 0.9, 1.0, tensor(bootstrap))
        for t, row in enumerate(driven[seen]["lambda"]):
            if MASK[t]:
                assert_shown(row, [deltas[0, t], found[0, t], returns[0, t], monte_carlo[0, t]])
            else:
                assert row == ["–"] * 4
    assert [row[0] for row in driven["last"]["lambda"]] == [row[1] for row in
                                                            driven["last"]["lambda"]]
    assert driven["last"]["lambda_says"].replace("\u00a0", " ") == TEXT["lambda_zero"][0]


@needs_browser
def test_the_group_shows_each_method_s_advantages(driven):
    for seen, rewards in (("after", tensor(*REWARDS)), ("last", tensor(*[0.7] * 8))):
        batch = rewards[:, None]
        expected = torch.cat([
            advantages.grpo_advantages(rewards, 8),
            advantages.grpo_advantages(rewards, 8, scale=False),
            advantages.rloo_advantages(rewards, 8),
            advantages.remax_advantages(rewards, torch.full_like(rewards, 0.6)),
            rewards,
            advantages.reinforce_pp_advantages(batch, torch.ones_like(batch)).flatten()])
        assert_shown(driven[seen]["group"], expected, digits=2)
    assert driven["last"]["group"][:24] == ["0"] * 24
    assert driven["last"]["group_says"] == TEXT["group_no_signal"][0]


@needs_browser
def test_beta_shows_a_point_of_the_frontier(driven):
    lists = [json.loads(found) for found in
             re.findall(r"^const (?:rewardOf|refLogitOf) = (\[.*?\]);", PAGE, re.M)]
    rewards, ref = tensor(*lists)
    for seen in ("after", "last"):
        if seen == "last":
            rewards[1] = 1.3
        beta = 10 ** -0.5
        best = torch.log_softmax(ref, 0) + rewards / beta
        reward, kl = torch.softmax(best, 0) @ rewards, losses.kl_exact(best, ref)
        assert_shown(driven[seen]["beta"],
                     [reward, kl, reward - beta * kl, beta * best.logsumexp(0)])
    assert driven["after"]["beta"] != driven["last"]["beta"]


@needs_browser
def test_the_estimators_table_shows_means_and_gradients(driven):
    policy, ref = tensor(-1.2, 0.7, 0.0), tensor(0.4, -0.9, 0.0)
    logp, ref_logp = torch.log_softmax(policy, 0), torch.log_softmax(ref, 0)
    reverse, k1, k2, k3, forward = driven["after"]["kl"]
    slopes = [gradient(lambda z: losses.kl_exact(z, ref), policy)[0],
              gradient(lambda z: losses.kl_exact(ref, z), policy)[0]]
    assert_shown([reverse[0], reverse[2]], [losses.kl_exact(policy, ref), slopes[0]])
    assert_shown([forward[0], forward[2]], [losses.kl_exact(ref, policy), slopes[1]])
    for row, estimator in ((k1, losses.kl_k1), (k2, losses.kl_k2), (k3, losses.kl_k3)):
        k = estimator(logp, ref_logp)
        mean = logp.exp() @ k
        assert_shown(row[:2], [mean, (logp.exp() @ (k - mean).square()).sqrt()])
    assert (read(k1[2]), k2[2], k3[2]) == (0, reverse[2], forward[2])


@needs_browser
def test_the_other_language_keeps_the_numbers(driven):
    chinese, last = driven["chinese"], driven["last"]
    assert (chinese["lang"], chinese["hash"], chinese["title"]) == (
        "zh-CN", "#zh", TEXT["title"][1])
    assert chinese["group_says"] == TEXT["group_no_signal"][1]
    for name in ("lambda", "group", "beta", "kl"):
        assert chinese[name] == last[name] != driven["start"][name]


@needs_browser
def test_every_control_has_a_name(driven):
    assert driven["nameless"] == []


@needs_browser
@pytest.mark.parametrize("language", LANGUAGES)
def test_on_paper_it_is_one_page(language, tmp_path):
    file = tmp_path / "play.pdf"
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={file}",
           f"{(ROOT / 'docs' / 'play.html').as_uri()}#{language}")
    assert len(re.findall(rb"/Type\s*/Page\b", file.read_bytes())) == 1


# ------------------------------------------------------------------------------ without a browser

class Tags(HTMLParser):
    """All attributes of the page and of its texts, as (tag, name, value), and each method's row."""

    def __init__(self):
        super().__init__()
        self.attributes, self.rows = [], {}
        self.row = None
        self.feed(PAGE + " ".join(part for pair in TEXT.values() for part in pair))

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "tr":
            self.row = dict(attrs).get("data-method")
            self.rows[self.row] = []
        if tag == "td":
            self.rows[self.row].append("")

    def handle_endtag(self, tag):
        if tag == "tr":
            self.row = None

    def handle_data(self, data):
        if self.row and self.rows[self.row]:
            self.rows[self.row][-1] += data.strip()

    def values(self, attribute) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


@functools.cache
def tags() -> Tags:
    return Tags()


def test_it_loads_nothing_and_is_small():
    assert len(PAGE.encode()) < 120_000
    assert set(re.findall(r"https?://[^\"'<> ]*", PAGE)) == {"http://www.w3.org/2000/svg"}
    assert not tags().values("src") and not tags().values("srcset")
    assert "link" not in {tag for tag, *_ in tags().attributes}
    for loads in ("url(", "@import", "import(", "fetch(", "XMLHttpRequest", "WebSocket"):
        assert loads not in PAGE


def test_its_links_lead_somewhere():
    links = tags().values("href")
    assert len(links) >= 20
    for link in links:
        file, _, anchor = link.partition("#")
        target = (ROOT / "docs" / file).resolve()
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_functions_and_equations_that_it_names_exist():
    for key, pair in TEXT.items():
        if not key.endswith("_links"):
            continue
        for text, page in zip(pair, ("DERIVATIONS.md", "DERIVATIONS.zh.md")):
            derivations = (ROOT / "docs" / page).read_text(encoding="utf-8")
            equations = re.findall(r"\b[a-g]\.\d+", text)
            functions = re.findall("<code>(.*?)</code>", text)
            assert equations and functions and page in text
            assert all(rf"\text{{({equation})}}" in derivations for equation in equations)
            assert all(hasattr(losses, name) or hasattr(advantages, name) for name in functions)


def test_both_languages_say_everything():
    for key, pair in TEXT.items():
        assert len(pair) == 2 and all(part.strip() for part in pair), key
        holes = [sorted(re.findall(r"\{\d\}", part)) for part in pair]
        markup = [sorted(re.findall(r"</?\w+", part)) for part in pair]
        assert holes[0] == holes[1] and markup[0] == markup[1], key
    code = PAGE[PAGE.index('<script id="math">'):]
    used = {*tags().values("data-text"), *tags().values("data-label"),
            *re.findall(r'say\("(\w+)"', code)}
    assert {key for key in used if not key.startswith("$")} <= set(TEXT)
    for key in TEXT:
        assert key in used or f'"{key}"' in code or f"{key}:" in code, f"{key}: said nowhere"


def test_the_cheat_sheet_s_methods_are_those_of_the_table():
    rows = tags().rows
    assert {name for name in rows if name} == set(METHODS)
    for name, settings in METHODS.items():
        chosen = dict(zip(COLUMNS, settings))
        *_, average, clip, penalty = rows[name]
        assert average == chosen["aggregate"]
        if chosen["clip_low"] is None:
            assert clip == "–"
        else:
            ends = [chosen["clip_low"], chosen["clip_high"]]
            assert [float(end) for end in clip.split(", ")] == ends
        if chosen["kl_coef"]:
            assert penalty == f"{chosen['kl_in']}, {chosen['kl_coef']:g}"
        else:
            assert penalty == "0"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_cheat_sheet_s_mistakes_are_numbered_as_in_their_page(language):
    ending = ".md" if language == "en" else ".zh.md"
    page = (ROOT / "docs" / f"MISTAKES{ending}").read_text(encoding="utf-8")
    for n in range(1, 8):
        said = TEXT[f"mistake_{n}"][LANGUAGES.index(language)]
        found = re.findall(r"\b\d+[a-z]?\b", re.search(r"[(（]([^()（）]*)[)）]\W*$", said)[1])
        assert found and all(f"| {number} |" in page for number in found), said


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_that_lead_here_name_a_section_and_their_language(language):
    readme, index = {"en": ("README.md", "INDEX.md"),
                     "zh": ("README.zh-CN.md", "INDEX.zh.md")}[language]
    assert "(docs/play.html)" in (ROOT / readme).read_text(encoding="utf-8")
    links = re.findall(r"\(play\.html#(\w+)/(\w+)\)",
                       (ROOT / "docs" / index).read_text(encoding="utf-8"))
    assert {given for given, _ in links} == {language}
    assert {section for _, section in links} == set(tags().values("data-section"))
    assert all(f'<section id="{section}">' in PAGE for _, section in links)
