//! `rehearse`: shows a deployment at work, breaks it in many ways, and measures it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use examples::bench::{self, Bench};
use examples::demo;
use examples::faults::{self, Scenario};
use examples::stack::Durability;
use examples::trouble::Trouble;

/// Shows a deployment at work, breaks it in many ways, and measures it. Everything runs on loopback and is gone afterwards.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Starts two nodes of a shop and the proxy, and runs until Ctrl-C.
    Demo {
        /// Whether a person looks at it, or it shows a failover by itself.
        #[arg(long, value_enum, default_value_t = Kind::Serve)]
        kind: Kind,
        /// The first of seven ports.
        #[arg(long, default_value_t = 18_080, value_parser = clap::value_parser!(u16).range(1..=65_529))]
        port_base: u16,
        /// End also when the process that started this one ends.
        #[arg(long)]
        with_parent: bool,
    },
    /// Rehearses faults and says which promises were kept. Exit code 1 if any was not.
    Faults {
        /// Which.
        #[arg(value_enum)]
        scenario: Scenario,
        /// When writes are answered: async or standby-ack.
        #[arg(long, default_value = "standby-ack", value_parser = durability)]
        mode: Durability,
        /// What random choices are drawn from; the time if absent. Each run counts on from it.
        #[arg(long)]
        seed: Option<u64>,
        /// How often; medians are printed at the end.
        #[arg(long, default_value_t = 1)]
        runs: u32,
        /// Of random rounds, switchovers or orders of starting: how many in each run.
        #[arg(long)]
        rounds: Option<u32>,
        /// Of random rounds: the number of the first, to replay one.
        #[arg(long, default_value_t = 0)]
        first: u32,
        /// How long, where a scenario lasts.
        #[arg(long, value_parser = seconds)]
        seconds: Option<Duration>,
        /// Leave the folder of a broken run for a person to look at.
        #[arg(long)]
        keep: bool,
    },
    /// Measures what replication costs and how fast it is. Exit code 1 if a target was missed.
    Bench {
        /// What; everything if absent.
        #[arg(value_enum)]
        what: Vec<Bench>,
        /// How often; medians are printed at the end.
        #[arg(long, default_value_t = 5)]
        runs: u32,
        /// Give node A's application and syncd CPU 0; run this program itself with `taskset -c 1-`.
        #[arg(long)]
        apart: bool,
        /// The size of the large database, in MiB.
        #[arg(long, default_value_t = 1_024)]
        size_mib: u32,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Serve,
    Failover,
}

fn durability(text: &str) -> Result<Durability, String> {
    Durability::named(text).ok_or_else(|| "async or standby-ack".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|error| format!("{error}"))?;
    Ok(Duration::from_secs(seconds))
}

/// Writes a line. Whoever closed our output is not interested any more; what runs is ended properly all the same.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let done = runtime
        .map_err(Trouble::system("start the runtime"))
        .and_then(|runtime| runtime.block_on(carry_out(args.what)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            let _ = writeln!(std::io::stderr(), "error: {trouble}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(what: What) -> Result<bool, Trouble> {
    match what {
        What::Demo {
            kind,
            port_base,
            with_parent,
        } => {
            let demo = async {
                match kind {
                    Kind::Serve => demo::serve(port_base, say).await,
                    Kind::Failover => demo::failover(port_base, say).await,
                }
            };
            demo::until_told(demo, with_parent).await
        }
        What::Faults {
            scenario,
            mode,
            seed,
            runs,
            rounds,
            first,
            seconds,
            keep,
        } => {
            let options = faults::Options {
                durability: mode,
                seed,
                runs,
                rounds,
                first,
                lasting: seconds,
                keep,
            };
            demo::until_told(faults::run(scenario, options, say), false).await
        }
        What::Bench {
            what,
            runs,
            apart,
            size_mib,
        } => {
            let options = bench::Options {
                runs,
                apart,
                size_mib,
            };
            demo::until_told(measure(what, options), false).await
        }
    }
}

async fn measure(what: Vec<Bench>, options: bench::Options) -> Result<bool, Trouble> {
    let all = Bench::value_variants();
    let what = if what.is_empty() { all } else { &what };
    let mut good = true;
    for bench in what {
        good &= bench::run(*bench, options, say).await?;
    }
    Ok(good)
}
