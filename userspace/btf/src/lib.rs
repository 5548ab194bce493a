//! A small reader of the kernel's type information (BTF): where a member is in its structure, how many arguments a
//! tracepoint has.
//!
//! Owns the format. Total: any sequence of bytes gives an answer or a [`BtfError`], never a panic; every offset and
//! length is checked, every walk is bounded. Reads no file.
//!
//! The format is described in the kernel's `Documentation/bpf/btf.rst`: a header, type records one after the other (the
//! first has id 1), and a table of NUL-terminated strings.

use std::collections::HashMap;

/// Where the running kernel has its own.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Bytes of a type record before what depends on its kind.
const TYPE_LEN: usize = 12;
/// Structures within structures, typedefs of typedefs: deeper than any kernel goes, shallow enough to end a cycle.
const MAX_DEPTH: u32 = 32;

/// Why bytes are not BTF that can be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes do not begin with a BTF header.
    #[error("not BTF of this machine's byte order: no header with magic {MAGIC:#x}")]
    NotBtf,
    /// The header names a part that is not there.
    #[error("the {0} section lies outside the file")]
    Section(&'static str),
    /// A type record is cut off.
    #[error("type {id} is cut off")]
    CutOff {
        /// The type's id.
        id: u32,
    },
    /// A type record of a kind that came after this program.
    #[error("type {id} has kind {kind}, which this program does not know")]
    UnknownKind {
        /// The type's id.
        id: u32,
        /// The kind's number.
        kind: u32,
    },
}

/// Type information, indexed.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where in `types` the record of id `index + 1` begins.
    starts: Vec<u32>,
    /// The first structure of each name.
    structures: HashMap<&'a [u8], u32>,
    /// The first typedef of each name.
    typedefs: HashMap<&'a [u8], u32>,
}

/// A type record.
struct Type<'a> {
    kind: u32,
    /// Members, parameters or values.
    count: usize,
    /// Structures only: a member's offset holds a bit-field's width, too.
    has_bitfields: bool,
    /// The size, or the id of the type that this one refers to.
    reference: u32,
    /// What depends on the kind.
    tail: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Indexes the bytes of [`BTF_PATH`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.get(..2).map(|magic| u16::from_ne_bytes([magic[0], magic[1]]));
        let field =
            |offset: usize| read_u32(bytes, offset).ok_or(BtfError::NotBtf).map(|value| value as usize);
        if magic != Some(MAGIC) || bytes.len() < HEADER_LEN {
            return Err(BtfError::NotBtf);
        }
        let header_len = field(4)?;
        let section = |name, offset: usize, length: usize| {
            let start = header_len.checked_add(offset).ok_or(BtfError::Section(name))?;
            let end = start.checked_add(length).ok_or(BtfError::Section(name))?;
            bytes.get(start..end).ok_or(BtfError::Section(name))
        };
        let mut btf = Self {
            types: section("type", field(8)?, field(12)?)?,
            strings: section("string", field(16)?, field(20)?)?,
            starts: Vec::new(),
            structures: HashMap::new(),
            typedefs: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut start = 0;
        while start < self.types.len() {
            let id = self.starts.len() as u32 + 1;
            let record = read_type(self.types, start, id)?;
            let name = read_u32(self.types, start).unwrap_or(0);
            let names = match record.kind {
                KIND_STRUCT => Some(&mut self.structures),
                KIND_TYPEDEF => Some(&mut self.typedefs),
                _ => None,
            };
            if let Some(names) = names
                && let Some(name) = string(self.strings, name)
            {
                names.entry(name).or_insert(id);
            }
            // Sections are limited to 4 GiB by the header's own fields.
            self.starts.push(start as u32);
            start += TYPE_LEN + record.tail.len();
        }
        Ok(())
    }

    /// The offset in bytes of a member of a structure; `path` may lead through further structures (`ns.inum`).
    /// Members of nameless structures and unions count as the structure's own. A bit-field has no such offset.
    pub fn member_offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structures.get(structure.as_bytes())?;
        let mut offset = 0_u32;
        for name in path.split('.') {
            let (bits, member) = self.member(id, name.as_bytes(), MAX_DEPTH)?;
            if bits % 8 != 0 {
                return None;
            }
            offset = offset.checked_add(bits / 8)?;
            id = member;
        }
        Some(offset)
    }

    /// How many arguments a tracepoint passes to its probes, by the type `btf_trace_<name>`.
    pub fn tracepoint_args(&self, tracepoint: &str) -> Option<u32> {
        let mut id = *self.typedefs.get(format!("btf_trace_{tracepoint}").as_bytes())?;
        for _ in 0..MAX_DEPTH {
            let record = self.get(id)?;
            match record.kind {
                KIND_TYPEDEF | KIND_PTR => id = record.reference,
                // The first parameter is the probe's own data.
                KIND_FUNC_PROTO => return (record.count as u32).checked_sub(1),
                _ => return None,
            }
        }
        None
    }

    /// Offset in bits and type of the member of that name.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let record = self.structure(id)?;
        for member in record.tail.chunks_exact(12) {
            let (member_name, member_id) = (read_u32(member, 0)?, read_u32(member, 4)?);
            let raw = read_u32(member, 8)?;
            let (bits, width) = if record.has_bitfields { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            match string(self.strings, member_name) {
                Some(b"") => {
                    let inner = depth.checked_sub(1).and_then(|depth| self.member(member_id, name, depth));
                    if let Some((inner, found)) = inner {
                        return Some((bits.checked_add(inner)?, found));
                    }
                }
                Some(found) if found == name => return (width == 0).then_some((bits, member_id)),
                _ => {}
            }
        }
        None
    }

    /// The structure or union that the type is, typedefs and qualifiers removed.
    fn structure(&self, mut id: u32) -> Option<Type<'a>> {
        for _ in 0..MAX_DEPTH {
            let record = self.get(id)?;
            match record.kind {
                KIND_STRUCT | KIND_UNION => return Some(record),
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = record.reference
                }
                _ => return None,
            }
        }
        None
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        read_type(self.types, start as usize, id).ok()
    }
}

fn read_type(types: &[u8], start: usize, id: u32) -> Result<Type<'_>, BtfError> {
    let word = |index: usize| read_u32(types, start + 4 * index).ok_or(BtfError::CutOff { id });
    let (info, reference) = (word(1)?, word(2)?);
    let kind = info >> 24 & 0x1f;
    let count = (info & 0xffff) as usize;
    let tail_len = match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
        | KIND_FLOAT | KIND_TYPE_TAG => 0,
        _ => return Err(BtfError::UnknownKind { id, kind }),
    };
    let tail_start = start + TYPE_LEN;
    let tail = types.get(tail_start..tail_start + tail_len).ok_or(BtfError::CutOff { id })?;
    Ok(Type { kind, count, has_bitfields: info >> 31 != 0, reference, tail })
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn string(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = strings.get(offset as usize..)?;
    Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
}

#[cfg(test)]
mod tests;
