//! Registers of a warp, and instructions that work on each lane for itself: functions over registers of 32 lanes.

mod compare;
mod convert;
mod floats;
mod integers;

/// What a register holds: 32 bits (or 16), 64 bits, or a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Word,
    Double,
    Predicate,
}

/// A register: its class, and its number within the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reg {
    pub(super) class: Class,
    pub(super) number: u16,
}

/// A register of 32 bits.
pub(super) type Words = [u32; 32];
/// A register of 64 bits.
pub(super) type Doubles = [u64; 32];

/// A warp's registers, each with a mask of the lanes that have written it, with values that were themselves written.
#[derive(Default)]
pub(super) struct Regs {
    pub(super) words: Vec<Words>,
    pub(super) doubles: Vec<Doubles>,
    /// A bit for each lane.
    pub(super) predicates: Vec<u32>,
    /// By class.
    pub(super) written: [Vec<u32>; 3],
}

/// All ones in the lanes of a mask.
fn spread(mask: u32) -> Words {
    std::array::from_fn(|lane| if mask >> lane & 1 != 0 { !0 } else { 0 })
}

impl Regs {
    /// Registers of which none is written.
    pub(super) fn reset(&mut self, n: [usize; 3]) {
        self.words.resize(n[0], [0; 32]);
        self.doubles.resize(n[1], [0; 32]);
        self.predicates.resize(n[2], 0);
        for (written, n) in self.written.iter_mut().zip(n) {
            written.clear();
            written.resize(n, 0);
        }
    }

    pub(super) fn written(&self, reg: Reg) -> u32 {
        self.written[reg.class as usize][reg.number as usize]
    }

    /// Lanes whose value was made of one that was never written.
    pub(super) fn undefine(&mut self, reg: Reg, lanes: u32) {
        self.written[reg.class as usize][reg.number as usize] &= !lanes;
    }

    pub(super) fn set_words(&mut self, number: u16, values: &Words, mask: u32) {
        let to = &mut self.words[number as usize];
        if mask == !0 {
            *to = *values;
        } else {
            let m = spread(mask);
            (0..32).for_each(|i| to[i] = values[i] & m[i] | to[i] & !m[i]);
        }
        self.written[0][number as usize] |= mask;
    }

    pub(super) fn set_doubles(&mut self, number: u16, values: &Doubles, mask: u32) {
        let to = &mut self.doubles[number as usize];
        if mask == !0 {
            *to = *values;
        } else {
            let m: Doubles = std::array::from_fn(|lane| if mask >> lane & 1 != 0 { !0 } else { 0 });
            (0..32).for_each(|i| to[i] = values[i] & m[i] | to[i] & !m[i]);
        }
        self.written[1][number as usize] |= mask;
    }

    pub(super) fn set_predicate(&mut self, number: u16, values: u32, mask: u32) {
        let to = &mut self.predicates[number as usize];
        *to = *to & !mask | values & mask;
        self.written[2][number as usize] |= mask;
    }

    /// A register of either width, each lane as 64 bits.
    pub(super) fn wide(&self, reg: Reg) -> Doubles {
        match reg.class {
            Class::Word => self.words[reg.number as usize].map(u64::from),
            _ => self.doubles[reg.number as usize],
        }
    }

    /// Writes lanes of a register of any class.
    pub(super) fn set_wide(&mut self, reg: Reg, values: &Doubles, mask: u32) {
        match reg.class {
            Class::Word => self.set_words(reg.number, &values.map(|v| v as u32), mask),
            Class::Double => self.set_doubles(reg.number, values, mask),
            Class::Predicate => {
                let bits = (0..32).fold(0, |m, i| m | ((values[i] & 1) as u32) << i);
                self.set_predicate(reg.number, bits, mask);
            }
        }
    }
}

/// A type that lanes of a register are taken as.
pub(super) trait Value: Copy + Default {
    const CLASS: Class;
    fn load(regs: &Regs, number: u16) -> [Self; 32];
    fn store(regs: &mut Regs, number: u16, values: [Self; 32], mask: u32);
}

macro_rules! values {
    ($class:ident, $file:ident, $set:ident, $of:ident: $($ty:ty: $from:expr, $to:expr;)*) => {$(
        impl Value for $ty {
            const CLASS: Class = Class::$class;
            #[inline(always)]
            fn load(regs: &Regs, number: u16) -> [Self; 32] {
                let bits = &regs.$file[number as usize];
                std::array::from_fn(|i| $from(bits[i]))
            }
            #[inline(always)]
            fn store(regs: &mut Regs, number: u16, values: [Self; 32], mask: u32) {
                let bits: $of = std::array::from_fn(|i| $to(values[i]));
                regs.$set(number, &bits, mask);
            }
        }
    )*};
}
values! { Word, words, set_words, Words:
    u8: |b| b as u8, |v| v as u32;
    i8: |b| b as i8, |v: i8| v as u8 as u32;
    u16: |b| b as u16, |v| v as u32;
    i16: |b| b as i16, |v: i16| v as u16 as u32;
    u32: |b| b, |v| v;
    i32: |b| b as i32, |v: i32| v as u32;
    f32: f32::from_bits, f32::to_bits;
}
values! { Double, doubles, set_doubles, Doubles:
    u64: |b| b, |v| v;
    i64: |b| b as i64, |v: i64| v as u64;
}
impl Value for bool {
    const CLASS: Class = Class::Predicate;
    #[inline(always)]
    fn load(regs: &Regs, number: u16) -> [bool; 32] {
        let bits = regs.predicates[number as usize];
        std::array::from_fn(|i| bits >> i & 1 != 0)
    }
    #[inline(always)]
    fn store(regs: &mut Regs, number: u16, values: [bool; 32], mask: u32) {
        let bits = (0..32).fold(0, |m, i| m | (values[i] as u32) << i);
        regs.set_predicate(number, bits, mask);
    }
}

/// The numbers of an instruction's registers: what it writes, and what it reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Args {
    pub(super) to: u16,
    pub(super) of: [u16; 4],
}

/// An instruction of its name: what it does in the lanes of a mask, and the classes of its registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) run: fn(&mut Regs, &Args, u32),
    pub(super) to: Class,
    pub(super) of: &'static [Class],
}

/// An instruction with its registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    pub(super) operation: Operation,
    pub(super) args: Args,
}

/// `lanes!(u32: |a: u32, b: u32| a & b)`: an operation by what it does in one lane.
macro_rules! lanes {
    ($to:ty: |$($of:ident: $ty:ty),*| $value:expr) => {{
        #[allow(unused_mut, unused_assignments)]
        fn run(regs: &mut $crate::ptx::lanes::Regs, args: &$crate::ptx::lanes::Args, mask: u32) {
            use $crate::ptx::lanes::Value;
            let mut i = 0;
            $(let $of = <$ty>::load(regs, args.of[i]); i += 1;)*
            let mut out = [<$to>::default(); 32];
            for lane in 0..32 {
                $(let $of = $of[lane];)*
                out[lane] = $value;
            }
            <$to>::store(regs, args.to, out, mask);
        }
        $crate::ptx::lanes::Operation {
            run,
            to: <$to as $crate::ptx::lanes::Value>::CLASS,
            of: &[$(<$ty as $crate::ptx::lanes::Value>::CLASS),*],
        }
    }};
}
use lanes;

#[cfg(test)]
pub(super) use convert::f32_to_half;
pub(super) use convert::half_to_f32;

/// Halves of a register, and a register of two: `mov` with a vector.
pub(super) fn find_internal(name: &str) -> Option<Operation> {
    Some(match name {
        "low32" => lanes!(u16: |a: u32| a as u16),
        "high32" => lanes!(u16: |a: u32| (a >> 16) as u16),
        "pack32" => lanes!(u32: |a: u16, b: u16| a as u32 | (b as u32) << 16),
        "low64" => lanes!(u32: |a: u64| a as u32),
        "high64" => lanes!(u32: |a: u64| (a >> 32) as u32),
        "pack64" => lanes!(u64: |a: u32, b: u32| a as u64 | (b as u64) << 32),
        _ => return None,
    })
}

/// The operation of a name, as PTX spells it.
pub(super) fn find(name: &str) -> Option<Operation> {
    integers::find(name).or_else(|| floats::find(name)).or_else(|| convert::find(name)).or_else(|| compare::find(name))
}
