"""Which process this is, from what each kind of cluster says in the environment."""

import http.server
import threading

import pytest

from fcclip_jax.training.places import Place, find_place, first_host

GIVEN = {"JAX_COORDINATOR_ADDRESS": "first:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "gpu[007-010],login",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def test_explicit_variables():
    assert find_place(GIVEN) == Place("first:1234", 4, 2, source="JAX_COORDINATOR_ADDRESS")


def test_flags_win_one_by_one():
    place = find_place(GIVEN, process_id=0, coordinator="other:99")
    assert (place.host, place.port, place.count, place.index) == ("other", 99, 4, 0)


def test_explicit_variables_win_over_the_clusters():
    assert find_place(SLURM | OPEN_MPI | GIVEN).host == "first"


def test_an_indexed_job_numbers_its_processes():
    given = {key: GIVEN[key] for key in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")}
    assert find_place(given | {"JOB_COMPLETION_INDEX": "3"}).index == 3


def test_slurm():
    place = find_place(SLURM)
    # The port is above those that Linux hands out, 61440, plus 70000 modulo 4096.
    assert place == Place("gpu007:61808", 4, 3, None, "SLURM")


def test_slurm_with_a_process_for_each_gpu():
    assert find_place(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}).local_devices == (1,)
    assert find_place(SLURM | {"SLURM_STEP_NUM_TASKS": "8"}).count == 8


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[3,5-7]", "n3"),
        ("n[003-015],m", "n003"),
        ("r[1-2]-ib,m", "r1-ib"),
        ("a-1.b.c", "a-1.b.c"),
    ],
)
def test_slurm_node_lists(nodes, first):
    assert first_host(nodes) == first


def test_open_mpi():
    # 1531576320 is 373920 times 4096, and 373920 modulo 4096 is 1184.
    assert find_place(OPEN_MPI) == Place("10.96.0.1:62624", 8, 5, (1,), "Open MPI")


def test_open_mpi_that_does_not_say_where_process_0_is():
    environment = {k: v for k, v in OPEN_MPI.items() if "uri" not in k}
    with pytest.raises(ValueError, match="set JAX_COORDINATOR_ADDRESS"):
        find_place(environment)
    assert find_place(environment | {"JAX_COORDINATOR_ADDRESS": "a:1"}).address == "a:1"
    assert find_place(environment | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}).host == "127.0.0.1"


def test_tpu_on_gke():
    environment = {"TPU_WORKER_HOSTNAMES": "t-0.x, t-1.x", "TPU_WORKER_ID": "1"}
    assert find_place(environment) == Place("t-0.x:8482", 2, 1, None, "TPU_WORKER_HOSTNAMES")
    slices = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "s-0.y:77"}
    assert find_place(environment | slices) == Place("s-0.y:8482", 6, 5, None, "TPU_WORKER_HOSTNAMES")


class _Metadata(http.server.BaseHTTPRequestHandler):
    values = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
        "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
    }

    def do_GET(self):
        value = self.values.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
        known = value is not None and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def metadata():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_tpu_vm(metadata):
    assert find_place({"GCE_METADATA_IP": metadata}) == Place("10.0.0.5:8482", 4, 3, None, "TPU metadata")


def test_a_machine_in_the_cloud_without_a_tpu(metadata, monkeypatch):
    monkeypatch.setattr(_Metadata, "values", {})
    with pytest.raises(ValueError, match="nothing says which of how many processes this is"):
        find_place({"GCE_METADATA_IP": metadata})


def test_metadata_that_cannot_be_reached():
    with pytest.raises(ValueError, match=r"metadata at 127\.0\.0\.1:1 cannot be read"):
        find_place({"GCE_METADATA_IP": "127.0.0.1:1"})


@pytest.mark.parametrize(
    ("environment", "flags", "said"),
    [
        ({}, {}, "looked at --coordinator"),
        ({"JAX_NUM_PROCESSES": "2"}, {}, r"--coordinator \(JAX_COORDINATOR_ADDRESS\), --process_id"),
        ({}, {"process_id": 0}, "--coordinator"),
        (GIVEN | {"JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES must be a whole number, not 'two'"),
        (GIVEN | {"JAX_PROCESS_ID": "4"}, {}, "there is no process 4 of 4"),
        (GIVEN, {"process_id": -1}, "there is no process -1 of 4"),
        (GIVEN, {"num_processes": 0}, "no process 2 of 0"),
        (GIVEN | {"JAX_COORDINATOR_ADDRESS": "first"}, {}, "host:port, not 'first'"),
        (GIVEN, {"coordinator": "a:99999"}, "host:port, not 'a:99999'"),
        (SLURM | {"SLURM_PROCID": "x"}, {}, "SLURM_PROCID must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_said(environment, flags, said):
    with pytest.raises(ValueError, match=said):
        find_place(environment, **flags)
