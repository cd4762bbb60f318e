//! From statements to instructions: declarations, names to numbers of registers, and operands that are constants.
//!
//! Constants, special registers and addresses of variables become registers that are written before the first
//! instruction, so that instructions read registers alone.

mod statement;

use std::collections::HashMap;

use super::Image;
use super::code::{Entry, Inst, Op, Param, Special};
use super::lanes::{Class, Reg};
use super::parse::{Reader, Result};

/// A variable of a module or of a kernel.
struct Variable<'a> {
    name: &'a str,
    /// None where the size is left open, as for dynamic shared memory.
    bytes: Option<usize>,
    align: usize,
    values: Vec<u8>,
}

/// Bytes of a type: `.u32`, `.b8`, `.f32`.
fn type_bytes(ty: &str) -> Option<usize> {
    let bits: usize = ty.trim_start_matches('.').get(1..)?.parse().ok()?;
    matches!(bits, 8 | 16 | 32 | 64).then_some(bits / 8)
}

/// The class of registers of a type.
fn type_class(ty: &str) -> Option<Class> {
    match (ty, type_bytes(ty)) {
        (".pred", _) => Some(Class::Predicate),
        (_, Some(8)) => Some(Class::Double),
        (_, Some(_)) => Some(Class::Word),
        _ => None,
    }
}

/// Reads a declaration after its state space: `.align 4 .b8 name[128] = {..};`
fn variable<'a>(r: &mut Reader<'a>) -> Result<Variable<'a>> {
    let mut align = None;
    if r.take(".align") {
        align = Some(r.number()? as usize);
    }
    let ty = r.next()?;
    let Some(of) = type_bytes(ty) else { return r.error(format_args!("{ty}, a type expected")) };
    let name = r.next()?;
    let mut bytes = Some(of);
    if r.take("[") {
        bytes = if r.peek() == Some("]") { None } else { Some(of * r.number()? as usize) };
        r.expect("]")?;
    }
    let mut values = Vec::new();
    if r.take("=") {
        r.expect("{")?;
        while !r.take("}") {
            values.extend_from_slice(&r.number()?.to_le_bytes()[..of]);
            r.take(",");
        }
    }
    Ok(Variable { name, bytes, align: align.unwrap_or(of), values })
}

/// Decodes a module.
pub(super) fn module(text: &str) -> std::result::Result<Image, String> {
    let mut r = Reader::new(text);
    let mut image = Image { entries: Vec::new(), variables: Vec::new() };
    // Addresses of the module's variables; dynamic shared memory has none before its kernel.
    let mut names: HashMap<&str, Option<u64>> = HashMap::new();
    while r.peek().is_some() {
        match r.next()? {
            ".version" | ".target" | ".address_size" => {
                r.next()?;
                while r.take(",") {
                    r.next()?;
                }
            }
            ".visible" | ".extern" | ".weak" => {}
            ".global" | ".const" => {
                let v = variable(&mut r)?;
                r.expect(";")?;
                let Some(bytes) = v.bytes else { return r.error(format_args!("{} has no size", v.name)) };
                let mut words = vec![0u64; bytes.div_ceil(8)].into_boxed_slice();
                v.values.iter().enumerate().for_each(|(i, b)| words[i / 8] |= (*b as u64) << (i % 8 * 8));
                let at = words.as_ptr() as u64;
                names.insert(v.name, Some(at));
                image.variables.push((at, words));
            }
            ".shared" => {
                let v = variable(&mut r)?;
                r.expect(";")?;
                if v.bytes.is_some() {
                    return r.error(format_args!("{} is shared by kernels, which is not interpreted", v.name));
                }
                names.insert(v.name, None);
            }
            ".entry" => image.entries.push(entry(&mut r, &names)?),
            other => return r.error(format_args!("{other} is not interpreted")),
        }
    }
    if image.entries.is_empty() {
        return Err("the PTX has no kernel".into());
    }
    Ok(image)
}

/// A kernel whose statements are being read.
struct Scope<'a, 'm> {
    /// Of the module.
    names: &'m HashMap<&'a str, Option<u64>>,
    /// Prefixes of registers (`%r`), or whole names: class, and the number of the first.
    regs: HashMap<&'a str, (Class, usize)>,
    n_regs: [usize; 3],
    /// Variables in shared and in local memory: their offsets.
    places: HashMap<&'a str, u64>,
    labels: HashMap<&'a str, usize>,
    /// Branches and the labels that they go to.
    branches: Vec<(usize, &'a str)>,
    constants: HashMap<(usize, u64), Reg>,
    /// Registers with the start of dynamic shared memory, which is known when the kernel's own is.
    dynamic: Vec<Reg>,
    specials: Vec<(Reg, Special)>,
    entry: Entry,
}

fn params(r: &mut Reader<'_>) -> Result<Vec<Param>> {
    let mut all: Vec<Param> = Vec::new();
    if !r.take("(") {
        return Ok(all);
    }
    while !r.take(")") {
        r.expect(".param")?;
        let v = variable(r)?;
        let Some(bytes) = v.bytes else { return r.error(format_args!("{} has no size", v.name)) };
        let end = all.last().map_or(0, |p| p.offset + p.bytes);
        all.push(Param { name: v.name.into(), offset: end.next_multiple_of(v.align), bytes });
        r.take(",");
    }
    Ok(all)
}

fn entry<'a>(r: &mut Reader<'a>, names: &HashMap<&'a str, Option<u64>>) -> Result<Entry> {
    let name = r.next()?.to_owned();
    let params = params(r)?;
    let mut most_threads = None;
    while !r.take("{") {
        let directive = r.next()?;
        let mut product = r.number()?;
        while r.take(",") {
            product *= r.number()?;
        }
        match directive {
            ".maxntid" => most_threads = Some(product as u32),
            ".minnctapersm" | ".maxnreg" => {}
            other => return r.error(format_args!("{other} is not interpreted")),
        }
    }
    let entry = Entry {
        name,
        params,
        most_threads,
        shared_bytes: 0,
        local_bytes: 0,
        code: Vec::new(),
        n_regs: [0; 3],
        constants: Vec::new(),
        specials: Vec::new(),
    };
    let mut scope = Scope {
        names,
        regs: HashMap::new(),
        n_regs: [0; 3],
        places: HashMap::new(),
        labels: HashMap::new(),
        branches: Vec::new(),
        constants: HashMap::new(),
        dynamic: Vec::new(),
        specials: Vec::new(),
        entry,
    };
    scope.body(r)?;
    scope.finish(r)
}

impl<'a> Scope<'a, '_> {
    /// Everything up to the brace that closes the kernel.
    fn body(&mut self, r: &mut Reader<'a>) -> Result<()> {
        let mut depth = 1;
        while depth > 0 {
            match r.next()? {
                "{" => depth += 1,
                "}" => depth -= 1,
                ".reg" => self.registers(r)?,
                ".pragma" => while r.next()? != ";" {},
                space @ (".shared" | ".local") => {
                    let v = variable(r)?;
                    r.expect(";")?;
                    let Some(bytes) = v.bytes else { return r.error(format_args!("{} has no size", v.name)) };
                    let end =
                        if space == ".local" { &mut self.entry.local_bytes } else { &mut self.entry.shared_bytes };
                    let at = end.next_multiple_of(v.align);
                    *end = at + bytes;
                    self.places.insert(v.name, at as u64);
                }
                "@" => {
                    let wanted = !r.take("!");
                    let name = r.next()?;
                    let Some(Reg { class: Class::Predicate, number }) = self.register(name) else {
                        return r.error(format_args!("{name}, a predicate expected"));
                    };
                    let opcode = r.next()?;
                    self.statement(r, opcode, Some((number, wanted)))?;
                }
                word if r.take(":") => {
                    self.labels.insert(word, self.entry.code.len());
                }
                opcode => self.statement(r, opcode, None)?,
            }
        }
        // A kernel may end without a `ret`; and a label may be its last word.
        self.push(r, Op::Return, None, "ret", &[]);
        Ok(())
    }

    /// `.reg .b32 %r<77>, %x;`
    fn registers(&mut self, r: &mut Reader<'a>) -> Result<()> {
        let ty = r.next()?;
        let Some(class) = type_class(ty) else { return r.error(format_args!("{ty}, a type expected")) };
        loop {
            let name = r.next()?;
            let mut n = 1;
            if r.take("<") {
                n = r.number()? as usize;
                r.expect(">")?;
            }
            self.regs.insert(name, (class, self.n_regs[class as usize]));
            self.n_regs[class as usize] += n;
            if !r.take(",") {
                return r.expect(";");
            }
        }
    }

    fn new_register(&mut self, class: Class) -> Reg {
        let number = self.n_regs[class as usize] as u16;
        self.n_regs[class as usize] += 1;
        Reg { class, number }
    }

    /// A declared register.
    fn register(&self, name: &str) -> Option<Reg> {
        let found = self.regs.get(name).map(|&(class, first)| (class, first, 0));
        let numbered = || {
            let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let number: usize = name[prefix.len()..].parse().ok()?;
            self.regs.get(prefix).map(|&(class, first)| (class, first, number))
        };
        let (class, first, number) = found.or_else(numbered)?;
        Some(Reg { class, number: (first + number) as u16 })
    }

    /// A register that holds a constant.
    fn constant(&mut self, class: Class, value: u64) -> Reg {
        let value = match class {
            Class::Word => value as u32 as u64,
            Class::Double => value,
            Class::Predicate => (value != 0) as u64,
        };
        if let Some(reg) = self.constants.get(&(class as usize, value)) {
            return *reg;
        }
        let reg = self.new_register(class);
        self.constants.insert((class as usize, value), reg);
        reg
    }

    /// A register that holds what a name stands for.
    fn named(&mut self, r: &Reader<'_>, name: &str, class: Class) -> Result<Reg> {
        if let Some(reg) = self.register(name) {
            return Ok(reg);
        }
        if let Some(special) = special(name) {
            let known = self.specials.iter().find(|(_, s)| *s == special).map(|(reg, _)| *reg);
            return Ok(known.unwrap_or_else(|| {
                let reg = self.new_register(Class::Word);
                self.specials.push((reg, special));
                reg
            }));
        }
        if let Some(&at) = self.places.get(name) {
            return Ok(self.constant(class, at));
        }
        match self.names.get(name) {
            Some(Some(at)) => Ok(self.constant(class, *at)),
            Some(None) => {
                let known = self.dynamic.iter().find(|reg| reg.class == class).copied();
                Ok(known.unwrap_or_else(|| {
                    let reg = self.new_register(class);
                    self.dynamic.push(reg);
                    reg
                }))
            }
            None => r.error(format_args!("{name} is not interpreted, or was not declared")),
        }
    }

    fn push(&mut self, r: &Reader<'_>, op: Op, guard: Option<(u16, bool)>, name: &str, reads: &[Reg]) {
        self.entry.code.push(Inst { op, guard, line: r.line, name: name.into(), reads: reads.into() });
    }

    fn finish(mut self, r: &Reader<'_>) -> Result<Entry> {
        for (at, label) in std::mem::take(&mut self.branches) {
            let Some(&target) = self.labels.get(label) else {
                return r.error(format_args!("{}: no label {label}", self.entry.name));
            };
            self.entry.code[at].op = Op::Branch(target);
        }
        let mut entry = self.entry;
        entry.shared_bytes = entry.shared_bytes.next_multiple_of(16);
        let constants = self.constants.into_iter().map(|((_, value), reg)| (reg, value));
        let dynamic = self.dynamic.into_iter().map(|reg| (reg, entry.shared_bytes as u64));
        entry.constants = constants.chain(dynamic).collect();
        entry.specials = self.specials;
        entry.n_regs = self.n_regs;
        if entry.n_regs.iter().any(|&n| n > u16::MAX as usize) {
            return r.error(format_args!("{} has too many registers", entry.name));
        }
        Ok(entry)
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| {
        Some(match name {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        })
    };
    match name.strip_prefix('%')?.split_once('.') {
        Some(("tid", a)) => axis(a).map(Special::Tid),
        Some(("ntid", a)) => axis(a).map(Special::Ntid),
        Some(("ctaid", a)) => axis(a).map(Special::Ctaid),
        Some(("nctaid", a)) => axis(a).map(Special::Nctaid),
        Some(_) => None,
        None => match name {
            "%laneid" => Some(Special::Lane),
            "%warpid" => Some(Special::Warp),
            _ => None,
        },
    }
}
