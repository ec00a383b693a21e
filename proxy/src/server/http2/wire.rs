//! The socket below an HTTP/2 connection: what is written is joined until the connection is pressed on, and the frames that
//! come are watched as they pass.
//!
//! The library writes and flushes frame by frame. Here a flush waits until every stream has had its turn, so that many small
//! responses leave in one call (and one TLS record).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;

/// So much is joined before the library has to wait, in bytes.
const JOINED_MOST: usize = 64 << 10;
/// A buffer that has grown beyond this is not kept, in bytes.
const KEPT_MOST: usize = 128 << 10;

/// One end for the library, one for the connection; both are the same.
#[derive(Debug)]
pub(super) struct Wire<T>(Rc<Inner<T>>);

impl<T> Clone for Wire<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<T> {
    io: RefCell<T>,
    /// What was read before it was known what the client speaks.
    before: RefCell<BytesMut>,
    frames: RefCell<Frames>,
    out: RefCell<Out>,
    blocked: Cell<bool>,
    /// How often the system took something, as a measure of progress.
    writes: Cell<u32>,
}

#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
    at: usize,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    pub(super) fn new(io: T, before: BytesMut) -> Self {
        Self(Rc::new(Inner {
            io: RefCell::new(io),
            before: RefCell::new(before),
            frames: RefCell::default(),
            out: RefCell::default(),
            blocked: Cell::new(false),
            writes: Cell::new(0),
        }))
    }

    /// Looks at the frames that came.
    pub(super) fn with_frames<R>(&self, look: impl FnOnce(&mut Frames) -> R) -> R {
        look(&mut self.0.frames.borrow_mut())
    }

    /// How often the system took something, if it did not take everything.
    pub(super) fn stuck_at(&self) -> Option<u32> {
        self.0.blocked.get().then(|| self.0.writes.get())
    }

    /// Passes on what was joined; ready when the system has all of it.
    pub(super) fn poll_press(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pressed = self.poll_out(context);
        self.0.blocked.set(pressed.is_pending());
        pressed
    }

    fn poll_out(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = self.0.out.borrow_mut();
        let mut io = self.0.io.borrow_mut();
        while out.at < out.bytes.len() {
            let written = ready!(Pin::new(&mut *io).poll_write(context, &out.bytes[out.at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.at += written;
            self.0.writes.set(self.0.writes.get().wrapping_add(1));
            self.0.frames.borrow_mut().handle_written(written);
        }
        out.at = 0;
        if out.bytes.capacity() > KEPT_MOST {
            out.bytes = Vec::new();
        }
        out.bytes.clear();
        Pin::new(&mut *io).poll_flush(context)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &self.0;
        let mut frames = inner.frames.borrow_mut();
        if frames.are_too_many() {
            // Whoever asked is about to hear of it.
            return Poll::Pending;
        }
        let had = into.filled().len();
        let mut before = inner.before.borrow_mut();
        if before.is_empty() {
            ready!(Pin::new(&mut *inner.io.borrow_mut()).poll_read(context, into))?;
        } else {
            let length = before.len().min(into.remaining());
            into.put_slice(&before[..length]);
            before.advance(length);
            if before.is_empty() {
                *before = BytesMut::new();
            }
        }
        frames.handle_read(&into.filled()[had..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let waiting = || {
            let out = self.0.out.borrow();
            out.bytes.len() - out.at
        };
        if waiting() >= JOINED_MOST
            && let Poll::Ready(Err(error)) = self.poll_press(context)
        {
            return Poll::Ready(Err(error));
        }
        if waiting() >= JOINED_MOST {
            return Poll::Pending;
        }
        self.0.out.borrow_mut().bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Does nothing: see [`Wire::poll_press`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_press(context))?;
        Pin::new(&mut *self.0.io.borrow_mut()).poll_shutdown(context)
    }
}
