//! Two connections joined: what one side says goes to the other, until one of them, or the world, ends it.
//!
//! A tunnel at rest costs no buffer: what is read passes through one that the worker has for all, and only what the other
//! side does not take at once is kept, and nothing more is read before that is gone.
//!
//! Whoever speaks WebSocket is told why it ends (RFC 6455 §7.4), and that must not fall into the middle of a frame; so frames
//! are followed, see `exchange::websocket`.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use shared::clock;
use shared::rng::Rng;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::connection::After;
use super::{House, LINGER};
use crate::exchange::websocket::{Code, Frames, close, masked_close};
use crate::exchange::{Bond, Closer, Deadline, Tunnel};

/// How much is read at once, in bytes; what one side does not take is bounded by this.
pub(super) const PIECE: usize = 64 << 10;
/// So many pieces pass in one direction before it is another connection's turn.
const PIECES_AT_ONCE: u32 = 16;
/// The protocol whose frames are followed.
const WEBSOCKET: &str = "websocket";

/// A tunnel that is about to begin.
#[derive(Debug)]
pub(super) struct Opened<B> {
    /// The way to the node.
    pub(super) tunnel: Box<Tunnel>,
    /// The answer to the client, written.
    pub(super) head: Vec<u8>,
    /// Writes down how it was when it is dropped.
    pub(super) _record: B,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Both sides have said all.
    Done,
    /// The client broke off.
    Client,
    /// The node broke off.
    Node,
    /// By us.
    Cut(Code),
}

/// Joins the client, who has said `said` already, to the node until the end. Says how the client's side is to be ended.
pub(super) async fn run<C: AsyncRead + AsyncWrite + Unpin, B>(
    client: C,
    said: &[u8],
    opened: Opened<B>,
    deadline: &Deadline,
    house: &House,
) -> After {
    let Opened {
        tunnel,
        head,
        _record,
    } = opened;
    let Tunnel {
        node,
        early,
        protocol,
        bond,
    } = *tunnel;
    let Some(bond) = bond else {
        return After::Abort;
    };
    let frames = || (*protocol == *WEBSOCKET).then(Frames::default);
    let (mut up, mut down) = (Flow::new(frames()), Flow::new(frames()));
    down.rest = head;
    down.take_in(&early);
    bond.trail.passed(early.len());
    drop(early);
    up.take_in(said);
    bond.trail.received(said.len());
    deadline.move_to(bond.idle);
    let mut joint = Joint {
        client,
        node,
        up,
        down,
        bond,
        deadline,
        house,
    };
    let ended = poll_fn(|context| joint.poll(context)).await;
    let trail = &joint.bond.trail;
    match ended {
        Ended::Done => After::Close,
        Ended::Client => {
            trail.closed_by(Closer::Client);
            After::Abort
        }
        Ended::Node => {
            trail.closed_by(Closer::Upstream);
            After::Abort
        }
        Ended::Cut(code) => {
            trail.closed_by(Closer::Proxy);
            // Whoever does not take it is gone without it.
            let _ = timeout(LINGER, joint.say_goodbye(code)).await;
            After::Linger
        }
    }
}

struct Joint<'t, C> {
    client: C,
    node: Pin<Box<dyn crate::exchange::Wire>>,
    /// From the client to the node.
    up: Flow,
    /// From the node to the client.
    down: Flow,
    bond: Bond,
    deadline: &'t Deadline,
    house: &'t House,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Joint<'_, C> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        if !self.bond.leash.holds() {
            return Poll::Ready(Ended::Cut(Code::ServiceRestart));
        }
        if self.house.is_ending() {
            return Poll::Ready(Ended::Cut(Code::GoingAway));
        }
        let (client, node) = (&mut self.client, &mut self.node);
        let mut piece = self.house.piece();
        let (mut upwards, mut downwards) = (0, 0);
        let up = self.up.poll(
            Pin::new(&mut *client),
            node.as_mut(),
            &mut piece,
            &mut upwards,
            context,
        );
        let down = self.down.poll(
            node.as_mut(),
            Pin::new(&mut *client),
            &mut piece,
            &mut downwards,
            context,
        );
        self.bond.trail.received(upwards);
        self.bond.trail.passed(downwards);
        match (up, down) {
            (Poll::Ready(Err(Broken::Source)), _) | (_, Poll::Ready(Err(Broken::Sink))) => {
                return Poll::Ready(Ended::Client);
            }
            (Poll::Ready(Err(Broken::Sink)), _) | (_, Poll::Ready(Err(Broken::Source))) => {
                return Poll::Ready(Ended::Node);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Done),
            (Poll::Pending, _) | (_, Poll::Pending) => (),
        }
        if upwards + downwards > 0 {
            self.deadline.move_to(self.bond.idle);
        }
        if self.deadline.has_passed(context) {
            return Poll::Ready(Ended::Cut(Code::GoingAway));
        }
        Poll::Pending
    }

    /// Tells both sides why it ends, as far as they understand it. Nothing of the client's reaches the node any more.
    async fn say_goodbye(&mut self, code: Code) -> io::Result<()> {
        if self.up.rest.is_empty() && self.up.may_close() {
            let mask = Rng::with_seed(clock::unix_nanos()).u32(..).to_ne_bytes();
            poll_fn(|context| {
                // It takes it now or not at all: a node that has lost its role is not waited for.
                let _ = self
                    .node
                    .as_mut()
                    .poll_write(context, &masked_close(code, mask));
                let _ = self.node.as_mut().poll_flush(context);
                Poll::Ready(())
            })
            .await;
        }
        poll_fn(|context| self.poll_end_frame(context)).await?;
        if self.down.may_close() {
            self.client.write_all(&close(code)).await?;
            self.client.flush().await?;
        }
        Ok(())
    }

    /// Passes on what the node has begun to say, up to the end of its frame and never beyond.
    fn poll_end_frame(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let client = &mut self.client;
        let mut piece = self.house.piece();
        loop {
            ready!(self.down.poll_rest(Pin::new(&mut *client), context))
                .map_err(|_| io::ErrorKind::BrokenPipe)?;
            let owed = self
                .down
                .frames
                .as_ref()
                .and_then(Frames::owed)
                .unwrap_or(0);
            let room = usize::try_from(owed).unwrap_or(PIECE).min(PIECE);
            if room == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut piece[..room]);
            ready!(self.node.as_mut().poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.down.take_in(buffer.filled());
            self.bond.trail.passed(buffer.filled().len());
        }
    }
}

/// Which side of a direction broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Source,
    Sink,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    /// What was not taken yet.
    rest: Vec<u8>,
    /// How much of it was taken since.
    at: usize,
    /// Whether something was taken that may still be held back on its way.
    unflushed: bool,
    /// Whether its source has said all.
    ended: bool,
    /// Whether its sink has been told so.
    shut: bool,
    frames: Option<Frames>,
}

impl Flow {
    const fn new(frames: Option<Frames>) -> Self {
        Self {
            rest: Vec::new(),
            at: 0,
            unflushed: false,
            ended: false,
            shut: false,
            frames,
        }
    }

    /// Keeps what is to be passed on.
    fn take_in(&mut self, bytes: &[u8]) {
        if let Some(frames) = &mut self.frames {
            frames.follow(bytes);
        }
        self.rest.extend_from_slice(bytes);
    }

    /// Whether a Close frame may stand here.
    fn may_close(&self) -> bool {
        !self.ended && self.frames.as_ref().is_some_and(Frames::may_close)
    }

    /// Passes on what there is; ready when all is said. Adds to `moved` what came.
    fn poll<A, B>(
        &mut self,
        mut source: Pin<&mut A>,
        mut sink: Pin<&mut B>,
        piece: &mut [u8],
        moved: &mut usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        A: AsyncRead + ?Sized,
        B: AsyncWrite + ?Sized,
    {
        for _ in 0..PIECES_AT_ONCE {
            ready!(self.poll_rest(sink.as_mut(), context))?;
            if self.ended {
                if !self.shut {
                    // A side that is gone need not be told.
                    let _ = ready!(sink.as_mut().poll_shutdown(context));
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(piece);
            match source.as_mut().poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) => (),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Source)),
                Poll::Pending => {
                    ready!(self.poll_flush(sink.as_mut(), context))?;
                    return Poll::Pending;
                }
            }
            let filled = buffer.filled();
            self.ended = filled.is_empty();
            *moved += filled.len();
            if let Some(frames) = &mut self.frames {
                frames.follow(filled);
            }
            let mut at = 0;
            while at < filled.len() {
                match sink.as_mut().poll_write(context, &filled[at..]) {
                    Poll::Ready(Ok(taken @ 1..)) => at += taken,
                    Poll::Ready(_) => return Poll::Ready(Err(Broken::Sink)),
                    Poll::Pending => break,
                }
                self.unflushed = true;
            }
            self.rest.extend_from_slice(&filled[at..]);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Passes on what is left of before, and gives its memory back.
    fn poll_rest<B: AsyncWrite + ?Sized>(
        &mut self,
        mut sink: Pin<&mut B>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        while self.at < self.rest.len() {
            match ready!(sink.as_mut().poll_write(context, &self.rest[self.at..])) {
                Ok(taken @ 1..) => self.at += taken,
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Sink)),
            }
            self.unflushed = true;
        }
        if self.rest.capacity() > 0 {
            self.rest = Vec::new();
            self.at = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush<B: AsyncWrite + ?Sized>(
        &mut self,
        sink: Pin<&mut B>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        if self.unflushed {
            ready!(sink.poll_flush(context)).map_err(|_| Broken::Sink)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
