//! Accepts clients that send the socket's path as `:authority`, as C-core (Python, C++, Ruby, PHP), Java and Swift do.
//!
//! `%2Frun%2Fkwitness%2Fkwitness.sock` is no authority of a URI, so the `http` crate refuses it and h2 resets the stream
//! (hyperium/h2#487). On a Unix socket the value means nothing. [`Rewriter`] replaces the characters that are refused by others
//! of the **same length on the wire**, as they are and in HPACK's Huffman code (`%` and `/` become `-`, six bits each):
//!
//! ```text
//!   %2Frun%2Fkwitness%2Fkwitness.sock   in
//!   -2Frun-2Fkwitness-2Fkwitness.sock   out
//! ```
//!
//! So no frame, no string and no entry of the dynamic table changes its length, and client and server stay in step: an entry that the
//! client refers to later is the rewritten one. That is why nothing is decoded into fields and encoded again, no table is
//! followed, and a connection with an acceptable authority passes byte for byte.
//!
//! Owns the search for the field. Never judges a frame or a field: whatever cannot be read is left for h2 to refuse. It does not find a
//! field whose *name* is a reference into the dynamic table; `:authority` is in the static table, which encoders search first.

use std::ops::Range;

/// The client connection preface (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// A frame's head (RFC 9113, 4.1).
const HEAD: usize = 9;

/// How many bytes of a header block that is not complete yet are held back. Pseudo-header fields come first (RFC 9113, 8.3), and a
/// Unix socket's path has at most 108 bytes, three times as many when they are percent-encoded.
const LOOK: usize = 4096;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The index of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
const NAME: &[u8] = b":authority";
/// [`NAME`] in HPACK's Huffman code.
const NAME_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// A character that cannot be in the authority of a URI, and the Huffman code of one of the same length that can (RFC 7541, appendix B).
struct Substitute {
    byte: u8,
    bits: usize,
    code: u16,
    by_code: u16,
}

const fn substitute(byte: u8, bits: usize, code: u16, by_code: u16) -> Substitute {
    Substitute { byte, bits, code, by_code }
}

/// The rest of what is refused (``#<>\^`{}``, and what is not ASCII) has no substitute of its length. Clients that use the Huffman code
/// percent-encode it.
const SUBSTITUTES: [Substitute; 11] = [
    substitute(b'%', 6, 0x15, 0x16),      // -
    substitute(b'/', 6, 0x18, 0x16),      // -
    substitute(b' ', 6, 0x14, 0x16),      // -
    substitute(b':', 7, 0x5c, 0x5d),      // B
    substitute(b'?', 10, 0x3fc, 0x3f8),   // !
    substitute(b'"', 10, 0x3f9, 0x3f8),   // !
    substitute(b'|', 11, 0x7fc, 0x7fa),   // '
    substitute(b'@', 13, 0x1ffa, 0x1ff9), // $
    substitute(b'[', 13, 0x1ffb, 0x1ff9), // $
    substitute(b']', 13, 0x1ffc, 0x1ff9), // $
    substitute(0, 13, 0x1ff8, 0x1ff9),    // $
];

/// The Huffman codes of up to 13 bits by their length: the first one, and how many there are. All printable characters but
/// seven are among them.
const CODES: [(usize, u16, u16); 8] = [
    (5, 0, 10),
    (6, 0x14, 26),
    (7, 0x5c, 32),
    (8, 0xf8, 6),
    (10, 0x3f8, 5),
    (11, 0x7fa, 3),
    (12, 0xffa, 2),
    (13, 0x1ff8, 6),
];

/// Follows the frames that one client sends.
#[derive(Debug)]
pub struct Rewriter {
    /// Bytes until the next frame's head.
    skip: usize,
    /// A header block that comes in several frames.
    block: Vec<u8>,
}

impl Default for Rewriter {
    /// At the beginning of a connection.
    fn default() -> Self {
        Self { skip: PREFACE, block: Vec::new() }
    }
}

impl Rewriter {
    /// Rewrites what came from the client, in place. Returns how many bytes may be passed on; the rest, at most [`LOOK`], is to be given
    /// again with what follows it.
    pub fn rewrite(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            at += skipped;
            self.skip -= skipped;
            let rest = &mut bytes[at..];
            let Some(frame) = FrameHead::read(rest) else { return at };
            if frame.kind == HEADERS && !self.rewrite_block(rest) {
                return at;
            }
            self.skip = HEAD + frame.length;
        }
    }

    /// Rewrites the header block that begins with the first of these frames; false: more of it is needed.
    fn rewrite_block(&mut self, frames: &mut [u8]) -> bool {
        let (fragments, complete) = fragments(frames);
        if !complete && frames.len() < LOOK {
            return false;
        }
        if let [fragment] = &fragments[..] {
            rewrite_fields(&mut frames[fragment.clone()]);
            return true;
        }
        self.block.clear();
        for fragment in &fragments {
            self.block.extend(&frames[fragment.clone()]);
        }
        rewrite_fields(&mut self.block);
        let mut rest = &self.block[..];
        for fragment in fragments {
            let (this, others) = rest.split_at(fragment.len());
            frames[fragment].copy_from_slice(this);
            rest = others;
        }
        // Few clients need it twice.
        self.block = Vec::new();
        true
    }
}

struct FrameHead {
    length: usize,
    kind: u8,
    flags: u8,
}

impl FrameHead {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, ..] = *bytes.first_chunk::<HEAD>()?;
        Some(Self { length: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags })
    }
}

/// Where the pieces of the header block are, as far as they have come, and whether they are all of it.
fn fragments(frames: &[u8]) -> (Vec<Range<usize>>, bool) {
    let mut fragments = Vec::new();
    let mut at = 0;
    while let Some(frame) = FrameHead::read(&frames[at..]) {
        let first = at == 0;
        if !first && frame.kind != CONTINUATION {
            // An error that h2 ends the connection for.
            return (fragments, true);
        }
        let (mut start, mut end) = (at + HEAD, at + HEAD + frame.length);
        at = end;
        if first && frame.flags & PADDED != 0 {
            end = end.saturating_sub(frames.get(start).copied().unwrap_or_default().into());
            start += 1;
        }
        if first && frame.flags & PRIORITY != 0 {
            start += 5;
        }
        end = end.min(frames.len());
        if start < end {
            fragments.push(start..end);
        }
        if at > frames.len() {
            break;
        }
        if frame.flags & END_HEADERS != 0 {
            return (fragments, true);
        }
    }
    (fragments, false)
}

/// Rewrites the first `:authority` of a header block, or of the beginning of one.
fn rewrite_fields(block: &mut [u8]) {
    if let Some((value, huffman)) = find_authority(block) {
        let value = &mut block[value];
        if is_path(value, huffman) {
            rewrite_value(value, huffman);
        }
    }
}

/// Where the value of a literal `:authority` is, and whether it is in the Huffman code (RFC 7541, 6).
fn find_authority(block: &[u8]) -> Option<(Range<usize>, bool)> {
    let mut reader = Reader { block, at: 0 };
    loop {
        let first = *block.get(reader.at)?;
        let prefix = match first {
            // An indexed field; a change of the table's size.
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = reader.integer(prefix)?;
        if prefix == 7 || prefix == 5 {
            continue;
        }
        let is_authority = if index == 0 {
            let (name, huffman) = reader.string()?;
            block[name] == *(if huffman { NAME_HUFFMAN } else { NAME })
        } else {
            index == AUTHORITY
        };
        let value = reader.string()?;
        if is_authority {
            return Some(value);
        }
    }
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.block.get(self.at).copied();
        self.at += 1;
        byte
    }

    /// RFC 7541, 5.1.
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let most = (1_usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & most;
        if value < most {
            return Some(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// RFC 7541, 5.2.
    fn string(&mut self) -> Option<(Range<usize>, bool)> {
        let huffman = self.block.get(self.at)? & 0x80 != 0;
        let length = self.integer(7)?;
        let string = self.at..self.at + length;
        self.at = string.end;
        (string.end <= self.block.len()).then_some((string, huffman))
    }
}

/// Whether it has a character that every path has, percent-encoded or not, and no authority of a client on a network.
fn is_path(value: &[u8], huffman: bool) -> bool {
    let marks = [b'%', b'/'];
    if !huffman {
        return value.iter().any(|byte| marks.contains(byte));
    }
    Codes { value, at: 0 }.any(|(_, found)| found.is_some_and(|found| marks.contains(&found.byte)))
}

/// Whether an authority may have it anywhere, without a meaning (RFC 3986: unreserved, sub-delims).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

fn rewrite_value(value: &mut [u8], huffman: bool) {
    if !huffman {
        value.iter_mut().filter(|byte| !is_plain(**byte)).for_each(|byte| *byte = b'-');
        return;
    }
    let found: Vec<_> = Codes { value, at: 0 }.filter_map(|(at, found)| Some((at, found?))).collect();
    for (at, found) in found {
        set_bits(value, at, found.bits, found.by_code);
    }
}

/// Where each Huffman code begins, and its substitute. Ends at the padding, and at a longer code, which no authority has.
struct Codes<'a> {
    value: &'a [u8],
    /// In bits.
    at: usize,
}

impl Iterator for Codes<'_> {
    type Item = (usize, Option<&'static Substitute>);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        for (length, first, count) in CODES {
            let code = bits(self.value, at, length)?;
            if code < first + count {
                self.at += length;
                let mut substitutes = SUBSTITUTES.iter();
                return Some((
                    at,
                    substitutes.find(|substitute| substitute.bits == length && substitute.code == code),
                ));
            }
        }
        None
    }
}

fn bits(bytes: &[u8], at: usize, length: usize) -> Option<u16> {
    (at..at + length).try_fold(0, |code, bit| {
        let byte = bytes.get(bit / 8)?;
        Some(code << 1 | u16::from(byte >> (7 - bit % 8) & 1))
    })
}

fn set_bits(bytes: &mut [u8], at: usize, length: usize, code: u16) {
    for (bit, from) in (at..at + length).zip((0..length).rev()) {
        let mask = 0x80 >> (bit % 8);
        if code >> from & 1 == 0 {
            bytes[bit / 8] &= !mask;
        } else {
            bytes[bit / 8] |= mask;
        }
    }
}

#[cfg(test)]
mod tests;
