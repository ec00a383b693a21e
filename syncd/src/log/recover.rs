//! Opening a log after anything: the longest prefix that is whole, and what had to be cut off behind it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shared::model::Position;

use super::segment::{HEADER, Record, Segment, SegmentHeader};
use super::{Cut, LogError, Point};
use crate::wire::increment::Head;

/// What was found in a folder.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) segments: VecDeque<Segment>,
    pub(super) mark: Option<Vec<u8>>,
    pub(super) cut: Option<Cut>,
}

/// Finds the segments in `folder` and cuts off what is not whole.
pub(super) fn recover(folder: &Path) -> Result<Found, LogError> {
    let mut files = headers(folder)?;
    // What was before the last new beginning is only there because a crash kept it from being removed.
    let first = files
        .iter()
        .rposition(|(header, ..)| header.is_fresh)
        .unwrap_or(0);
    for (_, path, _) in files.drain(..first) {
        fs::remove_file(&path).map_err(LogError::io("remove", &path))?;
    }
    let mut found = Found::default();
    let mut files = files.into_iter().peekable();
    while let Some((header, path, file)) = files.next() {
        if found
            .segments
            .back()
            .is_some_and(|before| before.end != header.base)
        {
            found.cut_file(&path, "it does not continue the segment before it")?;
            break;
        }
        let mut segment = Segment::of(&header, path, file);
        let torn = walk(&mut segment, &mut found.mark)?;
        let end = segment.end;
        if let Some(why) = torn {
            found.cut_segment(&segment, why)?;
        }
        found.segments.push_back(segment);
        if found.cut.is_some() {
            if files.peek().is_none_or(|(next, ..)| next.base != end) {
                break;
            }
            // Nothing is missing: it was the seal that a crash tore.
            found.cut = None;
        }
    }
    for (_, path, _) in files {
        found.cut_file(&path, "it follows a segment that is not whole")?;
    }
    Ok(found)
}

impl Found {
    /// Cuts off the end of a segment; it is torn after a crash.
    fn cut_segment(&mut self, segment: &Segment, why: String) -> Result<(), LogError> {
        let failed = |doing| LogError::io(doing, &segment.path);
        let length = segment.file.metadata().map_err(failed("measure"))?.len();
        segment
            .file
            .set_len(segment.length)
            .map_err(failed("shorten"))?;
        segment.file.sync_all().map_err(failed("sync"))?;
        self.cut = Some(Cut {
            path: segment.path.clone(),
            offset: segment.length,
            bytes: length.saturating_sub(segment.length),
            why,
        });
        Ok(())
    }

    /// Removes a whole segment.
    fn cut_file(&mut self, path: &Path, why: &str) -> Result<(), LogError> {
        let length = fs::metadata(path)
            .map_err(LogError::io("measure", path))?
            .len();
        fs::remove_file(path).map_err(LogError::io("remove", path))?;
        let cut = self.cut.get_or_insert_with(|| Cut {
            path: path.into(),
            offset: 0,
            bytes: 0,
            why: why.to_owned(),
        });
        cut.bytes += length;
        Ok(())
    }
}

/// The segments in `folder` that have a header, in order. Those that have none were being made when a crash came.
fn headers(folder: &Path) -> Result<Vec<(SegmentHeader, PathBuf, File)>, LogError> {
    let mut files = Vec::new();
    let failed = || LogError::io("read", folder);
    for entry in fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        match SegmentHeader::read(&file).map_err(LogError::io("read", &path))? {
            Some(header) => files.push((header, path, file)),
            None => fs::remove_file(&path).map_err(LogError::io("remove", &path))?,
        }
    }
    files.sort_by_key(|(header, ..)| header.ordinal);
    Ok(files)
}

/// Walks through a segment and notes what is whole. Returns what is wrong behind that, if anything is there.
fn walk(segment: &mut Segment, mark: &mut Option<Vec<u8>>) -> Result<Option<String>, LogError> {
    let is_sealed = is_sealed(segment)?;
    let mut open: Option<(Position, u32, u64)> = None;
    let mut offset = HEADER as u64;
    let mut body = Vec::new();
    loop {
        let record = match Record::read(&segment.file, offset)
            .map_err(LogError::io("read", &segment.path))?
        {
            Ok(Some(record)) => record,
            Ok(None) => {
                let torn = open.map(|_| "the last transaction is not complete".to_owned());
                return Ok(torn);
            }
            Err(error) => return Ok(Some(error.to_string())),
        };
        match &record {
            Record::Increment(head) => {
                if let Some(why) = misplaced(segment.end, open, head) {
                    return Ok(Some(why.to_owned()));
                }
                if !is_sealed && let Some(why) = check_body(segment, head, offset, &mut body)? {
                    return Ok(Some(why));
                }
                let begins = open.map_or(offset, |(_, _, begins)| begins);
                if head.last {
                    open = None;
                    segment.note(head.position.seq, begins);
                    segment.end = Point {
                        position: head.position,
                        content: head.post,
                    };
                    segment.length = offset + record.len();
                    *mark = None;
                } else {
                    open = Some((head.position, head.part + 1, begins));
                }
            }
            Record::Mark { seq, mark: bytes } => {
                if open.is_some() || *seq != segment.end.position.seq {
                    return Ok(Some("a mark is out of place".to_owned()));
                }
                *mark = Some(bytes.clone());
                segment.length = offset + record.len();
            }
            Record::Seal { .. } => {
                segment.is_sealed = is_sealed;
                return Ok(None);
            }
        }
        offset += record.len();
    }
}

/// Whether the file ends with a seal, so that its bodies need not be checked again.
fn is_sealed(segment: &Segment) -> Result<bool, LogError> {
    let failed = LogError::io("read", &segment.path);
    let seal = super::segment::encode_seal(0).len() as u64;
    let read = || {
        let length = segment.file.metadata()?.len();
        let Some(offset) = length
            .checked_sub(seal)
            .filter(|offset| *offset >= HEADER as u64)
        else {
            return Ok(false);
        };
        Ok(matches!(
            Record::read(&segment.file, offset)?,
            Ok(Some(Record::Seal { .. }))
        ))
    };
    read().map_err(failed)
}

/// What is wrong with an increment behind a point and the open parts of a transaction.
fn misplaced(end: Point, open: Option<(Position, u32, u64)>, head: &Head) -> Option<&'static str> {
    let continues = match open {
        Some((position, part, _)) => head.position == position && head.part == part,
        None => {
            head.part == 0
                && head.position.seq == end.position.seq + 1
                && head.position.generation == end.position.generation
                && head.position.epoch >= end.position.epoch
        }
    };
    (!continues || head.pre != end.content)
        .then_some("an increment does not continue the one before it")
}

fn check_body(
    segment: &Segment,
    head: &Head,
    offset: u64,
    bytes: &mut Vec<u8>,
) -> Result<Option<String>, LogError> {
    bytes.resize(head.encoded_len(), 0);
    match segment.file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(head.check_body(bytes).err().map(|error| error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Ok(Some("an increment is cut off".to_owned()))
        }
        Err(error) => Err(LogError::io("read", &segment.path)(error)),
    }
}
