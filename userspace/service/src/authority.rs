//! Accepts clients that send the socket's path as `:authority`, as C-core (Python, C++, Ruby, PHP), Java and Swift do.
//!
//! `%2Frun%2Fkwitness%2Fkwitness.sock` is no authority of a URI, so the `http` crate refuses it and h2 resets the stream
//! (hyperium/h2#487). On a Unix socket the value means nothing. Where it is refused, [`Rewriter`] replaces the characters that may be
//! the reason by others of the **same length on the wire**, as they are and in HPACK's Huffman code (`%` and `/` become `-`, six bits
//! each):
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
//! Owns the search for the field. Never judges a frame or another field: whatever cannot be read is left for h2 to refuse, which costs
//! the client that call. So is
//!
//! - an empty value, which has no other of its length, and which RFC 9113 (8.3.1) forbids;
//! - a field whose *name* is a reference into the dynamic table: `:authority` is in the static table, where encoders look first;
//! - a value that ends after [`LOOK`] bytes of its header block, ten times the longest path.

use std::ops::Range;

use http::uri::Authority;

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

/// The Huffman codes of one length (RFC 7541, appendix B). The code is canonical: each begins where the shorter ones end.
struct Length {
    bits: usize,
    count: u32,
    /// The first of them, as far as they are printable or 0.
    symbols: &'static [u8],
}

const fn length(bits: usize, count: u32, symbols: &'static [u8]) -> Length {
    Length { bits, count, symbols }
}

const LENGTHS: [Length; 21] = [
    length(5, 10, b"012aceiost"),
    length(6, 26, b" %-./3456789=A_bdfghlmnpru"),
    length(7, 32, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    length(8, 6, b"&*,;XZ"),
    length(10, 5, b"!\"()?"),
    length(11, 3, b"'+|"),
    length(12, 2, b"#>"),
    length(13, 6, b"\0$@[]~"),
    length(14, 2, b"^}"),
    length(15, 3, b"<`{"),
    length(19, 3, b"\\"),
    length(20, 8, b""),
    length(21, 13, b""),
    length(22, 26, b""),
    length(23, 29, b""),
    length(24, 12, b""),
    length(25, 4, b""),
    length(26, 15, b""),
    length(27, 19, b""),
    length(28, 29, b""),
    length(30, 4, b""),
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
    match find_authority(block) {
        Some((value, true)) => rewrite_huffman(&mut block[value]),
        Some((value, false)) => rewrite_plain(&mut block[value]),
        None => {}
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

/// Whether an authority may have it anywhere, without a meaning (RFC 3986: unreserved, sub-delims).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// What h2 refuses.
fn is_refused(value: &[u8]) -> bool {
    Authority::try_from(value).is_err()
}

fn rewrite_plain(value: &mut [u8]) {
    if is_refused(value) {
        value.iter_mut().filter(|byte| !is_plain(**byte)).for_each(|byte| *byte = b'-');
    }
}

fn rewrite_huffman(value: &mut [u8]) {
    let symbols: Vec<Symbol> = Symbols { value, at: 0 }.collect();
    // What has no byte here is in no authority either.
    let text: Vec<u8> = symbols.iter().map(|symbol| symbol.byte.unwrap_or(b'\\')).collect();
    if !is_refused(&text) {
        return;
    }
    let others = symbols.iter().filter(|symbol| !symbol.byte.is_some_and(is_plain));
    let substitutes: Option<Vec<_>> = others
        .map(|symbol| Some((symbol.at, plain_codes().find(|(bits, _)| *bits == symbol.bits)?)))
        .collect();
    match substitutes {
        Some(substitutes) => {
            for (at, (bits, code)) in substitutes {
                set_bits(value, at, bits, code);
            }
        }
        None => replace(value, symbols.len()),
    }
}

/// Replaces all of a value by as many characters as it has, whose codes fill as many bytes; unless they are too long for that.
fn replace(value: &mut [u8], count: usize) {
    let mut codes = Vec::new();
    let mut rest = 8 * value.len();
    for others in (0..count).rev() {
        let fits = |(bits, _): &(usize, u32)| bits + others * LENGTHS[0].bits <= rest;
        let Some((bits, code)) = plain_codes().filter(fits).last() else { return };
        codes.push((bits, code));
        rest -= bits;
    }
    // The padding is shorter than a byte, and of ones (RFC 7541, 5.2).
    if rest < 8 {
        value.fill(0xff);
        let mut at = 0;
        for (bits, code) in codes {
            set_bits(value, at, bits, code);
            at += bits;
        }
    }
}

/// Of each length the first code of a plain character, if there is one, in the order of the lengths.
fn plain_codes() -> impl Iterator<Item = (usize, u32)> {
    lengths().filter_map(|(length, first)| {
        let at = length.symbols.iter().position(|byte| is_plain(*byte))?;
        Some((length.bits, first + u32::try_from(at).ok()?))
    })
}

/// Each length with its first code.
fn lengths() -> impl Iterator<Item = (&'static Length, u32)> {
    LENGTHS.iter().scan((0, 0), |(bits, next), length| {
        let first = *next << (length.bits - *bits);
        (*bits, *next) = (length.bits, first + length.count);
        Some((length, first))
    })
}

/// A character in the Huffman code.
struct Symbol {
    /// Where its code begins, in bits.
    at: usize,
    bits: usize,
    byte: Option<u8>,
}

/// Those of a value. Ends at the padding.
struct Symbols<'a> {
    value: &'a [u8],
    at: usize,
}

impl Iterator for Symbols<'_> {
    type Item = Symbol;

    fn next(&mut self) -> Option<Symbol> {
        let at = self.at;
        for (length, first) in lengths() {
            let index = bits(self.value, at, length.bits)?.checked_sub(first)?;
            if index < length.count {
                self.at += length.bits;
                let byte = usize::try_from(index).ok().and_then(|index| length.symbols.get(index)).copied();
                return Some(Symbol { at, bits: length.bits, byte });
            }
        }
        None
    }
}

fn bits(bytes: &[u8], at: usize, length: usize) -> Option<u32> {
    (at..at + length).try_fold(0, |code, bit| {
        let byte = bytes.get(bit / 8)?;
        Some(code << 1 | u32::from(byte >> (7 - bit % 8) & 1))
    })
}

fn set_bits(bytes: &mut [u8], at: usize, length: usize, code: u32) {
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
