"""What the figures of docs/figures/ say is what happens: their shapes, functions and gradients are
those of a real, tiny step of each script; their curves and tables are the code's.

And how they look: each is up to date and parses, no text leaves its box or lies on another.
"""
import inspect
import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import rollout as rollout_module
import train_dpo
import train_grpo
import train_ppo
import train_rm
from advantages import gae
from methods import COLUMNS, METHODS
from model import KVCache, ModelConfig, Transformer
from rollout import generate, token_log_probs
from support import parallel
from support.decoding import Decoder
from support.prefixes import PrefixTransformer
from support.run import Run

ROOT = Path(__file__).parent.parent
FIGURES = runpy.run_path(str(ROOT / "docs" / "figures.py"))
text_width = FIGURES["text_width"]
FILES = sorted((ROOT / "docs" / "figures").glob("*.svg"))
RL = "--model sft --data sft.jsonl --max-new-tokens 6"
PAIRS = "--model sft --data pairs.jsonl"
COMMON = "--steps 1 --device cpu --out"
RUNS = {
    "ppo": (train_ppo, f"{RL} --reward-model figure_rm --prompts-per-step 16 --critic-warmup 0"),
    "grpo": (train_grpo, f"{RL} --reward reward.py:vowels --prompts-per-step 4 --group-size 4 "
             "--eval-every 0"),
    "dpo": (train_dpo, f"{PAIRS} --batch-size 12 --eval-every 0")}


# ------------------------------------------------------------------------------ the models' figure

def leaves(loss) -> set[int]:
    """The tensors that the gradient of a loss reaches, by their ids."""
    found, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [further for further, _ in node.next_functions]
    return found


class Watched:
    """One step of a script.

    names: the variables of its `main` when the step is logged. given: a function -> its tensors by
    the names of its parameters. reached: a loss -> what its gradient reaches. scored: the models
    that scored the batch, with what came of it."""

    def __init__(self, script, monkeypatch):
        module, flags = RUNS[script]
        self.names, self.given, self.reached, self.scored = {}, {}, {}, []
        log, score = Run.log, parallel.map_micro_batches

        def watched_log(run, *arguments):
            self.names = dict(sys._getframe(1).f_locals)
            return log(run, *arguments)

        def watched_score(function, model, *arguments):
            self.scored.append((model, score(function, model, *arguments)))
            return self.scored[-1][1]

        monkeypatch.setattr(Run, "log", watched_log)
        monkeypatch.setattr(parallel, "map_micro_batches", watched_score)
        for name in FIGURES["INPUTS"].get(script, {}) | FIGURES["GRADIENTS"][script]:
            self.watch(monkeypatch, module, name)
        module.main(f"{flags} {COMMON} figure_{script}".split())

    def watch(self, monkeypatch, module, name):
        function = getattr(module, name)

        def watched(*arguments, **named):
            result = function(*arguments, **named)
            given = inspect.signature(function).bind(*arguments, **named).arguments
            self.given[name] = {k: x for k, x in given.items() if isinstance(x, torch.Tensor)}
            if name.endswith("_loss"):
                self.reached[name] = leaves(result[0])
            return result
        monkeypatch.setattr(module, name, watched)

    def models(self):
        """The models that `main` holds. DPO's reference is none: its log-probs are noted."""
        models = {name: self.names[name] for name in ("policy", "critic") if name in self.names}
        if "reference" in self.names:
            models["reference"] = self.names["reference"].model
        if "reward" in self.names and self.names["reward"].model is not None:
            models["reward model"] = self.names["reward"].model
        return models


@pytest.fixture(scope="module")
def steps(place):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(place)
        train_rm.main(f"{PAIRS} --batch-size 8 --eval-every 0 {COMMON} figure_rm".split())
        watched = {}
        for script in RUNS:
            with pytest.MonkeyPatch.context() as patch:
                watched[script] = Watched(script, patch)
        return watched


@pytest.mark.parametrize("script", RUNS)
def test_shapes_are_those_of_a_step(steps, script):
    names = steps[script].names
    sizes = {"B": 16, "T": names["tokens"].shape[-1], "P": 12, "2": 2}
    assert len(set(sizes.values())) == 4
    for name, shape in FIGURES["SHAPES"][script].items():
        if script == "dpo" and name == "logp":
            # main's is of its last micro-batch
            assert names["logp"].shape == (2, len(names["micro"]))
            continue
        expected = [sizes[letter] for letter in shape.replace(",", "").split()]
        assert list(names[name].shape) == expected, name


@pytest.mark.parametrize("script", RUNS)
def test_the_coloured_models_learn_and_the_grey_ones_do_not(steps, script):
    learns = FIGURES["LEARNS"][script]
    models = steps[script].models()
    assert set(learns) == set(models) | ({"reference"} if script == "dpo" else set())
    for name, model in models.items():
        for parameter in model.parameters():
            assert parameter.requires_grad == learns[name], name
    assert not steps[script].names["ref_logp"].requires_grad


@pytest.mark.parametrize("script", RUNS)
def test_gradients_go_where_the_dashed_arrows_go(steps, script):
    models = steps[script].models()
    owner = {id(p): name for name, model in models.items() for p in model.parameters()}
    reached = {loss: {owner[parameter] for parameter in parameters}
               for loss, parameters in steps[script].reached.items()}
    assert reached == FIGURES["GRADIENTS"][script]
    # Every model that learns is reached, and no other.
    learning = {name for name, learns in FIGURES["LEARNS"][script].items() if learns}
    assert set.union(*reached.values()) == learning


@pytest.mark.parametrize("script", FIGURES["INPUTS"])
def test_functions_are_given_what_the_figure_s_data_say(steps, script):
    step, tensors = steps[script], FIGURES["SHAPES"][script].keys() - {"mask"}
    for function, inputs in FIGURES["INPUTS"][script].items():
        given = step.given[function]
        if function in FIGURES["GRADIENTS"][script]:
            # Of a micro-batch, so not main's own; the parameters have their names.
            found = given.keys() & tensors
        else:
            found = {name for name in tensors
                     if any(step.names[name] is x for x in given.values())}
        assert found == inputs, function
    owner = {id(model): name for name, model in step.models().items()}
    found = {name: owner[id(model)] for model, result in step.scored for name in tensors
             if step.names[name] is result}
    assert found == FIGURES["COMPUTED_BY"][script]
    if script == "ppo":
        # What the reward model gave is in `rewards`, where the answers have ended.
        [scores] = [x for model, x in step.scored if owner[id(model)] == "reward model"]
        ended = step.names["rollout"].finished
        assert torch.equal(step.names["rewards"][ended], scores[ended]) and ended.any()


def drawn_arrows(script) -> tuple[set, set]:
    """The arrows of a script's panel as (from, to), by the first words in their boxes: those of
    data, and those of gradients."""
    root = ElementTree.parse(ROOT / "docs" / "figures" / "models.svg").getroot()
    panels, boxes, arrows = [], [], []
    for shape in root:
        at = shape.attrib
        if shape.tag.endswith("rect"):
            x, y, width, height = (float(at[k]) for k in ("x", "y", "width", "height"))
            is_panel = at["fill"] == "none"
            (panels if is_panel else boxes).append([(x, y, x + width, y + height), None])
        elif shape.tag.endswith("text") and boxes and boxes[-1][1] is None:
            boxes[-1][1] = shape.text
        elif shape.tag.endswith("polyline"):
            points = [tuple(map(float, p.split(","))) for p in at["points"].split()]
            arrows.append((points[0], points[-1], "stroke-dasharray" in at))
    assert len(panels) == 3
    panel = panels[["ppo", "grpo", "dpo"].index(script)][0]

    def box_at(x, y):
        [name] = [name for box, name in boxes[1:]
                  if inside((x, y, x, y), (box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2))]
        return name
    data, gradients = set(), set()
    for start, end, is_gradient in arrows:
        if inside((*start, *start), panel):
            (gradients if is_gradient else data).add((box_at(*start), box_at(*end)))
    return data, gradients


@pytest.mark.parametrize("script", RUNS)
def test_the_arrows_are_the_figure_s_data(script):
    data, gradients = drawn_arrows(script)
    # The actor is the policy; rewards_t is in the box of what computes it.
    boxes = {"policy (actor)": "policy", "token_rewards": "rewards_t"}
    names = FIGURES["SHAPES"][script].keys()
    for function, inputs in FIGURES["INPUTS"].get(script, {}).items():
        into = {boxes.get(start, start) for start, end in data if end == function}
        assert into == inputs, function
    computed = {end: boxes.get(start, start) for start, end in data
                if end in names and boxes.get(start, start) in FIGURES["LEARNS"][script]}
    if script == "ppo":
        assert computed.pop("rewards") == "reward model"
    if script == "dpo":
        assert computed == {"logp": "policy", "ref_logp": "reference"}
    else:
        assert computed == FIGURES["COMPUTED_BY"][script]
    expected = {(loss, model) for loss, models in FIGURES["GRADIENTS"][script].items()
                for model in models}
    assert {(loss, boxes.get(model, model)) for loss, model in gradients} == expected
    # All models that score are given the tokens.
    scoring = {boxes.get(end, end) for start, end in data if start == "tokens, mask"}
    assert scoring - {"verifier"} == set(FIGURES["LEARNS"][script])


# -------------------------------------------------------------------------- one row and one cache

def small_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=128, dim=16, n_layers=1, n_heads=2, n_kv_heads=1,
                                   ffn_dim=16, max_seq_len=32))


def test_the_row_is_what_generate_writes(monkeypatch):
    """The sampler is told what to say, and the tool answers; another row is as long as can be."""
    parts = {name: part for name, part, _ in FIGURES["PARTS"]}
    ids = {name: [ord(c) for c in part] for name, part in parts.items()}
    said = iter(ids["answer"] + ids["tool"] + ids["more"] + ids["padding"])

    def sample(logits, temperature, uniform):
        token = next(said)
        tokens = torch.tensor([token, ord("a")])[:len(logits)]
        if len(logits) == 1:
            tokens = torch.tensor([ord("a")])
        return tokens, torch.full(tokens.shape, -0.5)
    monkeypatch.setattr(rollout_module, "sample", sample)

    def tool(row, sampled):
        return ids["tool"] if sampled == ids["answer"] else None
    n_new = sum(len(part) for name, part in parts.items() if name != "prompt")
    rollout = generate(small_model(), [ids["prompt"]] * 2, n_new, [ord("="), ord(".")],
                       environment=tool)
    whole = "".join(parts.values())
    padding = len(parts["padding"])
    assert rollout.tokens[0].tolist() == [ord(c) for c in whole[:-padding]] + [0] * padding
    tensors = FIGURES["row_tensors"]()
    assert torch.equal(rollout.mask[0], tensors["mask"][0].bool())
    assert rollout.finished.tolist() == [True, False]
    for name, x in tensors.items():
        assert (x[~rollout.mask[:1]] == 0).all(), name
    assert tensors["advantages"][0, 14].item() == pytest.approx(FIGURES["SCORE"] - 0.8)


def test_the_state_before_scores_a_token():
    """The arrows: from the state at t - 1 to token t, for actions."""
    mask = FIGURES["row_tensors"]()["mask"]
    model, states = small_model(), []
    hidden = model.hidden

    def keep(*given):
        states.append(hidden(*given).detach().requires_grad_())
        return states[-1]
    model.hidden = keep
    tokens = torch.arange(mask.shape[1])[None]
    logp = token_log_probs(model, tokens, mask)
    for t in mask[0].nonzero().flatten().tolist():
        [gradient] = torch.autograd.grad(logp[0, t], states[0], retain_graph=True)
        assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [t - 1]


def test_the_cache_has_its_columns_and_positions(monkeypatch):
    """Padding is where the bias is -inf; positions are those that generate gives its model."""
    lengths = torch.tensor(FIGURES["CACHE_PROMPTS"])
    cells = FIGURES["cache_cells"](FIGURES["IN_CACHE"])
    n_columns = len(cells[0])
    model = small_model()
    cache = KVCache(model.config, lengths, n_columns, torch.float32)
    blocked = [[position is None for _, position in row] for row in cells]
    assert (cache.bias[:, 0, 0, :n_columns] == -torch.inf).tolist() == blocked
    asked, hidden = [], model.hidden

    def keep(tokens, cache, positions=None):
        # in the cache's next column
        if positions is not None:
            asked.append((cache.length, positions.flatten().tolist()))
        return hidden(tokens, cache, positions)
    model.hidden = keep
    prompts = [[ord(c) for c in letters[:n]]
               for letters, n in zip(FIGURES["IN_TOKENS"], lengths.tolist())]
    # What the last column would hold is sampled and not read again.
    generate(model, prompts, n_columns - max(lengths.tolist()) + 1, [])
    assert len(asked) == 3
    for column, positions in asked:
        assert positions == [row[column][1] for row in cells]
    # Both grids hold the same tokens at the same positions.
    in_tokens = FIGURES["cache_cells"](FIGURES["IN_TOKENS"])
    for mine, theirs in zip(cells, in_tokens):
        assert ([cell for cell in mine if cell[1] is not None]
                == [cell for cell in theirs if cell[1] is not None])


# --------------------------------------------------------------------------------------- curves

@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("dual", [None, 2.0])
def test_the_clip_s_curves_and_zones(advantage, dual):
    """By the formula in plain Python."""
    points = FIGURES["clip_curve"](advantage, dual)
    assert len(points) == 250
    for ratio, loss, slope in points:
        clipped = min(max(ratio, 0.8), 1.2)
        objective, expected = min(ratio * advantage, clipped * advantage), -ratio * advantage
        if ratio > 1.2 and advantage > 0 or ratio < 0.8 and advantage < 0:
            expected = 0
        if dual and ratio > dual and advantage < 0:
            objective, expected = dual * advantage, 0
        assert loss == pytest.approx(-objective)
        assert slope == pytest.approx(expected)
    zones = FIGURES["clip_zones"](points)
    if advantage > 0:
        borders, gradients = [1.2], [True, False]
    else:
        borders, gradients = [0.8] + [2.0] * bool(dual), [False, True] + [False] * bool(dual)
    assert [has for _, _, has in zones] == gradients
    assert [end for _, end, _ in zones] == pytest.approx([*borders, 2.5])
    assert zones[0][0] == 0 and all(a[1] == b[0] for a, b in zip(zones, zones[1:]))


@pytest.mark.parametrize("lam", FIGURES["LAMBDAS"])
def test_lambda_s_weights(lam):
    """(1 - λ) λ^(k-1), the rest at the end; and with them GAE is a mean of k-step estimates."""
    n = FIGURES["STEPS"]
    weights = FIGURES["step_weights"](lam)
    expected = [(1 - lam) * lam ** (k - 1) for k in range(1, n)] + [lam ** (n - 1)]
    assert weights == pytest.approx(expected)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, n, generator=generator, dtype=torch.float64)
    later = torch.cat((values[1:], torch.zeros(1)))
    estimates = [rewards[:k].sum() + later[k - 1] - values[0] for k in range(1, n + 1)]
    mean = sum(w * estimate.item() for w, estimate in zip(weights, estimates))
    advantages, _ = gae(rewards[None], values[None], torch.ones(1, n), 1.0, lam)
    assert mean == pytest.approx(advantages[0, 0].item())


# ------------------------------------------------------------------------------------ the methods

def changed_cells() -> dict[str, list[str]]:
    """method -> the values in its coloured cells, read from the drawing."""
    root = ElementTree.fromstring(FIGURES["methods_tree"](lambda english, _: english).svg())
    shapes = [(shape.tag.partition("}")[2], shape.attrib, shape.text) for shape in root]
    found, cells = {}, None
    for (tag, at, words), (after, _, value) in zip(shapes, shapes[1:]):
        if words in METHODS and at.get("text-anchor") == "start":
            cells = found.setdefault(words, [])
        elif cells is not None and tag == "rect" and at["stroke"] == FIGURES["ORANGE"]:
            assert after == "text"
            cells.append(value)
    return found


def test_the_tree_has_every_method_and_what_it_changes(monkeypatch):
    """Also of a method that has just been added to the table."""
    added = [*METHODS["dapo"][:-1], "drop"]
    added[COLUMNS.index("clip_low")] = 0.05
    monkeypatch.setitem(METHODS, "added", tuple(added))
    cells = changed_cells()
    assert set(cells) == set(METHODS)
    assert cells["reinforce"] == []
    assert cells["rloo"] == ["others"]
    assert cells["gspo"] == ["gspo", "−3e-4, +4e-4"]
    assert cells["added"] == ["token-mean", "−0.05, +0.28", "−", "drop"]
    # As many as there are differences, where a clip's two ends are one term, as are KL and its β.
    for method in METHODS.keys() - {"reinforce"}:
        parent = "grpo" if METHODS[method][1] != "reinforce" and method != "grpo" else "reinforce"
        mine, theirs = (dict(zip(COLUMNS, METHODS[name])) for name in (method, parent))
        for row in (mine, theirs):
            row["clip"] = row.pop("clip_low"), row.pop("clip_high")
            coefficient = row.pop("kl_coef")
            row["kl_in"] = coefficient and (row["kl_in"], coefficient)
        assert len(cells[method]) == sum(mine[name] != theirs[name] for name in mine), method


# ----------------------------------------------------------------------------------- a step in time

def test_a_step_s_stages_are_in_this_order(place, monkeypatch):
    """Prompts once a group; then a pass for each further token; then whole rows; then updates."""
    monkeypatch.chdir(place)
    events, references = [], []

    def note(owner, name, stage):
        function = getattr(owner, name)

        def noted(*arguments, **named):
            events.append(stage(*arguments))
            return function(*arguments, **named)
        monkeypatch.setattr(owner, name, noted)

    def pass_of(model, tokens, cache=None, positions=None):
        if cache is not None:
            return ("prefill" if positions is None else "decode"), tuple(tokens.shape)
        name = "reference" if model in references else "policy"
        return ("update" if torch.is_grad_enabled() else name), tuple(tokens.shape)

    class Reference(train_grpo.Reference):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            references.append(self.model)

    monkeypatch.setattr(train_grpo, "Reference", Reference)
    for model in (PrefixTransformer, Decoder):
        note(model, "hidden", pass_of)
    note(train_grpo.Reward, "__call__", lambda *_: ("rewards", ()))
    note(train_grpo, "grpo_advantages", lambda *_: ("advantages", ()))
    note(torch.optim.AdamW, "step", lambda *_: ("optimizer", ()))
    def leave_out(name):
        """What is only measured, such as the exact KL, is no stage."""
        function = getattr(train_grpo, name)

        def unnoted(*arguments):
            n_events, result = len(events), function(*arguments)
            del events[n_events:]
            return result
        monkeypatch.setattr(train_grpo, name, unnoted)
    leave_out("rollout_metrics")
    leave_out("evaluate")
    # Batches in one piece: micro-batches would repeat a stage.
    monkeypatch.setattr(train_grpo, "micro_batches",
                        lambda mask, size, rows: [(rows, mask.shape[1])])
    monkeypatch.setattr(parallel, "micro_batches",
                        lambda mask, size: [(torch.arange(len(mask)), mask.shape[1])])
    train_grpo.main(f"{RUNS['grpo'][1]} {COMMON} figure_timeline".split())
    stages = [stage for stage, _ in events]
    merged = [stage for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    assert merged == FIGURES["STAGES"]
    shapes = {stage: [shape for name, shape in events if name == stage] for stage in merged}
    # 4 prompts, 4 answers each; of each answer's 6 tokens the first comes from the prompt's pass.
    assert [rows for rows, _ in shapes["prefill"]] == [4]
    assert all(length == 1 for _, length in shapes["decode"]) and len(shapes["decode"]) == 5
    assert sorted(rows for rows, _ in shapes["decode"])[-1] == 16
    assert [rows for rows, _ in shapes["reference"] + shapes["policy"]] == [16, 16]
    assert [rows for rows, _ in shapes["update"]] == [8, 8]


def test_the_example_s_updates_take_each_row_once():
    rows = sorted(row for update in FIGURES["UPDATES"] for row in update)
    assert rows == list(range(len(FIGURES["LENGTHS"])))
    assert len(rows) % FIGURES["GROUP"] == 0


# ---------------------------------------------------------------------------------- how they look

def test_files_are_up_to_date(tmp_path):
    FIGURES["write"](tmp_path)
    now = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(now) == 2 * len(FIGURES["FIGURES"])
    there = {file.name: file.read_bytes() for file in FILES}
    assert now == there, "docs/figures is out of date: run `python docs/figures.py`"


def test_every_figure_stands_on_a_page_of_its_language():
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]
    shown = set()
    for page in pages:
        for name in re.findall(r"figures/([\w.]+\.svg)\)", page.read_text(encoding="utf-8")):
            is_chinese = "zh" in page.name
            assert name.endswith(".zh.svg") == is_chinese, f"{page.name} shows {name}"
            shown.add(name)
    assert shown == {file.name for file in FILES}


def read(file):
    """-> boxes and texts as (left, top, right, bottom), boxes with whether they are filled, texts
    with their words and size; points along the lines, with whether they are an arrow's."""
    root = ElementTree.parse(file).getroot()
    boxes, texts, points = [], [], []
    for shape in root:
        tag, at = shape.tag.partition("}")[2], shape.attrib
        if tag == "rect":
            x, y, width, height = (float(at[k]) for k in ("x", "y", "width", "height"))
            boxes.append(((x, y, x + width, y + height), at["fill"] != "none"))
        elif tag == "text":
            size, x, y = float(at["font-size"]), float(at["x"]), float(at["y"])
            width = text_width(shape.text, size)
            left = x - {"start": 0, "middle": width / 2, "end": width}[at["text-anchor"]]
            texts.append(((left, y - 0.8 * size, left + width, y + 0.2 * size), shape.text, size))
        elif tag == "polyline":
            corners = [tuple(map(float, p.split(","))) for p in at["points"].split()]
            for (x, y), (to_x, to_y) in zip(corners, corners[1:]):
                n = 2 + int(max(abs(to_x - x), abs(to_y - y)) / 4)
                points += [((x + (to_x - x) * i / n, y + (to_y - y) * i / n), "marker-end" in at)
                           for i in range(1, n)]
    return boxes, texts, points


def overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a, b) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_text_leaves_its_box_or_lies_on_another(file):
    boxes, texts, _ = read(file)
    boxes = [box for box, _ in boxes]
    assert boxes[0][2] <= 900 and len(texts) > 10
    for place, words, size in texts:
        assert size >= 11, words
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        around = [box for box in boxes if inside((*middle, *middle), box)]
        area = [(box[2] - box[0]) * (box[3] - box[1]) for box in around]
        smallest = around[area.index(min(area))]
        assert inside(place, smallest), f"{words!r} leaves its box"
    for i, (place, words, _) in enumerate(texts):
        for other, more, _ in texts[i + 1:]:
            assert not overlap(place, other), f"{words!r} lies on {more!r}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_line_goes_through_text_and_no_arrow_through_a_box(file):
    boxes, texts, points = read(file)
    # The first is the card. An arrow touches the edges of the boxes that it joins.
    filled = [(left + 3, top + 3, right - 3, bottom - 3)
              for (left, top, right, bottom), is_filled in boxes[1:] if is_filled]
    for point, is_arrow in points:
        for place, words, _ in texts:
            assert not inside((*point, *point), place), f"a line crosses {words!r}"
        if is_arrow:
            crossed = [box for box in filled if inside((*point, *point), box)]
            assert not crossed, f"an arrow crosses {crossed[0]}"
