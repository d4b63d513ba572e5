"""Which of how many processes this one is, and where the first one listens: read from whoever started it.

Standard library alone: it is read before jax is imported. jax can find most of this itself, but then only it knows
whom it waits for, and where somebody is missing it ends the process without saying who.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--num_processes", "--process_id")
TPU_PORT = 8482
WHERE = (
    f"looked at {', '.join(FLAGS)}; {', '.join(VARIABLES)} (or JOB_COMPLETION_INDEX); TPU_WORKER_HOSTNAMES and the "
    "TPU's metadata; SLURM's and Open MPI's variables"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """`address`, host:port where process 0 listens; `index` of `count`; `local_devices`, the numbers of this host's
    GPUs that this process may use, None for all; `source`, who said so."""

    address: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    source: str = "flags"

    def __post_init__(self):
        host, colon, port = self.address.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{self.source}: the first process's address is host:port, not {self.address!r}")
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"{self.source}: there is no process {self.index} of {self.count}")

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def find_place(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Place:
    """Of the command line's flags, then `JAX_...` variables, then a TPU slice, SLURM, Open MPI, in this order.

    Raises:
        ValueError: nothing says it, or not all of it, or what is said makes no sense.
    """
    given = [environment.get(name) or None for name in VARIABLES]
    given[2] = given[2] or environment.get("JOB_COMPLETION_INDEX")  # an indexed Kubernetes job
    if coordinator is not None or num_processes is not None or process_id is not None:
        flags = [coordinator, num_processes, process_id]
        given = [g if flag is None else flag for flag, g in zip(flags, given, strict=True)]
        return _explicit(given, FLAGS)
    if given[1] or environment.get(VARIABLES[2]):
        return _explicit(given, VARIABLES)
    for find in (_tpu_on_gke, _slurm, _open_mpi, _tpu_vm):
        if (place := find(environment)) is not None:
            return place
    raise ValueError(f"nothing says which of how many processes this is: {WHERE}")


def _explicit(given: list, names: tuple[str, ...]) -> Place:
    missing = [f"{flag} ({name})" for flag, name, g in zip(FLAGS, VARIABLES, given, strict=True) if g is None]
    if missing:
        raise ValueError(f"of a run of several processes {', '.join(missing)} is missing")
    return Place(str(given[0]), _number(names[1], given[1]), _number(names[2], given[2]), source=names[0])


def _number(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def _slices(environment: Mapping[str, str], workers: list[str], worker: int, source: str) -> Place:
    """Of a TPU slice, or of several that Megascale joins: process 0 is the first worker of slice 0."""
    count = _number("MEGASCALE_NUM_SLICES", environment.get("MEGASCALE_NUM_SLICES") or 1)
    slice_ = _number("MEGASCALE_SLICE_ID", environment.get("MEGASCALE_SLICE_ID") or 0)
    first = (environment.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]).split(":")[0]
    port = environment.get("JAX_COORDINATOR_PORT") or TPU_PORT
    return Place(f"{first}:{port}", len(workers) * count, worker + slice_ * len(workers), source=source)


def _tpu_on_gke(environment: Mapping[str, str]) -> Place | None:
    names = environment.get("TPU_WORKER_HOSTNAMES")
    if not names or environment.get("TPU_WORKER_ID") is None:
        return None
    workers = [name.strip() for name in names.split(",")]
    return _slices(environment, workers, _number("TPU_WORKER_ID", environment["TPU_WORKER_ID"]), "TPU_WORKER_HOSTNAMES")


def _tpu_vm(environment: Mapping[str, str]) -> Place | None:
    from urllib.error import HTTPError

    server = environment.get("GCE_METADATA_IP")
    if server is None:
        if importlib.util.find_spec("libtpu") is None:
            return None
        server = "metadata.google.internal"
    try:
        index = _metadata(server, "agent-worker-number")
        workers = [part.split(":")[-1] for part in _metadata(server, "worker-network-endpoints").split(",")]
        slices = dict(_pairs(_metadata(server, "tpu-env")))
    except HTTPError:
        return None  # a machine in the cloud that has no TPU
    except OSError as error:
        raise ValueError(f"the TPU's metadata at {server} cannot be read: {error}") from error
    megascale = {key: value for key, value in (slices | dict(environment)).items() if key.startswith("MEGASCALE_")}
    return _slices(dict(environment) | megascale, workers, _number("agent-worker-number", index), "TPU metadata")


def _metadata(server: str, key: str) -> str:
    import urllib.request  # slow to import, and every command imports this file

    address = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def _pairs(text: str):
    """Of lines such as `MEGASCALE_NUM_SLICES: '2'`."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip().strip("'\"")


def _slurm(environment: Mapping[str, str]) -> Place | None:
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    if any(environment.get(name) is None for name in needed):
        return None
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
    port = environment.get("JAX_COORDINATOR_PORT") or _port_of(_number("SLURM_JOB_ID", environment["SLURM_JOB_ID"]))
    return Place(
        f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}",
        _number("SLURM_NTASKS", count),
        _number("SLURM_PROCID", environment["SLURM_PROCID"]),
        _own_device(environment, "SLURM_LOCALID", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")),
        "SLURM",
    )


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: `gpu[007-010,12],login` gives `gpu007`."""
    head = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    if head is None:
        raise ValueError(f"SLURM_STEP_NODELIST {nodes!r} names no host")
    return head[1] + (head[2] or "") + (head[3] or "")


def _open_mpi(environment: Mapping[str, str]) -> Place | None:
    if environment.get("OMPI_COMM_WORLD_SIZE") is None or environment.get("OMPI_COMM_WORLD_RANK") is None:
        return None
    size, local = environment["OMPI_COMM_WORLD_SIZE"], environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    uri = re.match(r"(\d+)\.\d+;tcp6?://\[?([^,\]]+?)[,:\]]", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    job = int(uri[1]) >> 12 if uri else 0  # the lower bits number the parts of a job
    address = environment.get(VARIABLES[0]) or ""
    if not address:
        if uri is None and size != local:
            raise ValueError(f"Open MPI does not say where process 0 is: set {VARIABLES[0]} to its host:port")
        address = f"{uri[2] if uri else '127.0.0.1'}:{environment.get('JAX_COORDINATOR_PORT') or _port_of(job)}"
    index = _number("OMPI_COMM_WORLD_RANK", environment["OMPI_COMM_WORLD_RANK"])
    devices = _own_device(environment, "OMPI_COMM_WORLD_LOCAL_RANK", local)
    return Place(address, _number("OMPI_COMM_WORLD_SIZE", size), index, devices, "Open MPI")


def _own_device(environment: Mapping[str, str], name: str, here: str) -> tuple[int, ...] | None:
    """One device for each process where a host has several processes, else all.

    `here` is the number of processes on a host, in SLURM's writing (`4(x2),3`) the first of several.
    """
    first = re.match(r"\d+", here)
    if first is None or int(first[0]) == 1:
        return None
    return (_number(name, environment.get(name, "0")),)


def _port_of(job: int) -> int:
    # Above the ports that Linux hands out by itself, and another one for jobs that share a host.
    return 61440 + job % 4096


def this_host() -> str:
    """As it is called in messages."""
    return os.uname().nodename
