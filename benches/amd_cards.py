"""The cards of docs/amd.md: what their makers publish, what others measured on them, and what is assumed."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """What cards of one architecture share.

    Attributes:
        wave: lanes of a wave.
        simds: vector units of a compute unit (CU), each with a scheduler of its own.
        simd_lanes: lanes of an instruction that a vector unit takes in a cycle.
        registers: of a vector unit, for each lane of a wave.
        granule: in which they are given out.
        waves: the most that a vector unit holds.
        latency: seconds from a load to its value, from memory, while others load.
        cached: the same of what lies in a cache.
        gap: cycles between two instructions of a lone wave; None where llvm-mca says it.
    """

    wave: int
    simds: int
    simd_lanes: int
    registers: int
    granule: int
    waves: int
    latency: float
    cached: float
    gap: float | None = None


CDNA = Family(64, 4, 16, 512, 8, 8, 1.0e-6, 0.3e-6)
RDNA2 = Family(32, 2, 32, 1024, 8, 16, 0.6e-6, 0.2e-6)
RDNA3 = Family(32, 2, 32, 1536, 24, 16, 0.6e-6, 0.2e-6)
HOPPER = Family(32, 4, 32, 512, 8, 16, 0.7e-6, 0.25e-6, gap=2.0)


class Card(NamedTuple):
    """A card.

    Attributes:
        target: its architecture's name.
        units: compute units; multiprocessors of an NVIDIA card.
        clock: Hz, the highest that is published.
        bandwidth: bytes a second, as published.
        share: of that which reads reach.
        launch: seconds that a kernel costs in a replayed graph, when it does next to nothing.
        matrix: float16 operations a second of the matrix unit, as published, without sparsity.
        lds: bytes of a compute unit.
        counted: what HIP counts as a multiprocessor: a compute unit, or on RDNA two that share LDS.
    """

    name: str
    target: str
    family: Family
    units: int
    clock: float
    bandwidth: float
    share: float
    launch: float
    matrix: float
    lds: int = 64 << 10

    @property
    def counted(self) -> int:
        return self.units // 2 if self.target.startswith("gfx1") else self.units

    @property
    def simds(self) -> int:
        return self.units * self.family.simds

    @property
    def read_rate(self) -> float:
        """Bytes a second that reads reach."""
        return self.bandwidth * self.share

    @property
    def issue_rate(self) -> float:
        """Lanes' vector instructions a second."""
        return self.simds * self.family.simd_lanes * self.clock


CARDS = [
    Card("MI300X", "gfx942", CDNA, 304, 2.10e9, 5.3e12, 0.77, 4.0e-6, 1307e12),
    Card("MI355X", "gfx950", CDNA, 256, 2.40e9, 8.0e12, 0.86, 4.0e-6, 2517e12, 160 << 10),
    Card("RX 7900 XTX", "gfx1100", RDNA3, 96, 2.50e9, 960e9, 0.85, 2.8e-6, 122.8e12),
    Card("PRO W7900", "gfx1100", RDNA3, 96, 2.495e9, 864e9, 0.85, 3.8e-6, 122.6e12),
    Card("RX 9070 XT", "gfx1201", RDNA3, 64, 2.97e9, 640e9, 0.85, 2.1e-6, 194.6e12),
    Card("8060S", "gfx1151", RDNA3, 40, 2.90e9, 256e9, 0.83, 1.75e-6, 59.4e12),
    Card("RX 6800 XT", "gfx1030", RDNA2, 72, 2.25e9, 512e9, 0.93, 2.8e-6, 41.5e12),
]
H200 = Card("H200", "sm_90", HOPPER, 132, 1.98e9, 4.8e12, 4.57 / 4.8, 1.2e-6, 989e12, 228 << 10)

SOURCES = """
Units, clocks, bandwidths and matrix rates are the makers': [MI300X], [MI355X], [7900 XTX], [W7900], [9070 XT],
[6800 XT]; of the 8060S the matrix rate is 512 operations a clock and unit. The 6800 XT has no matrix unit: its rate is
that of pairs on the vector units. Register files, LDS and waves are from [AMD's table] and [LLVM's guide]. A unit of
CDNA has four vector units that take 16 lanes a cycle, so an instruction of a wave of 64 takes four cycles; one of RDNA
has two of 32 lanes, and an instruction takes one. RDNA 3 can issue two instructions at a time: only the pairs that the
compiler has formed are counted on.

What reads reach of the bandwidth: 0.77 on gfx942 and 0.86 on gfx950 by [AMD's read kernel] (4.07 TB/s of a MI308X with
64 units, 6.91 of a MI350X); 0.83 on the 8060S by [rocm_bandwidth_test]; 0.93 on a 6900 XT by [clpeak], some of which
its last cache may have given; 0.85 is assumed for the other three; 4.57 TB/s measured on the H200.

A launch in a replayed graph costs 2.8 µs on a 7900 XTX, 2.1 on gfx1201 and 1.75 on an 8060S with [ROCm 7.14], and 3.8
on a W7900 by [another measurement]. The 6800 XT is taken for a 7900 XTX. For MI300X and MI355X no figure was found: 4
µs is assumed, since a launch goes to eight dies. On the H200 it is 1.2 µs ([kernels.md](kernels.md)).

Latencies are assumed: from a load to its value, among many others, 1.0 µs on CDNA, 0.6 on RDNA and 0.7 on the H200,
from a cache 0.3, 0.2 and 0.25. (A lone load of the 7900 XTX takes [0.15 to 0.2 µs] from its last cache.)

[MI300X]: https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html
[MI355X]: https://www.amd.com/en/products/accelerators/instinct/mi350/mi355x.html
[7900 XTX]: https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xtx.html
[W7900]: https://www.amd.com/en/products/graphics/workstations/radeon-pro/w7900.html
[9070 XT]: https://www.amd.com/en/products/graphics/desktops/radeon/9000-series/amd-radeon-rx-9070xt.html
[6800 XT]: https://www.amd.com/en/products/graphics/desktops/radeon/6000-series/amd-radeon-rx-6800-xt.html
[AMD's table]: https://rocm.docs.amd.com/en/latest/reference/gpu-specs.html
[LLVM's guide]: https://llvm.org/docs/AMDGPUUsage.html
[AMD's read kernel]: https://github.com/ROCm/rocm-systems/pull/8480
[rocm_bandwidth_test]: https://llm-tracker.info/_TOORG/Strix-Halo
[clpeak]: https://github.com/krrishnarraj/clpeak/issues/102
[ROCm 7.14]: https://github.com/ROCm/legacy-rocm-build/issues/6409
[another measurement]: https://github.com/ROCm/rocm-systems/issues/10834
[0.15 to 0.2 µs]: https://chipsandcheese.com/p/latency-testing-is-hard-rdna-3-power-saving
""".strip()
