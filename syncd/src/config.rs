//! syncd.toml: what may be written ([`File`]), and what is true ([`Settings`]).

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use shared::call::Peer;
use shared::config::{ConfigError, Problems, Size, Span, read};
use shared::telemetry::Log;

use crate::sqlite::Journal;

/// The log keeps this much, so that a standby that was away for a working day resumes from its position.
const RETENTION_BYTES: Size = Size(1 << 30);
/// And no longer than this, because a page-hash difference is cheaper than a day of increments.
const RETENTION_AGE: Span = Span::secs(24 * 3600);
/// A hook that takes longer would make a failover as slow as itself.
const HOOK_TIMEOUT: Span = Span::secs(10);

/// What is true.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name, the same as in hotwarm.toml.
    pub node: String,
    /// Where the door is opened.
    pub listen: SocketAddr,
    /// Where the other syncds find it.
    pub advertise: String,
    /// Everything that must not be forgotten.
    pub state_dir: PathBuf,
    /// The secret that callers show.
    pub token: Option<String>,
    /// How much history is kept, in bytes.
    pub retention_bytes: u64,
    /// And for how long.
    pub retention_age: Duration,
    /// Bytes per second for snapshots and resyncs; `None` is unlimited.
    pub max_rate: Option<u64>,
    /// What is replicated.
    pub sources: Vec<Source>,
    /// What is run when roles change.
    pub hooks: Hooks,
    /// Logs.
    pub log: Log,
}

/// One SQLite database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, the same on every node.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What to do about a database in rollback-journal mode.
    pub journal: Journal,
}

/// Commands for `sh -c`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// After this node was promoted, before requests come.
    pub promoted: Option<String>,
    /// After this node was fenced.
    pub fenced: Option<String>,
    /// How long either may take.
    pub timeout: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: String,
    listen: String,
    advertise: Option<String>,
    state_dir: PathBuf,
    tls: Option<toml_any::Any>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    retention: RetentionFile,
    max_rate: Option<Rate>,
    #[serde(default)]
    source: Vec<SourceFile>,
    #[serde(default)]
    hooks: HooksFile,
    #[serde(default)]
    log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionFile {
    bytes: Option<Size>,
    age: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFile {
    name: String,
    kind: Kind,
    path: Option<PathBuf>,
    journal: Option<JournalWord>,
    exclude: Option<Vec<String>>,
    url: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Sqlite,
    Files,
    Postgres,
    Mysql,
    Redis,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum JournalWord {
    Convert,
    RequireWal,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HooksFile {
    promoted: Option<String>,
    fenced: Option<String>,
    hook_timeout: Option<Span>,
}

/// `"off"` or a size per second.
#[derive(Debug)]
struct Rate(Option<u64>);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.as_str() {
            "off" => Ok(Self(None)),
            text => match shared::config::size(text) {
                Some(Size(bytes)) if bytes > 0 => Ok(Self(Some(bytes))),
                _ => Err(serde::de::Error::custom(format!(
                    "\"{text}\" is not a rate: expected \"off\" or bytes per second with a unit, such as \"50MiB\""
                ))),
            },
        }
    }
}

/// A value that is only looked at to say that it is not built yet.
mod toml_any {
    use serde::Deserialize;
    use serde::de::IgnoredAny;

    #[derive(Debug)]
    pub(super) struct Any;

    impl<'de> Deserialize<'de> for Any {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            IgnoredAny::deserialize(from).map(|_| Self)
        }
    }
}

/// Reads and checks `path`.
///
/// # Errors
/// Every fault, with file, line, column, key, and what is allowed.
pub fn load(path: &Path) -> Result<Settings, ConfigError> {
    let (file, mut problems) = read::<File>(path)?;
    let settings = check(file, &mut problems);
    match settings {
        Some(settings) => problems.finish(settings),
        None => Err(problems.finish(()).err().unwrap_or_else(|| ConfigError {
            path: path.into(),
            faults: Vec::new(),
        })),
    }
}

fn check(file: File, problems: &mut Problems) -> Option<Settings> {
    let folder = problems.folder().to_owned();
    if !is_name(&file.node) {
        problems.note("node", NAME_FORM);
    }
    let listen = file.listen.parse::<SocketAddr>().ok();
    if listen.is_none() {
        problems.note(
            "listen",
            format!(
                "\"{}\" is not an address and port, such as \"127.0.0.1:7001\"",
                file.listen
            ),
        );
    }
    let advertise = file
        .advertise
        .unwrap_or_else(|| format!("http://{}", file.listen));
    if let Err(error) = Peer::new(&advertise, None) {
        problems.note("advertise", error);
    } else if listen.is_some_and(|listen| listen.ip().is_unspecified())
        && advertise.contains(&file.listen)
    {
        problems.note("advertise", "missing: other nodes cannot call the address of `listen`; say http://HOST:PORT as they see it");
    }
    if file.tls.is_some() {
        problems.note("tls", "is not built yet in this version; use token_file, or keep syncd on the loopback address");
    }
    let token = file
        .token_file
        .as_ref()
        .and_then(|path| read_token(&folder.join(path), problems));
    if listen.is_some_and(|listen| !listen.ip().is_loopback()) && file.token_file.is_none() {
        problems.note("listen", "token_file is missing, which is required when syncd listens beyond the loopback address");
    }
    let state_dir = folder.join(&file.state_dir);
    if let Err(error) = fs::create_dir_all(&state_dir) {
        problems.note(
            "state_dir",
            format!(
                "{} cannot be made: {error}; create it and give it to this user",
                state_dir.display()
            ),
        );
    }
    let retention_bytes = file.retention.bytes.unwrap_or(RETENTION_BYTES).0;
    if retention_bytes < 1 << 20 {
        problems.note(
            "retention.bytes",
            "is too small to resume anything from; at least \"1MiB\"",
        );
    }
    let sources = check_sources(file.source, &folder, problems);
    Some(Settings {
        node: file.node,
        listen: listen?,
        advertise,
        state_dir,
        token,
        retention_bytes,
        retention_age: file.retention.age.unwrap_or(RETENTION_AGE).0,
        max_rate: file.max_rate.and_then(|rate| rate.0),
        sources,
        hooks: Hooks {
            promoted: file.hooks.promoted,
            fenced: file.hooks.fenced,
            timeout: file.hooks.hook_timeout.unwrap_or(HOOK_TIMEOUT).0,
        },
        log: file.log,
    })
}

fn check_sources(files: Vec<SourceFile>, folder: &Path, problems: &mut Problems) -> Vec<Source> {
    if files.is_empty() {
        problems.note(
            "source",
            "missing: name at least one [[source]] to replicate",
        );
    }
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    let mut sources = Vec::new();
    for (n, file) in files.into_iter().enumerate() {
        let key = |name: &str| format!("source.{n}.{name}");
        if !is_name(&file.name) {
            problems.note(&key("name"), NAME_FORM);
        }
        if !names.insert(file.name.clone()) {
            problems.note(
                &key("name"),
                format!(
                    "\"{}\" is used by another source; names must differ",
                    file.name
                ),
            );
        }
        if file.kind != Kind::Sqlite {
            problems.note(
                &key("kind"),
                "is not built yet in this version; \"sqlite\" is",
            );
            continue;
        }
        if file.exclude.is_some() {
            problems.note(&key("exclude"), "belongs to sources of kind \"files\"");
        }
        if file.url.is_some() {
            problems.note(
                &key("url"),
                "belongs to sources of an engine; a SQLite database has a `path`",
            );
        }
        let Some(path) = file.path.map(|path| folder.join(path)) else {
            problems.note(&key("path"), "missing: the database file");
            continue;
        };
        check_database_path(&path, &key("path"), problems);
        if !paths.insert(path.clone()) {
            problems.note(
                &key("path"),
                format!("{} is replicated by another source already", path.display()),
            );
        }
        let journal = match file.journal.unwrap_or(JournalWord::Convert) {
            JournalWord::Convert => Journal::Convert,
            JournalWord::RequireWal => Journal::RequireWal,
        };
        sources.push(Source {
            name: file.name,
            path,
            journal,
        });
    }
    sources
}

fn check_database_path(path: &Path, key: &str, problems: &mut Problems) {
    if path.is_dir() {
        problems.note(
            key,
            format!("{} is a folder; expected the database file", path.display()),
        );
    } else if !path
        .parent()
        .is_some_and(|folder| folder.as_os_str().is_empty() || folder.is_dir())
    {
        problems.note(
            key,
            format!(
                "the folder of {} does not exist; create it, or correct the path",
                path.display()
            ),
        );
    }
}

fn read_token(path: &Path, problems: &mut Problems) -> Option<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Ok(_) => {
            problems.note(
                "token_file",
                format!("{} is empty; write a secret into it", path.display()),
            );
            None
        }
        Err(error) => {
            problems.note("token_file", format!("read {}: {error}", path.display()));
            None
        }
    }
}

const NAME_FORM: &str =
    "must be 1 to 63 characters of a-z A-Z 0-9 - _ and ., the first a letter or digit";

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, text: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("syncd-config-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("syncd.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn faults(name: &str, text: &str) -> String {
        let path = scratch(name, text);
        let error = load(&path).unwrap_err().to_string();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        error.replace(&path.display().to_string(), "F")
    }

    const GOOD: &str = "node = \"a\"\nlisten = \"127.0.0.1:7001\"\nstate_dir = \"state\"\n\
                        [[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"app.db\"\n";

    #[test]
    fn a_minimal_file_is_enough() {
        let path = scratch("minimal", GOOD);
        let settings = load(&path).unwrap();
        assert_eq!(settings.advertise, "http://127.0.0.1:7001");
        assert_eq!(settings.sources[0].path, path.with_file_name("app.db"));
        assert_eq!(
            (settings.retention_bytes, settings.max_rate),
            (1 << 30, None)
        );
        assert!(path.with_file_name("state").is_dir());
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn unknown_keys_are_errors_with_their_place() {
        let error = faults(
            "unknown",
            &GOOD.replace("[[source]]", "nodes = 1\n[[source]]"),
        );
        assert!(error.starts_with("F:4:1: unknown field `nodes`"), "{error}");
    }

    #[test]
    fn what_is_not_built_yet_is_an_error_at_load() {
        let text = GOOD.replace("[[source]]", "tls = { cert = \"a\" }\n[[source]]\nname = \"up\"\nkind = \"files\"\npath = \"u\"\n[[source]]");
        let error = faults("unbuilt", &text);
        assert!(
            error.contains("F:4:7: tls: is not built yet")
                && error.contains("source.0.kind: is not built yet"),
            "{error}"
        );
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let text = "node = \"-\"\nlisten = \"0.0.0.0:7001\"\nstate_dir = \"state\"\n\
                    [[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"none/app.db\"\n\
                    [[source]]\nname = \"db\"\nkind = \"sqlite\"\n";
        let error = faults("all", text);
        for part in [
            "F:1:8: node:",
            "advertise:",
            "listen: token_file is missing",
            "source.0.path: the folder",
            "F:9:8: source.1.name:",
            "source.1.path: missing",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
