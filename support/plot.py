"""Figures."""
import hashlib
import inspect
from pathlib import Path


def save_figure(figure, file: Path, sources, **how) -> None:
    """Save a figure that says what it was drawn from: git keeps no times, and tests/test_figures.py
    must be able to tell when a figure is older than its data or its script.

    sources: the data (its repr counts), and the functions and classes that draw it (their text)."""
    digest = hashlib.sha256()
    for source in sources:
        text = inspect.getsource(source) if callable(source) else repr(source)
        digest.update(text.encode())
    figure.savefig(file, metadata={"Sources": digest.hexdigest()}, **how)
