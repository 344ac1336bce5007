"""Record which operators onnxruntime's CUDA provider has kernels for.

    python -m tools.repo.cuda_kernels >FILE.json

onnxruntime-gpu lists its kernels (`get_all_opkernel_def`) only if every provider library of the
wheel loads: install `onnxruntime-gpu[cuda,cudnn]` and `tensorrt-cu13`, and add the folder of the
latter to LD_LIBRARY_PATH. No GPU is needed. If a library is missing, onnxruntime terminates the
process. The recorded list was created with empty libraries in place of TensorRT's; the real ones
are untested.
"""

from __future__ import annotations

import json
from typing import Any

import onnxruntime

PROVIDER = "CUDAExecutionProvider"
DOMAINS = {"": "ai.onnx", "com.microsoft": "com.microsoft"}
"""Operator domains to record, with their names in the file."""


def cuda_kernels() -> dict[str, Any]:
    """Return the onnxruntime version, the provider and the kernels of each operator.

    `kernels` is {"domain:operator": [[first opset, last opset, {parameter: types}], ...]}.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    kernels: dict[str, list[Any]] = {}
    for kernel in native.get_all_opkernel_def():
        if kernel.provider == PROVIDER and kernel.domain in DOMAINS:
            types = {
                parameter: sorted(name.removeprefix("tensor(").removesuffix(")") for name in names)
                for parameter, names in kernel.type_constraints.items()
            }
            operator = f"{DOMAINS[kernel.domain]}:{kernel.op_name}"
            signature = [*kernel.version_range, dict(sorted(types.items()))]
            kernels.setdefault(operator, []).append(signature)
    ordered = {name: sorted(kernels[name], key=json.dumps) for name in sorted(kernels)}
    return {"onnxruntime": onnxruntime.__version__, "provider": PROVIDER, "kernels": ordered}


def main() -> None:
    """Print the kernels as JSON, one operator per line."""
    content = cuda_kernels()
    kernels = content.pop("kernels")
    rows = [f"{json.dumps(name)}: {json.dumps(entries)}" for name, entries in kernels.items()]
    print(json.dumps(content)[:-1] + ', "kernels": {\n' + ",\n".join(rows) + "\n}}")


if __name__ == "__main__":
    main()
