"""The list of commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitwright.cli import bench, convert, cost, data, demo, doctor, eval, experiments, help, import_, methods, plan, recipes, report, train

EPILOG = (
    "Every command also takes --json (one object on stdout), --quiet (verdict and errors only), --no-color and "
    "--debug (traceback). Exit codes: 0 done (also WARN), 1 the answer is no, 2 wrong use or input, "
    "3 internal error, 130 stopped."
)

# rich_markup_mode=None: plain help without boxes, and without importing rich for it
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"max_content_width": 100})
for _command in (
    demo.demo, methods.methods, recipes.recipes, experiments.experiments, plan.plan, train.train, eval.eval, convert.convert, bench.bench, cost.cost, report.report,
):  # fmt: skip
    app.command(epilog=EPILOG)(_command)
app.command("import", epilog=EPILOG)(import_.import_)
app.command(epilog=EPILOG)(doctor.doctor)
app.command("help", epilog=EPILOG)(help.help_)
app.add_typer(data.app, name="data", epilog=EPILOG)


def _version(wanted: bool) -> None:
    if wanted:
        from bitwright.version import __version__

        print(f"bitwright {__version__}")
        raise typer.Exit()


@app.callback(epilog=EPILOG)
def bitwright(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Make a PyTorch network 1 to 8 bits small, and prove it is faster on your CPU. Or be told why not."""


def command() -> Any:
    """What `run` calls."""
    return typer.main.get_command(app)
