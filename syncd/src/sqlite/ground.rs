//! What has to be true of the machine before a database is touched: our SQLite, the file system, and that no other syncd has it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock, statfs};

/// The first version without the bug by which a checkpoint racing with the reset of the log corrupts the database.
const OLDEST: i32 = 3_051_003;

/// File systems on which locks or shared memory do not reach every process that may have the database open.
const REMOTE: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE or virtiofs"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x786f_4256, "VirtualBox shared folders"),
    (0xbacb_acbc, "VMware shared folders"),
    (0x7c7c_6673, "Parallels shared folders"),
];

/// Says what is wrong with the SQLite that this program was built with, if anything.
pub(super) fn fault_of_library() -> rusqlite::Result<Option<String>> {
    if rusqlite::version_number() < OLDEST {
        return Ok(Some(format!(
            "version {} may corrupt a database while it is checkpointed; at least 3.51.3 is needed",
            rusqlite::version()
        )));
    }
    let memory = Connection::open_in_memory()?;
    let mut options = memory.prepare("PRAGMA compile_options")?;
    let mut rows = options.query([])?;
    while let Some(row) = rows.next()? {
        if row.get_ref(0)?.as_str() == Ok("ENABLE_DBPAGE_VTAB") {
            return Ok(None);
        }
    }
    Ok(Some(
        "it lacks SQLITE_ENABLE_DBPAGE_VTAB; build with the LIBSQLITE3_FLAGS of .cargo/config.toml"
            .to_owned(),
    ))
}

/// The name of the file system that `path` is on, if it is one on which SQLite's shared memory cannot be trusted.
pub(super) fn remote_file_system(path: &Path) -> io::Result<Option<&'static str>> {
    let found = statfs(path)?.f_type;
    let kind = u64::from_ne_bytes(found.to_ne_bytes()) & 0xffff_ffff;
    Ok(REMOTE
        .iter()
        .find(|(magic, _)| *magic == kind)
        .map(|(_, name)| *name))
}

/// Held by the one syncd that works on a database. The file stays; the lock on it goes with the process.
#[derive(Debug)]
pub(super) struct Claim {
    _file: File,
}

impl Claim {
    /// Claims `path`; `None` while another process has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The path of the log beside the database at `path`.
pub(super) fn log_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
