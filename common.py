"""What all scripts share and no algorithm is about: command line, seeds, device, run directory, checkpoints, progress, curves."""
import argparse
import contextlib
import csv
import fcntl
import functools
import hashlib
import inspect
import json
import math
import os
import resource
import shutil
import signal
import sys
import traceback
import typing
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from tqdm import tqdm

from model import Transformer
from pretrained import save_pretrained
from rollout import rank, summed, world
from tokenizer import FILES as TOKENIZER_FILES

ALGORITHMS = ("sft", "rm", "dpo", "grpo", "ppo")
# What a run directory holds; pairs.jsonl only where pairs are sampled.
RUN_FILES = ("config.json", "metrics.csv", "curves.png", "samples.txt", "checkpoint.pt", "model",
             "pairs.jsonl")
# What load_pretrained reads of a model's directory.
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)
# Beside them in a run's model/: of which step it is.
MODEL_NOTE = "run.json"
# On --resume. Memory is what people turn down after they ran out of it: it changes no result.
MAY_CHANGE = {"steps", "eval_every", "save_every", "device", "micro_batch_tokens",
              "grad_checkpoint", "resume", "overwrite"}
BAD_STEPS = 5                                                                                       # in a row end a run


class UserError(Exception):
    """Something that the user can put right: printed as one line. Exit status 2, or 1 if it came up while training."""

    def __init__(self, message, status: int = 2):
        super().__init__(message)
        self.status = status


def first_line(error: Exception) -> str:
    """What a library's error says, without the pages that follow; of a state dict, the first thing that is wrong with it."""
    return " ".join(str(error).split("\n")[:2])[:200]


@contextlib.contextmanager
def user_errors():
    """Around the reading of what a user gave: turns its errors, which name file and field, into one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error).replace("\n", " ")) from error


# ------------------------------------------------------------------------------------------------------ command line

def setting(default, help: str, low=None, high=None, choices=None):
    """A field of a Config: its default, its line in --help, and what values it may have (low and high are allowed themselves)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(kw_only=True)
class RunConfig:
    """The settings that every training script has."""
    out: str = setting("", "the run directory; runs/<algorithm> if not given")
    model: str = setting("", "a Hugging Face or run directory to start from, instead of runs/sft")
    data: str = setting("", "a JSONL file, instead of the built-in task")
    seed: int = setting(0, "seeds everything random, together with the step", low=0)
    micro_batch_tokens: int = setting(8192, "tokens that go through the model at once: memory and speed, never the result", low=1)
    grad_checkpoint: bool = setting(False, "compute each layer again in the backward pass: less memory, a third slower, the same result")
    eval_every: int = setting(10, "steps between evaluations; 0: only at the end", low=0)
    eval_problems: int = setting(512, "fresh problems that an evaluation uses", low=1)
    save_every: int = setting(20, "steps between checkpoints; 0: only at the end", low=0)
    device: str = setting("", "cuda, mps or cpu; the first of them there is, if not given")
    dtype: str = setting("", "of the matrix products: float32 on a CPU, bfloat16 on a GPU if not given", choices=("", "float32", "bfloat16"))
    resume: bool = setting(False, "continue the run in --out from its last checkpoint")
    overwrite: bool = setting(False, "remove the run that --out holds, and nothing else in it")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see --help)")


def _convert(f, kind):
    """The argparse type of a field: a number that is finite and in range."""
    def convert(text):
        value, (low, high) = kind(text), (f.metadata["low"], f.metadata["high"])
        if kind is float and not math.isfinite(value) or low is not None and value < low or high is not None and value > high:
            bounds = " and ".join(f"at {word} {bound}" for word, bound in (("least", low), ("most", high)) if bound is not None)
            raise argparse.ArgumentTypeError(f"{text} is out of range, expected {bounds or 'a finite number'}")
        return value
    convert.__name__ = kind.__name__                          # argparse says "invalid float value: 'x'"
    return convert


def parse(Config, doc: str, argv=None):
    """The command line as a Config. On --resume, settings come from the run's config.json and a flag that differs is refused."""
    hints = typing.get_type_hints(Config)
    parser = OneLineParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for f in fields(Config):
        flag, help = "--" + f.name.replace("_", "-"), f"{f.metadata['help']} [{'-' if f.default in ('', None) else f.default}]".replace("%", "%%")
        kind = next(t for t in (typing.get_args(hints[f.name]) or (hints[f.name],)) if t is not type(None))
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help)
        else:
            parser.add_argument(flag, type=_convert(f, kind), choices=f.metadata["choices"], default=argparse.SUPPRESS, help=help,
                                metavar=None if f.metadata["choices"] else kind.__name__.upper())
    given = vars(parser.parse_args(argv))
    config = Config(**given)
    if given.get("resume") and hasattr(config, "out"):
        config = resumed(config, given)
    if hasattr(config, "check"):
        config.check(given)
    return config


def refuse(given: dict, *names: str, why: str) -> None:
    """UserError if one of these settings was given: a flag that can have no effect is not accepted in silence."""
    for name in names:
        if name in given:
            raise UserError(f"--{name.replace('_', '-')} has no effect {why}")


def resumed(config, given: dict):
    """The settings of the run in --out, with the flags given now where they may change."""
    file = run_path(config) / "config.json"
    if not file.is_file():
        raise UserError(f"{run_path(config)}: nothing to resume, found no config.json")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved.pop("algorithm") != config.algorithm:
            raise ValueError("another algorithm")
        # Run compares the inputs, so each must have its digest. A run of before they were noted has none.
        for note in saved.pop("inputs", {}).values():
            note["sha256"]
        old = type(config)(**{**saved, "out": config.out})
    except (ValueError, TypeError, AttributeError, KeyError, OSError, RecursionError) as error:
        raise UserError(f"{file}: not the settings of a run of {config.algorithm}: {error!r}") from error
    differ = [f"--{name.replace('_', '-')} is {value!r}, but the run in {run_path(config)} was started with {getattr(old, name)!r}"
              for name, value in given.items() if name not in MAY_CHANGE and value != getattr(old, name)]
    if differ:
        raise UserError("; ".join(differ))
    return replace(old, **given)


def script(main) -> None:
    """Run a script's main() from the shell: what a user can put right is one line and status 2, or 1 once training has begun.

    Under torchrun, a process whose peer has ended fails as well: the first one to fail says why, and it alone."""
    store = None
    if dist.is_torchelastic_launched():
        store, this, n = next(dist.rendezvous("env://"))
        dist.init_process_group(store=store, rank=this, world_size=n)                 # NCCL for tensors on a GPU, gloo for all others
        signal.signal(signal.SIGTERM, lambda *_: None)      # torchrun sends it to the others when one has ended, before they could say so
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")

    def end(message, status):
        if store is None or store.add("ended", 1) == 1:
            print(message, file=sys.stderr, flush=True)
        sys.exit(status)
    name, go_on = Path(sys.argv[0]).name, "the same command goes on from the last checkpoint with --resume, if there is one"
    try:
        main()
    except UserError as error:
        end(f"{name}: {'' if error.status == 130 else 'error: '}{error}", error.status)
    except KeyboardInterrupt:
        end(f"\nstopped at once: {go_on}", 130)
    except RuntimeError as error:
        if not Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(dist.__file__).parent):
            raise
        end(f"\n{name}: error: lost another process of this run: {go_on} (torch.distributed: {first_line(error)})", 1)
    if store is not None:
        dist.destroy_process_group()


def on_rank_0(function):
    """Decorator for what writes files, costs, or is random: only the first process calls the function, all get its result."""
    @functools.wraps(function)
    def call(*arguments, **named):
        result = [function(*arguments, **named) if rank() == 0 else None]
        if world() > 1:
            dist.broadcast_object_list(result)
        return result[0]
    return call


# ------------------------------------------------------------------------------------------------------ device, randomness

def pick_device(config) -> torch.device:
    """The device of --device; switches autocast on for all that follows if --dtype is bfloat16.

    Parameters stay float32: bfloat16 keeps 8 bits, so an Adam update of less than 1/512 of its weight would vanish in rounding."""
    name = config.device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and world() == 1 else "cpu")
    try:
        if name == "cuda" and world() > 1:
            torch.cuda.set_device(name := f"cuda:{dist.get_node_local_rank()}")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):                            # not the name of a device, or torch was built without it
        raise UserError(f"--device {name}: not available here, expected cuda, mps or cpu") from None
    torch.set_autocast_enabled(device.type, (config.dtype or ("float32" if device.type == "cpu" else "bfloat16")) == "bfloat16")
    torch.set_autocast_dtype(device.type, torch.bfloat16)
    torch.set_autocast_cache_enabled(False)                           # a cached copy of a weight would outlive its update
    return device


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that this process ever held: on a CUDA device its tensors, else all that is resident (on a Mac, MPS included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def numpy_rng(seed: int, step: int, purpose: str) -> np.random.Generator:
    """All randomness comes from (seed, step), so that a run can be continued from any step."""
    return np.random.default_rng((seed, step, zlib.crc32(purpose.encode())))


def torch_rng(seed: int, step: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(numpy_rng(seed, step, purpose).integers(2 ** 63)))


# ------------------------------------------------------------------------------------------------------ run directory

def model_directory(path: str) -> Path:
    """A run's model/, or the directory itself."""
    path = Path(path)
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "checkpoint.pt").exists():
        raise UserError(f"{path}: this run is not finished, so it has no model/ yet: --resume it first")
    return path


@on_rank_0
def there(path: Path) -> bool:
    """Whether a file exists: what one process sees, for all, because it may create the file while the others look."""
    return path.exists()


def trained(run: str, train, config) -> str:
    """`run`, trained by the script's main `train` if it isn't there, or finished if it was cut off.

    Of several processes that miss it, one trains it and the others wait. A run that is resumed
    started from a `run` that was there: what is trained now may be another."""
    model = Path(run) / "model" / "config.json"
    if there(model):
        return run
    if config.resume:
        raise UserError(f"{run} is not there any more, "
                        f"but the run in {run_path(config)} started from it")
    lock_or_wait(Path(run))
    if not there(model):
        print(f"{run} is not there yet: training it first", flush=True)
        train(["--out", run, *(["--device", config.device] if config.device else []),
               *(["--resume"] if there(Path(run) / "config.json") else [])])
        pick_device(config)                                     # the nested run switched autocast as its own settings say
    unlock(Path(run))
    return run


def trouble(row: dict) -> list[str]:
    """What is wrong with a policy, from a row of its metrics: for the progress bar."""
    signs = {"collapsed: entropy near 0": row.get("entropy") not in (None, "") and row["entropy"] < 1e-3,
             "no group has a signal": row.get("no_signal") == 1,
             "far from the reference": row.get("kl", 0) > 1}
    return [sign for sign, shows in signs.items() if shows]


def run_path(config) -> Path:
    return Path(config.out or f"runs/{config.algorithm}")


def read_csv(file: Path) -> list[dict]:
    """A file's rows, as text."""
    with open(file, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def read_metrics(run: Path) -> list[dict]:
    return read_csv(run / "metrics.csv")


def sync(path: Path) -> None:
    """Wait until a file, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def save_figure(figure, file: Path, sources, **how) -> None:
    """Save a figure that says what it was drawn from: git keeps no times, and tests/test_figures.py
    must be able to tell when a figure is older than its data or its script.

    sources: the data (its repr counts), and the functions and classes that draw it (their text)."""
    digest = hashlib.sha256()
    for source in sources:
        text = inspect.getsource(source) if callable(source) else repr(source)
        digest.update(text.encode())
    figure.savefig(file, metadata={"Sources": digest.hexdigest()}, **how)


def remove(path: Path) -> None:
    """Remove a file, a directory with all in it, or a link, but never what the link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Run directories that this process trains into, and the descriptors that hold their locks.
LOCKS: dict[Path, int] = {}


def lock(path: Path, wait: bool = False) -> bool:
    """Lock a directory until `unlock` or the end of this process, however it ends.

    -> False if another process has it. flock takes the directory itself: no file is left behind."""
    path = path.resolve()
    if path in LOCKS:
        return True
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:                     # a file system that has no locks
        pass
    LOCKS[path] = descriptor
    return True


def unlock(*paths: Path) -> None:
    for path in paths:
        descriptor = LOCKS.pop(path.resolve(), None)
        if descriptor is not None:
            os.close(descriptor)


# A lock lasts while any process has its descriptor open: a reward function's own must not.
os.register_at_fork(after_in_child=lambda: unlock(*LOCKS))


@on_rank_0
def lock_or_wait(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if not lock(path):
        print(f"{path} is being trained by another process: waiting for it", flush=True)
        lock(path, wait=True)


def run_settings(path: Path) -> dict:
    """What a run's config.json says, {} if there is none: a model has a config.json as well."""
    try:
        found = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("algorithm") in ALGORITHMS else {}


def run_files(settings: dict) -> list[str]:
    """The names in a run's directory that are its own, by its settings; none if there is no run."""
    if not settings:
        return []
    samples_pairs = settings["algorithm"] in ("rm", "dpo") and not settings.get("data")
    return [name for name in RUN_FILES if name != "pairs.jsonl" or samples_pairs]


def model_step(run: Path) -> int:
    """The step that a run's model/ is of; -1 if there is none, or one that doesn't say."""
    try:
        return int(json.loads((run / "model" / MODEL_NOTE).read_bytes())["step"])
    except (OSError, ValueError, TypeError, KeyError):
        return -1


def digest(path: Path) -> str:
    """SHA-256 of a file; of a model's directory, of the files that are read, names and contents."""
    if path.is_dir():
        files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
        listed = "".join(f"{digest(file)} {file.name}\n" for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Run:
    """A run directory and its progress bar. Nothing is written before `start`, when all input has been read and checked.

    A checkpoint and the final model are written beside the last ones, synced, and renamed over them: kill a run at any moment,
    and --resume gives the run that was never stopped."""

    def __init__(self, config):
        self.config, self.path = config, run_path(config)
        self.own = run_files({"algorithm": config.algorithm, **asdict(config)})
        self.interrupted, self.skipped, self.bad_steps = False, 0, 0
        self.finite = {}                # of this step, optimizer -> whether it made an update
        self.inputs, self.made = {}, {}
        settings, self.held, in_the_way = on_rank_0(self._look)()
        self.noted = settings.get("inputs", {}) if config.resume else {}
        # else it was killed before its first checkpoint
        self.begun = config.resume and not set(self.held) <= {"config.json", "pairs.jsonl"}
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"--out {self.path}: {existing} is not a directory that can be written to")
        if config.resume and config.overwrite:
            raise UserError("--resume and --overwrite are both given, expected one")
        if in_the_way:
            raise UserError(f"{self.path}: holds {', '.join(in_the_way)}, "
                            "but no run's config.json: expected another --out")
        if self.held and not config.resume and not config.overwrite:
            raise UserError(f"{self.path}: holds a run already ({', '.join(self.held)}): use --resume, --overwrite or another --out")

    def _look(self):
        """-> the settings of the run that is there or {}; its names; names that are in the way."""
        settings = run_settings(self.path)
        held = [name for name in run_files(settings) if os.path.lexists(self.path / name)]
        others = [name for name in self.own if name not in held]
        in_the_way = [name for name in others if os.path.lexists(self.path / name)]
        return settings, held, in_the_way

    @on_rank_0
    def note(self, **inputs) -> None:
        """Note what the run is made from, in its config.json: flag=path, "" for none.

        UserError if the run would replace it, or if --resume finds something else there."""
        for name, path in inputs.items():
            if not path:
                continue
            flag = f"--{name.replace('_', '-')} {path}"
            replaced = set() if self.config.resume else {*self.held, *self.own}
            for own in replaced:
                if Path(path).resolve().is_relative_to((self.path / own).resolve()):
                    raise UserError(f"{flag}: is part of the run in {self.path}, "
                                    "which would be replaced: expected another --out")
            self._compare(name, flag, path)

    def _compare(self, name: str, what: str, path) -> None:
        found = {"path": str(path), "sha256": digest(Path(path))}
        noted = self.noted.get(name, found)
        if noted["sha256"] != found["sha256"]:
            raise UserError(f"{what}: is not what the run in {self.path} was started with: "
                            f"SHA-256 {found['sha256'][:8]}…, expected {noted['sha256'][:8]}…")
        self.inputs[name] = found

    def keep(self, name: str, make) -> str:
        """The text of a file that a run makes once.

        make() in a new run, for `start` to write; on --resume what it wrote."""
        text = self._kept(name)
        if text is None:
            text = self.made[name] = make()
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            self.inputs[Path(name).stem] = {"path": str(self.path / name), "sha256": sha256}
        return text

    @on_rank_0
    def _kept(self, name: str) -> str | None:
        """None in a new run, and in one of before such files were written."""
        file, noted = self.path / name, Path(name).stem
        if not self.begun or noted not in self.noted:
            return None
        self._compare(noted, str(file), file)
        return file.read_bytes().decode()

    def start(self, parts: dict, **values):
        """Create the directory, or resume: load `parts` (objects with a state_dict). -> the first step, the saved `values`."""
        step, sizes = 0, {}
        models = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
        self.device = next(models[0].parameters()).device
        for module in (m for model in models for m in model.modules()):
            if isinstance(module, Transformer):
                module.grad_checkpoint = self.config.grad_checkpoint
        with user_errors():
            self._claim()
            if self.begun:
                step, values, sizes = self._load(parts)
            self._prepare(sizes)
        if step == 0:
            self._checkpoint(0, parts, values)
        self.first_step = step
        return step, values

    @on_rank_0
    def _claim(self) -> None:
        """Create the directory and lock it: the first look at it may be minutes old."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not lock(self.path):
            raise UserError(f"{self.path}: another process is training into it")
        # What a killed process left. Nobody else gives a file such a name.
        for name in (*(f".{own}.unfinished" for own in self.own), ".model.replaced"):
            remove(self.path / name)
        if self.held != self._look()[1] and not self.config.resume:
            raise UserError(f"{self.path}: holds a run already, which another process has just "
                            "begun: expected another --out")

    def _load(self, parts):
        file = self.path / "checkpoint.pt"
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)                             # tensors and numbers, no code
            step, values, sizes = state["step"], state["values"], state["sizes"]
            if state["algorithm"] != self.config.algorithm or state["parts"].keys() != parts.keys():
                raise ValueError(f"it is of {state['algorithm']} with {', '.join(state['parts'])}, expected {', '.join(parts)}")
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
        except Exception as error:                                   # torch has no one class for a file that it can't read
            raise UserError(f"{file}: can't be resumed from: {type(error).__name__}: {first_line(error)}") from error
        # A model/ of an earlier step was there before --steps was raised: this one isn't finished.
        if min(step, model_step(self.path)) >= self.config.steps:
            unlock(self.path)
            print(f"{self.path}: finished at step {step}, nothing to do (--steps N goes further)")
            sys.exit(0)
        return step, values, sizes

    @on_rank_0
    def _prepare(self, sizes) -> None:
        """All that `start` changes on the disk before the first checkpoint; sizes: of the files at the checkpoint that it resumes from."""
        for name, size in sizes.items():
            if (found := self._size(name)) < size:
                raise UserError(f"{self.path / name}: has {found} bytes, expected the {size} that were there at the last checkpoint")
        for name, size in sizes.items():                             # forget what came after the checkpoint
            if size:
                os.truncate(self.path / name, size)
            else:
                (self.path / name).unlink(missing_ok=True)
        # The old config.json stays until the new one takes its place: after a kill in between, this
        # would else be no run, and could not be overwritten.
        for name in self.held if self.config.overwrite else ():
            if name != "config.json":
                remove(self.path / name)
        settings = {name: value for name, value in asdict(self.config).items() if name not in ("resume", "overwrite")}
        settings = {"algorithm": self.config.algorithm, **settings, "inputs": self.inputs}
        text = json.dumps(settings, indent=1) + "\n"
        self._write("config.json", lambda f: f.write(text.encode()))
        for name, text in self.made.items():
            self._write(name, lambda f: f.write(text.encode()))

    def save(self, step: int, parts: dict, **values) -> None:
        """A checkpoint after this step, which counts from 0, if one is due; the end of the run if Ctrl-C was pressed."""
        interrupted = summed(self.interrupted)                       # a process that stopped alone would leave the others waiting
        if self.due(step, self.config.save_every) or interrupted:
            self._checkpoint(step + 1, parts, values)
        if interrupted:
            self.bar.close()
            raise UserError(f"interrupted after step {step + 1} and saved: python train_{self.config.algorithm}.py --out {self.path} "
                            "--resume goes on", status=130)

    def _size(self, name: str) -> int:
        return (self.path / name).stat().st_size if (self.path / name).exists() else 0

    @on_rank_0
    def _checkpoint(self, step, parts, values):
        sizes = {}
        for name in ("metrics.csv", "samples.txt"):
            sizes[name] = self._size(name)
            if sizes[name]:
                sync(self.path / name)
        state = {"algorithm": self.config.algorithm, "step": step, "values": values, "sizes": sizes,
                 "parts": {name: part.state_dict() for name, part in parts.items()}}
        self._write("checkpoint.pt", lambda f: torch.save(state, f))

    def _write(self, name: str, write) -> None:
        part = self.path / f".{name}.unfinished"
        with self._writing(part.name):
            with open(part, "wb") as f:
                write(f)
            sync(part)
            os.replace(part, self.path / name)
            sync(self.path)

    @contextlib.contextmanager
    def _writing(self, name: str):
        """Around the writing of a file: a full disk is one line, status 1, no half file stays."""
        file = self.path / name
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if name.endswith(".unfinished"):
                remove(file)
            raise UserError(f"{file}: can't be written: {first_line(error)}; the last checkpoint stands for --resume", status=1) from error

    def steps(self, first: int):
        """The steps that are left, with a progress bar that shows the time left. Ctrl-C lets `save` end the run; twice ends it at once."""
        def interrupt(number, frame):
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            if rank() == 0:
                self.bar.write("interrupted: finishing this step; once more stops at once", file=sys.stderr)
        handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        self.bar = tqdm(range(first, self.config.steps), initial=first, total=self.config.steps, desc=self.path.name, dynamic_ncols=True,
                        disable=rank() > 0)
        try:
            yield from self.bar
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def due(self, step: int, every: int) -> bool:
        """Whether something done `every` steps (0: only at the end) is due after this step, which counts from 0."""
        return step + 1 == self.config.steps or every > 0 and (step + 1) % every == 0

    def update(self, optimizer, model) -> float:
        """Clip the gradient to norm 1, step, clear. -> the norm before. The weights stay where they are if the gradient isn't finite,
        and if it is 0: Adam's momentum would go on moving them where nothing was learned."""
        for p in model.parameters() if world() > 1 else ():          # each process has the part of its rows, or none
            p.grad = summed(torch.zeros_like(p) if p.grad is None else p.grad)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        self.finite[optimizer] = self.finite.get(optimizer, False) or math.isfinite(norm)
        if 0 < norm < math.inf:
            optimizer.step()
        elif norm != 0:
            self.skipped += 1
            if rank() == 0:
                self.bar.write(f"warning: the gradient's norm is {norm}: this update is skipped", file=sys.stderr)
        optimizer.zero_grad()
        return norm

    @on_rank_0
    def log(self, row: dict, shown: dict) -> None:
        """A row of metrics.csv, written as it happens, and the numbers that the progress bar shows."""
        row = {**row, "skipped_updates": self.skipped}
        row["peak_memory_mb"] = peak_memory_mb(self.device)
        with self._writing("metrics.csv"), open(self.path / "metrics.csv", "a", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            if f.tell() == 0:
                writer.writerow(row)
            writer.writerow(f"{float(v):.6g}" if v != "" else "" for v in row.values())
        self.bar.set_postfix_str("  ".join([f"{name} {value}" for name, value in shown.items()] + trouble(row)))
        # A step in which an optimizer made some of its updates is a good one.
        self.bad_steps = 0 if all(self.finite.values()) else self.bad_steps + 1
        self.skipped, self.finite = 0, {}
        if self.bad_steps == BAD_STEPS:
            raise UserError(f"{self.path}: in each of the last {BAD_STEPS} steps an optimizer made "
                            "no update, as no gradient for it was finite; "
                            "the last checkpoint stands", status=1)

    @on_rank_0
    def sample(self, step: int, found: dict[str, float], lines: list[str]) -> dict[str, float]:
        """Append what an evaluation found, prompts and answers, to samples.txt. -> found"""
        title = f"=== step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        with self._writing("samples.txt"), open(self.path / "samples.txt", "a", encoding="utf-8") as f:
            f.write("\n".join([title, *lines, "", ""]))
        return found

    def plot(self, panels: dict[str, list[str]]) -> None:
        """curves.png: a panel for each entry, axis label -> columns of metrics.csv."""
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        rows = read_metrics(self.path)
        columns = 3
        figure, axes = plt.subplots(math.ceil(len(panels) / columns), columns, figsize=(12, 3 * math.ceil(len(panels) / columns)),
                                    squeeze=False, layout="constrained")
        for axis, (label, names) in zip(axes.flat, panels.items()):
            for name in names:
                points = [(int(row["step"]), float(row[name])) for row in rows if row[name] != ""]
                if points:
                    axis.plot(*zip(*points), label=name, marker="o" if name.startswith("eval") else None, markersize=3)
            axis.set(xlabel="step", ylabel=label)
            axis.grid(alpha=0.3)
            if len(axis.lines) > 1:
                axis.legend(fontsize=8)
        for axis in axes.flat[len(panels):]:
            axis.axis("off")
        figure.suptitle(f"{self.config.algorithm}: {self.path}")
        with self._writing("curves.png"):
            figure.savefig(self.path / "curves.png", dpi=110)
        plt.close(figure)

    @on_rank_0
    def finish(self, model, tokenizer, panels: dict[str, list[str]]) -> None:
        """The end of a run: curves.png, and model/, which is whole and says of which step it is."""
        self.plot(panels)
        names = (".model.unfinished", ".model.replaced", "model")
        new, old, final = (self.path / name for name in names)
        note = {"algorithm": self.config.algorithm, "step": max(self.first_step, self.config.steps)}
        with self._writing(new.name):
            save_pretrained(model, tokenizer, new)
            (new / MODEL_NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")
            for file in new.iterdir():
                sync(file)
            if os.path.lexists(final):
                os.replace(final, old)
            os.replace(new, final)
            sync(self.path)
            remove(old)
        unlock(self.path)
