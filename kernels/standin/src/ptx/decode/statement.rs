//! One instruction: its name and operands to what runs.

use super::super::code::Op;
use super::super::exchange::{Exchange, ExchangeOp};
use super::super::lanes::{self, Args, Class, Lanes, Reg};
use super::super::memory::{Access, Atomic, AtomicOp, Space, holds};
use super::super::parse::{Operand, Reader, Result};
use super::super::tensor::{Element, Mma};
use super::{Scope, type_bytes};

/// Parts of a load's or store's name that change nothing here: caches, and the width of what memory reads ahead.
const HINTS: [&str; 12] =
    ["nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "L1::no_allocate", "L2::128B", "L2::256B"];

type Guard = Option<(u16, bool)>;

impl<'a> Scope<'a, '_> {
    /// An operand as a register of a class.
    fn source(&mut self, r: &Reader<'_>, operand: &Operand<'a>, class: Class) -> Result<Reg> {
        let reg = match operand {
            Operand::Name(name) => self.named(r, name, class)?,
            Operand::Number(n) => self.constant(class, *n),
            other => return r.error(format_args!("{other:?}, a register or a number expected")),
        };
        if reg.class != class {
            return r.error(format_args!("{operand:?} has another width than the instruction"));
        }
        Ok(reg)
    }

    fn target(&self, r: &Reader<'_>, operand: &Operand<'a>, class: Class) -> Result<Reg> {
        match operand {
            Operand::Name(name) => match self.register(name) {
                Some(reg) if reg.class == class => Ok(reg),
                _ => r.error(format_args!("{name}, a register of the instruction's width expected")),
            },
            other => r.error(format_args!("{other:?}, a register expected")),
        }
    }

    /// Registers of a vector, or one, without regard to their class.
    fn registers_of(&self, r: &Reader<'_>, operand: &Operand<'a>) -> Result<Vec<Reg>> {
        let one = |name: &str| match self.register(name) {
            Some(reg) => Ok(reg),
            None => r.error(format_args!("{name}, a register expected")),
        };
        match operand {
            Operand::Name(name) => Ok(vec![one(name)?]),
            Operand::Vector(parts) => parts
                .iter()
                .map(|p| match p {
                    Operand::Name(name) => one(name),
                    other => r.error(format_args!("{other:?}, a register expected")),
                })
                .collect(),
            other => r.error(format_args!("{other:?}, registers expected")),
        }
    }

    /// The register and the offset of an address.
    fn address(&mut self, r: &Reader<'_>, operand: &Operand<'a>, space: Space) -> Result<(Reg, i64)> {
        let class = if space == Space::Global { Class::Double } else { Class::Word };
        match operand {
            Operand::Address(Some(name), offset) => {
                let reg = self.named(r, name, class)?;
                if reg.class == Class::Predicate || (space == Space::Global && reg.class != Class::Double) {
                    return r.error(format_args!("{name} is no address"));
                }
                Ok((reg, *offset))
            }
            Operand::Address(None, offset) => Ok((self.constant(class, 0), *offset)),
            other => r.error(format_args!("{other:?}, an address expected")),
        }
    }

    pub(super) fn statement(&mut self, r: &mut Reader<'a>, opcode: &'a str, guard: Guard) -> Result<()> {
        let operands = r.operands()?;
        let parts: Vec<&str> = opcode.split('.').collect();
        let (op, reads) = match parts[0] {
            "bra" => {
                let [Operand::Name(label)] = operands[..] else { return r.error("bra without a label") };
                self.branches.push((self.entry.code.len(), label));
                (Op::Branch(0), Vec::new())
            }
            "ret" | "exit" => (Op::Return, Vec::new()),
            "membar" | "fence" | "prefetch" => (Op::Nothing, Vec::new()),
            "ld" | "ldu" => self.load(r, &parts, &operands)?,
            "st" => self.store(r, &parts, &operands)?,
            "atom" | "red" => self.atomic(r, &parts, &operands)?,
            "bar" | "barrier" => self.barrier(r, &parts, &operands)?,
            "shfl" | "vote" | "match" => self.exchange(r, &parts, &operands)?,
            "cp" => self.copy_async(r, &parts, &operands)?,
            "ldmatrix" => self.load_matrix(r, &parts, &operands)?,
            "mma" => self.mma(r, &parts, &operands)?,
            "mov" if operands.iter().any(|o| matches!(o, Operand::Vector(_))) => {
                return self.pack(r, opcode, &operands, guard);
            }
            _ => self.lanes(r, opcode, &operands, guard)?,
        };
        self.push(r, op, guard, opcode, &reads);
        Ok(())
    }

    fn unknown<T>(&self, r: &Reader<'_>, parts: &[&str]) -> Result<T> {
        r.error(format_args!("{} is not interpreted", parts.join(".")))
    }

    fn lanes(&mut self, r: &Reader<'_>, name: &str, operands: &[Operand<'a>], guard: Guard) -> Result<(Op, Vec<Reg>)> {
        let name = name.strip_suffix(".uni").unwrap_or(name);
        let Some(operation) = lanes::find(name) else { return r.error(format_args!("{name} is not interpreted")) };
        if operands.len() != operation.of.len() + 1 {
            return r.error(format_args!("{name} with {} operands", operands.len()));
        }
        let to = self.target(r, &operands[0], operation.to)?;
        let mut args = Args { to: to.number, ..Args::default() };
        let mut reads = Vec::new();
        for (i, (operand, class)) in operands[1..].iter().zip(operation.of).enumerate() {
            let reg = match operand {
                // A conversion may take the lower half of a wider register.
                Operand::Name(of) if name.starts_with("cvt.") && *class == Class::Word => {
                    let reg = self.named(r, of, *class)?;
                    if reg.class == Class::Double { self.lower_half(r, name, reg, guard) } else { reg }
                }
                operand => self.source(r, operand, *class)?,
            };
            args.of[i] = reg.number;
            reads.push(reg);
        }
        Ok((Op::Lanes(Lanes { operation, args }), reads))
    }

    fn lower_half(&mut self, r: &Reader<'_>, name: &str, of: Reg, guard: Guard) -> Reg {
        let to = self.new_register(Class::Word);
        let operation = lanes::find_internal("low64").expect("an operation of this program");
        let args = Args { to: to.number, of: [of.number, 0, 0, 0] };
        self.push(r, Op::Lanes(Lanes { operation, args }), guard, name, &[of]);
        to
    }

    /// `mov.b32 %r, {%rs, %rs}` and the way back, as two instructions each.
    fn pack(&mut self, r: &Reader<'_>, name: &str, operands: &[Operand<'a>], guard: Guard) -> Result<()> {
        let (whole, half) = match name {
            "mov.b32" => (Class::Word, Class::Word),
            "mov.b64" => (Class::Double, Class::Word),
            _ => return r.error(format_args!("{name} of a vector is not interpreted")),
        };
        let find = |name: &str| lanes::find_internal(name).expect("an operation of this program");
        let add = |scope: &mut Self, operation: lanes::Operation, to: Reg, of: &[Reg]| {
            let mut args = Args { to: to.number, ..Args::default() };
            of.iter().enumerate().for_each(|(i, reg)| args.of[i] = reg.number);
            scope.push(r, Op::Lanes(Lanes { operation, args }), guard, name, of);
        };
        let bits = if whole == Class::Double { "64" } else { "32" };
        match operands {
            [Operand::Vector(to), from] if to.len() == 2 => {
                let from = self.source(r, from, whole)?;
                for (to, part) in to.iter().zip(["low", "high"]) {
                    let to = self.target(r, to, half)?;
                    add(self, find(&format!("{part}{bits}")), to, &[from]);
                }
                Ok(())
            }
            [to, Operand::Vector(from)] if from.len() == 2 => {
                let to = self.target(r, to, whole)?;
                let from = [self.source(r, &from[0], half)?, self.source(r, &from[1], half)?];
                add(self, find(&format!("pack{bits}")), to, &from);
                Ok(())
            }
            _ => r.error(format_args!("{name} of a vector that is no pair")),
        }
    }

    /// The values and the size of an access, from the parts of its name behind the state space.
    fn access(
        &mut self,
        r: &Reader<'_>,
        parts: &[&str],
        values: Vec<Reg>,
        (at, offset): (Reg, i64),
        space: Space,
    ) -> Result<Access> {
        let mut n = 1;
        let ty = parts[parts.len() - 1];
        for part in &parts[1..parts.len() - 1] {
            match *part {
                "v2" => n = 2,
                "v4" => n = 4,
                part if HINTS.contains(&part) || ["global", "shared", "local", "param", "const"].contains(&part) => {}
                _ => return self.unknown(r, parts),
            }
        }
        let Some(bytes) = type_bytes(&format!(".{ty}")) else { return self.unknown(r, parts) };
        if values.len() != n || values.iter().any(|v| !holds(*v, bytes)) {
            return r.error(format_args!("{} with registers that do not fit", parts.join(".")));
        }
        Ok(Access { space, values, bytes, signed: ty.starts_with('s'), at, offset })
    }

    fn space(parts: &[&str]) -> Option<Space> {
        match *parts.iter().find(|p| ["global", "const", "shared", "local"].contains(p))? {
            "shared" => Some(Space::Shared),
            "local" => Some(Space::Local),
            _ => Some(Space::Global),
        }
    }

    fn load(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        let [to, from] = operands else { return self.unknown(r, parts) };
        let values = self.registers_of(r, to)?;
        if parts.contains(&"param") {
            let Operand::Address(Some(name), offset) = from else { return self.unknown(r, parts) };
            let Some(param) = self.entry.params.iter().find(|p| p.name == *name).cloned() else {
                return r.error(format_args!("{name}, a parameter expected"));
            };
            let none = self.constant(Class::Word, 0);
            let at = (none, param.offset as i64 + offset);
            let access = self.access(r, parts, values, at, Space::Local)?;
            if *offset < 0 || *offset as usize + access.bytes * access.values.len() > param.bytes {
                return r.error(format_args!("{name} has {} bytes", param.bytes));
            }
            return Ok((Op::LoadParam(access), Vec::new()));
        }
        let Some(space) = Self::space(parts) else { return self.unknown(r, parts) };
        let at = self.address(r, from, space)?;
        Ok((Op::Load(self.access(r, parts, values, at, space)?), vec![at.0]))
    }

    fn store(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        let ([to, from], Some(space)) = (operands, Self::space(parts)) else { return self.unknown(r, parts) };
        let class = if parts[parts.len() - 1].ends_with("64") { Class::Double } else { Class::Word };
        let values = match from {
            Operand::Vector(parts) => parts.iter().map(|p| self.source(r, p, class)).collect::<Result<Vec<Reg>>>()?,
            one => vec![self.source(r, one, class)?],
        };
        let at = self.address(r, to, space)?;
        Ok((Op::Store(self.access(r, parts, values, at, space)?), vec![at.0]))
    }

    fn atomic(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        let ty = parts[parts.len() - 1];
        let (Some(space), Some(bytes)) = (Self::space(parts), type_bytes(&format!(".{ty}"))) else {
            return self.unknown(r, parts);
        };
        let signed = ty.starts_with('s');
        let op = match parts[parts.len() - 2] {
            "add" if ty == "f32" => AtomicOp::AddF32,
            "add" if !ty.starts_with('f') => AtomicOp::Add,
            "min" if signed => AtomicOp::MinSigned,
            "max" if signed => AtomicOp::MaxSigned,
            "min" => AtomicOp::Min,
            "max" => AtomicOp::Max,
            "and" => AtomicOp::And,
            "or" => AtomicOp::Or,
            "xor" => AtomicOp::Xor,
            "exch" => AtomicOp::Exchange,
            "cas" => AtomicOp::Swap,
            _ => return self.unknown(r, parts),
        };
        let class = if bytes == 8 { Class::Double } else { Class::Word };
        let (to, rest) = match parts[0] {
            "atom" => (Some(self.target(r, &operands[0], class)?), &operands[1..]),
            _ => (None, operands),
        };
        let at = self.address(r, &rest[0], space)?;
        let values = rest[1..].iter().map(|v| self.source(r, v, class)).collect::<Result<Vec<Reg>>>()?;
        if values.len() != 1 + (op == AtomicOp::Swap) as usize || bytes < 4 {
            return self.unknown(r, parts);
        }
        let reads = values.iter().copied().chain([at.0]).collect();
        Ok((Op::Atomic(Atomic { space, op, to, bytes, at: at.0, offset: at.1, values }), reads))
    }

    fn barrier(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        match (parts, operands) {
            (["bar", "sync"] | ["barrier", "sync", "aligned"], [Operand::Number(0)]) => Ok((Op::Barrier, Vec::new())),
            (["bar", "warp", "sync"], [mask]) => {
                let mask = self.source(r, mask, Class::Word)?;
                Ok((Op::WarpBarrier(mask.number), vec![mask]))
            }
            _ => self.unknown(r, parts),
        }
    }

    fn exchange(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        let op = match parts {
            ["shfl", "sync", "up", "b32"] => ExchangeOp::Up,
            ["shfl", "sync", "down", "b32"] => ExchangeOp::Down,
            ["shfl", "sync", "bfly", "b32"] => ExchangeOp::Bfly,
            ["shfl", "sync", "idx", "b32"] => ExchangeOp::Idx,
            ["vote", "sync", "ballot", "b32"] => ExchangeOp::Ballot,
            ["vote", "sync", "any", "pred"] => ExchangeOp::Any,
            ["vote", "sync", "all", "pred"] => ExchangeOp::All,
            ["vote", "sync", "uni", "pred"] => ExchangeOp::Uni,
            ["match", "any", "sync", "b32"] => ExchangeOp::MatchAny,
            ["match", "all", "sync", "b32"] => ExchangeOp::MatchAll,
            _ => return self.unknown(r, parts),
        };
        let vote = parts[0] == "vote";
        let [to, of, middle @ .., members] = operands else { return self.unknown(r, parts) };
        let (to, holds) = match to {
            Operand::Both(to, holds) => {
                let holds = self.target(r, &Operand::Name(holds), Class::Predicate)?;
                (self.target(r, &Operand::Name(to), Class::Word)?, Some(holds.number))
            }
            to if vote && op != ExchangeOp::Ballot => (self.target(r, to, Class::Predicate)?, None),
            to => (self.target(r, to, Class::Word)?, None),
        };
        let (of, inverted) = match of {
            Operand::Not(name) => (self.source(r, &Operand::Name(name), Class::Predicate)?, true),
            of => (self.source(r, of, if vote { Class::Predicate } else { Class::Word })?, false),
        };
        let members = self.source(r, members, Class::Word)?;
        let mut reads = vec![members];
        if parts[0] != "shfl" {
            reads.push(of);
        }
        let [by, clamp] = match middle {
            [by, clamp] if parts[0] == "shfl" => {
                let both = [self.source(r, by, Class::Word)?, self.source(r, clamp, Class::Word)?];
                reads.extend(both);
                both.map(|reg| reg.number)
            }
            [] if parts[0] != "shfl" => [0; 2],
            _ => return self.unknown(r, parts),
        };
        let members = members.number;
        Ok((Op::Exchange(Exchange { op, to, holds, of, inverted, by, clamp, members }), reads))
    }

    fn copy_async(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        match (parts, operands) {
            (["cp", "async", "commit_group"], []) => Ok((Op::CopyCommit, Vec::new())),
            (["cp", "async", "wait_group"], [Operand::Number(n)]) => Ok((Op::CopyWait(*n as u32), Vec::new())),
            (["cp", "async", "ca" | "cg", "shared", "global", ..], [to, from, Operand::Number(n @ (4 | 8 | 16))]) => {
                let (to, from) = (self.address(r, to, Space::Shared)?, self.address(r, from, Space::Global)?);
                let bytes = *n as usize;
                let op = Op::CopyAsync { to: to.0, to_offset: to.1, from: from.0, from_offset: from.1, bytes };
                Ok((op, vec![to.0, from.0]))
            }
            _ => self.unknown(r, parts),
        }
    }

    fn load_matrix(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        let (["ldmatrix", "sync", "aligned", "m8n8", count, middle @ .., "shared", "b16"], [to, from]) =
            (parts, operands)
        else {
            return self.unknown(r, parts);
        };
        let (n, transposed) = match (*count, middle) {
            ("x1", []) => (1, false),
            ("x2", []) => (2, false),
            ("x4", []) => (4, false),
            ("x1", ["trans"]) => (1, true),
            ("x2", ["trans"]) => (2, true),
            ("x4", ["trans"]) => (4, true),
            _ => return self.unknown(r, parts),
        };
        let values = self.registers_of(r, to)?;
        if values.len() != n || values.iter().any(|v| v.class != Class::Word) {
            return self.unknown(r, parts);
        }
        let mut to = [0; 4];
        values.iter().enumerate().for_each(|(i, v)| to[i] = v.number);
        let (at, offset) = self.address(r, from, Space::Shared)?;
        Ok((Op::LoadMatrix { to, n, transposed, at, offset }, vec![at]))
    }

    fn mma(&mut self, r: &Reader<'_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(Op, Vec<Reg>)> {
        let (m, k, element) = match parts {
            ["mma", "sync", "aligned", shape, "row", "col", types @ ..] => match (*shape, types) {
                ("m16n8k8", ["f32", "f16", "f16", "f32"]) => (16, 8, Element::F16),
                ("m16n8k16", ["f32", "f16", "f16", "f32"]) => (16, 16, Element::F16),
                ("m16n8k8", ["f32", "bf16", "bf16", "f32"]) => (16, 8, Element::Bf16),
                ("m16n8k16", ["f32", "bf16", "bf16", "f32"]) => (16, 16, Element::Bf16),
                ("m8n8k16", ["s32", "s8", "s8", "s32"]) => (8, 16, Element::S8),
                ("m16n8k16", ["s32", "s8", "s8", "s32"]) => (16, 16, Element::S8),
                ("m16n8k32", ["s32", "s8", "s8", "s32"]) => (16, 32, Element::S8),
                _ => return self.unknown(r, parts),
            },
            _ => return self.unknown(r, parts),
        };
        let [d, a, b, c] = operands else { return self.unknown(r, parts) };
        let mut numbers = |operand: &Operand<'a>| -> Result<Vec<Reg>> {
            let parts = match operand {
                Operand::Vector(parts) => parts.clone(),
                one => vec![one.clone()],
            };
            parts.iter().map(|p| self.source(r, p, Class::Word)).collect()
        };
        let [d, a, b, c] = [numbers(d)?, numbers(a)?, numbers(b)?, numbers(c)?];
        let [d, a, b, c] = [d, a, b, c].map(|list| list.iter().map(|reg| reg.number).collect::<Vec<u16>>());
        let mma = Mma { element, m, k, d, a, b, c };
        if mma.registers() != (mma.a.len(), mma.b.len(), mma.c.len()) || mma.d.len() != mma.c.len() {
            return r.error(format_args!("{} with fragments of another size", parts.join(".")));
        }
        Ok((Op::Mma(mma), Vec::new()))
    }
}
