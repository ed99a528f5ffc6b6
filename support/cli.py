"""Settings from the command line, and errors that a user can put right: one line each."""
import argparse
import contextlib
import json
import math
import os
import sys
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

DECODE_GRAPH = ("sample by CUDA graphs, one launch per token: for small models with long answers; "
                "not run on a GPU yet")
# On --resume. Memory is what people turn down after they ran out of it. None changes a result, but
# for the rounding of a device.
MAY_CHANGE = {"steps", "eval_every", "save_every", "device", "micro_batch_tokens",
              "grad_checkpoint", "decode_graph", "resume", "overwrite"}
GO_ON = "the same command goes on from the last checkpoint with --resume, if there is one"


class UserError(Exception):
    """Something that the user can put right: printed as one line.

    Exit status 2, or 1 if it came up while training."""

    def __init__(self, message, status: int = 2):
        super().__init__(message)
        self.status = status


def first_line(error: Exception) -> str:
    """What a library's error says, without the pages that follow.

    Of a state dict, the first thing that is wrong with it."""
    return " ".join(str(error).split("\n")[:2])[:200]


@contextlib.contextmanager
def user_errors():
    """Around the reading of what a user gave, or as a decorator of a function that reads it: turns
    its errors, which name file and field, into one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error).replace("\n", " ")) from error


# ------------------------------------------------------------------------------------ settings

def setting(default, help: str, low=None, high=None, choices=None):
    """A field of a Config: its default, its line in --help, and what values it may have.

    low and high are allowed themselves."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class RunConfig:
    """The settings that every training script has."""
    # The scripts that have these settings make fields of them.
    task: typing.ClassVar[str] = "sums"
    environment: typing.ClassVar[str] = ""
    answers_per_step: typing.ClassVar[int] = 1
    out: str = setting("", "the run directory; runs/<algorithm> if not given, and "
                       "runs/<algorithm>_products of that task (or of another)")
    model: str = setting("", "a Hugging Face or run directory to start from, or OWNER/NAME on "
                         "the hub, instead of runs/sft")
    data: str = setting("", "a JSONL file, instead of the built-in task")
    seed: int = setting(0, "seeds everything random, together with the step", low=0)
    micro_batch_tokens: int = setting(
        8192, "tokens that go through the model at once: memory and speed, never the result", low=1)
    grad_checkpoint: bool = setting(
        False, "compute each layer again in the backward pass: less memory, a third slower, "
        "the same result")
    eval_every: int = setting(10, "steps between evaluations; 0: only at the end", low=0)
    eval_problems: int = setting(512, "fresh problems that an evaluation uses", low=1)
    save_every: int = setting(20, "steps between checkpoints; 0: only at the end", low=0)
    device: str = setting("", "cuda, mps or cpu; the first of them there is, if not given")
    dtype: str = setting(
        "", "of the matrix products; if not given, bfloat16 on a GPU that has it (not T4, V100), "
        "else float32, which on a GPU is exact (no TF32), and many times slower",
        choices=("", "float32", "bfloat16"))
    resume: bool = setting(False, "continue the run in --out from its last checkpoint")
    overwrite: bool = setting(False, "remove the run that --out holds, and nothing else in it")


def run_path(config) -> Path:
    return Path(config.out or default_run(config.algorithm, config.task))


def default_run(algorithm: str, task: str) -> str:
    """Where a run on a built-in task is, unless told otherwise: runs/sft, runs/sft_products."""
    return f"runs/{algorithm}" + ("" if task == "sums" else f"_{task}")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see --help)")


def parse(Config, doc: str, argv=None):
    """The command line as a Config.

    On --resume, settings come from the run's config.json, and a flag that differs is refused."""
    parser = OneLineParser(description=doc, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(Config)
    for f in fields(Config):
        _add_flag(parser, f, hints[f.name])
    given = vars(parser.parse_args(argv))
    config = Config(**given)
    if given.get("resume") and hasattr(config, "out"):
        config = resumed(config, given)
    if hasattr(config, "check"):
        config.check(given)
    return config


def _add_flag(parser, f, hint) -> None:
    """The flag of a Config's field. `hint`: its type, or `type | None`."""
    flag = flag_of(f.name)
    default = "-" if f.default in ("", None) else f.default
    help = f"{f.metadata['help']} [{default}]".replace("%", "%%")
    kind = next(t for t in typing.get_args(hint) or (hint,) if t is not type(None))
    choices = f.metadata["choices"]
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction,
                            default=argparse.SUPPRESS, help=help)
    else:
        parser.add_argument(flag, type=_convert(f, kind), choices=choices,
                            metavar=None if choices else kind.__name__.upper(),
                            default=argparse.SUPPRESS, help=help)


def _convert(f, kind):
    """The argparse type of a field: a number that is finite and in range, or a text."""
    low, high = f.metadata["low"], f.metadata["high"]
    bounds = []
    if low is not None:
        bounds.append(f"at least {low}")
    if high is not None:
        bounds.append(f"at most {high}")

    def convert(text):
        value = kind(text)
        infinite = kind is float and not math.isfinite(value)
        too_low = low is not None and value < low
        too_high = high is not None and value > high
        if infinite or too_low or too_high:
            expected = " and ".join(bounds) or "a finite number"
            raise argparse.ArgumentTypeError(f"{text} is out of range, expected {expected}")
        return value
    # argparse then says "invalid float value: 'x'".
    convert.__name__ = kind.__name__
    return convert


def flag_of(name: str) -> str:
    """kl_coef -> --kl-coef"""
    return "--" + name.replace("_", "-")


def refuse(given: dict, *names: str, why: str) -> None:
    """UserError if one of these settings was given: a flag that can have no effect is not accepted
    in silence."""
    for name in names:
        if name in given:
            raise UserError(f"{flag_of(name)} has no effect {why}")


def resumed(config, given: dict):
    """The settings of the run in --out, with the flags given now where they may change."""
    path = run_path(config)
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: nothing to resume, found no config.json")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved.pop("algorithm") != config.algorithm:
            raise ValueError("another algorithm")
        # Run compares the inputs, so each must have its digest. A run of before they were noted
        # has none.
        for note in saved.pop("inputs", {}).values():
            note["sha256"]
        old = type(config)(**{**saved, "out": config.out})
    except (ValueError, TypeError, AttributeError, KeyError, OSError, RecursionError) as error:
        raise UserError(f"{file}: not the settings of a run of {config.algorithm}: "
                        f"{error!r}") from error
    differences = []
    for name, value in given.items():
        before = getattr(old, name)
        if name not in MAY_CHANGE and value != before:
            differences.append(f"{flag_of(name)} is {value!r}, but the run in {path} was started "
                               f"with {before!r}")
    if differences:
        raise UserError("; ".join(differences))
    return replace(old, **given)


# ------------------------------------------------------------------------------------ scripts

@contextlib.contextmanager
def quiet_pipe():
    """Around a script: it ends quietly where nobody reads its output any more, as after `| head`,
    which goes when it has its lines."""
    try:
        try:
            yield
        finally:
            # What is still in the buffer would be written after this.
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def script(main) -> None:
    """Run a script's main() from the shell: what a user can put right is one line and status 2,
    or 1 once training has begun.

    Under torchrun, a process whose peer has ended fails as well: the first one to fail says why,
    and it alone."""
    # Both are slow to import, and not all that takes something from this file needs them.
    import torch

    from support import parallel
    store = parallel.join_processes()
    if parallel.rank() > 0:
        sys.stdout = open(os.devnull, "w")

    def end(message, status):
        if parallel.is_first_to_end(store):
            print(message, file=sys.stderr, flush=True)
        sys.exit(status)

    name = Path(sys.argv[0]).name
    # The other scripts have no --resume.
    advice = f": {GO_ON}" if name.startswith("train_") else ""
    try:
        with quiet_pipe():
            main()
    except UserError as error:
        end(f"{name}: {'' if error.status == 130 else 'error: '}{error}", error.status)
    except KeyboardInterrupt:
        end(f"\nstopped at once{advice}", 130)
    except torch.OutOfMemoryError as error:
        end(f"\n{name}: error: the GPU's memory is full: a smaller --micro-batch-tokens takes "
            f"less, and so does --grad-checkpoint{advice} (torch: {first_line(error)})", 1)
    except RuntimeError as error:
        if not parallel.is_lost_peer(error):
            raise
        end(f"\n{name}: error: lost another process of this run: {GO_ON} "
            f"(torch.distributed: {first_line(error)})", 1)
    parallel.leave_processes(store)
