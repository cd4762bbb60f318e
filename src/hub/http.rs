//! Requests to a hub and to the servers that it sends us to, and what each failure means.
//!
//! - The token goes to the endpoint's scheme, host and port alone, and never over an unencrypted
//!   line to another machine.
//! - Redirects are followed here, since the rule above has to hold at each step.
//! - Silence ends a read (`HubLimits::silence`); a whole body may take as long as it does.
//! - `Accept-Encoding: identity`, since a server that compresses ignores ranges (huggingface_hub
//!   #3778).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::events::{FetchStopped, HubLimits};
use super::names::quoted;

/// How many redirects one request may take.
const MOST_REDIRECTS: usize = 6;
/// The longest time that a server may ask to wait for; the hub counts in windows of five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(900);

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may work later: after this time, if the server names one.
    Again(String, Option<Duration>),
    /// No server answered at all.
    Unreachable(String),
    /// The address was signed for a time that is over, or for somebody else.
    Expired(String),
    /// The server sends the whole file only.
    NoRanges,
    /// It will not work.
    Fatal(anyhow::Error),
}

impl From<Trouble> for anyhow::Error {
    fn from(trouble: Trouble) -> anyhow::Error {
        match trouble {
            Trouble::Again(why, _) | Trouble::Unreachable(why) | Trouble::Expired(why) => anyhow!(why),
            Trouble::NoRanges => anyhow!("the server ignores ranges"),
            Trouble::Fatal(e) => e,
        }
    }
}

/// A client of one hub.
pub(super) struct Client {
    agent: Agent,
    /// Scheme, host, port and path, without a slash at the end.
    pub(super) endpoint: String,
    token: Option<String>,
    pub(super) limits: HubLimits,
}

impl Client {
    /// A client of the hub at `endpoint`.
    ///
    /// # Errors
    /// If the endpoint is no address, the token cannot be one, or `SSL_CERT_FILE` names a file
    /// without certificates.
    pub(super) fn new(endpoint: &str, token: Option<&str>, limits: &HubLimits) -> Result<Client> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let uri = parse(endpoint);
        let Some(uri) = uri.filter(|u| u.query().is_none() && u.authority().is_some_and(|a| !a.as_str().contains('@')))
        else {
            bail!("HF_ENDPOINT {endpoint:?} is no address of a hub, expected one like https://huggingface.co");
        };
        let token = token.map(str::trim).filter(|t| !t.is_empty());
        if token.is_some_and(|t| t.len() > 1024 || !t.bytes().all(|b| b.is_ascii_graphic())) {
            bail!(
                "the token for the hub has blanks or characters that no token has: copy it again (HF_TOKEN, --hf-token)"
            );
        }
        let private = uri.scheme_str() == Some("https") || is_this_machine(&uri);
        if token.is_some() && !private {
            tracing::warn!("the token is not sent to {endpoint}, which is not encrypted (https)");
        }
        let silence = Some(limits.silence);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_per_read(silence)
            .timeout_per_write(silence)
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .max_idle_connections_per_host(limits.connections)
            .tls_config(tls()?)
            .build();
        Ok(Client {
            agent: config.new_agent(),
            endpoint: endpoint.to_owned(),
            token: token.filter(|_| private).map(str::to_owned),
            limits: limits.clone(),
        })
    }

    /// Asks for an address, with redirects inside the hub followed; `range` is bytes from and up
    /// to, excluding. The response may be a redirect to another host ([`location`]) where `abroad`
    /// is false.
    pub(super) fn ask(&self, head: bool, url: &str, range: Option<(u64, u64)>, abroad: bool) -> Ask {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let response = self.send(head, &url, range)?;
            let Some(next) = location(&url, &response)? else { return Ok(response) };
            if !abroad && !self.is_own(&next) {
                return Ok(response);
            }
            url = next;
        }
        Err(Trouble::Fatal(anyhow!("{} redirects in a loop", shown(&url))))
    }

    /// Whether an address is of the endpoint's scheme, host and port.
    pub(super) fn is_own(&self, url: &str) -> bool {
        let own = parse(&self.endpoint).map(|u| origin(&u));
        own.is_some() && own == parse(url).map(|u| origin(&u))
    }

    fn send(&self, head: bool, url: &str, range: Option<(u64, u64)>) -> Ask {
        let mut request = if head { self.agent.head(url) } else { self.agent.get(url) };
        if let Some((from, to)) = range {
            request = request.header("Range", format!("bytes={from}-{}", to - 1));
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        // A proxy cannot reach this machine's own servers.
        let direct = parse(url).is_some_and(|u| is_this_machine(&u));
        let sent = if direct { request.config().proxy(None).build().call() } else { request.call() };
        sent.map_err(|e| self.failed(url, &e))
    }

    /// What it means that a request got no answer.
    fn failed(&self, url: &str, e: &ureq::Error) -> Trouble {
        let server = parse(url).map_or_else(|| shown(url), |u| u.host().unwrap_or_default().to_owned());
        match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Trouble::Fatal(anyhow!("{}: {e}", shown(url))),
            ureq::Error::HostNotFound => Trouble::Unreachable(format!("cannot find the host {server}")),
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                Trouble::Unreachable(format!("{server} cannot be reached"))
            }
            ureq::Error::Timeout(_) => {
                Trouble::Again(format!("{server} did not answer for {}", seconds(self.limits.silence)), None)
            }
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => Trouble::Fatal(anyhow!(
                "{server}: no secure connection ({e}); SSL_CERT_FILE names further certificates"
            )),
            ureq::Error::Io(e) => Trouble::Unreachable(format!("cannot reach {server}: {e}")),
            _ => Trouble::Unreachable(format!("cannot reach {server}: {e}")),
        }
    }

    /// Tries until it works, a server says that it never will, or it failed too often. `note` is
    /// told of each wait.
    pub(super) fn patiently<T>(
        &self,
        stop: &AtomicBool,
        note: &dyn Fn(String),
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let (why, wait) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Trouble::Again(why, wait)) => (why, wait),
                Err(Trouble::Unreachable(why)) => (why, None),
                Err(other) => return Err(other.into()),
            };
            failures += 1;
            self.pause(failures, &why, wait, stop, note)?;
        }
    }

    /// Waits after a failure, the `failures`th in a row.
    ///
    /// # Errors
    /// If it was one too many, or `stop` was raised.
    pub(super) fn pause(
        &self,
        failures: u32,
        why: &str,
        wait: Option<Duration>,
        stop: &AtomicBool,
        note: &dyn Fn(String),
    ) -> Result<()> {
        if failures > self.limits.retries {
            bail!("{why}, {failures} times in a row; the same command goes on from here later");
        }
        let wait = wait.unwrap_or(self.limits.pause * (1 << (failures - 1).min(5)));
        if wait > LONGEST_WAIT {
            bail!("{why}: the server asks to wait for {}", seconds(wait));
        }
        note(format!("{why}; next attempt in {}", seconds(wait)));
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if stop.load(Ordering::SeqCst) {
                return Err(FetchStopped.into());
            }
            std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// What a status other than success means; `what` is the repository or file that was asked for.
    pub(super) fn refused(&self, url: &str, mut response: Response<Body>, what: &str) -> Trouble {
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(quoted);
        let (code, message) = (header("x-error-code").unwrap_or_default(), header("x-error-message"));
        let wait = wait_of(response.headers());
        let body = response.body_mut().with_config().limit(4096).lossy_utf8(true).read_to_string().unwrap_or_default();
        let said = message.unwrap_or_else(|| error_of(&body));
        let said = if said.is_empty() { String::new() } else { format!(" (the server says: {said})") };
        let own = self.is_own(url);
        let fatal = |text: String| Trouble::Fatal(anyhow!("{text}{said}"));
        let page = format!("{}/{}", self.endpoint, what.splitn(3, '/').take(2).collect::<Vec<_>>().join("/"));
        let token = if self.token.is_some() { "the token" } else { "HF_TOKEN or --hf-token" };
        match status {
            401 | 403 if !own => Trouble::Expired(format!("the download server refused {what}: status {status}{said}")),
            401 | 403 if code == "GatedRepo" => fatal(format!(
                "{what} is gated: ask for access at {page}, then give a token that has it ({token}); status {status}"
            )),
            401 if self.token.is_none() => fatal(format!(
                "{what}: status 401, so it does not exist, is private, or is gated: check the name, or give a token \
                 with access (HF_TOKEN, --hf-token); access is asked for at {page}"
            )),
            401 => {
                fatal(format!("{what}: status 401, the hub does not accept the token, or there is no such repository"))
            }
            403 => fatal(format!("{what}: status 403, {token} has no access to it: ask for access at {page}")),
            404 if code == "RepoNotFound" => fatal(format!("{what}: there is no such repository at {}", self.endpoint)),
            404 => fatal(format!("{what}: not found at {} (status 404)", self.endpoint)),
            429 => Trouble::Again(format!("the server limits requests (status 429){said}"), wait),
            408 | 500 | 502..=504 => Trouble::Again(format!("the server has a problem (status {status}){said}"), wait),
            _ => fatal(format!("{what}: the server answered with status {status}")),
        }
    }
}

/// An answer.
type Ask = Result<Response<Body>, Trouble>;

/// Where a response redirects to, as a whole address; None if it is no redirect.
pub(super) fn location(from: &str, response: &Response<Body>) -> Result<Option<String>, Trouble> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let to = response.headers().get("location").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let base = parse(from);
    let whole = match base.as_ref().and_then(|b| Some((b.scheme_str()?, b.authority()?.as_str()))) {
        Some((scheme, authority)) if to.starts_with('/') && !to.starts_with("//") => {
            format!("{scheme}://{authority}{to}")
        }
        Some((scheme, _)) if to.starts_with("//") => format!("{scheme}:{to}"),
        _ => to.to_owned(),
    };
    match parse(&whole) {
        None => Err(Trouble::Fatal(anyhow!("{} redirects to {:?}, which is no address", shown(from), quoted(to)))),
        Some(to) if to.scheme_str() == Some("http") && base.is_some_and(|b| b.scheme_str() == Some("https")) => {
            Err(Trouble::Fatal(anyhow!("{} redirects to an unencrypted address, {}", shown(from), shown(&whole))))
        }
        Some(_) => Ok(Some(whole)),
    }
}

/// An address of a web server, if this is one.
fn parse(url: &str) -> Option<Uri> {
    url.parse::<Uri>().ok().filter(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some())
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> (String, String, u16) {
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    (scheme, uri.host().unwrap_or_default().to_ascii_lowercase(), port)
}

/// Whether an address is of a server on this machine.
fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An address without its query, which may hold a signature.
fn shown(url: &str) -> String {
    quoted(url.split('?').next().unwrap_or_default())
}

/// How long the server asks to wait: the rest of the rate window if that is used up, else
/// Retry-After.
fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let of_window = || {
        // RateLimit: "resolvers";r=0;t=55
        let fields: Vec<&str> = text("ratelimit")?.split(';').map(str::trim).collect();
        let field = |name: &str| fields.iter().find_map(|f| f.strip_prefix(name)?.parse::<u64>().ok());
        (field("r=")? == 0).then_some(field("t=")? + 1)
    };
    let seconds = of_window().or_else(|| text("retry-after")?.trim().parse().ok())?;
    Some(Duration::from_secs(seconds))
}

/// What an error's body says: the field `error` of JSON, the element `Message` of XML (file
/// servers), nothing of a web page.
fn error_of(body: &str) -> String {
    let message = || Some(body.split_once("<Message>")?.1.split_once("</Message>")?.0);
    match serde_json::from_str::<serde_json::Value>(body) {
        Ok(json) => quoted(json["error"].as_str().unwrap_or_default()),
        Err(_) if message().is_some() => quoted(message().unwrap_or_default()),
        Err(_) if body.trim_start().starts_with('<') => String::new(),
        Err(_) => quoted(body),
    }
}

/// A time in words.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{:.1} s", s),
        s => format!("{s:.0} s"),
    }
}

/// Whom to trust: the certificates of `SSL_CERT_FILE` if it is set (a company's proxy has its own),
/// else Mozilla's.
fn tls() -> Result<TlsConfig> {
    let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|v| !v.is_empty()) else {
        return Ok(TlsConfig::builder().root_certs(RootCerts::WebPki).build());
    };
    let path = std::path::Path::new(&path);
    let pem = std::fs::read(path).map_err(|e| anyhow!("SSL_CERT_FILE {}: {e}", path.display()))?;
    let certificate = |item| match item {
        Ok(PemItem::Certificate(c)) => Some(c),
        _ => None,
    };
    let list: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem).filter_map(certificate).collect();
    if list.is_empty() {
        bail!("SSL_CERT_FILE {} has no certificate", path.display());
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&list)).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_belongs_to_one_scheme_host_and_port() {
        let client = Client::new("https://huggingface.co/", Some("hf_x"), &HubLimits::default()).unwrap();
        for own in ["https://huggingface.co/a", "https://HUGGINGFACE.co:443/b?c"] {
            assert!(client.is_own(own), "{own}");
        }
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co:8443/a",
            "https://huggingface.co.evil.org/a",
            "https://cdn-lfs.huggingface.co/a",
            "https://huggingface.co@evil.org/a",
            "ftp://huggingface.co/a",
        ] {
            assert!(!client.is_own(other), "{other}");
        }
        assert!(Client::new("https://x.org", Some("hf a"), &HubLimits::default()).is_err());
        for bad in ["huggingface.co", "ftp://x.org", "https://u:p@x.org", "https://x.org/?a"] {
            assert!(Client::new(bad, None, &HubLimits::default()).is_err(), "{bad}");
        }
        let plain = Client::new("http://mirror.local", Some("hf_x"), &HubLimits::default()).unwrap();
        assert!(plain.token.is_none(), "no token over an unencrypted line");
    }

    #[test]
    fn the_time_to_wait_is_the_servers() {
        let wait = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            wait_of(&headers).map(|w| w.as_secs())
        };
        assert_eq!(wait("ratelimit", "\"resolvers\";r=0;t=55"), Some(56));
        assert_eq!(wait("ratelimit", "\"resolvers\";r=12;t=55"), None);
        assert_eq!(wait("retry-after", "7"), Some(7));
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
