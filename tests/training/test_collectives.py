"""What a compiled program sends: lines of HLO worked out by hand, and a program of known collectives."""

import os
import subprocess
import sys

import pytest

from fcclip_jax.training.collectives import collectives, totals
from tests.own_process import ROOT

HLO = """HloModule step
%body.1 (p: f32[4]) -> f32[4] {
  %all-reduce.7 = f32[4]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %ag = bf16[64,128]{1,0} all-gather(%a), channel_id=1, replica_groups=[8,4]<=[32], dimensions={0}
  %rs = f32[16,8]{1,0} reduce-scatter(%b), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %ar = (f32[10]{0}, /*index=1*/s32[2,5]{1,0}) all-reduce(%c, %d), replica_groups=mesh['a'=2,'b'=4] {'a'}
  %one = f32[999]{0} all-reduce(%c), replica_groups={{0},{1}}
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups={{0,1,2,3}}
  ROOT %w = f32[4] while(%x), condition=%cond, body=%body.1
}
"""


def test_kinds_sizes_and_groups():
    found = [(one.kind, one.bytes, one.group, one.looped) for one in collectives(HLO, 32)]
    assert found == [
        ("all-reduce", 16, 4, True),
        ("all-gather", 64 * 128 * 2, 4, False),
        ("reduce-scatter", 4 * 16 * 8 * 4, 4, False),  # what comes out is a part
        ("all-reduce", 80, 2, False),
        ("all-gather", 32, 4, False),
    ]


def test_bytes_sent_around_a_ring():
    sums = totals(collectives(HLO, 32))
    assert sums["all-gather"] == {"count": 2, "bytes": 16384 + 32, "sent": 0.75 * (16384 + 32)}
    assert sums["reduce-scatter"]["sent"] == 0.75 * 2048
    assert sums["all-reduce"]["sent"] == 2 * 0.75 * 16 + 2 * 0.5 * 80


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from fcclip_jax.training.collectives import collectives, totals

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

def f(w, x):
    whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)  # 64 x 32 float32, 8192 bytes
    y = x @ whole
    part = jax.lax.psum_scatter(y.T @ y, "fsdp", scatter_dimension=0, tiled=True)  # 32 x 32, 4096 bytes
    return jax.lax.psum(part, "data")  # 8 x 32, 1024 bytes

g = jax.shard_map(f, mesh=mesh, in_specs=(P("fsdp"), P(("data", "fsdp"))), out_specs=P("fsdp"), check_vma=False)
shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
text = jax.jit(g).lower(shape(64, 32), shape(16, 64)).compile().as_text()
print(totals(collectives(text, 8)))
"""


def test_a_compiled_program():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)
    assert found["all-gather"] == {"count": 1, "bytes": 8192, "sent": 0.75 * 8192}
    assert found["reduce-scatter"] == {"count": 1, "bytes": 4096, "sent": 0.75 * 4096}
    assert found["all-reduce"] == {"count": 1, "bytes": 1024, "sent": 1024.0}


@pytest.mark.parametrize("text", ["", "HloModule nothing\n", "%x = f32[4] add(%all-gather.1, %b)\n"])
def test_none(text):
    assert collectives(text, 8) == []
