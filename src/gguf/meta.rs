//! A model's metadata: keys and typed values in file order, and getters that say exactly what is wrong.
//!
//! Writers disagree about integer widths and signs (a count is u32 here and u64 there), so a getter takes any integer,
//! or bool, that fits; it does not take a string for a number, or a fraction for an integer.

use anyhow::{Result, anyhow};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Arr(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array: its elements are all of one kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Str(Vec<String>),
    Arr(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// The kinds' names, in the order of their GGUF numbers.
pub(super) const KINDS: [&str; 13] =
    ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64"];

/// Runs `$do` with `$v` bound to what is inside `$on`, whatever its kind.
macro_rules! any {
    ($type:ident, $on:expr, $v:ident => $do:expr) => {
        match $on {
            $type::U8($v) => $do,
            $type::I8($v) => $do,
            $type::U16($v) => $do,
            $type::I16($v) => $do,
            $type::U32($v) => $do,
            $type::I32($v) => $do,
            $type::F32($v) => $do,
            $type::Bool($v) => $do,
            $type::Str($v) => $do,
            $type::Arr($v) => $do,
            $type::U64($v) => $do,
            $type::I64($v) => $do,
            $type::F64($v) => $do,
        }
    };
}

macro_rules! kinds {
    ($($kind:ident($type:ty) = $id:literal),*) => {
        impl Value {
            /// The kind's GGUF number.
            pub fn id(&self) -> u32 {
                match self { $(Value::$kind(_) => $id),* }
            }
        }
        impl Array {
            /// The GGUF number of its elements' kind.
            pub fn id(&self) -> u32 {
                match self { $(Array::$kind(_) => $id),* }
            }
            /// Element `i`.
            pub fn get(&self, i: usize) -> Option<Value> {
                match self { $(Array::$kind(v) => v.get(i).cloned().map(Value::$kind)),* }
            }
        }
        $(impl From<$type> for Value {
            fn from(v: $type) -> Value {
                Value::$kind(v)
            }
        }
        impl From<Vec<$type>> for Value {
            fn from(v: Vec<$type>) -> Value {
                Value::Arr(Array::$kind(v))
            }
        })*
    };
}
kinds! {
    U8(u8) = 0, I8(i8) = 1, U16(u16) = 2, I16(i16) = 3, U32(u32) = 4, I32(i32) = 5, F32(f32) = 6, Bool(bool) = 7,
    Str(String) = 8, Arr(Array) = 9, U64(u64) = 10, I64(i64) = 11, F64(f64) = 12
}

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::Str(v.to_owned())
    }
}

impl Array {
    /// How many elements it has.
    pub fn len(&self) -> usize {
        any!(Array, self, v => v.len())
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Value {
    /// The value as a whole number; a bool is 0 or 1.
    fn int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            Value::Bool(v) => v.into(),
            _ => return None,
        })
    }

    /// What it is, for an error: `the i32 -1`, `the string "x"`, `an array of 3 u32`.
    pub fn describe(&self) -> String {
        match self {
            Value::Str(s) if s.chars().count() > 40 => {
                format!("the string {:?}..", s.chars().take(40).collect::<String>())
            }
            Value::Str(s) => format!("the string {s:?}"),
            Value::Arr(a) => format!("an array of {} {}", a.len(), KINDS[a.id() as usize]),
            other => any!(Value, other, v => format!("the {} {v:?}", KINDS[other.id() as usize])),
        }
    }
}

/// A number or bool that a getter can ask for.
pub trait Scalar: Sized {
    /// The type's name for an error: "an unsigned 32-bit integer".
    const NAME: &'static str;
    /// The value, where it is one and fits.
    fn of(value: &Value) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ty: $name:literal),*) => {
        $(impl Scalar for $type {
            const NAME: &'static str = $name;
            fn of(value: &Value) -> Option<Self> {
                <$type>::try_from(value.int()?).ok()
            }
        })*
    };
}
integers! {
    u32: "whole number from 0 to 4294967295", i32: "whole number of 32 bits",
    u64: "whole number from 0 up", i64: "whole number of 64 bits", usize: "whole number from 0 up"
}

impl Scalar for f32 {
    const NAME: &'static str = "number";
    fn of(value: &Value) -> Option<f32> {
        match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32).filter(|f| f.is_finite() || !v.is_finite()),
            Value::Bool(_) => None,
            _ => value.int().map(|v| v as f32),
        }
    }
}

impl Scalar for bool {
    const NAME: &'static str = "bool";
    fn of(value: &Value) -> Option<bool> {
        match value.int()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// What a getter can return.
pub trait FromValue<'a>: Sized {
    /// The value, or `(what was found, what was expected)`.
    fn from_value(value: &'a Value) -> Result<Self, (String, String)>;
}

impl<T: Scalar> FromValue<'_> for T {
    fn from_value(value: &Value) -> Result<T, (String, String)> {
        T::of(value).ok_or_else(|| (value.describe(), format!("a {}", T::NAME)))
    }
}

impl<'a> FromValue<'a> for &'a str {
    fn from_value(value: &'a Value) -> Result<&'a str, (String, String)> {
        match value {
            Value::Str(s) => Ok(s),
            _ => Err((value.describe(), "a string".into())),
        }
    }
}

impl<'a> FromValue<'a> for &'a [String] {
    fn from_value(value: &'a Value) -> Result<&'a [String], (String, String)> {
        match value {
            Value::Arr(Array::Str(s)) => Ok(s),
            // An empty list says nothing about what it would have held, and some writers pick any kind for it.
            Value::Arr(a) if a.is_empty() => Ok(&[]),
            _ => Err((value.describe(), "an array of str".into())),
        }
    }
}

impl<T: Scalar> FromValue<'_> for Vec<T> {
    fn from_value(value: &Value) -> Result<Vec<T>, (String, String)> {
        let want = || format!("an array, each element a {}", T::NAME);
        let Value::Arr(array) = value else { return Err((value.describe(), want())) };
        let element = |i| {
            let v = array.get(i).expect("an index below the length");
            T::of(&v).ok_or_else(|| (format!("{} with element {i} {}", value.describe(), v.describe()), want()))
        };
        (0..array.len()).map(element).collect()
    }
}

/// The metadata of a file: keys in file order.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    file: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
    repaired: Vec<String>,
    replaced: Vec<String>,
}

impl Meta {
    /// No metadata yet; errors call the file `file`.
    pub(super) fn new(file: &Path) -> Meta {
        Meta { file: file.to_owned(), ..Meta::default() }
    }

    /// Adds a key that is not there yet.
    pub(super) fn insert(&mut self, key: String, value: Value) {
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
    }

    /// Gives a key another value than the file does, or one that the file does not have.
    pub fn replace(&mut self, key: &str, value: Value) {
        match self.index.get(key) {
            Some(&i) => self.entries[i].1 = value,
            None => self.insert(key.to_owned(), value),
        }
        self.replaced.push(key.to_owned());
    }

    /// Whether a key has its value from [`Meta::replace`].
    pub fn is_replaced(&self, key: &str) -> bool {
        self.replaced.iter().any(|k| k == key)
    }

    /// Notes that a value of this key held bytes that are not UTF-8.
    pub(super) fn note_repair(&mut self, key: &str) {
        self.repaired.push(key.to_owned());
    }

    /// The keys whose strings were not all UTF-8: the bad bytes were replaced by U+FFFD.
    pub fn repaired(&self) -> &[String] {
        &self.repaired
    }

    /// The file that these come from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Every key and value, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key as a `T`: absent is `None`, another kind of value is an error.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn opt<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        T::from_value(value).map(Some).map_err(|(found, want)| {
            anyhow!("{}: metadata key {key:?} is {found}, expected {want}", self.file.display())
        })
    }

    /// The value of a key as a `T`: absent is an error too.
    ///
    /// # Errors
    /// If the key is absent, or its value is of another kind.
    pub fn need<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.opt(key)?.ok_or_else(|| {
            let file = self.file.display();
            anyhow!("{file}: metadata key {key:?} is missing: the file is incomplete, or not for this architecture")
        })
    }

    /// A key that is one value for all `n` (layers), or an array of exactly `n`: `None` where it is absent.
    ///
    /// # Errors
    /// If the value is of another kind, or an array of another length.
    pub fn each<T: Scalar + Clone>(&self, key: &str, n: usize) -> Result<Option<Vec<T>>> {
        match self.get(key) {
            Some(Value::Arr(a)) if a.len() != n => {
                let (file, has) = (self.file.display(), a.len());
                Err(anyhow!("{file}: metadata key {key:?} is an array of {has}, expected one value or {n} of them"))
            }
            Some(Value::Arr(_)) => self.opt(key),
            _ => Ok(self.opt::<T>(key)?.map(|v| vec![v; n])),
        }
    }
}

/// The getters by name, each required or optional.
macro_rules! getters {
    ($($name:ident, $opt:ident: $type:ty = $what:literal;)*) => {
        impl Meta {
            $(#[doc = concat!("The ", $what, " of this key; an error if it is absent or something else.")]
            pub fn $name(&self, key: &str) -> Result<$type> {
                self.need(key)
            }
            #[doc = concat!("The ", $what, " of this key; `None` if it is absent, an error if it is something else.")]
            pub fn $opt(&self, key: &str) -> Result<Option<$type>> {
                self.opt(key)
            })*
        }
    };
}
getters! {
    u32, opt_u32: u32 = "whole number";
    u64, opt_u64: u64 = "whole number";
    usize, opt_usize: usize = "whole number";
    f32, opt_f32: f32 = "number";
    bool, opt_bool: bool = "bool";
    str, opt_str: &str = "string";
    strs, opt_strs: &[String] = "strings";
    i32s, opt_i32s: Vec<i32> = "whole numbers";
    usizes, opt_usizes: Vec<usize> = "whole numbers";
    f32s, opt_f32s: Vec<f32> = "numbers";
    bools, opt_bools: Vec<bool> = "bools";
}
