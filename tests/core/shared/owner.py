"""A process that owns shared memory, for tests: it does what its standard input says."""

from __future__ import annotations

import base64
import pickle
import sys

from daskdmed.core.shared import segments


def main() -> None:
    arrays = {}
    for line in sys.stdin:
        name, *numbers = line.split()
        if numbers:
            rows, value = map(int, numbers)
            array = segments.Allocator(rows * 1000).empty((rows, 1000), "u1")
            array[...] = value
            arrays[name] = array[1:, ::2]
            answer = segments.handle_of(arrays[name])
        else:
            array = None
            del arrays[name]
            answer = segments.nbytes()
        print(base64.b64encode(pickle.dumps(answer)).decode(), flush=True)


if __name__ == "__main__":
    main()
