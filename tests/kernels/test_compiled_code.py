"""What the compiler makes of the scan's kernels for an H100 or H200 (sm_90); no GPU is needed."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton", reason="triton is not installed")

# In a process of its own, where the kernels are not interpreted. Prints, for each kernel, its registers and the
# instructions of its innermost loops.
PROGRAM = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dna_mamba.kernels.selective_scan import fused, fused_backward, fused_forward

tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
bfloat16 = {"u_ptr", "delta_ptr", "z_ptr", "y_ptr", "dy_ptr", "du_ptr", "ddelta_ptr", "dz_ptr"}
aligned = {"num_channels", "row_width", *(f"{x}_{d}" for x in ("u", "delta", "z", "dy", "dz") for d in "bt")}
given = dict(N=16, P=16, BLOCK=128, WARPS=2, FULL=True, SEGMENT=fused.SEGMENT, SOFTPLUS=True, GATE=True, RESETS=False, KEEP=True) | json.loads(sys.argv[2])
kernel = getattr(fused_backward if hasattr(fused_backward, sys.argv[1]) else fused_forward, sys.argv[1])
names = kernel.arg_names
constants = {name: value for name, value in given.items() if name in names}
signature = {
    name: "constexpr" if name in constants else "*bf16" if name in bfloat16 else "*i8" if name == "reset_ptr"
    else "*fp32" if name.endswith("_ptr") else "i32"
    for name in names
}
attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr") or name in aligned}
options = dict(num_warps=given["WARPS"], maxnreg=fused.REGISTERS[sys.argv[1]], enable_fp_fusion=True)
source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
with tempfile.TemporaryDirectory() as folder:
    binary = Path(folder) / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([tools / "cuobjdump", "-res-usage", binary], capture_output=True, text=True).stdout
    listing = subprocess.run([tools / "nvdisasm", "-c", binary], capture_output=True, text=True, check=True).stdout
code, labels = [], {}
for line in listing.splitlines():
    if label := re.match(r"\\s*(\\.L_x_\\d+):", line):
        labels[label[1]] = len(code)
    if found := re.search(r"/\\*[0-9a-f]{4,}\\*/\\s+(.*?);", line):
        code.append(found[1])
loops = []
for i, text in enumerate(code):
    target = re.search(r"BRA.*?(\\.L_x_\\d+)", text)
    if target and labels.get(target[1], i + 1) <= i:
        loops.append((labels[target[1]], i))
inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
hot = [code[a : b + 1] for a, b in inner if b - a > 100]
names = [[re.sub(r"^@!?U?P\\d+ ", "", x).split()[0].split(".")[0] for x in body] for body in hot]
print(json.dumps({"registers": int(re.search(r"REG:(\\d+)", usage)[1]), "loops": names}))
"""


LOOPS = {"chunk_states": 1, "outputs": 1, "chunk_adjoints": 1, "gradients": 2}
VARIANTS = {
    "usual": {},
    "one warp of a part of the channels, resets": {"WARPS": 1, "BLOCK": 64, "FULL": False, "RESETS": True},
    "7 states without gate": {"GATE": False, "N": 7, "P": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", LOOPS)
def test_the_hot_loops_have_no_barrier_and_no_spill(kernel, variant):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kernel, json.dumps(VARIANTS[variant])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["loops"]) == LOOPS[kernel]
    states = VARIANTS[variant].get("N", 16)
    for loop in found["loops"]:
        assert loop.count("MUFU") >= 2 * states, "two channels of these states: an exponential each"
        bad = {name: loop.count(name) for name in ("BAR", "LDL", "STL", "LDS", "STS", "WARPSYNC", "ATOMG", "RED")}
        assert not any(bad.values()), bad
        # the sums over channels of the backward: 16 exchanges for 16 states, not 80
        exchanges = {16: 16, 7: 9}[states]
        assert loop.count("SHFL") == (exchanges if kernel == "gradients" else 0)


STEP = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dna_mamba.kernels.mamba_step import fused
from dna_mamba.kernels.next_token import fused as drawing

given = {"eps": "fp32", "temperature": "fp32", "top_p": "fp32", "seed": "i64", "kept_ptr": "*u8", "sums_ptr": "*fp64",
         "step_ptr": "*i64"}
shared = {}
def compiled(kernel, warps, **constants):
    signature = {n: "constexpr" if n in constants else given.get(n, "*fp32" if n.endswith("_ptr") else "i32") for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    shared[f"{kernel.__name__} {constants}"] = made.metadata.shared

for D in (64, 128, 256):
    rows, columns, warps = fused.GROW
    compiled(fused._expand, warps, K=4, D=D, BB=min(rows, rows * 128 // D), BE=columns, TOGETHER=True)
compiled(fused._expand, fused.WARPS[0], K=4, D=128, BB=1, BE=fused.EXPAND, TOGETHER=False)
compiled(fused._scan, fused.WARPS[1], R=16, N=16, BE=fused.SCAN, BI=fused.INNER)
compiled(fused._select, fused.SELECT[2], R=16, M=32, BB=fused.SELECT[0], BI=fused.SELECT[1])
compiled(fused._advance, fused.ADVANCE[2], N=16, BE=fused.ADVANCE[1], SEQUENCES=fused.ADVANCE[0])
rows, columns, inner, warps = fused.JOIN
compiled(fused._contract, warps, BB=rows, BD=columns, BI=inner, TOGETHER=True)
compiled(fused._contract, fused.WARPS[2], BB=1, BD=fused.CONTRACT, BI=fused.INNER, TOGETHER=False)
for block, greedy, some in ((8, False, True), (1, False, False), (1, True, False)):
    compiled(drawing._draw, 4, D=128, BB=block, GREEDY=greedy, FILTER=some)
print(json.dumps(shared))
"""


def test_the_kernels_of_a_step_compile_and_fit_the_shared_memory_of_small_gpus():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout.splitlines()[-1])
    assert len(shared) == 12 and max(shared.values()) <= 99 * 1024, shared
