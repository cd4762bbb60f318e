//! Matrix tiles for tests on CPUs without them: the handler of SIGILL reads the tile instruction
//! that the CPU refused, does what it says, and goes on after it. So tests run the very machine
//! code that runs on CPUs with tiles, in all that surrounds it. Only builds with debug assertions
//! have this, and only `TANDEM_ISA=amx-emulated` or a test turns it on.
//!
//! ```text
//! C4  R X B 00010  0 vvvv 0 pp  opcode  ModRM [SIB] [displacement]
//! 49  ldtilecfg (no prefix, memory)   tilerelease (no prefix, C0)   tilezero (F2)
//! 4B  tileloadd (F2)   tileloaddt1 (66)   tilestored (F3)
//!     row r is at base + displacement + r * (index << scale)
//! 5C  tdpbf16ps (F3)
//! tile products: C = ModRM.reg (rows x columns), A = ModRM.rm (rows x k), B = vvvv (k x columns)
//! ```
//! After Intel's manual (Software Developer's Manual, volume 2, "Intel AMX Instruction Set
//! Reference"). What the CPU would answer with an exception (no shapes set, shapes that do not fit
//! each other, one tile twice) ends the process with a message.

#![allow(unsafe_code)] // a signal handler, and memory that instructions name

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A tile's contents.
type Tile = [[u8; 64]; 16];

/// The tiles of a thread.
#[derive(Clone, Copy)]
struct Tiles {
    /// Rows and bytes of a row of each tile; None before `ldtilecfg` and after `tilerelease`.
    shapes: Option<[(usize, usize); 8]>,
    tiles: [Tile; 8],
}

const EMPTY: Tiles = Tiles { shapes: None, tiles: [[[0; 64]; 16]; 8] };

thread_local! {
    static TILES: Cell<Tiles> = const { Cell::new(EMPTY) };
}

/// Instructions that were emulated so far.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Returns how many instructions were emulated so far, and whether this thread's tiles have shapes.
#[cfg(test)]
pub(crate) fn seen() -> (usize, bool) {
    (COUNT.load(SeqCst), TILES.get().shapes.is_some())
}

/// Installs the handler, once. False if the system refuses it.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: the action is a valid one: its handler has three arguments, as SA_SIGINFO says.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = on_illegal as *const () as usize;
            // On the thread's own stack: tiles take more than a signal's has.
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn on_illegal(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the context of the instruction that it interrupted, which is this
    // thread's.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    match Instruction::read(registers) {
        Some(i) => {
            let mut tiles = TILES.get();
            i.execute(&mut tiles);
            TILES.set(tiles);
            registers[libc::REG_RIP as usize] = i.next as i64;
            COUNT.fetch_add(1, SeqCst);
        }
        // SAFETY: the default action is always valid; the instruction is met again, and ends the
        // process.
        None => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

/// What stands where an instruction has a register or memory.
#[derive(Clone, Copy)]
enum Operand {
    Register(usize),
    /// The address, and the stride: the scaled index.
    Memory(usize, usize),
}

/// A tile instruction.
struct Instruction {
    opcode: u8,
    /// 0 none, 1 66, 2 F3, 3 F2.
    prefix: u8,
    reg: usize,
    rm: Operand,
    vvvv: usize,
    /// Where the next instruction is.
    next: usize,
}

/// The general registers in the order of their numbers.
const GENERAL: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Ends the process, as an exception would.
fn fail(what: &str) -> ! {
    say!("emulated tiles: {what}");
    std::process::abort()
}

impl Instruction {
    /// Reads the instruction at RIP. None if it is none of the tiles'.
    fn read(registers: &[i64; 23]) -> Option<Instruction> {
        let mut at = registers[libc::REG_RIP as usize] as usize;
        let mut byte = || {
            // SAFETY: the CPU has read the instruction from there, of which no more bytes are asked
            // for than it has.
            let b = unsafe { *(at as *const u8) };
            at += 1;
            b
        };
        if byte() != 0xc4 {
            return None;
        }
        let (one, two) = (byte(), byte());
        let above = |bit: u8| (!one >> bit & 1) as usize * 8; // stored inverted
        if one & 31 != 2 || two & 0x84 != 0 {
            return None;
        }
        let opcode = byte();
        if ![0x49, 0x4b, 0x5c].contains(&opcode) {
            return None;
        }
        let modrm = byte();
        let (mode, reg, low) = (modrm >> 6, (modrm >> 3 & 7) as usize + above(7), (modrm & 7) as usize);
        let general = |n: usize| registers[GENERAL[n] as usize] as usize;
        let mut place = (0, 0);
        if mode < 3 {
            let (mut base, mut stride, mut wide) = (Some(low + above(5)), 0, mode == 2);
            if low == 4 {
                let sib = byte();
                let index = (sib >> 3 & 7) as usize + above(6);
                stride = if index == 4 { 0 } else { general(index) << (sib >> 6) };
                base = Some((sib & 7) as usize + above(5));
                if mode == 0 && sib & 7 == 5 {
                    (base, wide) = (None, true);
                }
            } else if mode == 0 && low == 5 {
                return None; // relative to RIP: no code here is
            }
            let offset = match (wide, mode) {
                (true, _) => i32::from_le_bytes([byte(), byte(), byte(), byte()]) as isize,
                (false, 1) => byte() as i8 as isize,
                _ => 0,
            };
            place = (base.map_or(0, general).wrapping_add_signed(offset), stride);
        }
        let rm = if mode == 3 { Operand::Register(low + above(5)) } else { Operand::Memory(place.0, place.1) };
        Some(Instruction { opcode, prefix: two & 3, reg, rm, vvvv: (!two >> 3 & 15) as usize, next: at })
    }

    fn execute(&self, t: &mut Tiles) {
        match (self.opcode, self.prefix, self.rm) {
            (0x49, 0, Operand::Memory(at, _)) => *t = Tiles { shapes: Some(shapes(at)), ..EMPTY },
            (0x49, 0, Operand::Register(0)) => *t = EMPTY,
            (0x49, 3, Operand::Register(0)) => {
                t.shape(self.reg);
                t.tiles[self.reg] = EMPTY.tiles[0];
            }
            (0x4b, 1 | 3, Operand::Memory(at, stride)) => {
                let (rows, bytes) = t.shape(self.reg);
                let mut tile = EMPTY.tiles[0];
                for (r, row) in tile[..rows].iter_mut().enumerate() {
                    // SAFETY: what the instruction reads.
                    unsafe { std::ptr::copy_nonoverlapping((at + r * stride) as *const u8, row.as_mut_ptr(), bytes) };
                }
                t.tiles[self.reg] = tile;
            }
            (0x4b, 2, Operand::Memory(at, stride)) => {
                let (rows, bytes) = t.shape(self.reg);
                for (r, row) in t.tiles[self.reg][..rows].iter().enumerate() {
                    // SAFETY: what the instruction writes.
                    unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), (at + r * stride) as *mut u8, bytes) };
                }
            }
            (0x5c, 2, Operand::Register(a)) => t.product(self.reg, a, self.vvvv, dot_bf16),
            (opcode, prefix, _) => fail(&format!("no instruction with opcode {opcode:02x}, prefix {prefix}")),
        }
    }
}

/// The shapes that `ldtilecfg` reads at an address.
fn shapes(at: usize) -> [(usize, usize); 8] {
    let mut config = [0u8; 64];
    // SAFETY: what the instruction reads.
    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, config.as_mut_ptr(), 64) };
    let bytes = |i: usize| u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]) as usize;
    let zeros = config[1..16].iter().chain(&config[32..48]).chain(&config[56..]).all(|b| *b == 0);
    let all: [(usize, usize); 8] = std::array::from_fn(|i| (config[48 + i] as usize, bytes(i)));
    if config[0] != 1
        || !zeros
        || all.iter().any(|&(rows, bytes)| rows > 16 || bytes > 64 || (rows == 0) != (bytes == 0))
    {
        fail("ldtilecfg: a shape that no tile can have");
    }
    all
}

impl Tiles {
    /// Rows and bytes of a row of tile `i`.
    fn shape(&self, i: usize) -> (usize, usize) {
        match self.shapes {
            Some(shapes) if i < 8 && shapes[i].0 > 0 => shapes[i],
            _ => fail("a tile is used that has no shape"),
        }
    }

    /// `C[m][n] = dot(C[m][n], A[m], column n of B)`, where elements are words.
    fn product(&mut self, c: usize, a: usize, b: usize, dot: impl Fn(u32, &[u32], &[u32]) -> u32) {
        let ((m, n), (a_rows, a_bytes), (b_rows, b_bytes)) = (self.shape(c), self.shape(a), self.shape(b));
        if c == a
            || c == b
            || a == b
            || a_rows != m
            || b_bytes != n
            || a_bytes % 4 != 0
            || n % 4 != 0
            || b_rows != a_bytes / 4
        {
            fail("a product of tiles whose shapes do not fit");
        }
        let word =
            |tile: &Tile, r: usize, i: usize| u32::from_le_bytes(*tile[r][4 * i..].first_chunk().expect("4 bytes"));
        let (a, b, before) = (self.tiles[a], self.tiles[b], self.tiles[c]);
        self.tiles[c] = EMPTY.tiles[0];
        for (r, i) in (0..m).flat_map(|r| (0..n / 4).map(move |i| (r, i))) {
            let (mut row, mut column) = ([0; 16], [0; 16]);
            for k in 0..b_rows {
                (row[k], column[k]) = (word(&a, r, k), word(&b, k, i));
            }
            let sum = dot(word(&before, r, i), &row[..b_rows], &column[..b_rows]);
            self.tiles[c][r][4 * i..][..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// BF16: the even and the odd elements are summed apart, then joined and added; subnormal numbers
/// are zero.
fn dot_bf16(c: u32, a: &[u32], b: &[u32]) -> u32 {
    let flushed = |x: f32| if x.is_subnormal() { 0.0 * x } else { x };
    let value = |word: u32, odd: u32| flushed(f32::from_bits(if odd == 1 { word & 0xffff_0000 } else { word << 16 }));
    let sum = |odd: u32| a.iter().zip(b).fold(0f32, |sum, (a, b)| flushed(value(*a, odd).mul_add(value(*b, odd), sum)));
    flushed(flushed(f32::from_bits(c)) + flushed(sum(0) + sum(1))).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tiles::{self, FloatTiles, PanelTiles, RowBlock, TILE, TokenBlock};

    /// Small numbers that look random.
    fn number(i: usize) -> i32 {
        (i.wrapping_mul(2654435761) >> 16 & 0xff) as i32 - 128
    }

    #[test]
    fn tiles_multiply_panels_as_the_formula_says_for_every_number_of_tokens() {
        let Ok(which) = tiles::for_tests() else { return };
        let short = |x: i32| (x as f32).to_bits() >> 16; // up to 128 in size: exact as BF16
        let value = |bits: u32| f32::from_bits(bits << 16);
        let pair = |at: usize| short(number(at)) | short(number(7 * at + 1)) << 16;
        let of = |word: u32, k: usize| value(word >> (16 * (k % 2)) & 0xffff);
        let w = RowBlock(std::array::from_fn(|k| std::array::from_fn(|r| pair(32 * k + r))));
        let block = |b: usize| {
            let word = |s: usize, t: usize, k: usize| pair(b + 256 * s + 16 * t + k);
            TokenBlock(std::array::from_fn(|s| std::array::from_fn(|t| std::array::from_fn(|k| word(s, t, k)))))
        };
        let x = [block(5), block(99)];
        for (tokens, steps) in (1..=TILE).map(|tokens| (tokens, 1 + tokens % 8)) {
            let mut got = [[0.5f32; 2 * TILE]; 2 * TILE];
            PanelTiles::new(tokens).multiply(&x, &w, steps, &mut got[..2 * tokens]);
            for (i, r) in (0..2 * TILE).flat_map(|i| (0..2 * TILE).map(move |r| (i, r))) {
                let act = |k: usize| of(x[i / tokens].0[k / 32][i % tokens][k % 32 / 2], k);
                // Whole numbers: exact.
                let sum = |n: usize| (0..n).map(|k| act(k) * of(w.0[k / 2][r], k)).sum::<f32>();
                let want = if i < 2 * tokens { 0.5 + sum(32 * steps) } else { 0.5 };
                assert_eq!(got[i][r], want, "{which}: row {r}, token {i} of twice {tokens}, {steps} steps");
            }
        }
        assert!(!seen().1, "tiles are released");
    }

    #[test]
    fn tiles_of_floats_add_to_the_sums_that_are_there() {
        let Ok(which) = tiles::for_tests() else { return };
        let short = |x: i32| (x as f32).to_bits() >> 16; // up to 128 in size: exact as BF16
        for (rows, tokens, two) in [(32, 16, true), (17, 5, true), (16, 16, false), (3, 1, true), (31, 9, false)] {
            let (stride, steps) = (2 * 70, 2);
            let w: Vec<u8> = (0..rows * 70).flat_map(|i| (short(number(i)) as u16).to_le_bytes()).collect();
            let x: [[tiles::TurnedWords; 2]; 2] = std::array::from_fn(|b| {
                let word =
                    |s, k, t| short(number(b + 3 * s + 64 * k + t)) | short(number(b + 5 * s + 32 * k + 9 * t)) << 16;
                std::array::from_fn(|s| std::array::from_fn(|k| std::array::from_fn(|t| word(s, k, t))))
            });
            let mut sums = [[[0.5f32; TILE]; TILE]; 4];
            let second: &[_] = if two { &x[1] } else { &[] };
            FloatTiles::new(rows, tokens).multiply(&w, stride, [&x[0], second], &mut sums);
            for (r, b, t) in (0..32).flat_map(|r| (0..2).flat_map(move |b| (0..TILE).map(move |t| (r, b, t)))) {
                let value = |bits: u32| f32::from_bits(bits << 16);
                let weight = |k: usize| value(short(number(r * 70 + k)));
                let act = |k: usize| value(x[b][k / 32][k % 32 / 2][t] >> (16 * (k % 2)) & 0xffff);
                // Whole numbers: exact.
                let sum: f32 = (0..32 * steps).map(|k| weight(k) * act(k)).sum();
                let computed = r < rows && t < tokens && (two || b == 0);
                let want = if computed { 0.5 + sum } else { 0.5 };
                assert_eq!(sums[2 * (r / 16) + b][r % 16][t], want, "{which}: row {r} of {rows}, block {b}, token {t}");
            }
        }
    }
}
