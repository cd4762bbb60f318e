//! The ops: one file each, with the contract, the builder method that records it, and the CPU body.

mod add;
mod argmax;
mod attend;
mod cache;
mod compress;
mod conv;
mod delta;
mod embed;
mod experts;
mod glu;
mod heads_mean;
mod hyper;
mod index;
mod linear;
mod norm;
mod output_rows;
mod pack;
mod rope;
mod route;
mod scale;
mod shift;

pub(crate) use add::Add;
pub use attend::{Attend, Extra};
pub use cache::Kv;
pub use compress::Compress;
pub use delta::Delta;
pub use experts::Experts;
pub use glu::Glu;
pub use hyper::Hyper;
pub use index::Index;
pub(crate) use output_rows::cut_rows;
pub use pack::Piece;
pub use rope::{Pairs, Rope, Scaling};
pub use route::{Gate, Route};
