//! Disk images for guests, made of directories by mke2fs without mounting anything.

use std::fs::{self, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;

/// The disk id in a root's partition table: the kernel finds its root by it, whatever order disks appear in.
const DISK_ID: u32 = 0x766d_6c61;
const PARTITION_START: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The kernel's name for the partition of [`root`].
pub fn root_partition() -> String {
    format!("PARTUUID={DISK_ID:08x}-01")
}

/// A disk that is one file system with the content of `dir`, and room for a little more.
pub fn plain(dir: &Path, image: &Path, log: &Path) -> Result<()> {
    let size = kibibytes(dir)? * 6 / 5 + (16 << 10);
    make(dir, image, 0, size, log)
}

/// A disk with one partition that holds the content of `dir`, with `room` bytes free.
pub fn root(dir: &Path, image: &Path, room: u64, log: &Path) -> Result<()> {
    let size = kibibytes(dir)? * 6 / 5 + room / 1024;
    make(dir, image, PARTITION_START, size, log)?;
    let mut file =
        OpenOptions::new().write(true).open(image).with_context(|| format!("open {}", image.display()))?;
    let table = partition_table(size * 1024 / SECTOR)?;
    file.seek(SeekFrom::Start(440)).and_then(|_| file.write_all(&table)).context("write the partition table")
}

/// Bytes 440 to 511 of a disk: its id, one Linux partition, and the boot signature.
fn partition_table(sectors: u64) -> Result<[u8; 72]> {
    let first = u32::try_from(PARTITION_START / SECTOR)?;
    let count = u32::try_from(sectors).context("the root is too large for its partition table")?;
    // The addresses by cylinder, head and sector, which are not read any more, at their maximum.
    let unused = [0xfe, 0xff, 0xff];
    let mut table = [0; 72];
    table[..4].copy_from_slice(&DISK_ID.to_le_bytes());
    let entry = &mut table[6..22];
    entry[1..4].copy_from_slice(&unused);
    entry[4] = 0x83;
    entry[5..8].copy_from_slice(&unused);
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&count.to_le_bytes());
    table[70..].copy_from_slice(&[0x55, 0xaa]);
    Ok(table)
}

fn make(dir: &Path, image: &Path, offset: u64, kibibytes: u64, log: &Path) -> Result<()> {
    // Made under another name, so that a guest never boots half a disk.
    let unfinished = image.with_extension("new");
    let size = offset + kibibytes * 1024;
    fs::File::create(&unfinished)
        .and_then(|file| file.set_len(size))
        .with_context(|| format!("create {} with {size} bytes", unfinished.display()))?;
    run::logged(
        Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E"])
            .arg(format!("offset={offset},lazy_itable_init=1,nodiscard"))
            .arg("-d")
            .arg(dir)
            .arg(&unfinished)
            .arg(format!("{kibibytes}k")),
        log,
    )
    .with_context(|| format!("make {}; is the disk full?", image.display()))?;
    fs::rename(&unfinished, image).with_context(|| format!("move {} into place", image.display()))
}

fn kibibytes(dir: &Path) -> Result<u64> {
    let text = run::output(Command::new("du").args(["-sk", "--"]).arg(dir))?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("`du -sk {}` printed no number", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_where_the_kernel_looks() {
        let table = partition_table(4096).unwrap();
        assert_eq!(table[..4], [0x61, 0x6c, 0x6d, 0x76]);
        assert_eq!(table[10], 0x83, "a Linux partition");
        assert_eq!(u32::from_le_bytes(table[14..18].try_into().unwrap()), 2048, "first sector");
        assert_eq!(u32::from_le_bytes(table[18..22].try_into().unwrap()), 4096, "sectors");
        assert_eq!(table[70..], [0x55, 0xaa]);
        assert_eq!(root_partition(), "PARTUUID=766d6c61-01");
        assert!(partition_table(u64::MAX).is_err());
    }
}
