//! The stand-in GPU: kernels/emu and all kernels as a libcuda.so, built with the C++ compiler that there is.
//!
//! `CXX` names the compiler; `TANDEM_EMU_FLAGS` are further flags (sanitizers), with a build of their own;
//! `TANDEM_EMU_FORMATS` builds these weight formats only (the sanitizers take their time); `TANDEM_EMU_KERNELS` is another
//! folder of kernels, for tests of the tests.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, or None where no compiler is; this is reported once.
pub fn library() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| {
        let cxx = std::env::var("CXX").unwrap_or("c++".into());
        if !cfg!(all(target_os = "linux", target_arch = "x86_64"))
            || Command::new(&cxx).arg("--version").output().is_err()
        {
            crate::say!("no C++ compiler for x86-64 Linux here ({cxx}): nothing is tested on an emulated GPU");
            return None;
        }
        Some(build(&cxx))
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

fn run(command: &mut Command) -> Vec<u8> {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(done.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn build(cxx: &str) -> PathBuf {
    let root = std::env::var_os("TANDEM_EMU_KERNELS");
    let root = root.map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"), PathBuf::from);
    let mut sources = Vec::new();
    files(&root, &["cu", "cuh", "cpp", "hpp"], &mut sources);
    sources.sort();
    if let Ok(formats) = std::env::var("TANDEM_EMU_FORMATS") {
        let format =
            |p: &Path| p.extension().is_some_and(|x| x == "cu") && p.parent().is_some_and(|d| d.ends_with("quant"));
        let asked = |p: &Path| formats.split(',').any(|f| p.file_stem().is_some_and(|s| s.eq_ignore_ascii_case(f)));
        sources.retain(|p| !format(p) || asked(p));
    }
    let extra: Vec<String> =
        std::env::var("TANDEM_EMU_FLAGS").unwrap_or_default().split_whitespace().map(String::from).collect();
    let mut hash = DefaultHasher::new();
    (cxx, &extra).hash(&mut hash);
    for s in &sources {
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
    let flags = |c: &mut Command| {
        c.args(["-std=c++17", "-O2", "-g1", "-fPIC", "-ffp-contract=fast", "-Wall", "-DEMU"]).args(&extra);
        c.arg("-I").arg(&root);
    };
    let kernels: Vec<&PathBuf> = sources.iter().filter(|p| p.extension().is_some_and(|x| x == "cu")).collect();
    let mut objects = Vec::new();
    let compile = |source: &Path, object: &Path| {
        let mut c = Command::new(cxx);
        flags(&mut c);
        run(c.arg("-c").arg(source).arg("-o").arg(object));
    };
    let mut jobs: Vec<(PathBuf, PathBuf)> = Vec::new();
    for source in kernels {
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
    for name in ["emu", "driver"] {
        jobs.push((root.join(format!("emu/{name}.cpp")), work.join(format!("{name}_.o"))));
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
    objects.extend(jobs.into_iter().map(|j| j.1));
    let mut c = Command::new(cxx);
    flags(&mut c);
    c.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic"]).args(&objects);
    run(c.arg("-lpthread").arg("-o").arg(work.join("libcuda.so")));
    for object in &objects {
        let _ = std::fs::remove_file(object);
    }
    if std::fs::rename(&work, &dir).is_err() {
        let _ = std::fs::remove_dir_all(&work); // another was quicker
    }
    library
}
