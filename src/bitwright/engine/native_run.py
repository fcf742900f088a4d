"""Native operations one after the other in one call (`bw_run`): everything that the size of the input decides is made once.

A `NativeRun` holds neighboring nodes of a graph. For each size and layout of its inputs it makes a `Program`: the list of steps with
the place of every value. Values that only the run itself reads lie in scratch memory of the calling thread, those that leave it
are new tensors; so threads may share a model.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.graph import Node, rows_as_image
from bitwright.engine.native_conv import ConvCall, ConvPlan
from bitwright.engine.native_floats import MOST_PLANES
from bitwright.engine.native_library import IMAGE_OPERATIONS, NOWHERE, OPERATIONS, StepStruct, check_code, library
from bitwright.engine.native_output import KernelOutput
from bitwright.engine.rules import CODED_SPLITS

Memory = tuple[int, ...]  # [N, H, W, channels] of floats, sums and bytes, [N, H, W, planes, words] of words
LINE = 64  # bytes to which places in the scratch memory are aligned
KEPT = 64  # programs of a run, one for each size of its inputs


@dataclass(frozen=True)
class Laid:
    """How a value lies in memory. nchw: floats of the caller with their channels first."""

    memory: Memory
    dtype: torch.dtype
    nchw: bool = False

    @property
    def bytes(self) -> int:
        return -(-math.prod(self.memory) * self.dtype.itemsize // LINE) * LINE


class Program:
    """The steps of a run for one size and layout of its inputs. `lay` functions of operations fill it by `add`."""

    def __init__(self, given: Mapping[str, Laid]) -> None:
        self.given, self.laid = list(given), dict(given)
        self.keep: list[Any] = []  # what the steps point to
        self._steps: list[tuple[dict[str, Any], dict[str, tuple[str, int]]]] = []  # fields, places by name

    def add(
        self, operation: str, shape: ctypes.Structure, reads: dict[str, str | None], writes: dict[str, Any],
        *, weights: int | None = None, output: int | None = None, alone: bool = False,
    ) -> None:  # fmt: skip
        """reads: "x" and "residual" by name; writes: "out" and "extra" as (name, how it lies), or (name, bytes into it)."""
        for name, laid in writes.values():
            if isinstance(laid, Laid):
                self.laid[name] = laid
        self.keep.append(shape)
        fields: dict[str, Any] = {"operation": OPERATIONS.index(operation), "shape": ctypes.addressof(shape)}
        fields |= {"weights": weights, "output": output, "alone": int(alone)}
        places = {role: (name, 0) for role, name in reads.items() if name is not None}
        places |= {role: (name, 0 if isinstance(at, Laid) else at) for role, (name, at) in writes.items()}
        self._steps.append((fields, places))

    def convolve(self, plan: ConvPlan, call: ConvCall, output: KernelOutput, reads: Any, writes: Any) -> None:
        """`add` of a convolution, whose plan and output live as long as the program."""
        options: dict[str, Any] = {"weights": plan.weights, "output": output.address, "alone": call.small}
        self.add(f"conv_{plan.kind}", call.struct, reads, writes, **options)
        self.keep += [call, plan, output]

    def finish(self, leaves: Mapping[str, Node]) -> None:
        """Places of all values, and what a call has to make."""
        outside = {name: -1 - i for i, name in enumerate([*self.given, *leaves])}
        places, self.scratch = self._scratch(outside)
        places |= outside
        self.steps = (StepStruct * len(self._steps))()
        for step, (fields, roles) in zip(self.steps, self._steps, strict=True):
            for role in ("x", "residual", "out", "extra"):
                name, at = roles.get(role, ("", 0))
                setattr(step, role, places[name] + at if name else NOWHERE)
            for key, value in fields.items():
                setattr(step, key, value)
        self.address, self.count = ctypes.addressof(self.steps), len(self.steps)
        self.pointers, self.call = (
            struct.Struct(f"{len(outside)}P").pack,
            library().bw_run,
        )  # far quicker than an array of ctypes
        self.made = [(name, *axes_of(self.laid[name], node)) for name, node in leaves.items()]

    def _scratch(self, outside: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """The first hole that is free while a value lives, for each value that stays inside; and the size of all."""
        last = {name: i for i, (_, roles) in enumerate(self._steps) for name, _ in roles.values()}
        places: dict[str, int] = {}
        live: list[tuple[int, int, int]] = []  # begin, end, the last step that uses it
        size = 0
        for i, (_, roles) in enumerate(self._steps):
            live = [hole for hole in live if hole[2] >= i]
            for name in (n for n, _ in roles.values() if n not in outside and n not in places):
                begin, wanted = 0, self.laid[name].bytes
                for start, end, _ in sorted(live):
                    if begin + wanted <= start:
                        break
                    begin = max(begin, end)
                live.append((begin, begin + wanted, last[name]))
                places[name], size = begin, max(size, begin + wanted)
        return places, size

    def run(self, env: dict[str, Tensor], given: Sequence[Tensor], threads: int) -> None:
        pointers = [x.data_ptr() for x in given]
        for name, size, stride, dtype in self.made:
            env[name] = made = torch.empty_strided(size, stride, dtype=dtype)
            pointers.append(made.data_ptr())
        if code := self.call(self.address, self.count, self.pointers(*pointers), self.scratch, threads):
            check_code(code)


def axes_of(laid: Laid, node: Node) -> tuple[list[int], list[int], torch.dtype]:
    """Size and stride of the tensor that a value becomes: codes as they lie, floats with the axes of the node's value."""
    n, h, w, *tail = laid.memory
    plain = [math.prod(laid.memory[i + 1 :]) for i in range(len(laid.memory))]
    if laid.dtype is not torch.float32:
        return [n, h, w, *tail], plain, laid.dtype
    rank, c = len(node.shape), tail[0]
    if rank == 1 or _rows(node):
        rows = [[], [w], [h, w]][rank - 1] if rank < 4 else [int(s) for s in node.shape[:-1]]
        size = [n, *rows, c]
        return size, [math.prod(size[i + 1 :]) for i in range(len(size))], laid.dtype
    size, stride = ([n, c, h, w], [h * w * c, 1, w * c, c])
    return (size, stride, laid.dtype) if rank == 3 else ([n, c, w], [w * c, 1, c], laid.dtype)


def _rows(node: Node) -> bool:
    return node.op == "coded_linear" or (node.op in CODED_SPLITS and node.last)


def _order(node: Node, made: bool) -> bool | None:
    """Whether a float value that the node makes, or quantizes, has its channels on the last axis; None: it has no other axis."""
    if len(node.shape) < 2:
        return None
    return _rows(node) if made else node.op == "quantize" and bool(node.attrs["last"])


class NativeRun:
    """Neighboring native nodes as a step of a model: reads and writes the environment name -> value.

    lays     what each node adds to a program
    threads  of a call; None: torch's number
    leaves   names of the values that others read; None: all
    """

    def __init__(
        self, nodes: list[Node], lays: list[Callable[[Program], None]], threads: int | None = None,
        leaves: set[str] | None = None,
    ) -> None:  # fmt: skip
        self.nodes, self.lays, self.threads = nodes, lays, threads
        makes = {name: node for node in nodes for name in (node.name, node.attrs.get("extra")) if name}
        self.reads = list(dict.fromkeys(name for n in nodes for name in n.inputs if name not in makes))
        self.leaves = {name: node for name, node in makes.items() if leaves is None or name in leaves}
        self.orders = {name: _order(n, made=False) for n in nodes for name in n.inputs if name in self.reads}
        # a residual, and what a gate or a pooling of floats reads, have to lie as the layer's own floats do
        self.images = {n.inputs[1] for n in nodes if len(n.inputs) == 2}
        self.images |= {n.inputs[0] for n in nodes if n.op in (*IMAGE_OPERATIONS, "gated_conv", "skipped_gate")}
        self.convolved = {n.inputs[0] for n in nodes if n.op == "float_conv"}
        self.programs: dict[Any, tuple[Program, list[tuple[int, Callable[[Tensor], Tensor]]]]] = {}

    def follows(self, node: Node) -> bool:
        """Whether the node may join: values that both use lie the same way for both."""
        mine, makes = _order(node, made=False), {n.name: n for n in self.nodes}
        for name in node.inputs:
            theirs = _order(makes[name], made=True) if name in makes else self.orders.get(name)
            if mine is not None and theirs is not None and mine != theirs:
                return False
        return True

    def __call__(self, env: dict[str, Tensor]) -> None:
        given = [env[name] for name in self.reads]
        program, copies = self.program(given)
        for i, copy in copies:
            given[i] = copy(given[i])
        program.run(env, given, self.threads or torch.get_num_threads())

    def program(self, given: list[Tensor]) -> tuple[Program, list[tuple[int, Callable[[Tensor], Tensor]]]]:
        """The program for such inputs, made once; and which of them have to be copied first."""
        key = (given[0].shape, given[0].stride()) if len(given) == 1 else tuple([(x.shape, x.stride()) for x in given])
        return self.programs.get(key) or self._program(key, given)

    def _program(self, key: Any, given: list[Tensor]) -> tuple[Program, list[tuple[int, Callable[[Tensor], Tensor]]]]:
        laid: dict[str, Laid] = {}
        copies: list[tuple[int, Callable[[Tensor], Tensor]]] = []
        for i, (name, x) in enumerate(zip(self.reads, given, strict=True)):
            laid[name], copy = self._laid(name, x)
            if copy is not None:
                copies.append((i, copy))
        program = Program(laid)
        for lay in self.lays:
            lay(program)
        program.finish(self.leaves)
        if len(self.programs) >= KEPT:  # a caller that varies the batch size without end
            self.programs.clear()
        self.programs[key] = program, copies
        return program, copies

    def reads_planes(self, name: str, channels: int) -> bool:
        """Whether an image from outside may have its channels first."""
        return name not in self.images and (name not in self.convolved or channels <= MOST_PLANES)

    def _laid(self, name: str, x: Tensor) -> tuple[Laid, Callable[[Tensor], Tensor] | None]:
        """How a value from outside lies, and how it is brought there where it lies otherwise."""
        if not x.is_floating_point():
            return Laid(tuple(x.shape), x.dtype), None if x.is_contiguous() else Tensor.contiguous
        n, *rest = x.shape
        if self.orders[name] and len(rest) > 1:
            laid = Laid((n, *rows_as_image(rest), rest[-1]), x.dtype)
            return laid, None if x.is_contiguous() else Tensor.contiguous
        c, h, w = rest[0], rest[1] if len(rest) == 3 else 1, rest[-1] if len(rest) > 1 else 1
        image = _image(x)
        if image.is_contiguous(memory_format=torch.channels_last):
            return Laid((n, h, w, c), x.dtype), None
        if image.is_contiguous() and self.reads_planes(name, c):
            return Laid((n, h, w, c), x.dtype, nchw=True), None
        return Laid((n, h, w, c), x.dtype), lambda x: _image(x).contiguous(memory_format=torch.channels_last)


def _image(x: Tensor) -> Tensor:
    """[N, C, H, W] of [N, C, L] or [N, C]."""
    return x if x.dim() == 4 else x[:, :, None] if x.dim() == 3 else x[:, :, None, None]


def joined(steps: Sequence[tuple[Node, Any]], wanted: set[str]) -> list[tuple[Node, Any]]:
    """The steps of a model with neighboring native ones as one run each; `wanted`: values that leave the model."""
    found: list[tuple[Node, Any]] = []
    for node, step in steps:
        last = found[-1][1] if found else None
        if isinstance(step, NativeRun) and isinstance(last, NativeRun) and last.follows(node):
            found[-1] = node, NativeRun(last.nodes + step.nodes, last.lays + step.lays, step.threads)
        else:
            found.append((node, step))
    later = set(wanted)
    for i in reversed(range(len(found))):
        node, step = found[i]
        if isinstance(step, NativeRun):
            found[i] = node, NativeRun(step.nodes, step.lays, step.threads, leaves=set(later))
        later |= set(reads(node, step))
    return found


def within(x: Tensor, limit: float) -> bool:
    """Whether no value of a dense float32 tensor is NaN or beyond the limit."""
    return not library().bw_check_range(x.data_ptr(), x.numel(), limit)


def reads(node: Node, step: Any) -> list[str]:
    """The values that a step reads."""
    return step.reads if isinstance(step, NativeRun) else node.inputs
