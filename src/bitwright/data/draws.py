"""Random numbers of one image in one epoch: a function of a key and the image's place, the same in any worker and order."""

_GOLDEN, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def uniform(key: int, place: int, number: int) -> float:
    """The number-th value of image `place`, in [0, 1), by two rounds of splitmix64.

    >>> uniform(1, 2, 0) == uniform(1, 2, 0) != uniform(1, 3, 0)
    True
    """
    return _mix(_mix(key ^ _mix(place + 1)) + (number + 1) * _GOLDEN) / (1 << 64)


def below(key: int, place: int, number: int, limit: int) -> int:
    """An integer from 0 to limit - 1."""
    return min(int(uniform(key, place, number) * limit), limit - 1)


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
