//! The lines of one file, plain or compressed, up to its end or to where it is torn.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{Error, FORMAT, HEADER_MAX, Header, Line, Part};

/// How a file of zstd frames begins (RFC 8878, 3.1.1).
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The most bytes of a line, and the most that one frame may unpack to. A writer makes frames of some 256 KiB, or of one longer line;
/// the longest has an answer of the daemon, which is 32 MiB on the wire.
const LINE_MAX: u64 = 256 << 20;

/// The lines of a file. After the last one, [`Lines::is_torn`] says whether something incomplete follows it.
#[derive(Debug)]
pub struct Lines {
    part: Part,
    file: Contents,
    packing: Packing,
    header: Header,
    /// Up to where the file is intact.
    intact: u64,
    is_torn: bool,
}

/// What is read.
#[derive(Debug)]
enum Contents {
    File(BufReader<File>),
    Embedded(&'static [u8]),
}

impl Contents {
    fn reader(&mut self) -> &mut dyn io::BufRead {
        match self {
            Self::File(file) => file,
            Self::Embedded(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
enum Packing {
    Plain,
    /// What is left of the frame that was read last.
    Zstd(io::Cursor<Vec<u8>>),
}

impl Lines {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`], [`Error::NoHeader`], [`Error::Newer`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::of(&Part::File(path.to_owned()))
    }

    pub(super) fn of(part: &Part) -> Result<Self, Error> {
        let path = part.path();
        let mut file = match part {
            Part::File(path) => {
                // Opening a FIFO would wait for its writer.
                if !fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
                    return Err(Error::NotAFile { path: path.clone() });
                }
                let file = File::open(path).map_err(Error::io("open", path))?;
                Contents::File(BufReader::with_capacity(64 << 10, file))
            }
            Part::Embedded(bytes) => Contents::Embedded(bytes),
        };
        let start = file.reader().fill_buf().map_err(Error::io("read", path))?;
        let packing = if start.starts_with(&ZSTD_MAGIC) {
            Packing::Zstd(io::Cursor::default())
        } else {
            Packing::Plain
        };
        let mut lines =
            Self { part: part.clone(), file, packing, header: Header::default(), intact: 0, is_torn: false };
        match lines.next() {
            Some(Ok(Line::Header(header))) if header.format > FORMAT => {
                Err(Error::Newer { path: path.to_owned(), format: header.format })
            }
            Some(Ok(Line::Header(header))) => Ok(Self { header, ..lines }),
            Some(Err(error @ Error::Io { .. })) => Err(error),
            None | Some(_) => Err(Error::NoHeader { path: path.to_owned(), is_torn: lines.is_torn }),
        }
    }

    /// The file's first line.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the file ends within a line or a frame: its writer did not come to write the rest.
    pub fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// How many bytes of the file are whole lines, as far as it has been read.
    pub fn intact(&self) -> u64 {
        self.intact
    }

    /// Whether the file consists of zstd frames.
    pub fn is_compressed(&self) -> bool {
        matches!(self.packing, Packing::Zstd(_))
    }

    fn damaged(&self, reason: impl ToString) -> Error {
        Error::Damaged { path: self.part.path().to_owned(), offset: self.intact, reason: reason.to_string() }
    }

    /// The next whole line, with its end.
    fn text(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut line = Vec::new();
        // A file that is not a recording may have no lines, or no end.
        let max = match self.packing {
            Packing::Plain if self.intact == 0 => HEADER_MAX as u64,
            Packing::Plain | Packing::Zstd(_) => LINE_MAX,
        };
        loop {
            let source: &mut dyn io::BufRead = match &mut self.packing {
                Packing::Plain => self.file.reader(),
                Packing::Zstd(frame) => frame,
            };
            source.take(max).read_until(b'\n', &mut line).map_err(Error::io("read", self.part.path()))?;
            let is_whole = line.last() == Some(&b'\n');
            match &self.packing {
                Packing::Plain if is_whole => {
                    self.intact += line.len() as u64;
                    return Ok(Some(line));
                }
                Packing::Plain if line.len() as u64 == max => {
                    return Err(self.damaged(format!("a line has more than {max} bytes")));
                }
                Packing::Plain => {
                    self.is_torn = !line.is_empty();
                    return Ok(None);
                }
                Packing::Zstd(_) if is_whole => return Ok(Some(line)),
                // A frame holds whole lines.
                Packing::Zstd(_) if !line.is_empty() => {
                    return Err(self.damaged("a frame ends within a line"));
                }
                Packing::Zstd(_) => match self.frame()? {
                    Some(frame) => self.packing = Packing::Zstd(io::Cursor::new(frame)),
                    None => return Ok(None),
                },
            }
        }
    }

    /// The contents of the next whole frame.
    fn frame(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.file.reader().fill_buf().map_err(Error::io("read", self.part.path()))?.is_empty() {
            return Ok(None);
        }
        let mut source = Counted { source: self.file.reader(), count: 0, has_ended: false };
        let contents = unpack(&mut source, LINE_MAX);
        let Counted { count, has_ended, .. } = source;
        match contents {
            Ok(contents) => {
                self.intact += count;
                Ok(Some(contents))
            }
            Err(_) if has_ended => {
                self.is_torn = true;
                Ok(None)
            }
            Err(reason) => Err(self.damaged(reason)),
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Line, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.text() {
            Ok(Some(text)) => Some(Line::parse(&text).map_err(|error| {
                let offset = self.intact.saturating_sub(text.len() as u64);
                Error::Damaged { path: self.part.path().to_owned(), offset, reason: error.to_string() }
            })),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// Unpacks one frame, of at most so many bytes, and checks it.
pub(super) fn unpack(source: &mut impl Read, max: u64) -> Result<Vec<u8>, String> {
    let mut decoder = FrameDecoder::new();
    decoder.reset(&mut *source).map_err(|error| error.to_string())?;
    let mut contents = Vec::new();
    while !decoder.is_finished() || decoder.can_collect() > 0 {
        let strategy = BlockDecodingStrategy::UptoBlocks(1);
        if !decoder.is_finished() {
            decoder.decode_blocks(&mut *source, strategy).map_err(|error| error.to_string())?;
        }
        decoder.collect_to_writer(&mut contents).map_err(|error| error.to_string())?;
        if contents.len() as u64 > max {
            return Err(format!("a frame unpacks to more than {max} bytes"));
        }
    }
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(written), Some(found)) if written != found => {
            Err("the checksum of a frame is wrong".to_owned())
        }
        _ => Ok(contents),
    }
}

/// Counts what is read, and notes when there was no more.
struct Counted<R> {
    source: R,
    count: u64,
    has_ended: bool,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.count += count as u64;
        self.has_ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}
