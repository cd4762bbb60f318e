//! The PTX that ships, run by the interpreter of the stand-in driver (kernels/standin): the other tests of this program once
//! more in each tier, faults that are planted in it, and what kernels issue, held to budgets.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tandem::cuda::{Gpu, Grid, Ptr, int, launch, modules};
use tandem::quant::{self, Rng};
use tandem::tape::MatrixRows;

use super::{Matrices, PRODUCTS, attention, emu, must_fail, product, put};
use crate::common::profile::{self, OF_MODELS, OF_THE_OTHER_TIER, Profile, TIERS, interpreted};
use crate::say;

#[test]
fn the_ptx_that_ships_computes_what_it_should_in_both_tiers() {
    // Where no compiler is, the tests themselves do this.
    if !emu::load() || !emu::compiled() {
        return;
    }
    let start = |tier: &'static str| -> (&'static str, Child, PathBuf) {
        let (mut c, profile) = interpreted(tier, "kernels");
        c.args(["--test-threads", "1", "--skip", "interpreted", "--skip", "found", "--skip", "sources_beside"]);
        c.args(["--skip", "prototypes"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        (tier, c.spawn().unwrap(), profile)
    };
    for (i, (tier, child, profile)) in TIERS.map(start).into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        assert!(out.status.success(), "sm_{tier}:\n{text}");
        let ran = profile::read(&profile);
        profile::print(&ran, &format!("sm_{tier}, small launches"));
        let mut missing = Vec::new();
        for (_, texts) in modules() {
            let names = texts[i].split(".entry ").skip(1).map(|t| t.split('(').next().unwrap());
            let spared = |n: &str| OF_MODELS.contains(&n) || OF_THE_OTHER_TIER[i].contains(&n);
            missing.extend(names.filter(|n| !ran.contains_key(*n) && !spared(n)));
        }
        assert!(missing.is_empty(), "sm_{tier}: kernels that no test starts: {missing:?}");
    }
}

/// A folder with the PTX of Q8_0 in which the first line (or the last) that has `word` is another.
fn planted(name: &str, word: &str, last: bool, change: impl Fn(&str) -> String) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let (_, [_, text]) = modules().find(|m| m.0 == "q8_0").unwrap();
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    let has = |l: &String| l.contains(word);
    let at = if last { lines.iter().rposition(has) } else { lines.iter().position(has) };
    let at = at.unwrap_or_else(|| panic!("no {word} in the PTX"));
    lines[at] = change(&lines[at]);
    std::fs::write(dir.join("q8_0.sm_80.ptx"), lines.join("\n")).unwrap();
    dir
}

/// Another offset in the address of a load.
fn moved(line: &str, by: u64) -> String {
    let (before, rest) = line.split_once('[').unwrap();
    let (address, after) = rest.split_once(']').unwrap();
    format!("{before}[{}+{by}]{after}", address.split('+').next().unwrap())
}

#[test]
fn faults_that_are_planted_in_the_ptx_are_found() {
    if !emu::load() {
        return;
    }
    let nothing = |_: &str| String::new();
    let dirs = [
        (planted("ptx-barrier", "bar.sync", true, nothing), "a barrier is missing"),
        (
            planted("ptx-mask", "shfl.sync.bfly", false, |l| format!("{}, 65535;", l.rsplit_once(',').unwrap().0)),
            "not in its own mask 0000ffff",
        ),
        (planted("ptx-aligned", "ld.global.v4", false, |l| moved(l, 8)), "is not a multiple of the access's 16 bytes"),
        (planted("ptx-beyond", "ld.global.v4", false, |l| moved(l, 1 << 30)), "no memory that the device reaches"),
        (planted("ptx-unwritten", "st.shared.v4", false, nothing), "was never written"),
        (planted("ptx-register", "ld.global.u16", true, nothing), "was never written"),
        (planted("ptx-name", "dp4a", false, |l| l.replace("dp4a.s32", "dp5a.s32")), "dp5a.s32.s32 is not interpreted"),
    ];
    for (dir, says) in dirs {
        must_fail(PRODUCTS, &[("TANDEM_PTX_DIR", &dir), ("TANDEM_EMU_PTX", Path::new("1"))], says);
    }
}

/// What [`kernels_issue_no_more_than_their_budgets_allow`] measures: one product of each kind of kernel on a matrix of
/// 128 x 4096, long attention, and an indexer's scores.
#[test]
fn launches_for_budgets() {
    if std::env::var_os("TANDEM_EMU_PROFILE").is_none() || !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(6);
    for (name, ..) in PRODUCT_BUDGETS {
        let ty = quant::by_name(name).unwrap();
        let m = Matrices::random(ty, [1, ROWS, COLUMNS], &mut rng);
        for rows in [1, 4, PAIRS] {
            let x: Vec<f32> = (0..rows * COLUMNS).map(|_| rng.normal()).collect();
            product(&gpu, &m, &x, (rows, COLUMNS), MatrixRows::All, rows);
        }
    }
    attention::long_launches(&gpu, &[(1, 4), (4, 4), (2, 16)]);
    // DeepSeek V4's: 64 heads of 128 columns, rows of F16, 256 of them.
    let (heads, dim, rows) = (64usize, 128usize, 256usize);
    let q: Vec<f32> = (0..heads * dim).map(|_| rng.normal()).collect();
    let (q, keys) = (put(&gpu, &q), put(&gpu, &vec![0x2c66u16; rows * dim]));
    let (seq, pos) = (put(&gpu, &[0i32]), put(&gpu, &[rows as i32 - 1]));
    let scores = gpu.alloc(rows * 4, "a test").unwrap();
    let (on, grid, most) = (Some(&gpu), Grid::new([rows / 64, 1, 1], 128), int(rows));
    let (q, keys, seq, pos, to, none) = (q.ptr(), keys.ptr(), seq.ptr(), pos.ptr(), scores.ptr(), Ptr::default());
    let (h, d, row, code) = (int(heads), int(dim), 2 * dim as u64, launch::CacheType::F16);
    launch::index_scores(on, grid, q, none, keys, seq, pos, to, h, d, 1, code, most, most, row, 0, none, 0, 1).unwrap();
    gpu.work.wait().unwrap();
}
/// Of a matrix.
const ROWS: usize = 128;
const COLUMNS: usize = 4096;
/// Rows of activations of a product by tensor cores.
const PAIRS: usize = 128;

/// A format, and for its mat-vec of one row: instructions of a thread for 32 weights, and sectors of 32 bytes for 1024 bytes
/// that are asked for (32 are the least); for its product of 128 rows: instructions of a thread for 1024 multiplications, and
/// how often shared memory's banks are passed more often than needed in 1000 accesses. What is measured may be 5% above.
type ProductBudget = (&'static str, u64, u64, u64, u64);
const PRODUCT_BUDGETS: &[ProductBudget] = &[
    ("F16", 317, 32, 123, 0),
    ("BF16", 301, 32, 123, 0),
    ("Q8_0", 71, 203, 195, 29),
    ("Q4_0", 84, 122, 198, 29),
    ("Q3_K", 161, 57, 359, 37),
    ("Q4_K", 87, 33, 237, 59),
    ("Q5_K", 115, 25, 244, 59),
    ("Q6_K", 152, 95, 356, 37),
    ("IQ2_XXS", 144, 105, 216, 29),
    ("IQ3_XXS", 200, 121, 230, 29),
    ("IQ4_XS", 119, 59, 209, 29),
    ("MXFP4", 132, 118, 210, 29),
];

/// A kernel, and of it in a launch of its usual shape: 10 times the instructions of a warp for each product by tensor cores,
/// sectors of 32 bytes for 1024 bytes of loads, passes of banks that 1000 accesses could do without.
type KernelBudget = (&'static str, u64, u64, u64);
const KERNEL_BUDGETS: &[KernelBudget] = &[
    ("attend_1_4", 591, 32, 67),
    ("attend_4_4", 141, 35, 0),
    ("attend_2_16", 198, 33, 24),
    ("index_scores", 322, 303, 2194),
];

/// What was measured, in the order of [`ProductBudget`].
fn of_products(ran: &Profile, name: &str) -> [u64; 4] {
    let name = name.to_lowercase();
    let vec = &ran[&format!("matvec1_{name}")];
    let mat = ["matmul16", "matmul"].iter().find_map(|k| ran.get(&format!("{k}_{name}"))).unwrap();
    [
        vec["instructions"] * 32 * 32 / (ROWS * COLUMNS) as u64,
        vec["load_sectors"] * 1024 / vec["load_bytes"],
        mat["instructions"] * 32 * 1024 / (ROWS * COLUMNS * PAIRS) as u64,
        mat["conflicts"] * 1000 / mat["shared"].max(1),
    ]
}

/// What was measured, in the order of [`KernelBudget`].
fn of_kernel(ran: &Profile, name: &str) -> [u64; 3] {
    let n = &ran[name];
    [
        n["instructions"] * 10 / n["mma"].max(1),
        n["load_sectors"] * 1024 / n["load_bytes"],
        n["conflicts"] * 1000 / n["shared"].max(1),
    ]
}

#[test]
fn kernels_issue_no_more_than_their_budgets_allow() {
    if !emu::load() {
        return;
    }
    let (mut c, profile) = interpreted("80", "budgets");
    let out = c.args(["interpreted::launches_for_budgets", "--exact"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let ran = profile::read(&profile);
    profile::print(&ran, "sm_80, for budgets");
    let products = PRODUCT_BUDGETS.iter().map(|&(n, a, b, c, d)| (n, of_products(&ran, n).to_vec(), vec![a, b, c, d]));
    let kernels = KERNEL_BUDGETS.iter().map(|&(n, a, b, c)| (n, of_kernel(&ran, n).to_vec(), vec![a, b, c]));
    let (mut over, mut measured) = (Vec::new(), String::new());
    for (name, got, budget) in products.chain(kernels) {
        let list: Vec<String> = got.iter().map(u64::to_string).collect();
        measured += &format!("    (\"{name}\", {}),\n", list.join(", "));
        if got.iter().zip(&budget).any(|(got, budget)| got * 20 > budget * 21) {
            over.push((name, got, budget));
        }
    }
    say!("measured, as this file has budgets:\n{measured}");
    assert!(over.is_empty(), "more than the budget: {over:?}");
}
