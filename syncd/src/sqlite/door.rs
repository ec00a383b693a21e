//! The one door to what `rusqlite` cannot do safely: SQLite's own file methods, through which the shared locks and the wal-index of a
//! database are reached.
//!
//! Nothing else may open the database or its `-shm`: POSIX locks belong to the process, and closing any other descriptor of those
//! files would drop the locks that SQLite holds on them.
#![expect(
    unsafe_code,
    reason = "SQLite's file methods are C function pointers; every use of them in this program is in this file"
)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use rusqlite::{Connection, OpenFlags, ffi};
use thiserror::Error;

const WRITE: c_int = 0;
const CHECKPOINT: c_int = 1;
const FIRST_READER: c_int = 3;
const SHARED_MAP: c_int = 32768;

/// How many 32-bit words of the wal-index are read: two copies of the header, the backfill count, five read marks, and the rest of the
/// checkpoint information (SQLite `wal.c`, `WalCkptInfo`).
pub(super) const INDEX_WORDS: usize = 34;

/// SQLite's file methods refused.
#[derive(Clone, Debug, Error)]
#[error("{doing}: {} (SQLite code {code})", ffi::code_to_str(*.code))]
pub struct DoorError {
    doing: &'static str,
    code: c_int,
}

/// One of the locks in a wal-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Whoever has it is the only writer.
    Write,
    /// Whoever has it is the only checkpointer.
    Checkpoint,
    /// Read slots 1 to 4, exclusively: nobody is reading from the log.
    Readers,
    /// Read slot 0 to 4, shared: the log cannot be begun anew, if it is not slot 0.
    Reader(u8),
}

/// Which of the two singular locks this process holds for several of its connections.
#[derive(Debug, Default)]
pub(super) struct Lent(AtomicU8);

impl Lent {
    /// Whether `lock` is held.
    pub(super) fn has(&self, lock: Lock) -> bool {
        self.0.load(Ordering::Acquire) & bit(lock) != 0
    }

    /// Notes that `lock` is held now.
    pub(super) fn add(&self, lock: Lock) {
        self.0.fetch_or(bit(lock), Ordering::AcqRel);
    }

    /// Notes that `lock` is about to be given back.
    pub(super) fn remove(&self, lock: Lock) {
        self.0.fetch_and(!bit(lock), Ordering::AcqRel);
    }
}

const fn bit(lock: Lock) -> u8 {
    match lock {
        Lock::Write => 1,
        Lock::Checkpoint => 2,
        Lock::Readers | Lock::Reader(_) => 0,
    }
}

/// A connection together with its file.
///
/// Send, because nothing in it belongs to a thread; not Sync, because a connection is used by one thread at a time.
#[derive(Debug)]
pub(super) struct Handle {
    connection: Connection,
    file: NonNull<ffi::sqlite3_file>,
    index: Cell<Option<NonNull<u32>>>,
    hook: Option<Box<Hook>>,
    log_hook: Option<LogHook>,
}

/// The log's file, and its method table that is replaced.
#[derive(Debug)]
struct LogHook {
    file: NonNull<ffi::sqlite3_file>,
    original: *const ffi::sqlite3_io_methods,
    _methods: Box<ffi::sqlite3_io_methods>,
}

// SAFETY: the pointers are to memory owned by the connection, which is itself Send; SQLite keeps no state in thread-local storage.
unsafe impl Send for Handle {}

/// Replaces the method table of one file. The pointer that SQLite follows is to the first field, so that the hook finds the rest.
#[repr(C)]
#[derive(Debug)]
struct Hook {
    methods: ffi::sqlite3_io_methods,
    original: *const ffi::sqlite3_io_methods,
    write: Option<Arc<Lent>>,
    checkpoint: Option<Arc<Lent>>,
}

impl Hook {
    /// Who holds `lock` for this connection, if it borrows it.
    const fn lender(&self, lock: Lock) -> Option<&Arc<Lent>> {
        match lock {
            Lock::Write => self.write.as_ref(),
            Lock::Checkpoint => self.checkpoint.as_ref(),
            Lock::Readers | Lock::Reader(_) => None,
        }
    }

    fn borrow(&mut self, lock: Lock, lent: Arc<Lent>) {
        match lock {
            Lock::Write => self.write = Some(lent),
            Lock::Checkpoint => self.checkpoint = Some(lent),
            Lock::Readers | Lock::Reader(_) => (),
        }
    }
}

impl Handle {
    /// Opens the database at `path`, which has to exist.
    pub(super) fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Self> {
        let connection = Connection::open_with_flags(path, flags)?;
        let file = file_of(&connection, ffi::SQLITE_FCNTL_FILE_POINTER)?;
        Ok(Self {
            connection,
            file,
            index: Cell::new(None),
            hook: None,
            log_hook: None,
        })
    }

    /// The connection.
    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// From now on this connection never takes `lock` itself: it has it while it is lent, and finds it busy otherwise.
    pub(super) fn borrow(&mut self, lock: Lock, lent: Arc<Lent>) {
        if let Some(hook) = &mut self.hook {
            hook.borrow(lock, lent);
            return;
        }
        // SAFETY: `file` is the open main file of the connection. Its method table is constant data of the VFS, copied here; the copy
        // lives in a box that outlives the connection (see `drop`), and no other thread uses this connection meanwhile.
        unsafe {
            let original = (*self.file.as_ptr()).pMethods;
            let mut hook = Box::new(Hook {
                methods: *original,
                original,
                write: None,
                checkpoint: None,
            });
            hook.borrow(lock, lent);
            hook.methods.xShmLock = Some(lock_or_borrow);
            (*self.file.as_ptr()).pMethods = &raw const hook.methods;
            self.hook = Some(hook);
        }
    }

    /// When this connection empties the log, its header is erased instead of cutting the file: to recovery that is the same, and it takes
    /// no time, whatever the length of the file. The log is open.
    pub(super) fn empty_by_erasing(&mut self) -> rusqlite::Result<()> {
        let file = file_of(&self.connection, ffi::SQLITE_FCNTL_JOURNAL_POINTER)?;
        // SAFETY: `file` is the log of the connection, which stays open as long as the connection does. Its method table is constant data
        // of the VFS, copied here; the copy lives until the original is put back (see `drop`), and nobody else uses this connection.
        unsafe {
            let original = (*file.as_ptr()).pMethods;
            if original.is_null() || self.log_hook.is_some() {
                return Ok(());
            }
            let mut methods = Box::new(*original);
            methods.xTruncate = Some(erase_or_truncate);
            (*file.as_ptr()).pMethods = &raw const *methods;
            self.log_hook = Some(LogHook {
                file,
                original,
                _methods: methods,
            });
        }
        Ok(())
    }

    /// Keeps SQLite from moving pages when this connection commits, whatever the database's `auto_vacuum` says.
    pub(super) fn never_autovacuum(&self) -> Result<(), DoorError> {
        // SAFETY: the connection is open; the callback has no state and never unwinds.
        let code = unsafe {
            ffi::sqlite3_autovacuum_pages(
                self.connection.handle(),
                Some(vacuum_nothing),
                null_mut(),
                None,
            )
        };
        check("set the autovacuum callback", code)
    }

    /// Takes `lock` without waiting; false while somebody else has it.
    pub(super) fn take(&self, lock: Lock) -> Result<bool, DoorError> {
        match self.shared_lock(lock, ffi::SQLITE_SHM_LOCK) {
            ffi::SQLITE_OK => Ok(true),
            ffi::SQLITE_BUSY => Ok(false),
            code => Err(DoorError {
                doing: "lock the wal-index",
                code,
            }),
        }
    }

    /// Gives back `lock`, which this connection has taken.
    pub(super) fn give_back(&self, lock: Lock) {
        // Unlocking a lock that is held does not fail short of a closed descriptor, and then the lock is gone too.
        let _ = self.shared_lock(lock, ffi::SQLITE_SHM_UNLOCK);
    }

    fn shared_lock(&self, lock: Lock, action: c_int) -> c_int {
        let (at, count, kind) = match lock {
            Lock::Write => (WRITE, 1, ffi::SQLITE_SHM_EXCLUSIVE),
            Lock::Checkpoint => (CHECKPOINT, 1, ffi::SQLITE_SHM_EXCLUSIVE),
            Lock::Readers => (FIRST_READER + 1, 4, ffi::SQLITE_SHM_EXCLUSIVE),
            Lock::Reader(slot) => (
                FIRST_READER + c_int::from(slot.min(4)),
                1,
                ffi::SQLITE_SHM_SHARED,
            ),
        };
        // SAFETY: the file is open and its method table valid. A file that has no shared memory open answers with an error.
        unsafe {
            match (*self.methods()).xShmLock {
                Some(method) if (*self.methods()).iVersion >= 2 => {
                    method(self.file.as_ptr(), at, count, action | kind)
                }
                _ => ffi::SQLITE_IOERR_SHMLOCK,
            }
        }
    }

    /// The first words of the wal-index, each read once, the copies of the header in the order in which a reader must read them.
    ///
    /// # Errors
    /// The database has no shared memory, or it is too small to hold anything yet.
    pub(super) fn index(&self) -> Result<[u32; INDEX_WORDS], DoorError> {
        let words = match self.index.get() {
            Some(words) => words,
            None => self.map_index()?,
        };
        let mut read = [0; INDEX_WORDS];
        for (at, word) in read.iter_mut().enumerate() {
            if at == 12 || at == 24 {
                fence(Ordering::SeqCst);
            }
            // SAFETY: the mapping is 32 KiB, page-aligned, and stays as long as this connection does. Other processes write to it;
            // every word is read atomically, and what is torn between words is found by the header's two copies and checksum.
            *word = unsafe { AtomicU32::from_ptr(words.as_ptr().add(at)) }.load(Ordering::Relaxed);
        }
        Ok(read)
    }

    /// Where the wal-index is mapped. It stays there until the connection is closed or leaves write-ahead mode, which ours never do.
    fn map_index(&self) -> Result<NonNull<u32>, DoorError> {
        let mut mapped: *mut c_void = null_mut();
        // SAFETY: the file is open and its method table valid; the region is not extended. The method writes one pointer.
        let code = unsafe {
            match (*self.methods()).xShmMap {
                Some(method) if (*self.methods()).iVersion >= 2 => {
                    method(self.file.as_ptr(), 0, SHARED_MAP, 0, &raw mut mapped)
                }
                _ => ffi::SQLITE_IOERR_SHMMAP,
            }
        };
        check("map the wal-index", code)?;
        let words = NonNull::new(mapped.cast::<u32>()).ok_or(DoorError {
            doing: "map the wal-index, which is still empty",
            code: ffi::SQLITE_IOERR_SHMMAP,
        })?;
        self.index.set(Some(words));
        Ok(words)
    }

    /// Fills `buffer` from the database file at `offset`, with zeroes past its end.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), DoorError> {
        let (Ok(length), Ok(offset)) = (c_int::try_from(buffer.len()), i64::try_from(offset))
        else {
            return Err(DoorError {
                doing: "read the database file",
                code: ffi::SQLITE_TOOBIG,
            });
        };
        // SAFETY: the file is open, its method table valid, and the buffer as long as said.
        let code = unsafe {
            match (*self.methods()).xRead {
                Some(method) => method(
                    self.file.as_ptr(),
                    buffer.as_mut_ptr().cast::<c_void>(),
                    length,
                    offset,
                ),
                None => ffi::SQLITE_IOERR_READ,
            }
        };
        match code {
            ffi::SQLITE_IOERR_SHORT_READ => Ok(()),
            code => check("read the database file", code),
        }
    }

    /// Makes the database file, as far as it was written, survive a loss of power.
    pub(super) fn sync(&self) -> Result<(), DoorError> {
        // SAFETY: the file is open and its method table valid.
        let code = unsafe {
            match (*self.methods()).xSync {
                Some(method) => method(self.file.as_ptr(), ffi::SQLITE_SYNC_NORMAL),
                None => ffi::SQLITE_IOERR_FSYNC,
            }
        };
        check("sync the database file", code)
    }

    /// Size of the database file in bytes.
    pub(super) fn size(&self) -> Result<u64, DoorError> {
        let mut size = 0;
        // SAFETY: the file is open and its method table valid; the method writes one integer.
        let code = unsafe {
            match (*self.methods()).xFileSize {
                Some(method) => method(self.file.as_ptr(), &raw mut size),
                None => ffi::SQLITE_IOERR_FSTAT,
            }
        };
        check("measure the database file", code)?;
        Ok(u64::try_from(size).unwrap_or(0))
    }

    fn methods(&self) -> *const ffi::sqlite3_io_methods {
        // SAFETY: the file is open as long as the connection is, which this value owns.
        unsafe { (*self.file.as_ptr()).pMethods }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(hook) = &self.log_hook {
            // SAFETY: as below, for the log.
            unsafe { (*hook.file.as_ptr()).pMethods = hook.original };
        }
        if let Some(hook) = &self.hook {
            // SAFETY: the connection, and with it the file, is closed only after this; a connection that fails to close must not be
            // left with a pointer to the hook.
            unsafe { (*self.file.as_ptr()).pMethods = hook.original };
        }
    }
}

/// `xShmLock` of a file with a [`Hook`].
///
/// # Safety
/// SQLite calls it with the file whose method table is the first field of a [`Hook`].
unsafe extern "C" fn lock_or_borrow(
    file: *mut ffi::sqlite3_file,
    at: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: the method table of `file` is the first field of a `Hook`, which lives until the table is put back.
    let hook = unsafe { &*(*file).pMethods.cast::<Hook>() };
    let lock = match (at, count) {
        (WRITE, 1) => Some(Lock::Write),
        (CHECKPOINT, 1) => Some(Lock::Checkpoint),
        _ => None,
    };
    let lender = lock.and_then(|lock| hook.lender(lock).map(|lent| (lock, lent)));
    match lender {
        Some((lock, lent)) => {
            if flags & ffi::SQLITE_SHM_UNLOCK != 0 || lent.has(lock) {
                ffi::SQLITE_OK
            } else {
                ffi::SQLITE_BUSY
            }
        }
        None => {
            // SAFETY: the original table is constant data of the VFS.
            let original = unsafe { (*hook.original).xShmLock };
            original.map_or(ffi::SQLITE_IOERR_SHMLOCK, |method| {
                // SAFETY: the original method, with the arguments of the call.
                unsafe { method(file, at, count, flags) }
            })
        }
    }
}

/// `xTruncate` of a log whose header is to be erased instead of cutting it to nothing. Any other length is none of its business: it is
/// asked for by `journal_size_limit` only, which this connection does not set.
///
/// # Safety
/// SQLite calls it with an open file.
unsafe extern "C" fn erase_or_truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    const ERASED: [u8; 32] = [0; 32];
    if size != 0 {
        return ffi::SQLITE_OK;
    }
    // SAFETY: the method table of an open file is valid.
    let write = unsafe { (*(*file).pMethods).xWrite };
    write.map_or(ffi::SQLITE_IOERR_WRITE, |method| {
        // SAFETY: the buffer is as long as said, and writing does not change it.
        unsafe { method(file, ERASED.as_ptr().cast::<c_void>(), 32, 0) }
    })
}

/// One of the files of a connection.
fn file_of(connection: &Connection, which: c_int) -> rusqlite::Result<NonNull<ffi::sqlite3_file>> {
    let mut file: *mut ffi::sqlite3_file = null_mut();
    // SAFETY: the handle is that of an open connection, the name is a C string, and these operations write one pointer to `file`.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            which,
            (&raw mut file).cast::<c_void>(),
        )
    };
    match NonNull::new(file) {
        Some(file) if code == ffi::SQLITE_OK => Ok(file),
        _ => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

extern "C" fn vacuum_nothing(
    _: *mut c_void,
    _: *const c_char,
    _pages: c_uint,
    _free: c_uint,
    _page_size: c_uint,
) -> c_uint {
    0
}

const fn check(doing: &'static str, code: c_int) -> Result<(), DoorError> {
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(DoorError { doing, code }),
    }
}
