"""What README and the pages claim, each number computed from the CSV file that holds it: the index at the top of the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from results_recipes import FLOAT_INPUTS
from results_tables import percent, read, table

Row = dict[str, str]


@dataclass(frozen=True)
class Claim:
    """`number` as the pages write it; `section` is the heading of the table that has it."""

    what: str
    number: str
    section: str
    command: str


def index() -> str:
    """The table, and a line on what its ratios are against."""
    rows = [[c.what, c.number, f"[{c.section}](#{anchor(c.section)})", f"`python bench/{c.command}`"] for c in claims()]
    head = table(["claim", "number", "table", "command"], rows)
    return f"""## Claims

Each number is computed from the CSV file that its command wrote. The table below it has all rows, also those where we lose.
Speeds are compared with the fastest program of any precision measured in the same run (torch, onnxruntime and, where the table has
it, OpenVINO, each in those of fp32, bf16 and int8 that it supports). Sizes compare file with file. One seed unless stated otherwise.

{head}

"""


def anchor(heading: str) -> str:
    """The link that a heading gets.

    >>> anchor("Which layers get two bits? CIFAR-100")
    'which-layers-get-two-bits-cifar-100'
    """
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.strip().replace(" ", "-")


def claims() -> list[Claim]:
    """All of them; a file that is not there has none."""
    return [
        *_speed(),
        *_recipes(),
        *_zoo(),
        *_short(),
        *_newcomer(),
        *_training(),
        *_gates(),
        *_selfprune(),
        *_strangers(),
        *_binary_peers(),
        *_compression(),
        *_learned_gradients(),
    ]


def times(value: float) -> str:
    """
    >>> times(1.82), times(0.89)
    ('1.8x', '0.9x, slower')
    """
    return f"{value:.1f}x" + (", slower" if value < 0.95 else "")


def span(values: Iterable[float], digits: int = 1, unit: str = "x") -> str:
    """
    >>> span([1.79, 0.77])
    '0.8 to 1.8x'
    """
    values = list(values)
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}{unit}"


def _speed() -> Iterator[Claim]:
    found: dict[str, list[Row]] = {}
    for r in read("speed.csv"):
        found.setdefault(r["case"], []).append(r)
    names = {
        "conv 256x14x14": "3x3 convolution, 256 channels, 14x14, W1A1",
        "vgg_small w1a1-8": "`vgg_small`, recipe `w1a1-8`",
        "bireal_resnet18 bireal": "`bireal_resnet18` at 224x224, float stem",
    }
    for case, what in names.items():
        rest = [r for r in found.get(case, [])[1:] if r["latency_ms"]]
        if rest:
            best = min(rest, key=lambda r: float(r["latency_ms"]))
            yield Claim(
                f"{what}: speed, kernels {found[case][0]['kernels']}, against {best['name']}",
                times(float(best["ratio"])),
                "Speed",
                "speed.py",
            )
    for r in read("cifar10_packed.csv"):
        peers = {
            k.removesuffix("_ms"): float(v) for k, v in r.items() if k.endswith("_ms") and k != "bitwright_ms" and v
        }
        if r["row"] == "bireal8" and peers:
            best = min(peers, key=lambda k: peers[k])
            yield Claim(
                f"`bireal_resnet20`, 8-bit stem: speed against {best}", times(peers[best] / float(r["bitwright_ms"])),
                "Short trainings: CIFAR-10, all 50,000 training images", "cifar10.py measure",
            )  # fmt: skip


def _recipes() -> Iterator[Claim]:
    found = read("recipes.csv")
    cpu = f"{found[0]['cpu']}, kernels {found[0]['kernels']}" if found else ""
    for model in ("vgg_small", "bireal_resnet18", "bireal_resnet20"):
        for r in found:
            if (r["model"], r["recipe"]) == (model, "w1a1-8"):
                name, ratio = fastest(r)
                yield Claim(
                    f"`{model}`, recipe `w1a1-8`: speed, {cpu}, against {name}",
                    times(ratio),
                    "Every recipe",
                    "recipes.py",
                )
    few = [r for r in found if not r["recipe"].startswith(("w1a1", "bireal", "bwn", "ttq", "twn"))]
    for models in (("vgg_small", "resnet18"), ("resnet20",)):
        rows = [r for r in few if r["model"] in models]
        if rows:
            named = " and ".join(f"`{m}`" for m in models)
            yield Claim(f"2 to 8 bits on {named}: speed, {cpu}, against the fastest program", span(fastest(r)[1] for r in rows),
                        "Every recipe", "recipes.py")  # fmt: skip
    if few:
        yield Claim(f"2 to 8 bits, all three nets: speed, {cpu}, against the best fp32 program",
                    span(float(r["ratio_fp32"]) for r in few), "Every recipe", "recipes.py")  # fmt: skip
    ternary = [r for r in found if r["recipe"].startswith(("ttq", "twn"))]
    for inputs in ("8-bit", "float"):
        if rows := [r for r in ternary if r["recipe"].endswith("-a8") == (inputs == "8-bit")]:
            yield Claim(f"ternary weights, {inputs} inputs: speed, {cpu}, against the fastest program",
                        span(fastest(r)[1] for r in rows), "Every recipe", "recipes.py")  # fmt: skip
    narrow = [r for r in read("recipes_avx2.csv") if r["ratio_int8"]]
    for model in ("vgg_small", "bireal_resnet18", "bireal_resnet20"):
        for r in narrow:
            if (r["model"], r["recipe"]) == (model, "w1a1-8"):
                name, ratio = fastest(r)
                yield Claim(f"`{model}`, recipe `w1a1-8`: speed, {r['cpu']}, kernels avx2, against {name}", times(ratio),
                            "Every recipe", "recipes.py")  # fmt: skip
    if narrow:
        coded = [fastest(r)[1] for r in narrow if r["recipe"] not in FLOAT_INPUTS]
        floats = [float(r["ratio_fp32"]) for r in narrow if r["recipe"] in FLOAT_INPUTS]
        cpu = f"{narrow[0]['cpu']}, kernels avx2"
        yield Claim(
            f"all recipes with codes on all nets: speed, {cpu}, against the fastest program",
            span(coded),
            "Every recipe",
            "recipes.py",
        )
        yield Claim(
            f"weights of few bits, float inputs: speed, {cpu}, against the best fp32 program",
            span(floats),
            "Every recipe",
            "recipes.py",
        )


def fastest(r: Row) -> tuple[str, float]:
    """The fastest peer of any precision in a row of recipes.csv, and its time over ours.

    >>> fastest({"best_int8": "a", "int8_ms": "2", "ratio_int8": "0.5", "best_fp32": "b", "fp32_ms": "1", "ratio_fp32": "0.25"})
    ('b', 0.25)
    """
    there = [p for p in ("int8", "bf16", "fp32") if r.get(f"{p}_ms")]
    best = min(there, key=lambda p: float(r[f"{p}_ms"]))
    return r[f"best_{best}"], float(r[f"ratio_{best}"])


def _zoo() -> Iterator[Claim]:
    rows = {r["row"]: r for r in read("zoo.csv")}
    start, packed = rows.get("cifar10-resnet20-float"), rows.get("cifar10-resnet20-bwn")
    where = ("Nets of the zoo", "zoo.py run")
    if start:
        yield Claim(
            "`resnet20` on CIFAR-10, float, 40 epochs: test accuracy", f"{percent(start['accuracy'])} %", *where
        )
    if start and packed:
        yield Claim("BWN from it, 20 epochs more: test accuracy", f"{percent(packed['accuracy'])} %", *where)
        for name, row in (("TTQ", "ttq"), ("DoReFa W1A32", "dorefa-w1a32")):
            if r := rows.get(f"cifar10-resnet20-{row}"):
                yield Claim(f"{name} from it, 20 epochs more: test accuracy", f"{percent(r['accuracy'])} %", *where)
        before, after = int(start["bytes"]), int(packed["bytes"])
        yield Claim(
            "BWN from it: file, and the float file over it",
            f"{after / 1000:.1f} kB, {before / after:.1f}x smaller",
            *where,
        )


def _short() -> Iterator[Claim]:
    trained = {r["row"]: r for r in read("cifar10_accuracy.csv")}
    where = ("Short trainings: CIFAR-10, all 50,000 training images", "cifar10.py")
    for r in read("cifar10_packed.csv"):
        if r["row"] == "bireal8":
            yield Claim(
                "`bireal_resnet20` at 1 or 8 bits, 5 epochs: test accuracy",
                f"{percent(trained['bireal8']['accuracy'])} %",
                *where,
            )
            yield Claim("its float net: test accuracy", f"{percent(trained['float-bireal']['accuracy'])} %", *where)
            yield Claim(
                "packed: images with the trained net's class",
                f"{int(r['same_class']):,} of {int(r['images']):,}",
                *where,
            )
            sizes = f"{int(r['file_bytes']) / 1000:.1f} kB against {int(r['float_bytes']) / 1000:,.0f} kB"
            yield Claim("packed: its file against the float net's", sizes, *where)


def _newcomer() -> Iterator[Claim]:
    rows = {r["net"]: r for r in read("newcomer_results.csv")}
    if not rows:
        return
    where = ("A shipped experiment, as README tells it", "newcomer.py")
    yield Claim("shipped experiment, six epochs a stage: float net", f"{percent(rows['float']['accuracy'])} %", *where)
    yield Claim("shipped experiment: its W1A1 net", f"{percent(rows['trained']['accuracy'])} %", *where)
    sizes = [int(rows[net]["bytes"]) / 1000 for net in ("bitwright", "float")]
    yield Claim(
        "shipped experiment: packed file against the float net's",
        f"{sizes[0]:.1f} kB against {sizes[1]:,.0f} kB",
        *where,
    )
    peers = [r for r in rows.values() if r["ratio"]]
    best = min(peers, key=lambda r: float(r["latency_ms"]))
    yield Claim(
        f"shipped experiment: speed, kernels {best['kernels']}, against {best['net']}",
        times(float(best["ratio"])),
        *where,
    )


def _training() -> Iterator[Claim]:
    found = [r for r in read("training.csv") if float(r["ratio"]) != 1]
    for case, what in (
        ("bireal_resnet20 bireal", "`bireal_resnet20` in W1A1"),
        ("resnet20 lsq-w2a2", "`resnet20` with LSQ at 2/2 bits"),
    ):
        for name, end in (("bitwright", ""), ("plain torch", ", in plain torch operators")):
            if rows := [float(r["ratio"]) for r in found if (r["case"], r["name"]) == (case, name)]:
                yield Claim(
                    f"training step of {what}{end}, in float steps", span(rows, 2, ""), "Training steps", "training.py"
                )


def _gates() -> Iterator[Claim]:
    rows = {r["row"]: r for r in read("gating.csv") if r["seed"] == "0"}
    half, dense = rows.get("FBS keep 0.5"), rows.get("dense")
    if half and dense:
        yield Claim(
            "`fbs` with half of the channels: test accuracy", f"{percent(half['accuracy'])} %", "Gates", "gating.py"
        )
        yield Claim(
            "`fbs`: MACs of the dense net over its own", f"{float(half['mac_reduction']):.2f}", "Gates", "gating.py"
        )
        yield Claim(
            "the dense net, trained equally long without gates", f"{percent(dense['accuracy'])} %", "Gates", "gating.py"
        )


def _selfprune() -> Iterator[Claim]:
    for r in read("selfprune.csv"):
        if r["row"] in ("mnist", "fashion"):
            numbers = f"{percent(r['accuracy'], 1)} %, {percent(r['on_share'])} %"
            yield Claim(f"784-4000x3-10 that prunes itself, {r['row']}: test accuracy, weights on", numbers,
                        "Nets that prune themselves", "selfprune.py")  # fmt: skip


def _strangers() -> Iterator[Claim]:
    if found := read("strangers.csv"):
        graph = sum(r["form"] == "graph" for r in found)
        yield Claim("architectures of others, two recipes each: rows that convert as one graph", f"{graph} of {len(found)}",
                    "Architectures of others", "strangers.py")  # fmt: skip


def _binary_peers() -> Iterator[Claim]:
    found = read("binary_peers.csv")
    for program, layers, label in (
        ("larq_engine, indirect", "conv", "1-bit 3x3 convolutions: speed, against Larq Compute Engine"),
        ("bnn_lab, ", "linear", "1-bit fully connected layers: speed, against bnn-lab"),
    ):
        rows = [r for r in found if r["program"].startswith(program) and r["case"].startswith(layers) and r["ratio"]]
        if rows:
            yield Claim(f"{label}, {rows[0]['cpu']}", span(float(r["ratio"]) for r in rows),
                        "1-bit layers in other programs for 1-bit nets", "binary_peers.py")  # fmt: skip


def _compression() -> Iterator[Claim]:
    where = "Compression without retraining", "layerwise.py"
    for r in read("layerwise.csv"):
        if r["case"] == "resnet20 cifar10" and r["method"] in ("magnitude", "l_obs", "gptq 4 bits"):
            yield Claim(
                f"`resnet20` without retraining, {r['method']}: test accuracy", f"{float(r['after']):.2f} %", *where
            )
        if (r["case"], r["method"]) == ("lenet300 mnist", "l_obs 8 rounds, global"):
            yield Claim("LeNet-300-100 on MNIST, 7 % of its weights: points lost", f"{float(r['lost']):.2f}", *where)
    where = "A few levels from 500 unlabeled images", "l_dnq.py"
    for r in read("l_dnq.csv"):
        if r["row"] in ("ternary rounded", "ternary layers alone", "ternary"):
            yield Claim(
                f"`resnet20` without retraining, {r['row']}: test accuracy", f"{percent(r['accuracy'])} %", *where
            )


def _learned_gradients() -> Iterator[Claim]:
    found = read("metaquant.csv")
    for optimizer, name in (("sgd", "SGD"), ("adam", "Adam")):
        mean = {}
        for gradient in ("STE", "FC-Grad"):
            values = [
                100 * float(r["accuracy"]) for r in found if (r["optimizer"], r["gradient"]) == (optimizer, gradient)
            ]
            mean[gradient] = sum(values) / max(1, len(values))
        if found:
            yield Claim(f"FC-Grad over the straight-through estimator under {name}, mean of three seeds: points",
                        f"{mean['FC-Grad'] - mean['STE']:.2f}", "Learned gradients", "metaquant.py")  # fmt: skip
