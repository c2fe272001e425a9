"""Kernels' names are read back: every kernel of the survey, with every flag; what is no name is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.named import named
from m2gen.kernels.surveyed import SURVEYED

FLAGS = ("pre_gate", "post_gate", "transpose", "skip", "add", "wrap", "full")


def specs() -> list[FftConvSpec]:
    found = []
    for (_, width, part, ring), rows in SURVEYED.items():
        for stack, *radices in rows:
            n0, n1, n2 = radices if len(radices) == 3 else (1, *radices)
            compute = "fp16" if width == 2 else "fp32"
            one = FftConvSpec(
                part="dk" if part == "dk" else "fwd",
                ring="causal" if ring == "causal" else "cyclic",
                n0=n0,
                n1=n1,
                n2=n2,
                stack=stack,
                dtype="bf16" if width == 2 else "fp32",
                compute=compute,
            )
            found += [one, *(replace(one, num_warps=8, num_stages=1, **{flag: True}) for flag in FLAGS)]
            found.append(replace(one, **dict.fromkeys(FLAGS, True)))
    return found


def test_every_kernel_is_found_by_its_name() -> None:
    assert len(specs()) > 500
    for spec in specs():
        assert named(spec.name) == spec


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gemm",
        "fftconv_fwd_n1024_r32x32_cyclic_fp16_fp16",
        "fftconv_fwd_n512_r32x32_cyclic_fp16_fp16_w4_s2",  # of another size
        "fftconv_fwd_n1024_r32x32_cyclic_fp16_fp16_post_pre_w4_s2",  # in another order
        "fftconv_fwd_n1024_r32x32_cyclic_fp16_fp16_odd_w4_s2",
        "fftconv_fwd_n1024_r32x32_cyclic_fp16_fp16_w4_s2_more",
        "fftconv_bwd_n1024_r32x32_cyclic_fp16_fp16_w4_s2",
    ],
)
def test_other_names_are_of_no_kernel(name: str) -> None:
    assert named(name) is None
