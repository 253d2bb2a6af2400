"""How a prompt is cut into chunks of few sizes, and how large a cache is made for it.

Starts without JAX: schedulers count with it.
"""

# A prompt is cut into the largest chunks that fit, then smaller ones; the last is padded. Three
# sizes keep a process at a handful of programs, and let a two-word prompt cost 16 rows, not 256.
CHUNK_SIZES = (256, 64, 16)
# Capacities are this times a power of two, so that growing prompts share programs.
SMALLEST_CAPACITY = 256


def chunks(length: int) -> list[tuple[int, int]]:
    """(begin, size) of each chunk of a prompt: a function of its length alone."""
    found, begin = [], 0
    while begin < length:
        fitting = [size for size in CHUNK_SIZES if size <= length - begin]
        size = fitting[0] if fitting else CHUNK_SIZES[-1]
        found.append((begin, size))
        begin += size
    return found


def padded_length(length: int) -> int:
    """Positions that a prompt's chunks write."""
    begin, size = chunks(length)[-1]
    return begin + size


def capacity_for(*needs: int) -> int:
    """The smallest capacity of a cache that is enough for each of the needs, in positions."""
    capacity = SMALLEST_CAPACITY
    while capacity < max(needs):
        capacity *= 2
    return capacity
