"""The check of what Hopper's matrix instructions read: on small programs by hand, and on kernels compiled here."""

from __future__ import annotations

import re

import operand_reads
import pytest
import triton

from m2gen.kernels.survey import FAMILIES
from m2gen.kernels.unsound import unsound
from m2gen.runtime.build.cross_compile import Job, compile_all
from m2gen.runtime.machine_code.operand_reads import misread

# A: 64 rows of 16 numbers at byte 0, swizzled by 128 bytes; B: 16 by 16 at byte 8192, by 32 bytes, across
PTX = """
.visible .entry kernel(
)
{
	mov.b32 	%r1, global_smem;
	bfe.u32 	%r2, %r1, 4, 14;
	add.s32 	%r3, %r1, 8192;
	bfe.u32 	%r4, %r3, 4, 14;
	cvt.u64.u32 	%rd1, %r2;
	cvt.u64.u32 	%rd2, %r4;
	or.b64 	%rd3, %rd1, 4611686293305294848;
	or.b64 	%rd4, %rd2, -4611685949707911168;
	mov.b32 	%r9, -1;
$L__BB0_1:
	wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%r10,%r11,%r12,%r13,%r14,%r15,%r16}, %rd3, %rd4, 0, 1, 1, 0, 1;
	@%p1 bra 	$L__BB0_1;
	ret;
}
"""
SASS = (
    "S2UR UR8, SR_CgaCtaId",
    "UMOV UR9, 0x400",
    "ULEA UR8, UR8, UR9, 0x18",
    "USHF.R.U32.HI UR4, URZ, 0x4, UR8",
    "UIADD3 UR9, UR8, 0x2000, URZ",
    "USHF.R.U32.HI UR9, URZ, 0x4, UR9",
    "MOV R27, UR9",
    "UMOV UR5, 0x40000040",
    "UMOV UR7, 0xc0000010",
    "R2UR UR6, R27",
    "HGMMA.64x16x16.F32 R32, gdesc[UR4].tnspB, RZ, !UPT",
    "@P1 BRA 0x90",
    "EXIT",
)
SHARED = 8192 + 512


def code(*lines: str) -> str:
    return "\n".join(f"        /*{16 * n:04x}*/    {line} ;" for n, line in enumerate(lines))


def changed(at: int, *lines: str) -> str:
    """The program with an instruction replaced; the loop's end still branches to the product's descriptor."""
    program = [*SASS[:at], *lines, *SASS[at + 1 :]]
    return code(*program).replace("0x90", f"{16 * (8 + len(lines)):#x}")


def test_right_code_is_right() -> None:
    assert misread(PTX, code(*SASS), SHARED, 4) is None
    assert misread("no products at all", "", 0, 4) is None


def test_reading_behind_the_blocks_memory_is_told() -> None:
    """To the byte: the last row of B ends where the memory does."""
    assert misread(PTX, code(*SASS), SHARED - 1, 4) == "warp 0: PTX asks for bytes 8192 to 8704 of 8703"
    wide = PTX.replace("%rd4, 0, 1, 1, 0, 1;", "%rd4, 0, 1, 1, 0, 0;")  # B along the sum: two groups of eight rows
    assert misread(wide, code(*SASS), SHARED, 4) is None
    narrow = PTX.replace("-4611685949707911168", "4611686293305294848")  # the same tile in rows of 128 bytes
    assert misread(narrow, code(*SASS), SHARED, 4) == "warp 0: PTX asks for bytes 8192 to 10240 of 8704"


@pytest.mark.parametrize(
    "overwritten",
    [
        "LDG.E R27, desc[UR10][R2.64]",
        "LDG.E.128 R24, desc[UR10][R2.64]",
        "HADD2.F32 R27, -RZ, R8.H0_H0",
        "LDSM.16.M88.4 R24, [R3]",
    ],
)
def test_a_descriptor_whose_register_was_overwritten_is_told(overwritten: str) -> None:
    """Also by an instruction that writes several registers: R24 to R27."""
    assert "reads where data" in str(misread(PTX, changed(6, "MOV R27, UR9", overwritten), SHARED, 4))


def test_a_descriptor_that_points_elsewhere_is_told() -> None:
    assert "which PTX nowhere asks for" in str(misread(PTX, changed(4, "UIADD3 UR9, UR8, 0x1000, URZ"), SHARED, 4))
    assert "which PTX nowhere asks for" in str(misread(PTX, changed(8, "UMOV UR7, 0x80000010"), SHARED, 4))


def test_a_start_that_depends_on_the_thread_is_told() -> None:
    moved = changed(6, "S2R R26, SR_TID.X", "IADD3 R27, R26, UR9, RZ")
    assert "warp 1" in str(misread(PTX, moved, SHARED, 4))


def test_registers_that_change_places_are_followed() -> None:
    """By three exclusive ors: the start, in two places in turn, comes to stand where it should."""
    swap = [f"ULOP3.LUT {x}, {x}, {y}, URZ, 0x3c, !UPT" for x, y in (("UR6", "UR7"), ("UR7", "UR6"), ("UR6", "UR7"))]
    program = [*SASS[:8], "R2UR UR7, R27", "UMOV UR6, 0xc0000010", *swap, *SASS[10:]]
    assert misread(PTX, code(*program).replace("0x90", "0x80"), SHARED, 4) is None
    assert misread(PTX, code(*program[:-4], *program[-3:]).replace("0x90", "0x80"), SHARED, 4) is not None


@pytest.mark.parametrize(
    ("beside", "over"),
    [
        ("HMMA.16816.F32 R20, R4, R6, RZ", "HMMA.16816.F32 R24, R4, R6, RZ"),  # four registers
        ("F2I.FTZ.U32.TRUNC.NTZ R26, R16", "F2I.S64.TRUNC R26, R16"),  # one, and two
    ],
)
def test_only_what_is_written_is_forgotten(beside: str, over: str) -> None:
    assert misread(PTX, changed(6, "MOV R27, UR9", beside), SHARED, 4) is None
    assert misread(PTX, changed(6, "MOV R27, UR9", over), SHARED, 4) is not None


LOOP = PTX.replace(
    "\twgmma",
    "\tadd.s32 \t%r20, %r9, 1;\n\tsetp.gt.s32 \t%p2, %r20, 2;\n\tselp.b32 \t%r9, 0, %r20, %p2;\n"
    "\tshl.b32 \t%r21, %r9, 9;\n\tadd.s32 \t%r22, %r3, %r21;\n\tbfe.u32 \t%r23, %r22, 4, 14;\n"
    "\tcvt.u64.u32 \t%rd5, %r23;\n\tor.b64 \t%rd4, %rd5, -4611685949707911168;\n\twgmma",
)


def looped(*descriptor: str) -> str:
    """Code of LOOP: a start that goes round three buffers, and what makes the descriptor of it."""
    body = (
        "IADD3 R9, R9, 0x1, RZ",
        "ISETP.GT.AND P2, PT, R9, 0x2, PT",
        "SEL R9, R9, RZ, !P2",
        "IMAD.SHL.U32 R10, R9, 0x200, RZ",
        "IADD3 R10, R10, R26, RZ",
        "SHF.R.U32.HI R27, RZ, 0x4, R10",
    )
    start = ("MOV R26, UR11", "IMAD.MOV.U32 R9, RZ, RZ, -0x1")
    program = [*SASS[:5], "UIADD3 UR11, UR8, 0x2000, URZ", *start, *SASS[7:9], *body, *descriptor, *SASS[10:]]
    return code(*program).replace("0x90", f"{16 * 10:#x}")


def test_a_pipeline_s_buffers_are_followed() -> None:
    """Those three, in PTX and in the machine code."""
    text = looped(SASS[9])
    assert misread(LOOP, text, 8192 + 3 * 512, 4) is None
    assert misread(LOOP, text, 8192 + 2 * 512, 4) == "warp 0: PTX asks for bytes 9216 to 9728 of 9216"


def test_buffers_whose_registers_change_places_are_followed() -> None:
    """The three exclusive ors may stand far apart; not where one of them may be jumped over, or is looked at."""
    ors = [f"ULOP3.LUT {x}, {x}, {y}, URZ, 0x3c, !UPT" for x, y in (("UR6", "UR7"), ("UR7", "UR6"), ("UR6", "UR7"))]

    def swapped(*between: str) -> str | None:
        apart = [ors[0], *["MOV R3, R2"] * 9, ors[1], *between, ors[2]]
        return misread(LOOP, looped("R2UR UR7, R27", "UMOV UR6, 0xc0000010", *apart), 8192 + 3 * 512, 4)

    assert swapped() is None and swapped("MOV R3, R2") is None
    assert swapped("UIADD3 UR18, UR6, 0x1, URZ") is not None
    third = f"{16 * (10 + 6 + 2 + 12):#x}"
    assert swapped(f"@P0 BRA {third}") is not None


def committed() -> dict[str, str]:
    lines = operand_reads.COMMITTED.read_text().splitlines()[1:]
    return dict(line.split(": ", 1) for line in lines)


def test_every_kernel_that_misreads_is_not_planned() -> None:
    """The committed list against the rule by which planning goes; each kernel of the rule is in the list."""
    verdicts = committed()
    known = {spec.name: spec for spec in operand_reads.specs()}
    assert verdicts.keys() <= known.keys()
    wrong = {name for name, why in verdicts.items() if why != operand_reads.RIGHT and "not compiled" not in why}
    assert wrong
    for name in wrong:
        assert unsound(known[name], FAMILIES["sm90"]) is not None, name
    staged = {name for name, spec in known.items() if spec.staged and spec.num_stages == 1 and spec.compute == "fp16"}
    assert staged <= verdicts.keys()


SOME = (
    r"fwd_n8192_r32x16x16_cyclic_fp16_fp16_stack4_pre_post_w[48]_s1$",
    r"fwd_n4096_r64x64_causal_fp16_fp16_pre_post_w4_s2$",
    r"dk_n1024_r32x32_cyclic_fp16_fp16_stack2_pre_post_skip_w4_s2$",
)


@pytest.mark.slow
def test_the_list_is_what_the_compiler_gives() -> None:
    """Some of it, with the compiler that wrote it."""
    if f"Triton {triton.__version__}," not in operand_reads.COMMITTED.read_text().splitlines()[0]:
        pytest.skip("another compiler wrote the list")
    specs = [spec for spec in operand_reads.specs() if any(re.search(pattern, spec.name) for pattern in SOME)]
    assert len(specs) == 4
    compiled = compile_all([Job(spec, operand_reads.ARCH) for spec in specs])
    now = dict(operand_reads.line(spec, one).split(": ", 1) for spec, one in zip(specs, compiled, strict=True))
    assert now == {name: committed()[name] for name in now}
    assert len(set(now.values())) > 1
