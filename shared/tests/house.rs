//! Which room of the house may use which (see ARCHITECTURE.md for why), and whether what the documents name is there.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms of the same crate that it may name.
const PROXY: &[(&str, &[&str])] = &[
    ("logic", &[]),
    ("exchange", &["logic"]),
    ("metrics", &["logic"]),
    ("steer", &["logic"]),
    ("tls", &[]),
    ("secret", &[]),
    ("supervisor", &[]),
    ("takeover", &[]),
    ("config", &["logic", "tls"]),
    (
        "layer",
        &["logic", "exchange", "metrics", "steer", "config", "secret"],
    ),
    (
        "upstream",
        &["logic", "exchange", "metrics", "steer", "tls", "config"],
    ),
    ("server", &["exchange", "metrics", "config", "tls"]),
    (
        "stack",
        &[
            "logic", "exchange", "layer", "upstream", "metrics", "steer", "config", "secret",
        ],
    ),
    (
        "worker",
        &[
            "logic", "exchange", "layer", "upstream", "server", "stack", "metrics", "steer",
            "config", "tls", "secret",
        ],
    ),
    (
        "trial",
        &[
            "logic", "exchange", "layer", "upstream", "server", "config", "tls",
        ],
    ),
    ("arbiter", &["logic", "takeover"]),
    (
        "control",
        &[
            "logic", "arbiter", "upstream", "worker", "metrics", "steer", "config",
        ],
    ),
    ("admin", &["logic", "control", "metrics", "steer", "config"]),
    (
        "app",
        &[
            "logic",
            "arbiter",
            "layer",
            "upstream",
            "server",
            "stack",
            "worker",
            "control",
            "admin",
            "metrics",
            "steer",
            "config",
            "secret",
            "supervisor",
            "takeover",
        ],
    ),
    ("cli", &["arbiter", "admin", "config", "app"]),
];
const SYNCD: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("logic", &["wire"]),
    ("sqlite", &["wire"]),
    ("log", &["wire"]),
    ("store", &["logic"]),
    ("config", &["logic", "sqlite"]),
    ("metrics", &["logic", "wire"]),
    ("hook", &[]),
    (
        "replica",
        &[
            "wire", "logic", "sqlite", "log", "diverged", "store", "metrics", "config",
        ],
    ),
    ("diverged", &["sqlite"]),
    (
        "node",
        &[
            "wire", "logic", "replica", "diverged", "hook", "store", "metrics", "config",
        ],
    ),
    (
        "link",
        &[
            "wire", "logic", "sqlite", "log", "replica", "node", "store", "metrics", "config",
        ],
    ),
    (
        "admin",
        &[
            "wire", "logic", "replica", "diverged", "node", "link", "store", "metrics", "config",
        ],
    ),
    (
        "app",
        &[
            "wire", "logic", "sqlite", "log", "replica", "node", "link", "store", "admin",
            "metrics", "config",
        ],
    ),
    (
        "cli",
        &["sqlite", "diverged", "store", "admin", "config", "app"],
    ),
];
const SHARED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("rng", &[]),
    ("backoff", &["rng"]),
    ("clock", &[]),
    ("config", &[]),
    ("durable", &[]),
    ("drain", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("api", &["model"]),
    ("admin", &["drain", "clock"]),
    ("call", &["api"]),
];

/// Rooms, and whom each may name.
type Rooms = &'static [(&'static str, &'static [&'static str])];

/// The crates whose rooms are on the plan.
const PLAN: [(&str, Rooms); 3] = [("proxy", PROXY), ("syncd", SYNCD), ("shared", SHARED)];

/// What each member may depend on of the others: the two programs meet in `shared` and over HTTP only.
const MEMBERS: &[(&str, &[&str])] = &[
    ("shared", &[]),
    ("proxy", &["shared"]),
    ("syncd", &["shared"]),
    ("model", &["shared", "proxy", "syncd"]),
    ("examples", &["shared"]),
];

/// Crates that must not come in, under any dependency: a second TLS stack, a second runtime, C code where Rust is at hand.
const BANNED: &[&str] = &[
    "openssl",
    "openssl-sys",
    "native-tls",
    "async-std",
    "smol",
    "reqwest",
];

/// What a pure room may not say.
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "tower",
    "async ",
    ".await",
    "std::fs",
    "std::env",
    "std::process",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime",
    "shared::clock",
    "spawn(",
    "HashMap",
    "HashSet",
    "println!",
];

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let mut wrong = Vec::new();
    for (name, rooms) in PLAN {
        let allowed: BTreeMap<_, BTreeSet<_>> = rooms
            .iter()
            .map(|(room, below)| (*room, below.iter().copied().collect()))
            .collect();
        for (room, path, code) in sources(name) {
            if room == "lib" || room == "main" {
                continue;
            }
            let Some(below) = allowed.get(room.as_str()) else {
                wrong.push(format!(
                    "{}: the room {room} is not on the plan",
                    path.display()
                ));
                continue;
            };
            for used in named_rooms(&code) {
                if used != room
                    && allowed.contains_key(used.as_str())
                    && !below.contains(used.as_str())
                {
                    wrong.push(format!("{}: {room} uses {used}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_do_no_io() {
    let mut wrong = Vec::new();
    for (name, pure) in [
        ("proxy", &["logic"][..]),
        ("syncd", &["logic", "wire"]),
        ("shared", &["model", "rng", "backoff", "api"]),
    ] {
        for (room, path, code) in sources(name) {
            if pure.contains(&room.as_str()) {
                let said = IMPURE.iter().filter(|word| code.contains(**word));
                wrong.extend(said.map(|word| format!("{}: says {word}", path.display())));
                let used = code.split("shared::").skip(1).map(first_name);
                let used = used
                    .filter(|name| !["model", "rng", "backoff", "api"].contains(&name.as_str()));
                wrong.extend(used.map(|name| format!("{}: uses shared::{name}", path.display())));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn members_depend_only_on_the_members_below_them() {
    let mut wrong = Vec::new();
    for (name, below) in MEMBERS {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for (other, _) in MEMBERS {
            let named = manifest.lines().any(|line| {
                line.starts_with(other) && line[other.len()..].starts_with(['.', ' ', '='])
            });
            if named && !below.contains(other) {
                wrong.push(format!("{name}/Cargo.toml depends on {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_lock_file_brings_in_nothing_that_is_banned() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let names: BTreeSet<_> = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = \""))
        .map(|name| name.trim_end_matches('"'))
        .collect();
    let mut wrong: Vec<_> = BANNED
        .iter()
        .filter(|name| names.contains(**name))
        .map(|name| format!("Cargo.lock: {name} is banned"))
        .collect();
    let sources = lock
        .lines()
        .filter(|line| line.starts_with("source = \"git+"));
    wrong.extend(sources.map(|line| format!("Cargo.lock: not from a registry: {line}")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(
        names.len() < 250,
        "{} packages: has something large crept in?",
        names.len()
    );
}

#[test]
fn the_map_shows_every_room() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut wrong = Vec::new();
    for (name, rooms) in PLAN {
        let heading = format!("\n{name}/ ");
        let map = page.split(&heading).nth(1).unwrap_or_default();
        let map = map.split("\n\n").next().unwrap_or_default();
        let words: BTreeSet<_> = map.split(|c: char| !c.is_alphanumeric()).collect();
        let missing = rooms.iter().filter(|(room, _)| !words.contains(room));
        wrong.extend(missing.map(|(room, _)| format!("{name}: {room}")));
    }
    assert!(
        wrong.is_empty(),
        "ARCHITECTURE.md does not show\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_promise_names_tests_and_every_test_that_it_names_exists() {
    let page = fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let tests = tests();
    let mut wrong = Vec::new();
    for promise in 1..=8 {
        let heading = format!("\n## P{promise} ");
        let chapter = page.split(&heading).nth(1).unwrap_or_default();
        let chapter = chapter.split("\n## ").next().unwrap_or_default();
        let named: Vec<_> = quoted(chapter).filter(|word| is_test_name(word)).collect();
        if named.is_empty() {
            wrong.push(format!("P{promise} names no test"));
        }
        let missing = named.iter().filter(|name| !tests.contains(**name));
        wrong.extend(missing.map(|name| format!("P{promise} names {name}, which is no test")));
    }
    assert!(wrong.is_empty(), "docs/promises.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_page_that_the_documents_link_to_exists() {
    let mut wrong = Vec::new();
    let mut pages = vec![
        root().join("README.md"),
        root().join("ARCHITECTURE.md"),
        root().join("CHANGELOG.md"),
    ];
    pages.extend(files(&root().join("docs"), "md"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| {
            let link = rest.split(')').next()?.split('#').next()?;
            (!link.is_empty() && !link.contains("://")).then_some(link)
        });
        let folder = page.parent().unwrap();
        let broken = links.filter(|link| !folder.join(link).exists());
        wrong.extend(broken.map(|link| format!("{}: {link}", page.display())));
    }
    assert!(wrong.is_empty(), "broken links:\n{}", wrong.join("\n"));
}

/// Returns the folder of the whole workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns every source file of a crate with its room and its code, without comments and tests.
fn sources(name: &str) -> Vec<(String, PathBuf, String)> {
    let root = root().join(name).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // Declared under `#[cfg(test)]` by the module above it.
            if path.file_stem().is_some_and(|stem| stem == "tests") {
                continue;
            }
            let first = path
                .strip_prefix(&root)
                .unwrap()
                .components()
                .next()
                .unwrap();
            let room = Path::new(first.as_os_str())
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n");
            found.push((room, path, code));
        }
    }
    assert!(!found.is_empty(), "no sources under {}", root.display());
    found
}

/// Returns the names of all tests of all members.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (member, _) in MEMBERS {
        for path in files(&root().join(member), "rs") {
            let text = fs::read_to_string(path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                    names.insert(first_name(rest));
                    is_test = false;
                }
            }
        }
    }
    assert!(!names.is_empty(), "no tests were found");
    names
}

/// Returns every file below `folder` whose name ends in `.ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == ending) {
                found.push(path);
            }
        }
    }
    found
}

/// Returns what stands between pairs of backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether it looks like the name of a function of several words.
fn is_test_name(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.contains('_') && word.chars().all(plain)
}

/// Returns the first name of every path that starts at `crate::`, in braces or not.
fn named_rooms(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(first_name(rest));
            continue;
        };
        let (mut depth, mut start) = (0_u32, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    names.insert(first_name(&group[start..at]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    names.insert(first_name(&group[start..at]));
                    start = at + 1;
                }
                _ => (),
            }
        }
    }
    names
}

/// Returns the identifier that the text starts with.
fn first_name(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}
