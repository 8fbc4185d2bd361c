"""Compile the Triton kernels for a GPU that need not be there: python compile_triton.py CAPABILITY WIDTH...

Prints the bytes that each kernel spills from registers to memory, for heads of these widths.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from acmix_zoo.ops.backends.triton import kernels
from acmix_zoo.ops.backends.triton.attention import _launch

PTXAS = Path(triton.backends.nvidia.__file__).parent / "bin/ptxas"


def main(capability: int, widths: list[int]) -> None:
    for d in widths:
        sizes = _launch((1, 1, 1), d)[1]
        constants = dict(
            zip(("D", "KERNEL", "STRIDE", "DILATION", "TH", "TW", "BLOCK_D"), (d, 7, 1, 1, *sizes), strict=True)
        )
        for kernel in (kernels.forward, kernels.backward_queries, kernels.backward_keys):
            kinds = dict.fromkeys(("heads", "h", "w", "ho", "wo"), "i32") | {"out": "*bf16"}
            kinds |= dict.fromkeys(constants, "constexpr")
            signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
            aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
            source = ASTSource(
                kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned
            )
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            with TemporaryDirectory() as folder:
                (path := Path(folder, "kernel.ptx")).write_text(compiled.asm["ptx"])
                target = re.search(r"\.target (\w+)", compiled.asm["ptx"])
                assert target is not None
                command = [PTXAS, "-v", f"-arch={target[1]}", path, "-o", path.with_suffix(".cubin")]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
            print(kernel.__name__, d, spilled[1] if spilled else "unknown")


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(width) for width in sys.argv[2:]])
