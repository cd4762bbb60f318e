//! Activations in the form that a format's kernels multiply with.
//!
//! ```text
//! forms      the layouts: what row kernels read, what kernels for many tokens read
//! quantize   f32 to 8 bits
//! acts       rows of activations in both layouts, made in parts that threads can share
//! ```

mod acts;
mod forms;
mod quantize;

pub use acts::{Acts, PanelPart, RowPart};
pub use forms::{Act, ActBlock, ActRow, CHUNK, PanelActs, PanelColumns, PanelForm, PanelWords, WORDS};
#[cfg(test)]
pub(crate) use quantize::tests::values as odd_values;
