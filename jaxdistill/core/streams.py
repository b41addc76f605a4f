"""Streams, which are named sources of batches: the training data, and data for other purposes."""

import zlib


def stream_id(stream: str) -> int:
    """Return a number for a stream (named source of batches), so that each stream has its own random numbers.

    Callers add the number to the seed, or fold it into the random key. It is 0 for the stream `train`, and otherwise a
    hash of the name, so that adding a stream does not change the random numbers of the other streams.
    """
    return 0 if stream == "train" else zlib.crc32(stream.encode()) & 0x7FFFFFFF
