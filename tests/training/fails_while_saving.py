"""`fcclip` that comes to grief in its second asynchronous save, as the environment's FAILURE says: `kill`, when all
files are there but the checkpoint is not complete; `full`, because no file can grow beyond 60 kB any more."""

import os
import resource
import signal
import sys

from fcclip_jax.cli import main
from fcclip_jax.training.checkpoint import Checkpoints

save, write_checksums = Checkpoints.save, Checkpoints._write_checksums
begun = []


def save_short_of_disk(self, state, data) -> None:
    begun.append(int(state.step))
    if len(begun) == 2 and os.environ["FAILURE"] == "full":
        self.wait()  # the one before is not what fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    save(self, state, data)


def die_with_the_second(self) -> None:
    if len(begun) == 2 and os.environ["FAILURE"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    write_checksums(self)


if __name__ == "__main__":
    Checkpoints.save, Checkpoints._write_checksums = save_short_of_disk, die_with_the_second
    sys.exit(main())
