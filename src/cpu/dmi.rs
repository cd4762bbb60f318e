//! The memory sticks that the firmware lists, and how fast they run.
//!
//! Two sources, for what the firmware says is for root's eyes alone, but systemd passes a part of it on:
//! ```text
//! /sys/firmware/dmi/tables/DMI    SMBIOS structures (DMTF DSP0134): type, length, handle (2), the rest of `length` bytes,
//!                                 then strings that end with 0, and one more 0. Of type 17, a memory device:
//!                                 0x0A data width (bits), 0x0C size, 0x10 locator, 0x11 bank (numbers of strings),
//!                                 0x15 rated speed (MT/s), 0x1C long size, 0x20 configured speed,
//!                                 0x54 and 0x58 the long forms of both speeds
//! /run/udev/data/+dmi:id          E:MEMORY_DEVICE_0_SPEED_MTS=6000 and so on (systemd's dmi_memory_id.c)
//! ```

use std::path::Path;

/// A memory stick (or a soldered chip's share of the bus).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stick {
    /// Where it sits, as the firmware calls it: slot and bank.
    pub place: String,
    /// Bytes.
    pub bytes: u64,
    /// Bits of data at a time; 64 where the table does not say.
    pub width: usize,
    /// Millions of transfers per second that it is made for.
    pub rated: Option<usize>,
    /// Millions of transfers per second that it runs at.
    pub runs: Option<usize>,
}

impl Stick {
    /// GB/s of one such stick.
    pub fn gbps(&self) -> Option<f64> {
        Some(self.runs.or(self.rated)? as f64 * self.width as f64 / 8.0 / 1000.0)
    }

    /// The channel's letter or number, where the names tell it: "P0 CHANNEL A", "ChannelB-DIMM0".
    pub fn channel(&self) -> Option<String> {
        let place = self.place.to_uppercase();
        let rest = place.split("CHANNEL").nth(1)?.trim_start_matches([' ', '_', '-']);
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        // A machine with several sockets names the same channels in each.
        let socket = place.split("CHANNEL").next().unwrap_or("");
        (!name.is_empty()).then(|| format!("{socket}{name}"))
    }
}

/// The sticks, or in words why they cannot be read. From the system's files below `root`, which is `/` but in tests.
///
/// # Errors
/// If the table cannot be read, which needs root on most systems, or is malformed; the text says which.
pub fn sticks(root: &Path) -> Result<Vec<Stick>, String> {
    let path = root.join("sys/firmware/dmi/tables/DMI");
    let why = match std::fs::read(&path) {
        Ok(table) => {
            let list = parse_table(&table);
            if !list.is_empty() {
                return Ok(list);
            }
            "the firmware lists no memory".to_owned()
        }
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            "the firmware's tables are for root alone: sudo tandem doctor reads them".to_owned()
        }
        Err(_) => "the firmware shows no tables here, as is usual in virtual machines and containers".to_owned(),
    };
    let udev = std::fs::read_to_string(root.join("run/udev/data/+dmi:id")).unwrap_or_default();
    let list = parse_udev(&udev);
    if list.is_empty() { Err(why) } else { Ok(list) }
}

fn parse_table(mut table: &[u8]) -> Vec<Stick> {
    let mut list = Vec::new();
    while let [kind, len, _, _, ..] = *table {
        let len = len as usize;
        if len < 4 || len > table.len() || kind == 127 {
            break; // 127 is the end; the rest would be no table
        }
        let (fields, strings) = table.split_at(len);
        let end = strings.windows(2).position(|w| w == [0, 0]).unwrap_or(strings.len());
        if kind == 17 {
            list.extend(device(fields, &strings[..end]));
        }
        table = strings.get(end + 2..).unwrap_or_default();
    }
    list
}

fn device(fields: &[u8], strings: &[u8]) -> Option<Stick> {
    let word = |at: usize| Some(u16::from_le_bytes(*fields.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u32::from_le_bytes(*fields.get(at..)?.first_chunk()?) & 0x7fff_ffff);
    let bytes = match word(0x0c)? {
        0 | 0xffff => return None, // an empty slot, or unknown
        0x7fff => (long(0x1c)? as u64) << 20,
        n if n & 0x8000 != 0 => ((n & 0x7fff) as u64) << 10,
        n => (n as u64) << 20,
    };
    let speed = |at: usize, more: usize| match word(at)? {
        0 => None,
        0xffff => long(more).map(|n| n as usize).filter(|n| *n > 0),
        n => Some(n as usize),
    };
    let text = |at: usize| {
        let number = (*fields.get(at)? as usize).checked_sub(1)?;
        Some(String::from_utf8_lossy(strings.split(|b| *b == 0).nth(number)?).trim().to_owned())
    };
    let place: Vec<String> = [text(0x11), text(0x10)].into_iter().flatten().filter(|t| !t.is_empty()).collect();
    let width = word(0x0a).map(usize::from).filter(|w| (8..=512).contains(w)).unwrap_or(64);
    Some(Stick { place: place.join(" "), bytes, width, rated: speed(0x15, 0x54), runs: speed(0x20, 0x58) })
}

fn parse_udev(text: &str) -> Vec<Stick> {
    let value = |i: usize, name: &str| {
        let key = format!("E:MEMORY_DEVICE_{i}_{name}=");
        text.lines().find_map(|l| l.strip_prefix(&key)).map(|v| v.trim().to_owned())
    };
    let number = |i: usize, name: &str| value(i, name)?.parse::<u64>().ok().filter(|n| *n > 0);
    let stick = |i: usize| {
        let place: Vec<String> = ["BANK_LOCATOR", "LOCATOR"].into_iter().filter_map(|name| value(i, name)).collect();
        Some(Stick {
            place: place.join(" "),
            bytes: number(i, "SIZE")?,
            width: number(i, "DATA_WIDTH").map_or(64, |w| w as usize),
            rated: number(i, "SPEED_MTS").map(|n| n as usize),
            runs: number(i, "CONFIGURED_SPEED_MTS").map(|n| n as usize),
        })
    };
    (0..128).filter_map(stick).collect()
}

#[cfg(test)]
mod tests {
    use super::super::topology::tests::machine;
    use super::*;

    /// A memory device of 16 GB.
    fn structure(slot: &str, bank: &str, rated: u16, runs: u16, size: u16) -> Vec<u8> {
        let mut s = vec![0; 0x5c];
        (s[0], s[1]) = (17, 0x5c);
        let mut put = |at: usize, v: u16| s[at..at + 2].copy_from_slice(&v.to_le_bytes());
        put(0x0a, 64);
        put(0x0c, size);
        put(0x15, rated);
        put(0x20, runs);
        (s[0x10], s[0x11]) = (1, 2);
        s[0x1c..0x20].copy_from_slice(&(64u32 << 10).to_le_bytes()); // MB
        s[0x54..0x58].copy_from_slice(&70_000u32.to_le_bytes());
        s.extend([slot.as_bytes(), b"\0", bank.as_bytes(), b"\0\0"].concat());
        s
    }

    fn table(devices: &[Vec<u8>]) -> Vec<u8> {
        let bios = [&[0u8, 5, 0, 0, 9][..], b"a maker\0\0"].concat();
        let end = [127, 4, 0, 0, 0, 0].to_vec();
        [&[bios], devices, &[end]].concat().concat()
    }

    #[test]
    fn sticks_are_read_from_the_firmwares_table() {
        let t = table(&[
            structure("DIMM 0", "P0 CHANNEL A", 6000, 4800, 16 << 10),
            structure("DIMM 1", "P0 CHANNEL A", 6000, 4800, 0),
            structure("DIMM 0", "P0 CHANNEL B", 0xffff, 0, 0x7fff),
        ]);
        let list = parse_table(&t);
        assert_eq!(list.len(), 2, "an empty slot is no stick");
        assert_eq!((list[0].rated, list[0].runs, list[0].bytes), (Some(6000), Some(4800), 16 << 30));
        assert_eq!((list[1].rated, list[1].runs, list[1].bytes), (Some(70_000), None, 64 << 30));
        assert_eq!(list[0].gbps(), Some(38.4));
        assert_eq!(list[0].place, "P0 CHANNEL A DIMM 0");
        assert_ne!(list[0].channel(), list[1].channel());
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/firmware/dmi/tables")).unwrap();
        std::fs::write(root.path().join("sys/firmware/dmi/tables/DMI"), t).unwrap();
        assert_eq!(sticks(root.path()).unwrap(), list);
    }

    #[test]
    fn a_table_that_is_cut_anywhere_is_read_as_far_as_it_goes() {
        let t = table(&[structure("A", "B", 1, 2, 3), structure("C", "D", 4, 5, 6)]);
        for n in 0..t.len() {
            assert!(parse_table(&t[..n]).len() <= 2);
        }
        assert!(parse_table(&[17; 300]).len() <= 20 && parse_table(&[0; 300]).is_empty());
    }

    #[test]
    fn without_the_table_systemds_copy_is_read_and_without_both_the_reason_is_said() {
        let udev = "I:1\nE:MEMORY_ARRAY_NUM_DEVICES=2\nE:MEMORY_DEVICE_0_SIZE=8589934592\n\
                    E:MEMORY_DEVICE_0_SPEED_MTS=3200\nE:MEMORY_DEVICE_0_CONFIGURED_SPEED_MTS=2666\n\
                    E:MEMORY_DEVICE_0_LOCATOR=ChannelA-DIMM0\nE:MEMORY_DEVICE_1_PRESENT=0\n";
        let list = sticks(machine(&[("run/udev/data/+dmi:id", udev)]).path()).unwrap();
        let [stick] = &list[..] else { panic!("{list:?}") };
        assert_eq!((stick.rated, stick.runs, stick.width), (Some(3200), Some(2666), 64));
        assert_eq!(stick.channel().as_deref(), Some("A"));
        assert!(sticks(machine(&[]).path()).unwrap_err().contains("virtual machines"));
    }
}
