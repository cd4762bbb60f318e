//! What one place of the CPU computes in.

use crate::tape::Work;

/// The buffers of one place, by the plan's numbers, and its scratch memory.
#[derive(Debug, Default)]
pub(super) struct PlaceMemory {
    pub(super) buffers: Vec<Vec<f32>>,
    pub(super) work: Work,
}

/// A step's buffer with room for `n` values or more. What is in it is garbage, and longer values of a step before are
/// not cut off: the next such step would have zeros written, by one thread, where it writes its own (the queries of
/// 2,048 tokens of Qwen3-30B-A3B are 34 MB).
pub(super) fn with_room(mut values: Vec<f32>, n: usize) -> Vec<f32> {
    if values.capacity() < n {
        drop(values); // before there is another one
        return vec![0.0; n];
    }
    values.resize(values.len().max(n), 0.0);
    values
}
