"""Where each value of a run lies in the arena: values that are alive at the same time never share memory."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Value:
    """A value of one sample, or scratch memory of one step.

    form     "floats", "bits", "bytes" or "words": how its numbers are stored, [pixel][channel]
    planes   of bits
    at       its place in the arena, in words of 32 bits
    """

    name: str
    form: str
    height: int
    width: int
    channels: int
    planes: int = 0
    first: int = 0
    last: int = 0
    at: int = 0
    shares: list[Value] = field(default_factory=list)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def count(self) -> int:
        return self.pixels * self.channels

    @property
    def plane_words(self) -> int:
        return -(-self.count // 32)

    @property
    def size(self) -> int:
        """In words."""
        if self.form == "bits":
            return self.planes * self.plane_words
        return -(-self.count // 4) if self.form == "bytes" else self.count


def place(values: list[Value]) -> int:
    """Gives every value its `at`; returns the size of the arena in words. Values that share memory are one block.

    The largest block first, each at the lowest place where it meets none that lives at the same time.

    >>> a, b, c = (Value(n, "floats", 1, 1, 8, first=i, last=i + 1) for i, n in enumerate("abc"))
    >>> place([a, b, c]), a.at == c.at
    (16, True)
    """
    blocks: list[list[Value]] = []
    for v in values:
        mine = [b for b in blocks if any(o is s for o in b for s in v.shares)]
        blocks = [b for b in blocks if not any(b is m for m in mine)]
        blocks.append([o for m in mine for o in m] + [v])
    spans = [(min(v.first for v in b), max(v.last for v in b), max(v.size for v in b), b) for b in blocks]
    placed: list[tuple[int, int, int, int]] = []  # first, last, start, end
    for first, last, size, block in sorted(spans, key=lambda s: -s[2]):
        at = 0
        for _, _, start, end in sorted((p for p in placed if p[0] <= last and first <= p[1]), key=lambda p: p[2]):
            if at + size <= start:
                break
            at = max(at, end)
        placed.append((first, last, at, at + size))
        for v in block:
            v.at = at
    return max((end for *_, end in placed), default=0)
