"""`make bench`: ours and the PyTorch peer, in turn, in one run; writes docs/performance.json and docs/performance.md.

Whole processes take turns (A B A B ...), so that a machine that drifts drifts for both. The peer runs where the
environment of `make parity` exists; without it, only ours is measured.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.bench.forward import MANIFEST
from tools.parity import formula_model

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"torch, libraries as they come": "stock", "torch, oneDNN for matrix products": "onednn"}


def run(python: str, arguments: list[str], **environment: str) -> dict:
    """One process; its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [python, *arguments, "--json", str(output)]
        # Some machines tell Python not to keep compiled modules, and every start compiles all of jax again.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=kept | environment)
        return json.loads(output.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer_python", default=str(ROOT / ".venv-parity" / "bin" / "python"))
    options = parser.parse_args()
    peers = PEERS if Path(options.peer_python).is_file() else {}
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ours, theirs = [], {name: [] for name in peers}
    with tempfile.TemporaryDirectory() as folder:
        model = formula_model(MANIFEST, Path(folder))
        # A cache of its own: the first round compiles, the others find the program there.
        cache = str(Path(folder) / "cache")
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            mine = ["-m", "tools.bench.forward", "--model", str(model)]
            ours.append(run(sys.executable, mine, FCCLIP_CACHE=cache))
            for name, linear in peers.items():
                sizes = ["--height", "800", "--width", "1216", "--original", "427x640", "--class_heads", "1"]
                how = ["--fill", "tests/formula_weights.py", "--threads", str(threads), "--linear", linear]
                theirs[name].append(run(options.peer_python, ["tools/bench/torch_peer.py", *sizes, *how]))
        staged = run(sys.executable, [*mine, "--by_stage"], FCCLIP_CACHE=cache)
    results = {"date": str(datetime.date.today()), "machine": machine(), "ours": ours}
    results |= {key: staged[key] for key in ("stages", "matrix_flops_per_second")}
    results["peers"] = theirs
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "performance.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "performance.md").write_text(report(results), encoding="utf-8")
    print(report(results))


def machine() -> str:
    """Processor and cores, without a name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
        return f"{model}, {sum(line.startswith('processor') for line in lines)} cores"
    return model


def report(results: dict) -> str:
    """Markdown of the figures."""
    ours = [r["seconds"] for r in results["ours"]]
    memory = max(r["peak_bytes"] for r in results["ours"]) / 1e9
    mine = statistics.median(ours)
    rows = [f"| fcclip_jax | {mine:.1f} | {min(ours):.1f} to {max(ours):.1f} | {memory:.1f} | 1 |"]
    for name, runs in results["peers"].items():
        totals = [r["total_seconds"] for r in runs]
        ratio = statistics.median(t / o for t, o in zip(totals, ours, strict=True))
        peak = max(r["peak_rss_mb"] for r in runs) / 1e3
        rows.append(
            f"| {name} | {statistics.median(totals):.1f} | {min(totals):.1f} to {max(totals):.1f} | {peak:.1f} | "
            f"{ratio:.2f} |"
        )
    first = [r["seconds_from_start_to_first_result"] for r in results["ours"]]
    ceiling = results["matrix_flops_per_second"]
    staged = "".join(f"| {name} | {stage_cells(stage, ceiling)} |\n" for name, stage in results["stages"].items())
    return f"""# Performance

Written by `make bench` on {results["date"]}: {results["machine"]}, float32, {len(ours)} rounds in turn, medians.

## ConvNeXt-L, one photo of 427 x 640 at 800 x 1216, 150 classes, all three results

| program | seconds | range | peak GB | its time / ours, round by round |
|---|---|---|---|---|
{chr(10).join(rows)}

The peer is the same computation from open_clip and transformers' Mask2Former (`tools/bench/torch_peer.py`), which the
tests hold against the original program; with the one class head that inference uses, where the original computes ten.

From the start of the process to the first result: {first[0]:.1f} s when everything has to be compiled (first round),
{min(first[1:], default=first[0]):.1f} s when it comes from the cache on disk.

## Stages, each compiled alone

A float32 matrix product of 2048 runs at {ceiling / 1e9:.0f} GFLOP/s here.

| stage | seconds | GFLOP of products and convolutions | GFLOP/s | of that ceiling |
|---|---|---|---|---|
{staged}
What was tried, lever by lever, stands in [levers.md](levers.md); what was measured earlier, in
[performance_history.md](performance_history.md).
"""


def stage_cells(stage: dict, ceiling: float) -> str:
    if "flops" not in stage:
        return f"{stage['seconds']:.2f} | | |"
    rate = stage["flops"] / stage["seconds"]
    return f"{stage['seconds']:.2f} | {stage['flops'] / 1e9:.0f} | {rate / 1e9:.0f} | {rate / ceiling:.0%}"


if __name__ == "__main__":
    main()
