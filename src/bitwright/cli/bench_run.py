"""`bitwright bench RUN`: the packed net beside the peers that run its float net; results go into the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitwright.cli.bench import at, show
from bitwright.cli.convert_run import PACKED
from bitwright.cli.output import Output
from bitwright.cli.target import open_run, quoted, stand_in
from bitwright.errors import InputError, Negative

if TYPE_CHECKING:
    from torch import nn

    from bitwright.measure.table import BenchRow, BenchTable
    from bitwright.runs import Run


def bench_run(
    out: Output,
    target: str,
    batch: int,
    threads: int,
    peers: tuple[str, ...],
    rounds: int,
    images: int | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Measures and shows; needs no data set, only shapes, unless the time of single images is asked for."""
    run = open_run(out, target, "bench")
    _check_packed(run)
    if size is not None:
        out.head(f"bench {target}: at another size, so nothing is written into the run")
        show(out, measured(run, batch, threads, peers, rounds, out.warn, size))
        return
    if run.has("bench.json"):
        out.head(f"bench {target}: replaces bench.json and the rows for batch {batch} in results.csv of this run")
    table, found = measure_run(run, batch, threads, peers, rounds, out.warn), run.read_json("convert.json")
    show(out, table, found.get("file_bytes"), found.get("float_bytes"))
    if images is not None:
        _each_image(out, run, threads, images)
    out.next(f"bitwright report {quoted(target)}", "accuracy, size and speed on one page")


def measure_run(
    run: Run,
    batch: int,
    threads: int,
    peers: tuple[str, ...],
    rounds: int,
    warn: Callable[[str], None] = lambda text: None,
) -> BenchTable:
    """Measures; writes bench.json and the rows of results.csv."""
    table = measured(run, batch, threads, peers, rounds, warn)
    run.write_json("bench.json", table.to_dict())
    run.put_results(result_rows(run, table))
    return table


def measured(
    run: Run,
    batch: int,
    threads: int,
    peers: tuple[str, ...],
    rounds: int,
    warn: Callable[[str], None],
    size: tuple[int, int] | None = None,
) -> BenchTable:
    """The times. Code of a run from elsewhere is not run: `warn` says so."""
    from bitwright.cli.model_argument import example
    from bitwright.measure.bench import bench

    packed, shape, classes = _packed(run)
    shape = at(shape, size)
    x = example(shape, batch)
    if size is not None:
        packed(x)  # a net of one size says so before others are measured
    try:
        baseline = _float_net(run, shape, classes)
    except InputError as error:
        if error.code != "run-untrusted":
            raise
        baseline = None
        warn(f"bench: the packed net alone, without other programs: {error}")
    return bench(packed, x, threads=threads, against=peers, rounds=rounds, baseline=baseline)


def _packed(run: Run) -> tuple[nn.Module, tuple[int, ...], int]:
    """The packed net, the shape of its input and its number of classes."""
    import bitwright as bw
    from bitwright.engine.packed import PackedModel

    if run.read_json("convert.json").get("form") == "layers":  # packed layers live in the experiment's model
        from bitwright.runs import build_model

        shape, classes = tuple(run.read_json("convert.json").get("input", ())), 10
        model = build_model(run.experiment, stand_in(shape, classes), weights=False)
        return bw.load(run.file(PACKED), model), shape, classes
    packed = bw.load(run.file(PACKED))
    if not isinstance(packed, PackedModel):
        raise InputError(f"bench {run.path}: {PACKED} is not a packed file; run: bitwright convert {quoted(run.path)}")
    nodes = packed.graph.nodes
    return packed, tuple(nodes[0].shape), int(nodes[-1].shape[-1])


def _each_image(out: Output, run: Run, threads: int, count: int) -> None:
    """Times the first test images alone; writes latency.csv."""
    import torch

    from bitwright import numbers
    from bitwright.measure.latency import latencies
    from bitwright.runs import dataset, example_of
    from bitwright.runs.result_tables import ImageTime
    from bitwright.timing import percentiles

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = latencies(
            _packed(run)[0], example_of(run.experiment, dataset(run.experiment, "test"), count), threads=threads
        )
    finally:
        torch.set_num_threads(before)
    run.write(ImageTime, ({"index": i, "us": round(1e6 * t, 3)} for i, t in enumerate(times)))
    at = {name: numbers.ms(1e3 * value) for name, value in percentiles(times).items()}
    out.data["latency"] = {"images": len(times), **{f"{k}_ms": 1e3 * v for k, v in percentiles(times).items()}}
    out.result(
        f"one image at a time, {len(times):,} test images: p50 {at['p50']} ms, p95 {at['p95']} ms, mean {at['mean']} ms, "
        f"slowest {at['most']} ms"
    )


def _check_packed(run: Run) -> None:
    if run.has(PACKED):
        return
    found = run.read_json("convert.json")
    if found.get("status") == "REFUSE":
        raise Negative(
            f"bench {run.path}: convert refused this run: {found.get('verdict', '')}", code="refused", given=PACKED
        )
    if not run.has("model.safetensors"):
        run.model()
    raise InputError(
        f"bench {run.path}: no {PACKED} yet. Run: bitwright convert {quoted(run.path)}",
        code="run-unconverted",
        given=PACKED,
        remedy=f"bitwright convert {quoted(run.path)}",
    )


def _float_net(run: Run, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The net before any recipe, with the weights of the last float stage where the run kept them."""
    from bitwright import usercode
    from bitwright.engine.files import load
    from bitwright.runs import build_model, recipe_of_stage

    experiment = run.experiment
    names = run.read_json("classes.json").get("classes")
    count = len(names) if isinstance(names, list) and names else classes
    images = None if usercode.is_own(experiment.model.name) else stand_in(shape, count)
    model = build_model(experiment, images, weights=False)
    last = None
    for i in range(len(experiment.stage)):
        if recipe_of_stage(experiment, i).rules:
            break
        last = f"stages/{i}.safetensors"
    if last is not None and run.has(last):
        model = load(run.file(last), model)
    return model.eval()


def result_rows(run: Run, table: BenchTable) -> list[dict[str, Any]]:
    """The rows of results.csv. An fp32 peer computes the float net, so it has its accuracy; of the others it is
    not known here.
    """
    converted, state = run.read_json("convert.json"), run.read_json("state.json")
    float_top1 = state.get("float_top1")
    images = converted.get("images")

    def row(r: BenchRow) -> dict[str, Any]:
        ours = r is table.ours
        accuracy = converted.get("accuracy") if ours else float_top1 if r.precision == "fp32" else None
        return {
            "net": r.name,
            "precision": r.precision,
            "accuracy": accuracy,
            "images": images if accuracy is not None else None,
            "bytes": run.file(PACKED).stat().st_size if ours else None,
            "latency_ms": r.median_ms,
            "latency_q1_ms": r.q1_ms,
            "latency_q3_ms": r.q3_ms,
            "latency_p95_ms": r.p95_ms,
            "runs": r.runs,
            "ratio": r.ratio,
            "best_of_precision": r.best_of_precision,
            "batch": table.batch,
            "threads": table.machine["threads"],
            "note": r.note,
            **{
                k: table.machine[k]
                for k in ("cpu", "isa", "kernels", "torch", "onnxruntime", "openvino", "bitwright", "date")
            },
        }

    return [row(r) for r in table.rows]
