//! How much of a body is read at once: little at first, more as long as the sender keeps up. Most of what a large body costs is
//! paid per call to the system and per time the other side is woken, not per byte.

/// Room for the first piece of a body whose length nobody told, in bytes.
const FIRST: usize = 64 << 10;
/// Room for the first piece of one that is known to be long, in bytes.
const FIRST_OF_LONG: usize = 256 << 10;
/// Room at most, and so what one direction of a connection may hold in memory, in bytes.
const MOST: usize = 512 << 10;

/// How much to read of one body at once.
#[derive(Clone, Copy, Debug)]
pub struct Appetite(usize);

impl Default for Appetite {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Appetite {
    /// Room for the next piece when `left` bytes are still to come; `None` if that is not known.
    #[must_use]
    pub fn room(self, left: Option<u64>) -> usize {
        left.map_or(self.0, |left| {
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            left.min(self.0.max(FIRST_OF_LONG))
        })
    }

    /// A piece of this many bytes was read. One that filled the room calls for more of it.
    pub fn handle_read(&mut self, read: usize) {
        if read >= self.0 {
            self.0 = (read * 2).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_while_it_is_filled_and_never_beyond_the_most() {
        let mut appetite = Appetite::default();
        assert_eq!(appetite.room(None), FIRST);
        assert_eq!(appetite.room(Some(1 << 30)), FIRST_OF_LONG);
        appetite.handle_read(FIRST - 1);
        assert_eq!(appetite.room(None), FIRST);
        for _ in 0..20 {
            appetite.handle_read(appetite.room(None));
        }
        assert_eq!(appetite.room(None), MOST);
        assert_eq!(appetite.room(Some(10)), 10);
        assert_eq!(appetite.room(Some(u64::MAX)), MOST);
    }
}
