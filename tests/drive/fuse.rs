//! A folder with one file, served by this process over the kernel's FUSE protocol (include/uapi/linux/fuse.h of Linux).

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Number of the file; the folder is 1.
const FILE: u64 = 2;
const NO_SUCH_FILE: i32 = -2;
const NOT_IMPLEMENTED: i32 = -38;

/// The folder, for as long as this lives.
pub(crate) struct Served {
    dir: PathBuf,
}

impl Served {
    /// Mounts `file` as NAME in `dir`. None, with the reason said, where this is not allowed.
    pub(crate) fn mount(file: &Path, name: &'static str, dir: &Path) -> Option<Served> {
        let open = File::options().read(true).write(true).open("/dev/fuse");
        let Ok(device) = open.map_err(|e| eprintln!("skipped: /dev/fuse: {e}")) else { return None };
        std::fs::create_dir_all(dir).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", "ro,fd=0,rootmode=40000,user_id=0,group_id=0", "tandem-test"]);
        let o = mount.arg(dir).stdin(Stdio::from(device.try_clone().unwrap())).output().unwrap();
        if !o.status.success() {
            eprintln!("skipped: no FUSE can be mounted: {}", String::from_utf8_lossy(&o.stderr).trim());
            return None;
        }
        let file = File::open(file).unwrap();
        std::thread::spawn(move || serve(device, &file, name));
        Some(Served { dir: dir.to_owned() })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

/// Answers until it is unmounted.
fn serve(mut device: File, file: &File, name: &str) {
    let mut request = vec![0; 1 << 20];
    while let Ok(n) = device.read(&mut request) {
        let u32_at = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (u32_at(4), u64_at(8), u64_at(16));
        let answer = match opcode {
            // Lookup, getattr, statfs, open and opendir, read, init.
            1 if request[40..n].strip_suffix(&[0]) == Some(name.as_bytes()) => {
                Ok([numbers(&[FILE, 0, 3600, 3600, 0]), attributes(file, FILE)].concat())
            }
            1 => Err(NO_SUCH_FILE),
            3 => Ok([numbers(&[3600, 0]), attributes(file, node)].concat()),
            17 => Ok(numbers(&[0; 10])),
            14 | 27 => Ok(numbers(&[0, 0])),
            15 => {
                let mut bytes = vec![0; u32_at(56) as usize];
                let got = file.read_at(&mut bytes, u64_at(48)).unwrap();
                bytes.truncate(got);
                Ok(bytes)
            }
            26 => Ok([words(&[7, 31, 1 << 20, 0, 0, 4096, 1]), vec![0; 36]].concat()), // version, most that is read, written
            2 => continue,                                                             // forget has no answer
            _ => Err(NOT_IMPLEMENTED),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(e) => (e, Vec::new()),
        };
        let len = 16 + body.len() as u32;
        let all = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes(), &body].concat();
        let _ = device.write(&all); // one that was interrupted is not waited for any more
    }
}

fn numbers(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// Number, size, blocks, three times with their nanoseconds, mode, links, owner, device, block size, flags.
fn attributes(file: &File, node: u64) -> Vec<u8> {
    let len = file.metadata().unwrap().len();
    let (mode, size): (u32, u64) = if node == FILE { (0o100_444, len) } else { (0o40_555, 0) };
    [numbers(&[node, size, size.div_ceil(512), 1, 1, 1]), words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}
