//! A request's body, as its stream brings it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::flow::Piece;
use crate::exchange::Fault;
use crate::exchange::decode::decimal;

/// Where the response to a stream is sent; shared with the body only if the client waits for a word before it sends that.
pub(super) enum Word {
    Own(SendResponse<Piece>),
    Shared(Rc<RefCell<SendResponse<Piece>>>),
}

impl Word {
    pub(super) fn shared(respond: SendResponse<Piece>) -> Self {
        Self::Shared(Rc::new(RefCell::new(respond)))
    }

    pub(super) fn share(&self) -> Option<Rc<RefCell<SendResponse<Piece>>>> {
        match self {
            Self::Own(_) => None,
            Self::Shared(respond) => Some(Rc::clone(respond)),
        }
    }

    pub(super) fn with<R>(&mut self, act: impl FnOnce(&mut SendResponse<Piece>) -> R) -> R {
        match self {
            Self::Own(respond) => act(respond),
            Self::Shared(respond) => act(&mut respond.borrow_mut()),
        }
    }
}

/// A request's body, read as it is asked for: the client may send more when what it sent was taken.
pub(super) struct Uploading {
    stream: RecvStream,
    /// How much is to come, if that was said; the library sees to it that it does.
    left: Option<u64>,
    /// What was handed on and is not yet given back to the client's window.
    owed: usize,
    word: Option<Rc<RefCell<SendResponse<Piece>>>>,
    ended: bool,
}

impl Uploading {
    pub(super) fn new(
        stream: RecvStream,
        headers: &HeaderMap,
        word: Option<Rc<RefCell<SendResponse<Piece>>>>,
    ) -> Self {
        let length = headers.get(CONTENT_LENGTH);
        Self {
            stream,
            left: length.and_then(|length| decimal(length.as_bytes())),
            owed: 0,
            word,
            ended: false,
        }
    }

    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Some(word) = self.word.take() {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            // A response that has begun says enough.
            let _ = word.borrow_mut().send_informational(go_on);
        }
        if self.owed > 0 {
            let owed = std::mem::take(&mut self.owed);
            let _ = self.stream.flow_control().release_capacity(owed);
        }
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) if data.is_empty() => (),
                Some(Ok(data)) => {
                    self.owed = data.len();
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(Fault::BodyBroken))),
                None => {
                    let trailers = ready!(self.stream.poll_trailers(context));
                    self.ended = true;
                    return Poll::Ready(match trailers {
                        Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
                        Ok(None) => None,
                        Err(_) => Some(Err(Fault::BodyBroken)),
                    });
                }
            }
        }
    }
}

impl HttpBody for Uploading {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.get_mut().poll_piece(context)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
