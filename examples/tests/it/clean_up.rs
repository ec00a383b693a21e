//! Nothing is left behind.

use std::path::Path;
use std::time::Duration;

use examples::guard::{Guard, MARK};
use examples::process::{Process, Spec};
use examples::scratch::Scratch;
use shared::clock;

fn shell(scratch: &Scratch, script: &str, mark: &str) -> Process {
    Process::new(Spec {
        name: "shell".to_owned(),
        program: "/bin/sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec![(MARK.to_owned(), mark.to_owned())],
        folder: scratch.path().to_owned(),
        log: scratch.path().join("log"),
    })
}

/// The process ids that a script wrote into files, once it has written them all.
fn written(files: &[&Path]) -> Vec<u32> {
    let deadline = clock::now() + Duration::from_secs(10);
    loop {
        let ids: Vec<u32> = files
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
            .collect();
        if ids.len() == files.len() {
            return ids;
        }
        assert!(
            clock::now() < deadline,
            "the script did not write {files:?}"
        );
        clock::pause_thread(Duration::from_millis(5));
    }
}

/// Whether a process is there and not merely waiting to be reaped.
fn lives(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

#[test]
fn killing_a_group_takes_all_that_it_started() {
    let scratch = Scratch::new("group").unwrap();
    let (leader, child) = (scratch.path().join("leader"), scratch.path().join("child"));
    let script = "sleep 1000 & echo $! > child; echo $$ > leader; wait";
    let mut process = shell(&scratch, script, "");
    process.start().unwrap();
    let ids = written(&[&leader, &child]);
    assert!(ids.iter().all(|id| lives(*id)));
    process.kill();
    assert!(!ids.iter().any(|id| lives(*id)));
    assert!(!process.is_running());
}

#[test]
fn the_guard_finds_also_what_left_its_group_and_shuns_signals() {
    let scratch = Scratch::new("guard").unwrap();
    let guard = Guard::new(&[]).unwrap();
    let runaway = scratch.path().join("runaway");
    let script =
        "setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > runaway; exec sleep 1000' & exit 0";
    let mut process = shell(&scratch, script, guard.mark());
    process.start().unwrap();
    let ids = written(&[&runaway]);
    process.kill();
    assert!(
        lives(ids[0]),
        "it left the group, so killing the group does not reach it"
    );
    drop(guard);
    assert!(!lives(ids[0]));
}

#[test]
fn the_folder_outlives_a_guard_that_was_told_that_all_is_done() {
    let scratch = Scratch::new("folder").unwrap();
    let path = scratch.path().to_owned();
    drop(Guard::new(&[&path]).unwrap());
    assert!(path.exists());
    drop(scratch);
    assert!(!path.exists());
}
