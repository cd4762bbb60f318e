//! A launch: its blocks one after the other, and what stays from launch to launch.

use std::fs::File;
use std::io::Write;

use super::Image;
use super::block::Block;
use super::code::Entry;
use super::memory::Global;
use super::meter::Meter;
use crate::driver::Shape;
use crate::setting;

/// What kind of error ended a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Memory that there is not.
    Address,
    /// An address that is not a multiple of the access's size.
    Alignment,
    /// Anything else.
    Other,
}

/// Why a launch ended early.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What a driver would tell.
    pub kind: FaultKind,
    /// The line of the PTX, the instruction, the thread, and what it did.
    pub text: String,
}

/// Runs launches; remembers who wrote which place of memory.
#[derive(Default)]
pub struct Machine {
    global: Global,
    block: Block,
    profile: Option<File>,
}

impl Machine {
    /// An allocation is no more.
    pub fn forget(&mut self, at: u64) {
        self.global.forget(at);
    }

    /// Runs a kernel. `params` are its parameters as PTX lays them out, `memory` all allocations that its device reaches,
    /// by address, with their bytes.
    ///
    /// # Errors
    /// At the first thing that a thread does and may not do; memory is as the kernel left it.
    pub(crate) fn run(
        &mut self,
        image: &Image,
        entry: &Entry,
        params: &[u64],
        shape: &Shape,
        memory: Vec<(u64, usize)>,
    ) -> Result<(), Fault> {
        let variables = image.variables.iter().map(|(at, words)| (*at, words.len() * 8));
        self.global.begin(memory.into_iter().chain(variables));
        let mut meter = Meter::new(self.profile().is_some());
        let outcome = self.blocks(entry, params, shape, &mut meter);
        self.global.end();
        outcome?;
        if let Some(file) = self.profile() {
            file.write_all(meter.line(&entry.name).as_bytes()).expect("TANDEM_EMU_PROFILE can be written");
        }
        Ok(())
    }

    fn blocks(&mut self, entry: &Entry, params: &[u64], shape: &Shape, meter: &mut Meter) -> Result<(), Fault> {
        let [gx, gy, gz] = shape.grid;
        let seed = setting("TANDEM_EMU_SEED", 1) as u64;
        self.block.prepare(entry, shape);
        for number in 0..gx * gy * gz {
            let at = [number % gx, number / gx % gy, number / (gx * gy)];
            meter.blocks += 1;
            self.block.run(entry, params, at, number, seed, &mut self.global, meter)?;
        }
        Ok(())
    }

    /// The file of `TANDEM_EMU_PROFILE`.
    fn profile(&mut self) -> Option<&mut File> {
        if self.profile.is_none()
            && let Some(path) = std::env::var_os("TANDEM_EMU_PROFILE")
        {
            let file = File::options().create(true).append(true).open(path);
            self.profile = Some(file.unwrap_or_else(|e| panic!("TANDEM_EMU_PROFILE: {e}")));
        }
        self.profile.as_mut()
    }
}
