"""How many bytes a zstd frame says that it holds: read from its header, before anything is decompressed.

References
----------
RFC 8878, section 3.1.1.1.
"""

from __future__ import annotations

import numpy as np

_MAGIC = b"\x28\xb5\x2f\xfd"


def content_size(data: np.ndarray) -> int | None:
    """Return the stated size of the first frame of these bytes (uint8); None where there is no frame or it states none."""
    head = data[:18].tobytes()
    if len(head) < 6 or head[:4] != _MAGIC:
        return None
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    flag = descriptor >> 6
    length = (1 if single else 0, 2, 4, 8)[flag]
    if not length or len(head) < at + length:
        return None
    return int.from_bytes(head[at : at + length], "little") + (256 if flag == 1 else 0)
