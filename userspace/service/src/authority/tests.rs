//! Against another implementation of HPACK, and against the rules of the `http` crate.

use httlib_hpack::{Decoder, Encoder};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// As C-core sends it; the raw path, as Java does; with a mark of its own, as Swift does, or a port, as Dart did; a path with
/// everything that a file name may have; two colons, as of `vsock:` and IPv6.
const PATHS: [&str; 12] = [
    "%2Frun%2Fkwitness%2Fkwitness.sock",
    "/run/kwitness/kwitness.sock",
    "[unix]/run/kwitness/kwitness.sock",
    "/run/kwitness/kwitness.sock:0",
    "%2Frun%2Fa:b:c@[d]%20e%C3%A9.sock",
    "%00abstract",
    "/run/with space?.sock",
    "/run/{a}#<b>|^`\\.sock",
    "/run/caf\u{e9}.sock",
    "vsock:2:1234",
    "::1",
    "a#b",
];

/// One field of a request, with the representation that the encoder is to choose.
type Field = (&'static str, String, u8);

fn encode(encoder: &mut Encoder, (name, value, flags): &Field, block: &mut Vec<u8>) {
    encoder.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), *flags), block).unwrap();
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    decoder.decode(&mut block.to_vec(), &mut fields).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    fields.into_iter().map(|(name, value, _)| (text(name), text(value))).collect()
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

/// A request's frames: the block cut at these places, with padding and priority or without.
fn frames(block: &[u8], cuts: &[Index], padding: Option<u8>, priority: bool) -> Vec<u8> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(block.len() + 1)).collect();
    places.extend([0, block.len()]);
    places.sort_unstable();
    let last = places.len() - 2;
    let mut all = Vec::new();
    for (number, pair) in places.windows(2).enumerate() {
        let end = if number == last { END_HEADERS } else { 0 };
        let piece = &block[pair[0]..pair[1]];
        if number > 0 {
            all.extend(frame(CONTINUATION, end, piece));
            continue;
        }
        let mut payload = Vec::new();
        let mut flags = end;
        if let Some(padding) = padding {
            flags |= PADDED;
            payload.push(padding);
        }
        if priority {
            flags |= PRIORITY;
            payload.extend([0, 0, 0, 0, 15]);
        }
        payload.extend(piece);
        payload.resize(payload.len() + usize::from(padding.unwrap_or_default()), 0);
        all.extend(frame(HEADERS, flags, &payload));
    }
    all
}

/// What is passed on when the bytes come in these pieces.
fn pass(bytes: &[u8], pieces: &[Index]) -> Vec<u8> {
    let mut rewriter = Rewriter::default();
    let (mut passed, mut held) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    for piece in pieces.iter().map(Some).chain([None]) {
        let (this, others) = rest.split_at(piece.map_or(rest.len(), |piece| piece.index(rest.len() + 1)));
        rest = others;
        held.extend(this);
        let judged = rewriter.rewrite(&mut held);
        passed.extend(held.drain(..judged));
        assert!(held.len() < LOOK, "{}", held.len());
    }
    passed.extend(held);
    passed
}

/// The blocks of frames that were made by [`frames`], put together again.
fn blocks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes = &bytes[PREFACE..];
    let mut blocks = Vec::new();
    while let Some(head) = FrameHead::read(bytes) {
        let mut piece = &bytes[HEAD..HEAD + head.length];
        if head.kind == HEADERS {
            let padding = if head.flags & PADDED != 0 { usize::from(piece[0]) } else { 0 };
            let front =
                usize::from(head.flags & PADDED != 0) + if head.flags & PRIORITY != 0 { 5 } else { 0 };
            piece = &piece[front..piece.len() - padding];
            blocks.push(piece.to_vec());
        } else {
            blocks.last_mut().unwrap().extend(piece);
        }
        bytes = &bytes[HEAD + head.length..];
    }
    assert!(bytes.is_empty());
    blocks
}

const PREFACE_TEXT: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn field(name: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = Field> {
    // Names and values with the Huffman code or without; with indexing, without or never; references where they can be.
    let name_and_value = 0_u8..4;
    let indexing = prop_oneof![Just(0), Just(Encoder::WITH_INDEXING), Just(Encoder::NEVER_INDEXED)];
    let best = prop_oneof![Just(0), Just(Encoder::BEST_FORMAT)];
    (value, name_and_value, indexing, best)
        .prop_map(move |(value, text, indexing, best)| (name, value, text | indexing | best))
}

fn authority() -> impl Strategy<Value = Field> {
    let paths = prop::sample::select(PATHS.map(str::to_owned).to_vec());
    let others = prop::sample::select(vec!["localhost".to_owned(), "[::1]:80".to_owned(), "a@b".to_owned()]);
    // The other encoder prefers a name in the dynamic table, which no client's does.
    field(":authority", prop_oneof![3 => paths, 1 => others])
        .prop_map(|(name, value, flags)| (name, value, flags & !Encoder::BEST_FORMAT))
}

fn request() -> impl Strategy<Value = Vec<Field>> {
    (
        field(":path", "/[a-z.]{0,40}/[A-Za-z%]{0,30}"),
        authority(),
        field("user-agent", "[ -~]{0,40}"),
        field("x-own", "[ -~]{0,300}"),
        any::<bool>(),
    )
        .prop_map(|(path, authority, agent, own, authority_first)| {
            let (first, second) = if authority_first { (authority, path) } else { (path, authority) };
            vec![first, second, agent, own]
        })
}

proptest! {
    /// However requests are encoded, cut into frames and come in pieces: every field but a path in `:authority` stays as it is, that
    /// one becomes acceptable, and both ends' dynamic tables stay in step, with evictions, over all requests of the connection.
    #[test]
    fn only_paths_change_and_tables_stay_in_step(
        table in prop_oneof![Just(0_u32), Just(120), Just(4096)],
        requests in prop::collection::vec(
            (request(), prop::collection::vec(any::<Index>(), 0..4), prop::option::of(0_u8..20), any::<bool>()),
            1..6,
        ),
        pieces in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let mut encoder = Encoder::with_dynamic_size(table);
        let mut wire = PREFACE_TEXT.to_vec();
        for (request, cuts, padding, priority) in &requests {
            let mut block = Vec::new();
            request.iter().for_each(|field| encode(&mut encoder, field, &mut block));
            wire.extend(frames(&block, cuts, *padding, *priority));
        }
        let passed = pass(&wire, &pieces);
        prop_assert_eq!(passed.len(), wire.len());
        let mut decoder = Decoder::with_dynamic_size(table);
        for (block, (request, ..)) in blocks(&passed).iter().zip(&requests) {
            for ((name, value), (sent_name, sent, _)) in decode(&mut decoder, block).iter().zip(request) {
                prop_assert_eq!(name, sent_name);
                if name == ":authority" {
                    prop_assert!(Authority::try_from(value.as_str()).is_ok(), "{}", value);
                    prop_assert_eq!(value.len(), sent.len());
                }
                if name != ":authority" || Authority::try_from(sent.as_str()).is_ok() {
                    prop_assert_eq!(value, sent);
                }
            }
        }
    }

    /// Whatever a path has: outside of the Huffman code, all of it can be replaced.
    #[test]
    fn every_path_becomes_acceptable(mut path in prop::collection::vec(any::<u8>(), 0..100), at in any::<Index>()) {
        path.insert(at.index(path.len() + 1), b'/');
        let length = path.len();
        let mut block = vec![0x41, length as u8];
        block.extend(path);
        rewrite_fields(&mut block);
        prop_assert_eq!(block.len(), 2 + length);
        prop_assert!(Authority::try_from(&block[2..]).is_ok(), "{:?}", &block[2..]);
    }

    /// The same in the Huffman code, unless what it has is too long for that many plain characters.
    #[test]
    fn every_printable_path_becomes_acceptable_in_the_huffman_code(path in "/[ -~]{0,60}") {
        let mut block = Vec::new();
        encode(&mut Encoder::default(), &(":authority", path.clone(), Encoder::HUFFMAN_VALUE), &mut block);
        let sent = block.clone();
        rewrite_fields(&mut block);
        prop_assert_eq!(block.len(), sent.len());
        let value = decode(&mut Decoder::default(), &block).remove(0).1;
        prop_assert_eq!(value.len(), path.len());
        let is_mostly_long = 2 * path.matches(['\\', '<', '`', '{', '^', '}']).count() > path.len();
        prop_assert!(Authority::try_from(value.as_str()).is_ok() || is_mostly_long, "{}", value);
    }

    /// Whatever comes passes, as long as it came, in whatever pieces.
    #[test]
    fn any_bytes_pass_however_they_are_cut(
        bytes in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 4, 9, 0x41, 0xff]), 0..600),
        pieces in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let wire = [PREFACE_TEXT.as_slice(), &bytes].concat();
        let passed = pass(&wire, &pieces);
        prop_assert_eq!(passed.len(), wire.len());
    }
}

#[test]
fn a_block_that_never_ends_is_not_held_back() {
    let mut rewriter = Rewriter::default();
    assert_eq!(rewriter.rewrite(&mut PREFACE_TEXT.clone()), PREFACE);
    let mut held = frame(HEADERS, 0, &[]);
    for _ in 0..2 * LOOK / HEAD {
        held.extend(frame(CONTINUATION, 0, &[]));
        let judged = rewriter.rewrite(&mut held);
        held.drain(..judged);
        assert!(held.len() < LOOK);
    }
}

#[test]
fn the_beginning_of_a_block_that_is_longer_than_what_is_held_back_counts() {
    let mut rewriter = Rewriter::default();
    assert_eq!(rewriter.rewrite(&mut PREFACE_TEXT.clone()), PREFACE);
    let mut block = vec![0x41, PATHS[1].len() as u8];
    block.extend(PATHS[1].as_bytes());
    block.resize(2 * LOOK, b'x');
    let mut wire = frame(HEADERS, 0, &block);
    // The rest of it, and what follows, have not come.
    wire.truncate(LOOK);
    assert_eq!(rewriter.rewrite(&mut wire), LOOK);
    let value = &wire[HEAD + 2..][..PATHS[1].len()];
    assert_eq!(value, PATHS[1].replace('/', "-").as_bytes());
}

#[test]
fn changes_of_the_tables_size_come_before_the_field() {
    // To 0, and to 4096 again (RFC 7541, 4.2 and 6.3).
    let mut block = vec![0x20, 0x3f, 0xe1, 0x1f, 0x41, PATHS[1].len() as u8];
    let begins = block.len();
    block.extend(PATHS[1].as_bytes());
    rewrite_fields(&mut block);
    assert_eq!(block[begins..], *PATHS[1].replace('/', "-").as_bytes());
}

#[test]
fn the_name_in_the_huffman_code_is_recognized() {
    let mut block = Vec::new();
    let flags = Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;
    encode(&mut Encoder::default(), &(":authority", PATHS[0].to_owned(), flags), &mut block);
    assert!(block.windows(NAME_HUFFMAN.len()).any(|window| window == NAME_HUFFMAN));
    rewrite_fields(&mut block);
    assert_eq!(
        decode(&mut Decoder::default(), &block),
        [(":authority".to_owned(), "-2Frun-2Fkwitness-2Fkwitness.sock".to_owned())]
    );
}

#[test]
fn the_huffman_table_is_that_of_the_other_implementation() {
    let all: Vec<u8> = LENGTHS.iter().flat_map(|length| length.symbols).copied().collect();
    assert!((b' '..=b'~').all(|byte| all.contains(&byte)));
    assert_eq!(LENGTHS.iter().map(|length| length.count).sum::<u32>(), 257);
    for byte in all {
        let mut block = Vec::new();
        let value = String::from_utf8(vec![byte; 8]).unwrap();
        encode(&mut Encoder::default(), &("a", value, Encoder::HUFFMAN_VALUE), &mut block);
        // Eight of them fill whole bytes: a flag, the name, the value's head.
        let symbols: Vec<Symbol> = Symbols { value: &block[4..], at: 0 }.collect();
        assert!(symbols.len() == 8 && symbols.iter().all(|symbol| symbol.byte == Some(byte)), "{byte:#x}");
        assert_eq!(block[4..].len(), symbols[0].bits, "{byte:#x}");
    }
    for (bits, code) in plain_codes() {
        let mut value = vec![0xff; bits.div_ceil(8)];
        set_bits(&mut value, 0, bits, code);
        let symbol = Symbols { value: &value, at: 0 }.next().unwrap();
        assert!(symbol.bits == bits && symbol.byte.is_some_and(is_plain));
    }
}

/// RFC 9113, 8.3.1: it must not be empty. There is nothing to replace.
#[test]
fn an_empty_value_is_left_for_the_server_to_refuse() {
    for block in [&[0x41, 0][..], &[0x41, 0x80]] {
        let mut passed = block.to_vec();
        rewrite_fields(&mut passed);
        assert_eq!(passed, block);
    }
}

#[test]
fn a_value_that_does_not_end_in_what_is_held_back_is_left_alone_and_the_next_is_not() {
    let mut rewriter = Rewriter::default();
    assert_eq!(rewriter.rewrite(&mut PREFACE_TEXT.clone()), PREFACE);
    let long = vec![b'/'; LOOK];
    let block = [&[0x41, 0x7f, 0x81, 0x1f], &long[..]].concat();
    let wire = frame(HEADERS, END_HEADERS, &block);
    let (beginning, rest) = wire.split_at(LOOK);
    let (mut first, mut second) = (beginning.to_vec(), rest.to_vec());
    assert_eq!((rewriter.rewrite(&mut first), rewriter.rewrite(&mut second)), (first.len(), second.len()));
    assert_eq!([first, second].concat(), wire);
    let short = [&[0x41, PATHS[1].len() as u8], PATHS[1].as_bytes()].concat();
    let mut next = frame(HEADERS, END_HEADERS, &short);
    rewriter.rewrite(&mut next);
    assert_eq!(next[HEAD + 2..], *PATHS[1].replace('/', "-").as_bytes());
}
