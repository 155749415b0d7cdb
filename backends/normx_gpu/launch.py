"""How many lanes a row gets, and what each of them keeps: a table by length and dtype.

No GPU has timed these numbers yet: they follow from registers, as NVRTC reports them, and from what
keeps a multiprocessor busy.

The order of sums follows from the lanes of a row and the scores in a vector, so both depend on the
length and the dtype alone: bits are the same in every layout and in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes of a storage dtype.
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
WARP = 32
#: The most threads of a block, on every GPU there is.
MOST_THREADS = 1024
#: A memory transaction of one lane; 32 lanes of it are four full lines of 128 bytes.
VECTOR_BYTES = 16
#: Threads of the largest block of rows in registers: each has 128, of which about 30 are not for
#: scores.  In 1024 threads each has 64, so that these hold fewer scores between them.
MOST_LANES = 512
#: Scores that a lane keeps.  NVRTC 13.5 spills nothing then, for sm_90 (softmax has 128 registers),
#: and with 64 scores 128 bytes of every thread.
MOST_REGISTERS = 48
#: The same where more is kept than scores and exponentials (cotangents, masks, the words of a
#: threshold).  With 32, taylor_softmax, normalized_squared_relu and masked_softmax spill 68 to 300.
FEW_REGISTERS = 24
#: Threads of a block of short rows: four warps keep a multiprocessor's four schedulers in work, and
#: rows that are few still spread over many multiprocessors.
SHORT_BLOCK = 128
#: Blocks of a row: one for each multiprocessor of a large GPU, about.
MOST_PARTS = 128
#: A lane fills one part in so many of these before a row gets twice the lanes, in blocks: several
#: loads are in flight in each, barriers and shuffles are few, and 1024 threads of columns have the
#: registers.  (quack has 128 threads for rows of 16384 scores; nothing was measured here.)
FILLED = 3


@dataclass(frozen=True, slots=True)
class Geometry:
    """How rows are spread over threads.

    Attributes
    ----------
    lanes : int
        Threads of a row, a power of two: part of a warp, a warp, or a block.
    rows : int
        Rows of a block, a power of two; 1 where a row has more than a warp, but for columns.
    steps : int
        Vectors that each lane keeps in registers; 0 where it reads them again in every pass.
    vector : int
        Scores in a vector, whether it is read at once or one by one.
    columns : bool
        Whether neighbouring threads have neighbouring rows: for rows whose own elements lie apart.
    parts : int
        Blocks of a row, a power of two.  They wait for each other, so all blocks of a launch must
        be resident at once.
    resident : int
        How many that may be.
    """

    lanes: int
    rows: int
    steps: int
    vector: int
    columns: bool = False
    parts: int = 1
    resident: int = 0

    @property
    def loop(self) -> bool:
        """Whether rows are too long for registers."""
        return self.steps == 0

    @property
    def block(self) -> int:
        """Threads of a block."""
        return self.lanes * self.rows

    def grid(self, rows: int) -> int:
        """Blocks of a call; each goes on with further rows where there are more."""
        most = self.resident // self.parts if self.parts > 1 else 2**31 - 1
        return min(-(-rows // self.rows), most) * self.parts


def geometry(
    n: int,
    dtype: str,
    *,
    columns: bool = False,
    heavy: bool = False,
    resident: int = 0,
) -> Geometry:
    """The geometry for rows of `n` scores; gradients, and some programs, are `heavy`.

    `resident` is how many blocks of 1024 threads a device runs at once, its multiprocessors; 0
    where blocks cannot wait for each other.

    ====================  =============================  ==========================================
    scores (float32)      lanes                          reason
    ====================  =============================  ==========================================
    up to 4               one                            a vector is a row
    up to 128             part of a warp, one vector     no barrier, and log2(lanes) shuffles
    up to 1536            a warp, up to 12 vectors       the same, and loads of each lane in flight
    up to 24576           a block of 128 to 512 lanes    scores in registers: one read, one write
    up to 3145728         up to 128 such blocks          the same; a meeting costs microseconds
    beyond                1024, states online            two reads, one write
    ====================  =============================  ==========================================

    What is `heavy` has half of the registers.  Doubles take two each, and so do other numbers then;
    in half precision a vector has 8 scores, so that a part of a warp goes up to 256.
    """
    size = SIZES[dtype]
    vector = VECTOR_BYTES // size
    vectors = max(-(-n // vector), 1)
    registers = FEW_REGISTERS if heavy else MOST_REGISTERS
    most = ((registers - 8) // 2 if size == 8 else registers) // vector
    few = max(most // FILLED, 1)
    parts = 1
    if vectors <= WARP * most:
        lanes = min(_power_of_two(vectors), WARP)
    else:
        lanes = 2 * WARP
        while lanes < MOST_LANES and lanes * few < vectors:
            lanes *= 2
        while lanes * parts * most < vectors and 2 * parts <= min(resident, MOST_PARTS):
            parts *= 2
    steps = -(-vectors // (lanes * parts))
    if steps > most:
        lanes, steps = MOST_THREADS, 0
    rows = SHORT_BLOCK // lanes if lanes <= WARP else 1
    if columns and parts == 1:
        threads = MOST_THREADS if steps <= few else MOST_LANES
        rows = max(min(WARP, threads // lanes), WARP // lanes)
    return Geometry(lanes, rows, steps, vector, columns and rows > 1, parts, resident)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
