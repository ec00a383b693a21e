//! Arguments and exit codes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use proxy::cli::{self, Admin, Failure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An HTTP reverse proxy that fails over with the data.
#[derive(Debug, Parser)]
#[command(name = "hotwarm", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    Run {
        #[command(flatten)]
        config: Config,
        /// Take the listening sockets over from the hotwarm that runs with the same state_dir: no connection is refused or reset.
        #[arg(long)]
        takeover: bool,
    },
    /// Check a configuration: exit 0, or 2 with file, line, column, key, why, and what is allowed.
    Check(Config),
    /// Show services and nodes: roles, health, lag, who could take over and why not.
    Status {
        /// Only this service.
        service: Option<String>,
        #[command(flatten)]
        admin: At,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Again at every change.
        #[arg(long)]
        watch: bool,
    },
    /// Change the primary as planned: no failed request, no lost write. Prints the pause in ms.
    Switchover {
        /// The service.
        service: String,
        /// The new primary; the best standby if it is not named.
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        #[command(flatten)]
        admin: At,
    },
    /// Make a node primary now. Refuses when acknowledged writes would be lost.
    Promote {
        /// The service.
        service: String,
        /// The new primary.
        #[arg(long, value_name = "NODE")]
        to: String,
        /// Even then.
        #[arg(long)]
        accept_data_loss: bool,
        #[command(flatten)]
        admin: At,
    },
    /// Take a node out: it gets no requests and is not promoted. A primary hands over first, as planned.
    Drain(OneNode),
    /// Put a drained node back.
    Undrain(OneNode),
    /// Read the configuration again, as SIGHUP does: all of it comes into force, or nothing. Prints what has changed.
    Reload {
        #[command(flatten)]
        admin: At,
    },
    /// Let a node that holds unrelated data give it up (a copy is kept) and become a standby.
    Rejoin(OneNode),
}

#[derive(Debug, Args)]
struct OneNode {
    /// The service.
    service: String,
    /// The node.
    node: String,
    #[command(flatten)]
    admin: At,
}

impl OneNode {
    fn ask(&self, what: &str, out: &mut dyn Write) -> Result<(), Failure> {
        cli::ask_node(&self.admin.as_admin(), what, &self.service, &self.node, out)
    }
}

#[derive(Debug, Args)]
struct Config {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "hotwarm.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct At {
    /// The running hotwarm's admin address.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9900")]
    admin: String,
    /// A file with its token, if it has one.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl At {
    fn as_admin(&self) -> Admin<'_> {
        Admin {
            url: &self.admin,
            token_file: self.token_file.as_deref(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match obey(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn obey(command: Command) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match command {
        Command::Run { config, takeover } => cli::run(&config.config, takeover),
        Command::Check(config) => cli::check(&config.config, &mut out),
        Command::Status {
            service,
            admin,
            json,
            watch,
        } => cli::status(&admin.as_admin(), service.as_deref(), json, watch, &mut out),
        Command::Switchover { service, to, admin } => {
            cli::switchover(&admin.as_admin(), &service, to.as_deref(), &mut out)
        }
        Command::Promote {
            service,
            to,
            accept_data_loss,
            admin,
        } => cli::promote(&admin.as_admin(), &service, &to, accept_data_loss, &mut out),
        Command::Drain(one) => one.ask("drain", &mut out),
        Command::Undrain(one) => one.ask("undrain", &mut out),
        Command::Reload { admin } => cli::reload(&admin.as_admin(), &mut out),
        Command::Rejoin(one) => one.ask("rejoin", &mut out),
    }
}
