"""Programs that stand in for gcloud, kubectl, xpk, srun, scontrol, docker and fcclip: they write down how they were
called, and `gcloud compute tpus tpu-vm ssh` runs its command in a folder that stands for the worker's home."""

import os
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

# Each call: the number of words, then the words, each ended by a NUL.
_RECORDER = r"""#!/bin/bash
words=("${0##*/}" "$@")
printf '%s\0' "${#words[@]}" "${words[@]}" >>"$RECORD"
answer=$ANSWERS/${0##*/}
if [[ " $* " == *" describe "* || ! -e $answer.describe ]] && [[ -s $answer ]]; then
  head -n 1 "$answer"
  sed -i 1d "$answer"
fi
if [[ "${*:1:4}" == 'compute tpus tpu-vm ssh' ]]; then
  for word in "$@"; do
    if [[ $word == --command=* ]]; then
      cd "$WORKER" && exec bash -c "${word#--command=}"
    fi
  done
fi
exit "${EXIT_CODE:-0}"
"""


class StandIns:
    """A PATH on which the tools are stand-ins."""

    def __init__(self, folder: Path):
        self.folder, self.worker = folder, folder / "worker"
        self._record, self._answers = folder / "record", folder / "answers"
        bin_ = folder / "bin"
        for made in (bin_, self.worker, self._answers):
            made.mkdir(parents=True)
        for tool in ("gcloud", "kubectl", "xpk", "srun", "scontrol", "docker", "fcclip"):
            self.add(bin_ / tool)
        self.environment = {
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RECORD": str(self._record),
            "ANSWERS": str(self._answers),
            "WORKER": str(self.worker),
            "TMPDIR": str(folder),
        }

    def add(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_RECORDER)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def answer(self, tool: str, *lines: str) -> None:
        """What the tool says to `describe`, call by call."""
        (self._answers / tool).write_text("".join(line + "\n" for line in lines))
        (self._answers / f"{tool}.describe").touch()

    def run(self, script: str, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(LAUNCH / script), *arguments],
            env=self.environment | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def calls(self) -> list[list[str]]:
        """Every call so far, in order: the tool's name and its arguments."""
        words = self._record.read_text().split("\0")[:-1] if self._record.exists() else []
        found = []
        while words:
            count = int(words.pop(0))
            found.append([words.pop(0) for _ in range(count)])
        return found
