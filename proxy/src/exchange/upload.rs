//! A request's body on its way to nodes: read once from the client, kept while it is small enough to be sent again.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as HttpBody;

use super::{Body, Deadline, Deadlines, Fault, TICK, Trail, trailers};
use crate::logic::rate::Rate;

/// A client's body and what is kept of it.
pub struct Replay {
    source: Body,
    length: Option<u64>,
    kept: Vec<u8>,
    room: usize,
    whole: bool,
    ended: bool,
    trailers: Option<Box<HeaderMap>>,
    moved: u64,
    idle: Idle,
    trail: Rc<Trail>,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("length", &self.length)
            .field("kept", &self.kept.len())
            .field("whole", &self.whole)
            .finish_non_exhaustive()
    }
}

/// The client's patience: armed only while nothing comes.
struct Idle {
    deadlines: Deadlines,
    most: Duration,
    /// Since which tick something is awaited, and until when.
    waiting: Option<(u32, Deadline)>,
    rate: Rate,
    /// The response has begun: the client may be waiting for the rest of it.
    is_answered: bool,
}

impl Replay {
    /// Takes over a body. At most `room` bytes are kept.
    #[must_use]
    pub fn new(
        source: Body,
        room: usize,
        deadlines: &Deadlines,
        trail: &Rc<Trail>,
    ) -> Rc<RefCell<Self>> {
        let length = source.size_hint().exact();
        let fits = length.is_none_or(|length| length <= room as u64);
        Rc::new(RefCell::new(Self {
            source,
            length,
            kept: Vec::new(),
            room,
            whole: fits,
            ended: false,
            trailers: None,
            moved: 0,
            idle: Idle {
                deadlines: deadlines.clone(),
                most: trail.peer.body_idle,
                waiting: None,
                rate: Rate::new(trail.peer.least_rate, trail.peer.body_idle),
                is_answered: false,
            },
            trail: Rc::clone(trail),
        }))
    }

    /// Whether it can be sent from its beginning: it was never read, or all that was read is kept.
    #[must_use]
    pub const fn is_replayable(&self) -> bool {
        self.whole || self.moved == 0
    }

    /// How many bytes are kept in memory.
    #[must_use]
    pub const fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Whether the client has sent all of it.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// How many bytes have come from the client: a measure of progress.
    #[must_use]
    pub const fn moved(&self) -> u64 {
        self.moved
    }

    /// Notes that the response has begun before the request has ended: the two are a dialogue from now on, in which the client
    /// may have nothing to say for long, and only both together may not.
    pub fn set_answered(&mut self) {
        self.idle.is_answered = true;
        self.idle.waiting = None;
    }

    fn poll_from(
        &mut self,
        at: &mut usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Fault>>> {
        if self.whole && *at < self.kept.len() {
            let again = Bytes::copy_from_slice(&self.kept[*at..]);
            *at = self.kept.len();
            return Poll::Ready(Some(Ok(again)));
        }
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match Pin::new(&mut self.source).poll_frame(context) {
                Poll::Pending => return self.poll_patience(context),
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Err(fault))) => return Poll::Ready(Some(Err(fault))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => (),
                    Ok(data) => {
                        let too_slow = self.keep(&data);
                        *at = self.kept.len();
                        return Poll::Ready(Some(if too_slow {
                            Err(Fault::BodyTooSlow)
                        } else {
                            Ok(data)
                        }));
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().ok();
                        self.trailers = trailers.and_then(trailers::allowed).map(Box::new);
                    }
                },
            }
        }
    }

    /// Takes in what came; returns whether the client sends too slowly.
    fn keep(&mut self, data: &Bytes) -> bool {
        if let Some((since, _)) = self.idle.waiting.take() {
            let ticks = self.idle.deadlines.ticks().saturating_sub(since);
            self.idle.rate.handle_wait(TICK * ticks);
        }
        self.moved += data.len() as u64;
        self.trail.received(data.len());
        self.ended = self.source.is_end_stream();
        self.whole = self.whole && self.kept.len() + data.len() <= self.room;
        if self.whole {
            self.kept.extend_from_slice(data);
        } else {
            self.kept = Vec::new();
        }
        if self.idle.is_answered {
            return false;
        }
        let too_few = self.idle.rate.handle_bytes(data.len() as u64);
        too_few && !self.ended
    }

    fn poll_patience(&mut self, context: &Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let Idle {
            deadlines,
            most,
            waiting,
            rate: _,
            is_answered,
        } = &mut self.idle;
        if *is_answered {
            return Poll::Pending;
        }
        let (_, deadline) =
            waiting.get_or_insert_with(|| (deadlines.ticks(), deadlines.after(*most)));
        if deadline.has_passed(context) {
            return Poll::Ready(Some(Err(Fault::BodyTooSlow)));
        }
        Poll::Pending
    }
}

/// One sending of a body.
#[derive(Debug, Default)]
pub struct Upload {
    replay: Option<Rc<RefCell<Replay>>>,
    at: usize,
}

impl Upload {
    /// Sends `replay` from its beginning.
    #[must_use]
    pub const fn new(replay: Rc<RefCell<Replay>>) -> Self {
        Self {
            replay: Some(replay),
            at: 0,
        }
    }

    /// Sends nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            replay: None,
            at: 0,
        }
    }

    /// What is sent, to follow its progress.
    #[must_use]
    pub const fn replay(&self) -> Option<&Rc<RefCell<Replay>>> {
        self.replay.as_ref()
    }

    /// Whether there is no body.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.replay.is_none()
    }

    /// Its length, if it is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match &self.replay {
            Some(replay) => replay.borrow().length,
            None => Some(0),
        }
    }

    /// Whether whatever is read of it now can be sent again, should not a byte of it be taken.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.replay
            .as_ref()
            .is_none_or(|replay| replay.borrow().whole)
    }

    /// What the client sent behind the body and may be passed on, to a node that can take it. Known when the body has ended.
    #[must_use]
    pub fn trailers(&self) -> Option<HeaderMap> {
        let replay = self.replay.as_ref()?.borrow();
        replay.trailers.as_deref().cloned()
    }

    /// The next piece; never an empty one.
    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        match &self.replay {
            Some(replay) => replay.borrow_mut().poll_from(&mut self.at, context),
            None => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use std::collections::VecDeque;
    use std::task::Waker;

    /// A body from a script; pending when the script is over.
    struct Script(VecDeque<&'static [u8]>);

    impl HttpBody for Script {
        type Data = Bytes;
        type Error = Fault;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece))))),
                None => Poll::Pending,
            }
        }
    }

    /// A body that comes a byte at a time, each after another wait.
    struct Drip(bool);

    impl HttpBody for Drip {
        type Data = Bytes;
        type Error = Fault;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            self.0 = !self.0;
            if self.0 {
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    fn replay(pieces: &[&'static [u8]], room: usize) -> (Rc<RefCell<Replay>>, Deadlines) {
        let deadlines = Deadlines::default();
        let source = Body::Stream(Box::pin(Script(pieces.iter().copied().collect())));
        let trail = Rc::new(Trail::for_test());
        (Replay::new(source, room, &deadlines, &trail), deadlines)
    }

    fn poll(upload: &mut Upload) -> Poll<Option<Result<Bytes, String>>> {
        let mut context = Context::from_waker(Waker::noop());
        upload
            .poll_data(&mut context)
            .map(|piece| piece.map(|piece| piece.map_err(|fault| fault.to_string())))
    }

    #[test]
    fn a_small_body_can_be_sent_again_and_goes_on_where_the_client_is() {
        let (replay, _) = replay(&[b"ab", b"cd"], 4);
        let mut first = Upload::new(Rc::clone(&replay));
        assert_eq!(poll(&mut first), Poll::Ready(Some(Ok("ab".into()))));
        let mut second = Upload::new(Rc::clone(&replay));
        assert_eq!(poll(&mut second), Poll::Ready(Some(Ok("ab".into()))));
        assert_eq!(poll(&mut second), Poll::Ready(Some(Ok("cd".into()))));
        assert!(replay.borrow().is_replayable());
        let mut third = Upload::new(Rc::clone(&replay));
        assert_eq!(poll(&mut third), Poll::Ready(Some(Ok("abcd".into()))));
        assert_eq!(poll(&mut third), Poll::Pending);
    }

    #[test]
    fn a_large_body_is_let_go_and_cannot_be_sent_again() {
        let (replay, _) = replay(&[b"ab", b"cde"], 4);
        let mut upload = Upload::new(Rc::clone(&replay));
        assert!(replay.borrow().is_replayable());
        while let Poll::Ready(Some(Ok(_))) = poll(&mut upload) {}
        assert!(!replay.borrow().is_replayable());
        assert_eq!((replay.borrow().kept(), replay.borrow().moved()), (0, 5));
    }

    #[test]
    fn a_client_that_pauses_for_too_long_is_a_fault() {
        let (replay, deadlines) = replay(&[b"ab"], 4);
        let mut upload = Upload::new(replay);
        assert!(poll(&mut upload).is_ready());
        assert_eq!(poll(&mut upload), Poll::Pending);
        for _ in 0..302 {
            deadlines.tick();
        }
        let slow = "the request's body is too slow".to_owned();
        assert_eq!(poll(&mut upload), Poll::Ready(Some(Err(slow))));
    }

    #[test]
    fn a_client_that_has_an_answer_may_pause_and_drip() {
        for source in [
            Body::Stream(Box::pin(Drip(false))),
            Body::Stream(Box::pin(Script([&b"ab"[..]].into()))),
        ] {
            let deadlines = Deadlines::default();
            let replay = Replay::new(source, 4, &deadlines, &Rc::new(Trail::for_test()));
            let mut upload = Upload::new(Rc::clone(&replay));
            while poll(&mut upload).is_ready() {}
            replay.borrow_mut().set_answered();
            for _ in 0..100 {
                (0..302).for_each(|_| deadlines.tick());
                assert!(!matches!(poll(&mut upload), Poll::Ready(Some(Err(_)))));
            }
        }
    }

    #[test]
    fn a_client_that_drips_is_a_fault_once_its_pauses_are_spent() {
        // One byte a second, of 30 s of pauses, at a least rate of 240, 1 and none.
        for (least, ends_after) in [(240, Some(31)), (1, None), (0, None)] {
            let deadlines = Deadlines::default();
            let peer = super::super::Peer {
                least_rate: least,
                ..Rc::unwrap_or_clone(Rc::clone(&Trail::for_test().peer))
            };
            let trail = Rc::new(Trail::new(shared::clock::now(), Rc::new(peer)));
            let source = Body::Stream(Box::pin(Drip(false)));
            let mut upload = Upload::new(Replay::new(source, 4, &deadlines, &trail));
            let fault = (1..200).find(|_| {
                assert_eq!(poll(&mut upload), Poll::Pending);
                (0..10).for_each(|_| deadlines.tick());
                poll(&mut upload).map(|piece| piece.is_some_and(|piece| piece.is_err()))
                    == Poll::Ready(true)
            });
            assert_eq!(fault, ends_after, "{least}");
        }
    }
}
