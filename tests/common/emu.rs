//! The stand-in GPU: a libcuda.so that runs on the host (kernels/standin), and beside it, where a C++ compiler is, the
//! kernels compiled for it (kernels/emu). Without a compiler their PTX is interpreted, which is many times slower.
//!
//! `CXX` names the compiler; `TANDEM_EMU_FLAGS` are further flags (sanitizers), with a build of their own;
//! `TANDEM_EMU_FORMATS` builds these weight formats only (the sanitizers take their time); `TANDEM_EMU_KERNELS` is another
//! folder of kernels, for tests of the tests; `TANDEM_EMU_PTX=1` interprets the PTX even where a compiler is.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Whether kernels run as compiled C++, so that whole models in all placements take minutes and not hours.
pub fn compiled() -> bool {
    static COMPILED: OnceLock<bool> = OnceLock::new();
    *COMPILED.get_or_init(|| {
        let asked = std::env::var("TANDEM_EMU_PTX").is_ok_and(|v| v == "1");
        let found = cfg!(target_arch = "x86_64") && Command::new(compiler()).arg("--version").output().is_ok();
        if !found {
            crate::say!("no C++ compiler for x86-64 here ({}): kernels' PTX is interpreted, on less data", compiler());
        }
        found && !asked
    })
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or("c++".into())
}

/// The library, or None where there is no way to build it; this is reported once.
pub fn library() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| {
        if !cfg!(target_os = "linux") {
            crate::say!("the stand-in for a GPU needs Linux: nothing is tested on a GPU");
            return None;
        }
        Some(build(compiled().then(compiler).as_deref()))
    })
    .as_deref()
}

/// Loads the library into this process, where the driver would be looked for; false where there is none.
pub fn load() -> bool {
    static LOADED: OnceLock<bool> = OnceLock::new();
    *LOADED.get_or_init(|| {
        let Some(path) = library() else { return false };
        // SAFETY: the library's initializers only register kernels. It stays for the process's life; later calls of
        // dlopen("libcuda.so") find it by its name.
        std::mem::forget(unsafe { libloading::Library::new(path) }.expect("the emulated driver loads"));
        true
    })
}

/// All files under a folder with one of these endings.
fn files(dir: &Path, ends: &[&str], out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = e.unwrap().path();
        if path.is_dir() {
            files(&path, ends, out);
        } else if path.extension().is_some_and(|x| ends.iter().any(|e| x == *e)) {
            out.push(path);
        }
    }
}

/// A command outside of whatever sanitizer this process runs under.
fn run(command: &mut Command) -> Vec<u8> {
    let done = command.env_remove("LD_PRELOAD").output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(done.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// The kernels' sources, but for the formats that are not asked for, and the emulator's.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    files(&root.join("emu"), &["cpp", "hpp"], &mut sources);
    files(root, &["cu", "cuh"], &mut sources);
    sources.sort();
    if let Ok(formats) = std::env::var("TANDEM_EMU_FORMATS") {
        let format =
            |p: &Path| p.extension().is_some_and(|x| x == "cu") && p.parent().is_some_and(|d| d.ends_with("quant"));
        let asked = |p: &Path| formats.split(',').any(|f| p.file_stem().is_some_and(|s| s.eq_ignore_ascii_case(f)));
        sources.retain(|p| !format(p) || asked(p));
    }
    sources
}

/// A folder with libcuda.so and, by the compiler `cxx`, libkernels.so; the path of the first. Both come from the cache of a
/// folder whose name is the hash of everything that they are made of.
fn build(cxx: Option<&str>) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let root = std::env::var_os("TANDEM_EMU_KERNELS").map_or(own.clone(), PathBuf::from);
    let mut driver = vec![own.join("standin/Cargo.toml"), own.join("standin/build.rs")];
    files(&own.join("standin/src"), &["rs"], &mut driver);
    driver.sort();
    let kernels = if cxx.is_some() { sources(&root) } else { Vec::new() };
    let extra: Vec<String> =
        std::env::var("TANDEM_EMU_FLAGS").unwrap_or_default().split_whitespace().map(String::from).collect();
    let mut hash = DefaultHasher::new();
    (cxx, FLAGS, &extra).hash(&mut hash);
    for s in driver.iter().chain(&kernels) {
        (s, std::fs::read(s).unwrap()).hash(&mut hash);
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emu-{:016x}", hash.finish()));
    let library = dir.join("libcuda.so");
    if library.exists() {
        return library;
    }
    // Beside the place, so that tests that build at once do not meet.
    let work = dir.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&work).unwrap();
    std::fs::copy(build_driver(&own), work.join("libcuda.so")).unwrap();
    if let Some(cxx) = cxx {
        build_kernels(cxx, &extra, &root, &kernels, &work);
    }
    if std::fs::rename(&work, &dir).is_err() {
        let _ = std::fs::remove_dir_all(&work); // another was quicker
    }
    library
}

/// Has cargo build the stand-in driver, in a folder of its own: this process may be a test that cargo runs.
fn build_driver(kernels: &Path) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin");
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut c = Command::new(cargo);
    c.args(["build", "--release", "--offline", "--quiet", "--manifest-path"]).arg(kernels.join("standin/Cargo.toml"));
    // Lanes of a warp are a loop over 32 values: with the vectors of this machine.
    c.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-cpu=native").env_remove("CARGO_BUILD_TARGET");
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_BOOTSTRAP", "CARGO_TARGET_DIR"] {
        c.env_remove(name);
    }
    run(&mut c);
    target.join("release/libcuda.so")
}

/// The compiler's flags. This machine has one instruction for converting a half, and one for multiplying and adding.
const FLAGS: [&str; 8] = ["-std=c++17", "-O2", "-g1", "-fPIC", "-ffp-contract=fast", "-march=native", "-Wall", "-DEMU"];

/// Compiles the kernels and the emulator into `work`/libkernels.so.
fn build_kernels(cxx: &str, extra: &[String], root: &Path, sources: &[PathBuf], work: &Path) {
    let flags = |c: &mut Command| {
        c.args(FLAGS).args(extra);
        c.arg("-I").arg(root);
    };
    let compile = |source: &Path, object: &Path| {
        let mut c = Command::new(cxx);
        flags(&mut c);
        run(c.arg("-c").arg(source).arg("-o").arg(object));
    };
    let mut jobs = vec![(root.join("emu/emu.cpp"), work.join("emu_.o"))];
    for source in sources.iter().filter(|p| p.extension().is_some_and(|x| x == "cu")) {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let mut c = Command::new(cxx);
        flags(&mut c);
        let text = String::from_utf8(run(c.args(["-E", "-P", "-DEMU_SCAN", "-x", "c++"]).arg(source))).unwrap();
        let mut unit = format!("#include \"{}\"\n", source.display());
        for part in text.split("EMU_GLOBAL").skip(1) {
            let part = part.trim_start().strip_prefix("void").expect("a kernel returns nothing").trim_start();
            unit += &format!("EMU_KERNEL({})\n", &part[..part.find('(').unwrap()]);
        }
        let path = work.join(format!("{name}.cpp"));
        std::fs::write(&path, unit).unwrap();
        jobs.push((path, work.join(format!("{name}.o"))));
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|s| {
        let (jobs, next, compile) = (&jobs, &next, &compile);
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            s.spawn(move || {
                while let Some((source, object)) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    compile(source, object);
                }
            });
        }
    });
    let objects: Vec<PathBuf> = jobs.into_iter().map(|j| j.1).collect();
    let mut c = Command::new(cxx);
    flags(&mut c);
    c.args(["-shared", "-Wl,-Bsymbolic"]).args(&objects);
    run(c.arg("-lpthread").arg("-o").arg(work.join("libkernels.so")));
    for object in &objects {
        let _ = std::fs::remove_file(object);
    }
}
