//! A whole deployment on loopback: two nodes, each an application with its syncd, and the proxy in front of them.
//!
//! Everything is started as a user starts it, from configuration files, each program in a process group of its own, and can be
//! killed or stopped at any moment. Nothing of it is left behind.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use shared::api::Status;
use shared::call::CallError;
use shared::clock;
use shared::model::Positions;

use crate::admin::{Hotwarm, Service, Syncd};
use crate::client::Client;
use crate::guard::Guard;
use crate::ports;
use crate::process::{Spec, tail};
use crate::programs::Programs;
use crate::scratch::Scratch;
use crate::stack::crew::Crew;
pub use crate::stack::parts::{Part, Side};
pub use crate::stack::shape::{App, Durability, Shape};
use crate::trouble::Trouble;

mod crew;
mod files;
mod parts;
mod shape;

/// How often we look whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How many looks in a row must show the same before a deployment counts as at rest.
const STILL_FOR: usize = 5;
/// Listener, admin, two for each node, and a bad wire.
pub const PORTS: u16 = 7;

/// A deployment.
// Fields are dropped in this order: the programs, then whoever they left behind, then the folder.
#[derive(Debug)]
pub struct Stack {
    crew: Crew,
    programs: Programs,
    shape: Shape,
    base_port: u16,
    hotwarm: Hotwarm,
    syncds: [Syncd; 2],
    guard: Guard,
    scratch: Scratch,
    /// The folder of a node that shall not share the other's disk.
    _elsewhere: Option<Scratch>,
}

impl Stack {
    /// Writes its configuration; nothing runs yet.
    ///
    /// # Errors
    /// A program is missing, no ports are free, or the system does not let us.
    pub fn new(shape: Shape) -> Result<Self, Trouble> {
        let programs = Programs::find()?;
        let scratch = Scratch::new("stack")?;
        let elsewhere = shape.in_memory.map(|_| Scratch::in_memory()).transpose()?;
        let folders = elsewhere.iter().chain([&scratch]).map(Scratch::path);
        let guard = Guard::new(&folders.collect::<Vec<_>>())?;
        if let (Some(elsewhere), Some(side)) = (&elsewhere, shape.in_memory) {
            let link = scratch.path().join(side.name());
            symlink(elsewhere.path(), &link)
                .map_err(Trouble::system(format!("make {}", link.display())))?;
        }
        let base_port = match shape.base_port {
            Some(port) => port,
            None => ports::free(PORTS)?,
        };
        let plan = files::Plan {
            programs: &programs,
            shape: &shape,
            folder: scratch.path(),
            base_port,
            mark: guard.mark(),
        };
        let crew = Crew::new(plan.write()?, shape.supervised);
        let bad = |error: shared::call::BadUrl| Trouble::Nonsense(error.to_string());
        let syncd = |side: Side| Syncd::on(base_port + side.syncd_port()).map_err(bad);
        Ok(Self {
            hotwarm: Hotwarm::on(base_port + parts::ADMIN, files::SERVICE).map_err(bad)?,
            syncds: [syncd(Side::A)?, syncd(Side::B)?],
            crew,
            programs,
            shape,
            base_port,
            guard,
            scratch,
            _elsewhere: elsewhere,
        })
    }

    /// Starts a part, unless it is running.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn start(&self, part: Part) -> Result<(), Trouble> {
        self.crew.start(part)
    }

    /// Starts all parts, applications first.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn start_all(&self) -> Result<(), Trouble> {
        Part::ALL.into_iter().try_for_each(|part| self.start(part))
    }

    /// `kill -9` of the process groups of all these parts in the same instant. A supervised part comes back by itself.
    pub fn kill(&self, parts: &[Part]) {
        self.crew.kill(parts);
    }

    /// As [`Self::kill`], but they stay down until they are started again.
    pub fn kill_for_good(&self, parts: &[Part]) {
        self.crew.kill_for_good(parts);
    }

    /// SIGSTOP to the process groups of these parts.
    pub fn freeze(&self, parts: &[Part]) {
        self.crew.freeze(parts);
    }

    /// SIGCONT to the process groups of these parts.
    pub fn thaw(&self, parts: &[Part]) {
        self.crew.thaw(parts);
    }

    /// Asks the part to end as a supervisor would (SIGTERM) and waits. Whether it ended by itself, and with success.
    #[must_use]
    pub fn terminate(&self, part: Part, grace: Duration) -> bool {
        self.crew.terminate(part, grace)
    }

    /// How often the part was started.
    #[must_use]
    pub fn starts(&self, part: Part) -> u32 {
        self.crew.starts(part)
    }

    /// The process group of a part, while it runs.
    #[must_use]
    pub fn group(&self, part: Part) -> Option<i32> {
        self.crew.group(part)
    }

    /// Where clients go.
    #[must_use]
    pub fn front(&self) -> SocketAddr {
        self.address(parts::LISTENER)
    }

    /// The proxy's admin door.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.address(parts::ADMIN)
    }

    /// A node's application, past the proxy.
    #[must_use]
    pub fn app(&self, side: Side) -> SocketAddr {
        self.address(side.app_port())
    }

    /// A node's syncd.
    #[must_use]
    pub fn syncd_door(&self, side: Side) -> SocketAddr {
        self.address(side.syncd_port())
    }

    /// Where a bad wire is expected, if one was asked for.
    #[must_use]
    pub fn wire(&self) -> SocketAddr {
        self.address(parts::WIRE)
    }

    /// A client of the proxy.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.front())
    }

    /// A node's database file.
    #[must_use]
    pub fn database(&self, side: Side) -> PathBuf {
        files::database(self.folder(), side)
    }

    /// Where a part keeps what it must not forget.
    #[must_use]
    pub fn state(&self, part: Part) -> PathBuf {
        files::state(self.folder(), part)
    }

    /// What is run for a part, to run it by hand.
    #[must_use]
    pub fn spec(&self, part: Part) -> Spec {
        self.crew.spec(part)
    }

    /// Lines of the logs that say that a program panicked.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        let log = |part| fs::read(files::log(self.folder(), part)).unwrap_or_default();
        let mut panics = Vec::new();
        for part in Part::ALL {
            let log = log(part);
            let log = String::from_utf8_lossy(&log);
            let lines = log.lines().filter(|line| line.contains("panicked at"));
            panics.extend(lines.map(|line| format!("{part}: {line}")));
        }
        panics
    }

    /// Where everything lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The programs it is made of.
    #[must_use]
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// What it was asked to be.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What marks its processes, for others that should go when it goes.
    #[must_use]
    pub fn mark(&self) -> &str {
        self.guard.mark()
    }

    /// The proxy as its operator sees it.
    #[must_use]
    pub const fn hotwarm(&self) -> &Hotwarm {
        &self.hotwarm
    }

    /// Both syncds as their operator sees them.
    #[must_use]
    pub const fn syncds(&self) -> &[Syncd; 2] {
        &self.syncds
    }

    /// How the service stands.
    ///
    /// # Errors
    /// The proxy does not answer.
    pub async fn service(&self) -> Result<Service, CallError> {
        self.hotwarm.service().await
    }

    /// How a node's syncd stands.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self, side: Side) -> Result<Status, CallError> {
        self.syncds[side.index()].status().await
    }

    /// Which node takes writes, as the proxy says.
    ///
    /// # Errors
    /// The proxy does not answer, or nobody does.
    pub async fn primary(&self) -> Result<Side, Trouble> {
        let service = self.service().await?;
        let side = service.primary.as_deref().and_then(Side::named);
        side.ok_or_else(|| Trouble::Nonsense(format!("there is no primary: {}", service.summary())))
    }

    /// Runs `hotwarm` or `syncd` to its end, as an operator would, and returns what it said.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, program: &Path, args: &[&str]) -> Result<Output, Trouble> {
        Command::new(program)
            .args(args)
            .env(crate::guard::MARK, self.mark())
            .current_dir(self.folder())
            .output()
            .map_err(Trouble::system(format!("run {}", program.display())))
    }

    /// Waits until `look` finds something, at most `within`.
    ///
    /// # Errors
    /// It did not; says how things stand instead, and shows the end of every log.
    pub async fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, Trouble> {
        let deadline = clock::now() + within;
        loop {
            if let Some(found) = look().await {
                return Ok(found);
            }
            if clock::now() >= deadline {
                return Err(Trouble::Late {
                    what: what.to_owned(),
                    seconds: within.as_secs_f64(),
                    seen: self.describe().await,
                });
            }
            clock::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the service is served and a standby could take over without losing what it must not.
    ///
    /// # Errors
    /// It did not come about in time.
    pub async fn until_safe(&self, within: Duration) -> Result<Service, Trouble> {
        self.wait("serving with an in-sync standby", within, async || {
            self.service().await.ok().filter(Service::is_safe)
        })
        .await
    }

    /// Waits until the service is served and a standby has the data, whatever its application does.
    ///
    /// # Errors
    /// It did not come about in time.
    pub async fn until_followed(&self, within: Duration) -> Result<Service, Trouble> {
        self.wait("an in-sync standby, well or not", within, async || {
            self.service().await.ok().filter(Service::is_followed)
        })
        .await
    }

    /// As [`Self::until_even`], with a standby that could take over.
    ///
    /// # Errors
    /// It did not come about in time.
    pub async fn until_level(&self, within: Duration) -> Result<(), Trouble> {
        self.until_safe(within).await?;
        self.until_even(within).await
    }

    /// Waits until the standby shows all that the primary has and nothing moves, so that their databases can be compared.
    ///
    /// # Errors
    /// It did not come about in time.
    pub async fn until_even(&self, within: Duration) -> Result<(), Trouble> {
        self.until_followed(within).await?;
        let mut seen = Vec::new();
        self.wait(
            "the standby showing all of the primary",
            within,
            async || {
                let level = self.level().await;
                match level {
                    Some(position) => seen.push(position),
                    None => seen.clear(),
                }
                let still =
                    seen.len() > STILL_FOR && seen.iter().all(|position| *position == seen[0]);
                if seen.len() > STILL_FOR {
                    seen.remove(0);
                }
                still.then_some(())
            },
        )
        .await
    }

    /// Where both nodes stand, if they stand at the same point.
    async fn level(&self) -> Option<Positions> {
        let primary = self.primary().await.ok()?;
        let ahead = self.status(primary).await.ok()?.report.tip;
        let behind = self.status(primary.other()).await.ok()?.report.applied;
        (!ahead.0.is_empty() && ahead == behind).then_some(ahead)
    }

    /// How everything stands, at length, with the end of every log.
    pub async fn describe(&self) -> String {
        let mut text = match self.service().await {
            Ok(service) => service.summary(),
            Err(error) => error.to_string(),
        };
        for side in Side::BOTH {
            let status = match self.status(side).await {
                Ok(status) => format!("{:?}", status.report),
                Err(error) => error.to_string(),
            };
            text += &format!("\nsyncd {side}: {status}");
        }
        match self.hotwarm.events().await {
            Ok(events) => events
                .iter()
                .for_each(|event| text += &format!("\n{event}")),
            Err(error) => text += &format!("\nevents: {error}"),
        }
        for part in Part::ALL {
            let log = files::log(self.folder(), part);
            text += &format!("\n--- end of {}\n{}", log.display(), tail(&log));
        }
        text
    }

    /// Leaves the folder where it is, for somebody to look at, and says where.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.scratch.keep();
        self.scratch.path().to_owned()
    }

    const fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(
            std::net::IpAddr::V4(Ipv4Addr::LOCALHOST),
            self.base_port + port,
        )
    }
}
