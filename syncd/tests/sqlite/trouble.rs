//! A full disk under a standby: nothing changes, the error says so, and it goes on when there is room again.

use std::path::Path;
use std::process::Command;

use syncd::sqlite::{ApplyError, Tail};

use crate::rig::snapshot;
use crate::support::{Python, Scratch, assert_same, assert_sound, drain, open, position};

/// A file system of a few megabytes, if this user may make one.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(at)
            .output()
            .ok()?;
        mounted.status.success().then_some(Self(at))
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_rolls_back_and_is_named_and_with_room_it_goes_on() {
    let scratch = Scratch::new("full");
    let folder = scratch.path("tiny");
    let Some(tiny) = Tiny::mount(&folder) else {
        // Only root may mount; the other tests do not depend on it.
        return;
    };
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    app.sql("insert into t(v) values (randomblob(100))");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    tail.stand_at(position(0));
    let second = scratch.options("tiny/b.db");
    let (mut copy, mut apply) = snapshot(&scratch, &mut database, &mut tail, &second);
    let ballast = tiny.0.join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let before = copy.checksum();

    app.sql("insert into t(v) with recursive s(i) as (select 1 union all select i+1 from s where i<500) select randomblob(4000) from s");
    let increments = drain(&mut tail, &mut database);
    let failed = apply.apply(&mut copy, &increments).unwrap_err();
    assert!(
        matches!(&failed, ApplyError::Failure(failure) if failure.is_disk_full()),
        "{failed}"
    );
    assert_eq!(
        (copy.checksum(), apply.position()),
        (before, Some(position(0)))
    );
    let mut warm = Python::connected(copy.path());
    assert_eq!(warm.sql("select count(*) from t"), "[(1,)]");

    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(
        apply.apply(&mut copy, &increments).unwrap(),
        Some(position(1))
    );
    assert_eq!(warm.sql("select count(*) from t"), "[(501,)]");
    assert_same(database.path(), copy.path());
    assert_sound(copy.path());
}
