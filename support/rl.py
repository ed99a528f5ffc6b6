"""What PPO and GRPO share and neither is about: settings, where rewards come from, prompts, β."""
import json
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from losses import adaptive_kl_coef
from model import ScalarModel
from rollout import Rollout, sequence_scores
from support import parallel
from support.cli import (DECODE_GRAPH, RunConfig, UserError, default_run, flag_of, refuse,
                         setting, user_errors)
from support.data import (drop_unusable, encode_examples, encode_prompt, hold_out, read_jsonl,
                          take)
from support.environments import load_environment, split_turns
from support.models import copy_for_inference, numpy_rng
from support.prefixes import PrefixTransformer
from support.pretrained import load_pretrained, load_scalar_model
from support.rewards import load_reward, reward_answers, read_right_answer
from support.run import ensure_trained, find_model
from support.tokenizer import same_tokenizer
from task import (MAX_NEW_TOKENS, TASKS, encode_problems, held_out_problems, make_problems,
                  task_reward)


@dataclass(kw_only=True)
class RLConfig(RunConfig):
    """The settings of PPO and GRPO alike."""
    kl_in: ClassVar[str] = "reward"                 # as PPO has it
    aggregate: ClassVar[str] = "token-mean"
    importance_cap: ClassVar[float] = 0.0
    group_size: ClassVar[int] = 1
    rounds: ClassVar[int] = 1                       # batches of prompts per step, at most
    task: str = setting("sums", "the built-in task; products may ask a calculator",
                        choices=tuple(TASKS))
    environment: str = setting(
        "", "FILE.py:FUNCTION, what says the next messages of a conversation in --data")
    max_turns: int = setting(4, "turns of the assistant in a conversation, at most", low=1)
    reward: str = setting("", "verifier, exact (the column `answer`), or FILE.py:FUNCTION")
    reward_model: str = setting("", "a reward model, run or model directory or OWNER/NAME on the "
                                "hub, instead of --reward")
    unfinished_score: float = setting(
        -5.0, "score of a cut-off answer, of which the reward model never saw one")
    steps: int = setting(50, "steps; each samples anew", low=1)
    prompts_per_step: int = setting(256, "different prompts per step", low=1)
    max_new_tokens: int | None = setting(None, "tokens of an answer, at most; 32, of long sums 40",
                                         low=1)
    decode_graph: bool = setting(False, DECODE_GRAPH)
    temperature: float = setting(1.0, "of sampling, and of all log-probs", low=0.01)
    lr: float = setting(2e-4, "learning rate of the policy", low=0.0)
    epochs: int = setting(1, "passes over each step's answers", low=1)
    minibatches: int = setting(2, "updates per pass", low=1)
    entropy_coef: float = setting(0.0, "weight of an entropy bonus in the policy's loss", low=0.0)
    kl_coef: float = setting(0.05, "β, weight of the KL penalty", low=0.0)
    kl_target: float = setting(
        0.0, "nats per answer that an adaptive β steers to; 0: β is fixed", low=0.0)
    kl_horizon: float = setting(10000.0, "answers over which an adaptive β moves", low=1.0)
    ref_ema: float = setting(
        0.0, "the reference follows: ref = ema * ref + (1 - ema) * policy; 0: frozen",
        low=0.0, high=1.0)
    ref_sync: int = setting(
        0, "the reference becomes a copy of the policy every N steps; 0: frozen", low=0)

    def __post_init__(self):
        if self.max_new_tokens is None:
            self.max_new_tokens = MAX_NEW_TOKENS[self.task]

    @property
    def answers_per_step(self) -> int:
        """How many answers are sampled at once."""
        return self.prompts_per_step * self.group_size

    def samples_of(self, rewards) -> int:
        """How many answers were sampled to get these rewards."""
        return len(rewards)

    def check(self, given: dict) -> None:
        """Refuse what makes no sense together, and flags that have no effect."""
        if self.reward and self.reward_model:
            raise UserError("--reward and --reward-model are both given, expected one")
        if self.ref_ema and self.ref_sync:
            raise UserError("--ref-ema and --ref-sync are both given, expected one")
        if self.ref_ema == 1:
            raise UserError("--ref-ema 1 keeps the reference as it is, expected less than 1")
        if self.epochs * self.minibatches == 1:
            refuse(given, "clip", "clip_low", "clip_high", "value_clip",
                   why="with one update per step: policy and values are still the old ones")
        if self.data:
            refuse(given, "task", why="with --data")
        elif self.environment:
            raise UserError("--environment needs --data with prompts of messages")
        if self.task != "sums" and not (self.reward or self.reward_model):
            raise UserError(f"--task {self.task} has no reward model of its own: expected "
                            "--reward verifier or --reward-model")
        if not self.environment:
            refuse(given, "max_turns", why="without --environment")
        if self.kl_coef == 0:
            refuse(given, "kl_target", "ref_ema", "ref_sync", why="where --kl-coef is 0")
        if not self.kl_target:
            refuse(given, "kl_horizon", why="without --kl-target")
        answers = self.rounds * self.answers_per_step
        if self.kl_target and self.kl_horizon <= 0.2 * answers:
            raise UserError(f"--kl-horizon {self.kl_horizon}: β would fall to 0 and stay there, "
                            f"expected over {0.2 * answers:g}, a fifth of a step's answers")
        if self.reward:
            refuse(given, "unfinished_score",
                   why="with --reward, which scores cut-off answers itself")
        elif self.data:
            refuse(given, "eval_every", "eval_problems", why="with --data and a reward model: "
                   "nothing says which answers are right")


# ------------------------------------------------------------------------------- where it starts

@user_errors()
def load_start(config, train_sft, run, device):
    """The model to start from and its tokenizer: --model, or runs/sft (of another task such as
    products, runs/sft_products). `run` notes what it was."""
    start = config.model
    if not start:
        start = ensure_trained(default_run("sft", config.task), train_sft, config)
    start = find_model(start, run.noted.get("model"))
    policy, tokenizer = load_pretrained(start, torch.float32, device, PrefixTransformer)
    run.note(model=start, data=config.data)
    return policy, tokenizer


@user_errors()
def load_scores(role: str, path: str, tokenizer, run, device):
    """A ScalarModel that reads the policy's tokens, as --reward-model or --critic."""
    model, its_tokenizer = load_scalar_model(path, torch.float32, device, PrefixTransformer)
    if not same_tokenizer(tokenizer, its_tokenizer):
        raise UserError(f"{flag_of(role)} {path}: its tokenizer is not that of the policy, "
                        "expected the same")
    run.note(**{role: path})
    return model


def load_critic(config, policy, reward, tokenizer, run, device):
    """The critic starts where it knows most: as the reward model, if there is one, else as the
    policy's trunk with values of 0."""
    if config.critic not in ("", "policy"):
        path = find_model(config.critic, run.noted.get("critic"))
        return load_scores("critic", path, tokenizer, run, device)
    if config.critic == "policy" or reward.model is None:
        return ScalarModel(policy)
    # It was checked and noted when it was loaded to be frozen, maybe in bfloat16.
    critic, _ = load_scalar_model(reward.path, torch.float32, device, PrefixTransformer)
    return critic


# -------------------------------------------------------------------------------------- rewards

class Reward:
    """What rewards answers: a function of their texts, or a reward model of their tokens.

    `function`: the function; of a reward model, the truth that evaluations ask for, if there is
    one: the built-in task's verifier. `model`: the reward model, or None; `path`: its directory."""

    def __init__(self, config, tokenizer, run, device, train_rm=None):
        """train_rm: what trains runs/rm, where neither --reward nor --reward-model is given."""
        self.tokenizer = tokenizer
        self.device = device
        self.unfinished_score = config.unfinished_score
        self.micro_batch_tokens = config.micro_batch_tokens
        self.model, self.path = None, ""
        if config.reward:
            with user_errors():
                self.function = load_reward(config.reward, config.data)
        else:
            self.function = None if config.data else task_reward
            path = config.reward_model or ensure_trained("runs/rm", train_rm, config)
            self.path = find_model(path, run.noted.get("reward_model"))
            model = load_scores("reward_model", self.path, tokenizer, run, device)
            self.model = copy_for_inference(model).requires_grad_(False)

    def __call__(self, examples: list[dict], rollout: Rollout, environment=None) -> torch.Tensor:
        """The reward of each answer. (B,) float32

        environment: what had a part in the answers, if anything had."""
        if self.model is None:
            turns = split_turns(rollout)
            rewards = reward_answers(self.function, examples, [sum(ids, []) for ids in turns],
                                     rollout.finished.tolist(), self.tokenizer,
                                     environment and environment.completions(turns))
            return torch.tensor(rewards, device=self.device)

        scores = parallel.map_micro_batches(sequence_scores, self.model, rollout.tokens,
                                            rollout.mask, self.micro_batch_tokens)
        # The reward model never saw an answer that was cut off.
        return torch.where(rollout.finished, scores, self.unfinished_score)


def concatenate(rollouts: list[Rollout]) -> Rollout:
    """The rows of several rollouts as one, padded to the longest."""
    T = max(rollout.tokens.shape[1] for rollout in rollouts)

    def join(name: str) -> torch.Tensor:
        parts = [getattr(rollout, name) for rollout in rollouts]
        if parts[0].dim() == 2:
            parts = [F.pad(x, (0, T - x.shape[1])) for x in parts]
        return torch.cat(parts)

    return Rollout(tokens=join("tokens"), mask=join("mask"), logp=join("logp"),
                   finished=join("finished"), prompt_lengths=join("prompt_lengths"),
                   lengths=join("lengths"))


# -------------------------------------------------------------------------------------- prompts

def read_prompts(path: str, reward: str, tokenizer, longest: int,
                 environment: str = "") -> list[dict]:
    """Prompts of a JSONL file for PPO and GRPO, `longest` tokens at most.

    Examples as read_jsonl gives them, with "prompt" and its "ids"; "columns" are the other fields,
    None where a line lacks one that others have. ValueError names the line and the field."""
    examples = read_jsonl(path, ("prompt",))
    if reward == "exact":
        for example in examples:
            _check_answer(example["columns"], f"{path}, line {example['line']}")
    if reward:
        for example in examples:
            _check_names(example["columns"], f"{path}, line {example['line']}")

    if environment:
        load_environment(environment)
        for example in examples:
            if isinstance(example["columns"]["prompt"], str):
                raise ValueError(f"{path}, line {example['line']}: prompt is text, expected "
                                 "messages for --environment")

    # The names of all lines' fields, in the order in which they first come. A dict keeps it.
    names = {}
    for example in examples:
        names.update(dict.fromkeys(example["columns"]))
    names.pop("prompt", None)

    def encode_columns(columns):
        prompt = columns["prompt"]
        others = {name: columns.get(name) for name in names}
        return {"prompt": prompt, "ids": encode_prompt(tokenizer, prompt), "columns": others}

    def reason_not(example):
        if not example["ids"]:
            return "empty prompt"
        if len(example["ids"]) > longest:
            return (f"prompt over the {longest} tokens that --max-new-tokens leaves "
                    "of the context")
        return ""

    return drop_unusable(encode_examples(examples, path, encode_columns), path, reason_not)


def _check_answer(columns: dict, place: str) -> None:
    """ValueError unless the field `answer` says what is right.

    place: how an error names the line."""
    answer = columns.get("answer")
    # To Python, true and false are numbers as well.
    is_answer = isinstance(answer, (str, int, float)) and not isinstance(answer, bool)
    if not is_answer or read_right_answer(answer) == "":
        found = json.dumps(answer)[:60] if "answer" in columns else "missing"
        raise ValueError(f"{place}: answer is {found}, "
                         "expected text or a number for --reward exact")


def _check_names(columns: dict, place: str) -> None:
    """ValueError if a field has the name of something else that a reward function is given.

    place: how an error names the line."""
    for name in ("prompts", "completions", "finished"):
        if name in columns:
            raise ValueError(f"{place}: has a field {name}, which is what the "
                             "reward function is given of the answers; expected another name")


@user_errors()
def load_prompts(config, tokenizer, *models):
    """A function step -> examples of that step, and the examples of every evaluation.

    Prompts and answers fit the context of all models; None is no model."""
    context = min(model.config.max_seq_len for model in models if model is not None)
    longest = context - config.max_new_tokens
    if config.data:
        examples = read_prompts(config.data, config.reward, tokenizer, longest, config.environment)
        train, held_out = hold_out(examples, config.data, config.eval_problems)

        def batch(step):
            return take(train, config.prompts_per_step, config.seed, step)

        return batch, held_out

    def batch(step):
        rng = numpy_rng(config.seed, step, f"{config.algorithm} prompts")
        return encode_problems(make_problems(config.task, config.prompts_per_step, rng), tokenizer)

    return batch, held_out_problems(config.task, config.eval_problems, tokenizer, longest)


# -------------------------------------------------------------------------------------------- β

class KLCoefficient:
    """β. With --kl-target it moves so that the KL of an answer comes to the target."""

    def __init__(self, config):
        self.value = config.kl_coef
        self.target = config.kl_target
        self.horizon = config.kl_horizon
        self.kl_in = config.kl_in

    @property
    def in_loss(self) -> float:
        return self.value if self.kl_in == "loss" else 0.0

    @property
    def in_reward(self) -> float:
        return self.value if self.kl_in == "reward" else 0.0

    def update(self, answer_kl: float, n_answers: int) -> None:
        """answer_kl: nats per answer, the mean over n_answers."""
        if self.target:
            self.value = adaptive_kl_coef(self.value, answer_kl, self.target, n_answers,
                                          self.horizon)

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]
