"""Keccak-256, the hash of Ethereum's checksums. `hashlib` has only its successor SHA3-256, which pads differently."""

_BLOCK_BYTES = 136
_MASK = (1 << 64) - 1


def keccak_256(data: bytes) -> bytes:
    """Return the 32 bytes of Keccak-256 (the submission to NIST's competition, not FIPS 202)."""
    padded = bytearray(data + b"\x01")
    padded += bytes(-len(padded) % _BLOCK_BYTES)
    padded[-1] |= 0x80
    lanes = [0] * 25
    for begin in range(0, len(padded), _BLOCK_BYTES):
        for index in range(_BLOCK_BYTES // 8):
            place = begin + 8 * index
            lanes[index] ^= int.from_bytes(padded[place : place + 8], "little")
        lanes = _permuted(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def _permuted(lanes: list[int]) -> list[int]:
    """Keccak-f[1600]; lane (x, y) stands at x + 5 y."""
    register = 1
    for _ in range(24):
        columns = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        effects = [columns[x - 1] ^ _rotated(columns[(x + 1) % 5], 1) for x in range(5)]
        lanes = [lane ^ effects[index % 5] for index, lane in enumerate(lanes)]
        x, y, moved = 1, 0, lanes[1]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            moved, lanes[x + 5 * y] = lanes[x + 5 * y], _rotated(moved, (step + 1) * (step + 2) // 2)
        for row in range(0, 25, 5):
            kept = lanes[row : row + 5]
            for x in range(5):
                lanes[row + x] = kept[x] ^ (~kept[(x + 1) % 5] & _MASK & kept[(x + 2) % 5])
        # The constants of the rounds come from a shift register of eight bits.
        for power in range(7):
            register = (register << 1) ^ ((register >> 7) * 0x171)
            if register & 2:
                lanes[0] ^= 1 << ((1 << power) - 1)
    return lanes


def _rotated(lane: int, bits: int) -> int:
    bits %= 64
    return ((lane << bits) | (lane >> (64 - bits))) & _MASK
