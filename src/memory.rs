//! Sizes of memory: as people write them, and as the system counts them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(pub u64);

/// Units, the longer spelling of an ending first.
const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("G", 1 << 30),
    ("M", 1 << 20),
];

/// What a machine that does not say how much is free is taken to have.
const UNKNOWN: Memory = Memory(4 << 30);

impl FromStr for Memory {
    type Err = Error;

    fn from_str(text: &str) -> Result<Memory> {
        let hint = "a size is a number and KiB, MiB, GiB, KB, MB or GB, as 2GiB";
        let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit)).with_context(|| hint.to_owned())?;
        let number: f64 = text[..text.len() - unit.0.len()].trim().parse().with_context(|| hint.to_owned())?;
        let bytes = number * unit.1 as f64;
        ensure!(bytes.is_finite() && (1.0..1e18).contains(&bytes), "{hint}");
        Ok(Memory(bytes as u64))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 => write!(f, "{} GiB", bytes >> 30),
            bytes if bytes >= 1 << 30 => write!(f, "{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

impl Memory {
    /// Half of what the machine could give.
    pub fn half_of_free() -> Memory {
        kibibytes("/proc/meminfo", "MemAvailable:").map_or(UNKNOWN, |free| Memory(free.0 / 2))
    }

    /// What this process has in memory, where the system says it.
    pub fn resident() -> Option<Memory> {
        kibibytes("/proc/self/status", "VmRSS:")
    }
}

/// A line `name  123 kB` of a file of the kernel's.
fn kibibytes(file: &str, name: &str) -> Option<Memory> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Memory(number * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_their_units() {
        let read = |text: &str| text.parse::<Memory>().map(|memory| memory.0).map_err(|error| error.to_string());
        assert_eq!(read("2GiB"), Ok(2 << 30));
        assert_eq!(read("1.5 GiB"), Ok(3 << 29));
        assert_eq!(read("500MB"), Ok(500_000_000));
        assert_eq!(read("64KiB"), Ok(65_536));
        assert_eq!(read("8G"), Ok(8 << 30));
        for wrong in ["", "2", "GiB", "-1GiB", "0GiB", "2GiBs", "two GiB", "inf GiB", "NaNGiB", "1e30GiB"] {
            assert!(read(wrong).unwrap_err().contains("as 2GiB"), "{wrong}");
        }
        assert_eq!(Memory(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Memory(1).to_string(), "1 MiB");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_what_is_free_and_held() {
        assert!(Memory::resident().is_some_and(|held| held > Memory(1 << 20)));
        assert_ne!(Memory::half_of_free(), UNKNOWN);
    }
}
