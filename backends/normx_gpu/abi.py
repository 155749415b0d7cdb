"""What a kernel is handed, named once: operands, words, numbers and flags.

The texts know these names through `definitions`, which `source.py` puts in front of them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag, auto

#: The most parameters of its own that a program has.
PARAMETERS = 4
#: The most axes, outer and reduced together, after neighbours have been folded into one.
AXES = 8


class Operand(IntEnum):
    """Every array, in the order in which kernels take them; what a call lacks is a null pointer.

    `X`, `G` and `Y` are in the storage dtype, `WHERE` is bytes, the others are in that of the
    arithmetic: float32, or float64 for float64.  `Y` is the result, or the gradient of `X`.
    """

    X = 0
    G = auto()
    WHERE = auto()
    P0 = auto()
    P1 = auto()
    P2 = auto()
    P3 = auto()
    TEMPERATURE = auto()
    SINK = auto()
    NOISE = auto()  # random numbers in (0, 1)
    WEIGHT = auto()  # of the classes of a loss
    TARGET = auto()  # 64-bit integers: the class of each row, negative where it has none
    Y = auto()
    D0 = auto()
    D1 = auto()
    D2 = auto()
    D3 = auto()
    DTEMPERATURE = auto()
    DSINK = auto()
    INDEX = auto()  # 64-bit integers: where the largest scores are
    SCRATCH = auto()  # zeros, where rows have several blocks


#: The operands that are written to, and whose every entry is.
RESULTS = tuple(operand for operand in Operand if Operand.Y <= operand <= Operand.INDEX)
#: The operands of 64-bit integers.
INTEGERS = (Operand.TARGET, Operand.INDEX)
#: The operands with an entry per score; the others have one per row (and sink).
SCORES = (Operand.X, Operand.G, Operand.WHERE, Operand.NOISE, Operand.WEIGHT, Operand.Y)


class Word(IntEnum):
    """Places among the 64-bit words.

    Sizes and strides are in elements.  Axes are the outer ones, then the reduced ones, slowest
    first; the strides of an operand begin at ``STRIDES + AXES * operand``.
    """

    ROWS = 0
    LENGTH = auto()
    OUTER = auto()  # how many axes are outer ones
    REDUCED = auto()
    FLAGS = auto()
    STEPS = auto()  # vectors that a lane keeps in registers
    SINKS = auto()
    SINK_STRIDE = auto()
    DSINK_STRIDE = auto()
    CONSTANTS = auto()  # how many numbers the constants are
    SIZES = 16
    STRIDES = 16 + AXES


WORDS = Word.STRIDES + AXES * len(Operand)


class Number(IntEnum):
    """Places among the numbers, which are in the dtype of the arithmetic."""

    SOFTCAP = 0
    TEMPERATURE = auto()
    SINK = auto()
    LOG_LENGTH = auto()  # log n in two words, where n is the length of a row
    LOG_LENGTH_LOW = auto()
    P0 = 8
    CONSTANTS = 8 + PARAMETERS


NUMBERS = 32
#: What a row's blocks need of the scratch, in bytes: a counter, and two banks of states.
SCRATCH_PER_ROW = 8 + 2 * 128 * 16
#: The most numbers that a function's constants may be.
CONSTANTS = NUMBERS - Number.CONSTANTS


class Flag(IntFlag):
    """What a call has, and what its function is."""

    WHERE = auto()
    SOFTCAP = auto()
    TEMPERED = auto()  # a temperature was given
    TEMPERATURE_ARRAY = auto()
    SINK = auto()
    SINK_ARRAY = auto()
    P0 = auto()  # parameter 0 was given; 1 to 3 follow
    P1 = auto()
    P2 = auto()
    P3 = auto()
    P0_ARRAY = auto()  # as an array
    P1_ARRAY = auto()
    P2_ARRAY = auto()
    P3_ARRAY = auto()
    D0 = auto()  # its gradient is wanted
    D1 = auto()
    D2 = auto()
    D3 = auto()
    DTEMPERATURE = auto()
    DSINK = auto()
    EMPTY_NAN = auto()
    EMPTY_UNIFORM = auto()
    BACKWARD = auto()
    WIDE = auto()  # X, G and Y are read and written by 16 bytes
    COLUMNS = auto()  # neighbouring threads have neighbouring rows
    # Of the function:
    NEGATED = auto()
    LOG_SPACE = auto()
    REDUCES = auto()
    SCALED = auto()  # differences of scores are multiplied by something
    POINTWISE = auto()  # scores of +inf do not share
    POSITIVE = auto()  # scores up to 0 have no mass
    THRESHOLD = auto()  # scores below parameter 0 have no mass
    FILLS = auto()  # what is left out has a weight
    INHIBITED = auto()  # parameter 0 is a sink
    NOISY = auto()  # scores get noise
    TARGETED = auto()  # rows have a class each
    WEIGHTED = auto()  # and classes a weight


def definitions() -> str:
    """The names of this file for the texts: NX_OF_X, NX_AT_ROWS, NX_NUMBER_SOFTCAP, NX_WHERE."""
    lines = [
        *(f"#define NX_OF_{operand.name} {operand.value}" for operand in Operand),
        *(f"#define NX_AT_{word.name} {int(word)}" for word in Word),
        *(f"#define NX_NUMBER_{number.name} {number.value}" for number in Number),
        *(f"#define NX_{flag.name} {hex(flag.value)}" for flag in Flag),
        f"#define NX_AXES {AXES}",
        f"#define NX_WORDS {WORDS}",
        f"#define NX_NUMBERS {NUMBERS}",
        f"#define NX_OPERANDS {len(Operand)}",
        f"#define NX_SCRATCH_PER_ROW {SCRATCH_PER_ROW}",
    ]
    return "\n".join(lines) + "\n"
