//! Finding points in a log by seq or by content. Only heads are read, from the nearest place that the index knows.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use shared::model::Position;

use super::segment::{HEADER, Record, Segment};
use super::{LogError, Point, Shared};
use crate::wire::increment::Head;

/// Enough of a segment to read it without holding the log.
struct Span {
    ordinal: u64,
    file: Arc<File>,
    path: PathBuf,
    base: Point,
    from: u64,
    until: u64,
}

impl Span {
    fn of(segment: &Segment, from: u64) -> Self {
        Self {
            ordinal: segment.ordinal,
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            base: segment.base,
            from,
            until: segment.length,
        }
    }

    /// Walks over the increments and says of each where what follows it begins; stops when `visit` says so.
    fn walk(&self, mut visit: impl FnMut(&Head, u64) -> bool) -> Result<(), LogError> {
        let mut offset = self.from;
        while offset < self.until {
            let read =
                Record::read(&self.file, offset).map_err(LogError::io("read", &self.path))?;
            let record = read.map_err(|why| LogError::Damaged {
                path: self.path.clone(),
                offset,
                why,
            })?;
            let Some(record) = record else {
                return Ok(());
            };
            offset += record.len();
            if let Record::Increment(head) = &record
                && visit(head, offset)
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The point with this seq.
pub(super) fn point_at(shared: &Shared, seq: u64) -> Result<Option<Point>, LogError> {
    let span = {
        let state = shared.state();
        if let Some(start) = state.start().filter(|start| start.position.seq == seq) {
            return Ok(Some(start));
        }
        if let Some(end) = state.end().filter(|end| end.position.seq == seq) {
            return Ok(Some(end));
        }
        let segment = state.segments.iter().find(|segment| segment.contains(seq));
        segment.map(|segment| Span::of(segment, segment.near(seq)))
    };
    let Some(span) = span else {
        return Ok(None);
    };
    let mut found = None;
    span.walk(|head, _| {
        if head.position.seq == seq {
            found = Some(Point {
                position: head.position,
                content: head.post,
            });
        }
        found.is_some()
    })?;
    Ok(found)
}

/// The newest point with this content.
pub(super) fn find_content(shared: &Shared, content: u64) -> Result<Option<Point>, LogError> {
    let spans: Vec<_> = {
        let state = shared.state();
        if let Some(end) = state.end().filter(|end| end.content == content) {
            return Ok(Some(end));
        }
        let whole = |segment| Span::of(segment, HEADER as u64);
        state.segments.iter().rev().map(whole).collect()
    };
    for span in spans {
        let mut found = (span.base.content == content).then_some(span.base);
        span.walk(|head, _| {
            if head.last && head.post == content {
                found = Some(Point {
                    position: head.position,
                    content,
                });
            }
            false
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Where a reader finds the first increment after `seq`: the segment, its file, and an offset not behind it. `None` if nothing is there yet.
pub(super) fn locate(shared: &Shared, after_seq: u64) -> Option<(Arc<File>, PathBuf, u64)> {
    let state = shared.state();
    let segment = state
        .segments
        .iter()
        .find(|segment| segment.contains(after_seq + 1))?;
    let offset = segment.near(after_seq + 1);
    Some((Arc::clone(&segment.file), segment.path.clone(), offset))
}

/// The segment in which `position` is the last transaction to keep, the length of what is kept of it, and the point there.
pub(super) fn locate_end(
    shared: &Shared,
    position: Position,
) -> Result<(u64, u64, Point), LogError> {
    let span = {
        let state = shared.state();
        let first = state
            .segments
            .front()
            .filter(|first| first.base.position == position);
        if let Some(first) = first {
            return Ok((first.ordinal, HEADER as u64, first.base));
        }
        let segment = state
            .segments
            .iter()
            .find(|segment| segment.contains(position.seq));
        let segment = segment.ok_or(LogError::Unknown(position))?;
        Span::of(segment, segment.near(position.seq))
    };
    let mut found = None;
    span.walk(|head, next| {
        if head.position == position && head.last {
            let end = Point {
                position,
                content: head.post,
            };
            found = Some((span.ordinal, next, end));
        }
        head.position.seq >= position.seq && head.last
    })?;
    found.ok_or(LogError::Unknown(position))
}
