//! What is wrong with a machine and what to do, from what was read and measured: each remark names
//! its numbers.

use super::measure::{GpuReport, Tested};
use crate::cpu::{Host, Stick};
use crate::simd::Isa;

/// How much a remark matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// It costs speed, and can be changed.
    Slow,
    /// Good to know.
    Note,
    /// It could not be read or measured.
    Unknown,
}

impl Severity {
    pub(super) fn word(self) -> &'static str {
        match self {
            Severity::Slow => "slow",
            Severity::Note => "note",
            Severity::Unknown => "unknown",
        }
    }
}

/// A remark: what was found, and what to do about it where anything can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) weight: Severity,
    /// What it is about: `memory`, `cores`.
    pub(super) about: &'static str,
    pub(super) words: String,
}

/// A rate counts as that of one channel up to this multiple of it: firmware rounds, and clocks are
/// a little fast.
const ONE_CHANNEL: f64 = 1.05;
/// Of what the sticks could give, well-fed cores read some 75 to 90%; below this something is in
/// the way.
const LOW: f64 = 0.6;
/// Between rates that were measured one after the other, less is noise.
const NOISE: f64 = 1.15;
/// The share of all CPUs' time from which on others are in the way.
const BUSY: f64 = 0.10;

fn gb(bytes: usize) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// All remarks, those that cost speed first.
pub(super) fn remarks(h: &Host, t: &Tested) -> Vec<Remark> {
    let mut list = Vec::new();
    let mut say = |weight, about, words: String| list.push(Remark { weight, about, words });
    memory_rate(h, t, &mut say);
    cores(h, t, &mut say);
    isa(h, t, &mut say);
    system(h, &mut say);
    gpu(h, t, &mut say);
    list.sort_by_key(|r| match r.weight {
        Severity::Slow => 0,
        Severity::Note => 1,
        Severity::Unknown => 2,
    });
    list
}

type Say<'a> = &'a mut dyn FnMut(Severity, &'static str, String);

/// The rate of memory, compared with what its modules are rated for.
fn memory_rate(h: &Host, t: &Tested, say: Say<'_>) {
    let best = t.best();
    match &h.sticks {
        Some(Ok(sticks)) => {
            for s in sticks {
                if let (Some(rated), Some(runs)) = (s.rated, s.runs)
                    && runs * 100 < rated * 97
                {
                    say(
                        Severity::Slow,
                        "memory",
                        format!(
                            "the memory module at {} runs at {runs} of its {rated} MT/s: turn on XMP, EXPO or DOCP in \
                             the firmware's settings (four modules may not reach it)",
                            s.place
                        ),
                    );
                }
            }
            channels(sticks, best, say);
        }
        Some(Err(why)) => {
            say(Severity::Unknown, "memory", format!("whether memory runs at its rating cannot be read: {why}"));
        }
        None => {}
    }
    let (Some(&one), Some(&most)) = (t.by_threads.first(), t.by_threads.last()) else { return };
    if most.1 * NOISE < best {
        let fewer = t.by_threads.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(1, |x| x.0);
        let (threads, gbps) = most;
        say(
            Severity::Slow,
            "memory",
            format!(
                "{threads} threads read {gbps:.1} GB/s, less than the {best:.1} of {fewer}: other programs use the cores, or \
                 the cores are clocked down; if this persists, -t {fewer} is faster"
            ),
        );
    } else if most.0 > 1 && best < one.1 * NOISE {
        say(
            Severity::Note,
            "memory",
            format!(
                "{} threads read no more than one does ({best:.1} GB/s): memory bandwidth is the limit, or the share of it \
                 that a virtual machine gets; more threads help prompts, not decoding",
                most.0
            ),
        );
    }
}

/// What the sticks' channels could give.
fn channels(sticks: &[Stick], best: f64, say: Say<'_>) {
    let rates: Option<Vec<f64>> = sticks.iter().map(Stick::gbps).collect();
    let Some(rates) = rates else {
        return say(Severity::Unknown, "memory", "the firmware does not say how fast the memory modules run".into());
    };
    let one = rates.iter().copied().fold(0.0, f64::max);
    let names: Option<std::collections::BTreeSet<String>> = sticks.iter().map(Stick::channel).collect();
    if sticks.len() == 1 && sticks[0].width >= 64 {
        return say(
            Severity::Slow,
            "memory",
            format!(
                "one memory module uses one channel of {one:.1} GB/s: a second one like it in the right slot doubles that"
            ),
        );
    }
    if names.as_ref().is_some_and(|n| n.len() == 1) || (sticks[0].width >= 64 && best < one * ONE_CHANNEL) {
        return say(
            Severity::Slow,
            "memory",
            format!(
                "{} memory modules, but {best:.1} GB/s is what one channel gives ({one:.1}): put them into slots of different \
                 channels (often the second and the fourth), as the board's manual shows",
                sticks.len()
            ),
        );
    }
    if let Some(n) = names.map(|n| n.len()) {
        let all = one * n as f64;
        if best < all * LOW {
            let share = 100.0 * best / all;
            say(
                Severity::Slow,
                "memory",
                format!("{best:.1} GB/s is {share:.0}% of the {all:.1} that {n} channels could give"),
            );
        }
    }
}

/// How many threads, and who else wants the cores.
fn cores(h: &Host, t: &Tested, say: Say<'_>) {
    let top = &h.topology;
    let allowed = top.cpus.iter().filter(|c| c.allowed).count();
    if top.cpus.is_empty() {
        say(Severity::Unknown, "cores", "the system does not say which cores there are".into());
    }
    if allowed < top.cpus.len() {
        let all = top.cpus.len();
        say(
            Severity::Note,
            "cores",
            format!("this process may use {allowed} of {all} logical CPUs (its affinity mask)"),
        );
    }
    let efficient = top.cores(|c| c.efficient);
    if efficient > 0 {
        say(
            Severity::Note,
            "cores",
            format!("{efficient} efficiency cores are not used: every step waits for its slowest thread"),
        );
    }
    let fast = top.cores(|c| c.allowed && !c.efficient);
    if let Some(quota) = h.limits.cpus.filter(|q| *q < fast as f64) {
        say(
            Severity::Slow,
            "cores",
            format!("a container's limit leaves {quota:.1} CPUs of {fast} cores: raise it (docker run --cpus)"),
        );
    }
    let held: Vec<_> = h.governors.iter().filter(|g| g.saves_power()).collect();
    for g in held {
        let what = match &g.preference {
            Some(p) => format!("prefer {p} ({}, energy_performance_preference)", g.driver),
            None => format!("are governed by {} ({})", g.name, g.driver),
        };
        say(
            Severity::Slow,
            "cores",
            format!("{} logical CPUs {what}: sudo cpupower frequency-set -g performance, or the power profile", g.cpus),
        );
    }
    match t.others {
        Some((busy, _)) if busy > BUSY => {
            let cpus = busy * top.cpus.len().max(1) as f64;
            let load = h.load.map_or(String::new(), |l| format!("; the load is {l:.1}"));
            say(
                Severity::Slow,
                "others",
                format!(
                    "other programs use {cpus:.1} CPUs{load}: every step waits for the thread that they delay, and \
                     these measurements suffer too; stop them, or leave them cores with -t"
                ),
            );
        }
        Some(_) => {}
        None => say(Severity::Unknown, "others", "how busy other programs are cannot be read (/proc/stat)".into()),
    }
    if let Some((_, stolen)) = t.others.filter(|o| o.1 > BUSY / 2.0) {
        say(
            Severity::Slow,
            "others",
            format!("the host of this virtual machine takes {:.0}% of its CPUs' time for others", 100.0 * stolen),
        );
    }
    if let Some(maker) = &h.virtual_machine {
        say(
            Severity::Note,
            "others",
            format!(
                "a virtual machine ({maker}): its cores may be hyperthreads, and memory bandwidth is shared with other \
                 machines on the host"
            ),
        );
    }
}

/// Vector instructions.
fn isa(h: &Host, t: &Tested, say: Say<'_>) {
    let has = |flag: &str| h.flags.iter().any(|f| f == flag);
    if t.isa < t.detected {
        let (used, has) = (t.isa.name(), t.detected.name());
        say(Severity::Slow, "instructions", format!("{used} is used, the CPU has {has}: unset TANDEM_ISA"));
    }
    if t.detected == Isa::Scalar {
        say(Severity::Slow, "instructions", "no vector instructions that the kernels support (AVX2 or newer)".into());
    } else if t.detected < Isa::Avx512 && has("avx512f") {
        say(
            Severity::Note,
            "instructions",
            "this CPU's AVX-512 lacks VBMI, VNNI or BITALG, which the kernels need: AVX2 is used".into(),
        );
    }
    if let Err(why) = t.tiles
        && has("amx_bf16")
    {
        say(Severity::Slow, "instructions", format!("prompts are read without matrix tiles: {why}"));
    }
}

/// Memory's room and the system's settings.
fn system(h: &Host, say: Say<'_>) {
    match h.memory {
        None => say(Severity::Unknown, "room", "the system does not say how much memory it has".into()),
        Some(m) => {
            if let Some((limit, _)) = h.limits.memory.filter(|l| l.0 <= m.total) {
                say(Severity::Note, "room", format!("a container's limit leaves {} of memory", gb(limit)));
            }
            match h.lockable {
                Some(n) if n < m.free => say(
                    Severity::Note,
                    "room",
                    format!(
                        "{} can be locked in memory, less than the {} that are free, which limits --mlock and pinned experts: \
                         set ulimit -l unlimited, or memlock in /etc/security/limits.conf",
                        gb(n),
                        gb(m.free)
                    ),
                ),
                Some(_) => {}
                None => say(Severity::Unknown, "room", "how much may be locked in memory cannot be read".into()),
            }
            if let Some((all, free)) = h.swap.filter(|(all, free)| (all - free.min(all)) * 20 > m.total) {
                say(
                    Severity::Slow,
                    "room",
                    format!(
                        "{} are swapped out: memory was short, and parts of a model may be read from disk again",
                        gb(all - free)
                    ),
                );
            }
        }
    }
    match h.huge_pages.as_deref() {
        Some("never") => say(
            Severity::Slow,
            "room",
            "transparent huge pages are off, so a long context's KV cache uses small pages: echo madvise | sudo tee \
             /sys/kernel/mm/transparent_hugepage/enabled"
                .into(),
        ),
        Some(_) => {}
        None => say(Severity::Unknown, "room", "whether there are huge pages cannot be read".into()),
    }
    if let Some((n, bytes)) = h.huge_reserved.filter(|(n, _)| *n > 0) {
        say(
            Severity::Note,
            "room",
            format!("{} are set aside as {n} huge pages, which no model can use", gb(n.saturating_mul(bytes))),
        );
    }
    nodes(h, say);
}

/// What becomes of several NUMA nodes.
fn nodes(h: &Host, say: Say<'_>) {
    let n = h.nodes.len();
    match &h.numa {
        _ if n < 2 => {}
        Some(Ok(nodes)) => {
            let ids: Vec<String> = nodes.list.iter().map(|node| node.id.to_string()).collect();
            say(
                Severity::Note,
                "nodes",
                format!(
                    "{n} NUMA nodes: the weights of a model of several GB are read into the memory of nodes {}, and each \
                     node's threads read their own rows (--numa auto; --numa distribute does it for every model, -v tells \
                     what was done). The rates above are those of memory on one node. A model whose weights are not divided \
                     is fastest on one node: numactl --cpunodebind=0 --membind=0 tandem",
                    ids.join(" and ")
                ),
            );
        }
        Some(Err(why)) => say(
            Severity::Slow,
            "nodes",
            format!(
                "{n} NUMA nodes, over which weights cannot be divided (--numa): {why}; pages stay on the node that read them \
                 first, and are slow to read from the others"
            ),
        ),
        None => say(Severity::Unknown, "nodes", format!("{n} NUMA nodes, of which the system does not tell more")),
    }
}

fn gpu(h: &Host, t: &Tested, say: Say<'_>) {
    for l in h.links.iter().filter(|l| l.lanes.0 < l.lanes.1) {
        let (now, most) = l.lanes;
        say(
            Severity::Slow,
            "gpu",
            format!("the card at {} uses {now} of its {most} lanes: try another slot, or no riser", l.address),
        );
    }
    let GpuReport::There { name, rates, unpinnable, .. } = &t.gpu else { return };
    if let Err(why) = rates {
        say(Severity::Unknown, "gpu", format!("{name}: its rates could not be measured: {why}"));
    }
    if let Some(why) = unpinnable {
        say(
            Severity::Note,
            "gpu",
            format!(
                "{why}. A model whose experts do not fit on the GPU is therefore read into memory at the start where there \
                 is enough; with --keep-mmap, or less memory, the CPU copies every expert for the GPU"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, Governor, Limits, Link, Memory, NumaNode, NumaNodes, Topology, WeightNode};

    /// A machine without a remark: 4 cores, 2 sticks in 2 channels.
    fn good() -> (Host, Tested) {
        let cpus = (0..4).map(|id| Cpu { id, core: id, efficient: false, allowed: true }).collect();
        let stick = |channel: &str| Stick {
            place: format!("CHANNEL {channel}"),
            bytes: 16 << 30,
            width: 64,
            rated: Some(6000),
            runs: Some(6000),
        };
        let host = Host {
            topology: Topology { cpus, cache: 32 << 20 },
            memory: Some(Memory { total: 32 << 30, free: 30 << 30 }),
            lockable: Some(usize::MAX),
            huge_pages: Some("madvise".into()),
            sticks: Some(Ok(vec![stick("A"), stick("B")])),
            ..Host::default()
        };
        let tested = Tested {
            by_threads: vec![(1, 40.0), (2, 70.0), (4, 75.0)],
            siblings: None,
            others: Some((0.01, 0.0)),
            isa: Isa::Avx2,
            detected: Isa::Avx2,
            tiles: Err("none; the CPU has no AMX (amx_tile, amx_bf16)"),
            gpu: GpuReport::None("no driver".into()),
            more_gpus: Vec::new(),
        };
        (host, tested)
    }

    /// The remarks about a good machine with one change, as `severity about: words`.
    fn said(change: impl Fn(&mut Host, &mut Tested)) -> String {
        let (mut h, mut t) = good();
        change(&mut h, &mut t);
        let lines = remarks(&h, &t).into_iter().map(|r| format!("{} {}: {}", r.weight.word(), r.about, r.words));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn sticks(h: &mut Host) -> &mut Vec<Stick> {
        match &mut h.sticks {
            Some(Ok(list)) => list,
            _ => unreachable!("the good machine's can be read"),
        }
    }

    #[test]
    fn a_good_machine_is_left_alone() {
        assert_eq!(said(|_, _| {}), "");
    }

    #[test]
    fn memory_that_is_slower_than_it_could_be_is_named_with_the_remedy() {
        for (change, words) in [
            (
                &(|h: &mut Host, _: &mut Tested| sticks(h)[0].runs = Some(4800)) as &dyn Fn(&mut Host, &mut Tested),
                "4800 of its 6000",
            ),
            (&|h, _| sticks(h).truncate(1), "a second one like it"),
            (&|_, t| t.by_threads = vec![(1, 40.0), (4, 46.0)], "what one channel gives (48.0)"),
            (&|h, _| sticks(h)[1].place = "CHANNEL A".into(), "slots of different"),
            (&|_, t| t.by_threads = vec![(1, 30.0), (4, 52.0)], "54% of the 96.0"),
            (&|_, t| t.by_threads = vec![(1, 70.0), (4, 75.0)], "no more than one does"),
            (&|_, t| t.by_threads = vec![(1, 40.0), (2, 75.0), (4, 60.0)], "-t 2 is faster"),
            (&|h, _| h.sticks = Some(Err("root alone".into())), "cannot be read: root alone"),
            (&|h, _| sticks(h)[0] = Stick { rated: None, runs: None, ..sticks(h)[0].clone() }, "does not say how fast"),
        ] {
            let text = said(change);
            assert!(text.contains(words) && text.lines().count() == 1, "{words}: {text}");
        }
    }

    #[test]
    fn everything_else_that_costs_speed_is_named_too() {
        let governor = |name: &str| Governor { driver: "acpi".into(), name: name.into(), preference: None, cpus: 4 };
        let node = |id| NumaNode { id, cpus: 2, total: 16 << 30, free: 1 << 30 };
        let weights = |id| WeightNode { id, cpus: vec![id], cores: 1 };
        for (change, words) in [
            (
                &(|h: &mut Host, _: &mut Tested| h.limits = Limits { cpus: Some(1.5), memory: None })
                    as &dyn Fn(&mut Host, &mut Tested),
                "slow cores: a container's limit leaves 1.5",
            ),
            (&|h, _| h.limits.memory = Some((8 << 30, 1)), "note room: a container's limit leaves 8.6 GB"),
            (&|h, _| h.topology.cpus[3].allowed = false, "3 of 4 logical CPUs"),
            (&|h, _| h.topology.cpus[3].efficient = true, "1 efficiency cores"),
            (&|h, _| h.topology.cpus.clear(), "unknown cores"),
            (&|h, _| h.governors = vec![governor("powersave")], "governed by powersave"),
            (&|_, t| t.others = Some((0.5, 0.0)), "other programs use 2.0 CPUs"),
            (&|_, t| t.others = Some((0.0, 0.2)), "takes 20%"),
            (&|_, t| t.others = None, "unknown others"),
            (&|h, _| h.virtual_machine = Some("QEMU".into()), "a virtual machine (QEMU)"),
            (&|_, t| t.isa = Isa::Scalar, "unset TANDEM_ISA"),
            (
                &|h, t| {
                    h.flags = vec!["amx_bf16".into()];
                    t.tiles = Err("the system refuses it");
                },
                "without matrix tiles: the system refuses it",
            ),
            (&|h, _| h.flags = vec!["avx512f".into()], "lacks VBMI"),
            (&|h, _| h.lockable = Some(8 << 20), "ulimit -l"),
            (&|h, _| h.swap = Some((10 << 30, 5 << 30)), "5.4 GB are swapped out"),
            (&|h, _| h.huge_pages = Some("never".into()), "huge pages are off"),
            (&|h, _| h.huge_pages = None, "whether there are huge pages"),
            (&|h, _| h.huge_reserved = Some((100, 2 << 20)), "set aside as 100"),
            (
                &|h, _| {
                    h.nodes = vec![node(0), node(1)];
                    h.numa = Some(Ok(NumaNodes { list: [0, 1].map(weights).into() }));
                },
                "note nodes: 2 NUMA nodes: the weights of a model of several GB are read into the memory of nodes 0 and 1",
            ),
            (
                &|h, _| {
                    h.nodes = vec![node(0), node(1)];
                    h.numa = Some(Err("only node 0 has both".into()));
                },
                "slow nodes: 2 NUMA nodes, over which weights cannot be divided (--numa): only node 0 has both",
            ),
            (&|h, _| h.links = vec![Link { address: "01:00".into(), lanes: (4, 16) }], "4 of its 16 lanes"),
            (
                &|_, t| {
                    t.gpu = GpuReport::There {
                        name: "a card".into(),
                        memory: None,
                        rates: Ok((1e9, 2e9)),
                        module: None,
                        unpinnable: Some("it cannot".into()),
                    }
                },
                "note gpu: it cannot. A model",
            ),
        ] {
            let text = said(change);
            assert!(text.contains(words) && text.lines().count() == 1, "{words}: {text}");
        }
    }

    #[test]
    fn what_costs_speed_comes_before_what_is_good_to_know() {
        let text = said(|h, t| {
            h.virtual_machine = Some("KVM".into());
            h.sticks = Some(Err("no tables".into()));
            t.isa = Isa::Scalar;
        });
        let first: Vec<&str> = text.lines().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(first, ["slow", "note", "unknown"]);
    }
}
