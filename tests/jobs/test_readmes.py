"""The READMEs: their commands parse, and the files, links and make targets that they name exist."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from repository import ROOT

from filters import FILTERS
from model.config import from_dict as training_config
from model.presets import PRESETS
from pipeline.cli import OVERRIDE, TRAINER, cli
from pipeline.config.options import override
from pipeline.config.recipe import load_recipe
from pipeline.config.video_models import video_model
from pipeline.export.export import NAMES

FOLDERS = ("captioners", "filters", "jobs", "model", "pipeline", "tests")
FILES = [ROOT / "Makefile", *ROOT.glob("*.*"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.*"))]
READMES = [path for path in FILES if path.name == "README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:clipmill|make) [^`]+)`")
LINK = re.compile(r"\]\(([^)#]+)")
NAMED_FILE = re.compile(r"`([a-z_][a-z_./-]*(?:\.(?:py|yaml|sh|npz)|/))`")  # without the capitals of placeholders
OF_TRAINERS = {"dataset.py", "preprocess.sh", "datasets.yaml"}  # that exports write
JOB_OPTIONS = (ROOT / "model" / "cli.py").read_text() + (ROOT / "pipeline" / "cli.py").read_text()


def shell_lines(readme: Path) -> Iterator[str]:
    """Yield the lines of a README's shell blocks, and the commands inside its sentences."""
    text = readme.read_text()
    for language, block in BLOCK.findall(text):
        if language == "bash":
            yield from block.splitlines()
    yield from INLINE.findall(BLOCK.sub("", text))


def commands(program: str) -> list[Any]:
    """Return the words after `program`, one test case for each command of the READMEs that has it."""
    cases = []
    for readme in READMES:
        for command in (part for line in shell_lines(readme) for part in line.split("&&")):
            words = shlex.split(command, comments=True)
            if program in words and (after := words[words.index(program) + 1 :]):
                cases.append(pytest.param(after, id=f"{readme.relative_to(ROOT)}: {' '.join(after)}"))
    return cases


class Parsed(Exception):
    """Carries the namespace out of a command that is not to run."""


def parsed_by(module: str, argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return what the parser inside `module.main` makes of `argv`; the command ends there."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def parse_and_stop(parser: argparse.ArgumentParser, _: object, parse: Any = parse) -> None:
            raise Parsed(parse(parser, list(argv)))

        monkeypatch.setattr(argparse.ArgumentParser, name, parse_and_stop)
    with pytest.raises(Parsed) as caught:
        import_module(module).main(list(argv))
    namespace = caught.value.args[0]
    assert isinstance(namespace, argparse.Namespace)
    return namespace


def check_training_options(words: Sequence[str], preset: str | None) -> None:
    """Check `key=value` words; what a base decides needs the base's files and is not checked."""
    values = dict(PRESETS[preset or "cpu"])
    override(values, [word for word in words if re.match(r"\w+=", word)])
    training_config(values)


def check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, *argv = words
    assert name in cli.commands
    if not argv:  # a sentence that mentions the command
        return
    if name in TRAINER:
        namespace = parsed_by(TRAINER[name][0], argv, monkeypatch)
        if name in ("train", "encode"):
            check_training_options(namespace.words, namespace.preset)
        return
    given = cli.commands[name].make_context(name, list(argv)).params
    if name in ("build", "plan"):
        recipe = load_recipe(given["recipe"], [word for word in given["words"] if OVERRIDE.match(word)])
        assert recipe.pack.model is None or video_model(recipe.pack.model)
    if name == "select":
        load_recipe("embedded", given["overrides"])
    if name == "export":
        assert given["to"] in NAMES
        assert given["model"] is None or video_model(given["model"])


@pytest.mark.parametrize("words", commands("clipmill"))
def test_every_clipmill_command_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(words, monkeypatch)


@pytest.mark.parametrize("words", commands("pipeline.cli"))
def test_every_command_under_torchrun_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(words, monkeypatch)


@pytest.mark.parametrize("words", commands("python"))
def test_every_job_exists_and_has_the_options_given(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script, *argv = words
    source = (ROOT / script).read_text() + JOB_OPTIONS
    assert [word for word in argv if word.startswith("--") and f'"{word}"' not in source] == []
    if script == "jobs/curate.py":
        check_command(["build", *argv], monkeypatch)


@pytest.mark.parametrize("words", commands("make"))
def test_every_make_target_exists(words: list[str]) -> None:
    target, *variables = words
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    names = [word.removeprefix("NAME=") for word in variables if word.startswith("NAME=")]
    assert all(len(list((ROOT / "tests" / "benchmarks").rglob(f"{name}.py"))) == 1 for name in names)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_named_file_exists(readme: Path) -> None:
    text = BLOCK.sub("", readme.read_text())
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (readme.parent / link).exists()] == []
    paths = [
        f"{path.as_posix()}{'/' if path.is_dir() else ''}" for path in [*FILES, *{q for p in FILES for q in p.parents}]
    ]
    missing = [name for name in NAMED_FILE.findall(text) if not any(path.endswith(f"/{name}") for path in paths)]
    assert set(missing) - OF_TRAINERS == set()


def test_the_readme_of_the_filters_has_a_row_for_every_score() -> None:
    rows = re.findall(r"^\| (\w+)\*? \| ([^|]+) \|", (ROOT / "filters" / "README.md").read_text(), re.MULTILINE)
    named = {f"{name}_{score.strip()}" for name, scores in rows for score in scores.split(",")}
    classes = {name: resolve_name(path) for name, path in FILTERS.items()}
    assert set(classes) - {name for name, _ in rows} == set(), "filters/README.md has no row of these"
    columns = {column for filter_class in classes.values() for column in getattr(filter_class, "columns", ())}
    assert columns - named == set(), (
        "filters/README.md has no row of these"
    )  # those of concepts and reference depend on their options


def test_every_folder_has_the_guide_that_the_readme_names_and_the_readme_is_two_screens() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"]({folder}/README.md)" in text for folder in FOLDERS if folder != "tests")
    assert len(text.splitlines()) <= 130
