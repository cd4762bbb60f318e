//! The matrix tiles of Intel's CPUs (AMX): whether this process may use them, and the three products
//! that are made of their instructions. This is the one file that has these instructions.
//!
//! ```text
//! tile     8 of them, each at most 16 rows of 64 bytes; `ldtilecfg` sets the shape of each
//! panels   C (tokens x 16 rows, f32)  += sum over columns of
//!             A (tokens x 32 columns, BF16) * B (16 x 16 rows x 2, BF16)
//! floats   C (16 rows x tokens, f32)  += sum over columns of
//!             A (16 rows x 32 columns, BF16) * B (16 x tokens x 2, BF16)
//! split    C (32 x 32, f32)           += sum over pairs of
//!             A (32 x 32, two parts of BF16) * B (32 x 32, two parts of BF16)
//! ```
//! Codes are decoded to BF16 as B wants them (quant/panels/tiles.rs). Weights of two bytes lie row
//! after row, which is what A wants, so that there the tokens are turned instead.
//!
//! Rust's intrinsics for tiles are not stable (1.95), so the instructions are `asm!`. Each block
//! begins with tiles that it loads or zeroes and ends with a store: no tile holds anything from one
//! block to the next, since the compiler knows nothing of what tiles hold. Only the shapes do, from
//! the constructor of `PanelTiles`, `FloatTiles` or `SplitTiles` to its end. A shape costs some 50 to 100 cycles
//! to set and to release, a product with 12 tokens and more of 32 rows thousands; and it is
//! released because a thread that keeps its tiles has 8 KB more to be saved whenever it leaves its
//! core, and keeps the core from its deepest sleep.
//!
//! The system gives a process tiles only if it asks (`arch_prctl`, Linux 5.16), because a signal's
//! frame gets larger by them. Asked once, all threads have them. It refuses where a thread has a
//! signal stack that is too small for that (Rust's are large enough), or where a sandbox does.

#![allow(unsafe_code)] // instructions that the compiler has no names for, and a system call

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Rows of a tile.
pub const TILE: usize = 16;
/// Columns of activations that lie together (`CHUNK` in quant/activations).
#[cfg(target_arch = "x86_64")]
const COLUMNS: usize = 256;

/// What `TANDEM_ISA` is where tests have the instructions emulated. Builds for users have no
/// emulator.
pub const EMULATED: &str = "amx-emulated";

/// Whether tile instructions may be executed: the process has them, or has an emulator of them.
static READY: AtomicBool = AtomicBool::new(false);

/// Returns whether this process may use the tiles; the first call asks the system for them.
///
/// # Errors
/// Says why not, in words that go on after "matrix tiles: ".
pub fn usable() -> Result<(), &'static str> {
    static USABLE: OnceLock<Result<(), String>> = OnceLock::new();
    let usable = USABLE.get_or_init(|| {
        let given = if emulated() { emulate() } else { ask() };
        given?;
        READY.store(true, SeqCst);
        #[cfg(target_arch = "x86_64")]
        if !multiplies() {
            return Err("the CPU has AMX, but its products were wrong when they were tried; please report this".into());
        }
        Ok(())
    });
    usable.as_ref().copied().map_err(String::as_str)
}

/// Returns whether `TANDEM_ISA` asks for emulated tiles, in a build that has the emulator.
pub fn emulated() -> bool {
    cfg!(debug_assertions) && std::env::var("TANDEM_ISA").is_ok_and(|asked| asked == EMULATED)
}

fn emulate() -> Result<(), String> {
    #[cfg(all(any(test, debug_assertions), target_arch = "x86_64", target_os = "linux"))]
    if super::emulated::install() {
        say!("TANDEM_ISA={EMULATED}: matrix tiles are emulated one instruction at a time, for tests; this is slow");
        return Ok(());
    }
    Err("there is no emulator for this system".into())
}

/// Makes tiles ready for a test: the CPU's where it has them, else emulated ones. Returns which, in
/// words.
///
/// # Errors
/// Says why there are neither.
#[cfg(test)]
pub(crate) fn for_tests() -> Result<&'static str, &'static str> {
    if super::detected() < super::Isa::Avx512Bf16 {
        return Err("the CPU has no AVX-512 with BF16, which every CPU with tiles has");
    }
    if usable().is_ok() && !emulated() {
        return Ok("the CPU's own");
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if super::emulated::install() {
        READY.store(true, SeqCst);
        return if multiplies() { Ok("emulated") } else { Err("the emulator's products are wrong") };
    }
    Err("there is no emulator for this system")
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> Result<(), String> {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const TILES: u32 = 1 << 24 | 1 << 22; // AMX-TILE and AMX-BF16 in EDX of leaf 7
    const STATES: u64 = 1 << 17 | 1 << 18; // shapes and contents in XCR0
    const OSXSAVE: u32 = 1 << 27; // in ECX of leaf 1
    const REQUEST_PERMISSION: libc::c_long = 0x1023; // ARCH_REQ_XCOMP_PERM, asm/prctl.h
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & TILES != TILES {
        return Err("none; the CPU has no AMX (amx_tile, amx_bf16)".into());
    }
    #[target_feature(enable = "xsave")]
    fn states() -> u64 {
        // SAFETY: register 0 exists where XGETBV does, which the caller has made sure of.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE says that the CPU has XSAVE and XGETBV, and that the system uses them.
    if __cpuid(1).ecx & OSXSAVE == 0 || unsafe { states() } & STATES != STATES {
        return Err("the CPU has AMX, but the system does not save its state; Linux 5.16 and newer do".into());
    }
    // SAFETY: the call takes two numbers and no memory.
    match unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, 18 as libc::c_long) } {
        0 => Ok(()),
        _ => {
            let why = std::io::Error::last_os_error();
            Err(format!("the CPU has AMX, but the system refuses it to this process (arch_prctl: {why})"))
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> Result<(), String> {
    Err("none; they are used on x86-64 with Linux alone".into())
}

/// Whether a product is what it should be: once for each process, in microseconds. A hypervisor that
/// offers tiles and does not keep them, or an error here on a CPU that tests never ran on, is then
/// slow instead of wrong.
#[cfg(target_arch = "x86_64")]
fn multiplies() -> bool {
    // Whole numbers up to 128 are exact as BF16, and so are their sums as f32.
    let number = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 13 & 0xff) as u8 as i8;
    let pair = |a: i8, b: i8| (a as f32).to_bits() >> 16 | (b as f32).to_bits() & 0xffff_0000;
    let weight = |k: usize, r: usize| number(7 + 31 * k + 977 * r);
    let act = |t: usize, k: usize| number(COLUMNS * t + k);
    let pairs = |of: &dyn Fn(usize) -> i8, i: usize| pair(of(2 * i), of(2 * i + 1));
    let w: [[u32; 2 * TILE]; COLUMNS / 2] =
        std::array::from_fn(|i| std::array::from_fn(|r| pairs(&|k| weight(k, r), i)));
    let (tokens, steps) = (13, 3);
    let x = [0, tokens].map(|first| {
        let row = |s: usize, t: usize| std::array::from_fn(|i| pairs(&|k| act(first + t, k), TILE * s + i));
        TokenBlock(std::array::from_fn(|s| std::array::from_fn(|t| row(s, t))))
    });
    let mut sums = [[1f32; 2 * TILE]; 26];
    PanelTiles::new(tokens).multiply(&x, &RowBlock(w), steps, &mut sums);
    let want = |t: usize, r: usize| 1.0 + (0..32 * steps).map(|k| weight(k, r) as f32 * act(t, k) as f32).sum::<f32>();
    let by_panels = (0..2 * tokens).all(|t| (0..2 * TILE).all(|r| sums[t][r] == want(t, r)));
    let bits = |x: i8| (x as f32).to_bits() >> 16;
    let w: Vec<u8> = (0..19 * 64).flat_map(|i| (bits(number(i)) as u16).to_le_bytes()).collect();
    let act = |b: usize, k: usize, t: usize| number(7 + 31 * b + 64 * k + t);
    let x: [[TurnedWords; 2]; 2] = std::array::from_fn(|b| {
        let word = |k: usize, t: usize| bits(act(b, 2 * k, t)) | bits(act(b, 2 * k + 1, t)) << 16;
        std::array::from_fn(|s| std::array::from_fn(|k| std::array::from_fn(|t| word(16 * s + k, t))))
    });
    let mut sums = [[[1f32; TILE]; TILE]; 4];
    FloatTiles::new(19, 7).multiply(&w, 128, [&x[0], &x[1]], &mut sums);
    let want = |r: usize, b: usize, t: usize| {
        1.0 + (0..64).map(|k| number(64 * r + k) as f32 * act(b, k, t) as f32).sum::<f32>()
    };
    let right = |r: usize, b: usize, t: usize| sums[2 * (r / TILE) + b][r % TILE][t] == want(r, b, t);
    by_panels && (0..19).all(|r| (0..2).all(|b| (0..7).all(|t| right(r, b, t))))
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{FloatTiles, PanelTiles, RowBlock, SplitBlock, SplitTiles, TokenBlock, TurnedWords};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::marker::PhantomData;

    use super::{COLUMNS, READY, SeqCst, TILE};

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        /// Bytes of a row, by tile; the last eight are zero.
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// The shapes of this thread's tiles, until it is dropped. No other may live on the thread.
    #[derive(Debug)]
    struct Shaped(PhantomData<*const ()>); // of one thread

    impl Shaped {
        /// Sets the shapes, (rows, bytes of a row) of each tile.
        fn new(tiles: [(usize, usize); 8]) -> Shaped {
            assert!(READY.load(SeqCst), "tiles that the system was asked for");
            let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
            for (i, (rows, bytes)) in tiles.into_iter().enumerate() {
                assert!((1..=TILE).contains(&rows) && (4..=64).contains(&bytes) && bytes % 4 == 0);
                (shapes.rows[i], shapes.bytes[i]) = (rows as u8, bytes as u16);
            }
            // SAFETY: the CPU has tiles and the system lets this process use them (READY, or the
            // instruction is emulated); 64 bytes are read.
            unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const shapes, options(nostack, readonly, preserves_flags)) };
            Shaped(PhantomData)
        }
    }

    impl Drop for Shaped {
        fn drop(&mut self) {
            // SAFETY: as for `new`, which has come before.
            unsafe {
                asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                    out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem, preserves_flags))
            };
        }
    }

    /// 256 columns of 16 tokens as BF16, two columns to a word: `[column / 32][token][column / 2 % 16]`.
    #[derive(Clone, Debug)]
    #[repr(align(64))]
    pub(crate) struct TokenBlock(pub(crate) [[[u32; TILE]; TILE]; COLUMNS / 32]);

    /// 256 columns of 32 rows of weights as BF16, two columns to a word: `[column / 2][row]`.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(crate) struct RowBlock(pub(crate) [[u32; 2 * TILE]; COLUMNS / 2]);

    /// Products of BF16.
    #[derive(Debug)]
    pub(crate) struct PanelTiles {
        tokens: usize,
        _shaped: Shaped,
    }

    impl PanelTiles {
        /// Sets tiles for blocks of `tokens` tokens (1 to 16).
        pub(crate) fn new(tokens: usize) -> PanelTiles {
            let (a, b, c) = ((tokens, 64), (TILE, 64), (tokens, 64));
            PanelTiles { tokens, _shaped: Shaped::new([c, c, c, c, a, a, b, b]) }
        }

        /// `sums[i * tokens + t][r] += sum of x[i][t][k] * w[k][r]` over `32 * steps` columns.
        #[inline(always)]
        pub(crate) fn multiply(&self, x: &[TokenBlock; 2], w: &RowBlock, steps: usize, sums: &mut [[f32; 2 * TILE]]) {
            assert!(sums.len() == 2 * self.tokens && (1..=COLUMNS / 32).contains(&steps));
            let (mut a0, mut a1, mut b, mut n) = (x[0].0.as_ptr(), x[1].0.as_ptr(), w.0.as_ptr(), steps);
            let (c0, c1) = sums.split_at_mut(self.tokens);
            // SAFETY: the tiles are shaped (`_shaped`): A has at most 16 rows of 64 bytes, 64 apart, of
            // which `x` has 8 steps of 16; B 16 rows of 64 bytes, 128 apart, of which `w`
            // has 8 steps of 2 times 16; C `tokens` rows of 64 bytes, 128 apart, twice in each half of
            // `sums`, whose length was just checked.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{c0} + {line}*2]",
                    "tileloadd tmm1, [{c0} + {line}*2 + 64]",
                    "tileloadd tmm2, [{c1} + {line}*2]",
                    "tileloadd tmm3, [{c1} + {line}*2 + 64]",
                    "2:",
                    "tileloadd tmm6, [{b} + {line}*2]",
                    "tileloadd tmm4, [{a0} + {line}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {line}*2 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {line}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{c0} + {line}*2], tmm0",
                    "tilestored [{c0} + {line}*2 + 64], tmm1",
                    "tilestored [{c1} + {line}*2], tmm2",
                    "tilestored [{c1} + {line}*2 + 64], tmm3",
                    a0 = inout(reg) a0, a1 = inout(reg) a1, b = inout(reg) b, n = inout(reg) n,
                    c0 = in(reg) c0.as_mut_ptr(), c1 = in(reg) c1.as_mut_ptr(), line = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                    out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
            let _ = (a0, a1, b, n);
        }
    }
    /// Tokens as BF16 for tiles: 32 columns of 16 tokens, two columns to a word: `[columns /
    /// 2][token]`.
    pub(crate) type TurnedWords = [[u32; TILE]; TILE];

    /// Products of BF16.
    #[derive(Debug)]
    pub(crate) struct FloatTiles {
        rows: usize,
        _shaped: Shaped,
    }

    impl FloatTiles {
        /// Sets tiles for `rows` rows of weights (1 to 32) and `tokens` tokens (1 to 16).
        pub(crate) fn new(rows: usize, tokens: usize) -> FloatTiles {
            assert!((1..=2 * TILE).contains(&rows));
            let (first, second) = (rows.min(TILE), rows.saturating_sub(TILE).max(1));
            let (c0, c1, b) = ((first, 4 * tokens), (second, 4 * tokens), (TILE, 4 * tokens));
            FloatTiles { rows, _shaped: Shaped::new([c0, c0, c1, c1, (first, 64), (second, 64), b, b]) }
        }

        /// `sums[2 * (r / 16) + i][r % 16][t] += sum of w[r][k] * x[i][k][t]` over 32 columns for
        /// each element of `x[0]`. Row `r` of the weights begins at byte `r * stride` of `w`. `x`
        /// are one or two blocks of tokens of equal length; of one, the second is empty.
        pub(crate) fn multiply(
            &self,
            w: &[u8],
            stride: usize,
            x: [&[TurnedWords]; 2],
            sums: &mut [[[f32; TILE]; TILE]; 4],
        ) {
            let (steps, two) = (x[0].len(), !x[1].is_empty());
            if steps == 0 {
                return;
            }
            assert!((self.rows - 1) * stride + 64 * steps <= w.len() && (!two || x[1].len() == steps));
            let (mut a, mut n) = (w.as_ptr(), steps);
            let (mut b0, mut b1) = (x[0].as_ptr(), x[1].as_ptr());
            let mut a1 = a.wrapping_add(TILE * stride);
            macro_rules! product {
                ($([$c:literal $at:literal $a:literal $b:literal])*, $($more_a:literal)?, $($more_b:literal)?) => {
                    // SAFETY: the tiles are shaped (`_shaped`): A has the weights' rows, 64 bytes
                    // of each for a step, within `w` as was just checked (the second tile is loaded
                    // only where there are more than 16 rows); B and C have at most 16 rows of at
                    // most 64 bytes, 64 apart, as the elements of `x` and `sums` have.
                    unsafe {
                        asm!(
                            $(concat!("tileloadd ", $c, ", [{c} + {line}*1 + ", $at, "]"),)*
                            "2:",
                            "tileloadd tmm4, [{a} + {stride}*1]",
                            $(concat!("tileloadd ", $more_a, ", [{a1} + {stride}*1]"),)?
                            "tileloadd tmm6, [{b0} + {line}*1]",
                            $(concat!("tileloadd ", $more_b, ", [{b1} + {line}*1]"),)?
                            $(concat!("tdpbf16ps ", $c, ", ", $a, ", ", $b),)*
                            "add {a}, 64",
                            "add {a1}, 64",
                            "add {b0}, 1024",
                            "add {b1}, 1024",
                            "dec {n}",
                            "jnz 2b",
                            $(concat!("tilestored [{c} + {line}*1 + ", $at, "], ", $c),)*
                            a = inout(reg) a, a1 = inout(reg) a1, b0 = inout(reg) b0, b1 = inout(reg) b1,
                            n = inout(reg) n,
                            c = in(reg) sums.as_mut_ptr(), stride = in(reg) stride, line = in(reg) 64usize,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                            out("tmm6") _, out("tmm7") _,
                            options(nostack),
                        )
                    }
                };
            }
            match (self.rows > TILE, two) {
                (true, true) => product!(["tmm0" "0" "tmm4" "tmm6"] ["tmm1" "1024" "tmm4" "tmm7"]
                    ["tmm2" "2048" "tmm5" "tmm6"] ["tmm3" "3072" "tmm5" "tmm7"], "tmm5", "tmm7"),
                (true, false) => {
                    product!(["tmm0" "0" "tmm4" "tmm6"] ["tmm2" "2048" "tmm5" "tmm6"], "tmm5",)
                }
                (false, true) => {
                    product!(["tmm0" "0" "tmm4" "tmm6"] ["tmm1" "1024" "tmm4" "tmm7"], , "tmm7")
                }
                (false, false) => product!(["tmm0" "0" "tmm4" "tmm6"], ,),
            }
            let _ = (a, a1, b0, b1, n);
        }
    }

    /// 16 rows or columns of 32 numbers, each as the sum of two numbers of BF16, which make up 16 bits of its mantissa:
    /// `[0][..]` the numbers' upper halves, `[1][..]` those of what they leave. Two numbers to a word.
    #[derive(Clone, Copy, Debug)]
    #[repr(align(64))]
    pub(crate) struct SplitBlock(pub(crate) [[[u32; TILE]; TILE]; 2]);

    impl SplitBlock {
        pub(crate) const ZERO: SplitBlock = SplitBlock([[[0; TILE]; TILE]; 2]);
    }

    /// Products of numbers in two parts.
    #[derive(Debug)]
    pub(crate) struct SplitTiles {
        _shaped: Shaped,
    }

    impl SplitTiles {
        /// Sets tiles of 16 rows and 64 bytes.
        pub(crate) fn new() -> SplitTiles {
            SplitTiles { _shaped: Shaped::new([(TILE, 64); 8]) }
        }

        /// `sums[(16 i + r) * stride + 16 j + c] += sum of a[i][r][k] * b[j][k][c]`, `k` over 32 numbers for each block; in `a`
        /// a row of words is a row, in `b` a column of words a column. Of the four products of parts the smallest, lower
        /// times lower, is left out. If not `ADD`, what was in `sums` is replaced.
        #[inline(always)]
        pub(crate) fn multiply<const ADD: bool>(
            &self,
            a: [&[SplitBlock]; 2],
            b: [&[SplitBlock]; 2],
            sums: &mut [f32],
            stride: usize,
        ) {
            let steps = a[0].len();
            assert!(steps > 0 && a[1].len() == steps && b.iter().all(|b| b.len() == steps));
            assert!(stride >= 2 * TILE && sums.len() >= (2 * TILE - 1) * stride + 2 * TILE);
            let ([mut a0, mut a1], [mut b0, mut b1], mut n) = (a.map(<[_]>::as_ptr), b.map(<[_]>::as_ptr), steps);
            let c0 = sums.as_mut_ptr();
            let c1 = c0.wrapping_add(TILE * stride);
            macro_rules! product {
                ($($begin:literal)*) => {
                    // SAFETY: the tiles are shaped (`_shaped`), 16 rows of 64 bytes each. A and B are the two halves of blocks, 16 rows
                    // of 64 bytes each, of which all four slices have `steps`; C are 16 rows each at `stride`, 128 bytes of
                    // them, of which `sums` has 32, as was just checked.
                    unsafe {
                        asm!(
                            $($begin,)*
                            "2:",
                            "tileloadd tmm4, [{a0} + {line}*1]",
                            "tileloadd tmm6, [{b0} + {line}*1 + 1024]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tileloadd tmm7, [{b1} + {line}*1 + 1024]",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            "tileloadd tmm5, [{a1} + {line}*1]",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tdpbf16ps tmm3, tmm5, tmm7",
                            "tileloadd tmm6, [{b0} + {line}*1]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tileloadd tmm7, [{b1} + {line}*1]",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tdpbf16ps tmm3, tmm5, tmm7",
                            "tileloadd tmm4, [{a0} + {line}*1 + 1024]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            "tileloadd tmm5, [{a1} + {line}*1 + 1024]",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tdpbf16ps tmm3, tmm5, tmm7",
                            "add {a0}, 2048",
                            "add {a1}, 2048",
                            "add {b0}, 2048",
                            "add {b1}, 2048",
                            "dec {n}",
                            "jnz 2b",
                            "tilestored [{c0} + {stride}*1], tmm0",
                            "tilestored [{c0} + {stride}*1 + 64], tmm1",
                            "tilestored [{c1} + {stride}*1], tmm2",
                            "tilestored [{c1} + {stride}*1 + 64], tmm3",
                            a0 = inout(reg) a0, a1 = inout(reg) a1, b0 = inout(reg) b0, b1 = inout(reg) b1, n = inout(reg) n,
                            c0 = in(reg) c0, c1 = in(reg) c1, stride = in(reg) 4 * stride, line = in(reg) 64usize,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                            out("tmm6") _, out("tmm7") _,
                            options(nostack),
                        )
                    }
                };
            }
            match ADD {
                true => product!("tileloadd tmm0, [{c0} + {stride}*1]" "tileloadd tmm1, [{c0} + {stride}*1 + 64]"
                    "tileloadd tmm2, [{c1} + {stride}*1]" "tileloadd tmm3, [{c1} + {stride}*1 + 64]"),
                false => product!("tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"),
            }
            let _ = (a0, a1, b0, b1, n);
        }
    }
}
