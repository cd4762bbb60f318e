//! What instructions give, held to known values, and what the interpreter must find, planted.

mod faults;
mod known;
mod vectors;

use super::{Fault, Image, Machine};
use crate::driver::Shape;

/// A kernel of one parameter, a pointer, with registers of every kind.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry test(.param .u64 test_param_0)\n{{\n\
         .reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .f32 %f<20>;\n.reg .b32 %r<40>;\n.reg .b64 %rd<20>;\n{declarations}\n\
         ld.param.u64 %rd0, [test_param_0];\nmov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// Runs it in `blocks` blocks of `threads` threads on these words.
fn run(text: &str, words: &mut [u32], blocks: u32, threads: u32) -> Result<(), Fault> {
    let image = Image::new(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let at = words.as_mut_ptr() as u64;
    let shape = Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0 };
    let memory = vec![(at, size_of_val(words))];
    Machine::default().run(&image, &image.entries[0], &[at], &shape, memory)
}

/// Each lane of a warp hands in `n` words from `words` and gets `m` back behind them.
fn by_lanes(words: &[u32], n: usize, m: usize, declarations: &str, body: &str) -> Vec<u32> {
    let mut all = words.to_vec();
    all.resize(words.len() + 32 * m, 0);
    let load: String = (0..n).map(|i| format!("ld.global.u32 %r{}, [%rd2+{}];\n", i + 10, 4 * i)).collect();
    let store: String = (0..m).map(|i| format!("st.global.u32 [%rd3+{}], %r{};\n", 4 * i, i + 1)).collect();
    let body = format!(
        "mul.wide.u32 %rd1, %r0, {};\nadd.s64 %rd2, %rd0, %rd1;\n{load}{body}\n\
         mul.wide.u32 %rd1, %r0, {};\nadd.s64 %rd3, %rd0, %rd1;\nadd.s64 %rd3, %rd3, {};\n{store}",
        4 * n,
        4 * m,
        4 * words.len()
    );
    run(&kernel(declarations, &body), &mut all, 1, 32).unwrap_or_else(|e| panic!("{}", e.text));
    all.split_off(words.len())
}
