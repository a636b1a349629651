"""Lets the tests here import the benchmarks' modules as the benchmarks do: by their bare names."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]
