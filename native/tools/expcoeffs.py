"""Prints native/simd/expcoeffs.hpp: the numbers behind every exponential of normx.

    python native/tools/expcoeffs.py > native/simd/expcoeffs.hpp

exp(x) = 2^n · P(t) with n = rint(x·log2 e) and t = x − n·ln 2. P is fitted to a small relative
error on |t| ≤ ln 2/2 + slack by least squares on Chebyshev nodes (within a factor of two of the
minimax polynomial, without its exchange algorithm), where the slack covers the rounding of x·log2 e
over the range that matters (|x| < 2^13). P(0) = 1 exactly, so that exp(0) is 1. The coefficients
are rounded one after another from the lowest degree up, the rest is fitted again after each
rounding, and the error printed is the error of the numbers printed.
"""

import re

import mpmath as mp

mp.mp.dps = 60


def fit(fixed, degree, bound):
    """Continue fixed[0..] up to `degree`: least squares of the relative error."""
    nodes = [bound * mp.cos(mp.pi * (2 * k + 1) / 128) for k in range(64)]
    rows = [[t**power / mp.exp(t) for power in range(len(fixed), degree + 1)] for t in nodes]
    rest = [1 - mp.polyval(fixed[::-1], t) / mp.exp(t) for t in nodes]
    return list(mp.qr_solve(mp.matrix(rows), mp.matrix(rest))[0])


def worst(coefficients, bound):
    points = [bound * mp.mpf(i) / 2000 for i in range(-2000, 2001)]
    return max(abs(mp.polyval(coefficients[::-1], t) / mp.exp(t) - 1) for t in points)


def rounded(x, bits):
    """Round x to `bits` significant bits."""
    if x == 0:
        return mp.mpf(0)
    scale = mp.mpf(2) ** (bits - 1 - mp.floor(mp.log(abs(x), 2)))
    return mp.nint(x * scale) / scale


def hexfloat(x, suffix):
    return re.sub(r"\.?0*p", "p", float(x).hex()) + suffix


def table(type_name, suffix, bits, degree, short, slack):
    bound = mp.ln2 / 2 + slack
    fixed = [mp.mpf(1)]
    while len(fixed) <= degree:
        fixed.append(rounded(fit(fixed, degree, bound)[0], bits))
    error = worst(fixed, bound) * 2**bits
    hi = rounded(mp.ln2, bits)
    a = rounded(mp.ln2, short)
    b = rounded(mp.ln2 - a, short)
    quality = f"greatest relative error of the polynomial: {mp.nstr(error, 2)} · 2^-{bits}"
    exact = "x − n·hi is exact because it is a small multiple of the last place of hi"
    print(f"""
template <> struct Exp<{type_name}> {{
  static constexpr {type_name} log2e = {hexfloat(rounded(1 / mp.ln2, bits), suffix)};
  // With FMA: n·hi is not rounded, and {exact}.
  static constexpr {type_name} ln2_hi = {hexfloat(hi, suffix)};
  static constexpr {type_name} ln2_lo = {hexfloat(rounded(mp.ln2 - hi, bits), suffix)};
  // Without FMA: {short}-bit pieces, so that n·a and n·b (n has at most 15 bits) are exact.
  static constexpr {type_name} ln2_a = {hexfloat(a, suffix)};
  static constexpr {type_name} ln2_b = {hexfloat(b, suffix)};
  static constexpr {type_name} ln2_c = {hexfloat(rounded(mp.ln2 - a - b, bits), suffix)};
  static constexpr int degree = {degree};  // {quality}
  static constexpr {type_name} coefficient[degree + 1] = {{""")
    for c in fixed:
        print(f"      {hexfloat(c, suffix)},")
    print("  };\n};")


print("""// Written by native/tools/expcoeffs.py, which explains the numbers. Do not edit.
#pragma once

namespace normx {

template <class T> struct Exp;""")
table("float", "f", 24, 6, 9, mp.mpf("0.0005"))
table("double", "", 53, 11, 38, mp.mpf("0.0005"))
print("\n}  // namespace normx")
