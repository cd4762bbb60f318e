//! Models from a hub, against a server on this machine that cuts off, stalls, lies, refuses and
//! redirects.

mod common;
#[path = "hub/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use server::{COMMIT, Fault, Server, made_up, sha256};
use tandem::gguf::{Array, Gguf, TensorType, Writer};
use tandem::hub::{FetchEvent, FetchStopped, Hub, HubCache, HubLimits, HubUnreachable, ModelName};

const TOKEN: &str = "hf_secret";
/// Bytes of the models made up here: five ranges and a bit.
const SIZE: usize = (5 << 16) + 1234;

/// A hub with limits that fit a test, and a cache of its own.
struct Bench {
    hub: Hub,
    dir: tempfile::TempDir,
    notes: Mutex<Vec<String>>,
}

impl Bench {
    fn new(server: &Server) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let limits = HubLimits {
            silence: Duration::from_millis(300),
            pause: Duration::from_millis(10),
            retries: 3,
            connections: 4,
            range_bytes: 1 << 16,
        };
        let (cache, endpoint, token) = (HubCache::at(dir.path()), server.hub.clone(), Some(TOKEN.to_owned()));
        Bench { hub: Hub { endpoint, token, cache, offline: false, limits }, dir, notes: Mutex::default() }
    }

    fn fetch(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.fetch_until(name, |_| false)
    }

    /// Stops when `enough` says so of the bytes that are there.
    fn fetch_until(&self, name: &str, enough: impl Fn(u64) -> bool) -> anyhow::Result<PathBuf> {
        let stop = AtomicBool::new(false);
        let report = |event| match event {
            FetchEvent::At(bytes) => stop.store(stop.load(Ordering::SeqCst) || enough(bytes), Ordering::SeqCst),
            FetchEvent::Note(text) => self.notes.lock().unwrap().push(text),
        };
        let plan = self.hub.plan(&ModelName::parse(name, None)?, &["Q4_K_M"], &stop, &report)?;
        self.hub.fetch(&plan, &stop, &report)
    }

    fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }

    /// Every file below the cache with its contents, links followed; locks left out.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let (mut todo, mut files) = (vec![self.dir.path().to_owned()], BTreeMap::new());
        while let Some(dir) = todo.pop() {
            for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
                let name = path.strip_prefix(self.dir.path()).unwrap().display().to_string();
                match path.is_dir() {
                    true if name == ".locks" => {}
                    true => todo.push(path),
                    false => drop(files.insert(name, std::fs::read(&path).unwrap())),
                }
            }
        }
        files
    }

    /// No file has a final name whose contents are not right.
    fn assert_no_model(&self) {
        for (name, _) in self.files() {
            assert!(name.contains(".tandem"), "{name} is there after a failure");
        }
    }
}

fn one() -> (Server, Vec<u8>) {
    let bytes = made_up(SIZE, 7);
    (Server::of(&[("m-Q4_K_M.gguf", bytes.clone()), ("README.md", b"text".to_vec())]), bytes)
}

#[test]
fn a_model_comes_by_ranges_into_the_layout_of_the_other_programs_and_a_second_time_nothing_is_asked() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    let path = bench.fetch("u/r").unwrap();
    let (hash, repo) = (sha256(&bytes), "models--u--r");
    assert_eq!(path, bench.dir.path().join(repo).join("snapshots").join(COMMIT).join("m-Q4_K_M.gguf"));
    assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("../../blobs").join(&hash));
    let files = bench.files();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let snapshot = format!("{repo}/snapshots/{COMMIT}/m-Q4_K_M.gguf");
    assert_eq!(names, [&format!("{repo}/blobs/{hash}"), &format!("{repo}/refs/main"), &snapshot]);
    assert_eq!(files[&snapshot], bytes);
    assert_eq!(files[&format!("{repo}/refs/main")], COMMIT.as_bytes());

    let log = server.log();
    assert_eq!(log.iter().filter(|a| a.path.starts_with("/api/")).count(), 2);
    let gets: Vec<_> = log.iter().filter(|a| a.cdn).collect();
    assert_eq!(gets.len(), 6, "as many requests as ranges");
    assert!(gets.iter().all(|a| a.range.is_some_and(|(from, to)| to - from <= 1 << 16)));
    let bearer = format!("Bearer {TOKEN}");
    assert!(log.iter().filter(|a| !a.cdn).all(|a| a.auth.as_ref() == Some(&bearer)), "the hub gets the token");
    assert!(gets.iter().all(|a| a.auth.is_none()), "nobody else does");

    server.rule(|_| Fault::No);
    let found = bench.hub.cached(&ModelName::parse("u/r:q4_k_m", None).unwrap(), &[], true).unwrap();
    assert_eq!((found.path, server.log().len()), (path, 0));
}

#[test]
fn a_line_that_breaks_again_and_again_costs_no_byte_twice() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    // Ten drops per range are more than may bring nothing in a row.
    server.rule(|a| if a.cdn { Fault::Cut(6000) } else { Fault::No });
    let path = bench.fetch("u/r").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert!(server.log().iter().filter(|a| a.cdn).count() > SIZE / 6000);
    assert_eq!(server.sent(), SIZE as u64);
}

#[test]
fn an_interrupted_fetch_goes_on_where_it_stopped_also_by_another_program_start() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    server.rule(|a| if a.cdn { Fault::Stall(20_000, Duration::from_millis(200)) } else { Fault::No });
    let e = bench.fetch_until("u/r", |bytes| bytes > 0).unwrap_err();
    assert!(e.is::<FetchStopped>(), "{e:#}");
    let unfinished = bench.hub.unfinished().0;
    assert_eq!((unfinished.len(), unfinished[0].path.as_str()), (1, "m-Q4_K_M.gguf"));
    let done = unfinished[0].done;
    assert!(done > 0 && done < SIZE as u64, "{done}");
    assert!(
        bench.hub.list().is_empty() && bench.hub.cached(&ModelName::parse("u/r", None).unwrap(), &[], false).is_none()
    );
    bench.assert_no_model();

    server.rule(|_| Fault::No);
    let path = bench.fetch("u/r").unwrap();
    assert_eq!(server.sent(), SIZE as u64 - done, "no byte twice");
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert!(bench.hub.unfinished().0.is_empty());
}

#[test]
fn a_silent_server_is_asked_again_from_the_byte_where_it_fell_silent() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    let mut left = 2;
    server.rule(move |a| {
        left -= i32::from(a.cdn);
        if a.cdn && left >= 0 { Fault::Stall(10_000, Duration::from_secs(5)) } else { Fault::No }
    });
    let began = Instant::now();
    assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes);
    assert!(began.elapsed() < Duration::from_secs(4), "it did not wait for the server");
    assert!(bench.notes().contains("no byte came for 0.3 s"), "{}", bench.notes());
    assert_eq!(server.sent(), SIZE as u64);
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning_and_the_file_is_not_longer_for_it() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    server.rule(|a| if a.cdn { Fault::Stall(20_000, Duration::from_millis(200)) } else { Fault::No });
    bench.fetch_until("u/r", |bytes| bytes > 0).unwrap_err();
    let mut cut = false;
    server.rule(move |a| match a.cdn && a.range.is_none() && !std::mem::replace(&mut cut, true) {
        true => Fault::Cut(90_000),
        false => Fault::NoRange,
    });
    assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes);
    assert!(bench.notes().contains("ignores ranges"), "{}", bench.notes());
}

#[test]
fn bytes_of_another_place_are_never_written() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    server.rule(|a| if a.cdn { Fault::Offset(100) } else { Fault::No });
    let e = bench.fetch("u/r").unwrap_err();
    assert!(format!("{e:#}").contains("sent other bytes than were asked for"), "{e:#}");
    bench.assert_no_model();
    let mut n = 0;
    server.rule(move |a| {
        n += i32::from(a.cdn);
        if a.cdn && n % 2 == 1 { Fault::Offset(100) } else { Fault::No }
    });
    assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes);
}

#[test]
fn wrong_bytes_of_the_right_length_are_no_model() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    server.rule(|a| if a.cdn { Fault::Flip(70_000) } else { Fault::No });
    let mut flipped = bytes.clone();
    flipped[70_000] ^= 1;
    let said = format!("{:#}", bench.fetch("u/r").unwrap_err());
    assert!(said.contains(&sha256(&bytes)) && said.contains(&sha256(&flipped)), "{said}");
    bench.assert_no_model();
    assert!(bench.hub.unfinished().0.is_empty(), "what is wrong is not gone on with");
    // A fault of the line is not one of the second attempt.
    let mut once = false;
    server.rule(move |a| match a.range {
        Some((65536, _)) if a.cdn && !std::mem::replace(&mut once, true) => Fault::Flip(70_000),
        _ => Fault::No,
    });
    assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes);
    assert!(bench.notes().contains("fetched again"), "{}", bench.notes());
}

#[test]
fn lengths_that_do_not_agree_are_an_error_and_missing_ones_are_none() {
    let cases = [
        ("X-Linked-Size", Some("99"), Err("serves it with 99 bytes")),
        (
            "X-Linked-Etag",
            Some("\"1111111111111111111111111111111111111111111111111111111111111111\""),
            Err("serves it with"),
        ),
        ("Content-Range", Some("bytes 0-65535/999999"), Err("has 999999 bytes")),
        ("X-Linked-Size", None, Ok(())),
        ("X-Linked-Etag", None, Ok(())),
        ("Content-Range", None, Ok(())),
    ];
    for (header, value, want) in cases {
        let (server, bytes) = one();
        let bench = Bench::new(&server);
        server.rule(move |a| match a.path.starts_with("/api/") {
            true => Fault::No,
            false => Fault::Header(header, value.map(str::to_owned)),
        });
        match (bench.fetch("u/r"), want) {
            (Ok(path), Ok(())) => assert_eq!(std::fs::read(path).unwrap(), bytes),
            (Err(e), Err(word)) => assert!(format!("{e:#}").contains(word), "{header}: {e:#}"),
            (got, want) => panic!("{header} {value:?}: {got:?}, expected {want:?}"),
        }
    }
    // A whole body that is shorter than the listing says, also at a single range.
    let server = Server::of(&[("m.gguf", made_up(1000, 3))]);
    let bench = Bench::new(&server);
    server.state.lock().unwrap().listed = Some(vec![("m.gguf".into(), 2000, "a".repeat(64))]);
    server.rule(|a| if a.cdn { Fault::NoRange } else { Fault::Header("X-Linked-Size", None) });
    server.state.lock().unwrap().direct = true;
    let said = format!("{:#}", bench.fetch("u/r").unwrap_err());
    assert!(said.contains("1000") && said.contains("2000"), "{said}");
    bench.assert_no_model();
}

#[test]
fn answers_of_noise_end_in_the_right_bytes_or_in_an_error() {
    let (server, bytes) = one();
    // Without redirects, which noise could lead to a stranger's server.
    server.state.lock().unwrap().direct = true;
    let (mut whole, mut failed) = (0, 0);
    for seed in 1..60u64 {
        let mut bench = Bench::new(&server);
        bench.hub.limits.silence = Duration::from_millis(60);
        (bench.hub.limits.pause, bench.hub.limits.retries) = (Duration::from_millis(1), 1);
        let mut n = seed;
        server.rule(move |_| {
            n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if n >> 62 == 0 { Fault::Garble(n) } else { Fault::No }
        });
        match bench.fetch("u/r") {
            Ok(path) => {
                assert_eq!(std::fs::read(path).unwrap(), bytes, "seed {seed}");
                whole += 1;
            }
            Err(e) => {
                assert!(format!("{e:#}").lines().count() == 1, "{e:#}");
                bench.assert_no_model();
                failed += 1;
            }
        }
    }
    assert!(whole > 3 && failed > 3, "{whole} came, {failed} failed");
}

/// What a fetch says when a server answers with this status.
fn said(cdn: bool, status: u16, headers: &str, body: &str) -> String {
    let (server, _) = one();
    let bench = Bench::new(&server);
    let (headers, body) = (headers.to_owned(), body.to_owned());
    server.rule(move |a| match a.cdn == cdn {
        true => Fault::Status(status, headers.clone(), body.clone()),
        false => Fault::No,
    });
    let e = bench.fetch("u/r").unwrap_err();
    bench.assert_no_model();
    format!("{e:#}")
}

#[test]
fn every_refusal_is_one_clear_sentence() {
    let gated = "X-Error-Code: GatedRepo\r\nX-Error-Message: Access to model u/r is restricted\r\n";
    for (cdn, status, headers, body, words) in [
        (false, 401, "", "", &["u/r", "status 401", "does not accept the token"][..]),
        (false, 403, gated, "", &["u/r is gated", "ask for access at http://", "/u/r", "restricted"]),
        (false, 403, "", "{\"error\":\"no\"}", &["u/r", "status 403", "the token has no access", "says: no"]),
        (false, 404, "X-Error-Code: RepoNotFound\r\n", "", &["u/r", "no such repository"]),
        (false, 500, "", "<html>", &["status 500", "in a row"]),
        (
            true,
            403,
            "",
            "<?xml?><Message>has expired</Message>",
            &["server refused", "status 403", "says: has expired"],
        ),
        (true, 404, "", "", &["u/r/m-Q4_K_M.gguf", "not found"]),
        (true, 416, "Content-Range: bytes */5\r\n", "", &["has 5 bytes", "are listed", "status 416"]),
        (true, 418, "", "\u{1b}]0;x\u{7}teapot", &["status 418", "teapot"]),
        (true, 503, "", "busy", &["status 503", "busy", "goes on from here"]),
        (true, 429, "Retry-After: 3600\r\n", "", &["status 429", "wait for 3600 s"]),
    ] {
        let said = said(cdn, status, headers, body);
        assert!(words.iter().all(|w| said.contains(w)), "{status}: {said}");
        assert!(!said.contains(TOKEN) && !said.contains('\u{1b}') && said.lines().count() == 1, "{said:?}");
    }
}

#[test]
fn a_server_that_asks_to_wait_gets_that_time_and_is_asked_again() {
    for headers in ["Retry-After: 1\r\n", "RateLimit: \"resolvers\";r=0;t=0\r\n"] {
        let (server, bytes) = one();
        let bench = Bench::new(&server);
        let mut once = false;
        server.rule(move |a| match a.cdn && !std::mem::replace(&mut once, true) {
            true => Fault::Status(429, headers.into(), String::new()),
            false => Fault::No,
        });
        let began = Instant::now();
        assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes);
        assert!(began.elapsed() >= Duration::from_secs(1), "{headers}");
    }
}

#[test]
fn an_address_that_expired_is_asked_for_once_more() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    let mut n = 0;
    server.rule(move |a| {
        n += i32::from(a.cdn);
        if a.cdn && n == 5 { Fault::Status(403, String::new(), "expired".into()) } else { Fault::No }
    });
    assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes);
    assert_eq!(server.log().iter().filter(|a| a.method == "HEAD").count(), 2);
    assert_eq!(server.sent(), SIZE as u64);
}

#[test]
fn a_renamed_repository_is_followed_with_the_token_and_another_host_never_gets_it() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    server.rule(|a| match a.path.strip_prefix("/api/models/u/old") {
        Some(rest) => Fault::Status(307, format!("Location: /api/models/u/r{rest}\r\n"), String::new()),
        None => match a.path.strip_prefix("/u/old/") {
            Some(rest) => Fault::Status(307, format!("Location: /u/r/{rest}\r\n"), String::new()),
            None => Fault::No,
        },
    });
    assert_eq!(std::fs::read(bench.fetch("u/old").unwrap()).unwrap(), bytes);
    assert!(server.log().iter().all(|a| a.auth.is_some() != a.cdn));
    // The hub's own list from another host is not asked for.
    let other = Server::of(&[("m-Q4_K_M.gguf", bytes)]);
    let to = format!("Location: {}/api\r\n", other.hub);
    server.rule(move |_| Fault::Status(302, to.clone(), String::new()));
    let e = bench.fetch("u/r").unwrap_err();
    assert!(format!("{e:#}").contains("does not answer like a hub"), "{e:#}");
    assert!(other.log().is_empty());
    // A circle ends.
    server.rule(|a| Fault::Status(302, format!("Location: {}\r\n", a.path), String::new()));
    assert!(format!("{:#}", bench.fetch("u/r").unwrap_err()).contains("loop"));
}

#[test]
fn names_with_signs_of_addresses_are_fetched_like_others() {
    let name = "x y/[a]+b#c%20?&=é-Q4_K_M.gguf";
    let (bytes, empty) = (made_up(5000, 9), Vec::new());
    let server = Server::of(&[(name, bytes.clone()), ("empty-Q8_0.gguf", empty)]);
    let bench = Bench::new(&server);
    let path = bench.fetch("u/r").unwrap();
    assert!(path.ends_with(name), "{}", path.display());
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert!(std::fs::read(bench.fetch("u/r:Q8_0").unwrap()).unwrap().is_empty(), "a file without bytes is a file");
}

#[test]
fn a_list_of_several_pages_is_read_to_its_end_also_through_a_mirror() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    for host in ["https://huggingface.co", &server.hub.clone()] {
        let next = format!("Link: <{host}/api/models/u/r/tree/{COMMIT}?recursive=true&cursor=x>; rel=\"next\"\r\n");
        server.rule(move |a| match a.path.contains("/tree/") && !a.path.contains("cursor") {
            true => Fault::Status(200, next.clone(), "[]".into()),
            false => Fault::No,
        });
        assert_eq!(std::fs::read(bench.fetch("u/r").unwrap()).unwrap(), bytes, "{host}");
    }
}

#[test]
fn a_page_of_text_is_no_model() {
    let (server, _) = one();
    let bench = Bench::new(&server);
    server.state.lock().unwrap().direct = true;
    server.rule(|a| match a.path.starts_with("/api/") {
        true => Fault::No,
        false => Fault::Body("<html>".to_owned() + &" ".repeat(SIZE - 6)),
    });
    let said = format!("{:#}", bench.fetch("u/r").unwrap_err());
    assert!(said.contains("begins with \"<html>"), "{said}");
    bench.assert_no_model();
}

#[test]
fn no_name_of_a_server_leaves_the_cache() {
    let (server, bytes) = one();
    let bench = Bench::new(&server);
    let listed = |path: &str, hash: String| Some(vec![(path.to_owned(), bytes.len() as u64, hash)]);
    for path in ["../../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf"] {
        server.state.lock().unwrap().listed = listed(path, sha256(&bytes));
        let said = format!("{:#}", bench.fetch("u/r").unwrap_err());
        assert!(said.contains("no GGUF"), "{path}: {said}");
    }
    server.state.lock().unwrap().listed = listed("m-Q4_K_M.gguf", "../../../../evil".into());
    server.rule(|a| {
        if a.method == "HEAD" { Fault::Header("X-Linked-Etag", Some("\"../../evil\"".into())) } else { Fault::No }
    });
    let said = format!("{:#}", bench.fetch("u/r").unwrap_err());
    assert!(said.contains("gives no hash"), "{said}");
    assert!(bench.files().is_empty(), "{:?}", bench.files().keys());
}

#[test]
fn two_at_the_same_time_fetch_one_model_once() {
    let (server, bytes) = one();
    let bench = Arc::new(Bench::new(&server));
    server.rule(|a| if a.cdn { Fault::Stall(60_000, Duration::from_millis(100)) } else { Fault::No });
    let other = bench.clone();
    let thread = std::thread::spawn(move || other.fetch("u/r").unwrap());
    let path = bench.fetch("u/r").unwrap();
    assert_eq!(thread.join().unwrap(), path);
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert_eq!(server.sent(), SIZE as u64);
    assert!(bench.notes().contains("another process fetches it"), "{}", bench.notes());
}

#[test]
fn what_other_programs_left_is_used_where_it_is_whole_and_never_touched() {
    let files =
        [("a/m-Q8_0-00001-of-00002.gguf", made_up(70_000, 1)), ("a/m-Q8_0-00002-of-00002.gguf", made_up(80_000, 2))];
    let server = Server::of(&files);
    let bench = Bench::new(&server);
    let blobs = bench.dir.path().join("models--u--r/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let hash: Vec<String> = files.iter().map(|f| sha256(&f.1)).collect();
    // The first file whole, without its link; the second one half, by two other programs.
    std::fs::write(blobs.join(&hash[0]), &files[0].1).unwrap();
    for end in ["incomplete", "downloadInProgress", "abcd.incomplete"] {
        std::fs::write(blobs.join(format!("{}.{end}", hash[1])), &files[1].1[..9000]).unwrap();
    }
    let before = bench.files();
    let path = bench.fetch("u/r:Q8_0").unwrap();
    assert_eq!(server.sent(), 80_000);
    assert!(path.ends_with("a/m-Q8_0-00001-of-00002.gguf"));
    let second = path.with_file_name("m-Q8_0-00002-of-00002.gguf");
    assert_eq!(
        (std::fs::read(path).unwrap(), std::fs::read(second).unwrap()),
        (files[0].1.clone(), files[1].1.clone())
    );
    let after = bench.files();
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)));
    assert_eq!(bench.hub.unfinished().1.len(), 3);
    // A shard that goes missing makes the model one that must be fetched again.
    std::fs::remove_file(blobs.join(&hash[1])).unwrap();
    assert_eq!(bench.hub.list()[0].model.missing, Some(2));
    assert!(bench.hub.cached(&ModelName::parse("u/r:Q8_0", None).unwrap(), &[], false).is_none());
}

#[test]
fn a_mistyped_quant_and_a_disk_that_is_too_small_fetch_nothing() {
    let (server, _) = one();
    let bench = Bench::new(&server);
    let said = format!("{:#}", bench.fetch("u/r:Q4_K").unwrap_err());
    assert!(said.contains("no model of the repository is called Q4_K; it has Q4_K_M"), "{said}");
    let huge = vec![("m-Q4_K_M.gguf".to_owned(), 1 << 46, "a".repeat(64))];
    server.state.lock().unwrap().listed = Some(huge);
    let said = format!("{:#}", bench.fetch("u/r").unwrap_err());
    assert!(said.contains("GB free") && said.contains("nothing was fetched"), "{said}");
    assert_eq!(server.sent(), 0);
    assert!(bench.files().is_empty());
}

#[test]
fn the_headers_of_all_files_come_without_the_weights_and_open_like_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new();
    // A vocabulary that is longer than a first request.
    let tokens: Vec<String> = (0..40_000).map(|i| format!("a token of some length, number {i}")).collect();
    writer.set("general.architecture", "x").set("tokenizer.ggml.tokens", Array::Str(tokens));
    for name in ["a", "b", "c"] {
        writer.add_hole(name, &[1000, 1000], TensorType::I32).unwrap();
    }
    let paths = writer.write_split(&dir.path().join("m-Q4_K_M.gguf"), 2).unwrap();
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    let names = paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap());
    let files: Vec<(&str, Vec<u8>)> = names.zip(paths.iter().map(read)).collect();
    let server = Server::of(&files);
    let bench = Bench::new(&server);
    let (stop, to) = (AtomicBool::new(false), tempfile::tempdir().unwrap());
    let plan = bench.hub.plan(&ModelName::parse("u/r", None).unwrap(), &["Q4_K_M"], &stop, &|_| {}).unwrap();
    let (path, bytes) = bench.hub.headers(&plan, to.path(), &stop, &|_| {}).unwrap();
    assert_eq!(server.sent(), bytes);
    assert!(bytes < 4_000_000, "{bytes} of 13 MB, of which 2 are header");
    let (header, whole) = (Gguf::open(&path).unwrap(), Gguf::open(&paths[0]).unwrap());
    let tensors = |g: &Gguf| g.tensors.iter().map(|t| (t.name.clone(), t.offset, t.shard)).collect::<Vec<_>>();
    assert_eq!(tensors(&header), tensors(&whole));
    assert!(bench.files().is_empty(), "the cache knows nothing of it");
    // A line that breaks is taken up again; what is no header is refused after its first bytes.
    server.rule(|a| if a.cdn { Fault::Cut(90_000) } else { Fault::No });
    assert_eq!(bench.hub.headers(&plan, to.path(), &stop, &|_| {}).unwrap().1, bytes);
    let size = files[0].1.len();
    server.rule(move |a| if a.cdn { Fault::Body("<html>".to_owned() + &" ".repeat(size - 6)) } else { Fault::No });
    let said = format!("{:#}", bench.hub.headers(&plan, to.path(), &stop, &|_| {}).unwrap_err());
    assert!(said.contains("u/r/m-Q4_K_M-0000") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_hub_that_is_not_there_is_told_at_once() {
    let (server, _) = one();
    let mut bench = Bench::new(&server);
    bench.hub.limits.pause = Duration::from_secs(60);
    bench.hub.endpoint = "http://127.0.0.1:1".into();
    let e = bench.fetch("u/r").unwrap_err();
    assert!(e.is::<HubUnreachable>() && format!("{e:#}").contains("cannot reach 127.0.0.1"), "{e:#}");
    bench.hub.offline = true;
    assert!(bench.fetch("u/r").unwrap_err().is::<HubUnreachable>());
}

/// The program with a cache of its own, and this hub.
fn tandem(hub: &str, home: &Path, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "MODEL_ENDPOINT", "HF_HUB_OFFLINE"]
    {
        c.env_remove(name);
    }
    c.args(args).env("HF_HOME", home).env("HF_ENDPOINT", hub).env("CUDA_VISIBLE_DEVICES", "").stdin(Stdio::null());
    c
}

fn output(hub: &str, home: &Path, args: &[&str]) -> Output {
    tandem(hub, home, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_model_is_explained_fetched_listed_and_run_by_its_name() {
    let demo = std::fs::read(common::demo()).unwrap();
    let server = Server::of(&[("demo-Q8_0.gguf", demo.clone()), ("mmproj-Q8_0.gguf", made_up(100, 1))]);
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let o = output(&server.hub, home.path(), args);
        assert!(o.status.success(), "{args:?}: {}", text(&o.stderr));
        (text(&o.stdout), text(&o.stderr))
    };
    let explained = run(&["explain", "-hf", "u/r:Q8_0", "--ram-gbps", "50", "--json"]).0;
    let local = run(&["explain", common::demo().to_str().unwrap(), "--ram-gbps", "50", "--json"]).0;
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for key in ["architecture", "weights", "parts", "bytes_per_token", "state"] {
        assert_eq!(json(&explained)[key], json(&local)[key], "{key}");
    }
    assert!(server.sent() < demo.len() as u64 / 2, "the header alone");
    run(&["tokenize", "-hf", "u/r", "-p", "ROMEO"]);
    assert_eq!(json(&run(&["list", "--json"]).0)["models"], Value::Array(Vec::new()));
    let (plan, _) = run(&["fetch", "u/r", "--dry-run"]);
    assert_eq!(plan, format!("{}\tdemo-Q8_0.gguf\n", demo.len()));

    server.rule(|_| Fault::No);
    let (path, notes) = run(&["fetch", "u/r"]);
    assert!(notes.contains("the only model") && notes.contains("length and hash are right"), "{notes}");
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), demo);
    assert_eq!(server.sent(), demo.len() as u64);
    server.rule(|_| Fault::No);
    let same = ["run", "-p", "ROMEO:", "-n", "8", "--temp", "0", "-q"];
    let answer = run(&[&same[..], &["-hf", "u/r:Q8_0"]].concat()).0;
    assert_eq!(answer, run(&[&same[..], &["-m", common::demo().to_str().unwrap()]].concat()).0);
    let listed = json(&run(&["list", "--json"]).0);
    assert_eq!((&listed["models"][0]["name"], &listed["models"][0]["complete"]), (&"u/r:Q8_0".into(), &true.into()));
    assert!(run(&["list"]).0.contains("u/r:Q8_0"));
    assert!(server.log().is_empty(), "what is in the cache is not asked for");

    // A machine that is offline opens what it has, and says one line of what it has not.
    let gone = "http://127.0.0.1:1";
    assert_eq!(answer, text(&output(gone, home.path(), &[&same[..], &["-hf", "u/r"]].concat()).stdout));
    assert_eq!(text(&output(gone, home.path(), &["fetch", "u/r"]).stdout), path);
    for args in [&["run", "-hf", "u/r:Q4_K_M", "-p", "x"][..], &["run", "-hf", "u/r:Q4_K_M", "--offline", "-p", "x"]] {
        let o = output(gone, home.path(), args);
        let said = text(&o.stderr);
        assert_eq!((o.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("u/r:Q4_K_M is not in the cache") && said.contains("which has Q8_0"), "{said}");
    }
    for (args, words) in [
        (&["run", "-hf", "nonsense", "-p", "x"][..], "expected USER/REPO"),
        (&["run", "-hf", "u/r", "-m", "x.gguf", "-p", "x"], "given twice"),
        (&["fetch"], "no model given"),
    ] {
        let o = output(&server.hub, home.path(), args);
        assert_eq!(o.status.code(), Some(2), "{args:?}");
        assert!(text(&o.stderr).contains(words), "{}", text(&o.stderr));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_fetch_from_a_silent_server_and_the_next_one_goes_on() {
    let (server, bytes) = one();
    let home = tempfile::tempdir().unwrap();
    server.rule(|a| if a.cdn { Fault::Stall(100_000, Duration::from_secs(60)) } else { Fault::No });
    let mut child = tandem(&server.hub, home.path(), &["fetch", "u/r"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let record = home.path().join(format!("hub/models--u--r/blobs/{}.tandem", sha256(&bytes)));
    let began = Instant::now();
    while !std::fs::read(&record).is_ok_and(|b| b[..100_000] == bytes[..100_000]) {
        assert!(began.elapsed() < Duration::from_secs(60), "the first bytes come");
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    common::signal("INT", child.id());
    let o = child.wait_with_output().unwrap();
    assert_eq!((o.status.code(), text(&o.stdout)), (Some(130), String::new()), "{}", text(&o.stderr));
    assert!(asked.elapsed() < Duration::from_secs(20), "it did not wait for the server");
    assert!(text(&o.stderr).contains("goes on from there"), "{}", text(&o.stderr));
    server.rule(|_| Fault::No);
    let o = output(&server.hub, home.path(), &["fetch", "u/r"]);
    assert_eq!(std::fs::read(text(&o.stdout).trim_end()).unwrap(), bytes, "{}", text(&o.stderr));
    assert_eq!(server.sent(), SIZE as u64 - 100_000);
}
