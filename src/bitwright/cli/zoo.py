"""`bitwright zoo`: trained nets with their cards; measures one again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_zoo
from bitwright.cli.output import Output
from bitwright.errors import InputError, Negative

if TYPE_CHECKING:
    from bitwright.zoo import Card


def zoo(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A net, to print its card.", autocompletion=complete_zoo)] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure its accuracy again, on all test images of its data set.")
    ] = False,
    root: Annotated[
        str | None, typer.Option("--root", help="Folder or URL with the files of float nets. [default: BITWRIGHT_ZOO]")
    ] = None,
    data_root: Annotated[
        str | None, typer.Option("--data-root", help="Where the data set lies. [default: BITWRIGHT_DATA]")
    ] = None,
) -> None:
    """List the trained nets, print the card of one, or measure it again."""
    out: Output = ctx.obj
    from bitwright import zoo as nets
    from bitwright.numbers import kb, percent

    if name is None:
        if check:
            raise InputError("zoo --check: which net? Try: bitwright zoo NAME --check", code="usage")
        found = [nets.card(n) for n in nets.list()]
        out.data["nets"] = [card.model_dump() for card in found]
        rows = [(c.name, c.form, percent(c.accuracy), c.epochs, kb(c.bytes), c.summary) for c in found]
        out.table(("net", "form", "test %", "epochs", "kB", "what it is"), rows, right=(2, 4))
        out.next(f"bitwright zoo {next((c.name for c in found if c.form == 'packed'), 'NAME')}", "its card")
        return
    card = nets.card(name)
    out.data["card"] = card.model_dump()
    for key, value in _lines(card):
        out.prose(f"{key:12} {value}", 13)
    if check:
        _check(out, card, root, data_root)
        return
    out.next(f"bitwright zoo {card.name} --check", "measures its accuracy again")


def _lines(card: Card) -> list[tuple[str, str]]:
    from bitwright.numbers import kb, ms, smaller

    start = f", from {card.parent}" if card.parent else ""
    pixels = "normalized" if card.normalize else "0 or 1" if card.binarize else "k / 255"
    than_float = (
        f", float {kb(card.float_bytes)} kB: {smaller(card.float_bytes, card.bytes)}" if card.float_bytes else ""
    )
    speed = ""
    if card.latency_ms is not None:
        peers = ", ".join(f"{peer} {ms(t)}" for peer, t in card.peers.items())
        speed = f"{ms(card.latency_ms)} ms; in the same run, ms: {peers} ({card.measured_on})"
    return [
        (key, value)
        for key, value in (
            ("net", f"{card.name} ({card.form})"),
            ("what", card.summary),
            ("accuracy", f"{100 * card.accuracy:.2f} % of {card.images:,} test images of {card.data}, {card.right:,} right"),
            ("before", "" if card.trained is None else f"{100 * card.trained:.2f} % before packing"),
            ("training", f"{card.epochs} epochs, seed {card.seed}{start}; {card.date[:10]}, {card.made_on}"),
            ("input", f"{'x'.join(map(str, card.input))}, pixels {pixels}"),
            ("size", f"{kb(card.bytes)} kB{than_float}"),
            ("time", speed),
            ("source", card.source),
            ("made by", f"{card.command} (commit {card.commit[:12]})"),
            ("license", card.license),
        )
        if value
    ]  # fmt: skip


def _check(out: Output, card: Card, root: str | None, data_root: str | None) -> None:
    from bitwright import zoo as nets
    from bitwright.training.evaluate import evaluate

    out.head(f"zoo {card.name}: measuring on the test images of {card.data}")
    found = evaluate(nets.load(card.name, root=root), nets.data(card, "test", data_root), normalize=card.normalize)
    right = round(found.top1 * found.images)
    out.data["measured"] = {"right": right, "images": found.images}
    if (right, found.images) != (card.right, card.images):
        raise Negative(
            f"zoo {card.name}: {right:,} of {found.images:,} right here, its card says {card.right:,} of {card.images:,}",
            code="zoo-accuracy",
            given=str(right),
        )
    out.verdict(f"same  {right:,} of {found.images:,} right, as the card says")
