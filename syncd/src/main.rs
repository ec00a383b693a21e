//! Arguments and exit codes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use syncd::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps a standby's data a copy of its primary's, and obeys hotwarm.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run beside an application node.
    Run(Config),
    /// Check a configuration: exit 0, or 2 with file, line, column, key, why, and what is allowed.
    Check(Config),
    /// Show role, epoch, positions and lag of a running syncd.
    Status {
        #[command(flatten)]
        url: Url,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Again at every change.
        #[arg(long)]
        watch: bool,
    },
    /// Read this node's data anew and compare it with its primary's; exit 1 on a difference.
    Verify {
        #[command(flatten)]
        url: Url,
    },
    /// Writes that a failover left behind, kept and readable.
    Diverged {
        #[command(flatten)]
        config: Config,
        #[command(subcommand)]
        what: Diverged,
    },
}

#[derive(Debug, Subcommand)]
enum Diverged {
    /// One line for each set that is kept.
    List,
    /// The rows that it has and the present database has not, as SQL.
    Show {
        /// Its name.
        id: String,
    },
    /// Copy it, with the whole database, into a folder.
    Export {
        /// Its name.
        id: String,
        /// The folder; made if need be.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Config {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "syncd.toml", global = true)]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Url {
    /// The running syncd.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7001")]
    url: String,
    /// A file with its secret, if it has one.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let done = match arguments.command {
        Command::Run(config) => {
            drop(out);
            return finish(cli::run(&config.config));
        }
        Command::Check(config) => cli::check(&config.config, &mut out),
        Command::Status { url, json, watch } => {
            cli::status(&url.url, url.token_file.as_deref(), json, watch, &mut out)
        }
        Command::Verify { url } => cli::verify(&url.url, url.token_file.as_deref(), &mut out),
        Command::Diverged { config, what } => match what {
            Diverged::List => cli::list_diverged(&config.config, &mut out),
            Diverged::Show { id } => cli::show_diverged(&config.config, &id, &mut out),
            Diverged::Export { id, dir } => {
                cli::export_diverged(&config.config, &id, &dir, &mut out)
            }
        },
    };
    finish(done)
}

fn finish(done: Result<(), cli::Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
