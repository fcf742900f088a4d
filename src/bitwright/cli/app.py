"""The list of commands."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

import typer

from bitwright.cli import (
    analyze,
    bench,
    compress,
    convert,
    cost,
    data,
    demo,
    doctor,
    eval,
    experiments,
    export,
    help,
    import_,
    methods,
    plan,
    recipes,
    report,
    train,
    zoo,
)

EPILOG = (
    "Every command also takes --json (one object on stdout), --quiet (verdict and errors only), -v (more), --plain, "
    "--no-color, --debug (traceback) and --trust (run the Python code that a run directory from elsewhere names). Exit codes: 0 done (also WARN), 1 the answer is no, 2 wrong use or input, "
    "3 internal error, 130 stopped."
)

# rich_markup_mode=None: plain help without boxes, and without importing rich for it
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"max_content_width": 100})
# in the order in which a newcomer meets them, each with one short line for the overview
_COMMANDS = (
    (demo.demo, "demo", "Train, pack, prove and measure small nets in under 90 s."),
    (doctor.doctor, "doctor", "What works on this machine, and what does not."),
    (methods.methods, "methods", "The parts for a layer's slots, with their formulas."),
    (recipes.recipes, "recipes", "The shipped recipes: which parts go where."),
    (experiments.experiments, "experiments", "The shipped experiments: data, model, stages."),
    (plan.plan, "plan", "What a recipe would do to a model, layer by layer."),
    (train.train, "train", "Run an experiment into a run directory."),
    (eval.eval, "eval", "Accuracy of the trained and of the packed net."),
    (convert.convert, "convert", "Pack a trained net, with proof, or say why not."),
    (bench.bench, "bench", "Speed beside the best fp32, bf16 and int8 here."),
    (cost.cost, "cost", "MACs, bit operations, bytes and energy, computed."),
    (report.report, "report", "One HTML page about a run, or several side by side."),
    (zoo.zoo, "zoo", "Trained nets with their cards, ready to load."),
    (import_.import_, "import", "Read a checkpoint of an old research code."),
    (help.help_, "help", "Explain a topic, a warning or an error code."),
)
for _function, _name, _line in _COMMANDS:
    app.command(_name, epilog=EPILOG, short_help=_line)(_function)
for _function, _name, _line in (
    (compress.prune, "prune", "Prune a trained net from a few images."),
    (compress.quantize, "quantize", "Weights of a trained net on few levels."),
    (compress.compress, "compress", "Run any procedure on a trained net."),
):
    app.command(_name, epilog=EPILOG, short_help=_line, context_settings=compress.SETTINGS)(_function)
app.add_typer(
    analyze.app, name="analyze", epilog=EPILOG, short_help="Where a trained net needs bits; sweeps of 0/1 weights."
)
app.add_typer(export.app, name="export", epilog=EPILOG, short_help="Write a packed net as ONNX, C or gates, checked.")
app.add_typer(data.app, name="data", epilog=EPILOG, short_help="Find, download and describe data sets.")


def _version(wanted: bool) -> None:
    if wanted:
        from bitwright.version import __version__

        print(f"bitwright {__version__}")
        raise typer.Exit()


@app.callback(epilog=EPILOG)
def bitwright(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Reduce a PyTorch network to 1 to 8 bits, and prove that it is faster on your CPU, or learn why it is not."""


@cache
def command() -> Any:
    """What `run` calls; to build it takes a tenth of a second."""
    return typer.main.get_command(app)
