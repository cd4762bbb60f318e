//! How weights would be divided over NUMA nodes, and what that is expected to give.
//!
//! ```text
//! divided       every node reads its share s of the weights from its own memory, at the rate B of one node:
//!               the slowest ends last, so all together read at B / max(s), which is N B for N equal nodes
//! not divided   pages are where the file was read first, usually on one node: at most B, and of the reads those of
//!               the other nodes' threads cross the link
//! ```
//! B is what was measured: the buffer of that measurement is on one node.

use crate::cli::human::{size, table, wrapped};
use crate::session::NumaPlan;

/// What is said of NUMA nodes.
pub(super) struct NumaFacts {
    /// The division, or why there is none.
    pub(super) plan: Result<NumaPlan, String>,
    /// Whether there is something to say: this machine has several nodes.
    pub(super) has_nodes: bool,
    /// Bytes per second that all nodes read together, and tokens per second at most; None where the rate was given,
    /// which is then that of all nodes.
    pub(super) at_most: Option<(f64, f64)>,
}

/// Bytes per second that nodes of the rate `one` each read together, of weights divided by these shares.
pub(super) fn together(one: f64, shares: &[f64]) -> f64 {
    one / shares.iter().copied().fold(f64::MIN_POSITIVE, f64::max)
}

/// The share of the weights of each node.
pub(super) fn shares(plan: &NumaPlan) -> Vec<f64> {
    (0..plan.split.nodes()).map(|node| plan.bytes_of(node) as f64 / plan.bytes.max(1) as f64).collect()
}

impl NumaFacts {
    /// `ceiling`: tokens per second as predicted where a token reads `bytes` from memory at the rate `one`, as
    /// measured; None where it was not.
    pub(super) fn new(plan: Result<NumaPlan, String>, has_nodes: bool, ceiling: Option<(f64, f64, f64)>) -> NumaFacts {
        let at_most = plan.as_ref().ok().zip(ceiling).map(|(plan, (ceiling, bytes, one))| {
            let all = together(one, &shares(plan));
            (all, 1.0 / (1.0 / ceiling - bytes / one + bytes / all).max(1e-9))
        });
        NumaFacts { plan, has_nodes, at_most }
    }

    /// The section of the report; empty where there is nothing to say.
    pub(super) fn words(&self) -> String {
        let plan = match &self.plan {
            Ok(plan) => plan,
            Err(_) if !self.has_nodes => return String::new(),
            Err(why) => return format!("\nNUMA nodes\n{}", wrapped(&format!("The weights are not divided: {why}."))),
        };
        let row = |(i, node): (usize, &crate::cpu::WeightNode)| {
            let threads = plan.split.threads_of(i);
            vec![format!("node {}", node.id), size(plan.bytes_of(i)), format!("read by {threads} threads")]
        };
        let rows: Vec<Vec<String>> = plan.nodes.list.iter().enumerate().map(row).collect();
        let crossing = 1.0 - shares(plan).into_iter().fold(0.0, f64::max);
        let mut text = format!(
            "The file is read into the memory of these nodes, and each node's threads read their own rows. With --numa off \
             about {:.0}% of the reads would cross the link between them.",
            crossing * 100.0
        );
        if let Some((all, tokens)) = self.at_most {
            text += &format!(
                " The rates below were measured on the memory of one node; all together give at most {:.1} GB/s and {tokens:.1} \
                 tokens/s. That is a model: it was never measured on two nodes.",
                all / 1e9
            );
        }
        format!("\nNUMA nodes\n{}{}", table(&rows, &[false, true, false]), wrapped(&text))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cpu::{NodeSplit, NumaNodes, WeightNode};

    fn plan(cores: &[usize]) -> NumaPlan {
        let node = |(id, n): (usize, &usize)| WeightNode { id, cpus: (0..*n).collect(), cores: *n };
        let nodes = Arc::new(NumaNodes { list: cores.iter().enumerate().map(node).collect() });
        NumaPlan { split: NodeSplit::new(&nodes, cores.iter().sum()), nodes, bytes: 40_000_000_000 }
    }

    #[test]
    fn equal_nodes_read_at_the_sum_of_their_rates_and_uneven_ones_wait_for_the_largest_share() {
        let rate = |cores: &[usize]| together(100.0, &shares(&plan(cores)));
        assert!((rate(&[8, 8]) - 200.0).abs() < 1e-3 && (rate(&[4, 4, 4, 4]) - 400.0).abs() < 1e-3);
        assert!((rate(&[24, 8]) - 133.333).abs() < 1e-3);
        // 10 GB for a token at 100 GB/s are 0.1 s, of 0.15 s in all.
        let facts = NumaFacts::new(Ok(plan(&[8, 8])), true, Some((1.0 / 0.15, 10e9, 100e9)));
        let (all, tokens) = facts.at_most.unwrap();
        assert!((all - 200e9).abs() < 1e6 && (tokens - 10.0).abs() < 1e-6, "{tokens}");
        let words = facts.words();
        assert!(words.contains("node 1") && words.contains("8 threads") && words.contains("about 50%"), "{words}");
    }

    #[test]
    fn a_machine_of_one_node_hears_nothing_and_one_of_several_the_reason() {
        let off = |has_nodes| NumaFacts::new(Err("--numa off".into()), has_nodes, None).words();
        assert_eq!(off(false), "");
        assert!(off(true).contains("not divided: --numa off."));
    }
}
