"""Record which operators onnxruntime's CUDA provider has kernels for: python -m tools.repo.cuda_kernels >FILE.json.

onnxruntime-gpu lists its kernels (`get_all_opkernel_def`) only where every provider library of the wheel loads: install
`onnxruntime-gpu[cuda,cudnn]` and `tensorrt-cu13`, and put the latter's folder on LD_LIBRARY_PATH. A GPU is not needed.
Where a library is missing, onnxruntime ends the process. The recorded list was made with empty libraries in TensorRT's place; with
TensorRT's own it is untested.
"""

from __future__ import annotations

import json
from typing import Any

import onnxruntime

PROVIDER = "CUDAExecutionProvider"
DOMAINS = {"": "ai.onnx", "com.microsoft": "com.microsoft"}


def cuda_kernels() -> dict[str, Any]:
    """The version and {"domain:operator": [[first opset, last opset, {parameter: types}], ...]}."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    kernels: dict[str, list[Any]] = {}
    for kernel in native.get_all_opkernel_def():
        if kernel.provider == PROVIDER and kernel.domain in DOMAINS:
            types = {
                parameter: sorted(name.removeprefix("tensor(").removesuffix(")") for name in names)
                for parameter, names in kernel.type_constraints.items()
            }
            name = f"{DOMAINS[kernel.domain]}:{kernel.op_name}"
            kernels.setdefault(name, []).append(
                [*kernel.version_range, dict(sorted(types.items()))]
            )
    ordered = {name: sorted(kernels[name], key=json.dumps) for name in sorted(kernels)}
    return {"onnxruntime": onnxruntime.__version__, "provider": PROVIDER, "kernels": ordered}


def main() -> None:
    """Print one operator a line."""
    content = cuda_kernels()
    rows = [
        f"{json.dumps(name)}: {json.dumps(found)}" for name, found in content.pop("kernels").items()
    ]
    print(json.dumps(content)[:-1] + ', "kernels": {\n' + ",\n".join(rows) + "\n}}")


if __name__ == "__main__":
    main()
