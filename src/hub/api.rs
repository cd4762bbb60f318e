//! What a hub says about a repository: its commit, its files, and where a file's bytes are.
//!
//! ```text
//! GET  ENDPOINT/api/models/USER/REPO/refs                            the commit of main
//! GET  ENDPOINT/api/models/USER/REPO/tree/COMMIT?recursive=true      path, size, hash; more pages by the header Link
//! HEAD ENDPOINT/USER/REPO/resolve/COMMIT/PATH                        X-Linked-Etag, X-Linked-Size, mostly a redirect
//! ```
//!
//! The commit is asked for once and is in every later address, so that files of two commits never
//! mix.

use anyhow::{Result, anyhow};
use serde_json::Value;
use ureq::Body;
use ureq::http::Response;

use super::choose::HubFile;
use super::http::{Client, Trouble, location};
use super::names::{encoded, is_hex, is_safe_path, quoted};

/// The most bytes of one page of a listing; the hub's have 1000 files.
const MOST_LISTED: u64 = 16 << 20;
/// The most pages of a listing.
const MOST_PAGES: usize = 100;
/// The most bytes of a file, which keeps sums of them in range.
const MOST_BYTES: u64 = 1 << 46;
/// The most files of a repository.
const MOST_FILES: usize = 50_000;

/// The files of a repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<HubFile>,
}

/// Where a file's bytes are, and what the hub says about them there.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) url: String,
    /// The hash that names its blob, if the hub gives one.
    pub(super) hash: Option<String>,
}

/// Lists a repository: two requests, and one more for every further page.
pub(super) fn list(client: &Client, repo: &str) -> Result<Listing, Trouble> {
    let commit = commit(client, repo)?;
    let mut url = format!("{}/api/models/{repo}/tree/{commit}?recursive=true", client.endpoint);
    let mut files = Vec::new();
    for _ in 0..MOST_PAGES {
        let (page, next) = json(client, &url, repo)?;
        let list = page.as_array().ok_or_else(|| odd(client, repo, "its list of files is no list"))?;
        files.extend(list.iter().filter_map(file));
        if files.len() > MOST_FILES {
            return Err(odd(client, repo, "its list of files is longer than any model's"));
        }
        match next {
            None => return Ok(Listing { commit, files }),
            Some(next) => url = next,
        }
    }
    Err(odd(client, repo, "its list of files has no end"))
}

/// The commit of `main`, else of the first branch.
fn commit(client: &Client, repo: &str) -> Result<String, Trouble> {
    let (refs, _) = json(client, &format!("{}/api/models/{repo}/refs", client.endpoint), repo)?;
    let branches = refs["branches"].as_array().map(Vec::as_slice).unwrap_or_default();
    let commit = |b: &Value| b["targetCommit"].as_str().filter(|c| is_hex(c, 40)).map(str::to_owned);
    let main = branches.iter().find(|b| b["name"] == "main").and_then(commit);
    main.or_else(|| branches.iter().find_map(commit)).ok_or_else(|| odd(client, repo, "it names no commit"))
}

/// A JSON answer, and the next page's address.
fn json(client: &Client, url: &str, repo: &str) -> Result<(Value, Option<String>), Trouble> {
    let mut response = client.ask(false, url, None, false)?;
    if response.status().as_u16() != 200 {
        return Err(match location(url, &response)? {
            Some(to) => odd(client, repo, &format!("it redirects to {}", quoted(to.split('?').next().unwrap_or("")))),
            None => client.refused(url, response, repo),
        });
    }
    let next = match next_page(&response) {
        // A mirror may pass on the address of the hub that it mirrors.
        Some(next) if !client.is_own(&next) => match next.find("/api/models/") {
            Some(at) => Some(format!("{}{}", client.endpoint, &next[at..])),
            None => return Err(odd(client, repo, "its list goes on at an address that is none")),
        },
        next => next,
    };
    let body = response.body_mut().with_config().limit(MOST_LISTED).read_to_vec();
    let body = body.map_err(|e| Trouble::Again(format!("the list of files of {repo} broke off: {e}"), None))?;
    match serde_json::from_slice(&body) {
        Ok(json) => Ok((json, next)),
        Err(_) => Err(odd(client, repo, "its answer is no JSON")),
    }
}

fn odd(client: &Client, repo: &str, what: &str) -> Trouble {
    Trouble::Fatal(anyhow!("{repo}: {} does not answer like a hub: {what}; check HF_ENDPOINT", client.endpoint))
}

/// The address of the header `Link: <ADDRESS>; rel="next"`.
fn next_page(response: &Response<Body>) -> Option<String> {
    let link = response.headers().get("link")?.to_str().ok()?;
    let next = link.split(',').find(|l| l.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// A file of a listing; None for folders, and for names and lengths that cannot be.
fn file(item: &Value) -> Option<HubFile> {
    if item["type"] != "file" {
        return None;
    }
    let path = item["path"].as_str()?;
    if !is_safe_path(path) {
        tracing::warn!("the repository has a file whose name is left out, since it is unsafe: {:?}", quoted(path));
        return None;
    }
    let lfs = &item["lfs"];
    let size = lfs["size"].as_u64().or_else(|| item["size"].as_u64()).filter(|n| *n <= MOST_BYTES)?;
    let hash = if lfs.is_object() { &lfs["oid"] } else { &item["oid"] };
    let hash = hash.as_str().and_then(hash_of).unwrap_or_default();
    Some(HubFile { path: path.to_owned(), size, hash })
}

/// A hash out of a tag: `W/"HASH"`, `"HASH"`, `sha256:HASH`, in small letters.
fn hash_of(tag: &str) -> Option<String> {
    let tag = tag.trim().trim_start_matches("W/").trim_matches('"');
    let hash = tag.strip_prefix("sha256:").unwrap_or(tag).to_ascii_lowercase();
    (is_hex(&hash, 64) || is_hex(&hash, 40)).then_some(hash)
}

/// Finds out where a file's bytes are, and compares the reply's headers with the listing.
pub(super) fn locate(client: &Client, repo: &str, commit: &str, file: &HubFile) -> Result<Located, Trouble> {
    let url = format!("{}/{repo}/resolve/{commit}/{}", client.endpoint, encoded(&file.path));
    let what = format!("{repo}/{}", file.path);
    let response = client.ask(true, &url, None, false)?;
    let abroad = location(&url, &response)?;
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let status = response.status().as_u16();
    if matches!(status, 405 | 501) {
        return Ok(Located { url, hash: None }); // a mirror without HEAD
    }
    if status != 200 && abroad.is_none() {
        return Err(client.refused(&url, response, &what));
    }
    // The length and the tag of a redirect are those of its own body.
    let own = |name: &str| header(name).filter(|_| abroad.is_none());
    let size = header("x-linked-size").or_else(|| own("content-length")).and_then(|n| n.parse::<u64>().ok());
    let hash = header("x-linked-etag").or_else(|| own("etag")).and_then(hash_of);
    let differs = |found: &str, listed: &str| {
        let hub = &client.endpoint;
        Trouble::Fatal(anyhow!(
            "{what}: {hub} lists it with {listed} and serves it with {found}; it has changed, or {hub} is at fault: \
             try again"
        ))
    };
    match (size, &hash) {
        (Some(n), _) if n != file.size => Err(differs(&format!("{n} bytes"), &format!("{} bytes", file.size))),
        (_, Some(h)) if h.len() == file.hash.len() && *h != file.hash => {
            Err(differs(&format!("the hash {h}"), &format!("the hash {}", file.hash)))
        }
        _ => Ok(Located { url: abroad.unwrap_or(url), hash }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_the_hash_of_the_contents_and_no_unsafe_names() {
        let (sha256, sha1) = ("AB".repeat(32), "c".repeat(40));
        let lfs = serde_json::json!({"type": "file", "path": "a/m.gguf", "size": 7, "oid": sha1,
                                     "lfs": {"oid": sha256, "size": 9}});
        assert_eq!(file(&lfs).unwrap(), HubFile { path: "a/m.gguf".into(), size: 9, hash: "ab".repeat(32) });
        let small = serde_json::json!({"type": "file", "path": "m.gguf", "size": 7, "oid": sha1});
        assert_eq!(file(&small).unwrap().hash, sha1);
        for path in ["../m.gguf", "/etc/m.gguf", "a/../../m.gguf", "a\\..\\m.gguf"] {
            assert!(
                file(&serde_json::json!({"type": "file", "path": path, "size": 7, "oid": sha1})).is_none(),
                "{path}"
            );
        }
        let odd = serde_json::json!({"type": "file", "path": "m.gguf", "size": 7, "oid": "../../x"});
        assert_eq!(file(&odd).unwrap().hash, "");
        assert_eq!(hash_of("W/\"abc\""), None);
        assert_eq!(hash_of(&format!("\"sha256:{}\"", "0".repeat(64))), Some("0".repeat(64)));
    }
}
