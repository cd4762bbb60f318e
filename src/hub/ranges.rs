//! What answers to a request for a range of bytes: the range, the whole file, other bytes, or none.

use anyhow::anyhow;
use ureq::Body;
use ureq::http::Response;

use super::http::{Client, Trouble};

/// What an answer to a request for a range is.
pub(super) enum Answer {
    /// The range.
    Part,
    /// The whole file from its first byte.
    Whole,
    Refusal,
}

/// Looks at the head of an answer to a request for bytes `from` up to `to` of `size`.
pub(super) fn kind_of(
    client: &Client,
    url: &str,
    response: &Response<Body>,
    (from, to, size): (u64, u64, u64),
) -> Result<Answer, Trouble> {
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let server = if client.is_own(url) { &client.endpoint } else { "the download server" };
    let length = header("content-length").and_then(|n| n.parse::<u64>().ok());
    match response.status().as_u16() {
        206 => match header("content-range").map(range_of) {
            // Some mirrors leave it out; the length and the hash must do then.
            None if length.is_none_or(|n| n == to - from) => Ok(Answer::Part),
            Some(Some((a, b, total))) if a == from && b < to && total.is_none_or(|n| n == size) => Ok(Answer::Part),
            Some(Some((_, _, Some(total)))) if total != size => Err(Trouble::Fatal(anyhow!(
                "{server} has {total} bytes, {size} are listed: the file has changed; try again"
            ))),
            _ => Err(Trouble::Again(format!("{server} sent other bytes than were asked for"), None)),
        },
        200 => match length {
            Some(n) if n != size => {
                Err(Trouble::Again(format!("{server} sent {n} bytes as the whole file, {size} are listed"), None))
            }
            _ => Ok(Answer::Whole),
        },
        416 => Err(match header("content-range").and_then(|r| r.rsplit('/').next()?.parse::<u64>().ok()) {
            Some(n) if n != size => Trouble::Fatal(anyhow!(
                "{server} has {n} bytes, {size} are listed: the file has changed; try again (status 416)"
            )),
            _ => Trouble::Again(format!("{server} has no bytes {from} to {} (status 416)", to - 1), None),
        }),
        _ => Ok(Answer::Refusal),
    }
}

/// First byte, last byte and length of `bytes A-B/LENGTH`.
fn range_of(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (a, b) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((a.parse().ok()?, b.parse().ok()?, total))
}
