//! The time that a chat template asks for, and Python's way to write it.

use std::str::FromStr;

use anyhow::{Context, Error, Result};
use jiff::civil::{Date, DateTime};
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// A date and a time of day, without a time zone, as Python's `datetime.now()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock(DateTime);

impl Clock {
    /// What this machine's clocks show, in its time zone.
    pub fn now() -> Clock {
        Clock(Zoned::now().datetime())
    }

    /// Python's `strftime` in the C locale: a directive that it does not know stays as it is, and without a time zone
    /// %z and %Z are empty.
    pub(super) fn strftime(self, format: &str) -> Result<String> {
        let mut ours = String::with_capacity(format.len());
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            ours += &rest[..at];
            let directive = rest[at + 1..].chars().next();
            match directive {
                Some('f') => ours += "%6f", // always microseconds
                Some('z' | 'Z') => {}
                Some(c) => ours.extend(['%', c]),
                None => ours += "%%",
            }
            rest = &rest[at + 1 + directive.map_or(0, char::len_utf8)..];
        }
        ours += rest;
        let c_locale = Config::new().custom(PosixCustom::new()).lenient(true);
        BrokenDownTime::from(self.0)
            .to_string_with_config(&c_locale, &ours)
            .with_context(|| format!("the time cannot be written as {format:?}"))
    }
}

impl FromStr for Clock {
    type Err = Error;

    /// Seconds since 1970 in UTC, or a date with or without a time of day: 2025-03-14, 2025-03-14 15:09,
    /// 2025-03-14T15:09:26.
    fn from_str(text: &str) -> Result<Clock> {
        let what = || format!("{text:?} is no time: expected YYYY-MM-DD, YYYY-MM-DD HH:MM:SS or seconds since 1970");
        if let Ok(seconds) = text.parse::<i64>() {
            let time = Timestamp::from_second(seconds).with_context(what)?;
            return Ok(Clock(time.to_zoned(TimeZone::UTC).datetime()));
        }
        // A date alone is midnight.
        let time = text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from));
        Ok(Clock(time.with_context(what)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_python_writes_them() {
        // As Python 3.11 prints datetime(2025, 3, 4, 5, 6, 7).strftime(..).
        let clock: Clock = "2025-03-04 05:06:07".parse().unwrap();
        for (format, want) in [
            ("%Y-%m-%d", "2025-03-04"),
            ("%d %B %Y, %A %-d/%-m", "04 March 2025, Tuesday 4/3"),
            ("%b %e %y %j", "Mar  4 25 063"),
            ("%H:%M:%S %I %p %f", "05:06:07 05 AM 000000"),
            (
                "%c|%x|%X|%D|%F|%T|%R|%r",
                "Tue Mar  4 05:06:07 2025|03/04/25|05:06:07|03/04/25|2025-03-04|05:06:07|05:06|05:06:07 AM",
            ),
            ("%U %W %V %G %u %w %C", "09 09 10 2025 2 2 20"),
            ("[%z%Z] 100%% %", "[] 100% %"),
            ("%-I%^a %é", "5TUE %é"),
        ] {
            assert_eq!(clock.strftime(format).unwrap(), want, "{format}");
        }
    }

    #[test]
    fn a_time_is_seconds_or_a_date_and_anything_else_is_named() {
        let at = |text: &str| text.parse::<Clock>().unwrap();
        assert_eq!(at("1741964966"), at("2025-03-14 15:09:26"));
        assert_eq!(at("2025-03-14T15:09:26"), at("2025-03-14 15:09:26"));
        assert_eq!(at("2025-03-14 15:09"), at("2025-03-14 15:09:00"));
        assert_eq!(at("2025-03-14"), at("2025-03-14 00:00:00"));
        for bad in ["", "today", "2025-13-01", "99999999999999"] {
            let e = bad.parse::<Clock>().unwrap_err().to_string();
            assert!(e.contains(bad) && e.contains("YYYY-MM-DD"), "{e}");
        }
    }
}
