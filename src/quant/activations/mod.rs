//! Activations in the form that a format's kernels multiply with.

mod acts;
mod forms;
mod quantize;

pub use acts::{Acts, PanelPart, RowPart};
pub use forms::{Act, ActBlock, ActRow, CHUNK, PanelActs, PanelColumns, PanelForm, PanelWords, WORDS};
