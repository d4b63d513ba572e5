"""`fcclip evaluate` in a process of its own that notes each image that goes through the network, and may die.

`python counted_evaluate.py LOG DIE_AFTER arguments...`: appends a line to LOG for each image, the checksum of its
pixels; and kills itself when DIE_AFTER images (0: never) have a record.
"""

import os
import signal
import sys
import zlib
from pathlib import Path

from fcclip_jax import cli
from fcclip_jax.evaluation.image_records import RecordWriter
from fcclip_jax.segmenter import Segmenter


def main(log: str, die_after: int, arguments: list[str]) -> int:
    encode, append, written = Segmenter._encode, RecordWriter.append, []

    def counted(self, inputs):
        with Path(log).open("a", encoding="ascii") as file:
            # A batch is filled up with copies of its last image.
            file.writelines(f"{line}\n" for line in dict.fromkeys(zlib.crc32(x.image.tobytes()) for x in inputs))
        return encode(self, inputs)

    def dying(self, record):
        append(self, record)
        written.append(record.index)
        if len(written) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    Segmenter._encode, RecordWriter.append = counted, dying
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
