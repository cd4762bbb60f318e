//! Instructions against values that real devices give.

use super::super::lanes::{self, Args, Class, Reg, Regs};
use super::{by_lanes, vectors};

/// What an instruction makes of these values.
fn one(name: &str, of: &[u64]) -> u64 {
    let operation = lanes::find(name).unwrap_or_else(|| panic!("{name} is not known"));
    let mut regs = Regs::default();
    regs.reset([8; 3]);
    let mut args = Args { to: 7, ..Args::default() };
    for (i, (value, class)) in of.iter().zip(operation.of).enumerate() {
        args.of[i] = i as u16;
        regs.set_wide(Reg { class: *class, number: i as u16 }, &[*value; 32], !0);
    }
    (operation.run)(&mut regs, &args, !0);
    match operation.to {
        Class::Predicate => (regs.predicates[7] & 1) as u64,
        class => regs.wide(Reg { class, number: 7 })[5],
    }
}

/// ZLUDA's tests of one value each; see `vectors`.
#[test]
fn single_instructions_give_what_devices_give() {
    let f = |x: f32| x.to_bits() as u64;
    let cases: &[(&str, &[u64], u64)] = &[
        ("dp4a.s32.s32", &[0x8e2d_a590, 0xedea_ee14, 0x248a_9f70], 613_065_134),
        ("prmt.b32", &[0x70c5_07d6, 0x6fbd_4b5c, 30212], 0x6fbd_d65c),
        ("prmt.b32", &[0x0100_fe80, 0, 0x0a08], 0x8000_80ff),
        ("shf.l.clamp.b32", &[0x1234_5678, 0x9abc_def0, 44], 0x1234_5678),
        ("shf.r.clamp.b32", &[0x1234_5678, 0x9abc_def0, 44], 0x9abc_def0),
        ("shf.l.wrap.b32", &[0x1234_5678, 0x9abc_def0, 44], 0xcdef_0123),
        ("shf.r.wrap.b32", &[0x1234_5678, 0x9abc_def0, 44], 0xef01_2345),
        ("bfe.u32", &[0b11111000_11000001_00100010_10100000, 16, 8], 0b1100_0001),
        ("bfi.b32", &[0b10, 0b101, 0, 2], 0b110),
        ("bfind.shiftamt.u32", &[0], 0xffff_ffff),
        ("bfind.shiftamt.u32", &[0xffff_ffff], 0),
        ("bfind.shiftamt.u32", &[0x2cd1_a4c1], 2),
        ("brev.b32", &[0b11000111_01011100_10101110_11111011], 0b11011111_01110101_00111010_11100011),
        ("clz.b32", &[0b00000101_00101101_00010011_10101011], 5),
        ("popc.b32", &[0b10111100_10010010_01001001_10001010], 14),
        ("popc.b64", &[0x9942_7d68_8bcb_5258], 30),
        ("rem.s32", &[21692, 13], 8),
        ("copysign.f32", &[0x0bda_2a2c, 0xe31a_8fd7], 0x631a_8fd7),
        ("cvt.rni.f32.f32", &[f(9.5)], f(10.0)),
        ("cvt.rni.f32.f32", &[f(10.5)], f(10.0)),
        ("cvt.rzi.f32.f32", &[f(-13.8)], f(-13.0)),
        ("cvt.rzi.f32.f32", &[f(12.9)], f(12.0)),
        ("cvt.rpi.s32.f32", &[f(-13.8)], -13i32 as u32 as u64),
        ("cvt.rpi.s32.f32", &[f(12.9)], 13),
        ("cvt.rni.u16.f32", &[0x477f_ff80], 65535),
        ("cvt.s64.s32", &[0xffff_ffff], u64::MAX),
        // The register has 16 bits here; ZLUDA's shows how a device extends it.
        ("cvt.s16.s8", &[0x1392_31c2], 0xffc2),
        ("cvt.rn.f16x2.f32", &[f(1.0), f(2.0)], 0x3c00_4000),
        ("cvt.rn.bf16x2.f32", &[f(0.40625), f(12.9)], 0x3ed0_414e),
        ("setp.nan.f32", &[f(0.5), f(f32::NAN)], 1),
        ("setp.nan.f32", &[f(0.5), f(0.5)], 0),
        ("setp.num.f32", &[f(0.5), f(f32::NAN)], 0),
        ("setp.num.f32", &[f(0.5), f(0.5)], 1),
    ];
    for (name, of, want) in cases {
        assert_eq!(one(name, of), *want, "{name} of {of:x?}: {:x}, {want:x} expected", one(name, of));
    }
}

/// By the manual, where no device's values are at hand.
#[test]
fn single_instructions_do_what_the_manual_says() {
    let f = |x: f32| x.to_bits() as u64;
    let cases: &[(&str, &[u64], u64)] = &[
        ("lop3.b32", &[0b1100, 0b1010, 0b0110, 0x96], 0),
        ("lop3.b32", &[0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa, 0xca], 0xcaca_caca),
        ("bfe.s32", &[0x0000_8000, 8, 8], 0xffff_ff80),
        ("bfe.s32", &[0x8000_0000, 28, 8], 0xffff_fff8),
        ("bfi.b64", &[0xffff, 0, 60, 8], 0xf000_0000_0000_0000),
        ("shr.s16", &[0x8000, 40], 0xffff),
        ("shl.b32", &[1, 32], 0),
        ("shr.s32", &[0x8000_0000, 77], 0xffff_ffff),
        ("mul.hi.u32", &[0xffff_ffff, 0xffff_ffff], 0xffff_fffe),
        ("mul.wide.s32", &[0xffff_ffff, 5], -5i64 as u64),
        ("cvt.rzi.s32.f32", &[f(3e9)], 0x7fff_ffff),
        ("cvt.rzi.s32.f32", &[f(f32::NAN)], 0),
        ("cvt.sat.f32.f32", &[f(f32::NAN)], 0),
        ("cvt.u32.u16", &[0x1_2345], 0x2345),
        ("min.f32", &[f(f32::NAN), f(2.0)], f(2.0)),
        ("min.f32", &[f(0.0), f(-0.0)], f(-0.0)),
        ("ex2.approx.ftz.f32", &[f(-140.0)], 0),
        ("setp.ltu.f32", &[f(f32::NAN), f(1.0)], 1),
        ("setp.leu.f32", &[f(2.0), f(1.0)], 0),
    ];
    for (name, of, want) in cases {
        assert_eq!(one(name, of), *want, "{name} of {of:x?}: {:x}, {want:x} expected", one(name, of));
    }
}

/// D of the four registers of each lane.
fn mma(name: &str, words: &[u32], (a, b): (usize, usize)) -> Vec<u32> {
    let list = |from: usize, n: usize| {
        let names: Vec<String> = (from..from + n).map(|i| format!("%r{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let body = format!("{name} {{%r1, %r2, %r3, %r4}}, {}, {}, {};", list(10, a), list(10 + a, b), list(10 + a + b, 4));
    by_lanes(words, a + b + 4, 4, "", &body)
}

#[test]
fn products_of_fragments_are_a_devices() {
    let bytes = |lane: u32, i: u32| (0..4).fold(0, |w, k| w | (16 * lane + 4 * i + k) << (8 * k));
    let words = (0..32).flat_map(|lane| {
        let (a, c) = ((0..4).map(move |i| bytes(lane, i)), (0..4).map(move |i| 16 * lane + i));
        a.chain([bytes(lane, 0); 2]).chain(c).collect::<Vec<u32>>()
    });
    let got = mma("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", &words.collect::<Vec<u32>>(), (4, 2));
    assert!(got.iter().map(|&v| v as i32).eq(vectors::MMA_S8), "{got:?}");
    type Pair = fn(f32, f32) -> u32;
    let half: Pair = |a, b| {
        let one = super::super::lanes::f32_to_half;
        (one(a) as u32) << 16 | one(b) as u32
    };
    let brain: Pair = |a, b| a.to_bits() & 0xffff_0000 | b.to_bits() >> 16;
    for (element, pair, want) in [("f16", half, &vectors::MMA_F16), ("bf16", brain, &vectors::MMA_BF16)] {
        let words = (0..32).flat_map(|lane| {
            let value = |i: usize| (8 * lane + i) as f32;
            let a = [0, 2, 4, 6, 0, 2].map(|i| pair(value(i), value(i + 1)));
            a.into_iter().chain([0, 1, 2, 3].map(|i| value(i).to_bits())).collect::<Vec<u32>>()
        });
        let name = format!("mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32");
        let got = mma(&name, &words.collect::<Vec<u32>>(), (4, 2));
        assert!(got.iter().map(|&v| f32::from_bits(v) as i32).eq(*want), "{element}: {got:?}");
    }
}

/// The small shapes of sm_75 are parts of the large ones, as kernels/compat.cuh puts them together.
#[test]
fn small_products_are_parts_of_large_ones() {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    let words: Vec<u32> = (0..32 * 10).map(|_| random()).collect();
    let whole = mma("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", &words, (4, 2));
    let small: String = (0..4)
        .map(|i| {
            let (d, e, a, b) = (16 + i % 2 * 2, 17 + i % 2 * 2, 10 + i, 14 + i / 2);
            format!(
                "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {{%r{d},%r{e}}},{{%r{a}}},{{%r{b}}},{{%r{d},%r{e}}};\n"
            )
        })
        .collect();
    let moves: String = (0..4).map(|i| format!("mov.b32 %r{}, %r{};\n", i + 1, i + 16)).collect();
    assert_eq!(by_lanes(&words, 10, 4, "", &(small + &moves)), whole);
    let two = "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r1,%r2,%r3,%r4},{%r10,%r11},{%r14},{%r16,%r17,%r18,%r19};\n\
               mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r1,%r2,%r3,%r4},{%r12,%r13},{%r15},{%r1,%r2,%r3,%r4};";
    assert_eq!(by_lanes(&words, 10, 4, "", two), whole);
}

#[test]
fn matrices_come_to_the_lanes_as_on_a_device() {
    let shared = ".shared .align 16 .b8 values[512];";
    let place = "mov.u32 %r5, values;\nshl.b32 %r6, %r0, 4;\nadd.s32 %r6, %r5, %r6;\n";
    let store = |n: usize| -> String {
        let at = format!("mad.lo.s32 %r7, %r0, {}, %r5;\n", 4 * n);
        at + &(0..n).map(|i| format!("st.shared.u32 [%r7+{}], %r{};\n", 4 * i, i + 10)).collect::<String>()
    };
    let body = format!("{place}{}bar.sync 0;\nldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r1, %r2}}, [%r6];", store(2));
    assert_eq!(by_lanes(&vectors::MATRIX, 2, 2, shared, &body), vectors::MATRIX_BY_LANES);
    let words: Vec<u32> = vectors::TRANSPOSED.chunks(2).map(|p| p[0] as u32 | (p[1] as u32) << 16).collect();
    let body = format!(
        "{place}{}bar.sync 0;\nldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{%r1, %r2, %r3, %r4}}, [%r6];",
        store(4)
    );
    let got = by_lanes(&words, 4, 4, shared, &body);
    let halves: Vec<u16> = got.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]).collect();
    assert_eq!(halves, vectors::TRANSPOSED_BY_LANES);
}

#[test]
fn lanes_read_each_other_as_on_a_device() {
    for (op, limit, want) in
        [("up", 0, &vectors::SHFL_UP), ("down", 31, &vectors::SHFL_DOWN), ("bfly", 31, &vectors::SHFL_BFLY)]
    {
        let body = format!("shfl.sync.{op}.b32 %r1|%p1, %r0, 3, {limit}, -1;\n@!%p1 add.s32 %r1, %r1, 1000;");
        assert_eq!(by_lanes(&[0], 0, 1, "", &body), want, "{op}");
    }
    // In segments of 8, by the manual's pseudocode; and a vote.
    let body = "shfl.sync.down.b32 %r1|%p1, %r0, 3, 6175, -1;\nsetp.lt.u32 %p2, %r0, 5;\n\
                vote.sync.ballot.b32 %r2, %p2, -1;";
    let got = by_lanes(&[0], 0, 2, "", body);
    assert!(got.chunks(2).enumerate().all(|(i, p)| p[0] as usize == if i % 8 < 5 { i + 3 } else { i } && p[1] == 31));
}
