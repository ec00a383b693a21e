//! Configuration, state and databases that are wrong: a clear error that names the thing and what to do, no panic, nothing lost.
//!
//! Each case is the good configuration with one thing changed, so that nothing else can be the reason for the refusal; the good
//! one is tried as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guard::{Guard, MARK};
use crate::ports;
use crate::process::{Process, Spec, tail};
use crate::programs::Programs;
use crate::scenario::Report;
use crate::scratch::Scratch;
use crate::trouble::Trouble;

/// How long a program may take to refuse.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// Which program is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Hotwarm,
    Syncd,
}

/// One thing that is wrong, and what must be said about it.
struct Case {
    name: &'static str,
    program: Program,
    verb: &'static str,
    change: Change,
    codes: &'static [i32],
    words: &'static [&'static str],
}

/// What is changed.
#[derive(Clone, Copy)]
enum Change {
    /// Nothing.
    None,
    /// The first text of the configuration that is equal to this becomes that.
    Text(&'static str, &'static str),
    /// This is added at the end of the configuration.
    Added(&'static str),
    /// There is no configuration file.
    NoFile,
    /// Something is done to the surroundings first.
    Before(fn(&Surroundings) -> std::io::Result<()>),
}

/// Where a case is tried.
struct Surroundings {
    programs: Programs,
    folder: PathBuf,
    base_port: u16,
    mark: String,
}

const HOTWARM: &str = r#"state_dir = "FOLDER/state"
drain_timeout = "1s"
[admin]
bind = "127.0.0.1:PORT1"
[[listener]]
bind = "127.0.0.1:PORT2"
[[service]]
name  = "shop"
hosts = ["*"]
mode  = "hot-warm"
[[service.node]]
name  = "a"
url   = "http://127.0.0.1:PORT3"
syncd = "http://127.0.0.1:PORT4"
[[service.node]]
name  = "b"
url   = "http://127.0.0.1:PORT5"
syncd = "http://127.0.0.1:PORT6"
[service.failover]
durability = "standby-ack"
"#;

const SYNCD: &str = r#"node = "a"
listen = "127.0.0.1:PORT1"
advertise = "http://127.0.0.1:PORT1"
state_dir = "FOLDER/state"
[[source]]
name = "db"
kind = "sqlite"
path = "FOLDER/shop.db"
"#;

const fn hotwarm(name: &'static str, change: Change, words: &'static [&'static str]) -> Case {
    Case {
        name,
        program: Program::Hotwarm,
        verb: "check",
        change,
        codes: &[2],
        words,
    }
}

const fn syncd(name: &'static str, change: Change, words: &'static [&'static str]) -> Case {
    Case {
        program: Program::Syncd,
        ..hotwarm(name, change, words)
    }
}

const fn good(name: &'static str, program: Program) -> Case {
    Case {
        codes: &[0],
        program,
        ..hotwarm(name, Change::None, &[])
    }
}

/// The same, found out only when it runs: that is a failure of the operation, or of the configuration if it is seen early.
const fn running(case: Case) -> Case {
    Case {
        verb: "run",
        codes: &[1, 2],
        ..case
    }
}

/// Everything that is tried.
const CASES: &[Case] = &[
    good("a good hotwarm.toml", Program::Hotwarm),
    hotwarm("no file", Change::NoFile, &["hotwarm.toml"]),
    hotwarm(
        "not TOML",
        Change::Text("[admin]", "[admin"),
        &["hotwarm.toml:3:"],
    ),
    hotwarm(
        "an unknown key",
        Change::Text("drain_timeout", "drain_time"),
        &["hotwarm.toml:2:1", "drain_time", "drain_timeout"],
    ),
    hotwarm(
        "an unknown key deep inside",
        Change::Added("max_lagg = \"1s\"\n"),
        &["hotwarm.toml:21:1", "max_lagg", "max_lag"],
    ),
    hotwarm(
        "a bare number",
        Change::Text("drain_timeout = \"1s\"", "drain_timeout = 1"),
        &["hotwarm.toml:2:", "500ms"],
    ),
    hotwarm(
        "an unknown word",
        Change::Text("\"standby-ack\"", "\"sometimes\""),
        &["hotwarm.toml:20:", "sometimes", "async", "standby-ack"],
    ),
    hotwarm(
        "a connect timeout longer than requests are held",
        Change::Added("[service.timeouts]\nconnect = \"60s\"\n"),
        &["hotwarm.toml:22:", "connect", "max_wait"],
    ),
    hotwarm(
        "two services for one host",
        Change::Added(
            "[[service]]\nname = \"other\"\nhosts = [\"*\"]\nmode = \"hot-warm\"\n[[service.node]]\nname = \"c\"\nurl = \"http://127.0.0.1:9\"\n",
        ),
        &["hotwarm.toml:23:", "hosts", "service.0"],
    ),
    hotwarm(
        "two nodes of one name",
        Change::Text("name  = \"b\"", "name  = \"a\""),
        &["hotwarm.toml:16:", "name", "\"a\""],
    ),
    hotwarm(
        "standby-ack with nothing to replicate",
        Change::Text(
            "syncd = \"http://127.0.0.1:PORT4\"\n[[service.node]]\nname  = \"b\"\nurl   = \"http://127.0.0.1:PORT5\"\nsyncd = \"http://127.0.0.1:PORT6\"",
            "[[service.node]]\nname  = \"b\"\nurl   = \"http://127.0.0.1:PORT5\"",
        ),
        &["durability", "syncd"],
    ),
    hotwarm(
        "a URL that is none",
        Change::Text("http://127.0.0.1:PORT3", "127.0.0.1"),
        &["hotwarm.toml:13:", "url", "http://"],
    ),
    hotwarm(
        "an admin door for everybody",
        Change::Text("127.0.0.1:PORT1", "0.0.0.0:PORT1"),
        &["admin", "token_file"],
    ),
    hotwarm(
        "replication without a primary",
        Change::Text("\"hot-warm\"", "\"hot-hot\""),
        &["hotwarm.toml:", "syncd", "hot-hot"],
    ),
    running(hotwarm(
        "hotwarm's port in use",
        Change::Before(occupy_second),
        &["127.0.0.1:PORT2", "in use"],
    )),
    running(hotwarm(
        "hotwarm's state_dir is a file",
        Change::Before(file_for_state),
        &["FOLDER/state"],
    )),
    good("a good syncd.toml", Program::Syncd),
    syncd("no file", Change::NoFile, &["syncd.toml"]),
    syncd(
        "an unknown key",
        Change::Text("advertise", "advertize"),
        &["syncd.toml:3:1", "advertize", "advertise"],
    ),
    syncd(
        "an unknown kind",
        Change::Text("\"sqlite\"", "\"oracle\""),
        &["syncd.toml:7:", "oracle", "sqlite"],
    ),
    syncd(
        "two sources of one name",
        Change::Added("[[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"FOLDER/other.db\"\n"),
        &["syncd.toml:10:", "name", "db"],
    ),
    syncd(
        "two sources of one file",
        Change::Added("[[source]]\nname = \"db2\"\nkind = \"sqlite\"\npath = \"FOLDER/shop.db\"\n"),
        &["syncd.toml:12:", "path", "shop.db"],
    ),
    syncd(
        "a door for everybody without a secret",
        Change::Text("listen = \"127.0.0.1:PORT1\"", "listen = \"0.0.0.0:PORT1\""),
        &["syncd.toml:2:", "token_file"],
    ),
    running(syncd(
        "syncd's port in use",
        Change::Before(occupy_first),
        &["127.0.0.1:PORT1", "in use"],
    )),
    running(syncd(
        "syncd's state_dir is a file",
        Change::Before(file_for_state),
        &["FOLDER/state"],
    )),
];

/// Tries all of it. `tell` hears of every case.
///
/// # Errors
/// It could not be carried out.
pub fn run(mut tell: impl FnMut(&str)) -> Result<Report, Trouble> {
    let mut report = Report::new("bad input", 0);
    let programs = Programs::find()?;
    let guard = Guard::new(&[])?;
    for case in CASES {
        let scratch = Scratch::new("bad-input")?;
        let surroundings = Surroundings {
            programs: programs.clone(),
            folder: scratch.path().to_owned(),
            base_port: ports::free(6)?,
            mark: guard.mark().to_owned(),
        };
        let found = surroundings.attempt(case)?;
        tell(&format!("{}: {}", case.name, found.said.trim()));
        report.broken.extend(surroundings.judge(case, &found));
    }
    report.count("cases", CASES.len());
    Ok(report)
}

/// What a program did.
struct Found {
    code: Option<i32>,
    said: String,
}

impl Surroundings {
    fn attempt(&self, case: &Case) -> Result<Found, Trouble> {
        let (program, name, text) = match case.program {
            Program::Hotwarm => (&self.programs.hotwarm, "hotwarm.toml", HOTWARM),
            Program::Syncd => (&self.programs.syncd, "syncd.toml", SYNCD),
        };
        let config = self.folder.join(name);
        let preparing = || format!("prepare the case {}", case.name);
        let text = match case.change {
            Change::Text(old, new) if text.contains(old) => text.replacen(old, new, 1),
            Change::Text(old, _) => {
                return Err(Trouble::Nonsense(format!(
                    "{}: no {old} in {name}",
                    case.name
                )));
            }
            Change::Added(more) => format!("{text}{more}"),
            Change::None | Change::NoFile | Change::Before(_) => text.to_owned(),
        };
        if !matches!(case.change, Change::NoFile) {
            fs::write(&config, self.fill(&text)).map_err(Trouble::system(preparing()))?;
        }
        if let Change::Before(prepare) = case.change {
            prepare(self).map_err(Trouble::system(preparing()))?;
        }
        Self::end_of(self.spec(program, case.verb, &config))
    }

    fn end_of(spec: Spec) -> Result<Found, Trouble> {
        let log = spec.log.clone();
        let mut process = Process::new(spec);
        process.start()?;
        let status = process.wait(REFUSED_WITHIN);
        process.kill();
        Ok(Found {
            code: status.and_then(|status| status.code()),
            said: tail(&log),
        })
    }

    fn spec(&self, program: &Path, verb: &str, config: &Path) -> Spec {
        Spec {
            name: program.display().to_string(),
            program: program.to_owned(),
            args: [verb, "--config", &config.display().to_string()]
                .map(str::to_owned)
                .into(),
            env: vec![(MARK.to_owned(), self.mark.clone())],
            folder: self.folder.clone(),
            log: self.folder.join("said"),
        }
    }

    fn judge(&self, case: &Case, found: &Found) -> Vec<String> {
        let name = format!("{:?}, {}", case.program, case.name);
        let mut broken = Vec::new();
        if !found.code.is_some_and(|code| case.codes.contains(&code)) {
            let (code, codes) = (found.code, case.codes);
            broken.push(format!("{name}: exit code {code:?} instead of {codes:?}"));
        }
        for word in case.words {
            let word = self.fill(word);
            if !found.said.contains(&word) {
                broken.push(format!(
                    "{name}: \"{word}\" is not said: {}",
                    found.said.trim()
                ));
            }
        }
        if found.said.contains("panicked at") {
            broken.push(format!("{name}: panicked: {}", found.said.trim()));
        }
        broken
    }

    /// Puts the folder and the ports in.
    fn fill(&self, text: &str) -> String {
        let text = text.replace("FOLDER", &self.folder.display().to_string());
        (1..=6).fold(text, |text, n| {
            text.replace(&format!("PORT{n}"), &(self.base_port + n - 1).to_string())
        })
    }

    /// Listens on one of the ports for as long as this process lives: a case's ports are not used again.
    fn occupy(&self, offset: u16) -> std::io::Result<()> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.base_port + offset))?;
        std::mem::forget(listener);
        Ok(())
    }
}

fn occupy_first(here: &Surroundings) -> std::io::Result<()> {
    here.occupy(0)
}

fn occupy_second(here: &Surroundings) -> std::io::Result<()> {
    here.occupy(1)
}

fn file_for_state(here: &Surroundings) -> std::io::Result<()> {
    fs::write(here.folder.join("state"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_text_finds_its_place_once() {
        for case in CASES {
            let text = match case.program {
                Program::Hotwarm => HOTWARM,
                Program::Syncd => SYNCD,
            };
            if let Change::Text(old, _) = case.change {
                assert!(text.contains(old), "{}", case.name);
            }
        }
    }
}
