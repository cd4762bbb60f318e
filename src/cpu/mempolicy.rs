//! On which NUMA node the system puts pages, and where it has put them: Linux's calls for that
//! (Documentation/admin-guide/mm/numa_memory_policy.rst in its sources).
//!
//! Elsewhere each of them is refused. A container's filter may refuse them too (Docker's does without CAP_SYS_NICE):
//! then pages lie on the node of the thread that writes them first, while that node has free memory.

#![allow(unsafe_code)] // system calls that no crate here has

use std::io;

/// Calls `f`; pages that this thread writes first meanwhile are those of a node, and the system gives up what that node
/// has of files for them. If the system refuses, `f` is called all the same.
pub(crate) fn bound_to<T>(node: usize, f: impl FnOnce() -> T) -> T {
    /// Ends the binding, also when `f` panics.
    struct Unbind;
    impl Drop for Unbind {
        fn drop(&mut self) {
            let _ = set_policy(sys::DEFAULT, None);
        }
    }
    let _end = set_policy(sys::BIND, Some(node)).is_ok().then_some(Unbind);
    f()
}

/// Whether something, as `numactl` does, has told the system where this process's pages are to be.
pub fn is_governed() -> bool {
    sys::policy().is_ok_and(|mode| mode != sys::DEFAULT)
}

/// Exempts memory from the system's own moving of pages (kernel.numa_balancing), which takes pages away for a moment to
/// see who asks for them. What lies there stays where it is. A wish that the system may not grant.
pub(crate) fn leave_in_place(memory: &[u8]) {
    let _ = sys::set_local(memory);
}

/// The node of each page that begins at one of these bytes, as the system numbers them; None where it has no memory.
///
/// # Errors
/// If the system does not tell.
pub(crate) fn nodes_of(pages: &[*const u8]) -> io::Result<Vec<Option<usize>>> {
    let status = sys::nodes_of(pages)?;
    Ok(status.into_iter().map(|node| usize::try_from(node).ok()).collect())
}

/// Sets the policy of this thread.
fn set_policy(mode: i32, node: Option<usize>) -> io::Result<()> {
    const BITS: usize = usize::BITS as usize;
    let mut mask = [0usize; 1024 / BITS];
    if let Some(node) = node {
        *mask.get_mut(node / BITS).ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % BITS);
    }
    sys::set_policy(mode, &mask)
}

#[cfg(target_os = "linux")]
mod sys {
    use std::io;
    use std::ptr::{null, null_mut};

    use libc::c_long;

    pub(super) const DEFAULT: i32 = libc::MPOL_DEFAULT;
    pub(super) const BIND: i32 = libc::MPOL_BIND;
    const LOCAL: c_long = libc::MPOL_LOCAL as c_long;

    fn done(returned: c_long) -> io::Result<()> {
        if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn set_policy(mode: i32, mask: &[usize]) -> io::Result<()> {
        // The system reads one bit less than it is told of, and takes a mask without a bit for none.
        let bits = mask.len() * usize::BITS as usize;
        // SAFETY: the mask is that long, and only read.
        done(unsafe { libc::syscall(libc::SYS_set_mempolicy, c_long::from(mode), mask.as_ptr(), bits) })
    }

    pub(super) fn policy() -> io::Result<i32> {
        let mut mode = 0i32;
        // SAFETY: only the mode is written, which is a number of 32 bits.
        done(unsafe {
            libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, null_mut::<usize>(), 0usize, 0usize, 0usize)
        })?;
        Ok(mode)
    }

    pub(super) fn set_local(memory: &[u8]) -> io::Result<()> {
        // SAFETY: a policy for pages to come changes no byte of the memory.
        done(unsafe {
            libc::syscall(libc::SYS_mbind, memory.as_ptr(), memory.len(), LOCAL, null::<usize>(), 0usize, 0usize)
        })
    }

    pub(super) fn nodes_of(pages: &[*const u8]) -> io::Result<Vec<i32>> {
        let mut status = vec![-1i32; pages.len()];
        // SAFETY: without a list of nodes nothing is moved; a number is written for each page, and `status` has as
        // many.
        done(unsafe {
            let (pages, n, to) = (pages.as_ptr(), pages.len(), status.as_mut_ptr());
            libc::syscall(libc::SYS_move_pages, 0usize, n, pages, null::<i32>(), to, 0usize)
        })?;
        Ok(status)
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::io;

    pub(super) const DEFAULT: i32 = 0;
    pub(super) const BIND: i32 = 2;

    pub(super) fn set_policy(_: i32, _: &[usize]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn policy() -> io::Result<i32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn set_local(_: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn nodes_of(_: &[*const u8]) -> io::Result<Vec<i32>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    /// The smallest number of an online node.
    fn a_node() -> usize {
        let online = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
        online.split(['-', ',', '\n']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    #[test]
    fn pages_that_a_bound_thread_writes_lie_on_its_node_and_the_thread_is_free_again_afterwards() {
        if set_policy(sys::DEFAULT, None).is_err() {
            return; // a container that forbids the calls
        }
        assert!(!is_governed());
        let mut memory = MmapMut::map_anon(8 * 4096).unwrap();
        let node = a_node();
        let governed = bound_to(node, || {
            memory[..4 * 4096].fill(7);
            is_governed()
        });
        assert!(governed && !is_governed());
        leave_in_place(&memory);
        let pages = [0, 3, 5].map(|page| memory[page * 4096..].as_ptr());
        let Ok(nodes) = nodes_of(&pages) else { return };
        assert_eq!(nodes, [Some(node), Some(node), None], "the last page was never written");
        // Whatever the policy, a node that is not there is refused, and the work is done all the same.
        assert_eq!(bound_to(1023, || 5), 5);
        assert_eq!(bound_to(usize::MAX, || 5), 5);
        assert!(!is_governed());
    }

    #[test]
    fn a_panic_ends_the_binding_too() {
        let caught = std::panic::catch_unwind(|| bound_to(a_node(), || panic!("on purpose")));
        assert!(caught.is_err() && !is_governed());
    }
}
