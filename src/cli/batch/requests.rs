//! The lines of a batch as they come, read ahead of the answers by a thread of their own.
//!
//! What a line and the lines that wait may take is bounded: a line that is too long is passed over
//! up to its end, and what has no end is no list of requests.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::human::size;
use crate::cli::signals::start_thread;

/// The most bytes of a line. A prompt for a context of a million tokens has some four, and what a
/// template leaves out of earlier answers comes on top.
const LONGEST: usize = 16 << 20;
/// A line that has not ended after this many bytes is given up.
const ENDLESS: usize = 1 << 30;
/// The most bytes of the lines that wait, as long as there is more than one.
const WAITING: usize = LONGEST;

/// A line with its number, or why it cannot be read.
pub(super) type Line = (usize, Result<String, String>);

/// What comes from the requests.
pub(super) enum Next {
    Line(Line),
    /// Nothing so far.
    NotYet,
    /// Nothing any more.
    NoMore,
}

/// The requests that are still to come.
pub(super) struct Requests {
    lines: Receiver<io::Result<Line>>,
    waiting: Arc<Waiting>,
}

/// Bytes of the lines that were read and not taken.
#[derive(Default)]
struct Waiting {
    bytes: Mutex<usize>,
    taken: Condvar,
}

impl Requests {
    /// Reads `input` in a thread, at most `ahead` lines before they are taken. Empty lines are left
    /// out.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub(super) fn read(input: Box<dyn BufRead + Send>, ahead: usize) -> Result<Requests> {
        let (send, lines) = mpsc::sync_channel(ahead);
        let waiting = Arc::new(Waiting::default());
        let own = waiting.clone();
        start_thread("requests", move || {
            let mut input = input;
            for number in 1.. {
                let line = match read_line(&mut input) {
                    Ok(Some(Ok(text))) if text.trim().is_empty() => continue,
                    Ok(Some(text)) => Ok((number, text)),
                    Ok(None) => return,
                    Err(e) => Err(io::Error::new(e.kind(), format!("line {number}: {e}"))),
                };
                own.add(bytes_of(&line));
                let failed = line.is_err();
                if send.send(line).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Requests { lines, waiting })
    }

    /// The next line; where `patience` is given, one is waited for that long.
    ///
    /// # Errors
    /// If the requests cannot be read.
    pub(super) fn next(&self, patience: Option<Duration>) -> Result<Next> {
        let next = match patience {
            Some(time) => self.lines.recv_timeout(time),
            None => self.lines.try_recv().map_err(|e| match e {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
        };
        match next {
            Ok(line) => {
                self.waiting.take(bytes_of(&line));
                line.map(Next::Line).context("cannot read the requests")
            }
            Err(RecvTimeoutError::Timeout) => Ok(Next::NotYet),
            Err(RecvTimeoutError::Disconnected) => Ok(Next::NoMore),
        }
    }
}

impl Waiting {
    /// Waits until there is room for a line of this many bytes, and counts it.
    fn add(&self, n: usize) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *bytes > 0 && *bytes + n > WAITING {
            bytes = self.taken.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        *bytes += n;
    }

    fn take(&self, n: usize) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) -= n;
        self.taken.notify_one();
    }
}

fn bytes_of(line: &io::Result<Line>) -> usize {
    line.as_ref().map_or(0, |(_, text)| text.as_ref().map_or(0, String::len))
}

/// The next line without its end, or why it is none; None after the last.
///
/// # Errors
/// If it cannot be read, or does not end.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Result<String, String>>> {
    let mut bytes = Vec::new();
    input.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    } else if bytes.len() > LONGEST {
        drop(bytes);
        let more = input.by_ref().take(ENDLESS as u64).skip_until(b'\n')?;
        if more == ENDLESS {
            return Err(io::Error::other(format!(
                "it has not ended after {}, expected one request per line of at most {}",
                size(ENDLESS),
                size(LONGEST)
            )));
        }
        let (found, most) = (size(LONGEST + more), size(LONGEST));
        return Ok(Some(Err(format!("the line has {found}, expected at most {most}"))));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to() + 1;
        format!("the line is not UTF-8 from byte {at} on")
    });
    Ok(Some(text.map(|text| match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn all(input: impl BufRead + Send + 'static) -> Vec<Result<Line>> {
        let requests = Requests::read(Box::new(input), 2).unwrap();
        let mut lines = Vec::new();
        loop {
            match requests.next(Some(Duration::from_secs(60))) {
                Ok(Next::Line(line)) => lines.push(Ok(line)),
                Ok(Next::NoMore) => return lines,
                Ok(Next::NotYet) => panic!("a line takes a minute"),
                Err(e) => lines.push(Err(e)),
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_told_and_the_others_are_read() {
        let long = vec![b'x'; LONGEST + 5];
        let input = [b"\xef\xbb\xbfone\n\n \n", &long[..], b"\ntwo\r\n\xff\nthree"].concat();
        let lines: Vec<Line> = all(Cursor::new(input)).into_iter().map(Result::unwrap).collect();
        assert_eq!(lines.iter().map(|l| l.0).collect::<Vec<_>>(), [1, 4, 5, 6, 7], "as an editor counts them");
        assert_eq!(lines[0].1.as_deref(), Ok("one"));
        assert!(lines[1].1.as_ref().unwrap_err().contains("16.8 MB"), "{:?}", lines[1].1);
        assert_eq!((lines[2].1.as_deref(), lines[4].1.as_deref()), (Ok("two\r"), Ok("three")));
        assert!(lines[3].1.as_ref().unwrap_err().contains("not UTF-8 from byte 1"));
    }

    #[test]
    fn a_line_of_the_longest_that_may_be_is_read() {
        let line = vec![b'x'; LONGEST];
        let lines = all(Cursor::new([&line[..], b"\n", &line[..]].concat()));
        assert!(
            lines.iter().all(|l| l.as_ref().is_ok_and(|(_, text)| text.as_ref().is_ok_and(|t| t.len() == LONGEST)))
        );
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn what_has_no_end_is_an_error_and_no_endless_wait() {
        let lines = all(io::BufReader::with_capacity(1 << 20, io::repeat(0)));
        let [Err(e)] = &lines[..] else { panic!("{} lines", lines.len()) };
        assert!(format!("{e:#}").contains("cannot read the requests: line 1: it has not ended after 1.1 GB"), "{e:#}");
    }
}
