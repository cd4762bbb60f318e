//! Faults that are planted, each found under its name.

use super::super::{FaultKind, Image};
use super::{kernel, run};

/// What the interpreter says of a kernel of two blocks of 64 threads, on 256 words.
fn fault(declarations: &str, body: &str) -> (FaultKind, String) {
    let mut words = vec![0u32; 256];
    match run(&kernel(declarations, body), &mut words, 2, 64) {
        Ok(()) => panic!("nothing was found in\n{body}"),
        Err(fault) => (fault.kind, fault.text),
    }
}

fn passes(declarations: &str, body: &str) {
    let mut words = vec![0u32; 256];
    run(&kernel(declarations, body), &mut words, 1, 64).unwrap_or_else(|e| panic!("{}\n{body}", e.text));
}

fn says(declarations: &str, body: &str, what: &str) {
    let text = fault(declarations, body).1;
    assert!(text.contains(what), "{what:?} expected: {text}");
}

const SHARED: &str = ".shared .align 16 .b8 values[1024];";
/// Each thread writes its word of shared memory a second time, and reads that of the thread whose number differs by `other`.
fn exchange(other: u32, between: &str) -> String {
    format!(
        "mov.u32 %r1, values;\nmad.lo.s32 %r2, %r0, 4, %r1;\nst.shared.u32 [%r2], 0;\nbar.sync 0;\n\
         st.shared.u32 [%r2], %r0;\n{between}\n\
         xor.b32 %r4, %r0, {other};\nmad.lo.s32 %r3, %r4, 4, %r1;\nld.shared.u32 %r5, [%r3];"
    )
}

#[test]
fn a_missing_barrier_is_found() {
    says(SHARED, &exchange(32, ""), "a barrier is missing");
    passes(SHARED, &exchange(32, "bar.sync 0;"));
    // A barrier of the warp orders its own lanes only.
    says(SHARED, &exchange(1, ""), "a barrier is missing");
    passes(SHARED, &exchange(1, "bar.warp.sync -1;"));
    says(SHARED, &exchange(32, "bar.warp.sync -1;"), "a barrier is missing");
    // Also where memory is written again that another thread has read.
    let again = exchange(32, "bar.sync 0;") + "\nst.shared.u32 [%r2], %r5;";
    says(SHARED, &again, "a barrier is missing");
    passes(SHARED, &(exchange(32, "bar.sync 0;") + "\nbar.sync 0;\nst.shared.u32 [%r2], %r5;"));
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_found() {
    says("", "setp.lt.u32 %p1, %r0, 7;\n@%p1 bra $over;\nbar.sync 0;\n$over:\nbar.sync 0;", "wait here for lanes");
}

#[test]
fn a_wrong_mask_of_lanes_is_found() {
    says("", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 65535;", "not in its own mask 0000ffff");
    let half = |mask: &str| {
        format!(
            "and.b32 %r1, %r0, 16;\nsetp.ne.s32 %p1, %r1, 0;\n@%p1 bra $over;\nshfl.sync.bfly.b32 %r2, %r0, 1, 31, {mask};\n$over:\nbar.sync 0;"
        )
    };
    says("", &half("-1"), "wait here for lanes that never come");
    passes("", &half("65535"));
    says(
        "",
        "shfl.sync.idx.b32 %r2, %r0, 40, 31, -1;\nand.b32 %r1, %r0, 16;\nsetp.ne.s32 %p1, %r1, 0;\n@%p1 bra $over;\n\
              shfl.sync.bfly.b32 %r2, %r0, 16, 31, 65535;\n$over:",
        "reads lane 16, which is not in the mask",
    );
}

#[test]
fn accesses_that_are_not_aligned_are_found() {
    let (kind, text) = fault("", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+8];");
    assert!(kind == FaultKind::Alignment && text.contains("not a multiple of the access's 16 bytes"), "{text}");
    says(SHARED, "mov.u32 %r1, values;\nst.shared.u16 [%r1+1], %r0;", "not a multiple of the access's 2 bytes");
}

#[test]
fn accesses_beyond_memory_are_found() {
    let (kind, text) = fault("", "mul.wide.u32 %rd1, %r0, 32;\nadd.s64 %rd1, %rd0, %rd1;\nld.global.u32 %r1, [%rd1];");
    // The first thread beyond 1024 bytes, with its line.
    assert!(kind == FaultKind::Address && text.contains("no memory that the device reaches"), "{text}");
    assert!(text.contains("line 16 of the PTX (ld.global.u32): block (0,0,0) thread (32,0,0)"), "{text}");
    says(SHARED, "mov.u32 %r1, values;\nst.shared.u32 [%r1+1024], %r0;", "of which the block has 1024");
    says("", "st.local.u32 [%rd1], %r0;", "depends on a value that was never written");
    says(".local .align 4 .b8 own[8];", "mov.u64 %rd1, own;\nst.local.u32 [%rd1+8], %r0;", "of which a thread has 8");
}

#[test]
fn reads_of_what_was_never_written_are_found() {
    // What is made of it, too; where it decides about an address, a branch or what is stored.
    let store =
        "mul.wide.u32 %rd9, %r0, 4;\nadd.s64 %rd9, %rd0, %rd9;\nadd.s32 %r8, %r2, 1;\nst.global.u32 [%rd9], %r8;";
    let load = "mov.u32 %r1, values;\nld.shared.u32 %r2, [%r1+8];\n";
    says(SHARED, &format!("{load}{store}"), "stores a value that was never written; the first of that was line");
    says(SHARED, &format!("{load}{store}"), "reads shared memory at 8, which was never written");
    says(SHARED, &format!("{load}ld.shared.u32 %r3, [%r2];"), "depends on a value that was never written");
    says(SHARED, &format!("{load}setp.eq.u32 %p1, %r2, 0;\n@%p1 bra $over;\n$over:"), "(bra): block");
    // A lane that adds it up, an exchange, a way through shared memory; what is dropped does not count.
    says(SHARED, &format!("{load}shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;\n{store}"), "was never written");
    says(
        SHARED,
        &format!("{load}st.shared.u32 [%r1], %r2;\nld.shared.u32 %r2, [%r1];\n{store}"),
        "a barrier is missing",
    );
    passes(SHARED, &format!("{load}add.s32 %r2, %r2, 1;\nmov.u32 %r2, 7;\n{store}"));
    // A part of a word counts, and so does a register that only some lanes have written.
    let half =
        "mov.u32 %r1, values;\nmad.lo.s32 %r1, %r0, 4, %r1;\nst.shared.u16 [%r1], %r0;\nld.shared.u32 %r2, [%r1];\n";
    says(SHARED, &format!("{half}{store}"), "was never written");
    passes(SHARED, &format!("{}{store}", half.replace("ld.shared.u32", "ld.shared.u16")));
    let some = "setp.lt.u32 %p1, %r0, 60;\n@%p1 mov.u32 %r2, 5;\n";
    says("", &format!("{some}{store}"), "thread (60,0,0): stores a value that was never written");
    let own = ".local .align 4 .b8 own[8];";
    says(own, &format!("mov.u64 %rd1, own;\nld.local.u32 %r2, [%rd1];\n{store}"), "reads local memory at 0");
    passes(own, &format!("mov.u64 %rd1, own;\nst.local.u32 [%rd1], %r0;\nld.local.u32 %r2, [%rd1];\n{store}"));
}

#[test]
fn a_copy_that_is_not_waited_for_is_found() {
    let copy = |between: &str| {
        format!(
            "mov.u32 %r1, values;\nmad.lo.s32 %r2, %r0, 16, %r1;\nand.b32 %r3, %r0, 15;\nmul.wide.u32 %rd1, %r3, 16;\n\
             add.s64 %rd1, %rd0, %rd1;\ncp.async.cg.shared.global [%r2], [%rd1], 16;\ncp.async.commit_group;\n{between}\n\
             ld.shared.u32 %r4, [%r2];\ncp.async.wait_group 0;"
        )
    };
    says(SHARED, &copy(""), "cp.async is under way: a wait is missing");
    says(SHARED, &copy("cp.async.wait_group 1;"), "a wait is missing");
    passes(SHARED, &copy("cp.async.wait_group 0;"));
    let never = copy("cp.async.wait_group 0;").replace("cp.async.wait_group 0;", "");
    says(SHARED, &never.replace("ld.shared.u32 %r4, [%r2];", ""), "never waited for");
}

#[test]
fn blocks_that_write_to_one_place_are_found() {
    says("", "st.global.u32 [%rd0], %r0;", "has written in this launch");
    says(
        "",
        "mov.u32 %r1, %ctaid.x;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra $over;\nst.global.u32 [%rd0], %r1;\n$over:",
        "block 0",
    );
    // Atomic instructions may.
    let mut words = vec![0u32; 4];
    run(&kernel("", "red.global.add.u32 [%rd0], 1;"), &mut words, 3, 70).unwrap_or_else(|e| panic!("{}", e.text));
    assert_eq!(words[0], 210);
}

#[test]
fn what_is_not_interpreted_is_named() {
    let why = |body: &str| Image::new(&kernel("", body)).unwrap_err();
    assert_eq!(why("frobnicate.b32 %r1, %r0;"), "line 14 of the PTX: frobnicate.b32 is not interpreted");
    assert!(why("add.s32 %r1, %r0, %nowhere;").contains("%nowhere is not interpreted, or was not declared"));
    assert!(why("add.s32 %r1, %rd0, 1;").contains("another width"));
    assert!(why("bra $nowhere;").contains("no label $nowhere"));
    assert!(Image::new(".version 7.0").unwrap_err().contains("no kernel"));
}

/// Lanes that take different ways, in a loop that each leaves at another time, meet after it.
#[test]
fn lanes_that_parted_meet_again() {
    let body = "mov.u32 %r1, 0;\n$loop:\nadd.s32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, %r0;\n@%p1 bra $loop;\n\
                vote.sync.ballot.b32 %r2, %p1, -1;\nsetp.ne.s32 %p2, %r2, 0;\nmul.wide.u32 %rd1, %r0, 4;\n\
                add.s64 %rd1, %rd0, %rd1;\n@!%p2 st.global.u32 [%rd1], %r1;";
    let mut words = vec![9u32; 32];
    run(&kernel("", body), &mut words, 1, 32).unwrap_or_else(|e| panic!("{}", e.text));
    assert!(words.iter().enumerate().all(|(i, &w)| w as usize == i.max(1)), "{words:?}");
}
