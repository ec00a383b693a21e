//! A standby is readable all the time: a reader on it sums up a bank while transactions arrive, the primary vacuums, and the
//! applier is killed again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shared::clock;
use shared::rng::Rng;

use crate::scenario::{Report, UP_WITHIN, WHOLE_WITHIN, wrong};
use crate::stack::{App, Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;
use crate::workload::Workload;

/// How to rehearse it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides when the applier dies.
    pub seed: u64,
    /// Transactions per second on the primary.
    pub rate: u32,
    /// How long.
    pub lasting: Duration,
}

/// What `bank.py write` found.
#[derive(Clone, Debug, Deserialize)]
pub struct Written {
    /// Transactions tried.
    pub transactions: u64,
    /// How many of them in a second.
    pub per_second: f64,
    /// Times that the database was vacuumed.
    pub vacuums: u64,
    /// The middle wait for a transaction.
    pub wait_ms_p50: Option<f64>,
    /// The wait that one in a hundred exceeds.
    pub wait_ms_p99: Option<f64>,
    /// The longest.
    pub wait_ms_max: Option<f64>,
    /// What SQLite refused, and how often.
    pub errors: BTreeMap<String, u64>,
}

/// What `bank.py read` found.
#[derive(Clone, Debug, Deserialize)]
pub struct Read {
    /// Sums drawn.
    pub reads: u64,
    /// Those that did not come out.
    pub broken: u64,
    /// Some of them.
    pub examples: Vec<serde_json::Value>,
    /// What SQLite refused, and how often.
    pub errors: BTreeMap<String, u64>,
    /// The newest transaction that was seen.
    pub newest: u64,
    /// The longest that one read took.
    pub longest_ms: f64,
}

/// Rehearses it.
///
/// # Errors
/// It could not be carried out.
pub async fn run(options: Options) -> Result<Report, Trouble> {
    let mut report = Report::new("reading a standby", options.seed);
    let (stack, ()) = bank(Shape::new(Durability::Async), async |_| Ok(())).await?;
    let [a, b] = Side::BOTH.map(|side| stack.database(side).display().to_string());
    let rate = options.rate.to_string();
    let bank = |args: &[&str]| Workload::start(stack.programs(), stack.mark(), "bank.py", args);
    let reader = bank(&["read", &b])?;
    let writer = bank(&["write", &a, &rate, "--vacuum", "2"])?;

    let mut rng = Rng::with_seed(options.seed);
    let until = clock::now() + options.lasting;
    let mut killed = 0;
    while clock::now() < until {
        clock::sleep(Duration::from_millis(rng.u64(100..1500))).await;
        stack.kill(&[Part::Syncd(Side::B)]);
        killed += 1;
    }
    let written: Written = writer.finish()?;
    stack.until_level(WHOLE_WITHIN).await?;
    let read: Read = reader.finish()?;

    report.count("applier_killed", killed);
    report.fact("transactions_per_second", written.per_second);
    report.count(
        "vacuums",
        usize::try_from(written.vacuums).unwrap_or(usize::MAX),
    );
    report.count("reads", usize::try_from(read.reads).unwrap_or(usize::MAX));
    report.fact("longest_read_ms", read.longest_ms);
    report.fact("longest_write_ms", written.wait_ms_max.unwrap_or(f64::NAN));
    report.promise(read.broken == 0, || {
        format!(
            "{} reads saw what never was: {:?}",
            read.broken, read.examples
        )
    });
    report.promise(read.errors.is_empty(), || {
        format!("the reader was refused: {:?}", read.errors)
    });
    report.promise(written.errors.is_empty(), || {
        format!("the writer was refused: {:?}", written.errors)
    });
    report.promise(read.newest == written.transactions, || {
        format!(
            "{} of {} transactions arrived",
            read.newest, written.transactions
        )
    });
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

/// A deployment whose node A has a bank, up and in sync. `first` is done before anything is started; what it returns is handed on.
///
/// # Errors
/// It did not come up.
pub async fn bank<T>(
    shape: Shape,
    first: impl AsyncFnOnce(&Stack) -> Result<T, Trouble>,
) -> Result<(Stack, T), Trouble> {
    let stack = prepared(shape)?;
    let first = first(&stack).await?;
    stack.start_all()?;
    let service = stack.until_safe(UP_WITHIN).await?;
    if service.primary.as_deref() != Some(Side::A.name()) {
        let why = format!("the empty node won: {}", service.summary());
        return Err(Trouble::Nonsense(why));
    }
    Ok((stack, first))
}

/// A deployment whose node A has a bank; nothing runs yet. What ends is started again.
///
/// # Errors
/// A program is missing, or the system does not let us.
pub fn prepared(shape: Shape) -> Result<Stack, Trouble> {
    let shape = Shape {
        app: App::Silent,
        ..shape.supervised()
    };
    let stack = Stack::new(shape)?;
    let path = stack.database(Side::A).display().to_string();
    let args = ["create", &path];
    let made = Workload::start(stack.programs(), stack.mark(), "bank.py", &args)?;
    let _: IgnoredAny = made.finish()?;
    Ok(stack)
}
