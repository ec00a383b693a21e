//! Commands of the operator's, run when roles change: bounded in time, their outcome in the log, their failure no obstacle.

use std::process::Stdio;
use std::time::Duration;

use shared::model::{Epoch, Role};
use tokio::process::Command;

/// Runs `command` with `sh -c`, and the new role in its environment. Ends it when `within` is over.
pub async fn run(command: &str, node: &str, epoch: Epoch, role: Role, within: Duration) {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    shell
        .env("HOTWARM_EPOCH", epoch.to_string())
        .env("HOTWARM_ROLE", role.as_str())
        .env("HOTWARM_NODE", node);
    match tokio::time::timeout(within, shell.status()).await {
        Ok(Ok(status)) if status.success() => {
            tracing::info!(command, role = role.as_str(), "hook has run");
        }
        Ok(Ok(status)) => tracing::warn!(command, role = role.as_str(), %status, "hook failed"),
        Ok(Err(error)) => {
            tracing::warn!(command, role = role.as_str(), %error, "hook could not be started");
        }
        Err(_) => tracing::warn!(
            command,
            role = role.as_str(),
            ?within,
            "hook was ended: it took longer than hook_timeout"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hook_is_told_the_role_and_is_not_waited_for_for_ever() {
        let file = std::env::temp_dir().join(format!("hotwarm-hook-{}", std::process::id()));
        let command = format!(
            "echo $HOTWARM_NODE $HOTWARM_EPOCH $HOTWARM_ROLE > {}; exec sleep 60",
            file.display()
        );
        run(
            &command,
            "a",
            Epoch(3),
            Role::Primary,
            Duration::from_millis(500),
        )
        .await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a 3 primary\n");
        std::fs::remove_file(file).unwrap();
    }
}
