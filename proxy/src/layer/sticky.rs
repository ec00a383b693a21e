//! The cookie that brings a client back to its node. It says nothing to anybody else: a mark of the node's name, made with a key
//! that only this proxy has, so that it cannot be guessed or made up, and is the same after a restart.

use crate::config;
use crate::exchange::fields::FieldId;
use crate::exchange::{Response, Trail, cookie};
use crate::logic::NodeId;
use crate::secret::{MARK, Secret};

/// One service's cookie.
#[derive(Debug)]
pub struct Sticky {
    name: String,
    marks: Vec<[u8; MARK]>,
}

impl Sticky {
    /// The cookie of `service` under this name.
    #[must_use]
    pub fn new(service: &config::Service, name: &str, secret: &Secret) -> Self {
        let mark = |node: &config::Node| {
            secret.mark(&[b"node", service.name.as_bytes(), node.name.as_bytes()])
        };
        Self {
            name: name.to_owned(),
            marks: service.nodes.iter().map(mark).collect(),
        }
    }

    /// The node that the client was sent to before, if it says so.
    #[must_use]
    pub fn node(&self, trail: &Trail) -> Option<NodeId> {
        let shown = cookie::find(&trail.head()?.fields, &self.name)?;
        let at = self.marks.iter().position(|mark| mark == shown)?;
        u8::try_from(at).ok().map(NodeId)
    }

    /// Gives the client its node's cookie, unless it has that already.
    pub fn stick(&self, trail: &Trail, response: &mut Response) {
        let (Some(node), _) = trail.node() else {
            return;
        };
        if self.node(trail) == Some(node) {
            return;
        }
        if let Some(mark) = self.marks.get(node.index()) {
            let mut value = [self.name.as_bytes(), b"=", mark].concat();
            value.extend_from_slice(b"; Path=/; HttpOnly; SameSite=Lax");
            if is_encrypted(trail) {
                value.extend_from_slice(b"; Secure");
            }
            response.fields.add("Set-Cookie", &value);
        }
    }
}

/// Whether the client's own connection is encrypted: here, or by the word of a proxy in front that is believed.
pub(super) fn is_encrypted(trail: &Trail) -> bool {
    // What a stranger claims is not among the fields any more.
    let said = trail
        .head()
        .and_then(|head| head.fields.get(FieldId::XForwardedProto));
    trail.peer.scheme == "https" || said == Some(b"https")
}
