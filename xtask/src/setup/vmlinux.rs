//! Takes the ELF out of a bzImage.
//!
//! The layout is that of `Documentation/arch/x86/boot.rst`: the real-mode part first, then the code that unpacks
//! the kernel with the compressed kernel in it, at `payload_offset` for `payload_length` bytes. The last four of those
//! are the unpacked length.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
/// A block of the lz4 tool's legacy format is at most this long when unpacked.
const LZ4_BLOCK: usize = 8 << 20;

/// The uncompressed kernel in a bzImage.
pub fn extract(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the image ends in its header")?;
        Ok(u32::from_le_bytes(bytes.try_into().context("four bytes")?) as usize)
    };
    let sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    let payload = image.get(start..start + word(0x24c)?).context("the image ends in its payload")?;
    let (packed, length) = payload.split_last_chunk::<4>().context("the payload is empty")?;
    let length = u32::from_le_bytes(*length) as usize;

    let elf = if packed.starts_with(ZSTD) {
        let mut elf = Vec::with_capacity(length);
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).context("read the zstd header")?;
        decoder.read_to_end(&mut elf).context("unpack zstd")?;
        elf
    } else if packed.starts_with(LZ4_LEGACY) {
        lz4(&packed[LZ4_LEGACY.len()..], length)?
    } else if packed.starts_with(XZ) {
        xz(packed)?
    } else {
        bail!("compressed in a way we do not know, beginning with {:02x?}", &packed[..4.min(packed.len())]);
    };
    ensure!(elf.starts_with(b"\x7fELF"), "what was unpacked is no ELF");
    ensure!(elf.len() == length, "unpacked {} bytes instead of {length}", elf.len());
    Ok(elf)
}

fn lz4(mut rest: &[u8], length: usize) -> Result<Vec<u8>> {
    let mut elf = Vec::with_capacity(length);
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let block = tail.get(..size).context("an lz4 block is cut off")?;
        elf.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).context("unpack lz4")?);
        rest = &tail[size..];
    }
    Ok(elf)
}

/// Kernels are packed with the filter for x86 code, which no decoder written in Rust has: so the tool.
fn xz(packed: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start xz: install xz-utils")?;
    let mut stdin = child.stdin.take().context("xz has a standard input")?;
    let packed = packed.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&packed));
    let output = child.wait_with_output().context("wait for xz")?;
    ensure!(output.status.success(), "xz ended with {}", output.status);
    match writer.join() {
        Ok(written) => written.context("write to xz")?,
        Err(_) => bail!("the thread that writes to xz died"),
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage around a payload.
    fn image(packed: &[u8], length: u32) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 16];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        image.extend_from_slice(packed);
        image.extend_from_slice(&length.to_le_bytes());
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn kernel() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()));
        elf
    }

    #[test]
    fn lz4_blocks_are_joined() {
        let elf = kernel();
        let mut packed = LZ4_LEGACY.to_vec();
        for part in [&elf[..1000], &elf[1000..]] {
            let block = lz4_flex::block::compress(part);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        assert!(extract(&image(&packed, elf.len() as u32)).unwrap() == elf);
    }

    #[test]
    fn zstd_is_unpacked() {
        let elf = kernel();
        let packed =
            ruzstd::encoding::compress_to_vec(elf.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        assert!(extract(&image(&packed, elf.len() as u32)).unwrap() == elf);
    }

    #[test]
    fn damage_is_an_error() {
        let elf = kernel();
        let packed =
            ruzstd::encoding::compress_to_vec(elf.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        let good = image(&packed, elf.len() as u32);
        for (what, bad) in [
            ("another length", image(&packed, 7)),
            ("cut off", good[..2000].to_vec()),
            ("no header", vec![0; 4096]),
            ("unknown compression", image(b"????????", 8)),
            ("empty", Vec::new()),
        ] {
            assert!(extract(&bad).is_err(), "{what}");
        }
    }
}
