//! Tests of the BTF reader: a small image that has everything the kernel's has, cut and bent in every way.

use proptest::prelude::*;

use super::*;

/// Builds an image, type by type.
#[derive(Default)]
struct Image {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Image {
    fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        offset
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    /// A type without members; its id.
    fn simple(&mut self, kind: u32, name: &str, reference: u32, tail: &[u32]) -> u32 {
        let name = self.string(name);
        self.words(&[name, kind << 24, reference]);
        self.words(tail);
        self.count += 1;
        self.count
    }

    /// A structure or union of `(name, type, raw offset)`; its id.
    fn structure(&mut self, kind: u32, kflag: bool, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        let name = self.string(name);
        self.words(&[name, kind << 24 | u32::from(kflag) << 31 | members.len() as u32, 0]);
        for (name, member, offset) in members {
            let name = self.string(name);
            self.words(&[name, *member, *offset]);
        }
        self.count += 1;
        self.count
    }

    fn prototype(&mut self, parameters: &[u32]) -> u32 {
        self.words(&[0, KIND_FUNC_PROTO << 24 | parameters.len() as u32, 0]);
        for parameter in parameters {
            self.words(&[0, *parameter]);
        }
        self.count += 1;
        self.count
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [HEADER_LEN as u32, 0, types, types, strings] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// ```c
/// struct inner { int a; unsigned inum; };
/// typedef const struct inner inner_t;
/// struct outer {
///     int first;
///     union { int left; struct { int deep; inner_t ns; }; };   // at 8
///     int flag : 1;                                             // at bit 160
///     struct outer *self;                                       // at 24
/// };
/// typedef void (*btf_trace_two)(void *, int, int);
/// ```
fn image() -> Vec<u8> {
    let mut image = Image::new();
    let int = image.simple(KIND_INT, "int", 4, &[32]);
    let inner = image.structure(KIND_STRUCT, false, "inner", &[("a", int, 0), ("inum", int, 32)]);
    let constant = image.simple(KIND_CONST, "", inner, &[]);
    let inner_t = image.simple(KIND_TYPEDEF, "inner_t", constant, &[]);
    let deep = image.structure(KIND_STRUCT, false, "", &[("deep", int, 0), ("ns", inner_t, 32)]);
    let union = image.structure(KIND_UNION, false, "", &[("left", int, 0), ("", deep, 0)]);
    let pointer = image.simple(KIND_PTR, "", image.count + 2, &[]);
    image.structure(
        KIND_STRUCT,
        true,
        "outer",
        &[("first", int, 0), ("", union, 64), ("flag", int, 1 << 24 | 160), ("self", pointer, 192)],
    );
    let prototype = image.prototype(&[int, int, int]);
    let pointer = image.simple(KIND_PTR, "", prototype, &[]);
    image.simple(KIND_TYPEDEF, "btf_trace_two", pointer, &[]);
    // One of each kind that is only stepped over.
    image.simple(KIND_ARRAY, "", 0, &[int, int, 3]);
    image.simple(KIND_FWD, "outer", 0, &[]);
    image.simple(KIND_VAR, "v", int, &[0]);
    image.simple(KIND_DECL_TAG, "tag", int, &[0]);
    image.simple(KIND_FLOAT, "float", 4, &[]);
    image.bytes()
}

#[test]
fn members_are_found_through_nameless_ones_typedefs_and_paths() {
    let bytes = image();
    let btf = Btf::parse(&bytes).unwrap();
    for (path, offset) in [
        ("first", Some(0)),
        ("left", Some(8)),
        ("deep", Some(8)),
        ("ns", Some(12)),
        ("ns.inum", Some(16)),
        ("self", Some(24)),
        ("flag", None),
        ("absent", None),
        ("first.absent", None),
        ("self.first", None),
        ("", None),
    ] {
        assert_eq!(btf.member_offset("outer", path), offset, "{path}");
    }
    assert_eq!(btf.member_offset("absent", "first"), None);
}

#[test]
fn a_tracepoint_has_the_arguments_after_its_own() {
    let bytes = image();
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(btf.tracepoint_args("two"), Some(2));
    assert_eq!(btf.tracepoint_args("three"), None);
}

#[test]
fn cycles_end() {
    let mut image = Image::new();
    image.simple(KIND_TYPEDEF, "btf_trace_loop", 1, &[]);
    image.structure(KIND_STRUCT, false, "nest", &[("", 2, 0)]);
    let bytes = image.bytes();
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(btf.tracepoint_args("loop"), None);
    assert_eq!(btf.member_offset("nest", "x"), None);
}

#[test]
fn what_is_no_btf_is_named() {
    assert_eq!(Btf::parse(b"").err(), Some(BtfError::NotBtf));
    assert_eq!(Btf::parse(b"\x7fELF and more than a header's worth of bytes").err(), Some(BtfError::NotBtf));
    let mut bytes = image();
    bytes.truncate(bytes.len() - 1);
    assert_eq!(Btf::parse(&bytes).err(), Some(BtfError::Section("string")));
    let mut unknown = Image::new();
    unknown.simple(30, "later", 0, &[]);
    assert_eq!(Btf::parse(&unknown.bytes()).err(), Some(BtfError::UnknownKind { id: 1, kind: 30 }));
    let mut cut = Image::new();
    cut.words(&[0, KIND_STRUCT << 24 | 5, 0]);
    assert_eq!(Btf::parse(&cut.bytes()).err(), Some(BtfError::CutOff { id: 1 }));
}

/// Asks everything there is to ask.
fn exercise(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes) {
        for path in ["first", "ns.inum", "flag", "absent"] {
            btf.member_offset("outer", path);
        }
        btf.tracepoint_args("two");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        exercise(&bytes);
    }

    #[test]
    fn no_cut_and_no_change_panics(cut in 0_usize..2000, changes: Vec<(prop::sample::Index, u8)>) {
        let mut bytes = image();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(cut.max(1).min(bytes.len()));
        exercise(&bytes);
    }
}
