"""Models by name: what is asked of the Hugging Face hub, which a server of this machine plays, what
a run notes of it, and that the cache serves offline. No test reaches another machine."""
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors import safe_open

import evaluate
import train_ppo
import train_sft
from model import ScalarModel
from support import hub, parallel
from support.cli import UserError, script
from support.pretrained import load_pretrained, save_pretrained

NEEDS_PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="huggingface_hub, which is optional, is not installed")
# What nobody asked for: weights in other formats, copies, and pages for people.
UNWANTED = ("README.md", "pytorch_model.bin", "vocab.json", "consolidated.safetensors",
            "onnx/config.json", "model_fp16/model.safetensors")
READ = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


class Server(ThreadingHTTPServer):
    """The hub. `repositories`: name -> its commits, the last one main, each commit -> directory."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.gated = set()
        # The paths that were asked for, in order.
        self.asked = []

    def files_asked(self) -> set[str]:
        """The files whose content was asked for, or what there is to know of it."""
        return {path.split("/", 5)[5] for path in self.asked if "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
        content = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if about:
            self.answer_about(*about.groups())
        elif content:
            self.answer_with(*content.groups())
        else:
            # The package asks for more than the model, such as a list of programs that use it.
            self.send(404)

    def find(self, name: str, revision: str):
        """-> a commit of a repository, or None after an error was sent."""
        commits = self.server.repositories.get(name)
        if commits is None:
            return self.send(401, error="RepoNotFound")
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self.send(404, error="RevisionNotFound")
        return commit

    def answer_about(self, name, what, revision):
        commit = self.find(name, revision)
        if commit is None:
            return
        directory = self.server.repositories[name][commit]
        files = {str(file.relative_to(directory)): file
                 for file in directory.rglob("*") if file.is_file()}
        if what == "tree":
            found = [{"type": "file", "path": path, "size": file.stat().st_size,
                      "oid": etag(file)} for path, file in files.items()]
        else:
            siblings = [{"rfilename": path} for path in files]
            found = {"id": name, "sha": commit, "siblings": siblings}
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def answer_with(self, name, revision, file):
        commit = self.find(name, revision)
        if commit is None:
            return
        if name in self.server.gated:
            return self.send(401, error="GatedRepo")
        file = self.server.repositories[name][commit] / file
        self.send(200, file.read_bytes(), {"ETag": f'"{etag(file)}"', "X-Repo-Commit": commit})

    def send(self, status, body=b"", headers=None, error=""):
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        for field, value in (headers or {}).items():
            self.send_header(field, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def import_anew(monkeypatch) -> None:
    """Let huggingface_hub be imported again: it reads the environment when it is imported."""
    for name in list(sys.modules):
        if name.split(".")[0] == "huggingface_hub":
            monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def server(place, tmp_path, monkeypatch):
    """A hub with a model tiny/lm of two commits, 1111... and 2222..., and an empty cache."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    policy, tokenizer = load_pretrained(place / "random")
    commits = {}
    for digit in "12":
        commit = digit * 40
        commits[commit] = tmp_path / "hub" / commit
        save_pretrained(policy, tokenizer, commits[commit])
        torch.nn.init.normal_(policy.norm.weight)
        for name in UNWANTED:
            (commits[commit] / name).parent.mkdir(exist_ok=True)
            (commits[commit] / name).write_text("not asked for")
    server.repositories["tiny/lm"] = commits
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    import_anew(monkeypatch)
    yield server
    server.shutdown()
    server.server_close()


def go_offline(server, monkeypatch) -> None:
    """From now on the package must not use the network, and what it asks all the same is seen."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import_anew(monkeypatch)
    server.asked.clear()


def sft(place, *more):
    return ["--data", str(place / "sft.jsonl"), "--out", "run", "--steps", "1",
            "--batch-size", "4", *more]


def stopped(main, flags, capsys) -> tuple[int, str]:
    """As from the shell. -> status, what is printed to stderr"""
    with pytest.raises(SystemExit) as end:
        script(lambda: main(flags))
    return end.value.code, capsys.readouterr().err


def noted_inputs() -> dict:
    return json.loads(Path("run/config.json").read_text())["inputs"]


# ------------------------------------------------------------------------------------------- names

def test_what_is_a_name_and_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for name in ("owner/name", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c@v1.0", "a/b@refs/pr/3"):
        assert hub.is_name(name), name
    for path in ("name", "a/b/c", "a/b/", "/a/b", "./a", "../a", "~/a", "here/typo",
                 "here/typo@v1", "runs/sft", "a/b@", "a/b c", "名/a", ""):
        assert not hub.is_name(path), path


def test_without_the_package_a_name_says_what_to_install(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for main, flags in ((train_sft.main, sft(place, "--model", "tiny/lm")),
                        (evaluate.main, ["tiny/lm"])):
        status, error = stopped(main, flags, capsys)
        assert status == 2 and error.count("\n") == 1
        assert "tiny/lm: no directory here" in error and "pip install huggingface_hub" in error
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_not_the_first_downloads_nothing(monkeypatch):
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel.dist, "broadcast_object_list",
                        lambda result: result.__setitem__(0, Path("where the first put it")))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert hub.fetch("tiny/lm") == Path("where the first put it")


# ---------------------------------------------------------------------------------------- download

@NEEDS_PACKAGE
def test_what_is_read_is_downloaded_once_and_nothing_else(server, place, monkeypatch):
    train_sft.main(sft(place, "--model", "tiny/lm"))
    assert server.files_asked() == READ
    noted = noted_inputs()["model"]
    snapshot = Path(noted["path"])
    assert noted["revision"] == snapshot.name == "2" * 40
    assert {file.name for file in snapshot.iterdir()} == READ
    server.asked.clear()
    assert hub.fetch("tiny/lm") == snapshot and not server.files_asked()


@NEEDS_PACKAGE
def test_shards_come_with_their_index(server):
    directory = server.repositories["tiny/lm"]["2" * 40]
    shard = "model-00001-of-00001.safetensors"
    (directory / "model.safetensors").rename(directory / shard)
    with safe_open(directory / shard, framework="pt") as opened:
        weight_map = dict.fromkeys(opened.keys(), shard)
    index = {"weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    path = hub.fetch("tiny/lm")
    assert server.files_asked() == (
        READ - {"model.safetensors"} | {shard, "model.safetensors.index.json"})
    load_pretrained(path)


@NEEDS_PACKAGE
@pytest.mark.parametrize("offline", [False, True])
def test_resume_looks_at_the_commit_that_was_noted(server, place, monkeypatch, capsys, offline):
    """Though main has moved on, and with nothing but the cache. Another revision is refused."""
    train_sft.main(sft(place, "--model", "tiny/lm"))
    noted = noted_inputs()
    server.repositories["tiny/lm"]["3" * 40] = server.repositories["tiny/lm"]["1" * 40]
    if offline:
        go_offline(server, monkeypatch)
    train_sft.main(sft(place, "--model", "tiny/lm", "--resume", "--steps", "2"))
    assert noted_inputs() == noted
    assert not offline or not server.asked
    capsys.readouterr()
    status, error = stopped(train_sft.main, sft(place, "--model", f"tiny/lm@{'3' * 40}",
                                                "--resume", "--steps", "3"), capsys)
    assert status == 2 and "--model is 'tiny/lm@333" in error and error.count("\n") == 1


@NEEDS_PACKAGE
def test_resume_refuses_a_name_for_what_was_a_directory(server, place, capsys):
    shutil.copytree(place / "random", "tiny/lm")
    train_sft.main(sft(place, "--model", "tiny/lm"))
    assert "revision" not in noted_inputs()["model"]
    shutil.rmtree("tiny")
    status, error = stopped(train_sft.main, ["--out", "run", "--resume", "--steps", "2"], capsys)
    assert status == 2 and "tiny/lm/config.json: not found" in error and not server.asked


@NEEDS_PACKAGE
def test_each_flag_for_a_model_takes_a_name(server, place, monkeypatch, capsys):
    """--resume takes each at its own commit, though main has moved on, and so does evaluate.py."""
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    scores = ScalarModel(policy)
    for name in ("rm", "critic"):
        for digit in "67":
            torch.nn.init.normal_(scores.score.weight)
            save_pretrained(scores, tokenizer, f"hub/{name}{digit}")
        server.repositories[f"tiny/{name}"] = {"6" * 40: Path(f"hub/{name}6").absolute()}
    model = f"tiny/lm@{'1' * 40}"
    flags = ["--model", model, "--reward-model", "tiny/rm", "--critic", "tiny/critic",
             "--data", str(place / "sft.jsonl"), "--out", "run", "--steps", "1",
             "--prompts-per-step", "4", "--max-new-tokens", "4"]
    train_ppo.main(flags)
    noted = noted_inputs()
    assert {name: note.get("revision", "")[:1] for name, note in noted.items()} == {
        "model": "1", "reward_model": "6", "critic": "6", "data": ""}
    for name in ("rm", "critic"):
        server.repositories[f"tiny/{name}"]["7" * 40] = Path(f"hub/{name}7").absolute()
    train_ppo.main([*flags, "--resume", "--steps", "2"])
    assert noted_inputs() == noted
    go_offline(server, monkeypatch)
    # KL is measured to the directory that was noted.
    few = ["--problems", "2", "--samples", "1"]
    evaluate.main(["run", "--reward", f"{place}/reward.py:vowels", *few])
    evaluate.main([model, "--reference", model, *few])
    assert capsys.readouterr().out.count("\nkl  ") == 2 and not server.asked


# ------------------------------------------------------------------------------------------ errors

@NEEDS_PACKAGE
@pytest.mark.parametrize("name, reason", [
    ("tiny/nothing", "no model has this name, or it is private"),
    ("tiny/gated", "it is gated: accept its terms on its page"),
    ("tiny/lm@v7", "it has no revision v7"),
    ("tiny/old", "it has no model.safetensors"),
    ("tiny/a--b", "Cannot have -- or .. in repo_id"),
])
def test_what_can_not_be_fetched_is_one_line(server, capsys, name, reason):
    commits = server.repositories["tiny/lm"]
    server.repositories["tiny/gated"] = commits
    server.gated.add("tiny/gated")
    shutil.copytree(commits["1" * 40], "hub/old")
    Path("hub/old/model.safetensors").unlink()
    server.repositories["tiny/old"] = {"5" * 40: Path("hub/old").absolute()}
    status, error = stopped(evaluate.main, [name], capsys)
    assert status == 2 and error.count("\n") == 1
    assert f"{name}: no directory here, and can't be fetched" in error and reason in error


@NEEDS_PACKAGE
@pytest.mark.parametrize("offline", [False, True])
def test_no_connection_and_an_empty_cache_is_one_line(server, monkeypatch, offline):
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import_anew(monkeypatch)
    started = time.perf_counter()
    with pytest.raises(UserError, match="no connection, and the cache doesn't hold all of it"):
        hub.fetch("tiny/lm")
    assert time.perf_counter() - started < 10
