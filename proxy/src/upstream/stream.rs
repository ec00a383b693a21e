//! One request and its response on an HTTP/2 session.
//!
//! Two ways of losing a request prove that it was not carried out (RFC 9113 §8.7): the node resets its stream with
//! REFUSED_STREAM, or says in a GOAWAY that it got no further than an earlier one. Everything else is as on HTTP/1.1: once a
//! stream is open, nobody knows.

pub(super) mod message;

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::Method;
use http_body::{Body as HttpBody, Frame, SizeHint};

use self::message::Authority;
use super::client::Terms;
use super::places::Claim;
use super::session::{Entered, Session};
use crate::exchange::{Attempt, Body, Cause, Deadline, Fault, Reach, Response, Upload, trailers};

/// A request under way, until the response's head is there.
pub(super) struct Streaming {
    head: ResponseFuture,
    upload: Option<Outflow>,
    place: Place,
    to_head: bool,
}

/// What a stream holds while it lives.
struct Place {
    entered: Entered,
    _claim: Claim,
    terms: Terms,
}

impl Place {
    fn fault(&self, reach: Reach, error: &h2::Error) -> Fault {
        let declined = error.is_remote()
            && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        if error.is_go_away() {
            self.entered.session().retire(Cause::Closed);
        }
        let (reach, cause) = match (declined, reach) {
            (true, Reach::Sent) => (Reach::Declined, Cause::Declined),
            (true, Reach::Unsent) => (Reach::Unsent, Cause::Declined),
            _ => (reach, self.cause(error)),
        };
        self.terms.fault(reach, cause)
    }

    fn cause(&self, error: &h2::Error) -> Cause {
        if let Some(error) = error.get_io() {
            // Whoever gave up the connection knows better than its streams.
            return match self.entered.session().verdict() {
                Some(cause @ Cause::Io(_)) => cause,
                _ => Cause::io(error),
            };
        }
        match error.reason() {
            Some(reason) if error.is_remote() => Cause::Reset(u32::from(reason)),
            _ => Cause::Malformed("breaks the rules of HTTP/2"),
        }
    }
}

/// Opens a stream of `session` for `attempt`.
///
/// # Errors
/// The session has ended; the request cannot be said in HTTP/2. Nothing was sent.
pub(super) fn open(
    session: &Rc<Session>,
    claim: Claim,
    attempt: &mut Attempt,
    authority: &Authority,
    terms: &Terms,
) -> Result<Streaming, Fault> {
    let place = Place {
        entered: session.enter(),
        _claim: claim,
        terms: terms.clone(),
    };
    let Attempt {
        head,
        upload,
        trail,
        ..
    } = attempt;
    let request = message::request(head, upload, trail, authority)?;
    let to_head = head.method == Method::HEAD;
    let is_whole = upload.is_none();
    let opened = session.sender().send_request(request, is_whole);
    let (head, stream) = opened.map_err(|error| {
        session.retire(Cause::Closed);
        place.fault(Reach::Unsent, &error)
    })?;
    attempt.trail.set_sent(true);
    Ok(Streaming {
        head,
        upload: (!is_whole).then(|| Outflow {
            stream,
            upload: std::mem::take(&mut attempt.upload),
            piece: Bytes::new(),
        }),
        place,
        to_head,
    })
}

impl Streaming {
    /// Drives both directions until the response's head is there; `finish` takes it over.
    ///
    /// # Errors
    /// How far it came and what happened; or the client's body is at fault.
    pub(super) fn poll_response(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<http::Response<RecvStream>, Fault>> {
        let this = self;
        if let Some(outflow) = &mut this.upload {
            match outflow.poll_send(context) {
                Poll::Pending => (),
                Poll::Ready(Ok(())) => this.upload = None,
                Poll::Ready(Err(SendError::Client(fault))) => return Poll::Ready(Err(fault)),
                // The response, or its failure, says why.
                Poll::Ready(Err(SendError::Stopped)) => this.upload = None,
            }
        }
        let answered = ready!(Pin::new(&mut this.head).poll(context));
        Poll::Ready(answered.map_err(|error| this.place.fault(Reach::Sent, &error)))
    }

    /// What is left when the head has come.
    ///
    /// # Errors
    /// The head is not one.
    pub(super) fn finish(self, response: http::Response<RecvStream>) -> Result<Response, Fault> {
        let (parts, receive) = response.into_parts();
        let head = message::response(&parts, self.to_head)
            .map_err(|why| self.place.terms.fault(Reach::Head, Cause::Malformed(why)))?;
        let bodiless = head.bodiless || receive.is_end_stream();
        // A node that answers while it still reads may want the rest; one that answers with an error does not.
        let upload = self.upload.filter(|_| parts.status.is_success());
        if let Some(outflow) = &upload {
            outflow.set_answered();
        }
        let body = if bodiless && upload.is_none() {
            Body::Empty
        } else {
            Body::Stream(Box::pin(Download {
                receive,
                upload,
                left: head.length.filter(|_| !head.bodiless),
                stage: Stage::Data,
                waiting: None,
                moved: false,
                came: 0,
                place: self.place,
            }))
        };
        Ok(Response {
            status: parts.status,
            reason: None,
            fields: head.fields,
            declared: head.length.filter(|_| head.bodiless),
            last: false,
            body,
        })
    }
}

/// The request's body on its way out.
struct Outflow {
    stream: SendStream<Bytes>,
    upload: Upload,
    piece: Bytes,
}

enum SendError {
    /// The client's body is at fault.
    Client(Fault),
    /// The node takes no more.
    Stopped,
}

impl Outflow {
    /// The client is not hurried any more.
    fn set_answered(&self) {
        if let Some(replay) = self.upload.replay() {
            replay.borrow_mut().set_answered();
        }
    }

    /// How much of the body has come, in bytes.
    fn came(&self) -> u64 {
        let replay = self.upload.replay();
        replay.map_or(0, |replay| replay.borrow().moved())
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let stopped = |_| SendError::Stopped;
        loop {
            if self.piece.is_empty() {
                match ready!(self.upload.poll_data(context)) {
                    Some(Ok(data)) => self.piece = data,
                    Some(Err(fault)) => return Poll::Ready(Err(SendError::Client(fault))),
                    None => {
                        let ended = match self.upload.trailers() {
                            Some(trailers) => self.stream.send_trailers(trailers),
                            None => self.stream.send_data(Bytes::new(), true),
                        };
                        return Poll::Ready(ended.map_err(stopped));
                    }
                }
            }
            self.stream.reserve_capacity(self.piece.len());
            while self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(context)) {
                    Some(Ok(_)) => (),
                    Some(Err(_)) | None => return Poll::Ready(Err(SendError::Stopped)),
                }
            }
            let length = self.piece.len().min(self.stream.capacity());
            let sent = self.stream.send_data(self.piece.split_to(length), false);
            sent.map_err(stopped)?;
        }
    }
}

/// A response's body, read as it is asked for.
struct Download {
    receive: RecvStream,
    upload: Option<Outflow>,
    left: Option<u64>,
    stage: Stage,
    waiting: Option<Deadline>,
    moved: bool,
    /// How much of the request had come when it was last looked at, in bytes.
    came: u64,
    place: Place,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Data,
    Trailers,
    Over,
}

impl Download {
    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.stage == Stage::Data {
            while let Some(data) = ready!(self.receive.poll_data(context)) {
                let data = match data {
                    Ok(data) => data,
                    Err(error) => return Poll::Ready(Some(Err(error))),
                };
                // Whoever asks has room; the node may send as much again.
                let _ = self.receive.flow_control().release_capacity(data.len());
                if !data.is_empty() {
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
            self.stage = Stage::Trailers;
        }
        if self.stage == Stage::Trailers {
            let trailers = ready!(self.receive.poll_trailers(context));
            self.stage = Stage::Over;
            return Poll::Ready(match trailers {
                Ok(trailers) => trailers
                    .and_then(trailers::allowed)
                    .map(|trailers| Ok(Frame::trailers(trailers))),
                Err(error) => Some(Err(error)),
            });
        }
        Poll::Ready(None)
    }

    fn poll_patience(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Terms {
            deadlines, idle, ..
        } = &self.place.terms;
        let waiting = self.waiting.get_or_insert_with(|| deadlines.after(*idle));
        if std::mem::take(&mut self.moved) {
            waiting.move_to(*idle);
        }
        if waiting.has_passed(context) {
            let fault = self.place.terms.fault(Reach::Body, Cause::IdleTimeout);
            return Poll::Ready(Some(Err(fault)));
        }
        Poll::Pending
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        if let Some(outflow) = &mut this.upload {
            let sent = outflow.poll_send(context);
            // A node that listens is not silent.
            this.moved |= std::mem::replace(&mut this.came, outflow.came()) != outflow.came();
            match sent {
                Poll::Pending => (),
                Poll::Ready(Ok(()) | Err(SendError::Stopped)) => this.upload = None,
                // The node would wait for the rest.
                Poll::Ready(Err(SendError::Client(fault))) => {
                    this.upload = None;
                    this.stage = Stage::Over;
                    return Poll::Ready(Some(Err(fault)));
                }
            }
        }
        match this.poll_piece(context) {
            Poll::Pending => this.poll_patience(context),
            Poll::Ready(piece) => {
                this.moved = true;
                Poll::Ready(piece.map(|piece| {
                    piece.map_err(|error| {
                        this.stage = Stage::Over;
                        this.place.fault(Reach::Body, &error)
                    })
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stage == Stage::Over
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
