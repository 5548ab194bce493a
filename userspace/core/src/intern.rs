//! Texts that come again and again, kept once.
//!
//! A direct-mapped cache: each text has one place, and a newcomer takes it. Bounded by construction; a text that
//! lost its place is allocated again when it comes again, nothing else.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

/// CgroupIndex. A node runs a few dozen programs; 2,048 index of 16 bytes make collisions among them rare.
const PLACES: usize = 2048;

/// A bounded memory of texts.
#[derive(Debug)]
pub(crate) struct Interner {
    index: Box<[Option<Arc<str>>]>,
}

impl Default for Interner {
    fn default() -> Self {
        Self { index: vec![None; PLACES].into_boxed_slice() }
    }
}

impl Interner {
    /// The text of these bytes; what is not UTF-8 in them is replaced.
    pub(crate) fn text(&mut self, bytes: &[u8]) -> Arc<str> {
        let mut hasher = FxBuildHasher.build_hasher();
        hasher.write(bytes);
        let index = hasher.finish() as usize % PLACES;
        let place = &mut self.index[index];
        match place {
            Some(known) if known.as_bytes() == bytes => Arc::clone(known),
            _ => Arc::clone(place.insert(Arc::from(String::from_utf8_lossy(bytes).as_ref()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_two_texts_are_never_confused() {
        let mut texts = Interner::default();
        let first = texts.text(b"nginx");
        assert!(Arc::ptr_eq(&first, &texts.text(b"nginx")));
        for n in 0..10 * PLACES {
            let text = n.to_string();
            assert_eq!(&*texts.text(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_is_not_utf8_is_replaced() {
        let mut texts = Interner::default();
        assert_eq!(&*texts.text(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(&*texts.text(b"a\xffb"), "a\u{fffd}b");
    }
}
