"""Models of the Hugging Face hub (huggingface.co) by name: OWNER/NAME, or OWNER/NAME@REVISION, a
branch, tag or commit.

Nothing is downloaded unless a user gave such a name, and then only what support/pretrained.py
reads. The package `huggingface_hub` does it, into its own cache: once filled, that serves offline.
"""
import re
from pathlib import Path

from support.cli import UserError
from support.parallel import on_rank_0
from support.tokenizer import FILES as TOKENIZER_FILES

NAME = re.compile(r"([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?", re.ASCII)
# Some repositories have the weights twice, in files of other names that nothing here reads.
WANTED = ["config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES]


def is_name(path: str) -> bool:
    """Whether it can be a name on the hub: not if its first part is a directory here, or runs/.

    A mistyped path to a run is then an error, and is sent nowhere."""
    match = NAME.fullmatch(path)
    return bool(match) and match[1] != "runs" and not Path(match[1]).is_dir()


@on_rank_0
def fetch(name: str, commit: str = "") -> Path:
    """The directory of a model in the cache, which is filled if need be. UserError if it can't be.

    commit: what to look at instead of the revision that the name says."""
    owner, model, revision = NAME.fullmatch(name).groups()
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise UserError(f"{name}: no directory here, and to fetch it from the Hugging Face hub "
                        "needs a package: pip install huggingface_hub") from None
    try:
        path = Path(snapshot_download(f"{owner}/{model}", revision=commit or revision,
                                      allow_patterns=WANTED, ignore_patterns="*/*"))
    except errors.GatedRepoError:
        reason = "it is gated: accept its terms on its page, then `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {commit or revision}"
    except errors.RepositoryNotFoundError:
        reason = "no model has this name, or it is private (then `hf auth login`)"
    except errors.LocalEntryNotFoundError:
        reason = "no connection, and the cache doesn't hold all of it"
    # What else can go wrong with a connection or a disk has no one class.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
    else:
        if any(path.glob("*.safetensors")):
            return path
        reason = "it has no model.safetensors, and weights of other formats are not read"
    raise UserError(f"{name}: no directory here, and can't be fetched from the Hugging Face hub: "
                    f"{reason}")


def commit_of(path: Path) -> str:
    """The commit that a directory of the cache holds, which is its name; "" of any other."""
    return path.name if path.parent.name == "snapshots" else ""
