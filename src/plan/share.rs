//! Which layers each of several GPUs has: consecutive ones, in the order of the GPUs, so that a token crosses from one to
//! the next once.
//!
//! By default every GPU is filled to the same share of its memory, experts included, since what does not fit of those is
//! cached: so a card of 24 GB next to one of 12 GB has two thirds of the bytes. `-ts` gives the shares of the layers
//! instead, as in llama.cpp.

/// Returns the GPU of each layer, by the bytes of the layers and what each GPU may take, so that the fullest GPU is as
/// empty as can be. A GPU that may take nothing has no layer; if none may take any, the first has all.
pub(super) fn by_memory(bytes: &[usize], budgets: &[usize]) -> Vec<u8> {
    // Layers that each GPU takes in turn while it is filled to `share` of its budget.
    let filled = |share: f64| -> Option<Vec<u8>> {
        let (mut gpu, mut used) = (0, 0.0);
        bytes
            .iter()
            .map(|b| {
                while used + *b as f64 > share * *budgets.get(gpu)? as f64 {
                    (gpu, used) = (gpu + 1, 0.0);
                }
                used += *b as f64;
                Some(gpu as u8)
            })
            .collect()
    };
    let Some(largest) = budgets.iter().max().filter(|b| **b > 0) else { return vec![0; bytes.len()] };
    let (mut low, mut high) = (0.0, bytes.iter().sum::<usize>() as f64 / *largest as f64 * (1.0 + 1e-9));
    for _ in 0..50 {
        let mid = (low + high) / 2.0;
        if filled(mid).is_some() { high = mid } else { low = mid }
    }
    filled(high).unwrap_or_else(|| vec![budgets.iter().position(|b| b == largest).unwrap_or(0) as u8; bytes.len()])
}

/// Returns the GPU of each of `n` layers, by the shares of `-ts`: those of GPUs that it does not name are 0.
///
/// # Panics
/// If no share is above 0.
pub(super) fn by_shares(n: usize, shares: &[f64]) -> Vec<u8> {
    let sum: f64 = shares.iter().sum();
    let last = shares.iter().rposition(|s| *s > 0.0).expect("one of the shares is above 0");
    let mut until = 0.0;
    let ends: Vec<f64> = shares
        .iter()
        .map(|s| {
            until += s / sum;
            until
        })
        .collect();
    (0..n)
        .map(|i| ends.iter().position(|end| (i as f64) < end * n as f64 - 1e-9).unwrap_or(last).min(last) as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[u8], gpus: usize) -> Vec<usize> {
        assert!(of.is_sorted(), "layers are in the order of the GPUs");
        (0..gpus).map(|g| of.iter().filter(|x| **x as usize == g).count()).collect()
    }

    #[test]
    fn every_gpu_is_filled_to_the_same_share_of_its_memory() {
        assert_eq!(counts(&by_memory(&[10; 36], &[240, 120]), 2), [24, 12]);
        assert_eq!(counts(&by_memory(&[10; 36], &[120, 240]), 2), [12, 24]);
        assert_eq!(counts(&by_memory(&[10; 30], &[100, 100, 100]), 3), [10, 10, 10]);
        assert_eq!(counts(&by_memory(&[10; 36], &[24, 12]), 2), [24, 12], "also where far from all fits");
        assert_eq!(counts(&by_memory(&[100, 1, 1, 1], &[100, 50]), 2), [1, 3], "by bytes, not by layers");
    }

    #[test]
    fn a_gpu_without_memory_has_no_layers() {
        assert_eq!(counts(&by_memory(&[10; 8], &[0, 100]), 2), [0, 8]);
        assert_eq!(counts(&by_memory(&[10; 8], &[100, 0, 100]), 3), [4, 0, 4]);
        assert_eq!(counts(&by_memory(&[10; 8], &[100]), 1), [8]);
        assert_eq!(by_memory(&[10; 3], &[0, 0]), [0, 0, 0]);
        assert!(by_memory(&[], &[100, 100]).is_empty());
    }

    #[test]
    fn shares_are_of_layers_and_a_gpu_with_none_has_none() {
        assert_eq!(counts(&by_shares(40, &[3.0, 1.0]), 2), [30, 10]);
        assert_eq!(counts(&by_shares(40, &[0.0, 1.0, 1.0]), 3), [0, 20, 20]);
        assert_eq!(counts(&by_shares(41, &[1.0, 0.0]), 2), [41, 0]);
        assert_eq!(counts(&by_shares(3, &[24.0, 24.0]), 2), [2, 1]);
        // What `Fit::flags` prints gives the same layers again.
        for shares in [[7.0, 30.0, 4.0], [1.0, 39.0, 1.0], [13.0, 13.0, 15.0]] {
            assert_eq!(counts(&by_shares(41, &shares), 3), shares.map(|s| s as usize));
        }
    }
}
