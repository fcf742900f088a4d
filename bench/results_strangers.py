"""The section of bench/strangers.py in docs/results/README.md."""

from __future__ import annotations

from collections import Counter

from results_tables import listed, machine, number, read, table


def strangers() -> str:
    """Empty while there are no rows."""
    found = read("strangers.csv")
    if not found:
        return ""
    rows = [
        [
            r["architecture"], f"`{r['recipe']}`", r["form"], r["slot_layers"], r["bits"], r["int8"], r["on_disk"],
            f"{r['float']}: {r['why_float']}" if r["why_float"] else r["float"],
            f"{float(r['largest_difference']):.0e}" if r["largest_difference"] else "-", spread(r, "ms"),
            f"{spread(r, 'int8_ms')} {r['int8_peer']}" if r["int8_ms"] else "-",
            f"{float(r['ratio']):.2f}" if r["ratio"] else "-", r["note"],
        ]
        for r in found
    ]  # fmt: skip
    head = ["architecture", "recipe", "form", "layers with parts", "bits", "int8", "bits on disk", "float: why", "largest difference",
            "ms (quartiles)", "best int8 ms", "int8 / ours", "note"]  # fmt: skip
    return f"""## Architectures of others

    python bench/strangers.py

Models as users may have them: small nets written in the style of the originals (`tests/strangers`), with fresh weights and one
training step. Form, layers and speed depend on nothing else. Form: "graph" is one file that runs without the model's code, "layers" is the user's
module with packed layers in it. "Bits on disk": 1-bit weights whose inputs are float, expanded when they are loaded. The largest
difference is over all outputs, as a share of the largest value of its output in the trained net. Batch 1; our net and the faster of
torch and onnxruntime in int8 take turns, and above 1 ours is faster. These nets are far smaller than those in use; the
speed of nets of common size is in the section above. {machine("strangers.csv")}.

{listed(sentences(found))}{table(head, rows)}

"""


def spread(r: dict[str, str], key: str) -> str:
    """Median and quartiles."""
    quartiles = f" ({number(r[f'{key}_q1'])}-{number(r[f'{key}_q3'])})" if r.get(f"{key}_q1") else ""
    return f"{number(r[key])}{quartiles}" if r[key] else "-"


def sentences(found: list[dict[str, str]]) -> list[str]:
    """How many convert, in which form, and how many of the layers with parts are packed.

    >>> row = {"architecture": "a", "form": "graph", "slot_layers": "3", "bits": "1", "int8": "1", "on_disk": "0", "float": "1"}
    >>> sentences([row, row | {"form": "layers", "float": "0", "bits": "2"}, row | {"architecture": "b", "form": ""}])
    ['2 of 3 rows convert: 1 in graph form (50 %), 1 in layer form.', 'Of 6 layers with parts 5 are packed, 1 stays float with its reason.', 'Not converted: b.']
    """
    converted = [r for r in found if r["form"]]
    if not converted:
        return ["No row converts."]
    forms = Counter(r["form"] for r in converted)
    share = 100 * forms["graph"] / len(converted)
    text = f"{len(converted)} of {len(found)} rows convert: {forms['graph']} in graph form ({share:.0f} %), {forms['layers']} in layer form."
    layers, plain = (sum(int(r[key]) for r in converted) for key in ("slot_layers", "float"))
    stay = "stays float with its reason" if plain == 1 else "stay float with their reasons"
    said = [text, f"Of {layers} layers with parts {layers - plain} are packed, {plain} {stay}."]
    if left := list(dict.fromkeys(r["architecture"] for r in found if not r["form"])):
        said.append(f"Not converted: {', '.join(left)}.")
    return said
