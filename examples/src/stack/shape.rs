//! What a deployment is asked to be.

use std::time::Duration;

use crate::process::Spec;
use crate::stack::Side;

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// At once.
    Async,
    /// When a standby has it on disk.
    StandbyAck,
}

impl Durability {
    /// As it is configured.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::StandbyAck => "standby-ack",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Async, Self::StandbyAck]
            .into_iter()
            .find(|durability| durability.as_str() == name)
    }
}

/// Which application the nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// The order service.
    Orders,
    /// One that only says that it is well: the rehearsal itself writes into the database, past it.
    Silent,
}

/// What a deployment is asked to be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// When a write is answered.
    pub durability: Durability,
    /// Which application the nodes run.
    pub app: App,
    /// How long after its end a part is started again, as a supervisor such as systemd would; never if absent.
    pub supervised: Option<Duration>,
    /// The first port; any free ones if absent.
    pub base_port: Option<u16>,
    /// The node whose syncd the other is sent to through a port of its own, for somebody to put a bad wire there.
    pub wire: Option<Side>,
    /// The node whose syncd keeps its state on a file system of 16 MiB. Needs root.
    pub small_disk: Option<Side>,
    /// Whether node A runs on CPU 0, so that with everything else kept off it, it is as if on another machine.
    pub apart: bool,
    /// The node whose files are kept in memory, so that the other has the disk to itself.
    pub in_memory: Option<Side>,
    /// What differs from the defaults of `hotwarm.toml`: table within the service, key, value as TOML.
    pub settings: Vec<(&'static str, &'static str, String)>,
}

impl Shape {
    /// The order service, nothing differing from the defaults, nothing restarted.
    #[must_use]
    pub const fn new(durability: Durability) -> Self {
        Self {
            durability,
            app: App::Orders,
            supervised: None,
            base_port: None,
            wire: None,
            small_disk: None,
            apart: false,
            in_memory: None,
            settings: Vec::new(),
        }
    }

    /// Parts that end are started again after 200 ms.
    #[must_use]
    pub const fn supervised(mut self) -> Self {
        self.supervised = Some(Duration::from_millis(200));
        self
    }

    /// What to run so that it runs on the CPU of that node.
    #[must_use]
    pub fn place(&self, side: Side, spec: Spec) -> Spec {
        if !self.apart || side == Side::B {
            return spec;
        }
        let program = spec.program.display().to_string();
        Spec {
            program: "taskset".into(),
            args: [vec!["-c".to_owned(), "0".to_owned(), program], spec.args].concat(),
            ..spec
        }
    }

    /// Changes one setting of the service.
    #[must_use]
    pub fn with(
        mut self,
        table: &'static str,
        key: &'static str,
        value: impl Into<String>,
    ) -> Self {
        self.settings.push((table, key, value.into()));
        self
    }
}
