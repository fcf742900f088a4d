"""`main`: from arguments to an exit code. Every way a command can end is decided here, once."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bitwright.cli.output import Output
from bitwright.errors import BitwrightWarning, InputError, Negative

FLAGS = {"--json": "as_json", "--quiet": "quiet", "--debug": "debug"}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The `bitwright` command."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Runs one command and returns its exit code; never raises, never prints a traceback without --debug."""
    options: dict[str, Any] = {name: flag in argv for flag, name in FLAGS.items()}
    if "--no-color" in argv:
        options["color"] = False
    out = Output(**options)
    argv = [a for a in argv if a not in FLAGS and a != "--no-color"] or ["--help"]
    out.command = next((a for a in argv if not a.startswith("-")), "")
    try:
        with _warnings_to(out):
            _dispatch(argv, out)
        return out.finish()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return out.exit_code
    except BaseException as error:
        if out.debug:
            traceback.print_exc()
        _explain(error, argv, out)
        return out.finish()


def _dispatch(argv: list[str], out: Output) -> None:
    from bitwright.cli.app import command

    code = command().main(args=argv, prog_name="bitwright", standalone_mode=False, obj=out)
    if isinstance(code, int) and code:  # typer.Exit, e.g. from shell completion
        out.exit_code = code


def _explain(error: BaseException, argv: list[str], out: Output) -> None:
    """One line for every kind of end."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        out.fail(f"{out.command}: stopped", 130, _error("stopped", f"{out.command}: stopped"))
    elif isinstance(error, InputError):
        out.fail(str(error), 1 if isinstance(error, Negative) else 2, dict(error.to_dict()))
    elif hasattr(error, "format_message"):  # usage errors of typer, whichever click it carries
        ctx = getattr(error, "ctx", None)
        name = " ".join(str(ctx.command_path).split()[1:]) if ctx else ""
        text = f"{name}: " if name else ""
        text += str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        remedy = f"bitwright {out.command} --help" if text.startswith(f"{out.command}:") else "bitwright --help"
        out.fail(f"{text}. Try: {remedy}", 2, {**_error("usage", text), "try": remedy})
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text = f"{out.command}: {name}{error.strerror or error}"
        out.fail(text, 2, {**_error("file", text), "given": error.filename})
    elif isinstance(error, MemoryError):
        text = f"{out.command}: out of memory. Try a smaller --batch or --input"
        out.fail(text, 2, _error("memory", text))
    else:
        path = _write_details(error, argv)
        first = next(iter(str(error).splitlines()), "")
        text = f"internal error in {out.command or 'bitwright'} (please report): {type(error).__name__}: {first}"
        out.fail(f"{text}; details: {path}", 3, {**_error("internal", text), "details": str(path)})


def _error(code: str, message: str) -> dict[str, Any]:
    return dict(InputError(message, code=code).to_dict())


def _write_details(error: BaseException, argv: list[str]) -> Path:
    """Traceback, versions and command, in a new folder: nothing of the user's is overwritten."""
    from bitwright.measure.machine import machine

    path = Path(tempfile.mkdtemp(prefix="bitwright-")) / "error.txt"
    facts = "\n".join(f"{key}: {value}" for key, value in machine(1).items())
    trace = "".join(traceback.format_exception(error))
    path.write_text(f"bitwright {' '.join(argv)}\n\n{trace}\n{facts}\n", encoding="utf-8")
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
