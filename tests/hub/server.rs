//! A hub on this machine for tests: two ports, as two hosts, and every fault that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What one request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Whether it came to the port of the files, not to that of the hub.
    pub(crate) cdn: bool,
    pub(crate) method: String,
    pub(crate) path: String,
    /// First byte, and the one after the last.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) auth: Option<String>,
    /// Bytes of the body that were sent so far.
    sent: Arc<AtomicU64>,
}

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    No,
    /// This status, header lines and body.
    Status(u16, String, String),
    /// The line is cut after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes of the body, for so long.
    Stall(usize, Duration),
    /// The range is ignored.
    NoRange,
    /// The answer is for bytes that begin so much later.
    Offset(u64),
    /// The byte at this place of the file is another one.
    Flip(u64),
    /// The header Content-Range or Content-Length is another text, or left out.
    Header(&'static str, Option<String>),
    /// The body is this.
    Body(String),
    /// Some characters of the head are others, by this seed.
    Garble(u64),
}

type Rule = Box<dyn FnMut(&Asked) -> Fault + Send>;

pub(crate) struct State {
    /// The files of the repository u/r.
    files: BTreeMap<String, Vec<u8>>,
    /// What the listing says instead of the files: path, size, hash.
    pub(crate) listed: Option<Vec<(String, u64, String)>>,
    rule: Rule,
    log: Vec<Asked>,
    /// The hub serves files itself.
    pub(crate) direct: bool,
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) hub: String,
    cdn: String,
    pub(crate) state: Arc<Mutex<State>>,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that begin like a model and repeat nowhere.
pub(crate) fn made_up(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    b"GGUF".iter().copied().chain(std::iter::from_fn(|| Some(next()))).take(n).collect()
}

impl Server {
    pub(crate) fn of(files: &[(&str, Vec<u8>)]) -> Server {
        let files = files.iter().map(|(p, b)| ((*p).to_owned(), b.clone())).collect();
        let state = State { files, listed: None, rule: Box::new(|_| Fault::No), log: Vec::new(), direct: false };
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, cdn) = (listen(), listen());
        let name = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let server = Server { hub: name(&hub), cdn: name(&cdn), state: Arc::new(Mutex::new(state)) };
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let server = server.clone();
            std::thread::spawn(move || {
                for line in listener.incoming().flatten() {
                    let server = server.clone();
                    std::thread::spawn(move || server.answer(line, is_cdn));
                }
            });
        }
        server
    }

    /// Sets what goes wrong from now on, and forgets what was asked.
    pub(crate) fn rule(&self, rule: impl FnMut(&Asked) -> Fault + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.rule = Box::new(rule);
        state.log.clear();
    }

    pub(crate) fn log(&self) -> Vec<Asked> {
        self.state.lock().unwrap().log.clone()
    }

    /// Bytes of files that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.log()
            .iter()
            .filter(|a| a.path.contains("/file/") || a.path.contains("/resolve/"))
            .map(|a| a.sent.load(Ordering::SeqCst))
            .sum()
    }

    fn answer(&self, line: TcpStream, cdn: bool) {
        let Some(asked) = read(&line, cdn) else { return };
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.log.push(asked.clone());
            (state.rule)(&asked)
        };
        let _ = self.write(line, &asked, &fault);
    }

    fn write(&self, mut line: TcpStream, asked: &Asked, fault: &Fault) -> std::io::Result<()> {
        if let Fault::Status(status, headers, body) = fault {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
            line.write_all(head.as_bytes())?;
            return if asked.method == "HEAD" { Ok(()) } else { line.write_all(body.as_bytes()) };
        }
        let (status, headers, body) = self.answer_of(asked, fault);
        let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        let length = ("Content-Length".to_owned(), body.len().to_string());
        for (name, value) in headers.into_iter().chain([length]) {
            match fault {
                Fault::Header(other, value) if *other == name => {
                    if let Some(value) = value {
                        head += &format!("{name}: {value}\r\n");
                    }
                }
                _ => head += &format!("{name}: {value}\r\n"),
            }
        }
        let mut head = format!("{head}\r\n").into_bytes();
        if let Fault::Garble(seed) = fault {
            let noise = made_up(24, *seed);
            for pair in noise[8..].chunks(2).take(1 + noise[4] as usize % 4) {
                let at = pair[0] as usize * head.len() / 256;
                head[at] = b"0123456789-/*: \r\nax\0\xff"[pair[1] as usize % 21];
            }
        }
        line.write_all(&head)?;
        if asked.method == "HEAD" {
            return Ok(());
        }
        let end = match fault {
            Fault::Cut(n) | Fault::Stall(n, _) => body.len().min(*n),
            _ => body.len(),
        };
        for part in body[..end].chunks(16 << 10) {
            asked.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
            line.write_all(part)?;
        }
        if let Fault::Stall(_, time) = fault {
            std::thread::sleep(*time);
        }
        Ok(())
    }

    /// Status, headers and body.
    fn answer_of(&self, asked: &Asked, fault: &Fault) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let state = self.state.lock().unwrap();
        let path = asked.path.split('?').next().unwrap();
        let json =
            |text: String| (200, vec![("Content-Type".to_owned(), "application/json".to_owned())], text.into_bytes());
        if path == "/api/models/u/r/refs" {
            return json(format!(r#"{{"branches":[{{"name":"main","targetCommit":"{COMMIT}"}}]}}"#));
        }
        if path == format!("/api/models/u/r/tree/{COMMIT}") {
            let own = || state.files.iter().map(|(p, b)| (p.clone(), b.len() as u64, sha256(b))).collect();
            let files: Vec<_> = state.listed.clone().unwrap_or_else(own);
            let item = |(path, size, hash): &(String, u64, String)| {
                let lfs = serde_json::json!({"oid": hash, "size": size});
                serde_json::json!({"type": "file", "path": path, "size": size, "oid": "0".repeat(40), "lfs": lfs})
            };
            return json(serde_json::Value::from(files.iter().map(item).collect::<Vec<_>>()).to_string());
        }
        let name = path.rsplit_once(&format!("/resolve/{COMMIT}/")).or_else(|| path.rsplit_once("/file/"));
        let name = name.map(|(_, name)| percent_encoding::percent_decode_str(name).decode_utf8_lossy().into_owned());
        let Some(bytes) = name.as_ref().and_then(|name| state.files.get(name)) else {
            return (404, vec![("X-Error-Code".into(), "EntryNotFound".into())], b"Entry not found".to_vec());
        };
        if !asked.cdn && !state.direct {
            let headers = [
                ("X-Repo-Commit", COMMIT.to_owned()),
                ("X-Linked-Size", bytes.len().to_string()),
                ("X-Linked-Etag", format!("\"{}\"", sha256(bytes))),
                ("Location", format!("{}/file{}?signature=x", self.cdn, path.rsplit_once(COMMIT).unwrap().1)),
            ];
            return (302, headers.map(|(n, v)| (n.to_owned(), v)).to_vec(), b"Found".to_vec());
        }
        part_of(bytes, asked.range, fault)
    }
}

/// The answer that a file server gives to a request for a range.
fn part_of(bytes: &[u8], range: Option<(u64, u64)>, fault: &Fault) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let mut bytes = bytes.to_vec();
    if let Fault::Flip(at) = fault {
        bytes[*at as usize] ^= 1;
    }
    if let Fault::Body(text) = fault {
        return (200, Vec::new(), text.clone().into_bytes());
    }
    let size = bytes.len() as u64;
    match range.filter(|_| !matches!(fault, Fault::NoRange)) {
        None => (200, Vec::new(), bytes),
        Some((from, _)) if from >= size => (416, vec![("Content-Range".into(), format!("bytes */{size}"))], Vec::new()),
        Some((from, to)) => {
            let by = if let Fault::Offset(n) = fault { *n } else { 0 };
            let (from, to) = ((from + by).min(size - 1), (to + by).min(size));
            let headers = vec![("Content-Range".into(), format!("bytes {from}-{}/{size}", to - 1))];
            (206, headers, bytes[from as usize..to as usize].to_vec())
        }
    }
}

/// Reads the head of a request.
fn read(line: &TcpStream, cdn: bool) -> Option<Asked> {
    let mut lines = BufReader::new(line).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut asked = Asked { cdn, method, path, range: None, auth: None, sent: Arc::default() };
    for text in lines {
        let text = text.ok().filter(|t| !t.is_empty());
        let Some((name, value)) = text.as_ref().and_then(|t| t.split_once(": ")) else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => asked.auth = Some(value.to_owned()),
            "range" => {
                let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
                asked.range = Some((from.parse().ok()?, to.parse::<u64>().ok()? + 1));
            }
            _ => {}
        }
    }
    Some(asked)
}
