"""What a worker imports before it knows its stage."""

from __future__ import annotations

import subprocess
import sys


def test_engines_libraries_are_left_to_who_computes() -> None:
    heavy = {"onnx", "onnxruntime", "ml_dtypes", "openvino", "transformers", "tensorrt"}
    command = f"import sys, pipeline.cli, pipeline.serve; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
