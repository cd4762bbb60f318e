//! Modules, functions, and kernels that run.

use std::sync::Arc;

use super::queue::Task;
use super::{Code, Driver, FIRST, Handle, Result, current, index, refuse};
use crate::native::{self, Kernel};
use crate::ptx::{self, Image};
use crate::setting;

pub(super) struct Module {
    device: usize,
    image: Arc<Image>,
}

#[derive(Clone)]
pub(super) struct Function {
    device: usize,
    image: Arc<Image>,
    /// Its place among the image's entries.
    entry: usize,
    /// None where it is interpreted.
    compiled: Option<Kernel>,
    /// Dynamic shared memory that a block may ask for.
    most_shared: u32,
}

/// The blocks of a grid, the threads of each, and a block's dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
}

pub(super) struct Launch {
    function: Function,
    shape: Shape,
    /// The parameters as PTX lays them out; words, so that they are aligned.
    params: Vec<u64>,
}

impl Driver {
    /// Loading waits for the device, which the thread of a recording may not.
    pub(crate) fn load(&mut self, text: &str) -> Result<Handle> {
        let device = current()?;
        if self.capturing() {
            return refuse!(Code::CaptureUnsupported, "a module is loaded while a graph is recorded");
        }
        let image = match ptx::Image::new(text) {
            Ok(image) => Arc::new(image),
            Err(why) => return refuse!(Code::InvalidImage, "{why}"),
        };
        self.modules.push(Module { device, image });
        Ok(FIRST + self.modules.len() - 1)
    }

    pub(crate) fn function(&mut self, module: Handle, name: &str) -> Result<Handle> {
        let Module { device, image } = &self.modules[index(module, self.modules.len())?];
        if self.capturing() {
            return refuse!(Code::CaptureUnsupported, "{name} is looked up while a graph is recorded");
        }
        let Some(entry) = image.entries.iter().position(|e| e.name == name) else {
            return refuse!(Code::NotFound, "{name} is not in the PTX");
        };
        let mut compiled = None;
        if let Some(library) = native::library() {
            let Some((kernel, sizes)) = library.kernel(name) else {
                return refuse!(Code::NotFound, "{name} is in the PTX, but in no kernel's source");
            };
            if !image.entries[entry].params.iter().map(|p| p.bytes).eq(sizes) {
                return refuse!(
                    Code::InvalidImage,
                    "{name}: the PTX has other parameters than the source: it is stale"
                );
            }
            compiled = Some(kernel);
        }
        let (device, image) = (*device, image.clone());
        let most_shared = (48u32 << 10).saturating_sub(image.entries[entry].shared_bytes() as u32);
        self.functions.push(Function { device, image, entry, compiled, most_shared });
        Ok(FIRST + self.functions.len() - 1)
    }

    /// Allows a function's blocks so much dynamic shared memory. With what its variables take it must be no more than a block
    /// may ask for.
    pub(crate) fn allow_shared(&mut self, function: Handle, bytes: i32) -> Result {
        let function = index(function, self.functions.len())?;
        let function = &mut self.functions[function];
        let entry = &function.image.entries[function.entry];
        let most = super::attribute(97) - entry.shared_bytes() as i32;
        if bytes < 0 || bytes > most {
            let name = &entry.name;
            return refuse!(Code::InvalidValue, "{name}: {bytes} bytes of dynamic shared memory, {most} are left");
        }
        function.most_shared = bytes as u32;
        Ok(())
    }

    /// Queues a kernel. `param` reads the bytes of the parameter of a number.
    pub(crate) fn launch(
        &mut self,
        function: Handle,
        shape: Shape,
        stream: Handle,
        param: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result {
        let function = self.functions[index(function, self.functions.len())?].clone();
        let stream = self.stream(stream)?;
        let entry = &function.image.entries[function.entry];
        let (name, [gx, gy, gz]) = (&entry.name, shape.grid);
        let threads = shape.block.iter().map(|&n| n as u64).product::<u64>();
        if gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || threads == 0 || threads > 1024 {
            return refuse!(Code::InvalidValue, "{name}: a grid of {gx} x {gy} x {gz} blocks of {threads} threads");
        }
        if entry.most_threads.is_some_and(|most| threads > most as u64) {
            return refuse!(Code::InvalidValue, "{name}: {threads} threads, its .maxntid are {:?}", entry.most_threads);
        }
        if shape.shared > function.most_shared {
            let (shared, most) = (shape.shared, function.most_shared);
            return refuse!(Code::InvalidValue, "{name}: {shared} bytes of dynamic shared memory, allowed are {most}");
        }
        if function.device != self.streams[stream].device {
            return refuse!(Code::InvalidHandle, "{name} is of another device than the stream");
        }
        if function.device != current()? {
            return refuse!(Code::InvalidContext, "{name} is of another device than the thread's context");
        }
        let bytes = entry.params.last().map_or(0, |p| p.offset + p.bytes);
        let mut params = vec![0u64; bytes.div_ceil(8)];
        for (i, p) in entry.params.iter().enumerate() {
            let mut value = vec![0u8; p.bytes];
            param(i, &mut value);
            for (j, byte) in value.into_iter().enumerate() {
                let at = p.offset + j;
                params[at / 8] |= (byte as u64) << (at % 8 * 8);
            }
        }
        let recorded = self.streams[stream].records();
        self.log.line(recorded, format_args!("launch {name} {gx}x{gy}x{gz} {threads}"));
        self.push(stream, Task::Launch(Arc::new(Launch { function, shape, params })));
        Ok(())
    }

    pub(super) fn run_kernel(&mut self, device: usize, launch: &Launch) {
        let Launch { function, shape, params } = launch;
        let entry = &function.image.entries[function.entry];
        self.launches += 1;
        if self.launches == setting("TANDEM_EMU_FAULT_AT", 0) {
            self.failed[device] = Some(Code::IllegalAddress);
            return;
        }
        let (code, why) = if let (Some(kernel), Some(library)) = (function.compiled, native::library()) {
            let start = params.as_ptr().cast::<u8>();
            let pointers: Vec<*const u8> = entry.params.iter().map(|p| start.wrapping_add(p.offset)).collect();
            match library.launch(kernel, &pointers, shape.grid, shape.block, shape.shared) {
                Ok(()) => return,
                Err(why) => (Code::LaunchFailed, why),
            }
        } else {
            let reached = |b: &super::Block| b.device == device || self.peers.contains(&(device, b.device));
            let memory = self.device.iter().filter(|(_, b)| reached(b)).chain(&self.pinned);
            let memory = memory.map(|(at, block)| (*at, block.bytes)).collect();
            match self.machine.run(&function.image, entry, params, shape, memory) {
                Ok(()) => return,
                Err(fault) => {
                    let code = match fault.kind {
                        ptx::FaultKind::Address => Code::IllegalAddress,
                        ptx::FaultKind::Alignment => Code::MisalignedAddress,
                        ptx::FaultKind::Other => Code::LaunchFailed,
                    };
                    (code, fault.text)
                }
            }
        };
        eprintln!("emulated driver: {}: {why}", entry.name);
        self.failed[device] = Some(code);
    }
}
