"""What the files in tests/golden/torch_files hold, and the program that wrote them, once, with PyTorch 2.13:

python tests/convert/make_torch_files.py tests/golden/torch_files
"""

import collections
import sys
from pathlib import Path

import numpy as np


def expected():
    """Name -> array of the state dict, as numpy has it; bfloat16 widened to float32."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
    return {
        "plain": base,
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "column": base[:, 5],
        "repeated": np.broadcast_to(base[:1, :2], (3, 2)),
        "half": base.astype(np.float16),
        "bfloat16": np.array([1.0, -2.5, 3e38, 1e-30], np.float32).view(np.uint32).__and__(0xFFFF0000).view(np.float32),
        "double": np.array([1 / 3, -1e300]),
        "int64": np.array([-(1 << 40), 3]),
        "int32": np.array([[-5], [6]], np.int32),
        "int16": np.array([-300, 300], np.int16),
        "int8": np.array([-128, 127], np.int8),
        "uint8": np.array([0, 255], np.uint8),
        "bool": np.array([True, False, True]),
        "num_batches_tracked": np.array(7),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.full((2, 2), 0.25, np.float32),
        "conv": np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2),
    }


def _state_dict(torch):
    state = collections.OrderedDict((name, torch.from_numpy(np.array(a))) for name, a in expected().items())
    base = state["plain"]
    state |= {"transposed": base.t(), "slice": base[1:3, ::2], "column": base[:, 5]}
    state["repeated"] = base[:1, :2].expand(3, 2)
    state["bfloat16"] = state["bfloat16"].to(torch.bfloat16)
    state["parameter"] = torch.nn.Parameter(state["parameter"])
    state["conv"] = state["conv"].to(memory_format=torch.channels_last)
    state._metadata = collections.OrderedDict({"": {"version": 2}})
    return state


def main(folder):
    import torch

    state = _state_dict(torch)
    training = {
        "model": state,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 2)}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
        },
        "scheduler": {"milestones": collections.Counter([1, 2, 2]), "base_lrs": [1e-4], "last_epoch": 5},
        "iteration": 368749,
        "best_metric": np.float64(26.8),
        "best_step": np.int64(3),
        "tags": {"ade", "coco"},
        "big": 1 << 62,
        "nothing": None,
        "size": torch.Size([2, 3]),
    }
    torch.save(training, folder / "training.pth")
    torch.save(training, folder / "training_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state}, folder / "protocol_4.pth", pickle_protocol=4)
    # The kind of tensor that newer versions write for newer element types.
    torch.save({"uint16": torch.tensor([1, 65535], dtype=torch.uint16)}, folder / "uint16.pth")
    bare = {f"module.{name}": tensor for name, tensor in state.items() if name in ("plain", "half")}
    torch.save(bare, folder / "bare_module.pth")
    torch.save(torch.nn.Linear(1, 1), folder / "whole_module.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "torchscript.pt")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
