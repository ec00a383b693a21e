//! What all HTTP rooms speak: the one request, response, body and error, and the trail that a request leaves.
//!
//! A worker is one thread, so everything here is shared by `Rc` and changed through cells: no lock, no atomic. A request's
//! head is moved once, behind an `Rc`; what travels through the stack is a few pointers.

pub mod appetite;
mod body;
pub mod cookie;
mod deadline;
pub mod decode;
pub mod encode;
mod fault;
pub mod fields;
mod head;
mod trail;
pub mod trailers;
mod tunnel;
mod upload;
pub mod websocket;

use std::rc::Rc;
use std::time::Instant;

pub use body::Body;
pub use deadline::{Deadline, Deadlines, TICK};
pub use fault::{Cause, Fault, Reach, Unavailable, Unconfirmed, UpstreamFault};
pub use head::{Head, Response};
pub use trail::{Certified, Closer, Encryption, Peer, RequestId, Trail, Tried};
pub use tunnel::{Bond, Leash, Opens, Tunnel, Wire};
pub use upload::{Replay, Upload};

use crate::logic::NodeId;
pub use crate::logic::rate::Rate;

/// A client's request on its way in.
#[derive(Debug)]
pub struct Request {
    /// Its head. Changed in place until it is frozen, shared after.
    pub head: Rc<Head>,
    /// Its body, unread.
    pub body: Body,
    /// What is wrong with it, if that was seen before anybody could look at it.
    pub fault: Option<Fault>,
    /// What happens to it.
    pub trail: Rc<Trail>,
}

impl Request {
    /// The head, to change it. Copies it if somebody else looks at it already, which nobody does before it is frozen.
    pub fn head_mut(&mut self) -> &mut Head {
        Rc::make_mut(&mut self.head)
    }

    /// Shows the head to the trail. It is not changed any more after this.
    pub fn freeze(&self) {
        self.trail.freeze(&self.head);
    }
}

/// One attempt of a request at one node.
#[derive(Debug)]
pub struct Attempt {
    /// The head, as the node shall see it.
    pub head: Rc<Head>,
    /// The body.
    pub upload: Upload,
    /// Which node.
    pub node: NodeId,
    /// When it began.
    pub began: Instant,
    /// Only on a connection made for it: the attempt before failed on one that had been idle.
    pub fresh: bool,
    /// The request's trail.
    pub trail: Rc<Trail>,
}
