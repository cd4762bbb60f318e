//! What a fetch tells its caller, the errors that callers tell apart, and how patient a fetch is.

use std::time::Duration;

/// How a hub is talked to.
#[derive(Debug, Clone)]
pub struct HubLimits {
    /// How long a read waits for the next byte before the connection counts as broken.
    pub silence: Duration,
    /// The wait after a first failure; it doubles with each further one.
    pub pause: Duration,
    /// How many attempts in a row may bring no byte.
    pub retries: u32,
    /// Connections at the same time.
    pub connections: usize,
    /// Bytes that are asked for at once.
    pub range_bytes: u64,
}

impl Default for HubLimits {
    /// For real servers: 30 seconds, ranges of 32 MiB over 8 connections.
    fn default() -> HubLimits {
        HubLimits {
            silence: Duration::from_secs(30),
            pause: Duration::from_secs(1),
            retries: 8,
            connections: 8,
            range_bytes: 32 << 20,
        }
    }
}

/// Progress of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchEvent {
    /// How many bytes of all files are on the disk.
    At(u64),
    /// Something that a person should know: a wait, a new attempt.
    Note(String),
}

/// The error of a fetch that was stopped by its caller.
#[derive(Debug)]
pub struct FetchStopped;

impl std::fmt::Display for FetchStopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the fetch was interrupted")
    }
}

impl std::error::Error for FetchStopped {}

/// The error of a request to a hub that is not to be asked, or that cannot be reached.
#[derive(Debug)]
pub struct HubUnreachable(pub(super) String);

impl std::fmt::Display for HubUnreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HubUnreachable {}
