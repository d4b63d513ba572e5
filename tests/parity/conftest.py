"""Parity with the public PyTorch libraries. Everything here skips where the extra `parity` is not installed."""

import sys
from pathlib import Path

# The torch peer that the benchmark times is also a peer to test against.
sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "bench"))
