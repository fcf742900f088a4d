"""`main`: from arguments to an exit code. Every way a command can end is decided here, once."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

from bitwright import trust
from bitwright.cli.output import Output
from bitwright.errors import BitwrightWarning, InputError, Negative

FLAGS = {
    "--json": "as_json", "--quiet": "quiet", "--debug": "debug", "--plain": "plain", "--verbose": "verbose",
    "-v": "verbose", "--no-color": "no_color", "--trust": "trust",
}  # fmt: skip

STOPPED = 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The `bitwright` command."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Runs one command and returns its exit code; never raises, never prints a traceback without --debug."""
    options, rest = split_flags(argv)
    trusted = options.pop("trust", False)
    out = Output(color=False if options.pop("no_color", False) else None, **options)
    out.command = next((a for a in rest if not a.startswith("-")), "")
    try:
        with _warnings_to(out), _stdout_of(out), trust.asked(trusted):
            _dispatch(rest or ["--help"], out)
            out.settle()
        return out.finish()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return out.exit_code
    except BaseException as error:
        if out.debug:
            traceback.print_exc()
        _explain(error, argv, out)
        return out.finish()


def split_flags(argv: Sequence[str]) -> tuple[dict[str, bool], list[str]]:
    """The flags that every command takes, wherever they stand, and the rest; after `--` nothing is a flag.

    >>> split_flags(["plan", "--json", "--", "--quiet"])
    ({'as_json': True}, ['plan', '--', '--quiet'])
    """
    end = argv.index("--") if "--" in argv else len(argv)
    ours = [a for a in argv[:end] if a in FLAGS]
    return {FLAGS[a]: True for a in ours}, [*(a for a in argv[:end] if a not in FLAGS), *argv[end:]]


def _dispatch(argv: list[str], out: Output) -> None:
    from bitwright.cli.app import command

    try:
        code = command().main(args=argv, prog_name="bitwright", standalone_mode=False, obj=out)
    except SystemExit as done:  # how shell completion ends, and how click ends where the reader has gone
        if isinstance(done.__context__, BrokenPipeError):
            raise done.__context__ from None
        code = done.code
    if code == STOPPED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    if isinstance(code, int) and code:
        out.exit_code = code


@contextmanager
def _stdout_of(out: Output) -> Iterator[None]:
    """With --json stdout holds one object only: help goes into it, and what a user's own model prints goes to stderr."""
    if not out.as_json:
        yield
        return
    text, whole = io.StringIO(), False
    try:
        with redirect_stdout(text):
            yield
        whole = True
    finally:
        printed = text.getvalue()
        if printed and whole and not out.data:
            out.data["text"] = printed.rstrip("\n")
        elif printed:
            print(printed, end="", file=sys.stderr)


def _explain(error: BaseException, argv: list[str], out: Output) -> None:
    """One line for every kind of end."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        out.fail(f"{out.command}: stopped", STOPPED, _error("stopped", f"{out.command}: stopped"))
    elif isinstance(error, InputError):
        out.fail(str(error), 1 if isinstance(error, Negative) else 2, dict(error.to_dict()))
    elif hasattr(error, "format_message"):  # usage errors of typer, whichever click it carries
        ctx = getattr(error, "ctx", None)
        name = " ".join(str(ctx.command_path).split()[1:]) if ctx else ""
        text = f"{name}: " if name else ""
        text += str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        if ctx and name and "No such command" in text:
            text += f". Possible: {', '.join(ctx.command.commands)}"
        remedy = " ".join(["bitwright", *name.split(), "--help"])
        out.fail(f"{text}. Try: {remedy}", 2, {**_error("usage", text), "try": remedy})
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text = f"{out.command}: {name}{error.strerror or error}"
        out.fail(text, 2, {**_error("file", text), "given": error.filename})
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        text = f"{out.command}: out of memory. Try a smaller batch, input or model"
        out.fail(text, 2, _error("memory", text))
    else:
        path = _write_details(error, argv, out.folder)
        first = next(iter(str(error).splitlines()), "")
        text = f"internal error in {out.command or 'bitwright'} (please report): {type(error).__name__}: {first}"
        out.fail(f"{text}; details: {path}", 3, {**_error("internal", text), "details": str(path)})


def _error(code: str, message: str) -> dict[str, Any]:
    return dict(InputError(message, code=code).to_dict())


def _write_details(error: BaseException, argv: list[str], folder: Path | None) -> Path:
    """Traceback, versions and command, in the run directory, else in a new folder: nothing else is overwritten."""
    from bitwright.measure.machine import machine

    facts = "\n".join(f"{key}: {value}" for key, value in machine(1).items())
    trace = "".join(traceback.format_exception(error))
    text = f"bitwright {' '.join(argv)}\n\n{trace}\n{facts}\n"
    if folder is not None:
        with suppress(OSError):  # a read-only run still gets its details somewhere
            (folder / "error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
            return folder / "error.txt"
    path = Path(tempfile.mkdtemp(prefix="bitwright-")) / "error.txt"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


@contextmanager
def _warnings_to(out: Output) -> Iterator[None]:
    """Our warnings become `warn:` lines; those of other libraries are not the user's business here."""
    with warnings.catch_warnings():
        if not out.debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", BitwrightWarning)
        show = warnings.showwarning

        def to_out(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, BitwrightWarning):
                out.warn(str(message))
            else:
                show(message, category, *args, **kwargs)

        warnings.showwarning = to_out
        yield
