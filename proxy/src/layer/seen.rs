//! The cookie by which clients read their own writes, wherever they read: the position of the data after their last write,
//! signed, so that nobody can make up one that a standby seems to have reached.

use std::sync::Arc;

use super::sticky::is_encrypted;
use crate::exchange::{Response, Trail, cookie};
use crate::logic::seen::Seen;
use crate::secret::Secret;

/// What the cookie is called.
const NAME: &str = "hotwarm_seen";
/// What is told of a write of whose position nothing is known.
const UNKNOWN: &str = "primary";

/// Which node may answer a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Any: it has not written, as far as it says.
    Anything,
    /// The primary, which has everything.
    Primary,
    /// One that has this.
    AtLeast(Seen),
}

/// One service's cookie.
#[derive(Debug)]
pub struct Memory {
    service: Arc<str>,
    secret: Secret,
}

impl Memory {
    /// For `service`.
    #[must_use]
    pub const fn new(service: Arc<str>, secret: Secret) -> Self {
        Self { service, secret }
    }

    fn signed<'s>(&'s self, text: &'s str) -> [&'s [u8]; 3] {
        [b"seen", self.service.as_bytes(), text.as_bytes()]
    }

    /// What the client must be shown at least. A cookie that is not ours, or was signed with a key that is gone, may come from
    /// a client that has written: only the primary will do.
    #[must_use]
    pub fn wants(&self, trail: &Trail) -> Wants {
        let shown = trail
            .head()
            .and_then(|head| cookie::find(&head.fields, NAME));
        let Some(shown) = shown else {
            return Wants::Anything;
        };
        let read = || {
            let (text, mark) = std::str::from_utf8(shown).ok()?.rsplit_once('.')?;
            let is_ours = self.secret.is_mark(&self.signed(text), mark.as_bytes());
            Seen::read(text).filter(|_| is_ours)
        };
        read().map_or(Wants::Primary, Wants::AtLeast)
    }

    /// Lets the client remember what it wrote.
    pub fn remember(&self, trail: &Trail, response: &mut Response) {
        let text = trail.take_seen().and_then(|seen| seen.text());
        let mut value = format!("{NAME}=").into_bytes();
        match text {
            Some(text) => {
                value.extend_from_slice(text.as_bytes());
                value.push(b'.');
                value.extend_from_slice(&self.secret.mark(&self.signed(&text)));
            }
            None => value.extend_from_slice(UNKNOWN.as_bytes()),
        }
        value.extend_from_slice(b"; Path=/; HttpOnly; SameSite=Lax");
        if is_encrypted(trail) {
            value.extend_from_slice(b"; Secure");
        }
        response.fields.add("Set-Cookie", &value);
    }
}
