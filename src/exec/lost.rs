//! A GPU that failed in the middle of a walk.

use crate::cuda::DriverFailed;

/// The driver failed while it worked for a session, or lost the GPU: what the sequences remembered
/// there is gone. The text says in which step, as far as that can be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuLost(String);

impl GpuLost {
    /// From the driver's error. `under_way`: the labels of the steps that were started and not
    /// known to be done, in order; `step`: the one that the error comes from, where every step is
    /// waited for.
    pub(super) fn new(e: &anyhow::Error, under_way: &[&str], step: Option<&str>) -> GpuLost {
        let failed = e.downcast_ref::<DriverFailed>();
        let Some(failed) = failed.filter(|f| f.is_lost) else {
            return GpuLost(format!("the GPU failed: {e:#}"));
        };
        let kernel = failed.kernel.as_ref().map_or(String::new(), |k| format!("kernel {k} of "));
        let at = match (step, under_way) {
            (Some(step), _) => format!("in {kernel}step {step}"),
            (None, []) => "in work that it was given before this".into(),
            (None, [one]) => format!("in step {one}"),
            (None, [first, .., last]) => {
                format!("in one of the {} steps from {first} to {last}", under_way.len())
            }
        };
        let exact = if step.is_some() { "" } else { "; TANDEM_GPU_SYNC=1 finds the step and its kernel" };
        GpuLost(format!("the GPU was lost {at}: {}{exact}", failed.name))
    }

    /// With what the user can do.
    pub(crate) fn with_remedy(self, remedy: &str) -> GpuLost {
        GpuLost(format!("{}; {remedy}", self.0))
    }
}

impl std::fmt::Display for GpuLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GpuLost {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_steps_that_were_under_way_and_never_the_call_that_reported_it() {
        let failed = |is_lost, kernel: Option<&str>| {
            let call = "to start victim".to_owned();
            let name = "CUDA_ERROR_ILLEGAL_ADDRESS".to_owned();
            anyhow::Error::from(DriverFailed { call, name, is_lost, kernel: kernel.map(String::from) })
        };
        let steps = ["blk.0.attn_norm", "blk.0.attn_q", "blk.0.attend"];
        let said = |e: &anyhow::Error, n: usize, step| GpuLost::new(e, &steps[..n], step).to_string();
        let e = failed(true, None);
        for (n, want) in [
            (
                3,
                "in one of the 3 steps from blk.0.attn_norm to blk.0.attend: CUDA_ERROR_ILLEGAL_ADDRESS; TANDEM_GPU_SYNC=1",
            ),
            (1, "in step blk.0.attn_norm: CUDA_ERROR_ILLEGAL_ADDRESS; TANDEM_GPU_SYNC=1"),
            (0, "in work that it was given before this: CUDA"),
        ] {
            let text = said(&e, n, None);
            assert!(text.contains(want) && !text.contains("victim"), "{text}");
        }
        let exact = said(&failed(true, Some("rope")), 3, Some("blk.0.attn_q"));
        assert_eq!(exact, "the GPU was lost in kernel rope of step blk.0.attn_q: CUDA_ERROR_ILLEGAL_ADDRESS");
        let refused = said(&failed(false, None).context("step blk.0.attn_q"), 1, None);
        assert!(refused.starts_with("the GPU failed: step blk.0.attn_q: ") && refused.contains("victim"), "{refused}");
    }
}
