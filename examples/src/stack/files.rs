//! A deployment on disk: folders, configuration files, and what is run with which arguments.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::guard::MARK;
use crate::process::Spec;
use crate::programs::Programs;
use crate::stack::parts::{ADMIN, LISTENER, WIRE};
use crate::stack::{App, Part, Shape, Side};
use crate::trouble::Trouble;

/// The name of the service.
pub(crate) const SERVICE: &str = "shop";

/// Everything that decides what is written.
pub(crate) struct Plan<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) shape: &'a Shape,
    pub(crate) folder: &'a Path,
    pub(crate) base_port: u16,
    pub(crate) mark: &'a str,
}

/// A node's database.
pub(crate) fn database(folder: &Path, side: Side) -> PathBuf {
    folder.join(side.name()).join("shop.db")
}

/// Where a part keeps what it must not forget.
pub(crate) fn state(folder: &Path, part: Part) -> PathBuf {
    match part {
        Part::App(side) => folder.join(side.name()),
        Part::Syncd(side) => folder.join(side.name()).join("syncd"),
        Part::Proxy => folder.join("hotwarm"),
    }
}

/// A part's log.
pub(crate) fn log(folder: &Path, part: Part) -> PathBuf {
    folder.join(format!("{part}.log"))
}

impl Plan<'_> {
    /// Makes the folders, writes the configuration, and says what to run, in the order of [`Part::ALL`].
    pub(crate) fn write(&self) -> Result<Vec<Spec>, Trouble> {
        for side in Side::BOTH {
            let folder = self.folder.join(side.name());
            let made = fs::create_dir_all(folder.join("syncd"));
            made.map_err(Trouble::system(format!("make {}", folder.display())))?;
            write(&self.syncd_config(side), &self.syncd_text(side))?;
            write(&folder.join("healthz"), "well\n")?;
        }
        write(&self.hotwarm_config(), &self.hotwarm_text())?;
        Ok(Part::ALL.into_iter().map(|part| self.spec(part)).collect())
    }

    fn spec(&self, part: Part) -> Spec {
        let (program, args) = match part {
            Part::App(side) => self.app(side),
            Part::Syncd(side) => self.syncd(side),
            Part::Proxy => (self.programs.hotwarm.clone(), run(&self.hotwarm_config())),
        };
        let mut env = vec![(MARK.to_owned(), self.mark.to_owned())];
        let mut folder = self.folder.to_owned();
        if let Part::App(side) = part {
            let database = database(self.folder, side);
            env.push(("PORT".to_owned(), self.port(side.app_port()).to_string()));
            env.push((
                "DATABASE_URL".to_owned(),
                format!("sqlite:///{}", database.display()),
            ));
            env.push(("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()));
            folder.clone_from(&self.programs.orders);
        }
        let spec = Spec {
            name: part.to_string(),
            program,
            args,
            env,
            folder,
            log: log(self.folder, part),
        };
        match part {
            Part::App(side) | Part::Syncd(side) => self.shape.place(side, spec),
            Part::Proxy => spec,
        }
    }

    fn app(&self, side: Side) -> (PathBuf, Vec<String>) {
        let port = self.port(side.app_port()).to_string();
        let node = self.folder.join(side.name()).display().to_string();
        match self.shape.app {
            App::Orders => (
                self.programs.gunicorn.clone(),
                words(["--config", "gunicorn.conf.py"]),
            ),
            App::Silent => (
                self.programs.python.clone(),
                words([
                    "-m",
                    "http.server",
                    &port,
                    "--bind",
                    "127.0.0.1",
                    "--directory",
                    &node,
                ]),
            ),
        }
    }

    fn syncd(&self, side: Side) -> (PathBuf, Vec<String>) {
        let run = run(&self.syncd_config(side));
        if self.shape.small_disk != Some(side) {
            return (self.programs.syncd.clone(), run);
        }
        // A mount in a namespace of its own ends with the process.
        let mount = "mount -t tmpfs -o size=16m none \"$0\" && exec \"$@\"";
        let state = state(self.folder, Part::Syncd(side)).display().to_string();
        let syncd = self.programs.syncd.display().to_string();
        let args = ["-m", "sh", "-c", mount, &state, &syncd].map(str::to_owned);
        ("unshare".into(), [args.into(), run].concat())
    }

    fn hotwarm_text(&self) -> String {
        let folder = self.folder.display();
        let mut text = format!(
            r#"state_dir     = "{folder}/hotwarm"
drain_timeout = "5s"
access_log    = {{ path = "{folder}/access.log", format = "json" }}

[admin]
bind = "127.0.0.1:{admin}"

[[listener]]
bind = "127.0.0.1:{listener}"

[[service]]
name  = "{SERVICE}"
hosts = ["*"]
mode  = "hot-warm"
"#,
            admin = self.port(ADMIN),
            listener = self.port(LISTENER),
        );
        for side in Side::BOTH {
            let (app, syncd) = (self.port(side.app_port()), self.door(side));
            let _ = write!(
                text,
                r#"
[[service.node]]
name  = "{side}"
url   = "http://127.0.0.1:{app}"
syncd = "http://127.0.0.1:{syncd}"
"#
            );
        }
        text + &self.settings()
    }

    /// The tables of the service in which something differs from the defaults.
    fn settings(&self) -> String {
        let durability = format!("\"{}\"", self.shape.durability.as_str());
        let mut settings = vec![("failover", "durability", durability)];
        settings.extend(self.shape.settings.iter().cloned());
        settings.sort_by_key(|(table, _, _)| *table);
        let mut text = String::new();
        let mut open = "";
        for (table, key, value) in &settings {
            if *table != open {
                let _ = writeln!(text, "\n[service.{table}]");
                open = table;
            }
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }

    fn syncd_text(&self, side: Side) -> String {
        let folder = self.folder.join(side.name());
        format!(
            r#"node      = "{side}"
listen    = "127.0.0.1:{port}"
advertise = "http://127.0.0.1:{door}"
state_dir = "{folder}/syncd"

[[source]]
name = "db"
kind = "sqlite"
path = "{database}"
"#,
            port = self.port(side.syncd_port()),
            door = self.door(side),
            folder = folder.display(),
            database = database(self.folder, side).display(),
        )
    }

    /// The port under which the others know a node's syncd.
    fn door(&self, side: Side) -> u16 {
        if self.shape.wire == Some(side) {
            self.port(WIRE)
        } else {
            self.port(side.syncd_port())
        }
    }

    fn hotwarm_config(&self) -> PathBuf {
        self.folder.join("hotwarm.toml")
    }

    fn syncd_config(&self, side: Side) -> PathBuf {
        self.folder.join(format!("syncd-{side}.toml"))
    }

    const fn port(&self, offset: u16) -> u16 {
        self.base_port + offset
    }
}

fn run(config: &Path) -> Vec<String> {
    words(["run", "--config", &config.display().to_string()])
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn write(path: &Path, text: &str) -> Result<(), Trouble> {
    fs::write(path, text).map_err(Trouble::system(format!("write {}", path.display())))
}
