//! From what may be written to what is true: every value in its range, every combination possible.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use shared::clock;
use shared::config::{ConfigError, Problems, Span};

use super::file::{self, ClientAuth, CoordinatorKind, File, ProxyProtocol};
use super::{AccessLog, Admin, Limits, Listener, Settings};
use crate::logic::network::Network;
use crate::tls::{Clients, Loaded, Pair};

mod service;

/// More workers than this help nobody.
const THREADS_MOST: usize = 256;
/// hyper needs this much to read a head.
const HEADER_BYTES_LEAST: u64 = 8 << 10;
/// A head larger than this is an attack.
const HEADER_BYTES_MOST: u64 = 1 << 20;
/// A header map cannot hold more than 32768 names; far below that, no honest client sends more.
const HEADERS_MOST: usize = 1000;
/// The most streams that may be open at once on a connection.
const STREAMS_MOST: u32 = 10_000;
/// All of them are looked through at every handshake.
const CERTIFICATES_MOST: usize = 100;

/// Checks `file`, relative paths starting from the folder of `path`.
pub(super) fn settings(
    path: &Path,
    file: File,
    problems: Problems,
) -> Result<Settings, ConfigError> {
    let mut check = Check {
        folder: problems.folder().to_owned(),
        problems,
        notes: Vec::new(),
    };
    let syncd_token = check.token("syncd_token_file", file.syncd_token_file.as_deref());
    let settings = Settings {
        path: path.to_owned(),
        state_dir: check.state_dir(&file.state_dir),
        threads: check.threads(file.threads),
        drain_timeout: file.drain_timeout.0,
        log: file.log,
        access_log: file.access_log.map(|log| check.access_log(log)),
        listeners: check.listeners(file.listener),
        admin: check.admin(&file.admin),
        services: service::services(&mut check, file.service, syncd_token.as_deref()),
        syncd_token,
        notes: Vec::new(),
    };
    check.coordinator(&file.coordinator);
    check.admin_apart(&settings);
    let notes = check.notes;
    check.problems.finish(Settings { notes, ..settings })
}

struct Check {
    folder: PathBuf,
    problems: Problems,
    notes: Vec<String>,
}

impl Check {
    fn note(&mut self, key: &str, why: impl Display) {
        self.problems.note(key, why);
    }

    fn not_built(&mut self, key: &str, what: impl Display) {
        self.note(key, format!("{what} is not built yet in this version"));
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// A span that must not be nothing.
    fn span(&mut self, key: &str, span: Span) -> Duration {
        if span.0.is_zero() {
            self.note(key, "must be longer than nothing");
        }
        span.0
    }

    fn at_least_one<N: PartialEq + From<u8>>(&mut self, key: &str, number: N) -> N {
        if number == N::from(0) {
            self.note(key, "must be at least 1");
        }
        number
    }

    fn share(&mut self, key: &str, share: f64) -> f64 {
        if !(0.0..=1.0).contains(&share) {
            self.note(key, format!("{share} is not a share: 0 to 1 is allowed"));
        }
        share
    }

    fn token(&mut self, key: &str, path: Option<&Path>) -> Option<Arc<str>> {
        let path = self.path(path?);
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => self.note(
                key,
                format!("{} is empty; it must hold the token", path.display()),
            ),
            Ok(text) if !text.trim().bytes().all(|b| b.is_ascii_graphic()) => self.note(
                key,
                format!(
                    "{} holds characters that a header cannot carry; use printable ASCII without spaces",
                    path.display()
                ),
            ),
            Ok(text) => return Some(text.trim().into()),
            Err(error) => self.note(key, format!("read {}: {error}", path.display())),
        }
        None
    }

    fn state_dir(&mut self, path: &Path) -> PathBuf {
        let path = self.path(path);
        if path.as_os_str().is_empty() {
            self.note("state_dir", "must name a folder");
        } else if let Err(why) = usable(&path) {
            self.note("state_dir", why);
        }
        path
    }

    fn threads(&mut self, threads: usize) -> usize {
        if threads > THREADS_MOST {
            self.note(
                "threads",
                format!("{threads} is too many: at most {THREADS_MOST}, or 0 for one per core"),
            );
        }
        match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            some => some,
        }
    }

    fn access_log(&mut self, log: file::AccessLog) -> AccessLog {
        let path = (log.path != Path::new("-")).then(|| self.path(&log.path));
        if let Some(path) = &path {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            if path.is_dir() {
                self.note("access_log.path", format!("{} is a folder", path.display()));
            } else if folder.is_some_and(|folder| !folder.is_dir()) {
                self.note(
                    "access_log.path",
                    format!("the folder of {} does not exist", path.display()),
                );
            }
        }
        AccessLog {
            path,
            format: log.format,
        }
    }

    fn admin(&mut self, admin: &file::Admin) -> Admin {
        let bind = self.bind("admin.bind", &admin.bind);
        let token = self.token("admin.token_file", admin.token_file.as_deref());
        if admin.token_file.is_none() && !bind.ip().to_canonical().is_loopback() {
            self.note(
                "admin.token_file",
                format!("is required because {bind} can be reached from other machines; name a file that holds a token, or bind to 127.0.0.1"),
            );
        }
        Admin { bind, token }
    }

    fn admin_apart(&mut self, settings: &Settings) {
        let bind = settings.admin.bind;
        let same = |listener: &Listener| clash(listener.bind, bind);
        if settings.listeners.iter().any(same) {
            self.note(
                "admin.bind",
                format!("{bind} is also a listener's; give the admin interface a port of its own"),
            );
        }
    }

    fn coordinator(&mut self, coordinator: &file::Coordinator) {
        if coordinator.kind == CoordinatorKind::Etcd {
            return self.not_built("coordinator.kind", "\"etcd\"");
        }
        for (key, is_set) in [
            ("coordinator.endpoints", coordinator.endpoints.is_some()),
            ("coordinator.prefix", coordinator.prefix.is_some()),
            ("coordinator.lease_ttl", coordinator.lease_ttl.is_some()),
        ] {
            if is_set {
                self.note(key, "only belongs to kind = \"etcd\"; remove it");
            }
        }
    }

    fn bind(&mut self, key: &str, text: &str) -> SocketAddr {
        match text.parse() {
            Ok(address) => address,
            Err(_) => {
                self.note(
                    key,
                    format!(
                        "\"{text}\" is not ADDRESS:PORT, such as \"0.0.0.0:8080\" or \"[::]:8080\""
                    ),
                );
                SocketAddr::from(([127, 0, 0, 1], 0))
            }
        }
    }

    fn listeners(&mut self, listeners: Vec<file::Listener>) -> Vec<Listener> {
        if listeners.is_empty() {
            self.note(
                "listener",
                "there is none; add [[listener]] with bind = \"0.0.0.0:8080\"",
            );
        }
        let mut seen: Vec<SocketAddr> = Vec::new();
        let mut checked = Vec::new();
        for (n, listener) in listeners.into_iter().enumerate() {
            let key = format!("listener.{n}");
            let bind_key = format!("{key}.bind");
            let bind = self.bind(&bind_key, &listener.bind);
            if seen.iter().any(|other| clash(*other, bind)) {
                self.note(&bind_key, format!("{bind} is listened on twice"));
            }
            seen.push(bind);
            let introducers = self.introducers(&key, bind, &listener);
            let limits = self.limits(&format!("{key}.limits"), &listener.limits);
            let tls = self.certificates(&format!("{key}.tls"), &listener.tls);
            let clients = self.clients(&key, &listener);
            let marks: Vec<_> = tls.iter().map(Loaded::mark).collect();
            let authorities = clients.as_ref().map(Clients::mark);
            checked.push(Listener {
                bind,
                tls,
                clients,
                introducers,
                limits,
                form: format!("{listener:?} {marks:?} {authorities:?}"),
            });
        }
        checked
    }

    /// Who certifies clients. With authorities and no other word, every client needs a certificate.
    fn clients(&mut self, key: &str, listener: &file::Listener) -> Option<Clients> {
        let (ca, auth) = (listener.client_ca.as_deref(), listener.client_auth);
        let (ca, required) = match (ca, auth) {
            (None, None | Some(ClientAuth::Off)) => return None,
            (None, Some(ClientAuth::Optional | ClientAuth::Required)) => {
                let why = "needs client_ca, a PEM file with the certificates of those who certify clients";
                self.note(&format!("{key}.client_auth"), why);
                return None;
            }
            (Some(_), Some(ClientAuth::Off)) => {
                let why = "has no effect with client_auth = \"off\"; remove it, or choose \"optional\" or \"required\"";
                self.note(&format!("{key}.client_ca"), why);
                return None;
            }
            (Some(ca), Some(ClientAuth::Optional)) => (ca, false),
            (Some(ca), None | Some(ClientAuth::Required)) => (ca, true),
        };
        if listener.tls.is_empty() {
            let why = "clients show certificates over TLS only; add tls = [{ cert = \"site.pem\", key = \"site.key\" }]";
            self.note(&format!("{key}.client_ca"), why);
        }
        let read = Clients::read(self.path(ca), required);
        read.map_err(|error| self.note(&format!("{key}.client_ca"), error))
            .ok()
    }

    /// Who may speak the PROXY protocol, if it is spoken.
    fn introducers(
        &mut self,
        key: &str,
        bind: SocketAddr,
        listener: &file::Listener,
    ) -> Option<Vec<Network>> {
        let key = format!("{key}.proxy_protocol_from");
        let from = listener.proxy_protocol_from.as_deref();
        match (listener.proxy_protocol, from) {
            (ProxyProtocol::Off, None) => None,
            (ProxyProtocol::Off, Some(_)) => {
                self.note(
                    &key,
                    "only belongs to proxy_protocol = \"accept\"; remove it",
                );
                None
            }
            (ProxyProtocol::Accept, Some([])) => {
                self.note(&key, "is empty, so that nobody could connect; name the networks of the load balancers");
                None
            }
            (ProxyProtocol::Accept, Some(from)) => Some(self.networks(&key, from)),
            (ProxyProtocol::Accept, None) => {
                if !bind.ip().to_canonical().is_loopback() {
                    self.notes.push(format!(
                        "{bind}: whoever can connect may claim any client's address by the PROXY protocol; name the load balancers in proxy_protocol_from"
                    ));
                }
                Some(Vec::new())
            }
        }
    }

    fn networks(&mut self, key: &str, networks: &[String]) -> Vec<Network> {
        let mut checked = Vec::new();
        for (n, network) in networks.iter().enumerate() {
            match Network::parse(network) {
                Some(network) => checked.push(network),
                None => self.note(&format!("{key}.{n}"), no_network(network)),
            }
        }
        checked
    }

    fn certificates(&mut self, key: &str, certificates: &[file::Certificate]) -> Vec<Loaded> {
        if certificates.len() > CERTIFICATES_MOST {
            self.note(
                key,
                format!(
                    "{} certificates are too many: at most {CERTIFICATES_MOST}; one with a wildcard is for many hosts",
                    certificates.len()
                ),
            );
            return Vec::new();
        }
        let mut loaded = Vec::new();
        for (n, certificate) in certificates.iter().enumerate() {
            let pair = Pair {
                cert: self.path(&certificate.cert),
                key: self.path(&certificate.key),
            };
            match Loaded::read(pair) {
                Ok(one) => {
                    let now = i64::try_from(clock::unix_nanos() / 1_000_000_000);
                    self.notes.extend(one.worry(now.unwrap_or(i64::MAX)));
                    loaded.push(one);
                }
                Err(error) if error.is_about_key() => self.note(&format!("{key}.{n}.key"), error),
                Err(error) => self.note(&format!("{key}.{n}.cert"), error),
            }
        }
        loaded
    }

    fn limits(&mut self, key: &str, limits: &file::Limits) -> Limits {
        let sub = |name: &str| format!("{key}.{name}");
        let bytes = limits.max_header_bytes.0;
        if !(HEADER_BYTES_LEAST..=HEADER_BYTES_MOST).contains(&bytes) {
            self.note(
                &sub("max_header_bytes"),
                format!(
                    "{} is out of range: 8KiB to 1MiB is allowed",
                    limits.max_header_bytes
                ),
            );
        }
        if limits.max_headers > HEADERS_MOST {
            self.note(
                &sub("max_headers"),
                format!("{} is too many: at most {HEADERS_MOST}", limits.max_headers),
            );
        }
        if !(1..=STREAMS_MOST).contains(&limits.max_streams) {
            self.note(
                &sub("max_streams"),
                format!(
                    "{} is out of range: 1 to {STREAMS_MOST} is allowed",
                    limits.max_streams
                ),
            );
        }
        Limits {
            max_connections: self.at_least_one(&sub("max_connections"), limits.max_connections),
            header_timeout: self.span(&sub("header_timeout"), limits.header_timeout),
            idle_timeout: self.span(&sub("idle_timeout"), limits.idle_timeout),
            body_idle_timeout: self.span(&sub("body_idle_timeout"), limits.body_idle_timeout),
            min_body_rate: limits.min_body_rate.0,
            max_header_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            max_headers: self.at_least_one(&sub("max_headers"), limits.max_headers),
            max_streams: limits.max_streams,
        }
    }
}

fn no_network(text: &str) -> String {
    format!(
        "\"{text}\" is not a network: \"10.0.0.0/8\", \"fd00::/8\" or one address, no bits set behind the prefix"
    )
}

/// Whether two addresses cannot be listened on at once. Port 0 is a new port each time.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let any = |address: SocketAddr| address.ip().is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && (one.ip() == other.ip() || any(one) || any(other))
}

/// Whether files can be made in `folder`, which may have to be made itself. Leaves nothing behind.
fn usable(folder: &Path) -> Result<(), String> {
    if let Ok(kind) = fs::metadata(folder) {
        if !kind.is_dir() {
            return Err(format!("{} is not a folder", folder.display()));
        }
        let probe = folder.join(format!(".hotwarm-check-{}", std::process::id()));
        return fs::File::create_new(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|error| format!("write into {}: {error}", folder.display()));
    }
    let exists = |path: &&Path| path.as_os_str().is_empty() || path.exists();
    let parent = folder
        .ancestors()
        .skip(1)
        .find(exists)
        .unwrap_or_else(|| Path::new(""));
    let missing = folder
        .strip_prefix(parent)
        .ok()
        .and_then(|rest| rest.components().next());
    let Some(first) = missing else {
        return Err(format!("{} is not a folder name", folder.display()));
    };
    let made = parent.join(first);
    let result = fs::create_dir(&made).and_then(|()| fs::remove_dir(&made));
    result.map_err(|error| format!("create {}: {error}", folder.display()))
}

/// Notes every value that came before under the same name.
fn unique<'a>(check: &mut Check, what: &str, values: impl Iterator<Item = (String, &'a str)>) {
    let mut seen = BTreeMap::new();
    for (key, value) in values {
        if let Some(first) = seen.insert(value, key.clone()) {
            check.note(
                &key,
                format!("{what} \"{value}\" is there twice, first at {first}"),
            );
        }
    }
}
