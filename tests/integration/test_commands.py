"""A command does the same whether it begins as people begin it or is forked from the loaded program."""

from __future__ import annotations

import os

import pytest
from commands import LoadedProgram, run_command


@pytest.mark.parametrize(("words", "code"), [(["rights", "--json"], 0), (["status", "nowhere"], 2)])
def test_both_ways_say_the_same_and_end_alike(words: list[str], code: int) -> None:
    env = {**os.environ, "COLUMNS": "70"}
    loaded = LoadedProgram()
    first, *others = run_command(*words, env=env), loaded.run(words, env), loaded.run(words, env)
    assert first.returncode == code
    assert first.stdout or first.stderr
    for one in others:
        assert (one.returncode, one.stdout, one.stderr) == (code, first.stdout, first.stderr)
