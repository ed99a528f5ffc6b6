"""A run directory: what is in it, checkpoints, resuming, progress."""
import contextlib
import csv
import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from model import Transformer
from support import hub, plot
from support.cli import UserError, first_line, flag_of, run_path, user_errors
from support.models import peak_memory_mb, pick_device
from support.parallel import all_reduce_sum, on_rank_0, rank
from support.pretrained import save_pretrained
from support.tokenizer import FILES as TOKENIZER_FILES

ALGORITHMS = ("sft", "rm", "dpo", "grpo", "ppo")
# What a run directory holds; pairs.jsonl only where pairs are sampled.
RUN_FILES = ("config.json", "metrics.csv", "curves.png", "samples.txt", "checkpoint.pt", "model",
             "pairs.jsonl")
# What load_pretrained reads of a model's directory.
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)
# Beside them in a run's model/: of which step it is.
MODEL_NOTE = "run.json"
# So many bad steps in a row end a run.
BAD_STEPS = 5
# What the progress bar shows: column -> its name there, and its form.
SHOWN = {"loss": ("loss", ".3f"), "accuracy": ("accuracy", ".3f"),
         "chosen_logp": ("chosen_logp", ".2f"), "reward": ("reward", ".3f"), "kl": ("kl", ".4f"),
         "response_length": ("length", ".1f"), "tokens_per_second": ("tok/s", ",.0f")}


def find_model(path: str, noted: dict | None = None) -> Path:
    """A run's model/, or the directory itself, or what a name on the Hugging Face hub stands for.

    noted: what the run that is resumed noted of this model. It may have been a directory then."""
    if hub.is_name(path) and (not noted or "revision" in noted):
        return hub.fetch(path, noted["revision"] if noted else "")
    path = Path(path)
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "checkpoint.pt").exists():
        raise UserError(f"{path}: this run is not finished, so it has no model/ yet: "
                        "--resume it first")
    return path


@on_rank_0
def is_there(path: Path) -> bool:
    """Whether a file exists.

    What one process sees holds for all, because it may create the file while the others look."""
    return path.exists()


def ensure_trained(run: str, train, config) -> str:
    """`run`, trained by the script's main `train` if it isn't there, or finished if it was cut off.

    Of several processes that miss it, one trains it and the others wait. A run that is resumed
    started from a `run` that was there: what is trained now may be another."""
    model = Path(run) / "model" / "config.json"
    if is_there(model):
        return run
    if config.resume:
        raise UserError(f"{run} is not there any more, "
                        f"but the run in {run_path(config)} started from it")
    lock_or_wait(Path(run))
    if not is_there(model):
        print(f"{run} is not there yet: training it first", flush=True)
        arguments = ["--out", run]
        if config.task != "sums":
            arguments += ["--task", config.task]
        if config.device:
            arguments += ["--device", config.device]
        if is_there(Path(run) / "config.json"):
            arguments += ["--resume"]
        train(arguments)
        # The nested run switched autocast as its own settings say.
        pick_device(config)
    unlock(Path(run))
    return run


def find_trouble(row: dict) -> list[str]:
    """What is wrong with a policy, from a row of its metrics: for the progress bar."""
    signs = []
    entropy = row.get("entropy")
    if entropy not in (None, "") and entropy < 1e-3:
        signs.append("collapsed: entropy near 0")
    if row.get("no_signal") == 1:
        signs.append("no group has a signal")
    if row.get("kl", 0) > 1:
        signs.append("far from the reference")
    return signs


def sync(path: Path) -> None:
    """Wait until a file, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


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
    operation = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        # This file system has no locks, so there is nothing to wait for.
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


def read_settings(path: Path) -> dict:
    """What a run's config.json says, {} if there is none: a model has a config.json as well."""
    try:
        found = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    is_run = isinstance(found, dict) and found.get("algorithm") in ALGORITHMS
    return found if is_run else {}


def list_run_files(settings: dict) -> list[str]:
    """The names in a run's directory that are its own, by its settings; none if there is no run."""
    if not settings:
        return []
    names = list(RUN_FILES)
    samples_pairs = settings["algorithm"] in ("rm", "dpo") and not settings.get("data")
    if not samples_pairs:
        names.remove("pairs.jsonl")
    return names


def read_model_step(run: Path) -> int:
    """The step that a run's model/ is of; -1 if there is none, or one that doesn't say."""
    try:
        note = json.loads((run / "model" / MODEL_NOTE).read_bytes())
        return int(note["step"])
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
    """A run directory and its progress bar.

    Nothing is written before `start`, when all input has been read and checked. A checkpoint and
    the final model are written beside the last ones, synced, and renamed over them: kill a run at
    any moment, and --resume gives the run that was never stopped."""

    def __init__(self, config):
        self.config = config
        self.path = run_path(config)
        # The names that this run will have in its directory.
        self.own = list_run_files({"algorithm": config.algorithm, **asdict(config)})
        # Whether Ctrl-C was pressed.
        self.interrupted = False
        # The bad steps in a row up to now.
        self.bad_steps = 0
        self.draw_from = 0.0                # by time.perf_counter
        # Name -> path and SHA-256 of what the run is made from.
        self.inputs = {}
        # Name -> text of the files that `start` is to write.
        self.made = {}
        # The names that a run which is there already has in the directory, and, if this one resumes
        # it, the inputs that it noted.
        settings, self.held, in_the_way = on_rank_0(self._look)()
        self.noted = settings.get("inputs", {}) if config.resume else {}
        # A run that has no other files was killed before its first checkpoint.
        self.begun = config.resume and not set(self.held) <= {"config.json", "pairs.jsonl"}
        self._check_directory(in_the_way)

    def _check_directory(self, in_the_way: list[str]) -> None:
        """UserError if the run can't have its directory."""
        places = (self.path, *self.path.absolute().parents)
        existing = next(place for place in places if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"--out {self.path}: {existing} is not a directory "
                            "that can be written to")
        if self.config.resume and self.config.overwrite:
            raise UserError("--resume and --overwrite are both given, expected one")
        if in_the_way:
            raise UserError(f"{self.path}: holds {', '.join(in_the_way)}, "
                            "but no run's config.json: expected another --out")
        if self.held and not self.config.resume and not self.config.overwrite:
            raise UserError(f"{self.path}: holds a run already ({', '.join(self.held)}): "
                            "use --resume, --overwrite or another --out")

    def _look(self):
        """-> the settings of the run that is there or {}; its names; names that are in the way."""
        settings = read_settings(self.path)
        held = [name for name in list_run_files(settings) if os.path.lexists(self.path / name)]
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
            flag = f"{flag_of(name)} {path}"
            replaced = set() if self.config.resume else {*self.held, *self.own}
            for own in replaced:
                own_path = (self.path / own).resolve()
                if Path(path).resolve().is_relative_to(own_path):
                    raise UserError(f"{flag}: is part of the run in {self.path}, "
                                    "which would be replaced: expected another --out")
            self._compare(name, flag, path)

    def _compare(self, name: str, what: str, path) -> None:
        """Note an input under its name. UserError if the run that is resumed noted another one.

        what: how the error names the input."""
        found = {"path": str(path), "sha256": digest(Path(path))}
        commit = hub.commit_of(Path(path))
        if commit:
            found["revision"] = commit
        noted = self.noted.get(name, found)
        if noted["sha256"] != found["sha256"]:
            raise UserError(f"{what}: is not what the run in {self.path} was started with: "
                            f"SHA-256 {found['sha256'][:8]}…, expected {noted['sha256'][:8]}…")
        self.inputs[name] = found

    def keep(self, name: str, make) -> str:
        """The text of a file that a run makes once.

        make() in a new run, for `start` to write; on --resume what it wrote."""
        text = self._read_kept(name)
        if text is None:
            text = make()
            self.made[name] = text
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            self.inputs[Path(name).stem] = {"path": str(self.path / name), "sha256": sha256}
        return text

    @on_rank_0
    def _read_kept(self, name: str) -> str | None:
        """None in a new run, and in one of before such files were written."""
        file = self.path / name
        noted_as = Path(name).stem
        if not self.begun or noted_as not in self.noted:
            return None
        self._compare(noted_as, str(file), file)
        return file.read_bytes().decode()

    def start(self, **parts) -> None:
        """Create the directory, or resume: load the parts, which are objects with a state_dict.

        `first_step` then is where the run goes on."""
        self.parts = parts
        models = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
        self.device = next(models[0].parameters()).device
        for model in models:
            for module in model.modules():
                if isinstance(module, Transformer):
                    module.grad_checkpoint = self.config.grad_checkpoint
        step = 0
        # File -> its bytes at the checkpoint that the run goes on from.
        sizes = {}
        with user_errors():
            self._claim()
            if self.begun:
                step, sizes = self._load()
            self._prepare(sizes)
        if step == 0:
            self._checkpoint(0)
        self.first_step = step

    @on_rank_0
    def _claim(self) -> None:
        """Create the directory and lock it: the first look at it may be minutes old."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not lock(self.path):
            raise UserError(f"{self.path}: another process is training into it")
        # What a killed process left. Nobody else gives a file such a name.
        for own in self.own:
            remove(self.path / f".{own}.unfinished")
        remove(self.path / ".model.replaced")
        _, held, _ = self._look()
        if held != self.held and not self.config.resume:
            raise UserError(f"{self.path}: holds a run already, which another process has just "
                            "begun: expected another --out")

    def _load(self):
        """Load the parts from the checkpoint, or exit if the run is finished.

        -> the step, and the sizes of the files at that time."""
        file = self.path / "checkpoint.pt"
        try:
            # weights_only: tensors and numbers are read, and no code is run.
            state = torch.load(file, map_location="cpu", weights_only=True)
            step, sizes = state["step"], state["sizes"]
            is_ours = state["algorithm"] == self.config.algorithm
            if not is_ours or state["parts"].keys() != self.parts.keys():
                raise ValueError(f"it is of {state['algorithm']} with {', '.join(state['parts'])}, "
                                 f"expected {', '.join(self.parts)}")
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
        # torch has no one class for a file that it can't read.
        except Exception as error:
            raise UserError(f"{file}: can't be resumed from: {type(error).__name__}: "
                            f"{first_line(error)}") from error
        # A model/ of an earlier step was there before --steps was raised: this one isn't finished.
        if min(step, read_model_step(self.path)) >= self.config.steps:
            unlock(self.path)
            print(f"{self.path}: finished at step {step}, nothing to do (--steps N goes further)")
            sys.exit(0)
        return step, sizes

    @on_rank_0
    def _prepare(self, sizes) -> None:
        """All that `start` changes on the disk before the first checkpoint.

        sizes: of the files at the checkpoint that it resumes from."""
        self._cut_files(sizes)
        if self.config.overwrite:
            # The old config.json stays until the new one takes its place: after a kill in between,
            # this would else be no run, and could not be overwritten.
            for name in self.held:
                if name != "config.json":
                    remove(self.path / name)
        settings = asdict(self.config)
        del settings["resume"], settings["overwrite"]
        settings = {"algorithm": self.config.algorithm, **settings, "inputs": self.inputs}
        self._write_text("config.json", json.dumps(settings, indent=1) + "\n")
        for name, text in self.made.items():
            self._write_text(name, text)

    def _cut_files(self, sizes: dict[str, int]) -> None:
        """Forget what was written after the checkpoint. UserError if a file is shorter."""
        for name, size in sizes.items():
            found = self._size(name)
            if found < size:
                raise UserError(f"{self.path / name}: has {found} bytes, "
                                f"expected the {size} that were there at the last checkpoint")
        for name, size in sizes.items():
            if size:
                os.truncate(self.path / name, size)
            else:
                (self.path / name).unlink(missing_ok=True)

    def save(self, step: int) -> None:
        """A checkpoint after this step, which counts from 0, if one is due.

        It is the end of the run if Ctrl-C was pressed."""
        # All stop together: a process that stopped alone would leave the others waiting.
        interrupted = all_reduce_sum(self.interrupted)
        if self.due(step, self.config.save_every) or interrupted:
            self._checkpoint(step + 1)
        if interrupted:
            self.bar.close()
            command = f"python train_{self.config.algorithm}.py --out {self.path} --resume"
            raise UserError(f"interrupted after step {step + 1} and saved: {command} goes on",
                            status=130)

    def _size(self, name: str) -> int:
        """The bytes that a file has, 0 if it isn't there."""
        file = self.path / name
        return file.stat().st_size if file.exists() else 0

    @on_rank_0
    def _checkpoint(self, step):
        """Write a checkpoint, from which --resume goes on with this step."""
        sizes = {}
        for name in ("metrics.csv", "samples.txt"):
            sizes[name] = self._size(name)
            if sizes[name]:
                sync(self.path / name)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        state = {"algorithm": self.config.algorithm, "step": step, "sizes": sizes,
                 "parts": states}
        self._write("checkpoint.pt", lambda f: torch.save(state, f))

    def _write_text(self, name: str, text: str) -> None:
        """Make a file of a text; see `_write`."""
        self._write(name, lambda f: f.write(text.encode()))

    def _write(self, name: str, write) -> None:
        """Let write(an open file) make a file, which takes the place of the old one when whole."""
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
            # torch.save tells of a full disk by a place in its archive alone.
            hidden = error.__context__
            reason = first_line(hidden if isinstance(hidden, OSError) else error)
            has_checkpoint = (self.path / "checkpoint.pt").exists()
            stands = "; the last checkpoint stands for --resume" if has_checkpoint else ""
            raise UserError(f"{file}: can't be written: {reason}{stands}", status=1) from error

    def steps(self):
        """The steps that are left, from 0 on, with a progress bar that shows the time left.

        Ctrl-C lets `save` end the run; twice ends it at once."""
        def interrupt(number, frame):
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            if rank() == 0:
                self.bar.write("interrupted: finishing this step; once more stops at once",
                               file=sys.stderr)

        # Signal -> what it did before, to be put back.
        handlers = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, interrupt)
        left = range(self.first_step, self.config.steps)
        self.bar = tqdm(left, initial=self.first_step, total=self.config.steps,
                        desc=self.path.name, dynamic_ncols=True, disable=rank() > 0)
        try:
            yield from self.bar
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def due(self, step: int, every: int) -> bool:
        """Whether something done `every` steps (0: only at the end) is due after this step.

        The step counts from 0."""
        return step + 1 == self.config.steps or every > 0 and (step + 1) % every == 0

    @on_rank_0
    def log(self, row: dict, *grad_norms: list[float]) -> None:
        """A row of metrics.csv, written as it happens; some of it is for the progress bar.

        grad_norms: for each optimizer the gradient's norm at each update that it was to make. One
        that isn't finite was skipped. UserError if too many steps in a row were bad."""
        bad_norms = [norm for norms in grad_norms for norm in norms if not math.isfinite(norm)]
        for norm in bad_norms:
            self.bar.write(f"warning: the gradient's norm is {norm}: this update is skipped",
                           file=sys.stderr)
        row = {**row, "skipped_updates": len(bad_norms), "peak_memory_mb":
               peak_memory_mb(self.device)}
        file = self.path / "metrics.csv"
        with self._writing(file.name), open(file, "a+", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            # The first row says where columns stand: a step without an update has another order.
            f.seek(0)
            columns = next(csv.reader(f), None)
            if columns is None:
                first = [name for name in ("step", *SHOWN) if name in row]
                columns = first + [name for name in row if name not in first]
                writer.writerow(columns)
            written = [f"{float(row[name]):.6g}" if row[name] != "" else "" for name in columns]
            writer.writerow(written)
        evaluated = any(name.startswith("eval") and row[name] != "" for name in columns)
        if evaluated and time.perf_counter() >= self.draw_from:
            self.draw_curves()
        numbers = [f"{name} {row[column]:{form}}" for column, (name, form) in SHOWN.items()
                   if row.get(column, "") != ""]
        self.bar.set_postfix_str("  ".join(numbers + find_trouble(row)))
        # A step is a bad one if an optimizer made none of its updates.
        made_none = [norms and not any(map(math.isfinite, norms)) for norms in grad_norms]
        self.bad_steps = self.bad_steps + 1 if any(made_none) else 0
        if self.bad_steps == BAD_STEPS:
            raise UserError(f"{self.path}: in each of the last {BAD_STEPS} steps an optimizer made "
                            "no update, as no gradient for it was finite; "
                            "the last checkpoint stands", status=1)

    @on_rank_0
    def log_samples(self, step: int, found: dict[str, float], lines: list[str]) -> dict[str, float]:
        """Append what an evaluation found, prompts and answers, to samples.txt. -> found"""
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        title = f"=== step {step}: {numbers}"
        file = self.path / "samples.txt"
        with self._writing(file.name), open(file, "a", encoding="utf-8") as f:
            f.write("\n".join([title, *lines, "", ""]))
        return found

    def draw_curves(self) -> None:
        """curves.png of the steps so far. The next evaluations leave it, until drawing has taken no
        more than a twentieth of the time."""
        started = time.perf_counter()
        with self._writing("curves.png"):
            plot.draw_curves(self.path, self.config.algorithm)
        ended = time.perf_counter()
        self.draw_from = ended + 20 * (ended - started)

    @on_rank_0
    def finish(self, model, tokenizer) -> None:
        """The end of a run: curves.png, and model/, which is whole and says of which step it is."""
        self.draw_curves()
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
