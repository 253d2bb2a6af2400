"""Shuffling without a table: a keyed permutation of 0 … size - 1, one index at a time."""

_MASK = (1 << 64) - 1
_ROUNDS = 4


def mix(*numbers: int) -> int:
    """64 bits that depend on every bit of every number (SplitMix64; Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permuted(index: int, size: int, key: int) -> int:
    """Where `index` goes: a bijection of range(size) for every key.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway
    2002): at most four steps on average, no memory, the same on every machine.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(index, half, key)
        if index < size:
            return index


def _feistel(index: int, half: int, key: int) -> int:
    low_bits = (1 << half) - 1
    left, right = index >> half, index & low_bits
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (mix(key, round_number, right) & low_bits)
    return (left << half) | right
