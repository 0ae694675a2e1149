"""Time the kernels on this machine: ours beside others, on the same random inputs in one run, against the GPU's ceilings."""

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.device import find_device, find_precision
from dna_mamba.errors import InputError
from dna_mamba.kernels.causal_conv1d import causal_conv1d
from dna_mamba.kernels.cross_entropy import cross_entropy
from dna_mamba.kernels.rms_norm import add_rms_norm
from dna_mamba.kernels.selective_scan import MAX_STATES, selective_scan
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig, parse_size
from dna_mamba.model.mixers.mamba import MambaConfig
from dna_mamba.model.state import ModelState
from dna_mamba.pipelines.benchmark import BenchResult, BenchRow, OnRow, Rows, make_result
from dna_mamba.pipelines.benchmark_machine import TOO_SLOW_SECONDS, Bench, Call
from dna_mamba.pipelines.configs.bench import KernelBenchConfig
from dna_mamba.reading.generation import CapturedStep, Draw, captured
from dna_mamba.reading.settings import SamplingConfig

SHAPES = (
    *((1, 256, 1_048_576), (1, 256, 1_000_000), (1, 512, 1_048_576), (8, 256, 131_072)),
    *((64, 256, 16_384), (1024, 256, 1024), (1, 2048, 131_072), (8, 2048, 8192)),
)
"""(batch, channels, length) of docs/benchmarks.md."""
SMALL_SHAPES = ((1, 128, 4096), (16, 128, 250))
"""For a CPU."""


def run(
    config: KernelBenchConfig, *, on_phase: Callable[[str], None] | None = None, on_row: OnRow | None = None
) -> BenchResult:
    """Measure the ceilings, then time what is asked for."""
    if config.states > MAX_STATES:
        raise InputError(f"{config.states} states: the kernels that are timed take 1 to {MAX_STATES}")
    device = find_device(config.device)
    precision = find_precision(config.precision, device)
    if config.what == "loss":
        precision = "fp32"  # of logits
    say = on_phase or (lambda words: None)
    rates: tuple[float | None, float | None] = (None, None)
    if device == "cuda":
        from dna_mamba.kernels import ceilings  # here: it imports Triton

        say("copy bandwidth and exponentials a second")
        rates = (ceilings.copy_rate(), ceilings.exp_rate())
        torch.cuda.empty_cache()
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    busy = torch.empty(2**31 if device == "cuda" else 0, dtype=torch.uint8, device=device)
    bench = Bench(device, dtype, config, *rates, say, busy, on_row)
    functions = {"scan": _scan, "conv": _conv, "norm": _norm, "loss": _loss, "step": _step, "block": _block}
    torch.manual_seed(0)
    rows = functions[config.what](bench)
    ceiling = ""
    if rates[0] is not None and rates[1] is not None:
        ceiling = f"; copy {rates[0] / 1e12:.2f} TB/s, {rates[1] / 1e12:.2f} T exp/s in this run"
    return make_result(f"{config.what}, {precision}{ceiling}", device, rows)


def _shapes(bench: Bench) -> tuple[tuple[int, int, int], ...]:
    return bench.config.shapes or (SHAPES if bench.device == "cuda" else SMALL_SHAPES)


def _pair(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    leaves: dict[str, Tensor],
    gradient: Tensor | Sequence[Tensor] | None,
) -> tuple[Callable, Callable]:
    """Give calls for the forward without gradients, and for the forward and the gradients of all leaves."""

    def forward() -> object:
        with torch.no_grad():
            return function(**leaves)

    def both() -> object:
        y = function(**leaves)
        return y, torch.autograd.grad(y, list(leaves.values()), gradient)

    return forward, both


def scan_leaves(bench: Bench, batch: int, channels: int, length: int) -> dict[str, Tensor]:
    """Draw inputs of the size that a trained layer has: decays from none to complete."""
    states, single = bench.config.states, torch.float32
    rates = torch.arange(1, states + 1, device=bench.device, dtype=single)
    leaves = {
        "u": bench.normal(batch, length, channels),
        "delta": bench.normal(batch, length, channels),
        "A": -rates * (1 + 0.1 * bench.normal(channels, states, dtype=single)),
        "B": bench.normal(batch, length, states),
        "C": bench.normal(batch, length, states),
        "D": torch.ones(channels, device=bench.device),
        "z": bench.normal(batch, length, channels),
        "delta_bias": bench.normal(channels, dtype=single) - 4.0,
    }
    return {name: tensor.requires_grad_() for name, tensor in leaves.items()}


def _scan(bench: Bench) -> list[BenchRow]:
    rows = Rows(bench.on_row)
    states = bench.config.states
    for batch, channels, length in _shapes(bench):
        elements, size = batch * channels * length, bench.dtype.itemsize
        name = f"({batch}, {channels}, {length:,})"
        floors = None
        if bench.exps_a_second is not None:
            exps = 1e3 * elements * states / bench.exps_a_second
            rows_bytes = 2 * batch * length * states * size
            forward = max(exps, bench.bytes_ms(4 * elements * size + rows_bytes))
            backward = max(exps, bench.bytes_ms(7 * elements * size + 2 * rows_bytes))
            floors = (forward, forward + backward)

        def make(implementation: str, batch: int = batch, channels: int = channels, length: int = length) -> tuple:
            leaves = scan_leaves(bench, batch, channels, length)

            def scan(**tensors: Tensor) -> Tensor:
                y = selective_scan(**tensors, delta_softplus=True, implementation=implementation)
                assert isinstance(y, Tensor)
                return y

            return _pair(scan, leaves, bench.normal(batch, length, channels))

        input_bytes = 4 * elements * size
        ours = bench.implementations[-1]
        rows.append(bench.row(f"{name} {ours}", functools.partial(make, ours), input_bytes, floors))
        if not bench.config.competitors:
            continue
        if _seconds_of_naive(bench, batch, channels, states) * length > TOO_SLOW_SECONDS:
            rows.append(BenchRow(f"{name} naive", {"forward ms": "too slow", "forward+backward ms": "too slow"}))
        else:
            rows.append(bench.row(f"{name} naive", functools.partial(make, "naive"), input_bytes, floors))
        if bench.device == "cuda":
            rows += _scan_competitors(bench, name, batch, channels, length)  # handed on already
    return rows


def _seconds_of_naive(bench: Bench, batch: int, channels: int, states: int) -> float:
    """Time 16 positions of the loop, forward and backward, and give the time of one."""
    leaves = scan_leaves(bench, batch, channels, 16)
    started = 0.0
    for _ in range(2):
        bench.wait()
        started = time.perf_counter()
        y = selective_scan(**leaves, delta_softplus=True, implementation="naive")
        assert isinstance(y, Tensor)
        y.sum().backward()
        bench.wait()
    return (time.perf_counter() - started) / 16


def _scan_competitors(bench: Bench, name: str, batch: int, channels: int, length: int) -> list[BenchRow]:
    elements, states = batch * channels * length, bench.config.states
    rows = Rows(bench.on_row)
    free = torch.cuda.mem_get_info()[0]
    what = f"{name} associative_scan, compiled"
    if 16 * elements * states > free:  # decays and inputs of every state, read and written, in float32
        rows.append(BenchRow(what, {"forward ms": "does not fit", "forward+backward ms": "does not fit"}))
    else:
        rows.append(
            bench.row(what, functools.partial(_associative_scan, bench, batch, channels, length), 8 * elements * states)
        )
    for kernel in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        what = f"{name} attention, {kernel.split('_')[0].lower()}, heads of 64"
        seconds = 7 * elements * length / 200e12  # at half of what the best reach
        if channels % 64 or seconds > TOO_SLOW_SECONDS:
            rows.append(BenchRow(what, {"forward ms": "too slow", "forward+backward ms": "too slow"}))
        else:
            rows.append(
                bench.row(what, functools.partial(_attention, bench, batch, channels, length, kernel), 6 * elements)
            )
    rows.append(
        bench.row(f"{name} FFT convolution", functools.partial(_fft, bench, batch, channels, length), 4 * elements)
    )
    if importlib.util.find_spec("mamba_ssm") is not None:
        rows.append(
            bench.row(f"{name} mamba_ssm", functools.partial(_official, bench, batch, channels, length), 8 * elements)
        )
    return rows


def _associative_scan(bench: Bench, batch: int, channels: int, length: int) -> tuple:
    from torch._higher_order_ops.associative_scan import associative_scan

    leaves = scan_leaves(bench, batch, channels, length)

    def combine(left: tuple, right: tuple) -> tuple:
        return left[0] * right[0], right[0] * left[1] + right[1]

    @torch.compile
    def scan(u, delta, A, B, C, D, z, delta_bias):
        step = F.softplus(delta.float() + delta_bias)
        decay = torch.exp(step[..., None] * A)
        added = (step * u)[..., None] * B[:, :, None, :].float()
        _, states = associative_scan(combine, (decay, added), dim=1, combine_mode="pointwise")
        y = (states * C[:, :, None, :]).sum(-1) + D * u
        return (y * F.silu(z.float())).to(u.dtype)

    return _pair(scan, leaves, bench.normal(batch, length, channels))


def _attention(bench: Bench, batch: int, channels: int, length: int, kernel: str) -> tuple:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape = (batch, channels // 64, length, 64)
    leaves = {name: bench.normal(*shape).requires_grad_() for name in ("query", "key", "value")}

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    return _pair(attend, leaves, bench.normal(*shape))


def _fft(bench: Bench, batch: int, channels: int, length: int) -> tuple:
    leaves = {
        "x": bench.normal(batch, length, channels).requires_grad_(),
        "kernel": bench.normal(channels, length, dtype=torch.float32).requires_grad_(),
    }

    def convolve(x: Tensor, kernel: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x.mT.float(), n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length].mT.to(x.dtype)

    return _pair(convolve, leaves, bench.normal(batch, length, channels))


def _official(bench: Bench, batch: int, channels: int, length: int) -> tuple:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]

    leaves = scan_leaves(bench, batch, channels, length)
    for name in ("u", "delta", "B", "C", "z"):
        leaves[name] = leaves[name].detach().mT.contiguous().requires_grad_()

    def scan(**tensors: Tensor) -> Tensor:
        return selective_scan_fn(**tensors, delta_softplus=True)

    return _pair(scan, leaves, bench.normal(batch, channels, length))


def _conv(bench: Bench) -> list[BenchRow]:
    rows = Rows(bench.on_row)
    for batch, channels, length in _shapes(bench):
        elements, size = batch * channels * length, bench.dtype.itemsize
        name = f"({batch}, {channels}, {length:,})"
        floors = None
        if bench.bytes_a_second is not None:
            forward = bench.bytes_ms(2 * elements * size)
            floors = (forward, forward + bench.bytes_ms(3 * elements * size))

        def make(implementation: str, batch: int = batch, channels: int = channels, length: int = length) -> tuple:
            leaves = {
                "x_BTD": bench.normal(batch, length, channels),
                "weight_DK": bench.normal(channels, 4, dtype=torch.float32),
                "bias_D": bench.normal(channels, dtype=torch.float32),
            }

            def convolve(**tensors: Tensor) -> Tensor:
                y = causal_conv1d(**tensors, activation="silu", implementation=implementation)
                assert isinstance(y, Tensor)
                return y

            leaves = {key: leaf.requires_grad_() for key, leaf in leaves.items()}
            return _pair(convolve, leaves, bench.normal(batch, length, channels))

        for implementation in bench.implementations if bench.config.competitors else bench.implementations[-1:]:
            rows.append(
                bench.row(f"{name} {implementation}", functools.partial(make, implementation), elements * size, floors)
            )
        if bench.config.competitors and importlib.util.find_spec("causal_conv1d") is not None:
            rows.append(bench.row(f"{name} causal_conv1d", functools.partial(_official_conv, bench, batch, channels, length),
                                  elements * size, floors))  # fmt: skip
    return rows


def _official_conv(bench: Bench, batch: int, channels: int, length: int) -> tuple:
    from causal_conv1d import causal_conv1d_fn  # type: ignore[import-not-found]

    leaves = {
        "x": bench.normal(batch, length, channels).mT.requires_grad_(),
        "weight": bench.normal(channels, 4, dtype=torch.float32).requires_grad_(),
        "bias": bench.normal(channels, dtype=torch.float32).requires_grad_(),
    }
    return _pair(
        lambda **tensors: causal_conv1d_fn(**tensors, activation="silu"),
        leaves,
        bench.normal(batch, length, channels).mT,
    )


def _norm(bench: Bench) -> list[BenchRow]:
    rows = Rows(bench.on_row)
    num_rows, widths = (2**20, (128, 256, 1024)) if bench.device == "cuda" else (2**14, (64, 128))
    for width in widths:
        elements, size = num_rows * width, bench.dtype.itemsize
        floors = None
        if bench.bytes_a_second is not None:  # read x and the stream, write both; back: read dy, ds, s, write dx, ds
            forward = bench.bytes_ms(elements * (2 * size + 8))
            floors = (forward, forward + bench.bytes_ms(elements * (2 * size + 12)))

        def make(implementation: str, width: int = width) -> tuple:
            leaves = {
                "x": bench.normal(num_rows, width),
                "weight_D": bench.normal(width, dtype=torch.float32),
                "residual": bench.normal(num_rows, width, dtype=torch.float32),
            }
            leaves = {key: leaf.requires_grad_() for key, leaf in leaves.items()}
            gradients = [bench.normal(num_rows, width), bench.normal(num_rows, width, dtype=torch.float32)]

            def normalise(x: Tensor, residual: Tensor, weight_D: Tensor) -> tuple[Tensor, Tensor]:
                return add_rms_norm(x, residual, weight_D, implementation=implementation)

            return _pair(normalise, leaves, gradients)

        for implementation in bench.implementations if bench.config.competitors else bench.implementations[-1:]:
            name = f"{num_rows:,} x {width} {implementation}"
            rows.append(bench.row(name, functools.partial(make, implementation), elements * size * 3, floors))
    return rows


def _loss(bench: Bench) -> list[BenchRow]:
    num_rows = 2**20 if bench.device == "cuda" else 2**16
    floors = None
    if bench.bytes_a_second is not None:  # back: read the logits, write their gradient
        forward = bench.bytes_ms(num_rows * (16 * 4 + 1 + 4 + 4))
        floors = (forward, forward + bench.bytes_ms(num_rows * (2 * 16 * 4 + 1 + 4)))
    rows = Rows(bench.on_row)

    def make(implementation: str) -> tuple:
        leaf = {"logits_BTV": bench.normal(1, num_rows, 16, dtype=torch.float32).requires_grad_()}
        targets = torch.randint(7, 11, (1, num_rows), device=bench.device, dtype=torch.uint8)
        weights = torch.rand(1, num_rows, device=bench.device)
        one = torch.ones((), device=bench.device)
        return _pair(
            lambda logits_BTV: cross_entropy(logits_BTV, targets, weights, implementation=implementation).sum(),
            leaf,
            one,
        )

    for implementation in bench.implementations if bench.config.competitors else bench.implementations[-1:]:
        name = f"{num_rows:,} x 16 {implementation}"
        rows.append(bench.row(name, functools.partial(make, implementation), num_rows * 69, floors))
    return rows


def _step(bench: Bench) -> list[BenchRow]:
    """One base of every sequence through the whole model, as called and as one CUDA graph."""
    rows = Rows(bench.on_row)
    sizes, batches = (("6x128", "12x128", "24x1024"), (1, 64, 1024)) if bench.device == "cuda" else (("2x64",), (1, 16))
    for size in sizes:
        pattern, width = parse_size(size)
        model = DnaMamba(BackboneConfig(width=width, pattern=pattern)).to(bench.device)
        model.use_implementation(bench.implementations[-1])
        weights = sum(p.numel() for p in model.parameters()) * 4
        for batch in batches:
            bench.say(f"{size}, batch {batch}")
            tokens = torch.randint(7, 11, (batch,), device=bench.device)
            state = model.new_state(batch, bench.dtype)
            moved = weights + 2 * sum(tensor.numel() * tensor.element_size() for layer in state for tensor in layer)
            ways: dict[str, Call] = {}

            def step(
                implementation: str, tokens: Tensor = tokens, state: ModelState = state, model: DnaMamba = model
            ) -> Tensor:
                model.use_implementation(implementation)
                with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.dtype == torch.bfloat16):
                    return model.step(tokens, state)

            if bench.config.competitors and bench.device == "cuda":  # on a CPU there is one step, that of plain torch
                ways["plain torch"] = functools.partial(step, "naive")
            ways["as called"] = functools.partial(step, bench.implementations[-1])
            if bench.device == "cuda":
                ways["CUDA graph"] = functools.partial(CapturedStep(model, batch, bench.dtype), tokens)
            # float32, as generation runs whatever the precision of the rest
            draw = Draw(model, model.new_state(batch), tokens, SamplingConfig(), 0)
            ways["drawing included, float32"] = captured(draw) if bench.device == "cuda" else draw
            for way, call in ways.items():
                row = BenchRow(f"{size}, batch {batch}, {way}")
                found = bench.time_with_host(call)
                row.cells |= {"ms a step": found[0], "+-": found[1], "bases a second": 1e3 * batch / found[0]}
                if bench.bytes_a_second is not None:
                    row.cells["times floor"] = found[0] / bench.bytes_ms(moved)
                rows.append(row)
    return rows


def _block(bench: Bench) -> list[BenchRow]:
    """A whole Mamba block: all projections, convolution and scan, parameters in float32, as in training."""
    rows = Rows(bench.on_row)
    widths = (128, 256, 1024) if bench.device == "cuda" else (64,)
    tokens = 2**20 if bench.device == "cuda" else 2**12
    lengths = (1024, 16_384, 131_072, 1_048_576) if bench.device == "cuda" else (256, 4096)
    shapes = bench.config.shapes or tuple((tokens // length, width, length) for width in widths for length in lengths)
    for batch, width, length in shapes:

        def make(implementation: str, batch: int = batch, width: int = width, length: int = length) -> tuple:
            mixer: nn.Module
            if implementation == "mamba_ssm":
                from mamba_ssm import Mamba  # type: ignore[import-not-found]

                mixer = Mamba(width, d_state=bench.config.states)
            else:
                mixer = MambaConfig(num_states=bench.config.states).build(width)
                mixer.implementation = implementation
                nn.init.kaiming_uniform_(mixer.out_proj.weight)
            mixer = mixer.to(bench.device)
            x = bench.normal(batch, length, width).requires_grad_()

            def block(**leaves: Tensor) -> Tensor:
                with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.dtype == torch.bfloat16):
                    y = mixer(leaves["x"])
                    return y if isinstance(y, Tensor) else y[0]

            leaves = {"x": x, **dict(mixer.named_parameters())}
            return _pair(block, leaves, bench.normal(batch, length, width))

        names = [bench.implementations[-1]]
        if bench.config.competitors:
            names += ["naive"] + ["mamba_ssm"] * (importlib.util.find_spec("mamba_ssm") is not None)
        for name in names:
            what = f"({batch}, {width}, {length:,}) {name}"
            seconds = (
                _seconds_of_naive(bench, batch, 2 * width, bench.config.states) * length if name == "naive" else 0.0
            )
            if seconds > TOO_SLOW_SECONDS:
                rows.append(BenchRow(what, {"forward ms": "too slow", "forward+backward ms": "too slow"}))
                continue
            row = bench.row(what, functools.partial(make, name), 4.0 * batch * width * length)
            if isinstance(row.cells.get("forward+backward ms"), float):
                row.cells["Mbases/s"] = batch * length / row.number("forward+backward ms") / 1e3
            rows.append(row)
    return rows
