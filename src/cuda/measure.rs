//! How long a kernel takes on the device that does next to nothing: in a graph, and started by itself.

use anyhow::Result;

use super::{Event, Gpu, Grid, launch};

/// Kernels that are started in a row: what is before and after them is little to that.
const KERNELS: usize = 200;
/// Values that each adds: those of a narrow row.
const VALUES: usize = 2048;

impl Gpu {
    /// Seconds of a small kernel in a graph, and one by one from the host: the best of a few rounds.
    ///
    /// # Errors
    /// If there is no memory for its values, or the driver reports an error.
    pub fn launch_seconds(&self) -> Result<(f64, f64)> {
        self.enter()?;
        let values = self.alloc(3 * VALUES * 4, "a measurement")?;
        let at = |i: usize| values.ptr().at(i * VALUES * 4);
        self.zero(&self.work, at(0), 3 * VALUES * 4)?;
        let kernels = || {
            let one = |_| launch::add(Some(self), Grid::each(VALUES), at(0), at(1), at(2), VALUES as u64);
            (0..KERNELS).try_for_each(one)
        };
        kernels()?; // loads it, which a recording must not
        let graph = self.capture(kernels)?;
        let (begin, end) = (Event::timed()?, Event::timed()?);
        let best = |start: &dyn Fn() -> Result<()>| -> Result<f64> {
            let mut best = f64::MAX;
            for _ in 0..4 {
                begin.record(&self.work)?;
                start()?;
                end.record(&self.work)?;
                end.wait()?;
                best = best.min(end.since(&begin)? / KERNELS as f64);
            }
            Ok(best)
        };
        Ok((best(&|| self.replay(&graph))?, best(&kernels)?))
    }
}
