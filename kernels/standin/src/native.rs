//! The kernels as C++ (kernels/emu), compiled into `libkernels.so` in the folder of this library.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null;
use std::sync::OnceLock;

#[repr(C)]
struct DlInfo {
    file: *const c_char,
    base: *const c_void,
    name: *const c_char,
    address: *const c_void,
}

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

type Find = unsafe extern "C" fn(*const c_char) -> *const c_void;
type Params = unsafe extern "C" fn(*const c_void, *mut *const u32) -> c_int;
type Launch =
    unsafe extern "C" fn(*const c_void, *const *const c_void, *const u32, *const u32, u32, u64, c_int) -> *const c_char;

/// The library of compiled kernels.
pub(crate) struct Library {
    find: Find,
    params: Params,
    launch: Launch,
}

/// A compiled kernel.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(*const c_void);

// SAFETY: it points to a static object of the library, which nothing changes.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The path of the library beside this one; None where this code is part of a program.
fn path() -> Option<PathBuf> {
    let mut info = DlInfo { file: null(), base: null(), name: null(), address: null() };
    // SAFETY: the address is one of this library's; the call fills in the four pointers.
    if unsafe { dladdr(path as fn() -> Option<PathBuf> as *const c_void, &mut info) } == 0 {
        return None;
    }
    // SAFETY: the loader's own name of a loaded file, which stays.
    let file = unsafe { CStr::from_ptr(info.file) }.to_str().ok()?;
    let path = PathBuf::from(file).parent()?.join("libkernels.so");
    path.exists().then_some(path)
}

/// The library, loaded once; None where there is none, or where `TANDEM_EMU_PTX` is 1.
pub(crate) fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let open = || {
        if crate::setting("TANDEM_EMU_PTX", 0) != 0 {
            return None;
        }
        let path = CString::new(path()?.to_str()?).ok()?;
        const NOW: c_int = 2;
        // SAFETY: the library's initializers only register kernels; it is never closed.
        let library = unsafe { dlopen(path.as_ptr(), NOW) };
        if library.is_null() {
            // SAFETY: a call failed just before, so that there is a text.
            let why = unsafe { CStr::from_ptr(dlerror()) };
            panic!("{}: {}", path.to_string_lossy(), why.to_string_lossy());
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library is open.
            let at = unsafe { dlsym(library, name.as_ptr()) };
            assert!(!at.is_null(), "{name:?} is missing in {path:?}");
            at
        };
        let (find, params, launch) = (symbol(c"emu_find"), symbol(c"emu_params"), symbol(c"emu_launch"));
        // SAFETY: kernels/emu/emu.cpp declares the three with these arguments and results.
        unsafe {
            Some(Library {
                find: std::mem::transmute::<*mut c_void, Find>(find),
                params: std::mem::transmute::<*mut c_void, Params>(params),
                launch: std::mem::transmute::<*mut c_void, Launch>(launch),
            })
        }
    };
    LIBRARY.get_or_init(open).as_ref()
}

impl Library {
    /// The kernel of this name, and the sizes of its parameters in bytes.
    pub(crate) fn kernel(&self, name: &str) -> Option<(Kernel, Vec<usize>)> {
        let name = CString::new(name).ok()?;
        // SAFETY: the name ends with a zero.
        let kernel = unsafe { (self.find)(name.as_ptr()) };
        if kernel.is_null() {
            return None;
        }
        let mut sizes = null();
        // SAFETY: the kernel was just found; its sizes are as many as the call returns, and stay.
        let sizes = unsafe {
            let n = (self.params)(kernel, &mut sizes);
            std::slice::from_raw_parts(sizes, n as usize)
        };
        Some((Kernel(kernel), sizes.iter().map(|&n| n as usize).collect()))
    }

    /// Runs a kernel; `params` are where its parameters begin.
    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        params: &[*const u8],
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
    ) -> Result<(), String> {
        let seed = crate::setting("TANDEM_EMU_SEED", 1) as u64;
        let threads = crate::setting("TANDEM_EMU_THREADS", 2) as c_int;
        // SAFETY: the parameters have the sizes that the kernel declares: `driver` has compared them. What the kernel does to
        // memory is what this emulator exists to find out.
        let error = unsafe {
            (self.launch)(kernel.0, params.as_ptr().cast(), grid.as_ptr(), block.as_ptr(), shared, seed, threads)
        };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a text of the library's, which stays until its next launch on this thread.
        Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
    }
}
