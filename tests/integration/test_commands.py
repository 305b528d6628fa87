"""A command does the same whether it begins as people begin it or is forked from the loaded program."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from commands import LoadedProgram, run_command


@pytest.mark.parametrize(("words", "code"), [(["rights", "--json"], 0), (["status", "nowhere"], 2)])
def test_both_ways_say_the_same_and_end_alike(words: list[str], code: int) -> None:
    env = {**os.environ, "COLUMNS": "70"}
    first = run_command(*words, env=env)
    with closing(LoadedProgram()) as loaded:
        others = [loaded.run(words, env) for _ in range(2)]
    assert first.returncode == code
    assert first.stdout or first.stderr
    for one in others:
        assert (one.returncode, one.stdout, one.stderr) == (code, first.stdout, first.stderr)
