"""nbmake tests the chapters; one that was executed before, by `make book` too, is not executed again."""

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import chapters
import pytest
from nbmake.nb_run import NotebookRun
from nbmake.pytest_items import NotebookFailedException, NotebookFile, NotebookItem

REUSED = "reused"  # the property of a report whose chapter was not executed


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option beside nbmake's."""
    text = "execute every chapter, whatever was executed before, and keep none of it"
    parser.addoption("--execute-all", action="store_true", help=text)


class Chapter(NotebookItem):
    """A chapter whose execution is kept, and serves again while nothing has changed that it depends on."""

    def runtest(self) -> None:
        """Pass if the chapter was executed without a failure; otherwise have nbmake execute it, and keep that."""
        option = self.config.option
        kept = None if option.execute_all else chapters.kept(self.path)
        if kept is not None and not kept.failures:
            self.user_properties.append((REUSED, self.path.stem))
            return
        key, start = chapters.key_of(chapters.read(self.path)), time.monotonic()
        result = NotebookRun(
            self.path, option.nbmake_timeout, kernel=option.nbmake_kernel
        ).execute()
        if result.error is not None:
            raise NotebookFailedException(result)
        if option.execute_all:
            return
        with suppress(PermissionError):  # a read-only checkout keeps nothing
            chapters.keep(self.path, result.nb, key, time.monotonic() - start)


class ChapterFile(NotebookFile):
    """A file that nbmake has found."""

    def collect(self) -> Iterator[Chapter]:
        """The chapter."""
        yield Chapter.from_parent(self, filename=str(self.path))


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Put our item in the place of nbmake's."""
    found = yield
    return [
        ChapterFile.from_parent(parent, path=file_path)
        if isinstance(each, NotebookFile)
        else each
        for each in found
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which chapters were not executed."""
    reused = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == REUSED
    ]
    if reused:
        terminalreporter.section("chapters")
        terminalreporter.write_line(
            f"Executed before, and nothing has changed since: {', '.join(sorted(reused))}"
        )
