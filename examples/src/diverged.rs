//! What a failover left behind on a node, as an operator finds it: `syncd diverged list` and `show`.

use std::path::Path;
use std::process::Output;

use crate::stack::{Side, Stack};
use crate::trouble::Trouble;

/// Everything that a node keeps as diverged, as the SQL that `syncd diverged show` prints.
///
/// # Errors
/// `syncd` cannot be run, or fails.
pub fn shown(stack: &Stack, side: Side) -> Result<Vec<String>, Trouble> {
    let config = format!("syncd-{side}.toml");
    let syncd = |args: &[&str]| {
        let args = [&["diverged"], args, &["--config", &config]].concat();
        said(&stack.programs().syncd, &args, stack)
    };
    let list = syncd(&["list"])?;
    let ids = list.lines().filter_map(id_of);
    ids.map(|id| syncd(&["show", id])).collect()
}

/// The first word of a line of the list, if it is an id: it has a digit in it, headings and remarks begin with a plain word.
fn id_of(line: &str) -> Option<&str> {
    let first = line.split_whitespace().next()?;
    first
        .contains(|c: char| c.is_ascii_digit())
        .then_some(first)
}

/// Which of these references are in nothing that the node keeps as diverged.
///
/// # Errors
/// As [`shown`].
pub fn missing(stack: &Stack, side: Side, references: &[String]) -> Result<Vec<String>, Trouble> {
    let kept = shown(stack, side)?;
    let absent = |reference: &&String| {
        let quoted = format!("'{reference}'");
        !kept.iter().any(|sql| sql.contains(&quoted))
    };
    Ok(references.iter().filter(absent).cloned().collect())
}

fn said(program: &Path, args: &[&str], stack: &Stack) -> Result<String, Trouble> {
    let Output {
        status,
        stdout,
        stderr,
    } = stack.run(program, args)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(Trouble::Nonsense(format!(
        "syncd {} ended with {status}: {}",
        args.join(" "),
        String::from_utf8_lossy(&stderr)
    )))
}
