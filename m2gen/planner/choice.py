"""What tells one candidate from another: a short text for each, a style that carries over to other sizes, a digest of
all of them.

    native 8x4x4x4x4x4 channels 1, spectra kept

Wisdom names a plan by this text, so it can only ever pick one of the candidates, each of which is legal.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from math import log2

from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.planner.plan import FusedConv, NativeConv, Plan

_COUNTED = 2**30  # bytes in use at once


def choice(plan: Plan) -> str:
    """The plan among the candidates of its problem."""
    conv = plan.conv
    fold = ", folded" if conv.fold else ""
    if isinstance(conv, FusedConv):
        return f"{plan.solver} {conv.spec.name} programs {conv.programs}"
    how = "x".join(map(str, conv.transform.radices)) or str(conv.transform.size)
    lanes = ", a channel a lane" if isinstance(conv, NativeConv) and conv.spec.wide else ""
    kept = (", spectra kept" if conv.keep else ", spectra made anew") if isinstance(conv, NativeConv) else ""
    return f"{plan.solver} {how} channels {conv.channels}{lanes}{fold}{kept}"


def style(plan: Plan) -> str:
    """How the plan differs from others of its solver, in words that mean the same for a problem of other sizes."""
    conv = plan.conv
    if isinstance(conv, FusedConv):
        spec = conv.spec
        return f"{plan.solver} {spec.ring} stack {spec.stack} warps {spec.num_warps} stages {spec.num_stages}"
    if isinstance(conv, NativeConv):
        together = "a vector" if conv.channels <= conv.spec.vector else f"{conv.channels // conv.spec.vector} vectors"
        lanes = ", a channel a lane" if conv.spec.wide else ""
        return f"{plan.solver} {_order(conv.spec)}, {together}{lanes}, {'kept' if conv.keep else 'made anew'}"
    folded = ", folded" if conv.fold else ""
    chunk = round(log2(max(conv.estimate.working_set, 1)))
    return f"{plan.solver} order {conv.transform.order}, chunks of about 2^{chunk} bytes{folded}"


def _order(spec: FftConvCppSpec) -> str:
    """Where odd radices and eights stand among the passes."""
    radices = [radix for radix in spec.radices if radix > 1]
    twos = [radix for radix in radices if radix % 2 == 0]
    words = []
    if twos and radices[0] % 2:
        words.append("odd first")
    if twos and radices[0] % 2 == 0 and radices[-1] % 2:
        words.append("odd last")
    falls = twos == sorted(twos, reverse=True)
    words.append("no eights" if 8 not in twos else "twos last" if twos[-1] == 2 else "falling" if falls else "rising")
    return " ".join(words)


def digest(plans: Iterable[Plan]) -> str:
    """12 digits that change with the set of candidates, and with nothing else.

    Plans of more than a gigabyte do not count, unless the least is one: whether they are candidates depends on the
    memory at hand.
    """
    sizes = [(plan.conv.estimate.working_set, choice(plan)) for plan in plans]
    counted = max(_COUNTED, min((size for size, _ in sizes), default=0.0))
    texts = sorted(text for size, text in sizes if size <= counted)
    return sha256("\n".join(texts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def by_choice(plans: tuple[Plan, ...]) -> dict[str, Plan]:
    """Each candidate under its text."""
    return {choice(plan): plan for plan in plans}
