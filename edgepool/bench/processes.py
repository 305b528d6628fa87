"""Processes that help to measure: questions and answers as lines of JSON over pipes.

A helper is `python -m edgepool.bench.MODULE`. It never outlives who started it: when its standard
input ends it stops and removes the folder that it was given.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from edgepool.errors import EdgepoolError, Unavailable

_LINE_BYTES = 4 * 1024 * 1024
_END_S = 4.0
_LEAVE_S = 3.0

Answer = Callable[..., Awaitable[object]]


class Helper:
    """A helper process, started on entering and surely ended on leaving.

    `within` are words before the command, such as 'ip netns exec NAME'.
    """

    def __init__(self, module: str, folder: Path, within: Sequence[str] = ()) -> None:
        self._module = module
        self._folder = folder
        self._within = within
        self._errors = folder / f"{module}-{id(self):x}.err"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Helper:
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._within,
                sys.executable,
                "-m",
                f"edgepool.bench.{self._module}",
                str(self._folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=_LINE_BYTES,
                start_new_session=True,  # Ctrl-C is for the one who started it
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        if kind is None:
            with suppress(OSError, TimeoutError, Unavailable):
                async with asyncio.timeout(_END_S):
                    await self.ask("end")
        process.stdin.close()
        try:
            async with asyncio.timeout(_LEAVE_S):  # it cleans up what only it knows of
                await process.wait()
        except TimeoutError:
            pass
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def ask(self, question: str, **arguments: object) -> Any:
        """Have the helper answer; Unavailable says why it did not."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        with suppress(OSError, RuntimeError):  # uvloop raises the latter if the process has been killed
            process.stdin.write(msgspec.json.encode([question, arguments]) + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        if not line:
            told = self._errors.read_text(errors="replace").strip().splitlines()
            raise Unavailable(f"a helper process ended: {told[-1][:300] if told else 'it said nothing'}")
        answer, problem = msgspec.json.decode(line)
        if problem:
            raise Unavailable(f"a helper process failed at '{question}': {problem}")
        return answer


def serve(answers: Callable[[Path], dict[str, Answer]]) -> None:
    """Be a helper: answer by name until told to end or nobody is there any more.

    `answers` is called inside the event loop. It must hold 'end', which stops everything.
    """
    folder = Path(sys.argv[1])
    loop_factory = None
    with suppress(ImportError):
        loop_factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        orderly = runner.run(_serve(answers, folder))
    if not orderly:
        shutil.rmtree(folder, ignore_errors=True)


async def _serve(make_answers: Callable[[Path], dict[str, Answer]], folder: Path) -> bool:
    """Return True if the end was asked for, False if the one who asked is gone."""
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    answers = make_answers(folder)
    line = await reader.readline()
    while line:
        question, arguments = msgspec.json.decode(line)
        working = asyncio.create_task(_answer(answers[question], arguments))
        following = asyncio.create_task(reader.readline())  # nothing comes before the answer but the end
        await asyncio.wait((working, following), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            break
        with suppress(OSError):
            sys.stdout.write(msgspec.json.encode(working.result()).decode() + "\n")
            sys.stdout.flush()
        if question == "end":
            following.cancel()
            return True
        line = await following
    await answers["end"]()
    return False


async def _answer(answer: Answer, arguments: dict[str, Any]) -> tuple[object, str]:
    try:
        return await answer(**arguments), ""
    except (EdgepoolError, OSError, TimeoutError) as error:
        return None, str(error) or type(error).__name__
